"""A readable text form of :class:`CoreSpec`, one file per oddity under ``tests/formats``.

::

    # comment
    class = 64            order = little     machine = 62     (one ``key = value`` a line)
    notes = front | end | split              sections = yes   xnum = yes   truncate = 100
    ehdr e_phentsize=0                       override of a field; also ``shdr0`` and ``ident 7=3``
    note name=CORE type=1 desc=hex:0011      or desc=text:... (\\n is a line feed), desc=zero*336;
                                             rawname=HEX, raw=HEX (the whole note) for lies
    prstatus pid=1 rip=0x...                 an x86_64 NT_PRSTATUS
    load paddr=0x1000 vaddr=0 fill=own*0x2000 memsz=0x3000 offset= filesz= align= flags= p_xxx=
    @0x1000 AA*4096                          bytes put at this paddr of the load that holds it
    flat 64-0x1000 at= size=                 a record of makedumpfile's flattened format: these bytes of the
                                             core (or "rest", "all"), put elsewhere, with a lying size
    flat 0x1000 fill=AA*16                   a record with other bytes for this offset
    flat raw=HEX | end | cut=N               other bytes, the end mark, less of the whole at its end
    flat header type=2 version=1             another header
    expect loads 2                           what the test compares: see tests/formats/test_specs.py

``fill`` is ``own*N`` (every 8-byte word is its own paddr), ``zero*N`` or ``XX*N`` (a byte).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.builders import flattened
from tests.builders import notes as note_builders
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core, own_address_words


@dataclass
class SpecFile:
    """A parsed spec: the core and the lines that say what is expected of it."""

    core: CoreSpec
    expect: list[list[str]] = field(default_factory=list)
    flat: list[list[str]] = field(default_factory=list)

    def build(self) -> bytes:
        """The file's bytes."""
        image = build_core(self.core)
        return _flattened(image, self.flat) if self.flat else image


def _flattened(image: bytes, lines: list[list[str]]) -> bytes:
    head, parts, cut, done = flattened.header(), [], 0, 0
    for what, *rest in lines:
        pairs = parse_pairs(" ".join(rest))
        word, equal, value = what.partition("=")
        if what == "header":
            head = flattened.header(number(pairs.get("type", "1")), number(pairs.get("version", "1")))
        elif what == "end":
            parts.append(flattened.END)
        elif equal:
            parts.append(bytes.fromhex(value) if word == "raw" else b"")
            cut += number(value) if word == "cut" else 0
        elif "fill" in pairs:
            parts.append(flattened.Record(number(what), filling(pairs["fill"], 0)).encode())
        else:
            span = {"all": "0-", "rest": f"{done}-"}.get(what, what)
            begin, _, end = span.partition("-")
            start, done = number(begin), number(end) if end else len(image)
            size = number(pairs["size"]) if "size" in pairs else None
            offset = number(pairs["at"]) if "at" in pairs else start
            parts.append(flattened.Record(offset, image[start:done], size).encode())
    whole = head + b"".join(parts)
    return whole[: len(whole) - cut]


def number(text: str) -> int:
    """``0x`` hexadecimal or decimal, with ``a+b``, ``a-b`` and ``2**n`` for absurd values."""
    for sign in "+-":
        left, found, right = text.rpartition(sign)
        if found and left:
            return number(left) + (number(right) if sign == "+" else -number(right))
    if "**" in text:
        base, _, power = text.partition("**")
        return int(number(base) ** number(power))
    return int(text, 0)


def filling(text: str, paddr: int, order: str = "<") -> bytes:
    """Bytes of ``own*N``, ``zero*N``, ``XX*N``."""
    kind, _, count = text.partition("*")
    size = number(count or "1")
    if kind == "own":
        return own_address_words(paddr, size, order)
    return bytes(size) if kind == "zero" else bytes([int(kind, 16)]) * size


def read_spec(path: Path) -> SpecFile:
    """Parse a spec file."""
    return parse_spec(path.read_text())


