"""Dumps that do not say which kernel they hold: it is found in their memory, and only the right one."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from random import Random

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import check_pages, read_core
from tests.builders.elfcore import EM_386, NoteSpec, build_core
from tests.builders.kallsyms import FORMS, build
from tests.builders.kernel import (
    ABOVE,
    BUILD_ID,
    SMALL,
    SYMBOLS,
    KernelSpec,
    SyntheticKernel,
    make_kernel,
)
from tests.builders.looking import look
from tests.builders.notes import qemu_cpu, x86_64_prstatus

NOTE_AT, DATA_AT = 0x20000, 0x30000
STRIPPED = replace(SMALL, noted=False)
SYMBOLS_AT, POINTERS_AT = 0x380000, 0x3F0000


@pytest.fixture
def info(tmp_path, capfd):
    return lambda image, *options: look(tmp_path, capfd, "info", image, *options)


def stripped(spec: KernelSpec = STRIPPED, **changes: object) -> SyntheticKernel:
    """A kernel without the note, which its memory holds at NOTE_AT."""
    kernel = make_kernel(spec, **changes)
    kernel.put_vmcoreinfo(NOTE_AT)
    return kernel


def two_kernels(**above: object) -> tuple[SyntheticKernel, SyntheticKernel]:
    """A crashed kernel and the crash kernel, both with their VMCOREINFO in memory."""
    crashed, crash = stripped(), make_kernel(ABOVE, **above)
    crash.put_vmcoreinfo(0x2600000)
    return crashed, crash


def dump_of(*kernels: SyntheticKernel, notes: list[NoteSpec] | None = None) -> bytes:
    segments = [part for kernel in kernels for part in kernel.segments()]
    spec = replace(kernels[0].core_spec(), segments=segments)
    return build_core(spec if notes is None else replace(spec, notes=notes))


def notes_of(result, name: str) -> list[bytes]:
    return [desc for owner, _, desc in result.core.notes() if owner == name]


@pytest.mark.parametrize("style", ["kdump", "qemu"])
@pytest.mark.parametrize("levels", [4, 5])
def test_same_core_without_the_note(tovelf, levels, style):
    """The same memory, and the note that was missing."""
    kernel = stripped(levels=levels, style=style)
    result = tovelf(kernel.dump())
    assert (result.code, result.lines("warning")) == (0, [])
    check_pages(result.core, kernel)
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]
    kernel.spec = replace(kernel.spec, noted=True)
    noted = tovelf(kernel.dump())
    assert len(notes_of(noted, "QEMU")) == (2 if style == "qemu" else 0)
    for core in (result.core, noted.core):
        core.segments = [
            {key: value for key, value in part.items() if key != "p_offset"} for part in core.loads
        ]
    assert result.core.segments == noted.core.segments


def test_facts_say_where_from(tovelf):
    result = tovelf(stripped().dump(), "--verbose")
    where = "VMCOREINFO found in memory at paddr 0x20018"
    assert f"release: 6.1.0-test-amd64 ({where})" in result.err
    assert f"build_id: {BUILD_ID.hex()} ({where})" in result.err
    assert "vmcoreinfo: 0x20018 (found in memory)" in result.err


def test_info_says_where(info):
    result = info(stripped().dump())
    assert result.code == 0
    assert "vmcoreinfo:    found in memory at 0x20018" in result.out
    assert "release:       6.1.0-test-amd64" in result.out
    found = json.loads(info(stripped().dump(), "--json").out)
    assert found["vmcoreinfo"] == "found in memory at 0x20018"
    (kernel,) = found["kernels"]
    assert (kernel["verified"], kernel["chosen"], kernel["build_id"]) == (True, True, BUILD_ID.hex())


def test_memory_is_not_searched_without_need(info, monkeypatch):
    kernel = make_kernel(SMALL)
    kernel.put_vmcoreinfo(NOTE_AT)
    monkeypatch.setattr("kdump_elftool.kernel.kernels.find_texts", None)
    assert "vmcoreinfo:    ELF note" in info(kernel.dump()).out


def test_whole_extra_file_instead(tovelf, tmp_path, monkeypatch):
    kernel = make_kernel(STRIPPED)
    extra = tmp_path / "extra"
    extra.write_text(kernel.vmcoreinfo_text())
    monkeypatch.setattr("kdump_elftool.kernel.kernels.find_texts", None)
    check_pages(tovelf(kernel.dump(), "-e", str(extra)).core, kernel)


def test_lines_of_the_extra_file_complete_it(tovelf, tmp_path):
    kernel = stripped(vmcoreinfo={"NUMBER(phys_base)": None})
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS["init_uts_ns"], b"Other")  # not to be found by its look
    assert "error: " in tovelf(dump_without_claims(kernel)).err
    extra = tmp_path / "extra"
    extra.write_text(f"NUMBER(phys_base)={kernel.phys_base}\n")
    check_pages(tovelf(dump_without_claims(kernel), "-e", str(extra)).core, kernel)


@pytest.mark.parametrize("front", [0, 4, 16])
def test_root_beside_init_uts_ns(tovelf, front):
    """No phys_base (before v4.10), no virtual addresses, no CR3: the release in memory leads there."""
    kernel = stripped(vmcoreinfo={"NUMBER(phys_base)": None})
    names = kernel.spec.text_paddr + SYMBOLS["init_uts_ns"]
    kernel.ram.write(names, bytes(front) + kernel.ram.read(names, 6 * 65))
    result = tovelf(dump_without_claims(kernel), "--verbose")
    assert (result.code, result.lines("warning")) == (0, [])
    root = f"pgt_root: {kernel.tables.root:#x} (init_uts_ns, found in memory)"
    assert root in result.err
    check_pages(result.core, kernel)
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


def dump_without_claims(kernel: SyntheticKernel, notes: list[NoteSpec] | None = None) -> bytes:
    segments = [replace(part, vaddr=0) for part in kernel.segments()]
    spec = replace(kernel.core_spec(), segments=segments)
    return build_core(spec if notes is None else replace(spec, notes=notes))


LIES = {
    "an earlier boot's": {"SYMBOL(_stext)": "ffffffff99000000", "SYMBOL(swapper_pg_dir)": "ffffffff99210000"},
    "other phys_base": {"NUMBER(phys_base)": "4096"},
    "other release": {"OSRELEASE": "6.1.0-other"},
    "no _stext": {"SYMBOL(_stext)": None},
    "no root": {"SYMBOL(swapper_pg_dir)": None},
    "garbage": {"SYMBOL(swapper_pg_dir)": "zzz", "NUMBER(phys_base)": "1e9"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_stale_copies_are_not_believed(tovelf, lie):
    kernel = stripped()
    stale = make_kernel(SMALL, vmcoreinfo=lie).vmcoreinfo_text()
    for at, header in ((0x10000, True), (0x12000, False), (0x14123, False)):
        kernel.put_vmcoreinfo(at, stale, header=header)
    result = tovelf(kernel.dump())
    assert (result.code, result.lines("warning")) == (0, [])
    check_pages(result.core, kernel)
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_stale_copies_alone(tovelf, info, lie):
    kernel = make_kernel(STRIPPED)
    kernel.put_vmcoreinfo(0x10000, make_kernel(SMALL, vmcoreinfo=lie).vmcoreinfo_text())
    result = tovelf(dump_without_claims(kernel))
    assert "no VMCOREINFO note, and none in memory" in result.lines("error")[0]
    assert "--kernel" in result.lines("hint")[0]
    looked = info(dump_without_claims(kernel), "--verbose")
    assert looked.code == 0
    assert "not where it says" in looked.out
    assert "vmcoreinfo:    none" in looked.out


def test_unverified_one_by_force_of_number(info):
    kernel = make_kernel(STRIPPED)
    kernel.put_vmcoreinfo(0x10000, make_kernel(SMALL, vmcoreinfo=LIES["other release"]).vmcoreinfo_text())
    result = info(kernel.dump(), "--kernel", "1")
    assert result.code == 0
    assert "release:       6.1.0-other" in result.out
    assert "not where it says" in result.lines("warning")[0]


def changed(kernel: SyntheticKernel) -> str:
    """The same kernel's text with a lie that translating does not show."""
    return kernel.vmcoreinfo_text().replace("CRASHTIME=1795000000", "CRASHTIME=1000000000")


