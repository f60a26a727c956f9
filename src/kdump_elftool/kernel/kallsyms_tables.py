"""Where the kernel's symbol table lies in memory: named by VMCOREINFO (v6.0 on), else by its shape.

By shape: the token table holds the digits as tokens of their own, "0" to "9" one behind the other,
since symbol names contain them, and the token index that follows it must point at its strings.
Right before it (but for kallsyms_seqs_of_names in v6.2 and v6.3) lie the markers, before those the
names, before those the number of symbols.  Offsets and their base lie before the number until
v6.3, behind the token index since.

References: scripts/kallsyms.c (write_src()) of v4.6, v5.10, v6.1, v6.4, v7.0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import MASK64, U64, Index, align_up
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Source
from kdump_elftool.kernel.kallsyms import (
    BLOCK,
    MAX_NAMES,
    MAX_SYMBOLS,
    TOKENS,
    Kallsyms,
    Tables,
    agrees,
    decode,
    fills,
    skip,
)
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_LONGEST_TOKEN_TABLE = 1 << 16
_MOST_CANDIDATES = 64
_KNOWN = ("_stext", "_text", "swapper_pg_dir", "init_top_pgt", "init_uts_ns", "linux_banner")


@dataclass(frozen=True)
class Place:
    """Where the tables lie; ``values`` with the base that belongs to it are tried in order.

    A base of None is no table of that kernel; ``wide`` values are whole addresses.
    """

    num_syms: int
    names: int
    token_table: int
    token_index: int
    values: tuple[tuple[int, int | None, bool], ...]


@dataclass(frozen=True)
class _Reader:
    """Numbers out of memory."""

    memory: VirtualMemory
    order: str
    word: int

    def read(self, vaddr: int, size: int) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""
        return self.memory.read(vaddr & MASK64, size)

    def number(self, vaddr: int, size: int) -> int:
        """An unsigned number.  Raises FaultError."""
        return int.from_bytes(self.read(vaddr, size), "little" if self.order == "<" else "big")

    def column(self, vaddr: int, count: int, size: int) -> U64:
        """``count`` unsigned numbers.  Raises FaultError."""
        return np.frombuffer(self.read(vaddr, count * size), dtype=f"{self.order}u{size}").astype(np.uint64)

    def up_to(self, vaddr: int, size: int) -> bytes:
        """At most ``size`` bytes: up to the first that cannot be read."""
        view = memoryview(bytearray(size))
        holes = self.memory.read_present(vaddr & MASK64, view)
        return bytes(view[: holes[0][0]] if holes else view)


def open_kallsyms(
    memory: VirtualMemory, known: Source, window: tuple[int, int], order: str, word: int
) -> Kallsyms | None:
    """The kernel's symbols, or None with the reason in the log.

    ``window`` is where the kernel image is mapped.
    """
    addresses = {name: value for name in _KNOWN if (value := _symbol(known, name)) is not None}
    reader = _Reader(memory, order, word)
    return _first(reader, _places(reader, known, window), lambda found: agrees(found, addresses))


def open_kallsyms_of_image(
    memory: VirtualMemory, window: tuple[int, int], order: str, word: int, known: dict[str, int]
) -> Kallsyms | None:
    """As :func:`open_kallsyms`, of a kernel that lies in ``window``; little or nothing else is ``known``.

    The row beside the right one would do then, too: so only places are tried where the linker puts tables.
    """
    reader = _Reader(memory, order, word)
    places = (replace(place, values=_aligned(place, word)) for place in by_shape(reader, window))
    return _first(reader, places, lambda found: fills(found, *window) and agrees(found, known, 0))


def _aligned(place: Place, word: int) -> tuple[tuple[int, int | None, bool], ...]:
    """Tables begin with a multiple of a word's size, those of v7.0 (without base) of 4 bytes.

    These come last: numbers of the others would make ascending addresses in the image, too.
    """
    own_base = [values for values in place.values if values[1] is None and not values[2]]
    others = [values for values in place.values if values not in own_base and values[0] % word == 0]
    return (*others, *(values for values in own_base if values[0] % 4 == 0))


def relative_bases(memory: VirtualMemory, window: tuple[int, int], order: str, word: int) -> Iterator[int]:
    """What may be kallsyms_relative_base, the kernel's lowest address, wherever that lies in ``memory``."""
    reader = _Reader(memory, order, word)
    for place in by_shape(reader, window):
        for _, base_at, _ in place.values:
            try:
                if base_at is not None:
                    yield reader.number(base_at, word)
            except FaultError:
                continue


