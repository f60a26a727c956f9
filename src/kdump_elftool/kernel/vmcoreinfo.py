"""VMCOREINFO: the text a kernel leaves about itself, and the ``-e`` file of the same form.

Lines are ``KEY=value``; keys are ``KIND(name)`` or bare words.  Values of SYMBOL and ADDRESS are
hexadecimal, of SIZE, OFFSET, LENGTH and NUMBER decimal (NUMBER may be negative: it is printed
with %ld), except the few numbers that arm64 prints in hexadecimal.  Source: kernel/vmcore_info.c
and Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from kdump_elftool.addr import MASK64
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.safe_text import printable

NOTE_NAME = b"VMCOREINFO"

_HEX_KINDS = ("SYMBOL", "ADDRESS")
_HEX_NUMBERS = ("NUMBER(kimage_voffset)", "NUMBER(PHYS_OFFSET)", "NUMBER(TCR_EL1_T1SZ)")
_HEX_NUMBERS_BARE = ("KERNELOFFSET",)
_MAX_TEXT = 1 << 20
_MAX_BUILD_ID = 128
_MISREAD = tuple(
    number + kind + b"GNU\0" for number, kind in ((b"\x14\0\0\0", b"\3\0\0\0"), (b"\0\0\0\x14", b"\0\0\0\3"))
)
"""How a build id of 20 bytes begins that was read 12 bytes too early: with the note's own header.

Stable kernels did that between their copies of "lib/buildid: harden build ID parsing logic" and of
"lib/buildid: Fix build ID parsing logic": 6.11.3-9, 6.10.14, 6.6.55-62, 6.1.113-118, 5.15.168 on.
"""


@dataclass(frozen=True)
class VmcoreInfo:
    """The raw lines with typed look-ups.  ``sources`` says per key where its value came from.

    ``used`` remembers what was looked up, for ``info --verbose``.
    """

    values: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    used: dict[str, Fact] = field(default_factory=dict, compare=False)

    def text(self, key: str) -> str | None:
        """A bare key's value, such as ``OSRELEASE``."""
        value = self.values.get(key)
        if value is not None:
            self.used.setdefault(key, Fact(key, printable(value), self.source(key)))
        return value

    def symbol(self, name: str) -> int | None:
        """``SYMBOL(name)``: a virtual address."""
        return self._integer(f"SYMBOL({name})")

    def address(self, name: str) -> int | None:
        """``ADDRESS(name)``: an address (patched kernels)."""
        return self._integer(f"ADDRESS({name})")

    def number(self, name: str) -> int | None:
        """``NUMBER(name)``, signed."""
        return self._integer(f"NUMBER({name})")

    def size(self, name: str) -> int | None:
        """``SIZE(name)`` in bytes."""
        return self._integer(f"SIZE({name})")

    def offset(self, name: str) -> int | None:
        """``OFFSET(struct.member)`` in bytes."""
        return self._integer(f"OFFSET({name})")

    def length(self, name: str) -> int | None:
        """``LENGTH(name)``: number of array elements."""
        return self._integer(f"LENGTH({name})")

    @property
    def kaslr_offset(self) -> int | None:
        """``KERNELOFFSET``, hexadecimal without 0x."""
        return self._integer("KERNELOFFSET")

    @property
    def build_id(self) -> bytes | None:
        """``BUILD-ID`` (v5.9 on), or None when absent, not hexadecimal or misread by the kernel."""
        found = self._build_id
        return None if found is None or found.startswith(_MISREAD) else found

    @property
    def build_id_start(self) -> bytes | None:
        """The first bytes of a build id that the kernel misread, else None."""
        found = self._build_id
        return found[len(_MISREAD[0]) :] if found is not None and found.startswith(_MISREAD) else None

    @property
    def _build_id(self) -> bytes | None:
        text = self.values.get("BUILD-ID", "")
        try:
            return bytes.fromhex(text) or None if len(text) <= _MAX_BUILD_ID else None
        except ValueError:
            return None

    def find(self, kind: str, name: str) -> Fact | None:
        """``KIND(name)`` with its source (``kernel.facts.Source``)."""
        key = f"{kind}({name})"
        value = self._integer(key)
        return None if value is None else Fact(key, value, self.source(key))

    def source(self, key: str) -> str:
        """Where the value of ``key`` came from."""
        return self.sources.get(key, "VMCOREINFO")

    def _integer(self, key: str) -> int | None:
        text = self.values.get(key)
        if text is None or "_" in text:
            return None
        is_hex = key.startswith(_HEX_KINDS) or key in _HEX_NUMBERS or key in _HEX_NUMBERS_BARE
        try:
            value = int(text.strip(), 16 if is_hex or text.strip().startswith("0x") else 10)
        except ValueError:
            return None
        lowest = 0 if is_hex else -(1 << 63)
        if not lowest <= value <= MASK64:
            return None
        self.used.setdefault(key, Fact(key, value, self.source(key)))
        return value


def parse(data: bytes, source: str = "VMCOREINFO") -> VmcoreInfo:
    """Parse VMCOREINFO text up to its first NUL; lines that are none of ours are ignored."""
    values: dict[str, str] = {}
    for line in data[:_MAX_TEXT].split(b"\0", 1)[0].decode("latin-1").splitlines():
        key, separator, value = line.partition("=")
        if separator and key.strip():
            values.setdefault(key.strip(), value.strip())
    return VmcoreInfo(values, dict.fromkeys(values, source))


def as_text(facts: Collection[Fact]) -> VmcoreInfo:
    """Facts in the form in which the kernel prints them, each with its source."""
    values = {fact.name: _printed(fact) for fact in facts}
    return VmcoreInfo(values, {fact.name: fact.source for fact in facts})


def _printed(fact: Fact) -> str:
    if isinstance(fact.value, str):
        return fact.value
    if fact.name.startswith(_HEX_KINDS) or fact.name in _HEX_NUMBERS_BARE:
        return f"{fact.value:x}"
    return f"{fact.value:#x}" if fact.name in _HEX_NUMBERS else str(fact.value)


def override(base: VmcoreInfo, extra: VmcoreInfo) -> VmcoreInfo:
    """``base`` with every value of ``extra`` laid over it (the ``-e`` file wins)."""
    return VmcoreInfo({**base.values, **extra.values}, {**base.sources, **extra.sources})