def with_pointers(kernel: SyntheticKernel, **pointers: int) -> None:
    """kallsyms in the image that lists the names, and the pointers themselves."""
    places = {name: kernel.text_vaddr + POINTERS_AT + 8 * index for index, name in enumerate(pointers)}
    known = [(kernel.symbol("_stext"), "T", "_stext"), (kernel.symbol("init_uts_ns"), "D", "init_uts_ns")]
    digits = [(kernel.symbol("panic") + number, "t", f"padding_{number}") for number in range(1500)]
    symbols = sorted([*known, *digits, *((vaddr, "d", name) for name, vaddr in places.items())])
    image = build(symbols, FORMS[3], kernel.text_vaddr + SYMBOLS_AT, kernel.text_vaddr)
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS_AT, image.data)
    for index, paddr in enumerate(pointers.values()):
        value = struct.pack("<Q", kernel.bases["page_offset"] + paddr)
        kernel.ram.write(kernel.spec.text_paddr + POINTERS_AT + 8 * index, value)


def test_the_kernel_points_at_its_own(tovelf):
    """Copies that page tables cannot tell apart, in the better form and at the lower address."""
    kernel = make_kernel(STRIPPED)
    kernel.put_vmcoreinfo(0x10000, changed(kernel))
    kernel.put_vmcoreinfo(0x12000, changed(kernel) + "X=1\n", header=False)
    kernel.put_vmcoreinfo(0x60000)
    with_pointers(kernel, vmcoreinfo_data=0x70000, vmcoreinfo_note=0x60000)
    result = tovelf(kernel.dump())
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]
    with_pointers(kernel, vmcoreinfo_note=0x10000)
    assert b"CRASHTIME=1000000000" in notes_of(tovelf(kernel.dump()), "VMCOREINFO")[0]


