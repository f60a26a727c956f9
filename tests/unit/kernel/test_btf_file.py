"""Files with BTF in them: as it is, in ELF sections, compressed, of the kernel and of modules."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest

from kdump_elftool.codecs.whole import Held
from kdump_elftool.errors import FormatError
from kdump_elftool.kernel.btf_file import BtfFile, read_btf_file
from tests.builders import btf as b


def kernel(order: str = "<") -> b.BtfWriter:
    w = b.BtfWriter(order)
    w.struct("of_kernel", 4, [("number", w.integer("int", 4, 1), 0)])
    return w


def of_module(order: str = "<", name: str = "of_module") -> bytes:
    w = b.BtfWriter(order, base=kernel(order))
    w.struct(name, 4, [("number", 1, 0)])
    return w.finish()


def elf(*sections: tuple[str, bytes]) -> bytes:
    """A relocatable object with these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in sections) + b".shstrtab\0"
    contents = b"".join(data for _, data in sections) + names
    rows = [bytes(64)]
    at = 64
    for name, data in (*sections, (".shstrtab", names)):
        where = names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", where, 1, 0, 0, at, len(data), 0, 0, 1, 0))
        at += len(data)
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, at, 0, 64, 56, 0, 64, len(rows), len(rows) - 1)
    return head + contents + b"".join(rows)


@pytest.mark.parametrize("order", ["<", ">"])
def test_as_it_is(order):
    whole = kernel(order).finish()
    assert read_btf_file(Held("/sys/kernel/btf/vmlinux", whole)) == BtfFile(whole, None)
    split = of_module(order)
    assert read_btf_file(Held("/sys/kernel/btf/dm_mod", split)) == BtfFile(split, "dm_mod")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("name", ["dm-mod.ko", "dm-mod.ko.debug", "dm-mod.ko.xz", "dm_mod.ko.gz", "dm-mod"])
def test_in_an_elf_file(name, pack):
    split = of_module()
    data = elf((".text", b"\x90" * 100), (".BTF", split))
    assert read_btf_file(Held(f"/lib/{name}", pack(data))) == BtfFile(split, "dm_mod")
    whole = kernel().finish()
    assert read_btf_file(Held("vmlinux", pack(elf((".BTF", whole))))) == BtfFile(whole, None)


@pytest.mark.parametrize(
    "data,why",
    [
        (b"", "no BTF"),
        (b"\x9f\xeb\1\0 nothing", "no BTF"),
        (kernel().finish()[:-3], "no BTF"),
        (elf((".text", b"x")), "no section .BTF"),
        (elf((".BTF", b"x" * 40)), "no BTF"),
        (elf((".BTF", of_module()), (".BTF.base", kernel().finish())), "a base of their own"),
        (b"\x7fELF\2\1\1" + bytes(57), "no section .BTF"),
    ],
)
def test_none(data, why):
    with pytest.raises(FormatError, match=why):
        read_btf_file(Held("x.ko", data))
