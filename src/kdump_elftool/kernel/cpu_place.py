"""In which kernel a CPU was when the dump was taken: by its page tables, else by its registers.

After a crash memory holds two kernels, and the CPUs are in either: those that the crashed kernel
stopped stay in it, the one that went on is in the crash kernel (native_machine_crash_shutdown() in
arch/x86/kernel/crash.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.addr import MASK64
from kdump_elftool.arch.base import PagingForm
from kdump_elftool.arch.walker import translate
from kdump_elftool.errors import NotMappedError, PageAbsentError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.cpus import is_prstatus
from kdump_elftool.kernel.identity import KernelIdentity
from kdump_elftool.kernel.qemu_notes import qemu_cpus
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo

Answer = bool | None
"""True: in it; False: certainly not; None: it can't be told."""


@dataclass(frozen=True)
class CpuPlaces:
    """The CPUs of a dump, asked about one kernel after the other: the first ``most``, None for all."""

    dump: Dump
    most: int | None = None

    def by_tables(self, identity: KernelIdentity, info: VmcoreInfo) -> list[Answer]:
        """For each of QEMU's notes: do its tables map the kernel's text to where that is?"""
        states = qemu_cpus(self.dump.notes)[: self.most]
        stext = info.symbol("_stext")
        place = None if stext is None else self._paddr(identity.form, identity.pgt_root, stext)
        if not place or stext is None:
            return [None] * len(states)
        known: dict[tuple[int, str], Answer] = {}
        result: list[Answer] = []
        for registers in states:
            answers: list[Answer] = []
            for root, form in identity.arch.running_tables(info, registers):
                key = (root, form.name)
                if key not in known:
                    found = self._paddr(form, root, stext)
                    known[key] = None if found is None else found == place
                answers.append(known[key])
            result.append(True if True in answers else None if None in answers or not answers else False)
        return result

    def by_registers(self, identity: KernelIdentity) -> list[Answer]:
        """For each register note: are its instruction and stack pointer addresses of this kernel?

        Kernels that lie at the same addresses can't be told apart by this.
        """
        arch, order = identity.arch, "little" if self.dump.kind.order == "<" else "big"
        layout, result = arch.prstatus, []
        for desc in register_notes(self.dump, layout.size)[: self.most]:
            answer: Answer = True
            for name in (arch.instruction_pointer, arch.stack_pointer):
                at = layout.register_offset(name)
                vaddr = int.from_bytes(desc[at : at + layout.word], order)  # type: ignore[arg-type]
                in_kernel = identity.form.is_kernel(vaddr)
                paddr = self._paddr(identity.form, identity.pgt_root, vaddr) if in_kernel else None
                if paddr is None:
                    answer = None
                    break
                answer = answer and paddr != _NOWHERE
            result.append(answer)
        return result

    def _paddr(self, form: PagingForm, root: int, vaddr: int) -> int | None:
        """Where an address is by these tables, _NOWHERE, or None if that is not in the dump."""
        try:
            return translate(self.dump.memory, form, root, vaddr & MASK64).paddr
        except NotMappedError:
            return _NOWHERE
        except PageAbsentError:
            return None


_NOWHERE = 0
"""No kernel's text or stack is at physical address 0."""


def register_notes(dump: Dump, size: int) -> list[bytes]:
    """The register notes of the CPUs that are long enough, in order."""
    return [
        note.desc
        for note in dump.notes
        if is_prstatus(note) and isinstance(note.desc, bytes) and note.size >= size
    ]