def test_pointer_at_vmcoreinfo_data(tovelf):
    kernel = make_kernel(STRIPPED)
    kernel.put_vmcoreinfo(0x10000, changed(kernel))
    kernel.put_vmcoreinfo(DATA_AT, header=False)
    with_pointers(kernel, vmcoreinfo_note=0x88000, vmcoreinfo_data=DATA_AT)
    result = tovelf(kernel.dump())
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


def test_without_pointers_the_note_is_taken(tovelf):
    kernel = make_kernel(STRIPPED)
    kernel.put_vmcoreinfo(0x10000, changed(kernel), header=False)
    kernel.put_vmcoreinfo(NOTE_AT)
    result = tovelf(kernel.dump())
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


def test_thousands_of_fakes(tovelf):
    """Bounded work, the right one taken, and a word about it."""
    kernel = stripped()
    random = Random(5)
    fake = make_kernel(SMALL, vmcoreinfo={"SYMBOL(swapper_pg_dir)": "ffffffff9b210000"}).vmcoreinfo_text()
    text = "".join(fake.splitlines(keepends=True)[:14])
    for at in range(0x400000 + 0x2A0000, 0x400000 + 0x3F0000, 0x400):
        lied = text.replace("KERNELOFFSET=1a000000", f"KERNELOFFSET={random.getrandbits(32):x}")
        blob = (lied.encode() + b"\0").ljust(0x400, b"\0")
        kernel.ram.write(at, blob)
    result = tovelf(kernel.dump())
    assert "not all were looked at" in result.lines("warning")[0]
    assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


def test_two_kernels_the_larger_is_taken(tovelf, info):
    crashed, crash = two_kernels()
    result = tovelf(dump_of(crashed, crash, notes=[]))
    check_pages(result.core, crashed)
    (warning,) = result.lines("warning")
    assert "taken is 1, as it maps most memory" in warning
    assert "2: 6.1.0-crash-amd64, build id " + "ab" * 20 in warning
    assert notes_of(result, "VMCOREINFO") == [crashed.vmcoreinfo_text().encode()]
    shown = info(dump_of(crashed, crash, notes=[])).out.splitlines()
    listed = [line for line in shown if line.startswith("kernel ")]
    assert [line.endswith("(taken)") for line in listed] == [True, False]
    assert "VMCOREINFO found in memory at 0x2600018, verified" in listed[1]


@pytest.mark.parametrize(("number", "release"), [(1, "6.1.0-test-amd64"), (2, "6.1.0-crash-amd64")])
def test_two_kernels_by_number(tovelf, number, release):
    kernels = two_kernels()
    result = tovelf(dump_of(*kernels), "--kernel", str(number))
    assert result.code == 0
    # the register notes are of CPUs in the first
    warnings = (
        [] if number == 1 else ["warning: 2 of 2 CPUs were in another kernel: their registers are left out"]
    )
    assert result.lines("warning") == warnings
    assert len(notes_of(result, "CORE")) == (2 if number == 1 else 0)
    assert notes_of(result, "VMCOREINFO") == [kernels[number - 1].vmcoreinfo_text().encode()]
    kernel = kernels[number - 1]
    for vaddr, paddr in kernel.readable_pages().items():  # it may map memory of the other one, too
        assert result.core.read(vaddr, 4096) == kernel.ram.read(paddr, 4096), hex(vaddr)


