"""Variables by the code that uses them.  The instructions are GNU as's."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.kernel.arm64_code import Arm64Code, references
from kdump_elftool.kernel.kallsyms import Kallsyms
from tests.unit.kernel.kernelspace import BASE, ROOM, KernelSpace, info_of

AT = 0x1000
CODES = {
    # adrp x0, . + 0x5000; ldr x0, [x0, #0x18]; ret
    "load": ([0xB0000020, 0xF9400C00, 0xD65F03C0], {0x6018}),
    # adrp x0, . + 0x5000; ldrb w1, [x0, #3]
    "byte": ([0xB0000020, 0x39400C01], {0x6003}),
    # adrp x1, . + 0x5000; add x1, x1, #0x40; ret
    "address": ([0xB0000021, 0x91010021, 0xD65F03C0], {0x6040}),
    # adrp x1, . + 0x5000; add x1, x1, #0x40; str w0, [x1, #8]: the variable is not the anchor
    "anchor": ([0xB0000021, 0x91010021, 0xB9000820], {0x6048}),
    # adrp x0, . + 0x5000; mov x0, x1; ldr x0, [x0, #0x18]: another value
    "overwritten": ([0xB0000020, 0xAA0103E0, 0xF9400C00], set()),
    # adrp x0, . + 0x5000; bl . + 0x100; ldr x0, [x0, #0x18]: what the call returns
    "called": ([0xB0000020, 0x94000040, 0xF9400C00], set()),
    # adrp x19, . + 0x5000; bl . + 0x100; ldr x0, [x19, #0x18]: kept by it
    "kept": ([0xB0000033, 0x94000040, 0xF9400E60], {0x6018}),
    # adrp x0, . - 0x1000
    "backwards": ([0xF0FFFFE0, 0xF9400C00], {0x18}),
}


@pytest.mark.parametrize("name", CODES)
def test_references(name: str) -> None:
    code, found = CODES[name]
    assert references(code, AT) == found


def source(code: list[int], *, window: tuple[int, int] = (BASE, BASE + ROOM)) -> Arm64Code:
    space = KernelSpace()
    space.put(AT, f"{len(code)}I", *code)
    named = {"get_taint": BASE + AT, "next": BASE + AT + 4 * len(code), "_einittext": BASE + 0x2000}
    end = np.cumsum([len(name) for name in named])
    begin = np.concatenate([[0], end[:-1]]).astype(np.intp)
    kind = np.full(len(named), ord("T"), dtype=np.uint8)
    functions = Kallsyms(u64(named.values()), kind, "".join(named).encode(), begin, end.astype(np.intp))
    return Arm64Code(space.virtual(), functions, info_of(), window)


def test_the_only_variable_of_a_function() -> None:
    fact = source(CODES["load"][0]).find("SYMBOL", "tainted_mask")
    assert fact is not None
    assert (fact.value, fact.source) == (BASE + 0x6018, "the code of get_taint()")
    assert source(CODES["load"][0]).find("SYMBOL", "panic_cpu") is None


@pytest.mark.parametrize("code", [CODES["load"][0] + CODES["address"][0], [0xD65F03C0], CODES["called"][0]])
def test_more_or_none(code: list[int]) -> None:
    assert source(code).find("SYMBOL", "tainted_mask") is None


def test_what_is_outside_of_the_image() -> None:
    found = source(CODES["load"][0], window=(BASE, BASE + 0x6000))
    assert found.find("SYMBOL", "tainted_mask") is None
