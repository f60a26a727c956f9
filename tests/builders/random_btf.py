"""BTF that no compiler made, and what the package makes of BTF."""

from __future__ import annotations

from random import Random

import numpy as np

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.btf_to_dwarf import BtfToDwarf, DebugSections
from kdump_elftool.dwarf.btf_variables import Symbols
from kdump_elftool.dwarf.strings import Names
from kdump_elftool.kernel.btf import Btf
from tests.builders import btf as b

NAMES = ["a", "b", "c", "d"]


def converted(data: bytes, have: Symbols | None = None) -> DebugSections:
    """The DWARF of a whole BTF object."""
    found = Btf.parse(data, "<", 8, "BTF")
    assert found is not None
    nothing = Symbols(Names.of([]), u64([]), u64([]), np.zeros(0, dtype=np.uint8))
    debug = BtfToDwarf("<", 8)
    debug.add("vmlinux", found, have or nothing, (("a", "struct a *[]"),))
    return debug.finish()


def random_btf(random: Random) -> bytes:
    """Records of all kinds that refer to whatever there is, and a bit beyond."""
    w = b.BtfWriter()
    count = random.randrange(1, 40)

    def some() -> int:
        return random.randrange(count + 3)

    for _ in range(count):
        kind, name = random.randrange(1, 20), random.choice(NAMES)
        flag, vlen = random.random() < 0.3, random.randrange(4)
        each = {b.STRUCT: 3, b.UNION: 3, b.ENUM: 2, b.FUNC_PROTO: 2, b.DATASEC: 3, b.ENUM64: 3}.get(kind)
        words = {b.INT: 1, b.ARRAY: 3, b.VAR: 1, b.DECL_TAG: 1}.get(kind, (each or 0) * vlen)
        values = [random.choice([some(), random.getrandbits(32)]) for _ in range(words)]
        size = random.choice([some(), some(), random.getrandbits(32)])
        w.add(kind, name, size, values, vlen=vlen if each else 0, flag=flag)
    return w.finish()
