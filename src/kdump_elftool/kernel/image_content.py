"""What a kernel image that was never started has for those who know what it looks like.

``linux_banner`` is a text, ``init_uts_ns`` names the release of that text.  So they are found where the
symbol table has functions only; what else is, ``content`` finds in such an image too.

Since v6.1 the first two are there twice, once without the number of the build (``kernel.banner``).

References: init/version.c, init/version-timestamp.c (linux_banner, init_uts_ns).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kdump_elftool.elf.constants import ELFMAG, NT_GNU_BUILD_ID
from kdump_elftool.kernel.banner import banners, build_of, occurrences, release_of
from kdump_elftool.kernel.facts import Fact, Source
from kdump_elftool.kernel.utsname import FIELD_SIZE, RELEASE
from kdump_elftool.memory.virtual import VirtualMemory

_BUILD_ID = 20
_VDSO = 1 << 16
_PAGE = 4096
_SYSTEM = b"Linux".ljust(FIELD_SIZE, b"\0")
_VERSION = 3
"""Of the fields of struct new_utsname."""


@dataclass(frozen=True)
class ImageContent:
    """Symbols found in the image in ``window``; ``known`` tells the offsets that are needed."""

    memory: VirtualMemory
    known: Source
    window: tuple[int, int]

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`: answers SYMBOL of linux_banner and init_uts_ns."""
        look = {"linux_banner": self._linux_banner, "init_uts_ns": self._init_uts_ns}.get(name)
        vaddr = look() if kind == "SYMBOL" and look is not None else None
        return None if vaddr is None else Fact(f"SYMBOL({name})", vaddr, "found by its content")

    @property
    def banner(self) -> bytes:
        """The text of linux_banner without NUL; empty where there is not exactly one."""
        return self._banners[0][1] if len(self._banners) == 1 else b""

    @property
    def release(self) -> str | None:
        """What ``uname -r`` says in this kernel."""
        found = release_of(self.banner)
        return None if found is None else found.decode("ascii")

    @cached_property
    def _banners(self) -> list[tuple[int, bytes]]:
        found = dict(banners(self.memory, self.window))
        return sorted((vaddr, text) for vaddr, text in found.items() if build_of(text) is not None)

    def build_id(self, order: str) -> bytes | None:
        """What the note in the image says; not that of a vDSO, an ELF file that begins with a page."""
        byte_order: Literal["little", "big"] = "little" if order == "<" else "big"
        head = (
            b"".join(number.to_bytes(4, byte_order) for number in (4, _BUILD_ID, NT_GNU_BUILD_ID)) + b"GNU\0"
        )
        found = {}
        for start, data in self.memory.scan(*self.window, _VDSO + len(head) + _BUILD_ID):
            for at in occurrences(data, head):
                elf = data.rfind(ELFMAG, max(at - _VDSO, 0), at)
                if elf < 0 or (start + elf) % _PAGE:
                    found[start + at] = data[at + len(head) : at + len(head) + _BUILD_ID]
        ids = {each for each in found.values() if len(each) == _BUILD_ID}
        return ids.pop() if len(ids) == 1 else None

    def _linux_banner(self) -> int | None:
        return self._banners[0][0] if len(self._banners) == 1 else None

    def _init_uts_ns(self) -> int | None:
        offset = self.known.find("OFFSET", "uts_namespace.name")
        release, build = release_of(self.banner), build_of(self.banner)
        if offset is None or release is None or build is None:
            return None
        places = set(self._names(release, build))
        return places.pop() - int(offset.value) if len(places) == 1 else None

    def _names(self, release: bytes, version: bytes) -> Iterator[int]:
        """Where a struct new_utsname names the release and the version."""
        names = release.ljust(FIELD_SIZE, b"\0") + version[: FIELD_SIZE - 1] + b"\0"
        for start, data in self.memory.scan(*self.window, FIELD_SIZE * (_VERSION + 1)):
            for at in occurrences(data, _SYSTEM):
                if data.startswith(names, at + RELEASE * FIELD_SIZE):
                    yield start + at
