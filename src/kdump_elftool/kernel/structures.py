"""What is asked of structures in a kernel's memory, None or nothing where it is not known or not there."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.addr import U64, u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.facts import Source
from kdump_elftool.kernel.lists import ListReader
from kdump_elftool.kernel.words import Words

MOST_NODES = 1 << 16
VALUE = ""
"""In a path: the variable is a pointer itself."""


@dataclass(frozen=True)
class Structures:
    """Memory, and a source that knows symbols and offsets."""

    words: Words
    known: Source

    def symbol(self, name: str) -> int | None:
        """Where a variable is."""
        return self._ask("SYMBOL", name)

    def offsets(self, *names: str) -> list[int] | None:
        """Of these members; None unless all are known."""
        found = [self._ask("OFFSET", name) for name in names]
        known = [offset for offset in found if offset is not None]
        return known if len(known) == len(names) else None

    def word(self, vaddr: int | None) -> int | None:
        """A word of the machine."""
        return self._read(vaddr, self.words.word)

    def number(self, vaddr: int) -> int | None:
        """An unsigned number of 32 bits."""
        return self._read(vaddr, 4)

    def text(self, vaddr: int | None, size: int) -> bytes:
        """That many bytes, none where they cannot be read."""
        try:
            return self.words.memory.read(vaddr & int(self.words.mask), size) if vaddr else b""
        except FaultError:
            return b""

    def follow(self, name: str, path: tuple[str, ...]) -> int | None:
        """Where pointers, members of what the one before leads to, lead to from a variable."""
        at = self.symbol(name)
        for member in path:
            offset = self._ask("OFFSET", member) if member else 0
            at = None if at is None or offset is None else self.word(at + offset)
        return at or None

    def nodes(self, first: int, most: int = MOST_NODES) -> U64:
        """All nodes of a list, ``first`` in front; none of a list that is damaged or longer than ``most``."""
        words = self.words
        found = ListReader(words.memory, words.order, words.word).walk(u64([first]), most)
        whole = not len(found.broken) and len(found.node) < most
        return u64([first, *found.node.tolist()]) if whole else u64([])

    def _ask(self, kind: str, name: str) -> int | None:
        fact = self.known.find(kind, name)
        return None if fact is None else int(fact.value)

    def _read(self, vaddr: int | None, size: int) -> int | None:
        try:
            return self.words.read(vaddr, size) if vaddr else None
        except FaultError:
            return None
