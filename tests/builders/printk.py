"""Kernel logs in memory, written as kernels write them: ring buffer, records, characters.

The ring follows prb_reserve(), data_alloc() and data_push_tail() of kernel/printk/printk_ringbuffer.c,
so which records are left after many is known from the writer's side alone.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdump_elftool.errors import FaultError

PAGE = 4096
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
EMPTY_LINE, FAILED = 3, 1
LOG_NEWLINE, LOG_PREFIX, LOG_CONT = 2, 4, 8
CPU = 1 << 31


@dataclass
class LogImage:
    """Memory by address, and the VMCOREINFO lines that describe it."""

    order: str
    word: int
    memory: list[tuple[int, bytearray]]
    keys: dict[str, str]
    holes: list[tuple[int, int]] = field(default_factory=list)
    reads: int = 0

    def read(self, vaddr: int, size: int, /) -> bytes:
        self.reads += 1
        for start, data in self.memory:
            if start <= vaddr and vaddr + size <= start + len(data):
                if any(vaddr < high and low < vaddr + size for low, high in self.holes):
                    break
                return bytes(data[vaddr - start : vaddr - start + size])
        raise FaultError("vaddr", vaddr, "not mapped")

    def _number(self, key: str, base: int = 10) -> int | None:
        return int(self.keys[key], base) if key in self.keys else None

    def symbol(self, name: str, /) -> int | None:
        return self._number(f"SYMBOL({name})", 16)

    def offset(self, name: str, /) -> int | None:
        return self._number(f"OFFSET({name})")

    def size(self, name: str, /) -> int | None:
        return self._number(f"SIZE({name})")

    def length(self, name: str, /) -> int | None:
        return self._number(f"LENGTH({name})")

    def number(self, name: str, /) -> int | None:
        return self._number(f"NUMBER({name})")

    def part(self, vaddr: int) -> tuple[bytearray, int]:
        """The memory around an address, to change it, and the address's index there."""
        for start, data in self.memory:
            if start <= vaddr < start + len(data):
                return data, vaddr - start
        raise KeyError(hex(vaddr))


@dataclass(frozen=True)
class Said:
    """A message as it was logged."""

    text: bytes
    ts_nsec: int = 0
    facility: int = 0
    level: int = 6
    flags: int = LOG_NEWLINE
    caller_id: int = 1


def kind_bytes(said: Said, order: str) -> bytes:
    """u8 facility; u8 flags:5, level:3."""
    bits = said.flags | said.level << 5 if order == "<" else said.flags << 3 | said.level
    return bytes((said.facility, bits))


