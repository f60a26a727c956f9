"""Small compressed files, decompressed as a whole: the modules of a kernel, and the kernel itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdump_elftool.addr import NO_RANGES
from kdump_elftool.codecs.run import Point, Run
from kdump_elftool.codecs.streams import STREAMS, Stream
from kdump_elftool.errors import CorruptDumpError, FormatError
from kdump_elftool.files import ByteSource

_PIECE = 1 << 20
_HEAD = 16


@dataclass(frozen=True)
class Held:
    """Bytes as a :class:`~kdump_elftool.files.ByteSource`."""

    path: str
    data: bytes
    warnings: tuple[str, ...] = ()
    missing = NO_RANGES

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def read_at(self, offset: int, size: int, /) -> bytes:
        """Up to ``size`` bytes."""
        return self.data[offset : offset + size]

    def read_into(self, offset: int, view: memoryview, /) -> None:
        """Fill ``view``.  Raises CorruptDumpError beyond the end."""
        data = self.data[offset : offset + len(view)]
        if len(data) < len(view):
            raise CorruptDumpError(self.path, "there is nothing behind this", file_offset=self.size)
        view[:] = data


@dataclass
class Allowance:
    """How many bytes several streams may become together, whether they turn out to be good or not."""

    left: int


def decompressed(
    file: ByteSource, most: int, streams: Sequence[Stream] = STREAMS, shared: Allowance | None = None
) -> bytes | None:
    """The contents of a compressed file, None of one that is not.

    Raises FormatError when it is damaged or holds more than ``most`` bytes, or than is left of what is
    ``shared``, MissingCodecError.
    """
    head = file.read_at(0, _HEAD)
    stream = next((stream for stream in streams if stream.probe(head)), None)
    if stream is None:
        return None
    run = Run(file, stream, Point(0, 0), verify=True)
    if shared is not None:
        most = min(most, shared.left)
    try:
        data = b"".join(_pieces(run, file, stream, most))
    except stream.errors() as error:
        raise FormatError(file.path, f"the {stream.name} stream is damaged ({error})") from None
    finally:
        if shared is not None:
            shared.left -= min(run.out, most)
    if run.is_cut or run.problems:
        raise FormatError(file.path, f"the {stream.name} stream is damaged or ends early")
    return data


def _pieces(run: Run, file: ByteSource, stream: Stream, most: int) -> Iterator[bytes]:
    while True:
        piece = run.read(_PIECE)
        if piece is None:
            return
        if run.out > most:
            raise FormatError(file.path, f"the {stream.name} stream holds more than {most:#x} bytes")
        yield piece
