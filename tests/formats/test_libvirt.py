"""Saved guests of libvirt, built from their description: the header around a migration stream."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from dataclasses import replace

import pytest

from kdump_elftool.errors import CorruptDumpError, KdumpError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders import migration as mig
from tests.builders.elfcore import own_address_words
from tests.builders.mapped_ram import MappedFile, pages_of
from tests.builders.streams import lzop_file, zstd_frame

MB = 1 << 20
PACKERS = {0: bytes, 1: gzip.compress, 2: bz2.compress, 3: lzma.compress, 4: lzop_file, 5: zstd_frame}
LZOP, SPARSE = 4, 6


def header(how: int, order: str = "<", magic: bytes = b"LibvirtQemudSave", version: int = 2) -> bytes:
    """The header and the domain's description."""
    xml = b"<domain type='kvm'/>\0" + bytes(65536)
    return magic + struct.pack(f"{order}19I", version, len(xml), 1, how, *[0] * 15) + xml


def sparse(**odd: object) -> bytes:
    """QEMU's mapped-ram behind the header; its offsets are those in the whole file."""
    head = header(SPARSE)
    memory = own_address_words(0, MB) + bytes(MB)
    mapped = MappedFile(
        {"pc.ram": pages_of(memory)}, {"pc.ram": 2 * MB, "pc.bios": 0x40000}, before=len(head)
    )
    return head + replace(mapped, **odd).build()


def saved(how: int = 0, order: str = "<", magic: bytes = b"LibvirtQemudSave", version: int = 2) -> bytes:
    head = header(how, order, magic, version)
    return head + PACKERS.get(how, bytes)(mig.stream_of([(0, own_address_words(0, MB))], 2 * MB))


def opened(tmp_path, image: bytes, fmt: str = "auto"):
    path = tmp_path / "guest.save"
    path.write_bytes(image)
    return open_dump(InputFile.open(str(path)), fmt)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", PACKERS)
@pytest.mark.parametrize("order", "<>")
def test_the_stream_behind_the_header(tmp_path, how, order):
    dump = opened(tmp_path, saved(how, order), "libvirt")
    assert dump.format == "qemu"
    assert dump.memory.read(0, 2 * MB) == own_address_words(0, MB) + bytes(MB)
    assert not dump.lost
    assert not dump.warnings


def test_an_unfinished_one(tmp_path):
    dump = opened(tmp_path, saved(magic=b"LibvirtQemudPart")[:-MB])
    assert "did not finish" in dump.warnings[0]
    assert dump.lost


@pytest.mark.parametrize(
    "image,kind,word",
    [
        (saved(version=3), UnsupportedError, "another version"),
        (saved()[:91], CorruptDumpError, "within its header"),
        (saved()[:1000], CorruptDumpError, "nothing"),
    ],
)
def test_refused(tmp_path, image, kind, word):
    with pytest.raises(kind, match=word):
        opened(tmp_path, image)


def test_sparse(tmp_path):
    dump = opened(tmp_path, sparse())
    assert dump.format == "qemu"
    assert dump.memory.read(0, 2 * MB) == own_address_words(0, MB) + bytes(MB)
    assert not dump.lost
    assert not dump.warnings
    assert len(dump.cpu_registers) == 1


def test_sparse_whose_offsets_do_not_agree(tmp_path):
    """The first block says how much is before the stream; that of the second is another."""
    image = bytearray(sparse())
    at = image.index(b"\7pc.bios") + 8 + 8 + 12
    (bitmap,) = struct.unpack_from(">Q", image, at)
    assert bitmap == at + 16
    for wrong in (bitmap + 8, bitmap - len(header(SPARSE)), 1 << 63):
        struct.pack_into(">Q", image, at, wrong)
        with pytest.raises(CorruptDumpError, match="bitmap at"):
            opened(tmp_path, bytes(image))


@pytest.mark.parametrize("before", [0, 4096, 1 << 40])
def test_sparse_that_begins_elsewhere(tmp_path, before):
    """Cut out of the file: where the stream begins follows from where its bitmaps are."""
    image = header(SPARSE) + sparse(before=before)[len(header(SPARSE)) :]
    if before > 1 << 32:
        with pytest.raises(CorruptDumpError, match="bitmap at"):
            opened(tmp_path, image)
    else:
        assert opened(tmp_path, image).memory.read(0, MB) == own_address_words(0, MB)


def test_cut_anywhere(tmp_path):
    image = saved()
    for cut in (*range(16, 100), *range(65700, 66200, 3)):
        try:
            opened(tmp_path, image[:cut])
        except KdumpError:
            continue
