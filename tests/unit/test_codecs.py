"""Page codecs: exactly one page or nothing, whatever the bytes are, and missing packages named."""

from __future__ import annotations

import sys
import zlib
from random import Random

import pytest

from kdump_elftool.codecs.pages import LZO, SNAPPY, ZLIB, ZSTD, Batch, decoder
from kdump_elftool.errors import MissingCodecError
from tests.builders.diskdump import compress

SEED = 20261124
PAGE = 4096
CODECS = {"zlib": ZLIB, "lzo": LZO, "snappy": SNAPPY, "zstd": ZSTD}


def data(size: int = PAGE) -> bytes:
    return (Random(SEED).randbytes(64) * (size // 64 + 1))[:size]


def decode(codec, pieces: list[bytes], page: int = PAGE) -> tuple[list[int], bytes]:
    source = b"".join(pieces)
    ends = [sum(map(len, pieces[: number + 1])) for number in range(len(pieces))]
    begins = [end - len(piece) for piece, end in zip(pieces, ends, strict=True)]
    out = bytearray(page * len(pieces))
    place = [page * number for number in range(len(pieces))]
    bad = decoder(codec)(Batch(memoryview(source), begins, ends, memoryview(out), place, page))
    return bad, bytes(out)


@pytest.fixture(params=CODECS)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("page", [4096, 65536])
def test_a_page_is_what_it_was(name, page):
    pieces = [compress(name, data(page)), compress(name, bytes(page))]
    assert decode(CODECS[name], pieces, page) == ([], data(page) + bytes(page))


def test_what_is_no_page_is_named(name):
    good = compress(name, data())
    pieces = [
        good,
        compress(name, data(PAGE - 1)),
        compress(name, data(PAGE + 1)),
        compress(name, bytes(100 * PAGE)),
        good[:-1],
        b"",
        b"\xff" * 100,
        good,
    ]
    bad, out = decode(CODECS[name], pieces)
    assert bad == [1, 2, 3, 4, 5, 6]
    assert out[:PAGE] == out[7 * PAGE :] == data()


def test_a_bad_page_touches_no_other(name):
    """2,000 damaged pages between sound ones."""
    random = Random(SEED)
    good = compress(name, data())
    for _ in range(20):
        pieces = [good]
        for _ in range(100):
            hurt = bytearray(good)
            for _ in range(random.randrange(1, 4)):
                hurt[random.randrange(len(hurt))] ^= 1 << random.randrange(8)
            pieces += [bytes(hurt), good]
        bad, out = decode(CODECS[name], pieces)
        assert all(number % 2 for number in bad)
        assert all(out[at : at + PAGE] == data() for at in range(0, len(out), 2 * PAGE))


def test_zlib_without_isal(monkeypatch):
    from kdump_elftool.codecs import pages

    monkeypatch.setitem(sys.modules, "isal", None)
    pages._zlib.cache_clear()
    try:
        assert decode(ZLIB, [zlib.compress(data()), b"x"]) == ([1], data() + bytes(PAGE))
    finally:
        pages._zlib.cache_clear()


@pytest.mark.parametrize(("codec", "package"), [(LZO, "lzallright"), (SNAPPY, "cramjam"), (ZSTD, "cramjam")])
def test_a_missing_package_is_named_with_the_command(monkeypatch, codec, package):
    codec.load.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingCodecError, match=package) as caught:
        decoder(codec)
    assert "pip install 'kdump-elftool[codecs]'" in caught.value.hint
    codec.load.cache_clear()
