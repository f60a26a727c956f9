"""Modules in every layout that kernels have had, and what lies about itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdump_elftool.errors import IdentityError
from kdump_elftool.plain import module_sections, modules
from kdump_elftool.plain.module_sections import read_build_id, read_sections, symbol_table
from kdump_elftool.plain.module_symbols import Symbol, read_symbols
from kdump_elftool.plain.modules import Module, read_modules
from tests.builders.modules import BASE, CPUS, LAYOUTS, REGION, Made, ModuleMemory, make_modules
from tests.builders.recording import RecordingTarget
from tests.builders.tasks import PlainTarget

MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
machines = pytest.mark.parametrize(("order", "word"), MACHINES, ids=["le64", "be64", "le32", "be32"])
layouts = pytest.mark.parametrize("layout", LAYOUTS)
QUESTIONS = {*modules.NEEDS, *module_sections.NEEDS}


def only(memory: ModuleMemory) -> Module:
    (module,) = read_modules(memory.target()).modules
    return module


@layouts
@machines
def test_every_layout(layout: str, order: str, word: int) -> None:
    """What was put there is found: the module, its sections that are left, its build id, its symbols."""
    fs = Made(
        b"lab_fs",
        version=b"1.2",
        references=2,
        users=(1,),
        taints=1 << 12 | 1 << 13,
        percpu=0x4F000,
        symbols=((b"lab_open", 0x10, 0x20, "t"), (b"outside", 0, 0, "U"), (b"lab_ops", REGION, 8, "D")),
    )
    memory = make_modules(layout, fs, Made(b"lab_user", build_id=b"\7" * 16), order=order, word=word)
    found = read_modules(memory.target())
    assert (found.broken, found.unreadable) == (False, ())
    first, second = found.modules
    text = memory.texts[0]
    assert first[:5] == (memory.places[0], b"lab_fs", 0, text, 2 * REGION)
    assert (first.state_name, first.taint_letters, first.version, first.percpu) == (
        "Live",
        "OE",
        b"1.2",
        0x4F000,
    )
    assert (first.references, first.users) == (2, (b"lab_user",))
    assert (second.name, second.references, second.users, second.version) == (b"lab_user", 0, (), None)
    regions = [("core", text, 2 * REGION, 0x1000)]
    if layout == "mem":
        regions = [("text", text, REGION, REGION), ("data", text + REGION, REGION, 0)]
    assert list(first.regions) == regions
    target = memory.target()
    note = text + REGION + 0x100
    assert read_sections(target, first) == (
        (b".text", text),
        (b".data", text + REGION),
        (b".note.gnu.build-id", note),
    )
    assert read_build_id(target, first) == bytes(range(20))
    assert read_build_id(target, second) == b"\7" * 16
    table = symbol_table(target, first)
    assert table is not None
    assert table.num_symtab == 4
    info = {"first": (0, 0)}.get(layout, (2, 1))
    assert read_symbols(target, table) == [
        Symbol(text + 0x10, 0x20, "t", info[0], b"lab_open"),
        Symbol(text + REGION, 8, "D", info[1], b"lab_ops"),
    ]


@layouts
def test_nothing_is_asked_that_is_not_declared(layout: str) -> None:
    target = RecordingTarget(make_modules(layout, Made(users=(0,))).target())
    (module,) = read_modules(target).modules
    read_sections(target, module)
    read_build_id(target, module)
    symbol_table(target, module)
    assert target.asked <= QUESTIONS
    assert len(target.asked) > 20


@layouts
def test_while_it_is_initialised(layout: str) -> None:
    memory = make_modules(layout, Made(initialised=False, state=1))
    module = only(memory)
    assert module.state_name == "Loading"
    assert module.size == 3 * REGION
    assert (b".init.text", memory.inits[0]) in read_sections(memory.target(), module)


def test_memory_of_its_own_for_data() -> None:
    """v5.17 to v6.3 on machines that want it (CONFIG_ARCH_WANTS_MODULES_DATA_IN_VMALLOC)."""
    memory = make_modules("layout", Made())
    memory.offsets["module.data_layout"] = 0x180
    memory.put(memory.places[0] + 0x180, 8, BASE + 0x40000)
    memory.put(memory.places[0] + 0x188, 4, 0x800)
    module = only(memory)
    assert module.size == 2 * REGION + 0x800
    assert ("data", BASE + 0x40000, 0x800, 0) in module.regions
    assert module.base == memory.texts[0]


def test_build_id_of_the_kernel_itself() -> None:
    """CONFIG_STACKTRACE_BUILD_ID, where there are no notes."""
    memory = make_modules("mem", Made())
    memory.offsets["module.build_id"] = 0x240
    memory.member(memory.places[0], "module.notes_attrs", 8, 0)
    assert read_build_id(memory.target(), only(memory)) is None
    memory.write(memory.places[0] + 0x240, b"\1" * 20)
    assert read_build_id(memory.target(), only(memory)) == b"\1" * 20


def test_without_unloading() -> None:
    memory = make_modules("mem", Made())
    for name in ("module.refcnt", "module.source_list"):
        del memory.offsets[name]
    module = only(memory)
    assert (module.references, module.users) == (None, None)


@pytest.mark.parametrize(
    "gone", ["SYMBOL(modules)", "SIZE(module)", "OFFSET(module.list)", "OFFSET(module.mem)"]
)
def test_what_is_not_known_is_named(gone: str) -> None:
    memory = make_modules("mem", Made())
    target = memory.target()
    del target.info.values[gone]  # type: ignore[attr-defined]
    with pytest.raises(IdentityError) as error:
        read_modules(target)
    assert error.value.key == gone


@pytest.mark.parametrize("cpus", [CPUS, 1 << 31], ids=["so many", "forged"])
def test_counters_of_more_cpus_than_any_machine_has(cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are those of all modules together: the work is what both numbers say, multiplied."""
    memory = make_modules("first", *(Made(b"m%d" % number, references=number) for number in range(3)))
    memory.put(BASE + 0x10, 4, cpus)  # nr_cpu_ids
    monkeypatch.setattr(modules, "_MOST_COUNTERS", 3 * CPUS)
    found = [module.references for module in read_modules(memory.target()).modules]
    assert found == ([0, 1, 2] if cpus == CPUS else [None] * 3)
    monkeypatch.setattr(modules, "_MOST_COUNTERS", 3 * CPUS - 1)
    assert [module.references for module in read_modules(memory.target()).modules] == [None] * 3


