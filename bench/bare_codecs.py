"""``python bare_codecs.py DUMP OUT``: every page of a kdump-compressed dump through its codec, into a file.

The least that any Python program must do with these bindings: one call a page, and large writes of the
bytes that come out.  64-bit little-endian dumps of version 6 only.  Without arguments: the imports.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable

import cramjam
import numpy as np
from isal import isal_zlib
from lzallright import LZOCompressor

_CHUNK = 4 << 20
_STATUS_AT = 424


def main(path: str, target: str) -> None:
    """Decode all pages of ``path`` into ``target``."""
    with open(path, "rb") as file:
        data = memoryview(file.read())
    _, block, sub, maps, _ = struct.unpack_from("<5I", data, _STATUS_AT)
    bitmap = (1 + sub) * block + maps * block // 2
    count = int(np.unpackbits(np.frombuffer(data[bitmap : bitmap + maps * block // 2], dtype=np.uint8)).sum())
    entry = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
    found = np.frombuffer(data, dtype=entry, count=count, offset=(1 + sub + maps) * block)
    zstd, snappy, lzo = (
        cramjam.zstd.decompress_into,
        cramjam.snappy.decompress_raw_into,
        LZOCompressor.decompress,
    )
    into: dict[int, Callable[[memoryview, memoryview], int]] = {4: snappy, 0x20: zstd}
    out = memoryview(bytearray(_CHUNK))
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    at = 0
    columns = (found[name].tolist() for name in ("offset", "size", "flags"))
    for offset, size, flags in zip(*columns, strict=True):
        piece = data[offset : offset + size]
        if flags == 0:
            out[at : at + block] = piece
        elif flags == 1:
            out[at : at + block] = isal_zlib.decompress(piece, 15, block)
        elif flags == 2:
            out[at : at + block] = lzo(piece, block)
        else:
            into[flags](piece, out[at : at + block])
        at += block
        if at == _CHUNK:
            os.write(fd, out)
            at = 0
    os.write(fd, out[:at])
    os.close(fd)


if __name__ == "__main__" and len(sys.argv) == 3:
    main(*sys.argv[1:])
