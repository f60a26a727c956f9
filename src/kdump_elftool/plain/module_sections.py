"""Where the sections of a module's file went, its build id, and where its symbols are.

The kernel keeps the addresses of all sections for /sys/module/NAME/sections, those that are freed by now
included.  ``attrs[]`` of struct module_sect_attrs holds, for each section, a struct module_sect_attr until
v6.13: its name in ``name`` (until v5.7) or in ``battr`` (v5.8 on, commit ed66f991bb19), and ``address``.
From v6.14 on it holds bin_attributes, the address being their ``private``, and the array ends where the
list ``grp.bin_attrs`` does.  The notes (/sys/module/NAME/notes) have always been bin_attributes.

References: kernel/module/sysfs.c, kernel/module.c before v5.18; include/linux/module.h (struct
mod_kallsyms; before v4.5 its members were in struct module).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.modules import Module, optional_field, read_string
from kdump_elftool.plain.target import Field, Target, field, read_pieces, struct_size, unsigned
from kdump_elftool.plain.walking import words

MOST_SECTIONS = 1 << 12
MOST_SYMBOLS = 1 << 20
_MOST_ELSEWHERE = 256
"""Sections of a module that are not in its memory: those that were freed, and the per-CPU one."""
_AT_ONCE = 64
_MOST_NOTES = 64
_MOST_NOTE = 1 << 12
_LONGEST_NAME = 256
_LONGEST_BUILD_ID = 64
_GNU_BUILD_ID = 3
_BUILD_ID_SIZE = 20

NEEDS: tuple[str, ...] = (
    "OFFSET(module.sect_attrs)",
    "SIZE(module_sect_attrs)",
    "OFFSET(module_sect_attrs.nsections)",
    "OFFSET(module_sect_attrs.grp)",
    "OFFSET(module_sect_attrs.attrs)",
    "SIZE(module_sect_attr)",
    "OFFSET(module_sect_attr.name)",
    "OFFSET(module_sect_attr.battr)",
    "OFFSET(module_sect_attr.address)",
    "SIZE(attribute_group)",
    "OFFSET(attribute_group.bin_attrs)",
    "SIZE(bin_attribute)",
    "OFFSET(bin_attribute.attr)",
    "OFFSET(bin_attribute.private)",
    "OFFSET(bin_attribute.size)",
    "SIZE(attribute)",
    "OFFSET(attribute.name)",
    "OFFSET(module.notes_attrs)",
    "SIZE(module_notes_attrs)",
    "OFFSET(module_notes_attrs.notes)",
    "OFFSET(module_notes_attrs.grp)",
    "OFFSET(module_notes_attrs.attrs)",
    "OFFSET(module.build_id)",
    "OFFSET(module.kallsyms)",
    "SIZE(mod_kallsyms)",
    "OFFSET(mod_kallsyms.symtab)",
    "OFFSET(mod_kallsyms.num_symtab)",
    "OFFSET(mod_kallsyms.strtab)",
    "OFFSET(mod_kallsyms.typetab)",
    "OFFSET(module.symtab)",
    "OFFSET(module.num_symtab)",
    "OFFSET(module.strtab)",
)
"""What this reader asks for; a kernel answers those that it has."""


class Section(NamedTuple):
    """A section by its name in the module's file, and where it was loaded."""

    name: bytes
    vaddr: int


class SymbolTable(NamedTuple):
    """Where a module's symbols are: ``num_symtab`` ELF symbols at ``symtab``, their names in ``strtab``.

    ``strtab_size`` reaches to the end of the memory that the names lie in.  ``typetab`` has a letter for each
    symbol, as nm prints it; it is 0 before v5.2, when the letter was in ``st_info``.
    """

    symtab: int
    num_symtab: int
    strtab: int
    strtab_size: int
    typetab: int


class _Array(NamedTuple):
    """``attrs[]``: how many, and where name, address and size are in an element (-1 for not at all)."""

    start: int
    length: int
    each: int
    name: int
    address: int
    size: int


def read_sections(target: Target, module: Module) -> tuple[Section, ...]:
    """The sections that are in memory now; those that were freed are left out.

    Raises IdentityError where the layout is not known.
    """
    found = []
    left = _MOST_ELSEWHERE
    for name, vaddr, _ in _attributes(target, _sect_array(target, module)):
        if name and module.region_of(vaddr) is not None:
            found.append(Section(name, vaddr))
            continue
        left -= 1
        if not left:
            break
    return tuple(found)


def read_build_id(target: Target, module: Module) -> bytes | None:
    """The build id of the module's file; None where the kernel does not have it."""
    try:
        array = _notes_array(target, module)
    except IdentityError:
        array = None
    for _, vaddr, size in _attributes(target, array):
        if 0 < size <= _MOST_NOTE and module.region_of(vaddr, size) is not None:
            try:
                build_id = build_id_in(target.read(vaddr, size), target.order)
            except FaultError:
                continue
            if build_id is not None:
                return build_id
    # with CONFIG_STACKTRACE_BUILD_ID (v5.14 on)
    member = optional_field(target, "module.build_id", _BUILD_ID_SIZE)
    own = b"" if member is None else module.data[member.offset : member.offset + member.width]
    return own if any(own) else None


