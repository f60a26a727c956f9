"""A vmlinux without some of its sections: what a kernel built without BTF looks like.

The sections are renamed in a copy rather than removed: objcopy refuses to remove .BTF, to whose ends
symbols refer.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

_SHDR = struct.Struct("<IIQQQQ")


def hide_sections(source: Path, target: Path, *names: str) -> None:
    """Copy the 64-bit little-endian ELF file ``source`` to ``target`` and rename these sections."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
    with target.open("r+b") as file:
        head = file.read(64)
        (shoff,) = struct.unpack_from("<Q", head, 40)
        shentsize, shnum, shstrndx = struct.unpack_from("<HHH", head, 58)
        file.seek(shoff)
        table = file.read(shentsize * shnum)
        headers = [_SHDR.unpack_from(table, index * shentsize) for index in range(shnum)]
        strings_at, strings_size = headers[shstrndx][4], headers[shstrndx][5]
        file.seek(strings_at)
        strings = file.read(strings_size)
        for name in names:
            wanted = name.encode() + b"\0"
            found = [index for index, header in enumerate(headers) if strings[header[0] :].startswith(wanted)]
            if not found:
                raise ValueError(f"{source} has no {name}")
            # a string that no section has before: its last byte is that of another name, too
            for index in found:
                file.seek(shoff + index * shentsize)
                file.write(struct.pack("<I", strings.index(b"\0")))


def has_section(path: Path, name: str) -> bool:
    """Whether an ELF file has a section of that name, as readelf sees it."""
    listed = subprocess.run(["readelf", "-SW", path], check=True, capture_output=True, text=True).stdout
    return f"] {name} " in listed
