"""What users give to commands: addresses, tasks, types with a member.

An address is an expression: a number, a variable, ``&init_task.tasks``.  What is a struct or an array
stands for where it lies; a name that gdb knows nothing about but the core does (docs/notes.md, type 4) works
all the same.
"""

from __future__ import annotations

import re
from typing import Any

import gdb

from kdump_elftool.errors import IdentityError
from kdump_elftool.gdbside.find_task import task_address
from kdump_elftool.gdbside.target import GdbTarget
from kdump_elftool.plain.tasks import read_task
from kdump_elftool.plain.walking import known_offset
from kdump_elftool.safe_text import printable

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|\d+")
_NAME = re.compile(r"[A-Za-z_]\w*")
_TYPE = re.compile(r"(?:(?:struct|union) +)?([A-Za-z_]\w*)")
_MEMBER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_PLACES = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION, gdb.TYPE_CODE_ARRAY, gdb.TYPE_CODE_FUNC)


def address(target: GdbTarget, word: str) -> int:
    """The address that a word stands for.  Raises gdb.GdbError."""
    mask = (1 << 8 * target.word) - 1
    if _NUMBER.fullmatch(word):
        return int(word, 0 if word[:2] in ("0x", "0X") else 10) & mask
    try:
        return _of_value(gdb.parse_and_eval(word)) & mask
    except (gdb.error, ValueError) as error:
        known = target.symbol(word) if _NAME.fullmatch(word) else None
        if known is None:
            raise gdb.GdbError(f"{word}: {error}") from None
        return known


def _of_value(value: Any) -> int:
    if value.type.strip_typedefs().code in _PLACES:
        if value.address is None:
            raise ValueError("this has no address")
        return int(value.address)
    return int(value)


def number(word: str) -> int:
    """A whole number, decimal or with 0x.  Raises gdb.GdbError."""
    if not _NUMBER.fullmatch(word):
        raise gdb.GdbError(f"{word} is not a number")
    return int(word, 0 if word[:2] in ("0x", "0X") else 10)


class Chosen:
    """A task that the user named, by its number or by the address of its task_struct.

    ``tid`` is the number under which a core has it: that of the idle task of CPU n is -(n + 1).
    """

    def __init__(self, target: GdbTarget, word: str) -> None:
        found = -number(word[1:]) if word.startswith("-") else number(word)
        self.vaddr = found if found >= 1 << 24 else task_address(target, found)
        task = read_task(target, self.vaddr, -found - 1 if found < 0 else -1)
        self.comm = b"?" if task is None else task.comm
        self.tid = found if task is None else task.lwp


class Container:
    """What a list's nodes are inside of: TYPE MEMBER, and members to show with each."""

    def __init__(self, target: GdbTarget, words: list[str]) -> None:
        """Without words the nodes stand for themselves.  Raises gdb.GdbError, IdentityError."""
        self.offset, self.type, self.fields = 0, "", tuple(words[2:])
        if not words:
            return
        kind = _TYPE.fullmatch(words[0])
        if kind is None or len(words) == 1 or not _MEMBER.fullmatch(words[1]):
            raise gdb.GdbError("behind the address go a type and the member that links it: task_struct tasks")
        self.type = kind[1]
        inside = known_offset(target, f"{self.type}.{words[1]}")
        if inside is None:
            raise IdentityError(
                f"OFFSET({self.type}.{words[1]})",
                f"there is no {words[1]} in struct {self.type}, or gdb has no types",
                hint="symbol-file -o OFFSET vmlinux loads them",
            )
        self.offset = inside

    def shown(self, node: int, mask: int) -> str:
        """The line of a node."""
        vaddr = (node - self.offset) & mask
        return "  ".join([f"{vaddr:#x}", *(f"{name} = {self._field(vaddr, name)}" for name in self.fields)])

    def _field(self, vaddr: int, name: str) -> str:
        try:
            value = gdb.parse_and_eval(f"(({spelled(self.type)} *) {vaddr:#x})->{name}")
            if _is_text(value):
                return f'"{printable(value.string("latin-1"))}"'
            form = {"format": "x"} if _is_bytes(value) else {}
            return str(value.format_string(max_elements=64, pretty_structs=False, **form))
        except gdb.error as error:
            return f"<{error}>"


def spelled(name: str) -> str:
    """A type as an expression has it: gdb takes no union for a struct."""
    for word in ("struct ", "union ", ""):
        try:
            gdb.lookup_type(word + name)
        except gdb.error:
            continue
        return word + name
    return f"struct {name}"


def _is_text(value: Any) -> bool:
    """An array of char; others of a byte each, such as the addresses of a net_device, are numbers."""
    element = _element(value)
    return element is not None and element.name == "char"


def _is_bytes(value: Any) -> bool:
    element = _element(value)
    return element is not None and element.code == gdb.TYPE_CODE_INT and element.sizeof == 1


def _element(value: Any) -> Any:
    """The type of what an array consists of; None of anything else."""
    kind = value.type.strip_typedefs()
    return kind.target().strip_typedefs().unqualified() if kind.code == gdb.TYPE_CODE_ARRAY else None
