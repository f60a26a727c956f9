"""One compilation unit's types, and the answers they give about structs.

The questions are those of :mod:`kernel.facts`, answered as :mod:`kernel.btf` does.  Only the entries
directly below the unit are indexed: the kernel's structures are not made of types from elsewhere.
Declarations (DW_AT_declaration) tell nothing and are left out.

This module needs pyelftools, which is optional: it is imported where DWARF is read.  References: DWARF 5
sections 5.3 to 5.7 (types), 5.7.6 (data_bit_offset; DWARF 3 section 5.6.6 for what was before it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE

from kdump_elftool.kernel.dwarf_file import DwarfFile, children

_DEEPEST = 32
_STRUCTS = ("DW_TAG_structure_type", "DW_TAG_union_type")
_ENUM = "DW_TAG_enumeration_type"
_ALIASES = (
    "DW_TAG_typedef",
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)
_NAMED = (*_STRUCTS, _ENUM, "DW_TAG_base_type", "DW_TAG_typedef")
_PLUS_UCONST = 0x23
_ENDLESS = {"DW_FORM_data4": 0xFFFFFFFF, "DW_FORM_data8": (1 << 64) - 1}
"""Upper bounds that older compilers give arrays without elements."""


@dataclass(frozen=True)
class Member:
    """A member within its outermost struct: bits from the start, width of a bit field or 0, type."""

    bit_offset: int
    bit_size: int
    type: DIE | None


@dataclass(frozen=True)
class Answer:
    """What a unit knows: ``value`` None if it knows the type, and that there is no such thing in it."""

    value: int | None


@dataclass(frozen=True)
class DwarfUnit:
    """Types and variables of a unit by name, and the enumerations, as offsets of their entries."""

    file: DwarfFile
    cu: CompileUnit
    name: str
    types: dict[str, list[int]]
    variables: dict[str, list[int]]
    enums: list[int]

    @classmethod
    def read(cls, file: DwarfFile, cu: CompileUnit) -> DwarfUnit:
        """Index a unit.  Raises what ``dwarf_file.DAMAGED`` lists, as all methods do."""
        types: dict[str, list[int]] = {}
        variables: dict[str, list[int]] = {}
        enums: list[int] = []
        top = cu.get_top_DIE()
        for die in children(top, file.budget):
            if "DW_AT_declaration" in die.attributes and die.tag != "DW_TAG_variable":
                continue
            if die.tag == _ENUM:
                enums.append(die.offset)
            name = _name(die)
            if name is None and die.tag == "DW_TAG_variable" and "DW_AT_specification" in die.attributes:
                name = _name(die.get_DIE_from_attribute("DW_AT_specification"))
            if name is None:
                continue
            if die.tag in _NAMED:
                types.setdefault(name, []).append(die.offset)
            elif die.tag == "DW_TAG_variable":
                variables.setdefault(name, []).append(die.offset)
        return cls(file, cu, _name(top) or "", types, variables, enums)

    def answer(self, kind: str, name: str) -> Answer | None:
        """The answer to ``KIND(name)``; None when this unit does not know the type or name at all."""
        if kind == "NUMBER":
            return self._number(name)
        head, _, path = name.partition(".")
        if kind == "LENGTH" and not path:
            return self._variable_length(head)
        offsets = self.types.get(head)
        if not offsets:
            return None
        ask = {"OFFSET": self._offset, "SIZE": self._size, "LENGTH": self._length}[kind]
        values = (ask(self.cu.get_DIE_from_refaddr(offset), path) for offset in offsets)
        return Answer(next((value for value in values if value is not None), None))

    def member(self, struct: DIE, path: str) -> Member | None:
        """``a.b`` of a struct or union."""
        bits, found, at = 0, None, struct
        for name in path.split("."):
            inner = resolve(at)
            found = None if inner is None or not name else self._member(inner, name, 0)
            if found is None or found.type is None:
                return None
            bits, at = bits + found.bit_offset, found.type
        return None if found is None else Member(bits, found.bit_size, found.type)

    def _member(self, struct: DIE, name: str, depth: int) -> Member | None:
        if depth > _DEEPEST or struct.tag not in _STRUCTS:
            return None
        unnamed = []
        for die in children(struct, self.file.budget):
            if die.tag != "DW_TAG_member":
                continue
            if _name(die) == name:
                return self._read_member(die)
            if _name(die) is None:
                unnamed.append(die)
        for die in unnamed:
            outer = self._read_member(die)
            inner = None if outer.type is None else resolve(outer.type)
            found = None if inner is None else self._member(inner, name, depth + 1)
            if found is not None:
                return Member(outer.bit_offset + found.bit_offset, found.bit_size, found.type)
        return None

    def _read_member(self, die: DIE) -> Member:
        bits = 8 * _location(die)
        width = _constant(die, "DW_AT_bit_size") or 0
        kind = type_of(die)
        within = _constant(die, "DW_AT_data_bit_offset")
        from_top = _constant(die, "DW_AT_bit_offset")
        if within is not None:
            bits += within
        elif from_top is not None:
            # counted from the most significant bit of the storage unit
            storage = _constant(die, "DW_AT_byte_size") or (self.size_of(kind) if kind else None) or 0
            bits += 8 * storage - from_top - width if self.file.order == "<" else from_top
        return Member(bits, width, kind)

    def size_of(self, die: DIE) -> int | None:
        """Bytes of a type."""
        count = 1
        for _ in range(_DEEPEST):
            found = resolve(die)
            if found is None:
                return None
            size = _constant(found, "DW_AT_byte_size")
            if size is not None:
                return count * size
            if found.tag == "DW_TAG_pointer_type":
                return count * int(self.cu["address_size"])
            following = type_of(found)
            if found.tag != "DW_TAG_array_type" or following is None:
                return None
            for elements in self._dimensions(found):
                count *= elements
            die = following
        return None

    def _dimensions(self, array: DIE) -> Iterator[int]:
        for die in children(array, self.file.budget):
            if die.tag not in ("DW_TAG_subrange_type", "DW_TAG_enumeration_type"):
                continue
            count = _constant(die, "DW_AT_count")
            bound = die.attributes.get("DW_AT_upper_bound")
            if count is not None:
                yield max(count, 0)
            elif bound is None or not isinstance(bound.value, int):
                yield 0
            else:
                yield 0 if bound.value == _ENDLESS.get(bound.form) else max(bound.value + 1, 0)

    def _offset(self, die: DIE, path: str) -> int | None:
        member = self.member(die, path)
        return None if member is None or member.bit_offset % 8 else member.bit_offset // 8

    def _size(self, die: DIE, path: str) -> int | None:
        if not path:
            return self.size_of(die)
        member = self.member(die, path)
        return None if member is None or member.bit_size or not member.type else self.size_of(member.type)

    def _length(self, die: DIE, path: str) -> int | None:
        member = self.member(die, path)
        return None if member is None or member.type is None else self._elements(member.type)

    def _elements(self, die: DIE) -> int | None:
        found = resolve(die)
        if found is None or found.tag != "DW_TAG_array_type":
            return None
        return next(self._dimensions(found), None)

    def _variable_length(self, name: str) -> Answer | None:
        for offset in self.variables.get(name, ()):
            die = self.cu.get_DIE_from_refaddr(offset)
            kind = type_of(die)
            found = None if kind is None else self._elements(kind)
            # an extern declaration without bounds says nothing about the array
            if found or (kind is not None and "DW_AT_declaration" not in die.attributes):
                return Answer(found)
        return None

    def _number(self, name: str) -> Answer | None:
        return Answer(self._enumerators[name]) if name in self._enumerators else None

    @cached_property
    def _enumerators(self) -> dict[str, int | None]:
        """Of all enumerations, the first of each name."""
        found: dict[str, int | None] = {}
        for offset in self.enums:
            for die in children(self.cu.get_DIE_from_refaddr(offset), self.file.budget):
                name = _name(die) if die.tag == "DW_TAG_enumerator" else None
                if name is not None:
                    found.setdefault(name, _constant(die, "DW_AT_const_value"))
        return found


def resolve(die: DIE) -> DIE | None:
    """The type behind typedefs and qualifiers; None for void and for what leads nowhere."""
    found: DIE | None = die
    for _ in range(_DEEPEST):
        if found is None or found.tag not in _ALIASES:
            return found
        found = type_of(found)
    return None


def type_of(die: DIE) -> DIE | None:
    """What DW_AT_type names; None for void."""
    if "DW_AT_type" in die.attributes:
        return die.get_DIE_from_attribute("DW_AT_type")
    if "DW_AT_specification" in die.attributes:
        declared = die.get_DIE_from_attribute("DW_AT_specification")
        return declared.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in declared.attributes else None
    return None


def _name(die: DIE) -> str | None:
    found = die.attributes.get("DW_AT_name")
    return found.value.decode("latin-1") if found is not None and isinstance(found.value, bytes) else None


def _constant(die: DIE, name: str) -> int | None:
    found = die.attributes.get(name)
    return found.value if found is not None and isinstance(found.value, int) else None


def _location(die: DIE) -> int:
    """Bytes from the start of the struct; none are given in unions.  DWARF 2 and 3 give an expression."""
    found = die.attributes.get("DW_AT_data_member_location")
    if found is None:
        return 0
    if isinstance(found.value, int):
        return found.value
    operation, *operands = found.value
    if operation != _PLUS_UCONST:
        raise ValueError(f"a member's place by operation {operation:#x}")
    value = 0
    for index, byte in enumerate(operands):
        value |= (byte & 0x7F) << (7 * index)
    return value
