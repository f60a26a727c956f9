"""The import rule of docs/design.md, read from the source without running it.

    python -m tools.import_rule src/kdump_elftool

Every top-level module or package of kdump_elftool may import itself and what ALLOWED lists for it:
the stages of the data flow point one way. Imports inside functions and under TYPE_CHECKING count as
well, since they too tie two stages together. Outside the package there are the standard library,
numpy, and what is optional: that is never imported at the top of a module, but for pyelftools in two
that are never imported at the top of another one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASE = frozenset({"errors", "addr", "safe_text"})
SERVICES = frozenset({"files", "spool", "cache", "progress", "codecs"})
BELOW_FORMATS = BASE | SERVICES | {"elf", "memory"}
BELOW_JOBS = BELOW_FORMATS | {"arch", "formats", "kernel"}

ALLOWED: dict[str, frozenset[str]] = {
    "__init__": frozenset(),
    "__main__": frozenset({"cli"}),
    "errors": BASE,
    "addr": BASE,
    "safe_text": BASE,
    "files": BASE | SERVICES,
    "spool": BASE | SERVICES,
    "cache": BASE | SERVICES,
    "progress": BASE | SERVICES,
    "codecs": BASE | SERVICES,
    "elf": BASE | SERVICES,
    "memory": BASE | SERVICES | {"elf"},
    "arch": BELOW_FORMATS,
    "formats": BELOW_FORMATS,
    "kernel": BELOW_FORMATS | {"arch", "formats"},
    # takes columns of plain numbers; knows no dump
    "dwarf": BASE | {"elf"},
    # these run inside gdb's own Python as well
    "plain": frozenset({"errors", "safe_text"}),
    "gdbside": frozenset({"errors", "safe_text", "plain"}),
    "jobs": BELOW_JOBS | {"dwarf", "plain", "gdbside"},
    "cli": BELOW_JOBS | {"dwarf", "plain", "gdbside", "jobs"},
}
INSIDE_GDB = frozenset({"plain", "gdbside"})
# _typeshed exists for type checkers only
OPTIONAL = {"rich": "import it where a terminal needs it"} | dict.fromkeys(
    ("cramjam", "isal", "lzallright"), "import it where a codec is loaded"
)
THIRD_PARTY = frozenset({"numpy", "elftools", "_typeshed", *OPTIONAL})
NEED_ELFTOOLS = frozenset({"kernel.dwarf_file", "kernel.dwarf_unit"})
_WITH_DOTS = tuple(f"{name}." for name in NEED_ELFTOOLS)


@dataclass(frozen=True)
class Violation:
    """One import that the rule forbids."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def _targets(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute dotted name, at the top of the module) of every import; package is the importer's."""
    top_level = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in top_level
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            parts = parts + (node.module or "").split(".") if node.module else parts
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name]), id(node) in top_level


def _complaint(root_name: str, module: str, target: str, at_top: bool) -> str | None:
    unit = module.split(".", maxsplit=1)[0]
    head, _, rest = target.partition(".")
    if head == root_name:
        if at_top and module not in NEED_ELFTOOLS and f"{rest}.".startswith(_WITH_DOTS):
            return "this needs pyelftools, which is optional: import it where DWARF is read"
        other = rest.split(".")[0]
        if other in (unit, "") or other not in ALLOWED or other in ALLOWED[unit]:
            # a name that is no unit is an attribute of the package itself
            return None
        return f"{unit} must not import {other}"
    if head in sys.stdlib_module_names:
        return None
    if unit in INSIDE_GDB:
        return None if (unit, head) == ("gdbside", "gdb") else f"{unit} runs inside gdb: no {head} there"
    if head not in THIRD_PARTY:
        return f"{head} is no dependency of this package"
    return _optional(module, head, at_top)


def _optional(module: str, head: str, at_top: bool) -> str | None:
    if head in OPTIONAL and at_top:
        return f"{head} is optional: {OPTIONAL[head]}"
    if head == "elftools" and module not in NEED_ELFTOOLS:
        return f"pyelftools is optional: only {', '.join(sorted(NEED_ELFTOOLS))} may import it"
    return None


def check_file(path: Path, root: Path) -> Iterator[Violation]:
    """Every forbidden import of one source file below root, the package's folder."""
    inside = path.relative_to(root)
    unit = inside.parts[0].removesuffix(".py")
    if unit not in ALLOWED:
        yield Violation(path, 1, f"{unit} is not in the import rule: add it to ALLOWED with what it may see")
        return
    package = [root.name, *inside.parent.parts]
    module = ".".join(inside.with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for line, target, at_top in _targets(tree, package):
        what = _complaint(root.name, module, target, at_top)
        if what:
            yield Violation(path, line, what)


def check_tree(root: Path) -> list[Violation]:
    """Every forbidden import below root, in the order of the files."""
    return [violation for path in sorted(root.rglob("*.py")) for violation in check_file(path, root)]


def main(argv: list[str]) -> int:
    """Print the violations of the package folder given; 1 when there are any."""
    root = Path(argv[0])
    if not root.is_dir():
        print(f"error: no folder {root}", file=sys.stderr)
        return 2
    violations = check_tree(root)
    for violation in violations:
        print(violation)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
