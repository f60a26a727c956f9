"""The text by which a dump's kernel is known: the dump's VMCOREINFO note, or one found in memory.

Memory is searched only when there is no note, or when the user asks for another kernel.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdump_elftool.arch.base import Architecture
from kdump_elftool.elf.notes import Note
from kdump_elftool.errors import IdentityError, UsageError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.extra import laid_over
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.identity import check_same_kernel, dump_vmcoreinfo, identify
from kdump_elftool.kernel.kernels import FoundKernel, Kernels, KernelSearch
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME, VmcoreInfo, as_text, override
from kdump_elftool.kernel.vmlinux import Vmlinux

if TYPE_CHECKING:
    from kdump_elftool.jobs.kernel import KernelRequest

log = logging.getLogger(__name__)

SEARCHING = "searching memory for a kernel"


@dataclass(frozen=True)
class Description:
    """What a kernel says about itself, ``-e`` laid over it; ``info`` is empty where nothing does.

    ``source`` is for people.  ``paddr`` is where the text lies if it was found in memory (or the banner of
    the vmlinux that told it; ``fact`` says which), and then ``note`` is what a core made of the dump needs
    in place of the dump's own.  ``kernels`` are all that were found, of which ``chosen`` is the index.
    ``doubt`` says why the kernel of the vmlinux is not among them.
    """

    info: VmcoreInfo
    source: str
    paddr: int | None = None
    note: Note | None = None
    kernels: tuple[FoundKernel, ...] = ()
    chosen: int | None = None
    warnings: tuple[str, ...] = ()
    fact: Fact | None = None
    doubt: str | None = None

    @property
    def is_known(self) -> bool:
        """Whether anything describes the kernel."""
        return bool(self.info.values)

    def notes(self, notes: tuple[Note, ...]) -> tuple[Note, ...]:
        """Notes for a core: those of the dump, VMCOREINFO once, the one found in memory if it is that."""
        first = next((note for note in notes if note.name == NOTE_NAME), None)
        if self.note is None:
            return tuple(note for note in notes if note.name != NOTE_NAME or note is first)
        return (*(note for note in notes if note.name != NOTE_NAME), self.note)


def describe(dump: Dump, arch: Architecture | None, request: KernelRequest) -> Description:
    """Find the description.  Without ``arch`` memory is not searched.  Raises UsageError for ``--kernel``."""
    noted = dump_vmcoreinfo(dump)
    described = noted is not None or (arch is not None and _is_of_extra(dump, arch, request))
    if arch is None or (described and request.kernel is None):
        info = _with_phys_base(noted, dump.phys_base) if noted else VmcoreInfo({})
        info = _with_keys(info, request, arch)
        return _laid_over(Description(info, "ELF note" if noted else "none"), request)
    search = kernel_search(dump, arch, request)
    text = next((note.desc for note in dump.notes if note.name == NOTE_NAME and noted is not None), None)
    with request.progress(SEARCHING, dump.memory.present().total) as advance:
        kernels = search.run(text if isinstance(text, bytes) else None, advance)
    for number, kernel in enumerate(kernels.found, 1):
        log.info("kernel %d: %s", number, kernel.shown())
    chosen = _choose(_of_vmlinux(kernels, request.vmlinux, arch), request.kernel)
    if chosen.is_known:
        chosen = replace(chosen, info=_with_keys(chosen.info, request, arch))
    return _laid_over(chosen, request)


def _with_keys(info: VmcoreInfo, request: KernelRequest, arch: Architecture | None) -> VmcoreInfo:
    """With what the vmlinux says of the form of page tables, where the kernel does not say it."""
    vmlinux = request.vmlinux
    keys = tuple(key for key in arch.image_keys if not key.startswith("SYMBOL")) if arch else ()
    if arch is None or vmlinux is None or not keys or vmlinux.e_machine != arch.e_machine:
        return info
    from kdump_elftool.kernel.image_facts import said_by
    from kdump_elftool.kernel.vmlinux_source import vmlinux_knowledge

    said = as_text(list(said_by(vmlinux_knowledge(vmlinux, arch, request.cache), keys)))
    return override(said, info)


def kernel_search(dump: Dump, arch: Architecture, request: KernelRequest) -> KernelSearch:
    """What finds the kernels in the dump's memory, those of the vmlinux that the user named among them."""
    images = None
    if request.vmlinux is not None and request.vmlinux.e_machine == arch.e_machine:
        # topelf in a crash kernel need not load this
        from kdump_elftool.kernel.image import ImageSearch
        from kdump_elftool.kernel.vmlinux_source import vmlinux_knowledge

        known = vmlinux_knowledge(request.vmlinux, arch, request.cache)
        images = ImageSearch(dump, arch, request.vmlinux, known, request.extra or VmcoreInfo({}))
    return KernelSearch(dump, arch, request.extra, request.pgt_root, images, request.seen)


