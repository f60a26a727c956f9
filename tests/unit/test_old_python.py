"""What runs in gdb runs in Python 3.9, where types can't be joined by ``|`` yet.

Annotations may, since nobody evaluates them; vermin, which checks the rest, does not tell the two apart.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdump_elftool

ROOT = Path(kdump_elftool.__file__).parent
FILES = [*ROOT.glob("plain/*.py"), *ROOT.glob("gdbside/*.py"), ROOT / "errors.py", ROOT / "safe_text.py"]
TYPES = {name for name, value in vars(builtins).items() if isinstance(value, type)}


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without annotations and what is there for a type checker."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from evaluated(child)


def is_type(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return is_type(node.value)
    return (isinstance(node, ast.Constant) and node.value is None) or (
        isinstance(node, ast.Name) and node.id in TYPES
    )


def joined(source: str) -> list[int]:
    """Lines in which types are joined."""
    return [
        node.lineno
        for node in evaluated(ast.parse(source))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.BitOr)
        and (is_type(node.left) or is_type(node.right))
    ]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("Open = Callable[[str], tuple[int, bytes | None]]", [1]),
        ("x = 1\nisinstance(x, int | list[str])", [2]),
        ("x: int | None = 1\ndef f(a: str | None) -> int | None: ...", []),
        ("Open = Callable[[str], 'bytes | None']\nx = FLAG | OTHER", []),
        ("if TYPE_CHECKING:\n    Open = Callable[[str], bytes | None]", []),
    ],
)
def test_joined_types_are_seen(source: str, lines: list[int]) -> None:
    assert joined(source) == lines


def test_none_are_evaluated() -> None:
    assert len(FILES) > 50
    assert {file.name: lines for file in FILES if (lines := joined(file.read_text()))} == {}
