"""What runs in gdb's Python 3.9: no union of types but in annotations, which vermin does not see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdump_elftool

PACKAGE = Path(kdump_elftool.__file__).parent
FILES = [
    *(PACKAGE / name for name in ("errors.py", "safe_text.py")),
    *sorted((PACKAGE / "plain").glob("*.py")),
    *sorted((PACKAGE / "gdbside").glob("*.py")),
]
TYPES = ("str", "int", "bytes", "bool", "float", "list", "dict", "tuple", "set", "object")


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """All below a node that is not an annotation: those are text (``from __future__ import annotations``)."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                yield child
                yield from evaluated(child)


def unions(source: str) -> list[int]:
    """Lines with a union that Python 3.9 would have to compute."""
    return [
        node.lineno
        for node in evaluated(ast.parse(source))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
        for side in (node.left, node.right)
        if (isinstance(side, ast.Constant) and side.value is None)
        or (isinstance(side, ast.Name) and side.id in TYPES)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_union_is_computed(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert "from __future__ import annotations" in source or not source.strip().count("\n")
    assert unions(source) == []


def test_unions_are_noticed() -> None:
    assert unions("A = tuple[int | None]\nisinstance(x, str | bytes)\n") == [1, 1, 2, 2]
    assert unions("def f(x: int | None) -> str | None:\n    y: int | None = 1 | 2\n") == []
