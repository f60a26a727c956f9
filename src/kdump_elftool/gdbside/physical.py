"""Physical memory of the core that gdb has open, by the addresses in its own program headers."""

from __future__ import annotations

from bisect import bisect_right

from kdump_elftool.errors import FaultError
from kdump_elftool.gdbside.core_file import CoreFile, Segment
from kdump_elftool.gdbside.target import GdbTarget

_PT_LOAD = 1


class CorePhysical:
    """Which segment maps what.  Where several do, as in a core that stores memory twice, any will do."""

    def __init__(self, target: GdbTarget, core: CoreFile) -> None:
        self.target = target
        loads = [part for part in core.segments if part.type == _PT_LOAD and part.size]
        self._by_vaddr = sorted(loads, key=lambda part: part.vaddr)
        self._by_paddr = sorted(loads, key=lambda part: part.paddr)
        self._vaddrs = [part.vaddr for part in self._by_vaddr]
        self._ends = _reach(self._by_paddr)
        self._paddrs = [part.paddr for part in self._by_paddr]

    def paddr_of(self, vaddr: int) -> int | None:
        """Where a virtual address lies; None for one that the core does not have."""
        at = bisect_right(self._vaddrs, vaddr) - 1
        if at < 0 or vaddr - self._by_vaddr[at].vaddr >= self._by_vaddr[at].size:
            return None
        return self._by_vaddr[at].paddr + vaddr - self._by_vaddr[at].vaddr

    def vaddr_of(self, paddr: int) -> int | None:
        """A virtual address of physical memory."""
        at = bisect_right(self._paddrs, paddr) - 1
        while at >= 0 and self._ends[at] > paddr:
            part = self._by_paddr[at]
            if paddr - part.paddr < part.size:
                return part.vaddr + paddr - part.paddr
            at -= 1
        return None

    def read_physical(self, paddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""
        vaddr = self.vaddr_of(paddr)
        if vaddr is None:
            raise FaultError("paddr", paddr, "not in the core")
        return self.target.read(vaddr, size)


def _reach(parts: list[Segment]) -> list[int]:
    """For each of the sorted parts the highest end up to there: behind it lies nothing of those before."""
    ends, highest = [], 0
    for part in parts:
        highest = max(highest, part.paddr + part.size)
        ends.append(highest)
    return ends
