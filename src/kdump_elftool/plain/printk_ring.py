"""The log as a ring buffer of descriptors and text blocks: v5.10 on.

Source: kernel/printk/printk_ringbuffer.c and .h.  A descriptor's state and id share one long; the
text of a record is a block of the data ring that begins with the descriptor's id.  Positions in the
data ring (lpos) grow forever, so their upper bits count the laps.  A block never crosses the end:
one that would begins at index 0 of the next lap.  All numbers are checked before use, and the number
of records and the sum of their texts are bounded by what the ring can hold.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.printk_record import (
    MAX_BUFFER,
    MAX_RECORDS,
    RING,
    Collector,
    Log,
    Record,
    flags_and_level,
)
from kdump_elftool.plain.target import (
    Field,
    Pieces,
    Target,
    field,
    read_pieces,
    struct_size,
    unsigned,
    variable,
)

_MEMBERS = {
    "printk_ringbuffer": ("desc_ring", "text_data_ring"),
    "prb_desc_ring": ("count_bits", "descs", "infos", "head_id", "tail_id"),
    "prb_data_ring": ("size_bits", "data"),
    "prb_data_blk_lpos": ("begin", "next"),
    "prb_desc": ("text_blk_lpos", "state_var"),
    "printk_info": ("seq", "ts_nsec", "text_len", "caller_id"),
    "atomic_long_t": ("counter",),
}
NEEDS = (
    "SYMBOL(prb)",
    *(f"SIZE({name})" for name in _MEMBERS),
    *(f"OFFSET({name}.{member})" for name, members in _MEMBERS.items() for member in members),
)
_RESERVED, _COMMITTED, _FINALIZED, _REUSABLE = range(4)
_EMPTY_LINE_LPOS = 3  # NO_LPOS in older kernels: a record that has no text by intention
_BATCH = 512
_LARGEST = 256
"""Bytes of a prb_desc, which has 24, or a printk_info, which has 88; _BATCH times that is read at once."""

UNREADABLE = "not in the dump"
DAMAGED = "damaged"
UNFINISHED = "being written"
LOST = "text given up by the kernel"


class _Layout(NamedTuple):
    desc_size: int
    state_var: Field
    begin: Field
    next: Field
    info_size: int
    seq: Field
    ts_nsec: Field
    text_len: Field
    caller_id: Field


class _Ring(NamedTuple):
    """The ring's own numbers.  ``id_mask`` are the bits of a descriptor's id in its state."""

    order: str
    word: int
    nr_descs: int
    descs: int
    infos: int
    head_id: int
    tail_id: int
    data: int
    size_bits: int
    layout: _Layout

    @property
    def id_mask(self) -> int:
        return (1 << (8 * self.word - 2)) - 1

    @property
    def data_size(self) -> int:
        return 1 << self.size_bits


class _Desc(NamedTuple):
    """One descriptor and its info; ``begin`` and ``next`` are positions in the data ring."""

    id: int
    begin: int
    next: int
    seq: int
    ts_nsec: int
    text_len: int
    facility: int
    flags: int
    level: int
    caller_id: int


def read_ring(target: Target) -> Log:
    """All records between the ring's tail and head.  Raises IdentityError, FaultError."""
    ring = _open(target)
    out = Collector(RING)
    total = ((ring.head_id - ring.tail_id) & ring.id_mask) + 1
    usable = min(total, ring.nr_descs, MAX_RECORDS)
    if total <= ring.nr_descs:
        out.skip("too many", total - usable)
    else:  # impossible: all descriptors are looked at, and each says itself whose it is
        out.skip("damaged head or tail of the ring")
    room = ring.data_size
    at = (ring.head_id - usable + 1) & ring.id_mask
    while usable:
        index = at % ring.nr_descs
        step = min(_BATCH, usable, ring.nr_descs - index)
        for desc in _batch(target, ring, at, step, out):
            room -= _store(target, ring, desc, room, out)
        at = (at + step) & ring.id_mask
        usable -= step
    return out.log()


def _open(target: Target) -> _Ring:
    word = target.word
    base = variable(target, "prb", word)

    def number(name: str, width: int, within: int) -> int:
        return unsigned(target, base + within + field(target, name, width).offset, width)

    desc_ring = field(target, "printk_ringbuffer.desc_ring", struct_size(target, "prb_desc_ring")).offset
    data_ring = field(target, "printk_ringbuffer.text_data_ring", struct_size(target, "prb_data_ring")).offset
    counter = target.offset("atomic_long_t.counter") or 0
    count_bits = number("prb_desc_ring.count_bits", 4, desc_ring)
    size_bits = number("prb_data_ring.size_bits", 4, data_ring)
    if not 1 <= count_bits <= 31 or not 1 <= size_bits <= MAX_BUFFER.bit_length() - 1:
        raise IdentityError(
            "SYMBOL(prb)",
            f"the log at {base:#x} cannot be real: 2^{count_bits} records, 2^{size_bits} bytes",
            hint="the dump is damaged there",
        )
    return _Ring(
        order=target.order,
        word=word,
        nr_descs=1 << count_bits,
        descs=number("prb_desc_ring.descs", word, desc_ring),
        infos=number("prb_desc_ring.infos", word, desc_ring),
        head_id=number("prb_desc_ring.head_id", word, desc_ring + counter),
        tail_id=number("prb_desc_ring.tail_id", word, desc_ring + counter),
        data=number("prb_data_ring.data", word, data_ring),
        size_bits=size_bits,
        layout=_layout(target, counter),
    )


