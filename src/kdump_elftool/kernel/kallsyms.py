"""The kernel's own symbol table, decoded from its compressed tables in memory.

kallsyms_names holds, symbol by symbol, a length (one byte; from v6.1 two, seven bits each, if the
first has bit 7 set) and that many token numbers; kallsyms_token_index says where in
kallsyms_token_table each of the 256 tokens has its text.  The first letter of a symbol's text is
its type as nm prints it.  kallsyms_markers has the position of every 256th symbol.  Addresses come
in four forms (:data:`FORMS`), of which the known address of a symbol picks the right one.

References: scripts/kallsyms.c, kernel/kallsyms.c (kallsyms_expand_symbol(), kallsyms_sym_address())
of v4.6, v5.10, v6.1, v6.12, v7.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import MASK64, U64, Index
from kdump_elftool.kernel.facts import Fact

U8 = npt.NDArray[np.uint8]

MAX_SYMBOLS = 4 << 20
MAX_NAMES = 16 << 20
"""Bytes of kallsyms_names that are believed; 186,798 symbols of v7.2 have 2.8 MB."""
_MAX_TEXT = 64 << 20
_PIECE = 1 << 20
"""Letters of names that are put together at a time: each takes 24 bytes meanwhile."""
_MAX_NAME = 1024
"""KSYM_NAME_LEN is 128, 512 from v6.1 on; a longer name is none."""
BLOCK = 256
"""Symbols between two markers."""
TOKENS = 256
_MAX_TOKEN_TABLE = 1 << 16
_NEARLY_ALL = 0.9
"""Of the symbols; the others are per-CPU variables, or constants."""


@dataclass(frozen=True)
class Tables:
    """The tables as they lie in memory, read but not decoded.

    ``markers`` are positions in ``names``, ascending from 0; ``values`` is kallsyms_offsets (int32)
    or kallsyms_addresses (words), at ``values_vaddr``.
    """

    names: bytes
    num_syms: int
    markers: Index
    token_table: bytes
    token_index: npt.NDArray[np.int64]
    values: npt.NDArray[np.int32] | U64
    values_vaddr: int
    relative_base: int | None


@dataclass(frozen=True)
class Kallsyms:
    """Columns, one row a symbol in the order of the table, which is that of addresses.

    ``text`` has all names end to end; a name without its type lies from ``begin`` to ``end``.
    """

    address: U64
    kind: U8
    text: bytes
    begin: Index
    end: Index
    label: str = "kallsyms in the dump"
    damage: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.address)

    def rows(self, name: str) -> Index:
        """The rows of all symbols of that name."""
        wanted = np.frombuffer(name.encode(), dtype=np.uint8)
        rows = np.flatnonzero(self.end - self.begin == len(wanted))
        if not len(wanted) or not len(rows):
            return rows[:0]
        letters = np.frombuffer(self.text, dtype=np.uint8)
        for at in range(len(wanted) - 1, -1, -1):
            rows = rows[letters[self.begin[rows] + at] == wanted[at]]
        return rows

    def name(self, row: int) -> str:
        """The name of one row."""
        return self.text[self.begin[row] : self.end[row]].decode("latin-1")

    def names(self) -> list[str]:
        """All names, row by row."""
        text = self.text.decode("latin-1")
        return [text[begin:end] for begin, end in zip(self.begin.tolist(), self.end.tolist(), strict=True)]

    def symbol(self, name: str) -> int | None:
        """The address of the first symbol of that name; per-CPU ones as the table has them."""
        rows = self.rows(name)
        return int(self.address[rows[0]]) if len(rows) else None

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        value = self.symbol(name) if kind == "SYMBOL" else None
        return None if value is None else Fact(f"SYMBOL({name})", value, self.label)


def decode(tables: Tables, confirm: Callable[[Kallsyms], bool], *, word: int) -> Kallsyms | None:
    """Decode the tables; None when they contradict themselves or ``confirm`` takes none of their forms."""
    start, length, lost = _split(tables)
    if len(start) != tables.num_syms:
        return None
    damage = (f"{lost} symbols stand in parts that make no sense",) if lost else ()
    expanded = _expand(tables, start, length)
    if expanded is None:
        return None
    text, begin, end = expanded
    letters = np.frombuffer(text, dtype=np.uint8)
    whole = (end > begin + 1) & (end - begin <= _MAX_NAME)
    kind = np.zeros(len(begin), dtype=np.uint8)
    kind[whole] = letters[begin[whole]]
    begin = np.where(whole, begin + 1, end)
    for form in FORMS:
        address = form(tables, word)
        if address is None:
            continue
        found = Kallsyms(address, kind, text, begin, end, damage=damage)
        if confirm(found):
            return found
    return None


def agrees(found: Kallsyms, known: dict[str, int], least: int = 1) -> bool:
    """True when ``least`` symbols of known addresses are in the table, and all that are have them."""
    seen = 0
    for name, vaddr in known.items():
        rows = found.rows(name)
        if not len(rows):
            continue
        if not np.any(found.address[rows] == np.uint64(vaddr)):
            return False
        seen += 1
    return seen >= least


def fills(found: Kallsyms, low: int, high: int) -> bool:
    """True when nearly all symbols lie from ``low`` to ``high``, in order, and not all alike.

    Zeros that are taken for offsets from where they lie would be addresses 4 bytes apart.
    """
    address = found.address
    inside = (address >= np.uint64(low)) & (address <= np.uint64(high))
    step = np.diff(address.view(np.int64))
    in_order = (
        len(step) > 0 and bool(np.all(address[1:] >= address[:-1])) and int(step.max()) > int(step.min())
    )
    return in_order and float(inside.sum()) > _NEARLY_ALL * len(address)


def _token_count(names: U8, at: Index) -> tuple[Index, Index]:
    """Token count of the symbols at these positions, and how many bytes say so."""
    first = names[at].astype(np.intp)
    long = first >= 0x80
    second = names[np.minimum(at + 1, len(names) - 1)].astype(np.intp)
    return np.where(long, (first & 0x7F) | second << 7, first), np.where(long, 2, 1)


def skip(names: bytes, at: int, symbols: int) -> int:
    """Position of the symbol that many symbols behind the one at ``at``; len(names) beyond the end."""
    room = len(names)
    for _ in range(symbols):
        if at + 1 >= room:
            return room
        first = names[at]
        at += (first & 0x7F | names[at + 1] << 7) + 2 if first >= 0x80 else first + 1
    return min(at, room)


def _split(tables: Tables) -> tuple[Index, Index, int]:
    """Where each symbol's token numbers start, how many there are, and how many symbols had to be given up.

    All blocks between two markers are gone through at once, symbol by symbol: 256 steps.  Symbols of a
    block that does not end where the next one begins have no names; if that is every other one, it is
    no table of symbols, and nothing comes out.
    """
    names = np.frombuffer(tables.names, dtype=np.uint8)
    blocks = len(tables.markers)
    start = np.zeros((blocks, BLOCK), dtype=np.intp)
    length = np.zeros((blocks, BLOCK), dtype=np.intp)
    at = tables.markers.copy()
    room = len(names)
    nothing = np.zeros(0, dtype=np.intp)
    if not room or blocks != -(-tables.num_syms // BLOCK):
        return nothing, nothing, 0
    for step in range(BLOCK):
        count, head = _token_count(names, np.minimum(at, room - 1))
        start[:, step], length[:, step] = at + head, count
        at = np.minimum(at + head + count, room)
        if step == (tables.num_syms - 1) % BLOCK:
            end_of_last = int(start[-1, step] + length[-1, step])
    bad = np.append(at[:-1] != tables.markers[1:], end_of_last > room)
    if 2 * int(bad.sum()) >= blocks:
        return nothing, nothing, 0
    length[bad] = 0
    lost = int(np.repeat(bad, BLOCK)[: tables.num_syms].sum())
    return start.reshape(-1)[: tables.num_syms], length.reshape(-1)[: tables.num_syms], lost


def _expand(tables: Tables, start: Index, length: Index) -> tuple[bytes, Index, Index] | None:
    """All names as one text, and where each begins and ends."""
    token_begin, token_length = _tokens(tables)
    names = np.frombuffer(tables.names, dtype=np.uint8)
    token = names[_spread(start, length)]
    ends = np.concatenate([[0], np.cumsum(token_length[token])])
    total = int(ends[-1])
    if total > _MAX_TEXT:
        return None
    table = np.frombuffer(tables.token_table, dtype=np.uint8)
    text = np.empty(total, dtype=np.uint8)
    cuts = [*np.searchsorted(ends, np.arange(0, total, _PIECE)).tolist(), len(token)]
    for low, high in pairwise(cuts):
        piece = token[low:high]
        text[ends[low] : ends[high]] = table[_spread(token_begin[piece], token_length[piece])]
    border = np.concatenate([[0], np.cumsum(length)])
    at = ends[border].astype(np.intp)
    return text.tobytes(), at[:-1], at[1:]


def _tokens(tables: Tables) -> tuple[Index, Index]:
    """Where each token's text begins in the token table, and its length."""
    table = np.frombuffer(tables.token_table, dtype=np.uint8)
    begin = np.minimum(tables.token_index, len(table)).astype(np.intp)
    nul = np.append(np.flatnonzero(table == 0), len(table))
    end = nul[np.searchsorted(nul, begin)]
    return begin, end - begin