@pytest.mark.parametrize("number", ["0", "3", "-1"])
def test_no_such_kernel(tovelf, number):
    result = tovelf(dump_of(*two_kernels()), "--kernel", number)
    assert result.code == 2
    assert "1: 6.1.0-test-amd64" in result.lines("hint")[0]
    assert "2: 6.1.0-crash-amd64" in result.lines("hint")[0]


def test_registers_tell_the_kernel(info):
    """By where the CPUs stood, or by CR3 in QEMU's notes."""
    crashed, crash = two_kernels()
    stood = [x86_64_prstatus(1, crash.registers(0)), x86_64_prstatus(2, {"rip": 0x401000, "cs": 0x33})]
    result = info(dump_of(crashed, crash, notes=stood))
    assert "release:       6.1.0-crash-amd64" in result.out
    assert "taken is 2, as most CPUs were in it" in result.lines("warning")[0]
    notes = [qemu_cpu(crash.tables.root), qemu_cpu(0x5000), *stood]
    assert "release:       6.1.0-crash-amd64" in info(dump_of(crashed, crash, notes=notes)).out
    notes = [qemu_cpu(kernel.tables.root) for kernel in (crashed, crash, crashed)]
    assert "release:       6.1.0-test-amd64" in info(dump_of(crashed, crash, notes=notes)).out


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        (0x2000000, 0x27FFFFF, "its crash kernel is 2"),
        (0x3000000, 0x37FFFFF, None),
        (0x27FFFFF, 0x2000000, None),
        (0, 0, None),
    ],
)
def test_a_crash_kernel_in_its_reserve(info, first, last, why):
    """The crashed kernel is what one wants to see, even if the only CPU is in the other one."""
    crashed, crash = two_kernels()
    with_pointers(crashed, crashk_res=0)
    crashed.ram.write(crashed.spec.text_paddr + POINTERS_AT, struct.pack("<QQ", first, last))
    notes = [x86_64_prstatus(1, crash.registers(0)), qemu_cpu(crash.tables.root)]
    result = info(dump_of(crashed, crash, notes=notes), "--json")
    found = json.loads(result.out)
    reasons = [f"taken is 1, as {why}"] if why else ["taken is 2, as most CPUs were in it"]
    assert [reason in found["warnings"][0] for reason in reasons] == [True]
    assert found["release"] == ("6.1.0-test-amd64" if why else "6.1.0-crash-amd64")
    assert [kernel["crash_kernel_of"] for kernel in found["kernels"]] == [None, 1 if why else None]
    assert [kernel["pgt_root"] for kernel in found["kernels"]] == ["0x610000", "0x2210000"]
    assert [kernel["kaslr_offset"] for kernel in found["kernels"]] == ["0x1a000000", "0x2a000000"]
    assert ("the crash kernel of 1" in found["warnings"][0]) == bool(why)


def test_each_in_the_others_reserve(info):
    """Which cannot be: both are asked about as if neither was."""
    crashed, crash = two_kernels()
    for kernel, other in ((crashed, crash), (crash, crashed)):
        with_pointers(kernel, crashk_res=0)
        at = kernel.spec.text_paddr + POINTERS_AT
        kernel.ram.write(at, struct.pack("<QQ", other.spec.text_paddr, other.spec.text_paddr + 0x3FFFFF))
    found = json.loads(info(dump_of(crashed, crash, notes=[qemu_cpu(crash.tables.root)]), "--json").out)
    assert "taken is 2, as most CPUs were in it" in found["warnings"][0]


def test_another_kernel_than_the_note_says(tovelf, info):
    crashed, crash = two_kernels()
    crashed.spec = replace(crashed.spec, noted=True)
    image = dump_of(crashed, crash)
    listed = [line for line in info(image, "--kernel", "1").out.splitlines() if line.startswith("kernel ")]
    assert ["VMCOREINFO ELF note" in line for line in listed] == [True, False]
    for number, kernel in enumerate((crashed, crash), 1):
        result = tovelf(image, "--kernel", str(number))
        assert notes_of(result, "VMCOREINFO") == [kernel.vmcoreinfo_text().encode()]


