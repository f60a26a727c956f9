"""The ``-e`` file laid over what the kernel says of itself.

Its lines are often fetched from a vmlinux, with the addresses for which the kernel was linked.  Where KASLR
has moved the kernel they would name other memory, so they are moved as far.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, override

_STEXT = "SYMBOL(_stext)"
_ALIGNED = 0x1000
"""KASLR moves a kernel by whole pages, of whatever size."""
_BEFORE = 1 << 20
"""So little of an image lies before _stext: the head of arm64 has 64 KB."""
_IMAGE = 1 << 30
"""No image of a kernel with its modules' place is larger: KERNEL_IMAGE_SIZE of x86_64."""


def laid_over(info: VmcoreInfo, extra: VmcoreInfo | None) -> VmcoreInfo:
    """``info`` with every value of ``extra`` over it, symbols at the addresses where the kernel ran."""
    return info if extra is None else override(info, _at_run_time(extra, info))


def _at_run_time(extra: VmcoreInfo, info: VmcoreInfo) -> VmcoreInfo:
    offset = _offset(extra, info)
    if not offset:
        return extra
    moved = {key: f"{value + offset:x}" for key, value in _of_image(extra, info, offset)}
    source = f"-e, moved by {offset:#x}, as KASLR moved the kernel"
    return VmcoreInfo({**extra.values, **moved}, {**extra.sources, **dict.fromkeys(moved, source)})


def _offset(extra: VmcoreInfo, info: VmcoreInfo) -> int:
    """How far the kernel was moved from the addresses of ``extra``; 0 where they are those of run time."""
    ran, linked, said = info.symbol("_stext"), extra.symbol("_stext"), info.kaslr_offset
    if ran is None or extra.kaslr_offset is not None:
        return 0  # a text with KERNELOFFSET is of a kernel that ran
    if linked is not None:
        offset = ran - linked
        return offset if offset % _ALIGNED == 0 and said in (None, offset) else 0
    if not said or said % _ALIGNED:
        return 0
    # nothing of the kernel is before its beginning
    before = (value < ran - _BEFORE for _, value in _of_image(extra, info, said))
    return said if any(before) else 0


def _of_image(extra: VmcoreInfo, info: VmcoreInfo, offset: int) -> Iterator[tuple[str, int]]:
    """The symbols of ``extra`` that lie in the image as it was linked; per-CPU ones may count from 0."""
    start = (info.symbol("_stext") or 0) - offset
    for key in extra.values:
        if key.startswith("SYMBOL("):
            value = extra.symbol(key[len("SYMBOL(") : -1])
            if value is not None and start - _BEFORE <= value < start + _IMAGE:
                yield key, value
