"""Packing pages: what comes out is what the codec's own library reads, and never larger than a page."""

from __future__ import annotations

import sys
from random import Random

import pytest

from kdump_elftool.codecs import packing
from kdump_elftool.codecs.packing import PACKERS, default_codec, packer
from kdump_elftool.errors import MissingCodecError
from kdump_elftool.formats.diskdump_layout import FLAGS
from tests.builders.kdumpread import decompress

SEED = 20261124
PAGE = 4096


def buffer() -> bytes:
    random = Random(SEED)
    soft = (random.randbytes(64) * 64)[:PAGE]
    return soft + random.randbytes(PAGE) + bytes(PAGE) + random.randbytes(PAGE // 2).ljust(PAGE, b"\1") + soft


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("begin", [[0, 4096, 8192, 12288, 16384], [4096, 12288], [16384], [4096] * 3, []])
def test_pages_become_pieces(name, begin):
    source = buffer()
    packed = packer(name)(memoryview(source), begin, PAGE)
    assert len(packed.data) == sum(packed.sizes)
    at = 0
    for start, size in zip(begin, packed.sizes, strict=True):
        page = source[start : start + PAGE]
        piece = bytes(packed.data[at : at + size])
        if size == PAGE:
            assert piece == page
        else:
            assert decompress(FLAGS[name], piece, PAGE) == page
        at += size
    if name != "none" and begin[:1] == [0]:
        assert packed.sizes[0] < PAGE // 8 and packed.sizes[2] < 256
        assert packed.sizes[1] == PAGE


def test_large_pages():
    source = (Random(SEED).randbytes(512) * 128)[:65536]
    for name in PACKERS:
        packed = packer(name)(memoryview(source), [0], 65536)
        data = bytes(packed.data)
        assert (decompress(FLAGS[name], data, 65536) if len(data) < 65536 else data) == source


@pytest.mark.parametrize(
    ("name", "package"), [("zstd", "cramjam"), ("snappy", "cramjam"), ("lzo", "lzallright")]
)
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    PACKERS[name].load.cache_clear()
    with pytest.raises(MissingCodecError) as caught:
        packer(name)
    assert package in caught.value.message and "pip install" in str(caught.value.hint)


def test_zlib_needs_nothing(monkeypatch):
    for package in ("isal", "cramjam"):
        monkeypatch.setitem(sys.modules, package, None)
    for known in PACKERS.values():
        getattr(known.load, "cache_clear", lambda: None)()
    assert default_codec() == "zlib"
    source = buffer()
    packed = packer("zlib")(memoryview(source), [0], PAGE)
    assert decompress(1, bytes(packed.data), PAGE) == source[:PAGE]
    packing._zlib.cache_clear()


def test_zstd_is_the_first_choice():
    assert default_codec() == "zstd"
