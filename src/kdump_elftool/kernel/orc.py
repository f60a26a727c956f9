"""The kernel's unwind tables (ORC, x86_64 since v4.14): where each instruction's caller left its registers.

Two tables side by side: .orc_unwind_ip has for each entry the distance from its own place to the first
instruction it describes, .orc_unwind the entry (struct orc_entry): sp_offset and bp_offset, 16 bits each,
and 16 bits of flags: the register that the caller's stack pointer counts from (bits 0 to 3), the one for
the saved rbp (4 to 7), and what the frame is, which came in three forms:

=========  =======================  ==================  ======
of         type                     end of the stack    signal
=========  =======================  ==================  ======
v4.14      bits 8-9, from 0: call   bit 10 (v4.18)      by type
v6.3       bits 8-9, from 0: call   bit 11              bit 10
v6.4       bits 8-10, 0: no frame,  type 1              bit 11
           1: end, from 2: call
=========  =======================  ==================  ======

v7.1 gave the registers other numbers.  Distributions carry all of this to older kernels, so the entries
themselves tell the form; .orc_header (v6.4; a hash of the header file) is asked where there is one.

References: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c and tools/objtool/arch/x86/orc.c
of v4.14, v4.18, v5.12, v6.3, v6.4, v7.1; scripts/orc_hash.sh.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from kdump_elftool.addr import U64, Bools, Index, Ranges
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.memory.virtual import VirtualMemory

log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
I16 = npt.NDArray[np.int16]

ENTRY = np.dtype([("sp_offset", "<i2"), ("bp_offset", "<i2"), ("flags", "<u2")])
MOST_ENTRIES = 3 << 20
"""Eight times those of a distribution's kernel."""
_HEADER_SIZE = 20


class Kind(IntEnum):
    """What a frame is: ORC_TYPE_* of v6.4."""

    UNDEFINED = 0
    END = 1
    CALL = 2
    REGS = 3
    REGS_PARTIAL = 4


class Base(IntEnum):
    """What an offset counts from: ORC_REG_* of v6.4, with v7.1's AX."""

    UNDEFINED = 0
    PREV_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9
    AX = 10


_COLUMNS = ("ip", "kind", "sp_base", "sp_offset", "bp_base", "bp_offset", "signal")
_NONE = 0xFF
_OLD = (*range(11), *[_NONE] * 5)
_NEW = (
    Base.UNDEFINED,
    Base.AX,
    Base.DX,
    Base.SP,
    Base.BP,
    Base.DI,
    Base.R10,
    Base.R13,
    Base.PREV_SP,
    Base.SP_INDIRECT,
    Base.BP_INDIRECT,
    *[_NONE] * 5,
)


@dataclass(frozen=True)
class OrcFormat:
    """One form of the flags: masks within them; ``first`` is the type number of Kind.CALL."""

    name: str
    registers: tuple[int, ...]
    types: int
    first: int
    end: int
    signal: int

    @property
    def padding(self) -> int:
        """Bits that are always 0."""
        return 0xFFFF & ~(0xFF | self.types | self.end | self.signal)


V4_14 = OrcFormat("v4.14", _OLD, 0x300, 0, 0x400, 0)
V6_3 = OrcFormat("v6.3", _OLD, 0x300, 0, 0x800, 0x400)
V6_4 = OrcFormat("v6.4", _OLD, 0x700, 2, 0, 0x800)
V7_1 = OrcFormat("v7.1", _NEW, 0x700, 2, 0, 0x800)
FORMATS = (V4_14, V6_3, V6_4, V7_1)
HASHES = {
    bytes.fromhex("db84aed4103b31dd51e017f8f79783ca985c2c51"): V6_3,
    bytes.fromhex("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24"): V6_4,
    bytes.fromhex("137c36ad7627c4dd55932176bb0ecdbd5041fc82"): V7_1,
}
"""What .orc_header holds: SHA-1 of the definitions in orc_types.h."""
_ENOUGH = 0.9


