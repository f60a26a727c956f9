"""The architectures this version knows, by ELF machine number."""

from __future__ import annotations

from kdump_elftool.arch import x86_64
from kdump_elftool.arch.base import Architecture

ARCHITECTURES: dict[int, Architecture] = {arch.e_machine: arch for arch in (x86_64.ARCH,)}
