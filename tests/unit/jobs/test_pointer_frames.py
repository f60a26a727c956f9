"""What pointer_frames takes of a dump before it reads code; tests/lab has whole kernels."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.code_to_frames import ARM64, X86_64
from kdump_elftool.jobs.pointer_frames import Entry, Text, believed
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.vmcoreinfo import parse

AT = 0xFFFF800081000000
MB = 1 << 20


def text(start: int, size: int) -> Text:
    return Text(start, start + size, u64([start]))


def test_no_more_code_than_a_kernel_has():
    texts = [text(AT + number * 128 * MB, 128 * MB) for number in range(40)]
    assert believed([*texts, text(AT, 4)]) == texts[:4]
    assert believed([*texts[:3], text(AT, 4), texts[3], text(AT, 8)]) == [
        *texts[:3], text(AT, 4), text(AT, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "odd", [text(AT, 0), text(AT, -4096), text(AT, 128 * MB + 1), text(2**64 - 4096, 4096)]
)
def test_code_that_is_none(odd):
    fine = text(AT, 4096)
    assert believed([odd, fine]) == [fine]


def symbols_of(**addresses: int) -> Kallsyms:
    names = [name.encode() for name in addresses]
    ends = np.cumsum([len(name) for name in names])
    kind = np.full(len(names), ord("t"), dtype=np.uint8)
    begin = ends - [len(name) for name in names]
    return Kallsyms(u64(addresses.values()), kind, b"".join(names), begin, ends)


SYMBOLS = symbols_of(
    el0t_64_sync=AT, ret_to_user=AT + 8, vectors=AT + 16, __entry_text_start=AT, __entry_text_end=AT + 64
)


@pytest.mark.parametrize(("said", "taken"), [("304", 304), ("-8", None), ("99999999999", None), ("??", None)])
def test_where_the_record_is_in_the_registers(said, taken):
    """VMCOREINFO goes before BTF, and anything may stand in it."""
    known = Knowledge((parse(f"OFFSET(pt_regs.stackframe)={said}".encode()),))
    entry = Entry.of(ARM64, known, SYMBOLS)
    assert (entry.functions.tolist(), entry.registers) == ([AT, AT + 8], taken)
    assert Entry.of(X86_64, known, SYMBOLS).stretch == (AT, AT + 64)
