"""The modules' part of a vmlinux that is made of a dump."""

from __future__ import annotations

from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.module_parts import module_parts, module_types
from kdump_elftool.kernel.btf import Btf
from kdump_elftool.kernel.words import Words
from tests.builders import btf as b
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


def test_types_that_are_given():
    """By the name of the module, behind the kernel's own."""
    base = b.BtfWriter()
    base.struct("of_kernel", 4, [("number", base.integer("int", 4, 1), 0)])
    w = b.BtfWriter(base=base)
    w.struct("of_module", 4, [("number", 1, 0)])
    dump, kernel, _ = open_modules(Made(b"one"), Made(b"other"))
    known = knowledge(dump, kernel)
    words = Words(kernel.virtual(dump))
    whole = Btf.parse(base.finish(), "<", 8, "kernel")
    assert whole is not None
    given = {"other": w.finish(), "third": w.finish()}
    ((part, types),) = module_types(words, known, whole, module_parts(dump, kernel, known), given)
    assert part.name == "[other]"
    assert (types.first, len(types)) == (2, 3)
    assert types.find("SIZE", "of_module") is not None
