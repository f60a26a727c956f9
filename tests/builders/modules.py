"""A kernel memory with loaded modules in it, in each of the layouts that kernels have had.

``first``: until v4.4; ``layout``: v4.5 to v6.3, section attributes as from v5.8 on; ``mem``: v6.14 on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from kdump_elftool.addr import u64
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory
from tests.builders.tasks import Bytes, PlainTarget

BASE = 0x8000_0000
"""Below 2**32, so that 32-bit kernels can be made too."""
ROOM = 0x60000
MODULE_SIZE, PAGE = 0x280, 0x1000
NAME = 56
REGION = 0x2000
"""Bytes of each region of a module; names and symbols of it lie in the second half of its data."""
CODE = 0x1000
"""Bytes of the core that are code, where code and data are one region."""
LAYOUTS = ("first", "layout", "mem")
CPUS = 2

_EVERY = {
    "module.state": 0,
    "module.list": 0x08,
    "module.name": 0x18,
    "module.version": 0x58,
    "module.taints": 0x60,
    "module.percpu": 0x68,
    "module.sect_attrs": 0x70,
    "module.notes_attrs": 0x78,
    "module.source_list": 0x80,
    "module_use.source_list": 0,
    "module_use.source": 0x20,
    "module_sect_attrs.grp": 0,
    "module_sect_attrs.attrs": 0x48,
    "attribute_group.bin_attrs": 0x20,
    "attribute.name": 0,
    "bin_attribute.attr": 0x08,
    "bin_attribute.size": 0x18,
    "bin_attribute.private": 0x20,
    "module_notes_attrs.attrs": 0x48,
}
_SIZES = {
    "module": MODULE_SIZE,
    "module_sect_attrs": 0x48,
    "module_notes_attrs": 0x48,
    "attribute_group": 0x40,
    "attribute": 0x10,
    "bin_attribute": 0x40,
}
_OFFSETS = {
    "first": {
        "module.module_core": 0xA0,
        "module.core_size": 0xA8,
        "module.core_text_size": 0xAC,
        "module.module_init": 0xB0,
        "module.init_size": 0xB8,
        "module.refptr": 0xC0,
        "module.symtab": 0xD0,
        "module.num_symtab": 0xD8,
        "module.strtab": 0xE0,
        "module_sect_attrs.nsections": 0x40,
        "module_sect_attr.name": 0x10,
        "module_sect_attr.address": 0x18,
        "module_notes_attrs.notes": 0x08,
    },
    "layout": {
        "module.core_layout": 0xA0,
        "module.init_layout": 0xC0,
        "module_layout.base": 0,
        "module_layout.size": 0x08,
        "module_layout.text_size": 0x0C,
        "module.refcnt": 0xE0,
        "module.kallsyms": 0xE8,
        "mod_kallsyms.symtab": 0,
        "mod_kallsyms.num_symtab": 0x08,
        "mod_kallsyms.strtab": 0x10,
        "mod_kallsyms.typetab": 0x18,
        "module_sect_attrs.nsections": 0x40,
        "module_sect_attr.battr": 0,
        "module_sect_attr.address": 0x40,
        "module_notes_attrs.notes": 0x08,
    },
    "mem": {
        "module.mem": 0xA0,
        "module_memory.base": 0,
        "module_memory.size": 0x10,
        "module.refcnt": 0x200,
        "module.kallsyms": 0x208,
        "mod_kallsyms.symtab": 0,
        "mod_kallsyms.num_symtab": 0x08,
        "mod_kallsyms.strtab": 0x10,
        "mod_kallsyms.typetab": 0x18,
        "module_notes_attrs.grp": 0,
    },
}
_MORE_SIZES = {
    "first": {"module_sect_attr": 0x20, "module_ref": 16},
    "layout": {"module_sect_attr": 0x48, "module_layout": 0x20, "mod_kallsyms": 0x20},
    "mem": {"module_memory": 0x20, "module.mem": 7 * 0x20, "mod_kallsyms": 0x20},
}
_KINDS = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")


@dataclass(frozen=True)
class Made:
    """A module to be made: ``sections`` by name, their offsets in its text, data (a region on from it) or,
    with ``init.`` in the name, init part; ``symbols`` are (name, offset in the text, size, letter).
    """

    name: bytes = b"lab"
    sections: tuple[tuple[bytes, int], ...] = ((b".text", 0), (b".data", REGION), (b".init.text", 0))
    symbols: tuple[tuple[bytes, int, int, str], ...] = ((b"lab_open", 0x10, 0x20, "t"),)
    build_id: bytes = bytes(range(20))
    version: bytes = b""
    state: int = 0
    taints: int = 0
    references: int = 0
    users: tuple[int, ...] = ()
    initialised: bool = True
    percpu: int = 0


@dataclass
class ModuleMemory:
    """Memory at BASE.  ``offsets`` and ``sizes`` may be changed before it is read; ``places`` are the
    addresses of the modules, ``texts`` and ``inits`` those of their regions."""

    layout: str
    order: str
    word: int
    offsets: dict[str, int]
    sizes: dict[str, int]
    base: int = BASE
    data: bytearray = field(default_factory=lambda: bytearray(ROOM))
    places: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    inits: list[int] = field(default_factory=list)
    end: int = 0

    @property
    def extra(self) -> str:
        """The layout as lines of an ``-e`` file."""
        lines = [f"SYMBOL(modules)={self.base:x}"]
        if self.layout == "first":
            lines += [
                f"SYMBOL(nr_cpu_ids)={self.base + 0x10:x}",
                f"SYMBOL(__per_cpu_offset)={self.base + 0x20:x}",
            ]
        lines += [f"OFFSET({name})={at}" for name, at in self.offsets.items()]
        lines += [f"SIZE({name})={size}" for name, size in self.sizes.items()]
        if self.layout == "mem":
            lines += [f"NUMBER(MOD_{kind})={at}" for at, kind in enumerate(_KINDS)]
        return "\n".join(lines) + "\n"

    @property
    def info(self) -> VmcoreInfo:
        """The same, read."""
        return parse(self.extra.encode(), "-e")

    def virtual(self) -> VirtualMemory:
        """The memory behind page tables."""
        size = u64([len(self.data)])
        extents = Extents(u64([0]), size, u64([0]))
        physical = PhysicalMemory(Bytes(self.data), extents, extents.ranges())
        return VirtualMemory.of(physical, u64([self.base]), u64([0]), size)

    def target(self) -> PlainTarget:
        """For the plain readers."""
        return PlainTarget(self.virtual(), self.info, self.order, self.word)

    def put(self, vaddr: int, size: int, value: int) -> None:
        """Write a number."""
        order = "little" if self.order == "<" else "big"
        at = vaddr - self.base
        self.data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)  # type: ignore[arg-type]

    def write(self, vaddr: int, data: bytes) -> None:
        """Write bytes."""
        self.data[vaddr - self.base : vaddr - self.base + len(data)] = data

    def allocate(self, size: int, align: int = 16) -> int:
        """Room for something."""
        at = -(-self.end // align) * align
        self.end = at + size
        assert self.end <= self.base + ROOM
        return at

    def text(self, data: bytes) -> int:
        """A string with its NUL."""
        at = self.allocate(len(data) + 1, 1)
        self.write(at, data + b"\0")
        return at

    def link(self, *nodes: int) -> None:
        """A ring of list heads."""
        for index, node in enumerate(nodes):
            self.put(node, self.word, nodes[(index + 1) % len(nodes)])
            self.put(node + self.word, self.word, nodes[index - 1])

    def member(self, module: int, name: str, size: int, value: int) -> None:
        """A member of a structure at ``module``; nothing where this layout has none."""
        if name in self.offsets:
            self.put(module + self.offsets[name], size, value)


def make_modules(
    layout: str, *modules: Made, order: str = "<", word: int = 8, base: int = BASE
) -> ModuleMemory:
    """These modules, in this order on the kernel's list."""
    memory = ModuleMemory(
        layout, order, word, {**_EVERY, **_OFFSETS[layout]}, {**_SIZES, **_MORE_SIZES[layout]}, base
    )
    memory.end = base + PAGE
    memory.put(base + 0x10, 4, CPUS)
    memory.places = [memory.allocate(MODULE_SIZE) for _ in modules]
    for place, made in zip(memory.places, modules, strict=True):
        _put(memory, place, made)
    memory.link(base, *(place + memory.offsets["module.list"] for place in memory.places))
    return memory


