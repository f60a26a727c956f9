"""The log before v5.10: records in one buffer (v3.5 on), plain characters before that.

Source: kernel/printk/printk.c (kernel/printk.c before v3.11) of those kernels.  A record is a
``struct printk_log`` (``struct log`` up to v3.10) with its text behind it; length 0 means that the
next record is at the beginning of the buffer.  Older kernels keep the characters that went to the
console, level and time stamp in front of each line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.printk_record import (
    CHARS,
    MAX_BUFFER,
    MAX_RECORDS,
    RECORDS,
    Collector,
    Log,
    Record,
    flags_and_level,
)
from kdump_elftool.plain.target import Field, Target, field, read_pieces, struct_size, unsigned, variable

_MEMBERS = ("ts_nsec", "len", "text_len", "dict_len", "caller_id")
NEEDS = (
    *("SYMBOL(log_first_idx)", "SYMBOL(log_next_idx)", "SYMBOL(log_buf)", "SYMBOL(log_buf_len)"),
    *("SYMBOL(log_end)", "SYMBOL(logged_chars)"),
    *(
        question
        for name in ("printk_log", "log")
        for question in (f"SIZE({name})", *(f"OFFSET({name}.{member})" for member in _MEMBERS))
    ),
)
_LINE = re.compile(rb"(?:<(?P<pri>\d{1,3})>)?(?:\[ *(?P<sec>\d{1,10})\.(?P<usec>\d{6})\] ?)?", re.DOTALL)
_MAX_CHARS = 1 << 26


class _RecordLayout(NamedTuple):
    size: int
    ts_nsec: Field
    len: Field
    text_len: Field
    kind: int  # where facility, flags and level are
    caller_id: Field | None


def read_record_log(target: Target) -> Log:
    """Records from log_first_idx to log_next_idx.  Raises IdentityError, FaultError."""
    layout = _record_layout(target)
    log_buf, length = _buffer(target)
    first, after = (variable(target, name, 4) for name in ("log_first_idx", "log_next_idx"))
    if first >= length or after > length:
        raise IdentityError(
            "SYMBOL(log_next_idx)",
            f"the log of {length} bytes cannot have records from {first} to {after}",
            hint="the dump is damaged there",
        )
    out = Collector(RECORDS)
    found = list(_walk(target, layout, log_buf, length, first, after, out))
    # v3.5 kept facility and level in 16 bits; later the second byte is level and flags, never 0 throughout
    old = not any(kind[1] for _, kind, _, _ in found)
    for ts_nsec, kind, caller_id, text in found:
        flags, level = flags_and_level(kind[1], target.order)
        facility = kind[0]
        if old:
            value = int.from_bytes(kind, "little" if target.order == "<" else "big")
            facility, level = value >> 3, value & 7
        out.add(Record(text, None, ts_nsec, facility, level, caller_id, flags))
    return out.log()


def _record_layout(target: Target) -> _RecordLayout:
    name = "printk_log" if target.size("printk_log") is not None else "log"
    size = struct_size(target, name)
    kind = field(target, f"{name}.dict_len", 4).offset + 2
    # CONFIG_PRINTK_CALLER (v5.1) shows in the size only
    caller_id = Field(kind + 2, 4) if size >= kind + 6 else None
    return _RecordLayout(
        size,
        field(target, f"{name}.ts_nsec", 8),
        field(target, f"{name}.len", 2),
        field(target, f"{name}.text_len", 2),
        kind,
        caller_id,
    )


_Found = tuple[int, bytes, "int | None", bytes]


def _walk(
    target: Target, layout: _RecordLayout, log_buf: int, length: int, first: int, after: int, out: Collector
) -> list[_Found]:
    """The records in order.  Ends at the first one that cannot be: nothing tells where the next is."""
    result: list[_Found] = []
    at, wrapped = first, False
    while at != after:
        if len(result) >= MAX_RECORDS:
            out.skip("the rest: too many")
            break
        try:
            data = target.read(log_buf + at, layout.size) if at + layout.size <= length else b""
        except FaultError:
            out.skip("the rest: not in the dump")
            break
        size = layout.len.at(data, 0, target.order) if data else 0
        if size == 0 and not wrapped and at > after:
            at, wrapped = 0, True
            continue
        text_len = layout.text_len.at(data, 0, target.order)
        end = at + size
        overrun = end > length or (end > after and (wrapped or first < after))
        if size < layout.size + text_len or overrun:
            out.skip("the rest: damaged")
            break
        try:
            text = target.read(log_buf + at + layout.size, text_len)
        except FaultError:
            out.skip("not in the dump")
        else:
            ts_nsec = layout.ts_nsec.at(data, 0, target.order)
            caller_id = layout.caller_id.at(data, 0, target.order) if layout.caller_id else None
            result.append((ts_nsec, data[layout.kind : layout.kind + 2], caller_id, text))
        at = end
    return result


def read_char_log(target: Target) -> Log:
    """The characters up to log_end, as many as the buffer holds.  Raises IdentityError, FaultError."""
    log_buf, length = _buffer(target)
    log_end = variable(target, "log_end", 4)
    logged = log_end
    if target.symbol("logged_chars") is not None:
        logged = max(logged, variable(target, "logged_chars", 4))  # log_end starts anew after 4 GB
    if length & (length - 1) or length > _MAX_CHARS:
        raise IdentityError("SYMBOL(log_buf_len)", f"the log cannot have {length} bytes: damaged")
    count = min(logged, length)
    begin = (log_end - count) % length
    tail = min(count, length - begin)
    out = Collector(CHARS)
    text = bytearray()
    for at, size in ((begin, tail), (0, count - tail)):
        piece = read_pieces(target, log_buf + at, size)
        out.skip("pages not in the dump", len(piece.holes))
        done = 0
        for low, high in piece.holes:  # what stands before and after is not one line
            text += piece.data[done:low] + b"\n"
            done = high
        text += piece.data[done:]
    for line in bytes(text).split(b"\n"):
        if line:
            out.add(_line_record(line))
    return out.log()


def _line_record(line: bytes) -> Record:
    match = _LINE.match(line)
    assert match is not None  # every part of the pattern may be missing
    pri = None if match["pri"] is None else int(match["pri"])
    ts_nsec = None
    if match["sec"] is not None:
        ts_nsec = int(match["sec"]) * 10**9 + int(match["usec"]) * 1000
    facility, level = (None, None) if pri is None else (pri >> 3, pri & 7)
    return Record(line[match.end() :], None, ts_nsec, facility, level, None, 0)


def _buffer(target: Target) -> tuple[int, int]:
    """Address and size of log_buf.  log_buf_len is an int, and 32 bits wide everywhere."""
    length = variable(target, "log_buf_len", 4)
    if not 0 < length <= MAX_BUFFER:
        raise IdentityError("SYMBOL(log_buf_len)", f"the log cannot have {length} bytes: damaged")
    vaddr = target.symbol("log_buf")
    if vaddr is None:
        raise IdentityError("SYMBOL(log_buf)", "the address of log_buf is not known")
    return unsigned(target, vaddr, target.word), length