def symbol_table(target: Target, module: Module) -> SymbolTable | None:
    """Where the module's symbols are; None where it has none, or what is said of them cannot be.

    Raises IdentityError where the layout is not known.
    """
    word = target.word
    if target.offset("module.kallsyms") is not None:
        vaddr = field(target, "module.kallsyms", word).at(module.data, 0, target.order)
        try:
            data = target.read(vaddr, struct_size(target, "mod_kallsyms"))
        except FaultError:
            return None
        owner = "mod_kallsyms"
    else:
        data, owner = module.data, "module"
    typetab = optional_field(target, f"{owner}.typetab", word) if owner == "mod_kallsyms" else None
    symtab, strtab, types = (
        0 if member is None else member.at(data, 0, target.order)
        for member in (
            field(target, f"{owner}.symtab", word),
            field(target, f"{owner}.strtab", word),
            typetab,
        )
    )
    count = field(target, f"{owner}.num_symtab", 4).at(data, 0, target.order)
    names = module.region_of(strtab)
    fits = module.region_of(symtab, count * symbol_size(word)) is not None
    if not 0 < count <= MOST_SYMBOLS or names is None or not fits:
        return None
    if types and module.region_of(types, count) is None:
        return None
    return SymbolTable(symtab, count, strtab, names.base + names.size - strtab, types)


def symbol_size(word: int) -> int:
    """Bytes of an Elf64_Sym or Elf32_Sym."""
    return 24 if word == 8 else 16


def _sect_array(target: Target, module: Module) -> _Array | None:
    word = target.word
    attrs = field(target, "module.sect_attrs", word).at(module.data, 0, target.order)
    if not attrs:
        return None
    start = attrs + field(target, "module_sect_attrs.attrs", 0).offset
    if target.offset("module_sect_attr.address") is None:  # v6.14 on
        each = struct_size(target, "bin_attribute")
        name = _attribute_name(target)
        address, size = (
            field(target, "bin_attribute.private", word),
            field(target, "bin_attribute.size", word),
        )
        return _Array(
            start, _listed(target, attrs, "module_sect_attrs"), each, name, address.offset, size.offset
        )
    each = struct_size(target, "module_sect_attr")
    address = field(target, "module_sect_attr.address", word)
    old = optional_field(target, "module_sect_attr.name", word)
    if old is not None:
        name = old.offset
    else:
        name = field(target, "module_sect_attr.battr", struct_size(target, "bin_attribute")).offset
        name += _attribute_name(target)
    count = _count(target, attrs, field(target, "module_sect_attrs.nsections", 4))
    return _Array(start, count, each, name, address.offset, -1)


def _notes_array(target: Target, module: Module) -> _Array | None:
    word = target.word
    attrs = field(target, "module.notes_attrs", word).at(module.data, 0, target.order)
    if not attrs:
        return None
    counter = optional_field(target, "module_notes_attrs.notes", 4)
    if counter is not None:
        count = _count(target, attrs, counter)
    else:
        count = _listed(target, attrs, "module_notes_attrs")
    return _Array(
        attrs + field(target, "module_notes_attrs.attrs", 0).offset,
        min(count, _MOST_NOTES),
        struct_size(target, "bin_attribute"),
        _attribute_name(target),
        field(target, "bin_attribute.private", word).offset,
        field(target, "bin_attribute.size", word).offset,
    )


def _attribute_name(target: Target) -> int:
    """Where a bin_attribute has its name."""
    inside = field(target, "bin_attribute.attr", struct_size(target, "attribute"))
    return inside.offset + field(target, "attribute.name", target.word).offset


def _count(target: Target, attrs: int, counter: Field) -> int:
    try:
        return min(unsigned(target, attrs + counter.offset, counter.width), MOST_SECTIONS)
    except FaultError:
        return 0


def _listed(target: Target, attrs: int, owner: str) -> int:
    """How many entries the group's list has, which ends with a NULL."""
    word = target.word
    group = field(target, f"{owner}.grp", struct_size(target, "attribute_group")).offset
    place = attrs + group + field(target, "attribute_group.bin_attrs", word).offset
    try:
        listed = unsigned(target, place, word)
    except FaultError:
        return 0
    for first in range(0, MOST_SECTIONS, _AT_ONCE):
        # what is not there reads as the end
        entries = words(target, read_pieces(target, listed + first * word, _AT_ONCE * word).data)
        if 0 in entries:
            return first + entries.index(0)
    return 0


def _attributes(target: Target, array: _Array | None) -> Iterator[tuple[bytes, int, int]]:
    """(name, address, size) of each element that can be read."""
    if array is None:
        return
    word, order = target.word, target.order
    for at in range(array.length):
        try:
            data = target.read(array.start + at * array.each, array.each)
        except FaultError:
            break
        pointer = Field(array.name, word).at(data, 0, order)
        size = 0 if array.size < 0 else Field(array.size, word).at(data, 0, order)
        name = read_string(target, pointer, _LONGEST_NAME)
        if name is not None:
            yield name, Field(array.address, word).at(data, 0, order), size


def build_id_in(notes: bytes, order: str) -> bytes | None:
    """The build id among ELF notes."""
    byte_order = "little" if order == "<" else "big"
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, kind = (
            int.from_bytes(notes[at + 4 * part : at + 4 * part + 4], byte_order)  # type: ignore[arg-type]
            for part in range(3)
        )
        desc = at + 12 + -(-namesz // 4) * 4
        if kind == _GNU_BUILD_ID and notes[at + 12 : desc] == b"GNU\0":
            whole = 0 < descsz <= _LONGEST_BUILD_ID and desc + descsz <= len(notes)
            return notes[desc : desc + descsz] if whole else None
        at = desc + -(-descsz // 4) * 4
    return None
