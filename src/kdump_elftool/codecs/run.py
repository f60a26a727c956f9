"""Decoding a compressed file from some point on."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.codecs.marks import Mark
from kdump_elftool.codecs.streams import Decoder, Inflate, Stream
from kdump_elftool.files import ByteSource, Complaints, UpToFailure

STEP = 1 << 16
"""Compressed bytes that a decoder gets at a time."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the contents from which they can be had.

    ``out`` and ``at``: where it is in the contents and in the file.  ``state`` is a decoder to copy,
    ``mark`` a place within a member, ``spooled`` an offset in the spool; without them a member begins.
    """

    out: int
    at: int
    state: Inflate | None = None
    mark: Mark | None = None
    spooled: int | None = None


class Run:
    """Decoding from a point on, across members.

    ``at`` and ``out`` are where it is in the file and in the contents.  No input is taken across
    ``stop``, so that whoever sets it gets to see the decoder there.
    """

    def __init__(self, source: ByteSource, stream: Stream, point: Point, *, verify: bool = False) -> None:
        self.source = UpToFailure(source)
        self._stream, self._verify = stream, verify
        self._mark, self._prefix = point.mark, b""
        self.at, self.out = point.at, point.out
        self.stop = -1
        self.decoder: Decoder | None = point.state.copy() if point.state else None
        if point.mark:
            self.decoder, self._prefix = stream.decoder(), point.mark.prefix
        self.is_cut = False
        """Whether the file ended within a member."""
        self.problems = Complaints(f"members of the {stream.name} stream do not end as they should")

    @property
    def rests(self) -> bool:
        """Whether all input so far has become contents, so that another decoder could go on here."""
        return self.decoder is None or (self.decoder.needs_input and not self._prefix)

    def read(self, most: int) -> bytes | None:
        """The next contents, at most ``most`` bytes, perhaps none; None at the end.

        Raises what the stream's library raises.
        """
        if self.decoder is None:
            begun = self._stream.begin(self.source, self.at, verify=self._verify)
            if begun is None:
                return None
            self.decoder, self.at = begun.decoder, begun.input_at
        data = b""
        if self.decoder.needs_input:
            data = self._input()
            if not data:
                return self._out_of_input()
        out = self.decoder.decompress(data, most)
        self.out += len(out)
        if self.decoder.eof:
            self._end(self.decoder)
        return out

    def _input(self) -> bytes:
        limit = self.source.size if self._mark is None else self._mark.limit
        if self.stop > self.at:
            limit = min(limit, self.stop)
        data = self.source.read_at(self.at, max(min(STEP, limit - self.at), 0))
        self.at += len(data)
        if not data:
            return b""
        data, self._prefix = self._prefix + data, b""
        return data

    def _out_of_input(self) -> bytes | None:
        if self._mark is None or self._mark.limit > self.at:
            self.is_cut = True
            return None
        self.at, self._mark, self.decoder = self._mark.resume, None, None
        return b""

    def _end(self, decoder: Decoder) -> None:
        self.at, problem = self._stream.end(self.source, self.at - len(decoder.unused_data), decoder)
        self._mark = self.decoder = None
        if problem:
            self.problems.add(f"the {self._stream.name} stream {problem} (at file offset {self.at:#x})")
