"""The modules that a kernel has loaded: what ``lsmod`` and /proc/modules say, and where they lie.

A module's memory was described in three ways: by ``module_core`` and ``module_init`` until v4.4, by
``core_layout``, ``init_layout`` and, on some machines, ``data_layout`` from v4.5 to v6.3, by ``mem[]``, an
entry for each kind of memory, from v6.4 on (commit ac3b43283923).  What belongs to the init part is
freed once the module runs: then the base of that part is 0.

References: include/linux/module.h, kernel/module/procfs.c (m_show()), kernel/module/main.c
(module_refcount(), do_init_module()), kernel/module.c before v5.18.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.taints import taint_letters
from kdump_elftool.plain.target import Field, Target, field, struct_size, unsigned
from kdump_elftool.plain.tasks import walk_list
from kdump_elftool.plain.walking import string, words

MOST_MODULES = 1 << 12
_MOST_USERS = 1 << 10
_MOST_CPUS = 1 << 13
_MOST_COUNTERS = 1 << 19
"""Reference counts that are kept by CPU, of all modules together: 128 modules on 4096 CPUs."""
LARGEST_REGION = 1 << 30
_LARGEST_MODULE = 1 << 14
_MOST_KINDS = 16
_KINDS = ("TEXT", "DATA", "RODATA", "RO_AFTER_INIT", "INIT_TEXT", "INIT_DATA", "INIT_RODATA")
_LAYOUTS = (("core", "core_layout"), ("data", "data_layout"), ("init", "init_layout"))
_FIRST_LAYOUT = (
    ("core", "module_core", "core_size", "core_text_size"),
    ("init", "module_init", "init_size", "init_text_size"),
)
STATES = ("Live", "Loading", "Unloading", "Unformed")
"""By enum module_state, in the words of /proc/modules; that one leaves out the unformed ones."""

NEEDS: tuple[str, ...] = (
    "SYMBOL(modules)",
    "SIZE(module)",
    "OFFSET(module.list)",
    "OFFSET(module.name)",
    "OFFSET(module.state)",
    "OFFSET(module.version)",
    "OFFSET(module.taints)",
    "SIZE(module.taints)",
    "OFFSET(module.mem)",
    "SIZE(module.mem)",
    "SIZE(module_memory)",
    "OFFSET(module_memory.base)",
    "OFFSET(module_memory.size)",
    *(f"NUMBER(MOD_{kind})" for kind in _KINDS),
    *(f"OFFSET(module.{member})" for _, member in _LAYOUTS),
    "SIZE(module_layout)",
    "OFFSET(module_layout.base)",
    "OFFSET(module_layout.size)",
    "OFFSET(module_layout.text_size)",
    *(f"OFFSET(module.{member})" for _, *members in _FIRST_LAYOUT for member in members),
    "OFFSET(module.percpu)",
    "OFFSET(module.refcnt)",
    "OFFSET(module.refptr)",
    "SIZE(module_ref)",
    "SYMBOL(nr_cpu_ids)",
    "SYMBOL(__per_cpu_offset)",
    "OFFSET(module.source_list)",
    "OFFSET(module_use.source_list)",
    "OFFSET(module_use.source)",
)
"""What this reader asks for; a kernel answers those that it has."""


class Region(NamedTuple):
    """Memory of a module.  ``kind``: core, data, init, or that of enum mod_mem_type in lower case.

    Its first ``text`` bytes are code.
    """

    kind: str
    base: int
    size: int
    text: int

    def holds(self, vaddr: int, size: int = 1) -> bool:
        """True for what lies in it."""
        return self.base <= vaddr and vaddr + size <= self.base + self.size


class Module(NamedTuple):
    """A module: ``base`` and ``size`` as /proc/modules has them; ``regions`` are those that are still there.

    ``percpu`` is where its per-CPU variables count from, 0 where it has none; ``data`` a copy of the
    structure.  What is None the kernel does not keep, or where it does is not known.
    """

    vaddr: int
    name: bytes
    state: int
    base: int
    size: int
    regions: tuple[Region, ...]
    references: int | None
    users: tuple[bytes, ...] | None
    taints: int
    version: bytes | None
    percpu: int
    data: bytes

    @property
    def state_name(self) -> str:
        """In the words of /proc/modules."""
        return STATES[self.state] if self.state < len(STATES) else "?"

    @property
    def taint_letters(self) -> str:
        """Why the module taints the kernel: ``OE`` for one from elsewhere without signature."""
        return taint_letters(self.taints)

    def region_of(self, vaddr: int, size: int = 1) -> Region | None:
        """The region that holds all of this."""
        return next((region for region in self.regions if region.holds(vaddr, size)), None)


class ModuleList(NamedTuple):
    """The modules in the order of the kernel's list; ``broken`` when it was damaged.

    ``unreadable`` are addresses of modules that are on the list, but not in the dump or without sense.
    """

    modules: tuple[Module, ...]
    broken: bool
    unreadable: tuple[int, ...]


class _Spec(NamedTuple):
    """Where a region is described; ``text`` None where it is all code or all data."""

    kind: str
    base: Field
    size: Field
    text: Field | None

    def at(self, offset: int) -> _Spec:
        """The same in a structure that lies within struct module."""
        base, size, text = (
            None if part is None else Field(part.offset + offset, part.width) for part in self[1:]
        )
        assert base is not None and size is not None
        return _Spec(self.kind, base, size, text)


class _Counters(NamedTuple):
    """Reference counts before v3.19: struct module_ref of each CPU, ``half`` bytes of incs, then of decs."""

    refptr: Field
    half: int
    areas: tuple[int, ...]


class _Layout(NamedTuple):
    """Where things are in struct module."""

    size: int
    list: int
    name: Field
    state: Field
    specs: tuple[_Spec, ...]
    taints: Field | None
    version: Field | None
    percpu: Field | None
    refcnt: Field | None
    counters: _Counters | None


def read_modules(target: Target, most: int = MOST_MODULES) -> ModuleList:
    """All modules on the list.  Raises IdentityError where the layout is not known."""
    head = target.symbol("modules")
    if head is None:
        raise IdentityError("SYMBOL(modules)", "the address of the list of modules is not known")
    layout = _layout(target)
    nodes, whole = walk_list(target, head, most)
    if layout.counters and len(nodes) * len(layout.counters.areas) > _MOST_COUNTERS:
        layout = layout._replace(counters=None)
    found: list[Module] = []
    unreadable: list[int] = []
    for node in nodes:
        module = _module(target, layout, node - layout.list)
        if module is None:
            unreadable.append(node - layout.list)
        else:
            found.append(module)
    names = {module.vaddr: module.name for module in found}
    modules = tuple(module._replace(users=_users(target, module.vaddr, names)) for module in found)
    return ModuleList(modules, not whole, tuple(unreadable))


def optional_field(target: Target, name: str, width: int) -> Field | None:
    """As :func:`field`; None where the kernel has no such member."""
    return None if target.offset(name) is None else field(target, name, width)


def read_string(target: Target, vaddr: int, most: int) -> bytes | None:
    """The text at ``vaddr`` up to its NUL; None where there is none within ``most`` bytes."""
    try:
        text = string(target, vaddr, most)
    except FaultError:
        return None
    return text if len(text) < most else None


def _layout(target: Target) -> _Layout:
    word, size = target.word, struct_size(target, "module")
    if size > _LARGEST_MODULE:
        raise IdentityError("SIZE(module)", f"struct module is said to have {size} bytes, which cannot be")
    return _Layout(
        size=size,
        list=field(target, "module.list", 2 * word).offset,
        name=field(target, "module.name", 64 - word),  # MODULE_NAME_LEN
        state=field(target, "module.state", 4),
        specs=_specs(target),
        # an unsigned int in 2.6.32
        taints=optional_field(target, "module.taints", target.size("module.taints") or word),
        version=optional_field(target, "module.version", word),
        percpu=optional_field(target, "module.percpu", word),
        refcnt=optional_field(target, "module.refcnt", 4),
        counters=_counters(target),
    )


def _counters(target: Target) -> _Counters | None:
    refptr, each = optional_field(target, "module.refptr", target.word), target.size("module_ref")
    cpus, offsets = target.symbol("nr_cpu_ids"), target.symbol("__per_cpu_offset")
    if refptr is None or each not in (8, 16) or cpus is None or offsets is None:
        return None
    try:
        count = min(unsigned(target, cpus, 4), _MOST_CPUS)
        areas = words(target, target.read(offsets, count * target.word))
    except FaultError:
        return None
    return _Counters(refptr, each // 2, tuple(areas))


def _specs(target: Target) -> tuple[_Spec, ...]:
    """How the kernel describes a module's memory, newest first."""
    if target.offset("module.mem") is not None:
        return _specs_by_kind(target)
    word = target.word
    if target.offset("module.core_layout") is not None:
        base, size = field(target, "module_layout.base", word), field(target, "module_layout.size", 4)
        text = optional_field(target, "module_layout.text_size", 4)
        whole = struct_size(target, "module_layout")
        starts = [(kind, optional_field(target, f"module.{member}", whole)) for kind, member in _LAYOUTS]
        return tuple(
            _Spec(kind, base, size, text).at(start.offset) for kind, start in starts if start is not None
        )
    if target.offset("module.module_core") is None:
        raise IdentityError("OFFSET(module.mem)", "where a module's memory is is not known")
    return tuple(
        _Spec(
            kind,
            field(target, f"module.{base_of}", word),
            field(target, f"module.{size_of}", 4),
            optional_field(target, f"module.{text_of}", 4),
        )
        for kind, base_of, size_of, text_of in _FIRST_LAYOUT
    )


