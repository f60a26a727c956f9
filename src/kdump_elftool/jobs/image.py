"""Whether all of the kernel image is in a dump: gdb, given vmlinux as the program, hides it when not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdump_elftool.arch.walker import LostTables, Mappings
from kdump_elftool.kernel.identity import KernelIdentity


@dataclass(frozen=True)
class ImageLoss:
    """How many pages of the image are absent; if ``hidden``, more may be, behind a table that is."""

    pages: int = 0
    hidden: bool = False

    def __bool__(self) -> bool:
        return self.hidden or self.pages > 0

    def __str__(self) -> str:
        count = f"{self.pages} pages" if self.pages and not self.hidden else "pages"
        return f"{count} of the kernel image are absent"


def image_loss(
    identity: KernelIdentity, missing: Mappings, lost_tables: tuple[LostTables, ...] = ()
) -> ImageLoss:
    """What of the image is among ``missing``, or may be behind ``lost_tables``."""
    low, high = (np.uint64(edge) for edge in identity.image_window)
    inside = (missing.vaddr >= low) & (missing.vaddr < high)
    pages = int(missing.size[inside].sum()) // identity.arch.page_size
    hidden = any(
        bool(np.any((part.vaddr < high) & (part.vaddr + np.uint64(part.span - 1) >= low)))
        for part in lost_tables
    )
    return ImageLoss(pages, hidden)