def _first(reader: _Reader, places: Iterator[Place], confirm: Callable[[Kallsyms], bool]) -> Kallsyms | None:
    """The first table that is one."""
    for place in places:
        try:
            found = _open(reader, place, confirm)
        except FaultError as error:
            log.info("kallsyms: %s", error)
            continue
        if found is not None:
            log.info("kallsyms: %d symbols", len(found))
            return found
    log.info("kallsyms: no table of symbols that agrees with what is known")
    return None


def _places(reader: _Reader, known: Source, window: tuple[int, int]) -> Iterator[Place]:
    named = _named(known)
    if named is not None:
        yield named
    yield from by_shape(reader, window)


def _symbol(known: Source, name: str) -> int | None:
    fact = known.find("SYMBOL", name)
    return None if fact is None else int(fact.value)


def _named(known: Source) -> Place | None:
    """What VMCOREINFO says."""
    names, count, table, index = (
        _symbol(known, f"kallsyms_{name}") for name in ("names", "num_syms", "token_table", "token_index")
    )
    offsets, base = _symbol(known, "kallsyms_offsets"), _symbol(known, "kallsyms_relative_base")
    addresses = _symbol(known, "kallsyms_addresses")
    if names is None or count is None or table is None or index is None:
        return None
    values = [(offsets, base, False)] if offsets is not None else []
    if addresses is not None:
        values.append((addresses, None, True))
    return Place(count, names, table, index, tuple(values))


def _open(reader: _Reader, place: Place, confirm: Callable[[Kallsyms], bool]) -> Kallsyms | None:
    """Read and decode; raises FaultError where a table cannot be read."""
    count = reader.number(place.num_syms, 4)
    if not 0 < count <= MAX_SYMBOLS:
        return None
    index = reader.column(place.token_index, TOKENS, 2).astype(np.int64)
    token_table = reader.up_to(place.token_table, int(index.max()) + 1024)
    names = reader.up_to(place.names, min(_most_names(count), MAX_NAMES))
    markers = _markers(reader, names, count)
    if markers is None:
        log.info("kallsyms: no markers fit the names at %#x", place.names)
        return None
    names = names[: int(markers[-1]) + BLOCK * 1024]
    for vaddr, base_at, wide in place.values:
        try:
            base = None if base_at is None else reader.number(base_at, reader.word)
            column = reader.column(vaddr, count, reader.word if wide else 4)
        except FaultError:
            continue
        values = column if wide else column.astype(np.uint32).view(np.int32)
        tables = Tables(names, count, markers, token_table, index, values, vaddr, base)
        found = decode(tables, confirm, word=reader.word)
        if found is not None:
            return found
    return None


def _most_names(count: int) -> int:
    """Bytes that the names, and the markers behind them, may take."""
    return count * 96 + (1 << 16)


