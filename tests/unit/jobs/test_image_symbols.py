"""The kernel's part of a vmlinux that is made of a dump."""

from __future__ import annotations

import numpy as np
import pytest

from kdump_elftool.addr import MASK64, u64
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.elf.constants import SHF_ALLOC
from kdump_elftool.elf.symfile import Section
from kdump_elftool.jobs.image_symbols import Part, moved

BASE = 0xFFFFFFFF81000000


@pytest.mark.parametrize("offset", [0x1E00000, -0x1000, BASE + 0x1000])
def test_symbols_and_sections_move_together(offset):
    """Also by an offset that a dump has made up."""
    symbols = Symbols(
        Names.of([b"percpu", b"_text"]), u64([0x40, BASE]), u64([8, 8]), np.frombuffer(b"AT", np.uint8)
    )
    sections = (Section(".data..percpu", SHF_ALLOC, 0, 0x100), Section(".text", SHF_ALLOC, BASE, 0x100))
    part = Part("vmlinux", symbols, sections, np.array([0, 1]))
    found = moved(part, offset, BASE, BASE + 0x1000)
    assert found.symbols.address.tolist() == [0x40, BASE - offset & MASK64]
    assert [section.addr for section in found.sections] == [0, BASE - offset & MASK64]