def _with_phys_base(info: VmcoreInfo, phys_base: int | None) -> VmcoreInfo:
    """What makedumpfile found out, for kernels before v4.10, whose VMCOREINFO does not have it."""
    if phys_base is None or info.number("phys_base") is not None:
        return info
    key = "NUMBER(phys_base)"
    signed = phys_base - (1 << 64) if phys_base >> 63 else phys_base
    return override(info, VmcoreInfo({key: str(signed)}, {key: "the dump's header"}))


def _is_of_extra(dump: Dump, arch: Architecture, request: KernelRequest) -> bool:
    """Whether the ``-e`` file describes the kernel, at the addresses where it ran.

    Lines of a vmlinux need not: a MIPS kernel that has moved leaves its image there.
    """
    linked = request.vmlinux.symbols.get("_stext") if request.vmlinux else None
    if request.extra is None or not describes(request.extra):
        return False
    if linked is not None and linked == request.extra.symbol("_stext"):
        return False
    try:
        return request.pgt_root is not None or identify(dump, arch, request.extra, None).verified
    except IdentityError:
        return False


def describes(extra: VmcoreInfo | None) -> bool:
    """Whether the ``-e`` file is a whole description rather than a few lines of one."""
    return extra is not None and (
        extra.symbol("swapper_pg_dir") is not None or extra.address("phys_pgd_ptr") is not None
    )


def _of_vmlinux(kernels: Kernels, vmlinux: Vmlinux | None, arch: Architecture) -> Kernels:
    """With the kernel of the vmlinux that the user named as the default, if there is one."""
    if vmlinux is None or kernels.default is None:
        return kernels
    of_it = [
        index
        for index, kernel in enumerate(kernels.found)
        if kernel.verified and not check_same_kernel(kernel.info, vmlinux, arch)
    ]
    if not of_it or kernels.default in of_it:
        return kernels
    return replace(kernels, default=of_it[0], why="it is that of -m")


def _choose(kernels: Kernels, wanted: int | None) -> Description:
    found = kernels.found
    warnings = []
    if not kernels.complete:
        warnings.append("memory is full of texts that look like VMCOREINFO: not all were looked at")
    if wanted is not None and not 1 <= wanted <= len(found):
        raise UsageError(
            f"--kernel {wanted}: there is no such kernel in the dump",
            hint=f"there are {_listed(found)}" if found else "no kernel was found in its memory",
        )
    chosen = kernels.default if wanted is None else wanted - 1
    if chosen is None:
        return Description(
            VmcoreInfo({}), "none", kernels=found, warnings=tuple(warnings), doubt=kernels.doubt
        )
    kernel = found[chosen]
    others = [index for index, other in enumerate(found) if other.verified and index != chosen]
    if wanted is None and others:
        warnings.append(
            f"more than one kernel is in memory: taken is {chosen + 1}, as {kernels.why}; "
            f"--kernel N takes another: {_listed(found)}"
        )
    if not kernel.verified:
        warnings.append(f"--kernel {chosen + 1}: {kernel.shown()}")
    note = None if kernel.paddr is None else kernel.note
    return Description(
        kernel.info, kernel.where, kernel.paddr, note, found, chosen, tuple(warnings), kernel.fact
    )


def _listed(found: tuple[FoundKernel, ...]) -> str:
    return "; ".join(f"{number}: {kernel.shown()}" for number, kernel in enumerate(found, 1))


def _laid_over(description: Description, request: KernelRequest) -> Description:
    """With the ``-e`` file."""
    if request.extra is None:
        return description
    source = f"{description.source} and -e" if description.is_known else "-e"
    return replace(description, info=laid_over(description.info, request.extra), source=source)