def test_a_list_that_runs_in_circles() -> None:
    """What is reached from both ends is shown; the rest is behind the damage."""
    memory = make_modules("mem", *(Made(b"m%d" % number) for number in range(4)))
    at = memory.offsets["module.list"]
    memory.put(memory.places[1] + at, 8, memory.places[0] + at)
    found = read_modules(memory.target())
    assert found.broken
    assert [module.name for module in found.modules] == [b"m0", b"m1", b"m2", b"m3"]


def test_a_list_without_end() -> None:
    memory = make_modules("mem", *(Made(b"m%d" % number) for number in range(4)))
    found = read_modules(memory.target(), 2)
    assert found.broken
    assert [module.name for module in found.modules] == [b"m0", b"m1"]


def test_what_is_no_module() -> None:
    memory = make_modules("mem", Made(), Made(b""), Made(b"odd", state=77))
    found = read_modules(memory.target())
    assert [module.name for module in found.modules] == [b"lab"]
    assert found.unreadable == (memory.places[1], memory.places[2])


def test_regions_that_cannot_be() -> None:
    memory = make_modules("mem", Made())
    entry = memory.places[0] + memory.offsets["module.mem"]
    memory.put(entry, 8, (1 << 64) - 0x1000)
    module = only(memory)
    assert [region.kind for region in module.regions] == ["data"]
    assert b".text" not in {section.name for section in read_sections(memory.target(), module)}
    memory.put(entry, 8, memory.texts[0])
    memory.put(entry + 0x10, 4, 0x7FFFFFFF)
    assert [region.kind for region in only(memory).regions] == ["data"]


@layouts
def test_counts_that_cannot_be(layout: str) -> None:
    memory = make_modules(layout, Made())
    target, module = memory.target(), only(memory)
    kallsyms = memory.places[0]
    owner = "module"
    if layout != "first":
        kallsyms = int.from_bytes(
            memory.virtual().read(kallsyms + memory.offsets["module.kallsyms"], 8), "little"
        )
        owner = "mod_kallsyms"
    memory.member(kallsyms, f"{owner}.num_symtab", 4, 0xFFFFFFFF)
    assert symbol_table(target, only(memory)) is None
    attrs = int.from_bytes(memory.virtual().read(memory.places[0] + 0x70, 8), "little")
    memory.member(attrs, "module_sect_attrs.nsections", 4, 0xFFFFFFFF)
    assert len(read_sections(target, module)) < 100


def test_tables_outside_of_the_module() -> None:
    memory = make_modules("mem", Made())
    at = int.from_bytes(
        memory.virtual().read(memory.places[0] + memory.offsets["module.kallsyms"], 8), "little"
    )
    for member in ("symtab", "strtab", "typetab"):
        kept = bytes(memory.data)
        memory.member(at, f"mod_kallsyms.{member}", 8, BASE)
        assert symbol_table(memory.target(), only(memory)) is None, member
        memory.data[:] = kept
    assert symbol_table(memory.target(), only(memory)) is not None


def test_names_that_run_over() -> None:
    """Of a symbol whose name lies behind its table nothing is shown."""
    memory = make_modules("mem", Made())
    table = symbol_table(memory.target(), only(memory))
    assert table is not None
    memory.put(table.symtab + 24, 4, 0x7FFFFFFF)
    assert read_symbols(memory.target(), table) == []


@pytest.mark.parametrize("size", [0, 1, -48])
def test_memory_described_as_impossible(size: int) -> None:
    memory = make_modules("mem", Made())
    info = memory.info
    values = {**info.values, "SIZE(module.mem)": str(size)}
    told = PlainTarget(memory.virtual(), type(info)(values), memory.order, memory.word)
    with pytest.raises(IdentityError, match=r"module\.mem"):
        read_modules(told)


@layouts
def test_sections_elsewhere_are_not_read_without_end(layout: str) -> None:
    """A machine has some 20 a module, which it has freed; a forged one says so of thousands."""
    elsewhere = tuple((b".init.%d" % number, 0) for number in range(1000))
    memory = make_modules(layout, Made(sections=((b".text", 0), *elsewhere)))
    module = only(memory)
    target = memory.target()
    reads = []
    read = target.memory.read
    object.__setattr__(target, "memory", SimpleNamespace(read=lambda *at: (reads.append(at), read(*at))[1]))
    assert read_sections(target, module) == ((b".text", memory.texts[0]),)
    assert len(reads) < 600
