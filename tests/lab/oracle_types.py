"""drgn as the judge of types: offsets, sizes, lengths and enumerators of a vmlinux, as JSON.

usage: oracle_types.py VMLINUX ANSWER < questions
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn

KEYWORDS = ("struct", "union", "")
"""Tried one after the other: VMCOREINFO's names do not say which it is."""


def type_of(prog: drgn.Program, name: str) -> drgn.Type:
    for keyword in KEYWORDS:
        try:
            return prog.type(f"{keyword} {name}".strip())
        except (LookupError, SyntaxError):
            continue
    raise LookupError(name)


def member_type(kind: drgn.Type, path: str) -> drgn.Type:
    for name in path.split("."):
        while kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
        member = kind.member(name)
        if member.bit_field_size is not None:
            raise ValueError("a bit field")
        kind = member.type
    return kind


def answer(prog: drgn.Program, question: str) -> int | None:
    what, _, rest = question.partition("(")
    name = rest.removesuffix(")")
    struct, _, path = name.partition(".")
    try:
        if what == "NUMBER":
            return prog.constant(name).value_()
        if what == "LENGTH" and not path:
            return prog.variable(name).type_.length
        kind = type_of(prog, struct)
        if what == "OFFSET":
            return drgn.offsetof(kind, path) if path else None
        if what == "SIZE":
            return drgn.sizeof(member_type(kind, path) if path else kind)
        found = member_type(kind, path)
        return found.length if found.kind == drgn.TypeKind.ARRAY else None
    except (LookupError, ValueError, TypeError, AttributeError):
        return None


def main() -> None:
    """Answer the questions on stdin, a JSON list."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    module = prog.extra_module("vmlinux", create=True)
    module.try_file(sys.argv[1], force=True)
    assert module.debug_file_status == drgn.ModuleFileStatus.HAVE
    found = {question: answer(prog, question) for question in json.load(sys.stdin)}
    Path(sys.argv[2]).write_text(json.dumps(found))


main()
