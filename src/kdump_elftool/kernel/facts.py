"""A fact about the kernel and where it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One value the conversion rests on; ``source`` is what told it."""

    name: str
    value: int | str
    source: str

    def shown(self) -> str:
        """The value as text: addresses in hexadecimal."""
        return self.value if isinstance(self.value, str) else f"{self.value:#x}"
