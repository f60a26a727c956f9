"""What uname says in the crashed kernel: ``init_uts_ns``, read by its symbol.

References: include/uapi/linux/utsname.h (struct new_utsname), include/linux/utsname.h (struct
uts_namespace), kernel/vmcore_info.c.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from kdump_elftool.errors import FaultError, PageAbsentError
from kdump_elftool.kernel.find import Texts, Wanted
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

FIELD_SIZE = 65
FIELDS = 6
"""sysname, nodename, release, version, machine, domainname."""
RELEASE, MACHINE = 2, 4
_MOST_NAMES = 256
_PAGE = 4096
MARK = Wanted(b"Linux".ljust(FIELD_SIZE, b"\0"))
"""How one begins, in memory that nothing is known of."""
IN_FRONT = (0, 4, 8, 16)
"""The name is first since v5.11 (commit 9a56493f6942, "uts: Use generic ns_common::count"), behind a
counter before; OFFSET(uts_namespace.name) says so where it is printed."""


def read_utsname(virtual: VirtualMemory, info: VmcoreInfo) -> tuple[bytes, ...] | None:
    """The six fields; None when they are not there, or don't name the release of VMCOREINFO."""
    vaddr, release = info.symbol("init_uts_ns"), info.text("OSRELEASE")
    if vaddr is None or release is None:
        return None
    noted = info.offset("uts_namespace.name")
    for at in IN_FRONT if noted is None else (noted, *IN_FRONT):
        try:
            raw = virtual.read(vaddr + at, FIELDS * FIELD_SIZE)
        except FaultError:
            continue
        fields = tuple(
            raw[first : first + FIELD_SIZE].split(b"\0", 1)[0] for first in range(0, len(raw), FIELD_SIZE)
        )
        if fields[0] == b"Linux" and fields[RELEASE] == release.encode("latin-1"):
            return fields
    return None


def found_namespaces(memory: PhysicalMemory, texts: Texts, info: VmcoreInfo) -> Iterator[int]:
    """Where init_uts_ns of the kernel of ``info`` may lie, by places of MARK; physical addresses.

    Containers have namespaces of their own with the same release, but hardly at the same place in a page.
    """
    vaddr, release, noted = (
        info.symbol("init_uts_ns"), info.text("OSRELEASE"), info.offset("uts_namespace.name"),
    )  # fmt: skip
    if vaddr is None or not release:
        return
    field = release.encode("latin-1") + b"\0"
    offsets = {(vaddr + front) % _PAGE: front for front in (IN_FRONT if noted is None else (noted,))}
    possible = (paddr for paddr in texts.places.get(MARK, ()) if paddr % _PAGE in offsets)
    for paddr in itertools.islice(possible, _MOST_NAMES):
        front = offsets[paddr % _PAGE]
        try:
            data = memory.read(paddr + RELEASE * FIELD_SIZE, len(field))
        except PageAbsentError:
            continue
        if data == field and front <= paddr:
            yield paddr - front
