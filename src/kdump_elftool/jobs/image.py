"""Whether all of the kernel image is in a dump: gdb, given vmlinux as the program, hides it when not."""

from __future__ import annotations

import numpy as np

from kdump_elftool.arch.walker import LostTables, Mappings
from kdump_elftool.kernel.identity import KernelIdentity


def image_warning(
    identity: KernelIdentity, missing: Mappings, lost_tables: tuple[LostTables, ...] = ()
) -> list[str]:
    """What to say when pages of the image are absent, or may be behind a table that is."""
    low, high = (np.uint64(edge) for edge in identity.image_window)
    inside = (missing.vaddr >= low) & (missing.vaddr < high)
    pages = int(missing.size[inside].sum()) // identity.arch.page_size
    hidden = any(
        bool(np.any((part.vaddr < high) & (part.vaddr + np.uint64(part.span - 1) >= low)))
        for part in lost_tables
    )
    if not pages and not hidden:
        return []
    count = f"{pages} pages" if pages and not hidden else "pages"
    return [
        f"{count} of the kernel image are absent: give gdb vmlinux with 'symbol-file -o OFFSET', not as "
        "the program, or it shows link-time bytes there"
    ]