@dataclass(frozen=True)
class OrcTable:
    """One row for each stretch of code that has the same rules; it goes on to the next row's ``ip``.

    ``ip`` uint64, ascending, each once; ``kind`` (Kind) and ``sp_base``, ``bp_base`` (Base) uint8;
    ``sp_offset``, ``bp_offset`` int16, bytes; ``signal``: the next frame was interrupted, not called from.
    The last row ends at ``end``.  ``damage`` says in words what was left out.
    """

    ip: U64
    kind: U8
    sp_base: U8
    sp_offset: I16
    bp_base: U8
    bp_offset: I16
    signal: Bools
    end: int
    format: OrcFormat
    damage: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ip)


def joined(tables: Sequence[OrcTable]) -> OrcTable:
    """One table of several, of code that lies apart; between them no frame is described.

    Raises ValueError for none.
    """
    if not tables:
        raise ValueError("no tables to join")
    ends = np.array([table.end for table in tables], dtype=np.uint64)
    columns: dict[str, npt.NDArray[np.generic]] = {}
    for name in _COLUMNS:
        parts = [getattr(table, name) for table in tables]
        columns[name] = np.concatenate([*parts, np.zeros(len(ends), dtype=parts[0].dtype)])
    columns["ip"][-len(ends) :] = ends
    # where one ends at the first row of another, that row comes last and counts
    order = np.lexsort((columns["kind"] != Kind.UNDEFINED, columns["ip"]))
    ip = columns["ip"][order]
    order = order[np.append(ip[1:] != ip[:-1], True)]
    damage = tuple(text for table in tables for text in table.damage)
    rows: dict[str, Any] = {name: column[order] for name, column in columns.items()}
    return OrcTable(**rows, end=int(ends.max()), format=tables[0].format, damage=damage)


def without(table: OrcTable, described: Ranges) -> OrcTable:
    """The table less the code that other call-frame information describes.

    Compilers know nothing of the stack that inline assembly switches to (call_on_irqstack() since v5.12),
    so that where rsp points to the old stack pointer this table is the one to be believed.
    """
    if not len(described) or not len(table):
        return table
    edges = np.concatenate([table.ip, described.start, described.end])
    ip = np.unique(edges[(edges >= table.ip[0]) & (edges < np.uint64(table.end))])
    row = np.searchsorted(table.ip, ip, side="right") - 1
    at = np.searchsorted(described.start, ip, side="right") - 1
    inside = (at >= 0) & (ip < described.end[at])
    left_out = inside & (table.sp_base[row] != Base.SP_INDIRECT)
    columns: dict[str, Any] = {name: getattr(table, name)[row] for name in _COLUMNS}
    columns |= {"ip": ip, "kind": np.where(left_out, np.uint8(Kind.UNDEFINED), table.kind[row])}
    same = np.ones(len(ip), dtype=np.bool_)
    same[:1] = False
    for name in _COLUMNS[1:]:
        same[1:] &= columns[name][1:] == columns[name][:-1]
    gone = columns["kind"] == Kind.UNDEFINED
    same[1:] |= gone[1:] & gone[:-1]
    return replace(table, **{name: column[~same] for name, column in columns.items()})


