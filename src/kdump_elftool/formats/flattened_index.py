"""The records of a large flattened file, remembered in the user's cache for the next time.

Finding them takes a read for each: seconds for a file of 200 GB.  The entry belongs to a file by
device, inode, size, time of the last change and first bytes, and is believed only when what it says
fits the file: the chain of sizes leads to the end mark, and headers that are looked up say the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import struct
import time
import zlib

import numpy as np

from kdump_elftool.addr import U64
from kdump_elftool.cache import Cache
from kdump_elftool.files import InputFile
from kdump_elftool.formats.flattened_records import (
    HEAD,
    HEADER_SIZE,
    LIMIT,
    MAX_RECORDS,
    Records,
    Stop,
)

log = logging.getLogger(__name__)

SMALLEST = 64 << 20
"""A file of this size is gone through in 20 ms."""
WORTH = 1 << 13
"""So many records are worth an entry."""
_FORM = struct.Struct("<QQ")  # records, file offset behind the last one; then both columns, compressed
_LOOKED_UP = 16
_FRESH = 2.0  # seconds: a change within the same tick of the file system's clock would not show


def key_of(file: InputFile) -> str | None:
    """The file's entry; None for a file that is not worth one, or has just been written."""
    status = os.fstat(file.fd)
    fresh = abs(time.time() - status.st_mtime) < _FRESH
    if not stat.S_ISREG(status.st_mode) or file.size < SMALLEST or fresh:
        return None
    head = hashlib.blake2b(file.read_at(0, HEADER_SIZE + HEAD), digest_size=8).hexdigest()
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return "flattened-" + "-".join(f"{number:x}" for number in numbers) + f"-{head}"


def remember(cache: Cache, key: str, records: Records) -> None:
    """Keep the records of a stream that is whole."""
    if records.stop != Stop.END_MARK or len(records) < WORTH:
        return
    # in most files each record goes on where the one before ended: differences are nearly all the same
    packed = zlib.compress(_differences(records.start) + _differences(records.size), 1)
    if cache.put(key, _FORM.pack(len(records), records.next_at) + packed):
        log.info("the places of %d records are kept in the cache", len(records))


def recall(cache: Cache, key: str, file: InputFile) -> Records | None:
    """The records as they were found the last time; None when there are none that fit the file."""
    data = cache.get(key)
    records = None if data is None else _unpack(data, file.size)
    if records is None or not _fits(records, file):
        return None
    log.info("%s: the places of %d records come from the cache", file.path, len(records))
    return records


def _unpack(data: bytes, file_size: int) -> Records | None:
    if len(data) < _FORM.size:
        return None
    count, next_at = _FORM.unpack_from(data)
    if not 0 < count <= min(MAX_RECORDS, file_size // HEAD):
        return None
    try:
        engine = zlib.decompressobj()
        columns = engine.decompress(data[_FORM.size :], 16 * count)
    except zlib.error:
        return None
    if len(columns) != 16 * count:
        return None
    steps = np.frombuffer(columns, dtype="<u8").astype(np.uint64, copy=False).reshape(2, count)
    start, size = np.cumsum(steps, axis=1, dtype=np.uint64)
    return Records(start, size, next_at, Stop.END_MARK)


def _fits(records: Records, file: InputFile) -> bool:
    """Whether the chain stays within the file and its headers are where they should be."""
    limit = np.uint64(LIMIT)
    if (records.start > limit).any() or (records.size > limit - records.start).any():
        return False
    position = records.position
    end = position + records.size
    if (end[:-1] >= position[1:]).any() or int(end[-1]) != records.next_at:
        return False
    if records.next_at + HEAD > file.size or file.read_at(records.next_at, 8) != b"\xff" * 8:
        return False
    for index in np.linspace(0, len(records) - 1, _LOOKED_UP, dtype=np.intp).tolist():
        said = struct.pack(">QQ", int(records.start[index]), int(records.size[index]))
        if file.read_at(int(position[index]) - HEAD, HEAD) != said:
            return False
    return True


def _differences(column: U64) -> bytes:
    return np.diff(column, prepend=np.uint64(0)).astype("<u8").tobytes()
