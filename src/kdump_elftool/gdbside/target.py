"""The kernel that gdb has open, as the plain readers see it (``plain.target.Target``).

Symbols and layouts come from the note that ``tovelf`` puts into a core (docs/notes.md, type 4), where
asking costs nothing.  What is not in there is asked of gdb, which may have to read the types of a whole
vmlinux for it: up to 20 s, once.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import gdb

from kdump_elftool.errors import FaultError
from kdump_elftool.gdbside.at_work import patience, types_are_read
from kdump_elftool.gdbside.core_file import LAYOUT, SUMMARY, TASKS, CoreFile, core_path

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_EM_MIPS = 8
_MOST_FIELDS = 1 << 16
"""Of a struct and the anonymous ones in it, which forged types have in each other many times over."""
_TELLS_TYPES = "OFFSET(task_struct.comm)"
"""No VMCOREINFO has it: who answers that knows all types, and a member not found is not in this kernel."""


class GdbTarget:
    """What is read stays in gdb; answers are remembered for as long as core and symbols are the same."""

    def __init__(self, core: CoreFile | None) -> None:
        self.core = core
        self._answers: dict[str, int | None] = {}
        if core is not None:
            told = core.document(LAYOUT).get("answers")
            self._answers = _checked(told if isinstance(told, dict) else {})
        if self._answers.get(_TELLS_TYPES) is None:
            # whoever wrote the core knew no types: gdb may
            self._answers = {key: value for key, value in self._answers.items() if value is not None}
        self.summary = {} if core is None else core.document(SUMMARY)

    @property
    def order(self) -> str:
        """``<`` or ``>``."""
        if self.core is not None:
            return self.core.order
        return ">" if "big" in gdb.execute("show endian", to_string=True) else "<"

    @property
    def word(self) -> int:
        """4 or 8."""
        return self.core.word if self.core is not None else int(gdb.lookup_type("long").sizeof)

    def read(self, vaddr: int, size: int, /) -> bytes:
        """Exactly ``size`` bytes.  Raises FaultError."""
        if not 0 <= vaddr <= (1 << (8 * self.word)) - size:
            raise FaultError("vaddr", vaddr, "beyond the last address")
        patience.tick()
        if not size:
            return b""
        try:
            return bytes(gdb.selected_inferior().read_memory(vaddr | self._upper_bits(vaddr), size))
        except (gdb.error, OverflowError):
            raise FaultError("vaddr", vaddr, "not in the core") from None

    def _upper_bits(self, vaddr: int) -> int:
        """gdb takes addresses of a 32-bit MIPS for signed ones, as the CPU does (BFD: sign_extend_vma)."""
        signed = self.core is not None and self.core.machine == _EM_MIPS and self.core.word == 4
        return -1 << 32 & (1 << 64) - 1 if signed and vaddr >> 31 else 0

    def symbol(self, name: str, /) -> int | None:
        """Address of a variable; of a per-CPU one, as the kernel's symbol table has it."""
        return self._answer("SYMBOL", name, _symbol)

    def offset(self, name: str, /) -> int | None:
        """Byte offset of ``struct.member``."""
        return self._answer("OFFSET", name, _offset)

    def size(self, name: str, /) -> int | None:
        """Bytes of a type, or of ``struct.member``."""
        return self._answer("SIZE", name, _size)

    def length(self, name: str, /) -> int | None:
        """Elements of the array ``struct.member``, or of a variable."""
        return self._answer("LENGTH", name, _length)

    def number(self, name: str, /) -> int | None:
        """An enumerator."""
        return self._answer("NUMBER", name, _number)

    def fact(self, name: str) -> str | None:
        """What the core says of its kernel (docs/notes.md, type 1)."""
        facts = self.summary.get("facts")
        for fact in facts if isinstance(facts, list) else ():
            if isinstance(fact, dict) and fact.get("name") == name and isinstance(fact.get("value"), str):
                return str(fact["value"])
        return None

    def tasks(self) -> list[dict[str, Any]]:
        """The table of the threads that a core made with -p carries; else empty."""
        rows = [] if self.core is None else self.core.document(TASKS).get("tasks")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def tasks_by_lwp(self) -> dict[int, dict[str, Any]]:
        """The same, by the number of the thread."""
        return {row["lwp"]: row for row in self.tasks() if type(row.get("lwp")) is int}

    def _answer(self, kind: str, name: str, ask: Any) -> int | None:
        key = f"{kind}({name})"
        if key not in self._answers or (kind == "SYMBOL" and self._answers[key] is None):
            self._answers[key] = ask(name) if _NAME.fullmatch(name) else None
        return self._answers[key]


class _Opened(NamedTuple):
    """A core, and the files of symbols by which questions were answered."""

    path: str
    stamp: tuple[int, int, int]
    symbols: list[Any]
    target: GdbTarget


_open: list[_Opened] = []


