"""Formats that are known by their first bytes but not read: named as such, with what to do.

Magic numbers: makedumpfile IMPLEMENTATION,
crash's sadump.h, xendump.h and lkcd_vmdump_v1.h, Xen's tools/xl/xl.h and
xenctrl.h, drivers/s390/char/zcore.c of Linux 4.x, dissect.hypervisor's c_hyperv.py (Hyper-V).
"""

from __future__ import annotations

_LINUX_ONLY = "this tool reads Linux kernels"
_KDUMP = "let the guest save its memory by kdump instead"
_CRASH = "crash(8) reads it"
_ZGETDUMP = "zgetdump -f elf makes an ELF dump of it"


def _both(number: int, size: int) -> tuple[bytes, bytes]:
    return number.to_bytes(size, "little"), number.to_bytes(size, "big")


_LKCD, _LKCD_LIVE = _both(0xA8190173618F23ED, 8), _both(0xA8190173618F23CD, 8)
_S390, _S390_EXTENDED = 0xA8190173618F23FD, 0xA8190173618F23FE
_XEN_CORE = _both(0xF00FEBED, 4) + _both(0xF00FEBEE, 4)

RECOGNISED: tuple[tuple[bytes, str, str], ...] = (
    (b"sadump\0\0", "an sadump dump (Fujitsu firmware)", "makedumpfile -E makes an ELF dump of it"),
    *((magic, "an LKCD dump", _CRASH) for magic in _LKCD + _LKCD_LIVE),
    (_S390.to_bytes(8, "big"), "an s390 stand-alone dump", _ZGETDUMP),
    (_S390_EXTENDED.to_bytes(8, "big"), "an extended s390 stand-alone dump", _ZGETDUMP),
    (b"PAGEDUMP", "a Windows crash dump", _LINUX_ONLY),
    (b"PAGEDU64", "a Windows crash dump", _LINUX_ONLY),
    (0x01282014.to_bytes(4, "little"), "a Hyper-V saved guest (.vmrs)", _KDUMP),
    (b"LinuxGuestRecord", "a Xen saved guest", _CRASH),
    (b"Xen saved domain, xl format\n \0 \r", "a Xen saved guest (xl save)", _KDUMP),
    *((magic, "a Xen core (xm dump-core)", _CRASH) for magic in _XEN_CORE),
    (b"\x02\x21\x4c\x18", "a file compressed by lz4 -l (legacy frames)", "decompress it with lz4 -d first"),
)
XEN_ELF_CORE = ("a Xen core (xl dump-core)", _CRASH)
"""An ELF file without PT_LOAD whose memory is in sections."""
_XEN_NOTES = tuple(kind + b"Xen\0" for kind in _both(0x2000001, 4))  # XEN_ELFNOTE_DUMPCORE_HEADER


def recognise(head: bytes) -> tuple[str, str] | None:
    """Name and advice for a file that begins with ``head``, or None."""
    for magic, name, advice in RECOGNISED:
        if head.startswith(magic):
            return name, advice
    return None


def recognise_core(head: bytes) -> tuple[str, str] | None:
    """The same for an ELF core that has no PT_LOAD; ``head`` is its first 64 KB."""
    return XEN_ELF_CORE if any(note in head for note in _XEN_NOTES) else None
