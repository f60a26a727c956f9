"""A vmlinux as a source of facts: its symbol table, and its types from ``.BTF`` or DWARF.

Symbol values are link-time addresses; what is asked for are those at run time, so the KASLR offset
is added, except to values below the kernel image: per-CPU variables of x86_64 count from 0 there
(until v6.14).

What DWARF answered is remembered in the user's cache, by the build id: reading it takes seconds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from kdump_elftool.addr import MASK64
from kdump_elftool.arch.base import Architecture
from kdump_elftool.cache import Cache
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.errors import KdumpError
from kdump_elftool.kernel.btf import MAX_SIZE, Btf
from kdump_elftool.kernel.dwarf_types import KINDS, LABEL, DwarfTypes, open_dwarf_types
from kdump_elftool.kernel.facts import Fact, Knowledge, Later, Source
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo
from kdump_elftool.kernel.vmlinux import Vmlinux, section_headers

log = logging.getLogger(__name__)

TYPES = ("OFFSET", "SIZE", "LENGTH", "NUMBER")
_FORMAT = 2
"""Of the cached answers: another one whenever the same question may be answered differently."""
_MOST_CACHED = 1 << 20
Advise = Callable[[str], None]
"""Takes a sentence that the user should read."""


@dataclass(frozen=True)
class VmlinuxSymbols:
    """Looks names up in the symbol table of a vmlinux; ``kaslr_offset`` is how far the kernel was moved.

    ``image_start`` is where the image begins now.
    """

    vmlinux: Vmlinux
    kaslr_offset: int
    image_start: int

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        value = self.vmlinux.table.find(name) if kind == "SYMBOL" else None
        if value is None:
            return None
        if value >= (self.image_start - self.kaslr_offset) & MASK64:
            value = (value + self.kaslr_offset) & MASK64
        return Fact(f"SYMBOL({name})", value, "vmlinux symbols")


@dataclass
class CachedAnswers:
    """Answers of a source that is slow to open, also those of earlier runs; None is one of them."""

    key: str
    cache: Cache
    open: Callable[[], DwarfTypes | None]
    answers: dict[str, int | None]
    _opened: list[DwarfTypes | None] = field(default_factory=list)

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        question = f"{kind}({name})"
        if kind not in KINDS:
            return None
        if question not in self.answers:
            self._opened = self._opened or [self.open()]
            source = self._opened[0]
            if source is None:
                return None
            self.answers[question] = source.ask(kind, name)
            self.cache.put(self.key, json.dumps(self.answers).encode())
        value = self.answers[question]
        return None if value is None else Fact(question, value, LABEL)


@dataclass(frozen=True)
class ArrayLengths:
    """LENGTH of variables, which BTF lacks, out of ``source``."""

    source: Source

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        return self.source.find(kind, name) if kind == "LENGTH" and "." not in name else None


def vmlinux_knowledge(vmlinux: Vmlinux, arch: Architecture, cache: Cache | None = None) -> Knowledge:
    """What a vmlinux alone tells: its link-time addresses and its types."""
    word, advice = arch.prstatus.word, list[str]()
    types = Later(TYPES, lambda: vmlinux_types(vmlinux, word, cache, advice.append))
    # what BTF has suffices: that more could be known is no advice
    arrays = ArrayLengths(Later(TYPES, lambda: vmlinux_dwarf(vmlinux, cache, lambda _text: None)))
    return Knowledge(
        (VmlinuxSymbols(vmlinux, 0, arch.image_window(VmcoreInfo({}))[0]), types, arrays), advice
    )


def vmlinux_types(vmlinux: Vmlinux, word: int, cache: Cache | None, advise: Advise) -> Source | None:
    """The types of a vmlinux: BTF if it has that, else DWARF; ``advise`` is told why there are none."""
    return vmlinux_btf(vmlinux, word) or vmlinux_dwarf(vmlinux, cache, advise)


def vmlinux_dwarf(vmlinux: Vmlinux, cache: Cache | None, advise: Advise) -> Source | None:
    """The types in the DWARF of a vmlinux; ``advise`` is told when it cannot be read."""

    def opened() -> DwarfTypes | None:
        try:
            return open_dwarf_types(vmlinux)
        except KdumpError as error:
            advise(error.message + (f": {error.hint}" if error.hint else ""))
            return None

    if cache is None or vmlinux.build_id is None or vmlinux.is_made:
        # one that mkvmlinux made has the build id of the kernel's own, but not all of its answers
        return opened()
    key = f"dwarf-{_FORMAT}-{vmlinux.build_id.hex()[:128]}"
    answers = _read_answers(cache.get(key))
    log.info("DWARF: %d answers in the cache", len(answers))
    return CachedAnswers(key, cache, opened, answers)


def vmlinux_btf(vmlinux: Vmlinux, word: int) -> Btf | None:
    """The types of a vmlinux that has BTF."""
    elf = ElfFile.read(vmlinux.file)
    header = section_headers(elf).get(b".BTF")
    if header is None or int(header["sh_size"]) > MAX_SIZE:
        return None
    data = vmlinux.file.read_at(int(header["sh_offset"]), int(header["sh_size"]))
    return Btf.parse(data, elf.header.kind.order, word, "vmlinux BTF")


def _read_answers(data: bytes | None) -> dict[str, int | None]:
    """What an entry of the cache holds; nothing when that is not what this version writes."""
    if data is None or len(data) > _MOST_CACHED:
        return {}
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if value is None or type(value) is int}
