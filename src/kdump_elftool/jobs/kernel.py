"""The stages that every command shares: which kernel a dump holds, and all of its mappings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kdump_elftool.arch import ARCHITECTURES, find_architecture
from kdump_elftool.arch.base import Architecture
from kdump_elftool.arch.walker import Translation, Walk, translate
from kdump_elftool.cache import Cache
from kdump_elftool.elf.constants import EM_NAMES
from kdump_elftool.errors import IdentityError, UnsupportedError
from kdump_elftool.formats.base import Dump
from kdump_elftool.formats.raw import NAME as RAW
from kdump_elftool.jobs.description import Description, describe
from kdump_elftool.jobs.tables import Tables, walk_tables
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.find import Texts
from kdump_elftool.kernel.identity import KernelIdentity, check_same_kernel, identify
from kdump_elftool.kernel.qemu_notes import qemu_cpus
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.memory.virtual import VirtualMemory
from kdump_elftool.progress import Progress, no_progress

log = logging.getLogger(__name__)

FindVmlinux = Callable[[VmcoreInfo, Architecture], Vmlinux | None]
"""Finds the vmlinux of the kernel that VMCOREINFO describes."""


@dataclass(frozen=True)
class KernelRequest:
    """What the user said about the kernel: vmlinux, ``-e`` lines, ``-P`` root, ``--kernel``, ``--force``.

    ``kernel`` counts from 1; ``progress`` shows the search for kernels in memory.  ``find`` takes the
    vmlinux out of a directory that was given instead (or raises); ``locate`` looks for one that was not
    given, when types or symbols are wanted that the dump lacks.  ``cache`` keeps what takes long to read.
    ``seen`` is what a search of memory has found, if there was one already, and ``placed`` what that told
    of where the memory begins.
    """

    vmlinux: Vmlinux | None = None
    extra: VmcoreInfo | None = None
    pgt_root: int | None = None
    kernel: int | None = None
    force: bool = False
    progress: Progress = no_progress
    find: FindVmlinux | None = None
    locate: FindVmlinux | None = None
    cache: Cache | None = None
    seen: Texts | None = None
    placed: Fact | None = None


@dataclass(frozen=True)
class Kernel:
    """A dump's kernel: identity, VMCOREINFO (``-e`` laid over it), mappings, things worth saying.

    ``walked`` are the kernel's own mappings, by which its structures are read; ``written`` those of
    the table that the user asked for, which is another one if ``foreign``.
    """

    arch: Architecture
    info: VmcoreInfo
    identity: KernelIdentity
    tables: Tables
    warnings: tuple[str, ...]
    description: Description
    request: KernelRequest = field(default_factory=KernelRequest)
    vmlinux: Vmlinux | None = None

    @property
    def walked(self) -> Walk:
        """The kernel's own mappings."""
        return self.tables.walked

    @property
    def written(self) -> Walk:
        """The mappings that were asked for."""
        return self.tables.written

    @property
    def foreign(self) -> bool:
        """True when another table than the kernel's own is to be written."""
        return self.tables.root != self.identity.pgt_root

    def virtual(self, dump: Dump) -> VirtualMemory:
        """The dump's memory by kernel virtual address."""
        found = self.walked.mappings
        return VirtualMemory.of(dump.memory, found.vaddr, found.paddr, found.size)

    def asked(self, dump: Dump) -> VirtualMemory:
        """The dump's memory by the addresses of the table that was asked for."""
        found = self.written.mappings
        return VirtualMemory.of(dump.memory, found.vaddr, found.paddr, found.size)

    def translate(self, dump: Dump, vaddr: int) -> Translation:
        """One address by the tables that were asked for.  Raises FaultError."""
        form, root, of_process = self.identity.form, self.tables.root, self.tables.process_form
        if of_process is not None:
            in_kernel = form.is_canonical(vaddr)
            form, root = (form, self.identity.pgt_root) if in_kernel else (of_process, root)
        return translate(dump.memory, form, root, vaddr)


def open_kernel(dump: Dump, request: KernelRequest, description: Description | None = None) -> Kernel:
    """Identify the kernel and walk its page tables.

    ``description`` is what describe() returned, if that was called already.
    Raises IdentityError, UnsupportedError, UsageError.
    """
    arch = architecture(dump)
    description = description or describe(dump, arch, request)
    info = description.info
    warnings = [*dump.warnings, *description.warnings]
    warnings += _check_known(dump, arch, description, request)
    vmlinux = named_vmlinux(request, info, arch)
    if vmlinux is not None:
        warnings += check_vmlinux(info, vmlinux, arch, request.force)
    identity = _identify(dump, arch, info, request.pgt_root)
    log.info("kernel: %s, %s, root %#x", identity.release, identity.form.name, identity.pgt_root)
    tables = walk_tables(dump, identity, request.pgt_root)
    if not identity.verified:
        warnings.append("no known kernel address confirms the page tables: the result may be nonsense")
    if not tables.written.complete:
        warnings.append("the page tables map more pieces than can be real: the finest ones are left out")
    found = tuple(fact for fact in (description.fact, request.placed) if fact is not None)
    identity = replace(identity, facts=(*identity.facts, *found))
    kernel = Kernel(arch, info, identity, tables, tuple(warnings), description, request, vmlinux)
    return _with_placement(dump, kernel) if dump.placed_by else kernel


