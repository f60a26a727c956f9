"""One pass through a compressed file: how long its contents are, whether it is whole, where to begin."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from kdump_elftool.codecs.marks import Mark
from kdump_elftool.codecs.run import Point, Run
from kdump_elftool.codecs.streams import Inflate, Stream
from kdump_elftool.errors import CorruptDumpError, UnsupportedError
from kdump_elftool.files import ByteSource, UpToFailure, readable_end
from kdump_elftool.progress import Advance, silent
from kdump_elftool.spool import Spool

GAP = 32 << 20
"""Contents that may be decoded for a single byte of them; more go into the spool."""
MOST = 1 << 46
"""Contents above this are no dump; bzip2 packs a million zeros into a byte."""
_OUTPUT = 1 << 20
_FIRST_SPACING = 1 << 20
_MOST_STATES = 512
_MOST_POINTS = 1 << 16
_PADDING = 1 << 16


@dataclass(frozen=True)
class Index:
    """``points`` by ascending ``out``, the first at 0; ``size`` of the contents; what is wrong."""

    points: tuple[Point, ...]
    size: int
    warnings: tuple[str, ...]
    spool: Spool | None


def build_index(
    source: ByteSource, stream: Stream, spool: Callable[[], Spool], advance: Advance = silent
) -> Index:
    """Decode the whole file once.  ``spool`` is called when a spool turns out to be needed.

    Raises CorruptDumpError if nothing at all can be decoded, UnsupportedError if that takes too much
    memory, MissingCodecError, OutputError (of the spool).
    """
    return _Indexer(source, stream, spool).run(advance)


class _Indexer:
    def __init__(self, source: ByteSource, stream: Stream, spool: Callable[[], Spool]) -> None:
        self._source, self._stream, self._new_spool = source, stream, spool
        self._marks = stream.marks(UpToFailure(source))
        self._mark: Mark | None = next(self._marks, None)
        self._points = [Point(0, 0)]
        self._spacing = _FIRST_SPACING
        self._spool: Spool | None = None
        self._spooling = False
        self._gap: list[bytes] = []
        self._gap_size = 0
        self._verified = 0
        self._history: deque[tuple[int, int]] = deque()

    def run(self, advance: Advance) -> Index:
        run = Run(self._source, self._stream, self._points[0], verify=True)
        errors = self._stream.errors()
        shown = 0
        warnings = []
        while True:
            if run.rests:
                self._rest(run)
            run.stop = self._mark.at if self._mark else -1
            try:
                data = run.read(_OUTPUT)
            except errors as error:
                warnings.append(self._damaged(run, error))
                break
            if data is None:
                break
            if run.out > MOST:
                raise UnsupportedError(
                    self._source.path,
                    f"this {self._stream.name} stream holds more than {MOST >> 40} TB",
                    hint="no machine has that much memory: this is no dump",
                )
            self._keep(data)
            self._remember(run)
            advance(run.at - shown)
            shown = run.at
        size = self._safe_size(run) if warnings else run.out
        warnings = [*self._endings(run), *warnings]
        if not size:
            raise CorruptDumpError(
                self._source.path,
                warnings[0] if warnings else f"nothing is in this {self._stream.name} stream",
            )
        if self._spool is not None:
            self._spool.finish()
        return Index(tuple(self._points), size, tuple(warnings), self._spool)

    def _rest(self, run: Run) -> None:
        """Another decoder could go on here: note that, if it is worth while."""
        while self._mark is not None and self._mark.at < run.at:
            self._mark = next(self._marks, None)
        mark = self._mark if self._mark is not None and self._mark.at == run.at else None
        if mark:
            self._mark = next(self._marks, None)
        if run.decoder is None or mark:
            self._verified = run.out
        if run.out - self._points[-1].out < self._spacing:
            return
        if run.decoder is None:
            self._add(Point(run.out, run.at))
        elif isinstance(run.decoder, Inflate):
            self._add(Point(run.out, run.at, state=run.decoder.copy()))
        elif mark:
            self._add(Point(run.out, run.at, mark=mark))

    def _add(self, point: Point) -> None:
        self._points.append(point)
        self._spooling, self._gap, self._gap_size = False, [], 0
        most = _MOST_STATES if point.state else _MOST_POINTS
        if len(self._points) > most:
            self._spacing *= 2
            points = self._points
            # where the spool is, and where it ends, has to stay
            self._points = [
                point
                for number, point in enumerate(points)
                if number % 2 == 0 or point.spooled is not None or points[number - 1].spooled is not None
            ]

    def _keep(self, data: bytes) -> None:
        """Hold on to the contents since the last point until it is clear that they are not too many."""
        if self._stream.copies:
            return
        if self._spooling and self._spool is not None:
            self._spool.append(data)
            return
        self._gap.append(data)
        self._gap_size += len(data)
        if self._gap_size > GAP:
            self._spool = self._spool or self._new_spool()
            self._points[-1] = replace(self._points[-1], spooled=self._spool.size)
            for piece in self._gap:
                self._spool.append(piece)
            self._spooling, self._gap = True, []

    def _remember(self, run: Run) -> None:
        """(file offset, contents) of the last ``margin`` bytes, and one pair from before that."""
        if not self._history or self._history[-1][0] != run.at:
            self._history.append((run.at, run.out))
        while len(self._history) > 1 and self._history[1][0] <= run.at - self._stream.margin:
            self._history.popleft()

    def _safe_size(self, run: Run) -> int:
        """Contents that were decoded well before the place where decoding failed."""
        at, out = self._history[0] if self._history else (0, 0)
        return max(out if at <= run.at - self._stream.margin else 0, self._verified)

    def _damaged(self, run: Run, error: Exception) -> str:
        if "memory" in str(error).lower():
            raise UnsupportedError(
                self._source.path,
                f"this {self._stream.name} stream takes too much memory to decompress ({error})",
                hint="decompress it first with a program that may use more",
            ) from None
        return (
            f"the {self._stream.name} stream is damaged at or before file offset {run.at:#x} ({error}): "
            "what it holds up to there may be partly wrong"
        )

    def _endings(self, run: Run) -> list[str]:
        name = self._stream.name
        found = run.problems.told()
        failure, ended = run.source.failure, run.is_cut or run.decoder is None
        if failure is not None and ended and run.at < self._source.size:
            found.append(f"the {name} stream cannot be read from file offset {run.at:#x} on: {failure.why}")
        elif run.is_cut:
            found.append(
                f"the {name} stream ends early, at file offset {readable_end(self._source, run.at):#x}"
            )
        elif run.decoder is None and run.at < self._source.size:
            last = max(self._source.size - _PADDING, run.at)
            if any(self._source.read_at(run.at, _PADDING)) or any(self._source.read_at(last, _PADDING)):
                left = self._source.size - run.at
                found.append(
                    f"{left} bytes behind the {name} stream, at file offset {run.at:#x}, are no part of it"
                )
        return found
