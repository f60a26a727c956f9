"""What counts as a difference that BTF cannot help."""

from __future__ import annotations

import pytest

from tests.builders.btf import TYPEDEF, UNION, BtfWriter
from tests.lab.type_texts import DIMENSIONS, EMPTY, SAME, PlainBtf, reasons


def kernel() -> PlainBtf:
    btf = BtfWriter()
    char = btf.integer("char", 1)
    named = btf.struct("two", 6, [("six", btf.array(char, 6), 0)])
    far = btf.struct("three", 6, [("away", btf.array(char, 6), 0)])
    inner = btf.struct("", 0, [("deep", btf.array(char, 0), 0)], kind=UNION)
    btf.struct(
        "one",
        46,
        [
            ("ten", btf.array(char, 10), 0),
            ("grid", btf.array(btf.array(char, 5), 2), 10),
            ("none", btf.array(char, 0), 20),
            ("to", btf.pointer(btf.array(char, 6)), 20),
            ("", inner, 20),
            ("twos", btf.array(btf.add(TYPEDEF, "two_t", named), 2), 20),
            ("far", btf.pointer(far), 32),
        ],
    )
    return PlainBtf.parse(btf.finish())


@pytest.mark.parametrize(
    ("theirs", "mine", "reason"),
    [
        ("char ten[10];", "char ten[10];", SAME),
        ("char none[];", "char none[0];", EMPTY),
        ("char none[0];", "char none[];", EMPTY),
        ("char deep[];", "char deep[0];", EMPTY),
        ("char ten[2][5];", "char ten[10];", DIMENSIONS),
        ("char (*to)[2][3];", "char (*to)[6];", DIMENSIONS),
        ("char six[2][3];", "char six[6];", DIMENSIONS),
        ("char away[2][3];", "char away[6];", None),
        ("char ten[2][6];", "char ten[10];", None),
        ("char ten[10];", "char ten[2][5];", None),
        ("char grid[5][2];", "char grid[2][5];", None),
        ("char grid[2][5];", "char grid[10];", None),
        ("char ten[];", "char ten[0];", None),
        ("int none[];", "char none[0];", None),
        ("/* 0 */ char none[];", "/* 1 */ char none[0];", None),
        ("char other[];", "char other[0];", None),
    ],
)
def test_reason(theirs: str, mine: str, reason: str | None) -> None:
    found = reasons("struct one", f"{{\n{theirs}\n}}", f"{{\n{mine}\n}}", kernel())
    assert found == {reason or f"{theirs}\n{mine}"}


def test_what_has_another_number_of_lines_is_not_explained() -> None:
    assert reasons("struct one", "a\nb", "a", kernel()) == {"a\nb\na"}
    assert reasons("struct one", "a", "", kernel()) == {"a\n"}