def read_kernel_orc(
    memory: VirtualMemory, known: Knowledge, window: tuple[int, int], *, at_rest: bool = False
) -> OrcTable | None:
    """The table of the kernel itself, or None with the reason in the log.

    ``window`` is where the kernel image may lie: [start, end).  ``at_rest``: of an image that was not
    started; until v5.6 the table had no order before (scripts/sorttable.c gives it one since).
    """
    places = [
        known.symbol(f"__{edge}_orc_unwind{which}") for which in ("_ip", "") for edge in ("start", "stop")
    ]
    if any(place is None for place in places):
        log.info("ORC: the kernel has no symbols of its unwind tables")
        return None
    ip_start, ip_stop, start, stop = (place or 0 for place in places)
    count = (ip_stop - ip_start) // 4
    if not 0 < count <= MOST_ENTRIES or (ip_stop - ip_start) % 4 or stop - start != count * ENTRY.itemsize:
        log.info("ORC: tables of %d and %d bytes do not belong together", ip_stop - ip_start, stop - start)
        return None
    raw = read_raw(memory, ip_start, start, count)
    form = identify(raw.entries["flags"][raw.good], _header(memory, known))
    if form is None:
        log.info("ORC: the entries have no form that is known")
        return None
    table = decode(raw, form, window, ordered=not at_rest)
    outside = (raw.ip < np.uint64(window[0])) | (raw.ip >= np.uint64(window[1]))
    return replace(table, damage=table.damage + _damage("entries are of no code of the kernel", outside))


def _header(memory: VirtualMemory, known: Knowledge) -> bytes:
    start, stop = known.symbol("__start_orc_header"), known.symbol("__stop_orc_header")
    if start is None or stop is None or stop - start != _HEADER_SIZE:
        return b""
    try:
        return memory.read(start, _HEADER_SIZE)
    except FaultError:
        return b""


@dataclass(frozen=True)
class RawOrc:
    """Both tables as they lie in memory: addresses (uint64), entries (ENTRY), and which could be read.

    ``unsure``: the address of the next entry could not be read, so nobody knows where this one ends.
    """

    ip: U64
    entries: npt.NDArray[np.void]
    good: Bools
    unsure: Bools


def read_raw(memory: VirtualMemory, ip_vaddr: int, vaddr: int, count: int) -> RawOrc:
    """Read ``count`` entries, at most MOST_ENTRIES; what is not in the dump is named in the result."""
    distance, has_ip = _column(memory, ip_vaddr, count, np.dtype("<i4"))
    entries, has_entry = _column(memory, vaddr, count, ENTRY)
    place = np.uint64(ip_vaddr) + np.arange(count, dtype=np.uint64) * np.uint64(4)
    ip = place + distance.astype(np.int64).view(np.uint64)
    unsure = ~np.append(has_ip[1:], True)
    # an entry that is not there says that nothing is known from its address on, which is as good
    entries[~has_entry] = 0
    return RawOrc(ip[has_ip], entries[has_ip], has_entry[has_ip], unsure[has_ip])


