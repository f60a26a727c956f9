"""kallsyms tables as scripts/kallsyms.c lays them out, in every form there was since v4.6."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kdump_elftool.addr import align_up

Symbol = tuple[int, str, str]
"""Address, type letter, name."""


@dataclass(frozen=True)
class Form:
    """How a kernel writes its tables."""

    name: str
    order: str = "<"
    word: int = 8
    values: str = "absolute percpu"  # "addresses", "relative", "absolute percpu", "place relative"
    tables_first: bool = False  # v6.4: offsets and base behind the token index
    seqs: bool = False  # v6.2: kallsyms_seqs_of_names
    big: bool = True  # v6.1: lengths of two bytes
    marker_size: int = 4
    count_size: int = 4
    align: int = 8


FORMS = (
    Form("v4.6 absolute", values="addresses", big=False, marker_size=8, count_size=8),
    Form("v4.6", big=False, marker_size=8, count_size=8),
    Form("v5.10", big=False),
    Form("v6.1"),
    Form("v6.2", seqs=True),
    Form("v6.4", seqs=True, tables_first=True),
    Form("v6.15 relative", values="relative", seqs=True, tables_first=True),
    Form("v7.0", values="place relative", seqs=True, tables_first=True, align=4),
    Form("be64", order=">", values="relative"),
    Form("le32", word=4, values="relative", align=4),
    Form("be32", order=">", word=4, values="relative", align=4),
    Form("be32 absolute", order=">", word=4, values="addresses", big=False, align=4),
    Form("be32 v7.0", order=">", word=4, values="place relative", tables_first=True, seqs=True, align=4),
)


@dataclass(frozen=True)
class Image:
    """The tables as memory at ``vaddr``, and where each of them lies."""

    vaddr: int
    data: bytes
    at: dict[str, int]


def tokens_of(symbols: Sequence[Symbol]) -> list[bytes]:
    """256 tokens: every character stands for itself, unused numbers for common pieces."""
    tokens = [bytes([number]) if 0x20 <= number < 0x7F else b"" for number in range(256)]
    used = "\n".join(kind + name for _, kind, name in symbols)
    pieces = ["__ksymtab_", "Tsys_", "init", "_read", "sched", "__", "page", "lock"]
    for number, piece in zip(range(0x80, 0x100), pieces * 16, strict=True):
        tokens[number] = piece.encode() if piece in used else b""
    return tokens


def compress(text: bytes, tokens: list[bytes]) -> bytes:
    """Token numbers of a name with its type."""
    numbers = {token: number for number, token in enumerate(tokens) if token}
    longest = sorted((token for token in numbers if len(token) > 1), key=len, reverse=True)
    pieces = re.findall(b"|".join([*map(re.escape, longest), b"."]), text, re.DOTALL)
    return bytes(numbers[piece] for piece in pieces)


def build(symbols: Sequence[Symbol], form: Form, vaddr: int, base: int) -> Image:
    """Lay the tables out from ``vaddr`` on; ``base`` is kallsyms_relative_base."""
    tokens = tokens_of(symbols)
    names, markers = bytearray(), []
    for row, (_, kind, name) in enumerate(symbols):
        if row % 256 == 0:
            markers.append(len(names))
        packed = compress((kind + name).encode(), tokens)
        big = form.big and len(packed) > 0x7F
        names += bytes([len(packed) & 0x7F | 0x80, len(packed) >> 7]) if big else bytes([len(packed)])
        names += packed
    index, table = [], bytearray()
    for token in tokens:
        index.append(len(table))
        table += token + b"\0"

    def packed_numbers(size: int, numbers: Sequence[int]) -> bytes:
        return b"".join(number.to_bytes(size, "little" if form.order == "<" else "big") for number in numbers)

    parts: dict[str, bytes | None] = {
        "num_syms": packed_numbers(form.count_size, [len(symbols)]),
        "names": bytes(names),
        "markers": packed_numbers(form.marker_size, markers),
        "token_table": bytes(table),
        "token_index": packed_numbers(2, index),
        "values": bytes(len(symbols) * (form.word if form.values == "addresses" else 4)),
        "relative_base": packed_numbers(form.word, [base])
        if "re" in form.values[:2] or "percpu" in form.values
        else None,
        "seqs": b"\1\2\3" * len(symbols) if form.seqs else None,
    }
    first = ["num_syms", "names", "markers"]
    if form.tables_first:
        order = [*first, "token_table", "token_index", "values", "relative_base", "seqs"]
    else:
        order = ["values", "relative_base", *first, "seqs", "token_table", "token_index"]
    at, data = {}, bytearray()
    for name in order:
        part = parts[name]
        if part is None:
            continue
        data += bytes(align_up(len(data), form.align) - len(data))
        at[name] = vaddr + len(data)
        data += part
    where = at["values"] - vaddr
    values = _values(symbols, form, at["values"], base)
    data[where : where + len(values)] = values
    return Image(vaddr, bytes(data), at)


def _values(symbols: Sequence[Symbol], form: Form, vaddr: int, base: int) -> bytes:
    out = bytearray()
    for row, (address, _, _) in enumerate(symbols):
        if form.values == "addresses":
            out += struct.pack(form.order + ("Q" if form.word == 8 else "I"), address)
            continue
        if form.values == "relative":
            value = address - base
        elif form.values == "absolute percpu":
            value = address if address < 1 << 31 else base - 1 - address
        else:
            value = address - (vaddr + 4 * row)
        out += struct.pack(form.order + "I", value & 0xFFFFFFFF)
    return bytes(out)