def _spread(start: Index, length: Index) -> Index:
    """The indices start[0], ..., start[0] + length[0] - 1, start[1], ... of all runs."""
    total = int(length.sum())
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(total)


def _absolute(tables: Tables, word: int) -> U64 | None:
    """kallsyms_addresses: the addresses themselves."""
    del word
    return tables.values.astype(np.uint64) if tables.values.dtype.kind == "u" else None


def _absolute_percpu(tables: Tables, word: int) -> U64 | None:
    """CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is an address, the rest counts down."""
    if tables.relative_base is None or tables.values.dtype.kind != "i":
        return None
    offset = tables.values.astype(np.int64)
    relative = np.uint64(tables.relative_base) + (-1 - offset).astype(np.uint64)
    return np.where(offset >= 0, offset.astype(np.uint64), relative) & np.uint64(_top(word))


def _relative(tables: Tables, word: int) -> U64 | None:
    """kallsyms_relative_base and an unsigned offset."""
    if tables.relative_base is None or tables.values.dtype.kind != "i":
        return None
    offset = tables.values.astype(np.int64) & 0xFFFFFFFF
    return (np.uint64(tables.relative_base) + offset.astype(np.uint64)) & np.uint64(_top(word))


def _place_relative(tables: Tables, word: int) -> U64 | None:
    """Each offset counts from where it lies itself (v7.0 on), and there is no base."""
    if tables.relative_base is not None or tables.values.dtype.kind != "i":
        return None
    place = np.uint64(tables.values_vaddr) + np.arange(tables.num_syms, dtype=np.uint64) * np.uint64(4)
    return (place + tables.values.astype(np.int64).astype(np.uint64)) & np.uint64(_top(word))


FORMS = (_absolute, _absolute_percpu, _relative, _place_relative)


def _top(word: int) -> int:
    return MASK64 >> (64 - 8 * word)