def _put(memory: ModuleMemory, place: int, made: Made) -> None:
    word = memory.word
    memory.write(place + memory.offsets["module.name"], made.name.ljust(64 - word, b"\0")[: 64 - word])
    memory.member(place, "module.state", 4, made.state)
    memory.member(place, "module.taints", word, made.taints)
    memory.member(place, "module.percpu", word, made.percpu)
    if made.version:
        memory.member(place, "module.version", word, memory.text(made.version))
    text = memory.allocate(2 * REGION, PAGE)
    init = memory.allocate(REGION, PAGE)
    memory.texts.append(text)
    memory.inits.append(init)
    _put_regions(memory, place, text, 0 if made.initialised else init)
    _put_references(memory, place, made)
    _put_sections(memory, place, made, text, init)
    _put_symbols(memory, place, made, text)
    uses = []
    for user in made.users:
        use = memory.allocate(0x30)
        memory.member(use, "module_use.source", word, memory.places[user])
        uses.append(use)
    memory.link(place + memory.offsets["module.source_list"], *uses)


def _put_regions(memory: ModuleMemory, place: int, text: int, init: int) -> None:
    word, offsets = memory.word, memory.offsets
    init_size = REGION if init else 0
    if memory.layout == "first":
        memory.member(place, "module.module_core", word, text)
        memory.member(place, "module.core_size", 4, 2 * REGION)
        memory.member(place, "module.core_text_size", 4, CODE)
        memory.member(place, "module.module_init", word, init)
        memory.member(place, "module.init_size", 4, init_size)
    elif memory.layout == "layout":
        parts = (("core_layout", text, 2 * REGION), ("init_layout", init, init_size))
        for name, base, size in parts:
            memory.member(place + offsets[f"module.{name}"], "module_layout.base", word, base)
            memory.member(place + offsets[f"module.{name}"], "module_layout.size", 4, size)
        memory.member(place + offsets["module.core_layout"], "module_layout.text_size", 4, CODE)
    else:
        for at, base, size in ((0, text, REGION), (1, text + REGION, REGION), (4, init, init_size)):
            entry = place + offsets["module.mem"] + at * memory.sizes["module_memory"]
            memory.member(entry, "module_memory.base", word, base)
            memory.member(entry, "module_memory.size", 4, size)


