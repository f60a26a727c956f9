"""What topelf keeps of a dump, whatever it is written as: the memory that a level leaves, and the account."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.addr import Ranges, subtract_ranges
from kdump_elftool.elf.notes import Note
from kdump_elftool.errors import IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.coverage import PAGE, Coverage
from kdump_elftool.jobs.description import Description
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, architecture, open_kernel
from kdump_elftool.jobs.own_cpus import own_cpus
from kdump_elftool.jobs.pages import ALL_KEPT, choose_pages
from kdump_elftool.jobs.selection import Pages, count_pages
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo


@dataclass(frozen=True)
class Reduction:
    """``kept`` are the physical ranges to write; ``kernel`` is None where it could not be identified.

    ``notes`` are the dump's, less registers of CPUs that were in another kernel; ``filtered`` is true when
    the level could be applied.
    """

    kernel: Kernel | None
    kept: Ranges
    notes: tuple[Note, ...]
    filtered: bool
    pages: Pages
    coverage: Coverage
    warnings: tuple[str, ...]

    @property
    def release(self) -> str | None:
        """The kernel's release."""
        return self.kernel.identity.release if self.kernel else None

    def described(self, notes: tuple[Note, ...]) -> tuple[Note, ...]:
        """Notes with VMCOREINFO once, also where it was found in memory only."""
        found = self.kernel.description if self.kernel else Description(VmcoreInfo({}), "none")
        return found.notes(notes)


def reduce_dump(dump: Dump, request: KernelRequest, level: str) -> Reduction:
    """Choose what to keep.  Raises UnsupportedError.

    A dump whose kernel cannot be identified is kept whole, with a warning.
    """
    architecture(dump)
    warnings: list[str] = []
    kernel: Kernel | None = None
    choice, own = None, dump
    try:
        kernel = open_kernel(dump, request)
    except IdentityError as error:
        warnings += [*dump.warnings, ALL_KEPT + error.message]
    if kernel is not None:
        warnings += kernel.warnings
        choice, page_warnings = choose_pages(dump, kernel, level)
        warnings += page_warnings
        own, cpu_warnings = own_cpus(dump, kernel)
        warnings += cpu_warnings
    present = dump.memory.present()
    kept = subtract_ranges(present, choice.dropped) if choice else present
    absent = dump.memory.absent().total
    return Reduction(
        kernel=kernel,
        kept=kept,
        notes=own.notes,
        filtered=choice is not None,
        pages=count_pages(kept.total // PAGE, absent // PAGE, choice),
        coverage=Coverage.of(dump.memory.declared.total, absent, dump.lost),
        warnings=tuple(warnings),
    )