def parse_spec(text: str) -> SpecFile:
    """Parse the text of a spec."""
    options: dict[str, str] = {}
    tables: dict[str, dict[str, int]] = {"ehdr": {}, "shdr0": {}, "ident": {}}
    notes: list[NoteSpec] = []
    loads: list[SegmentSpec] = []
    expect: list[list[str]] = []
    flat: list[list[str]] = []
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        word, _, rest = line.partition(" ")
        order = ">" if options.get("order") == "big" else "<"
        if word in tables:
            tables[word] |= {key: number(value) for key, value in parse_pairs(rest).items()}
        elif word == "note":
            notes.append(parse_note(rest))
        elif word == "prstatus":
            values = {key: number(value) for key, value in parse_pairs(rest).items()}
            notes.append(note_builders.x86_64_prstatus(values.pop("pid", 0), values))
        elif word == "load":
            loads.append(_load(parse_pairs(rest), order))
        elif word == "flat":
            flat.append(rest.split())
        elif word == "expect":
            expect.append(rest.split())
        elif word.startswith("@"):
            _poke(loads, number(word[1:]), rest, order)
        else:
            key, equal, value = line.partition("=")
            if not equal:
                raise ValueError(f"spec line not understood: {raw!r}")
            options[key.strip()] = value.strip()
    return SpecFile(_core(options, tables, notes, loads), expect, flat)


def _core(
    options: dict[str, str],
    tables: dict[str, dict[str, int]],
    notes: list[NoteSpec],
    loads: list[SegmentSpec],
) -> CoreSpec:
    known = {"class", "order", "machine", "type", "osabi", "notes", "sections", "xnum", "truncate"}
    if not options.keys() <= known:
        raise ValueError(f"unknown keys {sorted(options.keys() - known)}")
    return CoreSpec(
        segments=loads,
        notes=notes,
        elf_class=number(options.get("class", "64")),
        big_endian=options.get("order", "little") == "big",
        e_type=number(options.get("type", "4")),
        machine=number(options.get("machine", "62")),
        osabi=number(options.get("osabi", "0")),
        notes_at=options.get("notes", "front"),
        force_xnum=options.get("xnum") == "yes",
        sections=options.get("sections") == "yes",
        ehdr=tables["ehdr"],
        shdr0=tables["shdr0"],
        ident={int(key): value for key, value in tables["ident"].items()},
        truncate=number(options["truncate"]) if "truncate" in options else None,
    )


def parse_pairs(text: str) -> dict[str, str]:
    """``key=value`` words."""
    return dict(part.split("=", 1) for part in text.split())  # type: ignore[misc]


def parse_note(text: str) -> NoteSpec:
    """What stands behind ``note``."""
    pairs = parse_pairs(text)
    if "raw" in pairs:
        return NoteSpec("", 0, b"", raw=bytes.fromhex(pairs["raw"]))
    kind, _, value = pairs.get("desc", "hex:").partition(":")
    if kind == "hex":
        desc = bytes.fromhex(value)
    elif kind == "text":
        desc = value.encode().decode("unicode_escape").encode("latin-1")
    else:
        desc = filling(pairs["desc"], 0)
    raw_name = bytes.fromhex(pairs["rawname"]) if "rawname" in pairs else None
    return NoteSpec(pairs.get("name", ""), number(pairs.get("type", "0")), desc, raw_name)


def _load(pairs: dict[str, str], order: str) -> SegmentSpec:
    fill = pairs.pop("fill", "")
    overrides = {key: number(pairs.pop(key)) for key in list(pairs) if key.startswith("p_")}
    numbers = {key: number(value) for key, value in pairs.items()}
    paddr = numbers.pop("paddr")
    segment = SegmentSpec(paddr, filling(fill, paddr, order) if fill else b"", overrides=overrides)
    return replace(segment, **numbers)  # type: ignore[arg-type]


def _poke(loads: list[SegmentSpec], paddr: int, text: str, order: str) -> None:
    """The last load that holds ``paddr`` gets the bytes, so that overlapping loads can differ."""
    for index in range(len(loads) - 1, -1, -1):
        load = loads[index]
        if load.paddr <= paddr < load.paddr + len(load.data):
            data, at = bytearray(load.data), paddr - load.paddr
            blob = filling(text.strip(), paddr, order)
            if at + len(blob) > len(data):
                raise ValueError(f"@{paddr:#x} runs past its load")
            data[at : at + len(blob)] = blob
            loads[index] = replace(load, data=bytes(data))
            return
    raise ValueError(f"no load holds {paddr:#x}")