def _put_references(memory: ModuleMemory, place: int, made: Made) -> None:
    memory.member(place, "module.refcnt", 4, made.references + 1)
    if memory.layout == "first":
        counters = memory.allocate(16 * CPUS)
        memory.member(place, "module.refptr", memory.word, counters - memory.base)
        half = memory.sizes["module_ref"] // 2
        for cpu in range(CPUS):
            memory.put(memory.base + 0x20 + cpu * memory.word, memory.word, memory.base + 16 * cpu)
            # taken on one CPU, given back on the other
            memory.put(counters + 16 * cpu, half, (made.references + 3) * (1 - cpu))
            memory.put(counters + 16 * cpu + half, half, 3 * cpu)


def _put_sections(memory: ModuleMemory, place: int, made: Made, text: int, init: int) -> None:
    note = text + REGION + 0x100
    namesz = struct.pack(f"{memory.order}III", 4, len(made.build_id), 3)
    memory.write(note, namesz + b"GNU\0" + made.build_id)
    sections = [(name, (init if b"init." in name else text) + at) for name, at in made.sections]
    sections.append((b".note.gnu.build-id", note))
    rows = [(name, vaddr, 19) for name, vaddr in sections]
    notes = [(b".note.gnu.build-id", note, 16 + len(made.build_id))]
    memory.member(place, "module.sect_attrs", memory.word, _attributes(memory, "module_sect_attrs", rows))
    memory.member(place, "module.notes_attrs", memory.word, _attributes(memory, "module_notes_attrs", notes))


def _attributes(memory: ModuleMemory, owner: str, rows: list[tuple[bytes, int, int]]) -> int:
    """Struct module_sect_attrs or module_notes_attrs."""
    word, offsets = memory.word, memory.offsets
    own = owner == "module_sect_attrs" and "module_sect_attr" in memory.sizes
    each = memory.sizes["module_sect_attr" if own else "bin_attribute"]
    attrs = memory.allocate(0x48 + each * len(rows))
    memory.member(attrs, f"{owner}.nsections", 4, len(rows))
    memory.member(attrs, f"{owner}.notes", 4, len(rows))
    listed = memory.allocate(word * (len(rows) + 1))
    for at, (name, vaddr, size) in enumerate(rows):
        entry = attrs + 0x48 + each * at
        memory.put(listed + word * at, word, entry)
        if own:
            memory.member(entry, "module_sect_attr.address", word, vaddr)
            memory.member(entry, "module_sect_attr.name", word, memory.text(name))
        if not own or memory.layout == "layout":
            # the same bin_attribute, alone or inside the section's attribute
            memory.put(entry + offsets["bin_attribute.attr"], word, memory.text(name))
            memory.put(entry + offsets["bin_attribute.size"], word, size)
        if not own:
            memory.put(entry + offsets["bin_attribute.private"], word, vaddr)
    if f"{owner}.nsections" not in offsets and f"{owner}.notes" not in offsets:
        memory.member(attrs, "attribute_group.bin_attrs", word, listed)
    return attrs


def _put_symbols(memory: ModuleMemory, place: int, made: Made, text: int) -> None:
    word = memory.word
    symtab = text + REGION + 0x400
    rows, strings, letters = [(0, 0, 0, 0, 0, 0)], b"\0", b"?"
    for name, at, size, letter in made.symbols:
        info = ord(letter) if memory.layout == "first" else (2 if letter in "tT" else 1)
        rows.append((len(strings), text + at, size, info, 0, 0 if letter == "U" else 1))
        strings += name + b"\0"
        letters += letter.encode()
    for row in rows:
        name, vaddr, size, info, other, index = row
        fields = (name, info, other, index, vaddr, size) if word == 8 else row
        data = struct.pack(memory.order + ("IBBHQQ" if word == 8 else "IIIBBH"), *fields)
        memory.write(symtab, data)
        symtab += len(data)
    strtab, typetab = symtab, symtab + len(strings)
    symtab = text + REGION + 0x400
    memory.write(strtab, strings + letters)
    owner, at = "module", place
    if memory.layout != "first":
        owner, at = "mod_kallsyms", memory.allocate(0x20)
        memory.member(place, "module.kallsyms", word, at)
    memory.member(at, f"{owner}.symtab", word, symtab)
    memory.member(at, f"{owner}.num_symtab", 4, len(rows))
    memory.member(at, f"{owner}.strtab", word, strtab)
    memory.member(at, f"{owner}.typetab", word, typetab)