def _layout(target: Target, counter: int) -> _Layout:
    word = target.word
    block = field(target, "prb_desc.text_blk_lpos", struct_size(target, "prb_data_blk_lpos")).offset
    begin, after = (field(target, f"prb_data_blk_lpos.{name}", word).offset for name in ("begin", "next"))
    state_var = field(target, "prb_desc.state_var", word).offset
    return _Layout(
        desc_size=struct_size(target, "prb_desc", _LARGEST),
        state_var=Field(state_var + counter, word),
        begin=Field(block + begin, word),
        next=Field(block + after, word),
        info_size=struct_size(target, "printk_info", _LARGEST),
        seq=field(target, "printk_info.seq", 8),
        ts_nsec=field(target, "printk_info.ts_nsec", 8),
        text_len=field(target, "printk_info.text_len", 4),  # with facility, flags and level behind it
        caller_id=field(target, "printk_info.caller_id", 4),
    )


def _batch(target: Target, ring: _Ring, first: int, step: int, out: Collector) -> list[_Desc]:
    """The records of ``step`` descriptors that lie in one stretch."""
    layout, index = ring.layout, first % ring.nr_descs
    descs = read_pieces(target, ring.descs + index * layout.desc_size, step * layout.desc_size)
    if descs.nothing:  # as in a ring that only claims to be large: not one by one
        out.skip(UNREADABLE, step)
        return []
    infos = read_pieces(target, ring.infos + index * layout.info_size, step * layout.info_size)
    result = []
    for nr in range(step):
        desc = _desc(ring, descs, infos, nr, (first + nr) & ring.id_mask)
        if isinstance(desc, str):
            out.skip(desc)
        elif desc is not None:
            result.append(desc)
    return result


def _desc(ring: _Ring, descs: Pieces, infos: Pieces, nr: int, wanted: int) -> _Desc | str | None:
    """A descriptor; None when it holds no record, text when it ought to but does not: why."""
    layout, order = ring.layout, ring.order
    base, info = nr * layout.desc_size, nr * layout.info_size
    if not descs.whole(base, base + layout.desc_size):
        return UNREADABLE
    state_var = layout.state_var.at(descs.data, base, order)
    state = state_var >> (8 * ring.word - 2)
    if state_var & ring.id_mask != wanted:
        return DAMAGED
    if state in (_REUSABLE, _RESERVED):
        return None if state == _REUSABLE else UNFINISHED
    if not infos.whole(info, info + layout.info_size):
        return UNREADABLE
    seq = layout.seq.at(infos.data, info, order)
    if seq % ring.nr_descs != wanted % ring.nr_descs:
        return DAMAGED
    text_len = Field(layout.text_len.offset, 2)
    kind = info + layout.text_len.offset + 2
    flags, level = flags_and_level(infos.data[kind + 1], order)
    return _Desc(
        id=wanted,
        begin=layout.begin.at(descs.data, base, order),
        next=layout.next.at(descs.data, base, order),
        seq=seq,
        ts_nsec=layout.ts_nsec.at(infos.data, info, order),
        text_len=text_len.at(infos.data, info, order),
        facility=infos.data[kind],
        flags=flags,
        level=level,
        caller_id=layout.caller_id.at(infos.data, info, order),
    )


def _store(target: Target, ring: _Ring, desc: _Desc, room: int, out: Collector) -> int:
    """Add the record with its text; returns how much of the data ring it takes."""
    text = _text(target, ring, desc, room)
    if isinstance(text, str):
        out.skip(text)
        return 0
    seq, ts, caller_id = desc.seq, desc.ts_nsec, desc.caller_id
    out.add(Record(text, seq, ts, desc.facility, desc.level, caller_id, desc.flags))
    return ring.word + len(text) if text else 0


def _text(target: Target, ring: _Ring, desc: _Desc, room: int) -> bytes | str:
    """The record's text, or why there is none."""
    if desc.begin & 1 and desc.next & 1:
        return b"" if desc.begin == desc.next == _EMPTY_LINE_LPOS else LOST
    block = _block(ring, desc.begin, desc.next)
    if block is None:
        return DAMAGED
    index, size = block
    length = min(desc.text_len, size - ring.word)
    if ring.word + length > room:  # texts never overlap
        return DAMAGED
    try:
        data = target.read(ring.data + index, ring.word + length)
    except FaultError:
        return UNREADABLE
    if Field(0, ring.word).at(data, 0, ring.order) != desc.id:
        return DAMAGED
    return data[ring.word :]


def _block(ring: _Ring, begin: int, after: int) -> tuple[int, int] | None:
    """Index and size of a block in the data ring; None when the two positions cannot be."""
    lpos_mask = (1 << (8 * ring.word)) - 1
    lap, index = begin >> ring.size_bits, begin & (ring.data_size - 1)
    size = (after - begin) & lpos_mask
    # A block that ends exactly at the end of the ring did not wrap; kernels that let it wrap never
    # store such a position, as its next one is then one block into the lap.
    last_lap = ((after - 1) & lpos_mask) >> ring.size_bits
    if last_lap == (lap + 1) & (lpos_mask >> ring.size_bits):
        index, size = 0, after & (ring.data_size - 1)
    elif last_lap != lap:
        return None
    aligned = begin % ring.word == 0 and after % ring.word == 0
    return (index, size) if aligned and ring.word < size <= ring.data_size - index else None
