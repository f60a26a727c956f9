"""Facts about a kernel, each with what told it, and the order in which sources are trusted.

The questions are VMCOREINFO's own: SYMBOL(name) is the run-time address of a symbol,
OFFSET(struct.member) and SIZE(struct) are bytes, LENGTH(array) is elements, NUMBER(name) is a
constant of the build, such as an enumerator.  A source that knows types also answers
SIZE(struct.member) and LENGTH(struct.member).  Members of anonymous structs and unions count as
members of the struct around them, as in C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

_LARGEST_STRUCT = 1 << 24
"""Bytes: a pglist_data has 174 KB."""
KINDS = ("SYMBOL", "OFFSET", "SIZE", "LENGTH", "NUMBER")


@dataclass(frozen=True)
class Fact:
    """One value the conversion rests on; ``source`` is what told it."""

    name: str
    value: int | str
    source: str

    def shown(self) -> str:
        """The value as text: addresses in hexadecimal."""
        return self.value if isinstance(self.value, str) else f"{self.value:#x}"

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return {"name": self.name, "value": self.shown(), "source": self.source}


class Source(Protocol):
    """Something that knows a kernel: VMCOREINFO, kallsyms, BTF, a vmlinux."""

    def find(self, kind: str, name: str, /) -> Fact | None:
        """The answer to ``KIND(name)``, None when this source has none.  Raises nothing."""


@dataclass
class Later:
    """A source that is opened when it is first asked for one of ``kinds``."""

    kinds: tuple[str, ...]
    open: Callable[[], Source | None]
    _opened: bool = False
    _source: Source | None = None

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`Source`."""
        source = self.source if kind in self.kinds else None
        return source.find(kind, name) if source else None

    @property
    def source(self) -> Source | None:
        """The source, opened by now; None when there is none."""
        if not self._opened:
            self._source, self._opened = self.open(), True
        return self._source


@dataclass(frozen=True)
class Knowledge:
    """All sources in order of trust: the first that knows an answer gives it.

    ``asked`` remembers every question and its answer, for ``--verbose`` and for errors; ``advice`` are
    sentences on how more could be known.
    """

    sources: tuple[Source, ...]
    advice: list[str] = field(default_factory=list)
    asked: dict[str, Fact | None] = field(default_factory=dict)

    def find(self, kind: str, name: str, /) -> Fact | None:
        """``KIND(name)`` with its source; a :class:`Source` itself."""
        key = f"{kind}({name})"
        if key not in self.asked:
            answers = (source.find(kind, name) for source in self.sources)
            self.asked[key] = next(
                (fact for fact in answers if fact is not None and self._can_be(fact)), None
            )
        return self.asked[key]

    def _can_be(self, fact: Fact) -> bool:
        """No member lies before its struct, or so far behind its beginning."""
        if not fact.name.startswith("OFFSET(") or 0 <= int(fact.value) < _LARGEST_STRUCT:
            return True
        self.advice.append(f"{fact.name} cannot be {int(fact.value)}, as {fact.source} has it")
        return False

    def symbol(self, name: str, /) -> int | None:
        """The run-time address of a symbol; of a per-CPU variable, as the symbol table has it."""
        return self._value("SYMBOL", name)

    def offset(self, name: str, /) -> int | None:
        """Byte offset of ``struct.member``."""
        return self._value("OFFSET", name)

    def size(self, name: str, /) -> int | None:
        """Bytes of a type, or of ``struct.member``."""
        return self._value("SIZE", name)

    def length(self, name: str, /) -> int | None:
        """Elements of an array."""
        return self._value("LENGTH", name)

    def number(self, name: str, /) -> int | None:
        """A number that the kernel's build decided."""
        return self._value("NUMBER", name)

    def answers(self, questions: Iterable[str]) -> dict[str, int | None]:
        """The answer to each ``KIND(name)``."""
        parts = ((each, *each[:-1].split("(", 1)) for each in questions)
        return {each: self._value(kind, name) for each, kind, name in parts}

    @property
    def used(self) -> tuple[Fact, ...]:
        """Every answer that was given, in the order of the questions."""
        return tuple(fact for fact in self.asked.values() if fact is not None)

    def hint(self, otherwise: str) -> str:
        """What the user can do about something that is not known."""
        return "; ".join(self.advice) or otherwise

    def missing(self, questions: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Those of ``questions`` that no source answers, as ``KIND(name)``."""
        return tuple(f"{kind}({name})" for kind, name in questions if self.find(kind, name) is None)

    def _value(self, kind: str, name: str) -> int | None:
        fact = self.find(kind, name)
        return None if fact is None else int(fact.value)
