"""Saved guests of libvirt, built from their description: the header around a migration stream."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import pytest

from kdump_elftool.errors import CorruptDumpError, KdumpError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders import migration as mig
from tests.builders.elfcore import own_address_words

MB = 1 << 20
PACKERS = {0: bytes, 1: gzip.compress, 2: bz2.compress, 3: lzma.compress}


def saved(how: int = 0, order: str = "<", magic: bytes = b"LibvirtQemudSave", version: int = 2) -> bytes:
    xml = b"<domain type='kvm'/>\0" + bytes(65536)
    head = magic + struct.pack(f"{order}19I", version, len(xml), 1, how, *[0] * 15)
    return head + xml + PACKERS.get(how, bytes)(mig.stream_of([(0, own_address_words(0, MB))], 2 * MB))


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
        (saved(4), UnsupportedError, "lzop"),
        (saved(6), UnsupportedError, "sparse"),
        (saved(version=3), UnsupportedError, "another version"),
        (saved()[:91], CorruptDumpError, "within its header"),
        (saved()[:1000], CorruptDumpError, "nothing"),
    ],
)
def test_refused(tmp_path, image, kind, word):
    with pytest.raises(kind, match=word):
        opened(tmp_path, image)


def test_cut_anywhere(tmp_path):
    image = saved()
    for cut in (*range(16, 100), *range(65700, 66200, 3)):
        try:
            opened(tmp_path, image[:cut])
        except KdumpError:
            continue