def align(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass
class Desc:
    state: int
    id: int
    begin: int = 0
    next: int = 0
    seq: int = 0
    said: Said | None = None


class RingWriter:
    """A ring of 2**count_bits records and 2**size_bits bytes of text.

    ``fits_at_end``: a block may end exactly at the end of the data ring, as in newer kernels.
    """

    def __init__(self, order="<", word=8, count_bits=4, size_bits=9, fits_at_end=False, base=0xFFFF0000):
        self.order, self.word, self.fits_at_end, self.base = order, word, fits_at_end, base
        self.count, self.size, self.count_bits, self.size_bits = (
            1 << count_bits,
            1 << size_bits,
            count_bits,
            size_bits,
        )
        self.id_mask = (1 << (8 * word - 2)) - 1
        self.lpos_mask = (1 << 8 * word) - 1
        self.head_id = self.tail_id = -(self.count + 1) & self.id_mask
        self.head_lpos = self.tail_lpos = -self.size & self.lpos_mask
        self.descs = [Desc(RESERVED, 0) for _ in range(self.count)]
        self.descs[self.head_id % self.count] = Desc(REUSABLE, self.head_id)
        self.data = bytearray(self.size)
        self.next_seq = 0

    def push(self, said: Said, state: int = FINALIZED, lost: bool = False) -> Desc:
        """Log a message; ``lost``: there was no room for its text."""
        new_id = (self.head_id + 1) & self.id_mask
        if (new_id - self.tail_id) & self.id_mask >= self.count:
            self._drop_until_lpos_of(self.descs[self.tail_id % self.count])
            self.tail_id = (self.tail_id + 1) & self.id_mask
        self.head_id = new_id
        desc = Desc(state, new_id, seq=self.next_seq, said=said)
        self.next_seq += 1
        if lost:
            desc.begin = desc.next = FAILED
        elif not said.text:
            desc.begin = desc.next = EMPTY_LINE
        else:
            self._store(desc, said.text)
        self.descs[new_id % self.count] = desc
        return desc

    def expected(self) -> list[Desc]:
        """Records a reader must find, oldest first."""
        found = [desc for desc in self.descs if desc.said and desc.state in (COMMITTED, FINALIZED)]
        return sorted((desc for desc in found if desc.begin != FAILED), key=lambda desc: desc.seq)

    def _lap(self, lpos: int) -> int:
        return (lpos & self.lpos_mask) >> self.size_bits

    def _store(self, desc: Desc, text: bytes) -> None:
        size = align(self.word + len(text), self.word)
        assert size <= self.size // 2
        begin = self.head_lpos
        end = (begin + size) & self.lpos_mask
        wraps = self._lap(begin) != self._lap(end - 1 if self.fits_at_end else end)
        if wraps:
            end = ((self._lap(end) << self.size_bits) + size) & self.lpos_mask
        new_tail = (end - self.size) & self.lpos_mask
        for old in sorted((d for d in self.descs if d.said and d.state != REUSABLE), key=lambda d: d.seq):
            if not old.begin & 1 and 0 < (new_tail - old.begin) & self.lpos_mask <= self.size:
                self._reuse(old)
        at = 0 if wraps else begin % self.size
        self.data[at : at + size] = bytes(size)
        block = desc.id.to_bytes(self.word, "little" if self.order == "<" else "big") + text
        self.data[at : at + len(block)] = block
        desc.begin, desc.next, self.head_lpos = begin, end, end

    def _reuse(self, desc: Desc) -> None:
        desc.state = REUSABLE
        if not desc.next & 1:
            self.tail_lpos = desc.next

    def _drop_until_lpos_of(self, desc: Desc) -> None:
        if desc.state != REUSABLE:
            self._reuse(desc)

    def image(self) -> LogImage:
        """The ring in memory; every part begins on a page of its own."""
        word, order = self.word, self.order
        long = order + ("Q" if word == 8 else "I")
        descs, infos = bytearray(), bytearray()
        for desc in self.descs:
            state_var = desc.state << (8 * word - 2) | desc.id
            for value in (state_var, desc.begin, desc.next):
                descs += struct.pack(long, value)
            said = desc.said or Said(b"")
            infos += struct.pack(order + "QQH", desc.seq, said.ts_nsec, len(said.text))
            infos += kind_bytes(said, order) + struct.pack(order + "I", said.caller_id) + bytes(64)
        where = [self.base + PAGE]
        for part in (descs, infos):
            where.append(where[-1] + align(len(part), PAGE))
        pointer = struct.pack(long, self.base + 0x40).ljust(0x40, b"\0")
        pad = "4x" if word == 8 else ""
        ring = struct.pack(order + "I" + pad, self.count_bits)
        for value in (where[0], where[1], self.head_id, self.tail_id, 0):  # 0: last_finalized_seq
            ring += struct.pack(long, value)
        ring += struct.pack(order + "I" + pad, self.size_bits)
        for value in (where[2], self.head_lpos, self.tail_lpos, 0):  # 0: fail
            ring += struct.pack(long, value)
        keys = ring_keys(word) | {"SYMBOL(prb)": f"{self.base:x}"}
        parts = [(self.base, bytearray(pointer + ring))]
        parts += zip(where, (descs, infos, self.data), strict=True)
        return LogImage(order, word, parts, keys)


def ring_keys(word: int) -> dict[str, str]:
    """The lines of log_buf_vmcoreinfo_setup() of v6.1 for a machine of this word size."""
    offsets = {
        "printk_ringbuffer.desc_ring": 0, "printk_ringbuffer.text_data_ring": 6 * word,
        "prb_desc_ring.count_bits": 0, "prb_desc_ring.descs": word, "prb_desc_ring.infos": 2 * word,
        "prb_desc_ring.head_id": 3 * word, "prb_desc_ring.tail_id": 4 * word,
        "prb_desc.state_var": 0, "prb_desc.text_blk_lpos": word,
        "prb_data_blk_lpos.begin": 0, "prb_data_blk_lpos.next": word,
        "printk_info.seq": 0, "printk_info.ts_nsec": 8, "printk_info.text_len": 16,
        "printk_info.caller_id": 20, "printk_info.dev_info": 24,
        "prb_data_ring.size_bits": 0, "prb_data_ring.data": word,
        "prb_data_ring.head_lpos": 2 * word, "prb_data_ring.tail_lpos": 3 * word,
        "atomic_long_t.counter": 0,
    }  # fmt: skip
    sizes = {
        "printk_ringbuffer": 11 * word, "prb_desc_ring": 6 * word, "prb_desc": 3 * word,
        "prb_data_blk_lpos": 2 * word, "printk_info": 88, "prb_data_ring": 4 * word,
    }  # fmt: skip
    return {
        **{f"OFFSET({name})": str(value) for name, value in offsets.items()},
        **{f"SIZE({name})": str(value) for name, value in sizes.items()},
    }


def record_bytes(said: Said, order: str, *, v35: bool = False, caller: bool = False) -> bytes:
    """``struct printk_log`` with text; ``v35``: level was 16 bits then; ``caller``: CONFIG_PRINTK_CALLER."""
    kind = kind_bytes(said, order)
    if v35:
        kind = struct.pack(order + "H", said.facility << 3 | said.level)
    head = 16 + 4 * caller
    size = align(head + len(said.text), 8 if not caller else 4)
    header = struct.pack(order + "QHHH", said.ts_nsec, size, len(said.text), 0) + kind
    header += struct.pack(order + "I", said.caller_id) if caller else b""
    return (header + said.text).ljust(size, b"\0")


def record_log(
    messages: list[Said], order="<", word=8, *, size=1024, name="printk_log", first=0, v35=False,
    caller=False, base=0xFFFF0000,
) -> LogImage:  # fmt: skip
    """Records from index ``first`` on; one that does not fit before the end begins at 0."""
    log_buf = bytearray(size)
    at = first
    head = 16 + 4 * caller
    for said in messages:
        data = record_bytes(said, order, v35=v35, caller=caller)
        if at + len(data) + head > size:
            log_buf[at : at + head] = bytes(head)
            at = 0
        log_buf[at : at + len(data)] = data
        at += len(data)
    long = order + ("Q" if word == 8 else "I")
    variables = struct.pack(long, base + PAGE).ljust(8, b"\0") + struct.pack(order + "III", size, first, at)
    keys = {
        "SYMBOL(log_buf)": f"{base:x}", "SYMBOL(log_buf_len)": f"{base + 8:x}",
        "SYMBOL(log_first_idx)": f"{base + 12:x}", "SYMBOL(log_next_idx)": f"{base + 16:x}",
        f"SIZE({name})": str(head), f"OFFSET({name}.ts_nsec)": "0", f"OFFSET({name}.len)": "8",
        f"OFFSET({name}.text_len)": "10", f"OFFSET({name}.dict_len)": "12",
    }  # fmt: skip
    return LogImage(order, word, [(base, bytearray(variables)), (base + PAGE, log_buf)], keys)


def char_log(text: bytes, order="<", word=8, *, size=1024, base=0xFFFF0000, cleared=False) -> LogImage:
    """The last ``size`` characters of ``text``; ``cleared``: after ``dmesg -c``."""
    log_buf = bytearray(size)
    for at, char in enumerate(text):
        log_buf[at % size] = char
    long = order + ("Q" if word == 8 else "I")
    variables = struct.pack(long, base + PAGE).ljust(8, b"\0")
    variables += struct.pack(order + "III", size, len(text), 0 if cleared else min(len(text), size))
    keys: Mapping[str, str] = {
        "SYMBOL(log_buf)": f"{base:x}", "SYMBOL(log_buf_len)": f"{base + 8:x}",
        "SYMBOL(log_end)": f"{base + 12:x}", "SYMBOL(logged_chars)": f"{base + 16:x}",
    }  # fmt: skip
    return LogImage(order, word, [(base, bytearray(variables)), (base + PAGE, log_buf)], dict(keys))