def _specs_by_kind(target: Target) -> tuple[_Spec, ...]:
    each, whole = struct_size(target, "module_memory"), target.size("module.mem")
    count = len(_KINDS) if whole is None else min(whole // each, _MOST_KINDS)
    if count < 1:
        raise IdentityError(
            "SIZE(module.mem)", f"the size of module.mem is said to be {whole}, which cannot be"
        )
    start = field(target, "module.mem", count * each).offset
    base, size = field(target, "module_memory.base", target.word), field(target, "module_memory.size", 4)
    kinds = {}
    for at, name in enumerate(_KINDS):
        told = target.number(f"MOD_{name}")
        kinds[at if told is None else told] = name.lower()
    return tuple(
        _Spec(kinds.get(at, f"mem{at}"), base, size, None).at(start + at * each) for at in range(count)
    )


def _module(target: Target, layout: _Layout, vaddr: int) -> Module | None:
    """One module; None where it cannot be read or cannot be one."""
    try:
        data = target.read(vaddr, layout.size)
    except FaultError:
        return None

    def value(member: Field | None) -> int:
        return 0 if member is None else member.at(data, 0, target.order)

    start, width = layout.name
    name = data[start : start + width].split(b"\0", 1)[0]
    state = value(layout.state)
    if not name or state >= len(STATES):
        return None
    memory = []
    for spec in layout.specs:
        size = value(spec.size)
        is_code = spec.kind in ("core", "init") or spec.kind.endswith("text")
        text = min(value(spec.text), size) if spec.text else size if is_code else 0
        memory.append(Region(spec.kind, value(spec.base), size, text))
    version = value(layout.version)
    return Module(
        vaddr=vaddr,
        name=name,
        state=state,
        base=memory[0].base,
        size=sum(region.size for region in memory),
        regions=tuple(region for region in memory if _is_there(region, target.word)),
        references=_references(target, layout, data),
        users=None,
        taints=value(layout.taints),
        version=read_string(target, version, 256) if version else None,
        percpu=value(layout.percpu),
        data=data,
    )


def _is_there(region: Region, word: int) -> bool:
    end = region.base + region.size
    return 0 < region.base < end <= 1 << (8 * word) and region.size <= LARGEST_REGION


def _references(target: Target, layout: _Layout, data: bytes) -> int | None:
    """How often the module is in use; None without CONFIG_MODULE_UNLOAD, or where it is not known."""
    if layout.refcnt is not None:
        # MODULE_REF_BASE; atomic_t from v3.19 on (commit 2f35c41f58a9)
        count = layout.refcnt.at(data, 0, target.order)
        return (count ^ 1 << 31) - (1 << 31) - 1
    if layout.counters is None:
        return None
    refptr, half, areas = layout.counters
    total, start, top = 0, refptr.at(data, 0, target.order), (1 << 8 * target.word) - 1
    try:
        for area in areas:
            place = area + start & top
            total += unsigned(target, place, half) - unsigned(target, place + half, half)
    except FaultError:
        return None
    return (total + (1 << 31)) % (1 << 32) - (1 << 31)


def _users(target: Target, vaddr: int, names: dict[int, bytes]) -> tuple[bytes, ...] | None:
    """The modules that need this one (include/linux/module.h, struct module_use)."""
    head = target.offset("module.source_list")
    node, source = target.offset("module_use.source_list"), target.offset("module_use.source")
    if head is None or node is None or source is None:
        return None
    nodes, _ = walk_list(target, vaddr + head, _MOST_USERS)
    found = []
    for at in nodes:
        try:
            user = names.get(unsigned(target, at - node + source, target.word))
        except FaultError:
            continue
        if user is not None:
            found.append(user)
    return tuple(found)
