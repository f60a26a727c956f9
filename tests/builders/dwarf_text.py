"""What pyelftools reads out of debugging entries, as text much like C."""

from __future__ import annotations

import io
from typing import Any

from elftools.elf.elffile import ELFFile

from kdump_elftool.dwarf.btf_to_dwarf import DebugSections
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import Section, symbol_file

_WORDS = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_union_type": "union",
    "DW_TAG_enumeration_type": "enum",
    "DW_TAG_const_type": "const",
    "DW_TAG_volatile_type": "volatile",
    "DW_TAG_restrict_type": "restrict",
}


def debug_file(sections: DebugSections, kind: ElfKind, machine: int = 0) -> bytes:
    """An ELF file of these sections; without ``machine`` of one that has both byte orders."""
    names = ("info", "abbrev", "str", "rnglists", "aranges")
    debug = [Section(f".debug_{name}", data=getattr(sections, name)) for name in names]
    return symbol_file(kind, machine or {32: c.EM_MIPS, 64: c.EM_PPC64}[kind.bits], debug)


def units(sections: DebugSections, kind: ElfKind) -> list[Any]:
    """The top entries of all units, read to the last byte."""
    dwarf = ELFFile(io.BytesIO(debug_file(sections, kind))).get_dwarf_info()
    found = list(dwarf.iter_CUs())
    for unit in found:
        assert list(unit.iter_DIEs())[-1].is_null()
    return [unit.get_top_DIE() for unit in found]


def value(die: Any, name: str) -> Any:
    """An attribute, None where there is none; texts as str."""
    found = die.attributes.get(f"DW_AT_{name}")
    got = None if found is None else found.value
    return got.decode() if isinstance(got, bytes) else got


def described(top: Any) -> dict[str, str]:
    """Name (with its tag) and text of all that has a name below a unit's entry."""
    return {
        key: text(die)
        for die in top.iter_children()
        if (key := f"{_WORDS.get(die.tag, '')} {value(die, 'name') or ''}".strip())
    }


def referred(die: Any) -> str:
    """What the entry's type is called."""
    if "DW_AT_type" not in die.attributes:
        return "void"
    target = die.get_DIE_from_attribute("DW_AT_type")
    name, tag = value(target, "name"), target.tag
    if tag in ("DW_TAG_base_type", "DW_TAG_typedef"):
        return str(name)
    if tag in ("DW_TAG_structure_type", "DW_TAG_union_type", "DW_TAG_enumeration_type") and name:
        return f"{_WORDS[tag]} {name}"
    return text(target)


def text(die: Any) -> str:
    """An entry and what is below it."""
    tag = die.tag
    if tag == "DW_TAG_pointer_type":
        return f"*{value(die, 'byte_size')} {referred(die)}"
    if tag in ("DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type"):
        return f"{_WORDS[tag]} {referred(die)}"
    if tag == "DW_TAG_base_type":
        return f"{value(die, 'name')} size {value(die, 'byte_size')} encoding {value(die, 'encoding')}"
    if tag == "DW_TAG_typedef":
        return f"typedef {referred(die)}"
    if tag == "DW_TAG_array_type":
        (index,) = die.iter_children()
        assert index.tag == "DW_TAG_subrange_type"
        return f"{referred(die)}[{'' if value(index, 'count') is None else value(index, 'count')}]"
    if tag == "DW_TAG_subroutine_type":
        return f"{referred(die)} ({_parameters(die)})"
    if tag == "DW_TAG_subprogram":
        low, size = value(die, "low_pc"), value(die, "high_pc")
        linkage = "" if value(die, "external") else "static "
        return f"{linkage}{referred(die)} ({_parameters(die)}) at {low:#x} size {size:#x}"
    if tag == "DW_TAG_variable":
        return f"{referred(die)} at {bytes(value(die, 'location')).hex()}"
    return _with_elements(die)


def _with_elements(die: Any) -> str:
    if value(die, "declaration"):
        return f"{_WORDS[die.tag]};"
    inside = "; ".join(_element(child) for child in die.iter_children())
    kind = (
        f" of {referred(die)}"
        if die.tag == "DW_TAG_enumeration_type" and "DW_AT_type" in die.attributes
        else ""
    )
    return f"{_WORDS[die.tag]}{kind} {value(die, 'byte_size')} {{{inside}}}"


def _element(die: Any) -> str:
    if die.tag == "DW_TAG_enumerator":
        return f"{value(die, 'name')} = {value(die, 'const_value')}"
    assert die.tag == "DW_TAG_member", die.tag
    where = f"@{value(die, 'data_member_location')}"
    if value(die, "bit_size") is not None:
        where = f":{value(die, 'bit_size')} @bit {value(die, 'data_bit_offset')}"
    return f"{referred(die)} {value(die, 'name') or ''}".strip() + f" {where}"


def _parameters(die: Any) -> str:
    shown = []
    for child in die.iter_children():
        if child.tag == "DW_TAG_unspecified_parameters":
            shown.append("...")
        else:
            shown.append(f"{referred(child)} {value(child, 'name') or ''}".strip())
    return ", ".join(shown)
