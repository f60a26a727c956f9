"""A readable text form of :class:`KdumpSpec`, one file per oddity under ``tests/formats/kdump``.

::

    # comment
    version = 6      order = little     bits = 64      align = 8      (one ``key = value`` a line)
    machine = x86_64    block = 4096    magic = KDUMP | DISKDUMP     max_mapnr =     status_at =
    split = 0x10,0x20   bitmaps = two | one | miscounted    pages = sorted | reversed
    vmcoreinfo = text   eraseinfo = text     truncate = N (from the end when negative: image[:N])
    head status=8       override of a field of the main header; also ``sub offset_note=...``
    note, prstatus      as in the specs of ELF cores
    page 0x10 fill=own codec=zlib            ``page 0x10-0x18``: several; codec raw zlib lzo snappy zstd
    page 0x10 fill=zero shared=zero          pages that share one place in the file
    page 0x10 codec=zlib stored=hex:0011     or stored=zlib:zero*N, what stands there instead
    page 0x10 fill=own size=4097 offset=2**63 flags=0x40    override of the descriptor
    ram 0x20-0x30                            frames that the producer excluded
    expect present 0x10000                   what the test compares: see tests/formats/test_kdump.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.builders import notes as note_builders
from tests.builders.diskdump import KdumpSpec, PageSpec, build_kdump, compress
from tests.builders.elfcore import NoteSpec
from tests.builders.spectext import filling, number, parse_note, parse_pairs

_DESCRIPTOR = ("offset", "size", "flags")
_KEYS = frozenset(
    "version order bits align machine block magic max_mapnr status_at split bitmaps pages "
    "vmcoreinfo eraseinfo truncate".split()
)


@dataclass
class KdumpFile:
    """A parsed spec: the dump and the lines that say what is expected of it."""

    dump: KdumpSpec
    expect: list[list[str]] = field(default_factory=list)

    def build(self) -> bytes:
        """The file's bytes."""
        return build_kdump(self.dump)


def read_kdump_spec(path: Path) -> KdumpFile:
    """Parse a spec file."""
    options: dict[str, str] = {}
    tables: dict[str, dict[str, int]] = {"head": {}, "sub": {}}
    lines: list[tuple[str, str]] = []
    expect: list[list[str]] = []
    for raw in path.read_text().splitlines():
        line = raw.split("#", 1)[0].strip()
        word, _, rest = line.partition(" ")
        if not line:
            continue
        if word in tables:
            tables[word] |= {key: number(value) for key, value in parse_pairs(rest).items()}
        elif word == "expect":
            expect.append(rest.split())
        elif word in ("page", "ram", "note", "prstatus"):
            lines.append((word, rest))
        else:
            key, equal, value = line.partition("=")
            if not equal or key.strip() not in _KEYS:
                raise ValueError(f"spec line not understood: {raw!r}")
            options[key.strip()] = value.strip()
    return KdumpFile(_dump(options, tables, lines), expect)


def _dump(
    options: dict[str, str], tables: dict[str, dict[str, int]], lines: list[tuple[str, str]]
) -> KdumpSpec:
    block, order = number(options.get("block", "4096")), ">" if options.get("order") == "big" else "<"
    numbers = ("version", "bits", "align", "block", "max_mapnr", "status_at", "truncate")
    start, _, end = options.get("split", "").partition(",")
    return KdumpSpec(
        pages=[page for word, rest in lines if word == "page" for page in _pages(rest, block, order)],
        ram=[_span(rest) for word, rest in lines if word == "ram"],
        notes=[_note(word, rest) for word, rest in lines if word in ("note", "prstatus")],
        vmcoreinfo=_text(options.get("vmcoreinfo", "")),
        eraseinfo=_text(options.get("eraseinfo", "")),
        signature=options.get("magic", "KDUMP").encode().ljust(8),
        big_endian=order == ">",
        machine=options.get("machine", "x86_64"),
        split=(number(start), number(end)) if end else None,
        one_bitmap=options.get("bitmaps") == "one",
        count_one_bitmap=options.get("bitmaps") == "miscounted",
        order=options.get("pages", "sorted"),
        head=tables["head"],
        sub=tables["sub"],
        **{key: number(options[key]) for key in numbers if key in options},  # type: ignore[arg-type]
    )


def _pages(rest: str, block: int, order: str) -> list[PageSpec]:
    where, _, more = rest.partition(" ")
    pairs = parse_pairs(more)
    codec, fill = pairs.get("codec", "zlib"), pairs.get("fill", "own")
    fields = {key: number(pairs[key]) for key in _DESCRIPTOR if key in pairs}
    return [
        PageSpec(
            pfn,
            filling(f"{fill}*{block}", pfn * block, order),
            codec,
            _stored(pairs["stored"]) if "stored" in pairs else None,
            pairs.get("shared"),
            fields,
        )
        for pfn in range(*_span(where))
    ]


def _stored(text: str) -> bytes:
    kind, _, value = text.partition(":")
    return bytes.fromhex(value) if kind == "hex" else compress(kind, filling(value, 0))


def _span(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    return number(low), number(high) if dash else number(low) + 1


def _note(word: str, rest: str) -> NoteSpec:
    if word == "note":
        return parse_note(rest)
    values = {key: number(value) for key, value in parse_pairs(rest).items()}
    return note_builders.x86_64_prstatus(values.pop("pid", 0), values)


def _text(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")
