"""The modules' part of a vmlinux that is made of a dump."""

from __future__ import annotations

from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.module_parts import module_parts
from tests.builders.modules import Made
from tests.unit.jobs.modulekernel import open_modules


def test_each_module_has_its_own_names_only():
    """All modules' symbols are read in one piece, which is not to be stored again for every module."""
    made = {name: (name + b"_open", name + b"_close") for name in (b"one", b"other", b"third")}
    modules = [
        Made(name, symbols=((first, 0x10, 0x20, "t"), (second, 0x30, 8, "T")))
        for name, (first, second) in made.items()
    ]
    dump, kernel, _ = open_modules(*modules)
    found = module_parts(dump, kernel, knowledge(dump, kernel))
    assert [part.name for part in found.parts] == ["[one]", "[other]", "[third]"]
    for part, names in zip(found.parts, made.values(), strict=True):
        own = part.symbols.names
        assert [own[row] for row in range(len(own))] == list(names)
        assert own.text == b"\0".join(names)