def _with_placement(dump: Dump, kernel: Kernel) -> Kernel:
    """With a warning if the kernel contradicts the places that the dump's memory was assumed to have."""
    # a crash kernel, whose dump says where its memory was, need not load it
    from kdump_elftool.jobs.placement import placement_warning

    warning = placement_warning(dump, kernel)
    return replace(kernel, warnings=(*kernel.warnings, warning)) if warning else kernel


def architecture(dump: Dump) -> Architecture:
    """The dump's architecture.  Raises UnsupportedError."""
    arch = find_architecture(dump.e_machine, dump.kind.bits)
    if arch is None:
        name = EM_NAMES.get(dump.e_machine, f"ELF machine {dump.e_machine}")
        known = ", ".join(known.name for known in ARCHITECTURES)
        raise UnsupportedError(
            dump.file.path, f"dumps of {name} are not supported yet", hint=f"supported: {known}"
        )
    if dump.kind.bits < arch.bits or dump.kind.order not in arch.byte_orders:
        order = {"<": "little-endian", ">": "big-endian"}[dump.kind.order]
        raise UnsupportedError(
            dump.file.path,
            f"a {dump.kind.bits}-bit {order} ELF file cannot hold a dump of {arch.name}",
            hint="the header is damaged",
        )
    return arch


def _check_known(
    dump: Dump, arch: Architecture, description: Description, request: KernelRequest
) -> list[str]:
    """Warnings when nothing describes the kernel, but its tables may be known.  Raises IdentityError."""
    if description.is_known or request.pgt_root is not None:
        return []
    doubtful = "; ".join(kernel.shown() for kernel in description.kernels)
    lack = "no VMCOREINFO note, and none in memory that is to be believed"
    doubt = description.doubt or _for_another_machine(request.vmlinux, arch)
    lack += f"; {doubt}" if doubt else ""
    if any(arch.running_tables(description.info, registers) for registers in qemu_cpus(dump.notes)):
        return [f"{lack}: the page tables are those that a CPU was using, and little else is known"]
    hint = "give its text in a file with -e, or the page-table root with -P"
    if request.find is not None:
        hint = f"name the vmlinux itself with -m: what its build id is is not known here; or {hint}"
    elif request.vmlinux is None:
        hint = "give the kernel's vmlinux with -m, its text in a file with -e, or the page-table root with -P"
    hint = dump.hint(hint)
    if dump.format == RAW:
        hint += "; --arch and --ram-base say what memory this is"
    if dump.placed_by:
        hint += f"; or the memory is not where it was put ({dump.placed_by})"
    raise IdentityError(
        "VMCOREINFO",
        f"{dump.file.path}: {lack}: where the page tables are is not known"
        + (f" (found: {doubtful})" if doubtful else ""),
        hint=f"{hint}; --kernel N takes what was found" if doubtful else hint,
    )


def _for_another_machine(vmlinux: Vmlinux | None, arch: Architecture) -> str | None:
    why = check_same_kernel(VmcoreInfo({}), vmlinux, arch) if vmlinux else None
    return f"{vmlinux.path} is not its kernel: {why}" if vmlinux and why else None


def named_vmlinux(request: KernelRequest, info: VmcoreInfo, arch: Architecture) -> Vmlinux | None:
    """The vmlinux that the user named, by its file or its directory.  Raises IdentityError."""
    if request.vmlinux is None and request.find is not None:
        return request.find(info, arch)
    return request.vmlinux


def check_vmlinux(info: VmcoreInfo, vmlinux: Vmlinux, arch: Architecture, force: bool) -> list[str]:
    """A warning when it is another kernel's and ``force``.  Raises IdentityError."""
    why = check_same_kernel(info, vmlinux, arch)
    if why is None:
        return []
    message = f"{vmlinux.path} is not the kernel of this dump: {why}"
    if force:
        return [message]
    raise IdentityError(
        "BUILD-ID", message, hint="give the vmlinux of that build; --force uses this one anyway"
    )


def _identify(dump: Dump, arch: Architecture, info: VmcoreInfo, pgt_root: int | None) -> KernelIdentity:
    """The kernel by its own root where that is found, else by the user's."""
    if pgt_root is None:
        return identify(dump, arch, info, None)
    try:
        found = identify(dump, arch, info, None)
    except IdentityError:
        return identify(dump, arch, info, pgt_root)
    return found if found.verified else identify(dump, arch, info, pgt_root)
