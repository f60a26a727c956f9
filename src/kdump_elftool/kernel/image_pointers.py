"""Pointers in the plain memory of an arm64 kernel image, which says nowhere what address it was linked for.

The kernel lies at the end of the modules' area, whose borders are multiples of 128 MB, and at the image's
text offset behind that: so nearly all of its pointers begin with the same bits.  A relocatable kernel
(CONFIG_RELOCATABLE) has zeros in their place and a table (.rela.dyn) of where each goes, or, with
CONFIG_RELR, the pointers.

References: arch/arm64/include/asm/memory.h (KIMAGE_VADDR, MODULES_END), arch/arm64/Makefile
(--no-apply-dynamic-relocs), arch/arm64/kernel/pi/relocate.c; System V gABI, "Relocation".
"""

from __future__ import annotations

import numpy as np

from kdump_elftool.addr import U64

_AREA = 27
"""Bits of 128 MB."""
_FEWEST = 1000
_RELATIVE = 1027
"""R_AARCH64_RELATIVE."""
_ENTRY_WORDS = 3
_RUN = 64
"""So many entries in a row are no coincidence."""


def arm64_base(data: bytes, order: str, text_offset: int) -> int | None:
    """The address of the image's first byte; None where no pointers tell."""
    words = _words(data, order)
    # user addresses end below; -1 and the like are no pointers
    kernel = words[(words >= np.uint64(0xFFF0 << 48)) & (words < np.uint64(0xFFFFFFFF << 32))]
    areas, counts = np.unique(kernel >> np.uint64(_AREA), return_counts=True)
    if not len(areas) or counts.max() < _FEWEST:
        return None
    base = int(areas[np.argmax(counts)]) << _AREA
    return base + text_offset % (1 << _AREA)


def with_pointers(data: bytes, order: str, base: int) -> bytes:
    """The image with its relocations applied, as the kernel does it for itself when it starts."""
    words = _words(data, order).copy()
    is_info = words == np.uint64(_RELATIVE)
    info = np.flatnonzero(is_info)
    info = info[(info > 0) & (info + 1 < len(words))]
    place, value = words[info - 1] - np.uint64(base), words[info + 1]
    good = (place < np.uint64(len(data) - 7)) & (value - np.uint64(base) < np.uint64(2 * len(data)))
    info, place, value = info[good], place[good], value[good]
    if not len(info):
        return data
    # rows of one table lie side by side
    breaks = np.flatnonzero(np.diff(info) != _ENTRY_WORDS)
    runs = np.diff(np.concatenate([[0], breaks + 1, [len(info)]]))
    kept = np.repeat(runs >= _RUN, runs) & (place % np.uint64(8) == 0)
    words[(place[kept] // np.uint64(8)).astype(np.intp)] = value[kept]
    return words.astype(f"{order}u8").tobytes() + data[8 * len(words) :]


def _words(data: bytes, order: str) -> U64:
    return np.frombuffer(data, dtype=f"{order}u8", count=len(data) // 8).astype(np.uint64)