def _markers(reader: _Reader, names: bytes, count: int) -> Index | None:
    """The position of every 256th symbol: the table that begins with the first three of them."""
    blocks = -(-count // BLOCK)
    first = [0]
    for _ in range(min(blocks - 1, 2)):
        first.append(skip(names, first[-1], BLOCK))
    if len(first) == 1:
        return np.zeros(1, dtype=np.intp)
    for size in (4, 8):
        head = b"".join(value.to_bytes(size, "little" if reader.order == "<" else "big") for value in first)
        at = names.find(head)
        if at < 0 or at + blocks * size > len(names):
            continue
        table = np.frombuffer(names, dtype=f"{reader.order}u{size}", count=blocks, offset=at)
        markers = table.astype(np.uint64)
        if np.all(markers[1:] > markers[:-1]) and int(markers[-1]) < at:
            return markers.astype(np.intp)
    return None


def by_shape(reader: _Reader, window: tuple[int, int]) -> Iterator[Place]:
    """Places that look right, at most a few."""
    tried = 0
    for start, data in reader.memory.scan(*window, len(_DIGITS)):
        at = data.find(_DIGITS)
        while at >= 0:
            tried += 1
            if tried > _MOST_CANDIDATES:
                return
            yield from _around(reader, start + at)
            at = data.find(_DIGITS, at + 1)


def _around(reader: _Reader, digits: int) -> Iterator[Place]:
    """The tables around the digits of a token table."""
    found = _token_tables(reader, digits)
    if found is None:
        return
    table, index = found
    behind = index + 2 * TOKENS
    for num_syms, names in _names_before(reader, table):
        count = reader.number(num_syms, 4)
        yield Place(num_syms, names, table, index, tuple(_values(reader, num_syms, behind, count)))


def _token_tables(reader: _Reader, digits: int) -> tuple[int, int] | None:
    """Start of the token table that holds these digits, and of its index."""
    behind = reader.up_to(digits, _LONGEST_TOKEN_TABLE)
    letters = np.frombuffer(behind, dtype=np.uint8)
    ends = np.flatnonzero(letters == 0)
    strings = TOKENS - ord("0")
    if len(ends) < strings:
        return None
    begins = np.concatenate([[0], ends[: strings - 1] + 1])
    end = digits + int(ends[strings - 1]) + 1
    for vaddr in dict.fromkeys(align_up(end, size) for size in (2, 4, 8, 16, 256)):
        index = np.frombuffer(reader.up_to(vaddr, 2 * TOKENS), dtype=f"{reader.order}u2").astype(np.int64)
        if len(index) != TOKENS or index[0] or np.any(index[1:] <= index[:-1]):
            continue
        if np.array_equal(index[ord("0") :] - index[ord("0")], begins):
            return digits - int(index[ord("0")]), vaddr
    return None


def _names_before(reader: _Reader, token_table: int) -> Iterator[tuple[int, int]]:
    """(address of the number of symbols, address of the names) that fit the markers before a token table."""
    for size in (4, 8):
        for markers_at, markers in _markers_before(reader, token_table, size):
            yield from _counted_before(reader, markers_at, markers)


def _markers_before(
    reader: _Reader, token_table: int, size: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Ascending numbers from 0 in steps that 256 symbols can take, at most 16 MB before the tokens."""
    room = 16 << 20
    low = align_up(max(token_table - room, 0), 8)
    view = memoryview(bytearray((token_table - low) // size * size))
    reader.memory.read_present(low, view)
    numbers = np.frombuffer(view, dtype=f"{reader.order}u{size}").astype(np.int64)
    step = np.diff(numbers)
    good = (step >= 2 * BLOCK) & (step < 1024 * BLOCK)
    starts = np.flatnonzero((numbers[:-1] == 0) & good)
    breaks = np.append(np.flatnonzero(~good), len(good))
    for start in starts[::-1][:_MOST_CANDIDATES].tolist():
        end = int(breaks[np.searchsorted(breaks, start)]) + 1
        if end - start >= 3:
            yield low + start * size, numbers[start:end]


def _counted_before(
    reader: _Reader, markers_at: int, markers: npt.NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """A number of symbols that the markers are right for, with names behind it that fit them."""
    last = int(markers[-1])
    room = last + BLOCK * 1024
    low = align_up(max(markers_at - room, 0), 4)
    view = memoryview(bytearray(align_up(markers_at - last, 4) - low))
    reader.memory.read_present(low, view)
    numbers = np.frombuffer(view, dtype=f"{reader.order}u4").astype(np.int64)
    # the run of markers may go on into what lies behind it
    for blocks in range(len(markers), max(len(markers) - 3, 1), -1):
        rows = np.flatnonzero((numbers > (blocks - 1) * BLOCK) & (numbers <= blocks * BLOCK))
        for row in rows[::-1][: 16 * _MOST_CANDIDATES].tolist():
            num_syms = low + 4 * row
            for names in dict.fromkeys((num_syms + 4, align_up(num_syms + 4, 8), num_syms + 8)):
                if _fits(reader, names, markers):
                    yield num_syms, names


def _fits(reader: _Reader, names: int, markers: npt.NDArray[np.int64]) -> bool:
    """True when the first 256 symbols from ``names`` end where the second marker says."""
    return skip(reader.up_to(names, int(markers[1]) + 2), 0, BLOCK) == int(markers[1])


def _values(
    reader: _Reader, num_syms: int, behind: int, count: int
) -> Iterator[tuple[int, int | None, bool]]:
    """Where offsets or addresses may lie: before the number of symbols, or behind the token index."""
    word = reader.word
    for base in dict.fromkeys((num_syms - word, (num_syms - word) // 8 * 8)):
        for start in dict.fromkeys((base - 4 * count, (base - 4 * count) // 8 * 8)):
            yield start, base, False
    for start in dict.fromkeys((num_syms - word * count, (num_syms - word * count) // 8 * 8)):
        yield start, None, True
    for start in dict.fromkeys((behind, align_up(behind, 4), align_up(behind, 8))):
        yield start, align_up(start + 4 * count, word), False
        yield start, None, False
