"""The release of the kernel that gdb has open."""

from __future__ import annotations

import re

from kdump_elftool.errors import FaultError
from kdump_elftool.gdbside.target import GdbTarget

_BANNER = re.compile(rb"Linux version ([\x21-\x7e]{1,200}) ")
_LONGEST_BANNER = 1024
_LINE = re.compile(rb"^OSRELEASE=([\x21-\x7e]{1,200})$", re.MULTILINE)


def release_of(kernel: GdbTarget) -> str | None:
    """As VMCOREINFO has it, else by the kernel's banner."""
    found = None if kernel.core is None else _LINE.search(kernel.core.vmcoreinfo)
    banner = kernel.symbol("linux_banner")
    if found is None and banner is not None:
        try:
            found = _BANNER.match(kernel.read(banner, _LONGEST_BANNER))
        except FaultError:
            found = None
    return None if found is None else found[1].decode("ascii")
