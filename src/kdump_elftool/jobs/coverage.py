"""How much of a machine's memory came through, and what did not: the coverage line."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_elftool.formats.base import Lost

PAGE = 4096
SHOWN = 5


@dataclass(frozen=True)
class Coverage:
    """``covered`` of ``total`` 4 KB pages, and the losses behind the difference."""

    covered: int
    total: int
    lost: tuple[Lost, ...]

    @classmethod
    def of(cls, declared_bytes: int, missing_bytes: int, lost: tuple[Lost, ...]) -> Coverage:
        """From bytes; a page that is partly there counts as missing."""
        total = -(-declared_bytes // PAGE)
        return cls(max(total - -(-missing_bytes // PAGE), 0), total, lost)

    @property
    def is_partial(self) -> bool:
        """True when anything was lost."""
        return bool(self.lost)

    def line(self, *, everything: bool = False) -> str:
        """The text behind ``coverage:``; at most five ranges unless ``everything``."""
        share = 100.0 * self.covered / self.total if self.total else 0.0
        shown = f"{share:.1f}" if self.covered == self.total or share < 99.95 else "99.9"
        text = f"{shown} % of {self.total} pages"
        count = sum(len(part.ranges) for part in self.lost)
        if not count:
            return text
        ranges = (
            [
                f"{_prefix(part)}{start:#x}-{end:#x} {part.why}"
                for part in self.lost
                for start, end in zip(part.ranges.start.tolist(), part.ranges.end.tolist(), strict=True)
            ]
            if everything
            else self._first()
        )
        more = f"; and {count - len(ranges)} more" if count > len(ranges) else ""
        return f"{text}; lost {count} range{'s' if count != 1 else ''}: {'; '.join(ranges)}{more}"

    def _first(self) -> list[str]:
        result: list[str] = []
        for part in self.lost:
            room = SHOWN - len(result)
            for start, end in zip(
                part.ranges.start[:room].tolist(), part.ranges.end[:room].tolist(), strict=True
            ):
                result.append(f"{_prefix(part)}{start:#x}-{end:#x} {part.why}")
        return result

    def as_json(self) -> dict[str, object]:
        """For ``--json`` and the core's own note; at most 1,000 ranges are listed."""
        ranges: list[dict[str, object]] = []
        for part in self.lost:
            room = 1000 - len(ranges)
            for start, end in zip(
                part.ranges.start[:room].tolist(), part.ranges.end[:room].tolist(), strict=True
            ):
                ranges.append(
                    {"space": part.space, "start": f"{start:#x}", "end": f"{end:#x}", "why": part.why}
                )
        return {
            "covered_pages": self.covered,
            "total_pages": self.total,
            "lost_ranges": sum(len(part.ranges) for part in self.lost),
            "lost": ranges,
        }


def _prefix(part: Lost) -> str:
    return "vaddr " if part.space == "vaddr" else ""
