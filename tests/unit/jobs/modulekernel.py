"""A dump with modules in it, opened, and files of modules."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kdump_elftool.codecs.whole import Held
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.kernel.vmcoreinfo import parse
from tests.builders.elfcore import build_core
from tests.builders.kernel import KernelSpec, make_kernel
from tests.builders.modules import Made, ModuleMemory, make_modules

AT = 0x200000
"""Physical address of the modules."""
RELEASE = "6.1.0-test"


def modules_dump(
    *modules: Made, layout: str = "layout", release: str = RELEASE, damage: bytes = b""
) -> tuple[bytes, str, ModuleMemory]:
    """The dump and what -e says of it; ``damage`` is written over the first module's name."""
    kernel = make_kernel(KernelSpec())
    memory = make_modules(layout, *modules, base=kernel.bases["page_offset"] + AT)
    if damage:
        memory.write(memory.places[0] + memory.offsets["module.name"], damage)
    kernel.ram.write(AT, bytes(memory.data))
    return build_core(kernel.core_spec()), memory.extra + f"OSRELEASE={release}\n", memory


def open_modules(
    *modules: Made, layout: str = "layout", release: str = RELEASE, damage: bytes = b""
) -> tuple[Dump, Kernel, ModuleMemory]:
    """The same, opened."""
    data, extra, memory = modules_dump(*modules, layout=layout, release=release, damage=damage)
    dump = open_dump(Held("dump", data))
    return dump, open_kernel(dump, KernelRequest(extra=parse(extra.encode(), "-e"))), memory


def module_file(
    build_id: bytes | None = bytes(range(20)),
    *,
    sections: Sequence[tuple[str, int]] = (
        (".text", 0x40),
        (".data", 0x20),
        (".init.text", 0x30),
        (".modinfo", 0x10),
    ),
    types: bool = False,
    machine: int = 62,
    symbols: bool = True,
    vermagic: str | None = None,
    e_type: int = 1,
    sh_addr: int = 0,
    function: str = "",
) -> bytes:
    """A relocatable ELF file of 64 bits with these sections, each of that size.

    ``function`` is one at the beginning of .text.
    """
    rows: list[tuple[str, int, int, bytes]] = [("", 0, 0, b"")]
    if build_id is not None:
        note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
        rows.append((".note.gnu.build-id", 7, 2, note))
    for name, size in sections:
        data = bytes(size)
        if name == ".modinfo" and vermagic is not None:
            data = b"license=GPL\0vermagic=" + vermagic.encode() + b" SMP mod_unload \0"
        rows.append((name, 1, 2, data))
    if types:
        rows.append((".debug_info", 1, 0, b"x"))
    table, strings = bytes(24), b"\0" + function.encode() + b"\0"
    if function:
        text = [name for name, *_ in rows].index(".text")
        table += struct.pack("<IBBHQQ", 1, 0x12, 0, text, 0, 0x10)
    if symbols:
        rows += [(".strtab", 3, 0, strings), (".symtab", 2, 0, table)]
    names = b"".join(name.encode() + b"\0" for name, *_ in rows) + b".shstrtab\0"
    rows.append((".shstrtab", 3, 0, names))
    body, headers = b"", b""
    for name, kind, flags, data in rows:
        start = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack(
            "<IIQQQQIIQQ",
            *(start, kind, flags, sh_addr if flags else 0, 64 + len(body), len(data)),
            *((len(rows) - 3, 1, 8, 24) if kind == 2 else (0, 0, 4 if kind == 7 else 16, 0)),
        )
        body += data
    ehdr = struct.pack(
        "<HHIQQQIHHHHHH", e_type, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1
    )
    return b"\x7fELF\2\1\1" + bytes(9) + ehdr + body + headers
