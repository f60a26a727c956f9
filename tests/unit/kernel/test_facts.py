"""Sources are asked in order of trust, once, and every answer keeps its source."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdump_elftool.kernel.facts import Fact, Knowledge, Later
from kdump_elftool.kernel.vmcoreinfo import override, parse


@dataclass
class Told:
    """A source with fixed answers that counts the questions."""

    answers: dict[str, int]
    label: str = "told"
    asked: list[str] = field(default_factory=list)

    def find(self, kind: str, name: str, /) -> Fact | None:
        key = f"{kind}({name})"
        self.asked.append(key)
        value = self.answers.get(key)
        return None if value is None else Fact(key, value, self.label)


def test_the_first_source_that_knows_decides() -> None:
    first, second = Told({"SYMBOL(a)": 1}, "first"), Told({"SYMBOL(a)": 2, "SIZE(b)": 3}, "second")
    known = Knowledge((first, second))
    assert (known.symbol("a"), known.size("b"), known.offset("c.d")) == (1, 3, None)
    assert [(fact.name, fact.source) for fact in known.used] == [
        ("SYMBOL(a)", "first"),
        ("SIZE(b)", "second"),
    ]
    assert known.missing([("SYMBOL", "a"), ("OFFSET", "c.d")]) == ("OFFSET(c.d)",)


def test_a_question_is_asked_once() -> None:
    source = Told({"NUMBER(x)": -7})
    known = Knowledge((source,))
    assert [known.number("x"), known.number("x"), known.length("y"), known.length("y")] == [
        -7,
        -7,
        None,
        None,
    ]
    assert source.asked == ["NUMBER(x)", "LENGTH(y)"]


def test_extra_lines_go_before_the_note() -> None:
    info = override(parse(b"OFFSET(a.b)=8\nSIZE(a)=16\n"), parse(b"OFFSET(a.b)=24\n", "-e file"))
    known = Knowledge((info,))
    assert known.find("OFFSET", "a.b") == Fact("OFFSET(a.b)", 24, "-e file")
    assert known.find("SIZE", "a") == Fact("SIZE(a)", 16, "VMCOREINFO")


def test_a_costly_source_is_opened_once_and_only_for_its_kinds() -> None:
    opened: list[int] = []

    def opener() -> Told:
        opened.append(1)
        return Told({"SYMBOL(a)": 5})

    known = Knowledge((Later(("SYMBOL",), opener),))
    assert known.size("a") is None
    assert not opened
    assert (known.symbol("a"), known.symbol("b")) == (5, None)
    assert opened == [1]


def test_a_source_that_cannot_be_opened_knows_nothing() -> None:
    known = Knowledge((Later(("SYMBOL",), lambda: None), Told({"SYMBOL(a)": 9})))
    assert known.symbol("a") == 9


def test_an_offset_that_cannot_be_is_passed_over() -> None:
    """No member lies before its struct, or megabytes behind its beginning."""
    for value in (-8, 1 << 24):
        wrong, right = Told({"OFFSET(a.b)": value}, "wrong"), Told({"OFFSET(a.b)": 16})
        known = Knowledge((wrong, right))
        assert known.offset("a.b") == 16
        assert known.advice == [f"OFFSET(a.b) cannot be {value}, as wrong has it"]
    assert Knowledge((Told({"NUMBER(a)": -8, "OFFSET(a.b)": (1 << 24) - 1}),)).number("a") == -8
