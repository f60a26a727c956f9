"""Variables of arm64 kernels that short functions with names lead to: their code has the address.

ADRP puts the address of a page into a register, and ADD, LDR or STR with an offset go on from there.  A
function counts only if all but one of the addresses in it are known otherwise, and that one is where data is;
or where what it holds proves which one of them is meant (``kernel.proofs``), if just one does.
Reference: Arm Architecture Reference Manual, C6.2: ADRP, ADD (immediate), LDR and STR (immediate).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.proofs import Proofs
from kdump_elftool.kernel.words import Words
from kdump_elftool.memory.virtual import VirtualMemory

LONGEST = 2048
"""Bytes of a function that are looked at."""
FUNCTIONS = {
    "tainted_mask": ("get_taint", ()),
    "panic_cpu": ("crash_kexec", ("cpu_number",)),
    "log_buf": ("log_buf_addr_get", ()),
    "log_buf_len": ("log_buf_len_get", ()),
    "crash_notes": ("crash_notes_show", ("__per_cpu_offset",)),
    "vmcoreinfo_note": ("paddr_vmcoreinfo_note", ("memstart_addr", "kimage_voffset")),
    "kexec_crash_image": ("kexec_crash_loaded", ()),
    "saved_command_line": ("cmdline_proc_show", ()),
    "curr_clocksource": ("current_clocksource_show", ()),
    "hstates": ("size_to_hstate", ()),
    "dentry_hashtable": ("__d_lookup", ()),
    "inode_hashtable": ("__insert_inode_hash", ()),
    "max_pfn": ("dma_direct_get_required_mask", ()),
    "nr_threads": ("loadavg_proc_show", ()),
}
"""Who uses a variable, and what else is used there (kernel/panic.c, kernel/printk/printk.c,
kernel/crash_core.c, kernel/kexec_core.c, drivers/base/cpu.c, fs/proc/cmdline.c, kernel/time/clocksource.c,
mm/hugetlb.c, fs/dcache.c, fs/inode.c, kernel/dma/direct.c, fs/proc/loadavg.c)."""
_CALLER_SAVED = range(19)


@dataclass(frozen=True)
class Arm64Code:
    """Symbols by the code of functions.  ``window`` is where the kernel image may lie."""

    memory: VirtualMemory
    functions: Kallsyms
    known: Knowledge
    window: tuple[int, int]

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        if kind != "SYMBOL" or name not in FUNCTIONS:
            return None
        function, others = FUNCTIONS[name]
        known = {
            int(fact.value) for other in others if (fact := self.known.find("SYMBOL", other)) is not None
        }
        found = {vaddr for vaddr in self._data_of(function) if vaddr not in known}
        proof = Proofs(Words(self.memory), self.known).of(name)
        if proof is not None:
            found = {vaddr for vaddr in found if proof(vaddr)}
        return Fact(f"SYMBOL({name})", found.pop(), f"the code of {function}()") if len(found) == 1 else None

    def _data_of(self, function: str) -> set[int]:
        """Addresses of variables in the code of a function."""
        start = self.functions.symbol(function)
        code_end = self.functions.symbol("_einittext")
        if start is None or code_end is None:
            return set()
        behind = self.functions.address[self.functions.address > np.uint64(start)]
        size = min(int(behind.min()) - start, LONGEST) if len(behind) else 0
        try:
            code = np.frombuffer(self.memory.read(start, size // 4 * 4), dtype="<u4").tolist()
        except FaultError:
            return set()
        # what can be written lies behind the code for initialisation
        return {vaddr for vaddr in references(code, start) if code_end <= vaddr < self.window[1]}


def references(code: list[int], vaddr: int) -> set[int]:
    """Addresses that instructions at ``vaddr`` make of a page and an offset.

    Compilers reach several variables from the address of one of them (-fsection-anchors): where another
    offset is added to an address, it is not the one that is meant.
    """
    known: dict[int, int] = {}
    found: dict[int, bool] = {}
    for at, word in enumerate(code):
        target, base, offset = word & 31, word >> 5 & 31, word >> 10 & 0xFFF
        if word & 0x9F000000 == 0x90000000:  # adrp
            distance = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            distance -= (distance & 1 << 20) << 1
            known[target] = ((vaddr + 4 * at & ~0xFFF) + (distance << 12)) & MASK64
        elif base in known and word & 0xFFC00000 == 0x91000000:  # add x, x, #n
            found[known[base]] = False
            known[target] = known[base] + offset
            found[known[target]] = True
        elif base in known and word & 0x3B000000 == 0x39000000:  # ldr, str of any size
            found[known[base]] = False
            found[known[base] + (offset << (word >> 30))] = True
            if word & 0x00C00000:
                known.pop(target, None)
        elif word & 0xFC000000 == 0x94000000:  # bl
            known = {register: value for register, value in known.items() if register not in _CALLER_SAVED}
        elif word & 0x1C000000 == 0x10000000 or word & 0x0A000000 in (0x08000000, 0x0A000000):
            known.pop(target, None)  # some other result, or a load
    return {address for address, is_meant in found.items() if is_meant}