def target() -> GdbTarget:
    """The target of the core that is open now.  Raises gdb.GdbError when there is none.

    Another core, or other symbols, may answer what was not known before.
    """
    path = core_path()
    if path is None:
        raise gdb.GdbError("no core is open: core-file FILE opens one that 'kdump-elftool tovelf' made")
    stamp, symbols = _stamp(path), gdb.objfiles()
    before = _open.pop() if _open else None
    if before is not None and (before.path, before.stamp) == (path, stamp):
        now = before.target if before.symbols == symbols else GdbTarget(before.target.core)
    else:
        now = GdbTarget(_core(path))
    _open.append(_Opened(path, stamp, symbols, now))
    return now


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


def _core(path: str) -> CoreFile | None:
    try:
        return CoreFile(path)
    except (OSError, ValueError):
        return None


def symbols_alone() -> GdbTarget:
    """The kernel by its vmlinux, before there is a core.  Raises gdb.GdbError when none is loaded."""
    if not gdb.objfiles():
        raise gdb.GdbError("no symbols are loaded: file vmlinux loads those of a kernel")
    return GdbTarget(None)


def _checked(told: dict[str, Any]) -> dict[str, int | None]:
    """The core may be a forgery; a number is a number."""
    return {
        key: value
        for key, value in told.items()
        if value is None or (type(value) is int and -(1 << 63) <= value < 1 << 64)
    }


def member_place(struct: str, path: str) -> tuple[Any, int] | None:
    """The type ``struct``, and how many bytes behind its beginning ``path`` is; None without types."""
    name = struct.removeprefix("struct ")
    if not _NAME.fullmatch(f"{name}.{path}"):
        return None
    found = _member(f"{name}.{path}")
    return None if found is None else (lookup_type(name), int(found[0]) // 8)


def _symbol(name: str) -> int | None:
    value = _address(name)
    if not value or value >> 63:
        return value
    # gdb has moved what counts from 0, as per-CPU variables of x86_64 did until v6.14, like all the rest
    start, end, text = (_address(each) for each in ("__per_cpu_start", "__per_cpu_end", "_stext"))
    if start is None or end is None or text is None or not text >> 63 or not start <= value <= end:
        return value
    return value - start


def _address(name: str) -> int | None:
    try:
        return int(gdb.parse_and_eval(f"(unsigned long)&{name}"))
    except gdb.error:
        return None


def lookup_type(name: str) -> Any:
    """A type by its name; None when gdb knows none."""
    types_are_read()
    for word in ("struct ", "union ", ""):
        try:
            return gdb.lookup_type(word + name).strip_typedefs()
        except gdb.error:
            continue
    return None


def _member(name: str) -> tuple[int, Any] | None:
    """Bit offset within the struct, and the field."""
    struct, *path = name.split(".")
    kind, bits, found = lookup_type(struct), 0, None
    for member in path:
        step = None if kind is None else within(kind, member)
        if step is None:
            return None
        bits += step[0]
        found = step[1]
        kind = found.type.strip_typedefs()
    return None if found is None else (bits, found)


def within(kind: Any, member: str) -> tuple[int, Any] | None:
    """A member of a struct, or of an anonymous one in it: bits behind its beginning, and the field."""
    return _within(kind, member, [_MOST_FIELDS])


def _within(kind: Any, member: str, left: list[int]) -> tuple[int, Any] | None:
    """``left`` is how many fields may still be looked at."""
    if kind.code not in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION) or left[0] <= 0:
        return None
    fields = kind.fields()
    left[0] -= len(fields)
    for each in fields:
        if each.name == member:
            return each.bitpos, each
        if not each.name:
            inner = _within(each.type.strip_typedefs(), member, left)
            if inner is not None:
                return each.bitpos + inner[0], inner[1]
    return None


def _offset(name: str) -> int | None:
    found = _member(name)
    return None if found is None else int(found[0]) // 8


def _size(name: str) -> int | None:
    if "." in name:
        found = _member(name)
        return None if found is None else int(found[1].type.sizeof)
    kind = lookup_type(name)
    return None if kind is None else int(kind.sizeof)


def _length(name: str) -> int | None:
    if "." in name:
        found = _member(name)
        kind = None if found is None else found[1].type.strip_typedefs()
    else:
        kind = _type_of_variable(name)
    if kind is None or kind.code != gdb.TYPE_CODE_ARRAY:
        return None
    if str(kind).endswith("[]"):  # gdb took a declaration of it: where it is defined is in the list
        return None if "." in name else _defined_length(name)
    low, high = kind.range()
    return int(high) - int(low) + 1


def _defined_length(name: str) -> int | None:
    listed = gdb.execute(f"info variables -q ^{name}$", to_string=True)
    found = re.search(rf"\b{name}\[(\d+)\]", listed)
    return None if found is None else int(found[1])


def _type_of_variable(name: str) -> Any:
    try:
        return gdb.parse_and_eval(name).type.strip_typedefs()
    except gdb.error:
        return None


def _number(name: str) -> int | None:
    try:
        return int(gdb.parse_and_eval(name))
    except gdb.error:
        return None
