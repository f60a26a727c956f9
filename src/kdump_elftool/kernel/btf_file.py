"""Files that hold BTF: as it is (/sys/kernel/btf), or in a section of a vmlinux or a module.

A module's own BTF goes on where that of its kernel ends and cannot be read alone: its strings do not begin
with the empty one, its types refer to others.  What comes with a base of its own (.BTF.base, of modules that
are built outside of the kernel, v6.11 on) has numbers of that base, and is not read.

References: kernel/bpf/btf.c (btf_parse_module()), Documentation/bpf/btf.rst; tools/lib/bpf/btf.c.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from kdump_elftool.codecs.whole import Held, decompressed
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import FormatError
from kdump_elftool.files import ByteSource
from kdump_elftool.kernel.btf import MAGIC, MAX_SIZE, Btf, sections_of
from kdump_elftool.kernel.vmlinux import section_headers

_LARGEST_MODULE = 1 << 30
_ENDINGS = re.compile(r"(\.ko)?(\.debug)?(\.(gz|xz|zst))?$")
_WORD = 8
"""Sizes of pointers don't matter for whether it can be read."""


@dataclass(frozen=True)
class BtfFile:
    """One BTF object; ``module`` is the name of the module that it is of, None of the kernel's own."""

    data: bytes
    module: str | None


def read_btf_file(file: ByteSource) -> BtfFile:
    """The BTF in a file.  Raises FormatError where there is none, MissingCodecError."""
    inside = decompressed(file, _LARGEST_MODULE)
    source: ByteSource = file if inside is None else Held(file.path, inside)
    data = _section(source) if source.read_at(0, 4) == c.ELFMAG else _all(source)
    order = {MAGIC.to_bytes(2, "little"): "<", MAGIC.to_bytes(2, "big"): ">"}.get(data[:2])
    if order is None or sections_of(data, order, split=True) is None:
        raise FormatError(file.path, "there is no BTF in it", hint=_HINT)
    if Btf.parse(data, order, _WORD, file.path, partial=True) is not None:
        return BtfFile(data, None)
    name = _ENDINGS.sub("", os.path.basename(file.path)).replace("-", "_")
    return BtfFile(data, name)


_HINT = (
    "--btf takes /sys/kernel/btf/vmlinux or one of its neighbours, or a vmlinux or module with a section .BTF"
)


def _all(file: ByteSource) -> bytes:
    if file.size > MAX_SIZE:
        raise FormatError(file.path, f"{file.size} bytes: no BTF is that large")
    return file.read_at(0, file.size)


def _section(file: ByteSource) -> bytes:
    """The section .BTF of an ELF file."""
    sections = section_headers(ElfFile.read(file))
    section = sections.get(b".BTF")
    if section is None:
        raise FormatError(file.path, "it has no section .BTF", hint=_HINT)
    if b".BTF.base" in sections:
        raise FormatError(
            file.path,
            "its types count from a base of their own (.BTF.base), which is not read",
            hint="/sys/kernel/btf has the types of a module that is loaded as the kernel counts them",
        )
    if int(section["sh_size"]) > MAX_SIZE:
        raise FormatError(file.path, f"a section .BTF of {int(section['sh_size'])} bytes: none is that large")
    return file.read_at(int(section["sh_offset"]), int(section["sh_size"]))