def test_process_tables_beside(tovelf):
    """-P names what is written; the kernel is still found."""
    kernel = stripped()
    result = tovelf(kernel.dump(), "-P", hex(kernel.tables.root), "--verbose")
    assert "found in memory" in result.err
    assert result.code == 0


def test_topelf_inserts_the_note(tmp_path, capfd):
    kernel = stripped()
    source, output = tmp_path / "dump", tmp_path / "out"
    source.write_bytes(kernel.dump())
    assert main(["topelf", "-i", str(source), "-o", str(output), "-l", "all"]) == 0
    descs = [desc for name, _, desc in read_core(output).notes() if name == "VMCOREINFO"]
    assert descs == [kernel.vmcoreinfo_text().encode()]
    capfd.readouterr()


def test_in_place_inserts_the_note(tmp_path, capfd):
    kernel = stripped()
    source = tmp_path / "dump"
    source.write_bytes(kernel.dump())
    assert main(["tovelf", "--in-place", "-i", str(source)]) == 0
    assert "VMCOREINFO" in [name for name, _, _ in read_core(source).notes()]
    capfd.readouterr()


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("pti", [0, 0x1000])
def test_root_by_way_of_cr3(tovelf, levels, pti):
    """No phys_base and no virtual addresses: a CPU's tables lead to the kernel's."""
    kernel = stripped(levels=levels, style="qemu", vmcoreinfo={"NUMBER(phys_base)": None})
    cr4 = 0x20 | (0x1000 if levels == 5 else 0)
    notes = [qemu_cpu(0x7777000, {}, cr4), qemu_cpu(kernel.tables.root | pti | 0x123, {}, cr4)]
    result = tovelf(dump_without_claims(kernel, notes), "--verbose")
    assert result.code == 0
    root = f"pgt_root: {kernel.tables.root:#x} (SYMBOL(swapper_pg_dir) by way of CR3 in QEMU's note)"
    assert root in result.err
    assert notes_of(result, "QEMU") == [note.desc for note in notes]
    check_pages(result.core, kernel)


@pytest.mark.parametrize("levels", [4, 5])
def test_cr3_alone(tovelf, levels):
    """No VMCOREINFO anywhere: what a CPU was using maps the kernel."""
    kernel = make_kernel(STRIPPED, levels=levels, style="qemu")
    result = tovelf(kernel.dump(), "--verbose")
    assert result.code == 0
    assert "little else is known" in result.lines("warning")[0]
    assert f"pgt_root: {kernel.tables.root:#x} (CR3 in QEMU's note)" in result.err
    check_pages(result.core, kernel)


def test_qemu_notes_of_other_sizes(tovelf):
    """Without kernel_gs_base, longer, cut off, of another version, empty, too many."""
    kernel = make_kernel(STRIPPED, style="qemu")
    good = qemu_cpu(kernel.tables.root).desc
    for desc, is_good in (
        (good[:432], True),
        (good + bytes(100), True),
        (good[:431], False),
        (good[:4], False),
        (b"", False),
        (struct.pack("<I", 2) + good[4:], False),
        (good[:392] + bytes(8) + good[400:], False),  # paging is off
    ):
        notes = [NoteSpec("QEMU", 0, desc)]
        assert (tovelf(dump_without_claims(kernel, notes)).code == 0) == is_good, len(desc)
    flood = [qemu_cpu(number << 12) for number in range(1, 3000)]
    assert tovelf(dump_without_claims(kernel, flood)).code == 1


@pytest.mark.parametrize("elf_class", [32, 64])
def test_i386_registers(tovelf, info, elf_class):
    """QEMU writes 32-bit registers into an ELF file of either width (above 4 GB of memory, 64-bit)."""
    kernel = stripped()
    segments = [replace(part, vaddr=0) for part in kernel.segments()]
    notes = [NoteSpec("CORE", 1, bytes(144)), qemu_cpu(kernel.tables.root)]
    spec = replace(kernel.core_spec(), machine=EM_386, segments=segments, notes=notes, elf_class=elf_class)
    result = tovelf(build_core(spec))  # the tables are x86_64's: as those of i386 they map nothing
    assert result.code == 1
    assert "page" in result.lines("error")[0]
    looked = info(build_core(spec))
    assert looked.code == 0
    assert "arch:          i386" in looked.out