def _column(
    memory: VirtualMemory, vaddr: int, count: int, dtype: np.dtype[np.generic]
) -> tuple[npt.NDArray[np.void], Bools]:
    """An array out of memory, and which elements could be read whole."""
    buffer = bytearray(count * dtype.itemsize)
    there = np.ones(count, dtype=np.bool_)
    for low, high in memory.read_present(vaddr, memoryview(buffer)):
        there[low // dtype.itemsize : -(-high // dtype.itemsize)] = False
    return np.frombuffer(buffer, dtype=dtype), there


def identify(flags: U16, header: bytes = b"") -> OrcFormat | None:
    """The form of a kernel's entries: most of them must make sense, and most frames be calls.

    ``header``, if it is known, is believed as long as the entries don't contradict it.
    """
    named = HASHES.get(header)
    scores = {form: _score(flags, form) for form in FORMATS}
    if named is not None and scores[named] >= _ENOUGH:
        return named
    best = max(FORMATS, key=lambda form: scores[form])
    return best if scores[best] >= _ENOUGH else None


def _score(flags: U16, form: OrcFormat) -> float:
    """The share of entries that make sense in this form; 0 if it isn't calls by rsp for the most part."""
    if not len(flags):
        return 0.0
    # a kernel has few different flags
    values, counts = np.unique(flags, return_counts=True)
    kind, sp_base, _, _, valid = _split(values, form)
    frames = kind > Kind.END
    calls = frames & (kind == Kind.CALL) & (sp_base == Base.SP)
    if 2 * int(counts[calls & valid].sum()) <= int(counts[frames].sum()):
        return 0.0
    return float(counts[valid].sum() / counts.sum())


def _split(flags: U16, form: OrcFormat) -> tuple[U8, U8, U8, Bools, Bools]:
    """kind, sp_base, bp_base, signal, and which flags an objtool can have written."""
    registers = np.array(form.registers, dtype=np.uint8)
    sp_base, bp_base = registers[flags & 0xF], registers[flags >> 4 & 0xF]
    kind = ((flags & form.types) >> 8).astype(np.uint8)
    end = (flags & form.end) != 0
    signal = (flags & form.signal) != 0
    valid = (flags & form.padding) == 0
    if form.first:
        frame = kind > Kind.END
    else:
        # sp_reg 0 is no frame there, or the end
        frame = sp_base != Base.UNDEFINED
        valid &= ~end | ~frame
        valid &= frame | (kind == 0)
        kind = np.where(frame, kind + np.uint8(Kind.CALL), np.where(end, Kind.END, Kind.UNDEFINED))
        kind = kind.astype(np.uint8)
    if not form.signal:
        signal = kind > Kind.CALL
    valid &= kind <= Kind.REGS_PARTIAL
    valid &= frame | ((flags & 0xFF == 0) & ~signal)
    valid &= ~frame | ((sp_base >= Base.DX) & (sp_base <= Base.AX))
    valid &= (bp_base == Base.UNDEFINED) | (bp_base == Base.PREV_SP) | (bp_base == Base.BP)
    return kind, sp_base, bp_base, signal, valid


def decode(raw: RawOrc, form: OrcFormat, window: tuple[int, int], *, ordered: bool = True) -> OrcTable:
    """The rows within [start, end) of ``window``, in order.  What makes no sense describes no frame.

    That they were in no order is damage if they should have been ``ordered``.
    """
    flags = raw.entries["flags"]
    kind, sp_base, bp_base, signal, valid = _split(flags, form)
    known = valid & raw.good & ~raw.unsure
    damage = _damage("entries make no sense", ~valid & raw.good)
    damage += _damage("entries are not in the dump", ~raw.good | raw.unsure)
    kind = np.where(known, kind, np.uint8(Kind.UNDEFINED)).astype(np.uint8)
    start, end = window
    inside = (raw.ip >= np.uint64(start)) & (raw.ip < np.uint64(end))
    rows = np.flatnonzero(inside)
    if len(rows) and not (np.diff(raw.ip[rows].view(np.int64)) >= 0).all():
        if ordered:
            damage += _damage("entries are out of order", np.diff(raw.ip[rows].view(np.int64)) < 0)
        rows = rows[np.argsort(raw.ip[rows], kind="stable")]
    rows = _one_each(rows, raw.ip, kind)
    return OrcTable(
        ip=raw.ip[rows],
        kind=kind[rows],
        sp_base=sp_base[rows],
        sp_offset=raw.entries["sp_offset"][rows].astype(np.int16),
        bp_base=bp_base[rows],
        bp_offset=raw.entries["bp_offset"][rows].astype(np.int16),
        signal=signal[rows] & known[rows],
        end=end,
        format=form,
        damage=damage,
    )


def _one_each(rows: Index, ip: U64, kind: U8) -> Index:
    """Of rows with the same address the last one that describes a frame: the others end one before."""
    following = np.append(ip[rows[1:]] == ip[rows[:-1]], False) if len(rows) else np.zeros(0, np.bool_)
    if not following.any():
        return rows
    order = np.lexsort((np.arange(len(rows)), kind[rows] != Kind.UNDEFINED, ip[rows]))
    rows = rows[order]
    last = np.append(ip[rows[1:]] != ip[rows[:-1]], True)
    each: Index = rows[last]
    return each


def _damage(what: str, mask: Bools) -> tuple[str, ...]:
    count = int(mask.sum())
    return (f"{count} {what}",) if count else ()
