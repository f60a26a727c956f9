"""Formats that are known by their first bytes but not read: named as such, with what to do.

Magic numbers: makedumpfile IMPLEMENTATION, QEMU migration/savevm.c, LiME doc/README.md,
AVML image.rs, libvirt src/qemu/qemu_saveimage.h, VMware vmss2core notes, crash's sadump.h.
"""

from __future__ import annotations

_REBUILD = "makedumpfile -R makes an ordinary dump of it, which can be read"

RECOGNISED: tuple[tuple[bytes, str, str], ...] = (
    (b"makedumpfile\0\0\0\0", "a flattened makedumpfile stream", _REBUILD),
    (b"QEVM", "a QEMU migration stream", "use QEMU's dump-guest-memory instead"),
    (b"LibvirtQemudSave", "a libvirt saved guest", "use virsh dump --memory-only instead"),
    (b"LibvirtQemudPart", "an unfinished libvirt saved guest", "use virsh dump --memory-only instead"),
    (b"PAGEDUMP", "a Windows crash dump", "this tool reads Linux kernels"),
    (b"PAGEDU64", "a Windows crash dump", "this tool reads Linux kernels"),
    (b"LinuxGuestRecord", "a Xen saved guest", "use xl dump-core and crash"),
)


def recognise(head: bytes) -> tuple[str, str] | None:
    """Name and advice for a file that begins with ``head``, or None."""
    for magic, name, advice in RECOGNISED:
        if head.startswith(magic):
            return name, advice
    return None
