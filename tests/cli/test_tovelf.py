"""tovelf of synthetic kernels: every mapped page that the dump has, bit for bit, and nothing else."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from tests.builders import notes as note_builders
from tests.builders.check import check_aliases_share, check_pages
from tests.builders.elfcore import CoreSpec, build_core
from tests.builders.kernel import ESPFIX_END, ESPFIX_START, MIB, SMALL, build_vmlinux, make_kernel
from tests.builders.notes import prstatus_pid, prstatus_register
from tests.builders.pagetables import KERNEL, SIZE_1G, SIZE_2M, SIZE_4K, US, PageTables
from tests.builders.tools import readelf_complaints


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"levels": 5},
        {"style": "qemu"},
        {"levels": 5, "style": "qemu", "direct_size": SIZE_1G, "sme_mask": 1 << 51},
        {"direct_size": SIZE_4K},
        {"direct_size": SIZE_1G},
        {"sme_mask": 1 << 47},
        {"kaslr_offset": 0, "text_paddr": 0x400000},
        {"kaslr_offset": 0x3A00_0000, "cpus": 4},
    ],
    ids=str,
)
def test_every_mapped_page_and_nothing_else(tovelf, changes):
    kernel = make_kernel(**changes)
    result = tovelf(kernel.dump())
    assert (result.code, result.lines("warning"), result.lines("coverage")) == (0, [], [])
    core = result.core
    check_pages(core, kernel)
    check_aliases_share(core)
    assert not readelf_complaints(result.path)
    elf = ELFFile(io.BytesIO(core.image))
    assert elf.num_segments() == len(core.segments)
    assert (core.elf_class, core.order, core.e_machine) == (64, "<", 62)


def test_statistics_go_to_stdout(tovelf):
    result = tovelf(make_kernel(SMALL).dump())
    lines = result.out.splitlines()
    assert lines[0].startswith("Skipped 0 not present pages")
    assert lines[-1] == f"Accepted {(0x9E000 + 0x440000 + 0x80000) // 4096} pages"
    assert result.err == ""
    assert tovelf(make_kernel(SMALL).dump(), "-q").out == ""


def test_hot_segments_first(tovelf):
    kernel = make_kernel()
    order = [load["p_vaddr"] for load in tovelf(kernel.dump()).core.loads]
    image = order.index(kernel.text_vaddr)
    bottoms = {kernel.registers(cpu)["rsp"] & ~0x3FFF for cpu in kernel.cpus}
    stacks = [index for index, vaddr in enumerate(order) if vaddr & ~0x3FFF in bottoms]
    assert len(stacks) > len(bottoms), "a stack's four pages are scattered"
    direct = [
        index for index, vaddr in enumerate(order) if 0 <= vaddr - kernel.bases["page_offset"] < 1 << 40
    ]
    rest = set(range(len(order))) - {image, *stacks, *direct}
    assert image < min(stacks) <= max(stacks) < min(direct) <= max(direct)
    cold = [order[index] for index in rest if order[index] < 0xFFFFFFFF80000000]
    assert cold
    assert all(order.index(vaddr) > max(direct) for vaddr in cold)


def test_espfix_aliases_are_left_out(tovelf):
    kernel = make_kernel(espfix=True)
    core = tovelf(kernel.dump()).core
    assert not [load for load in core.loads if ESPFIX_START <= load["p_vaddr"] < ESPFIX_END]
    check_pages(core, kernel)


def test_shared_tables_do_not_multiply(tovelf):
    """A KASAN shadow: one table, used everywhere, is walked once."""
    kernel = make_kernel(SMALL)
    shadow = 0xFFFFEC0000000000
    kernel.tables.map_range(shadow, 0xB00000, 16 * SIZE_4K)
    expected = kernel.readable_pages()
    for index in range(1, 512):
        kernel.tables.share(shadow + index * SIZE_2M, shadow, 1)
    for index in range(1, 512):
        kernel.tables.share(shadow + index * SIZE_1G, shadow, 2)
    core = tovelf(kernel.dump()).core
    assert len(core.loads) < 200
    check_pages(core, kernel, expected)


def test_at_most_4096_segments_where_storing_twice_allows_it(tovelf):
    kernel = make_kernel(ram=((0x1000, 0x9F000), (0x100000, 48 * MIB)), vmalloc_pages=7000, zero_ranges=())
    result = tovelf(kernel.dump())
    core = result.core
    assert len(core.loads) <= 4096
    check_pages(core, kernel)
    check_aliases_share(core, copied=True)
    assert result.lines("warning") == []


def test_zero_pages_are_holes(tovelf):
    kernel = make_kernel(zero_ranges=((0xC00000, 0x1000000),), vmalloc_pages=8)
    result = tovelf(kernel.dump())
    status = result.path.stat()
    assert status.st_blocks * 512 < status.st_size - 3 * MIB
    check_pages(result.core, kernel)


def test_threads_and_notes(tovelf):
    kernel = make_kernel(SMALL, cpus=3)
    core = tovelf(kernel.dump()).core
    registers = [desc for name, kind, desc in core.notes() if (name, kind) == ("CORE", 1)]
    assert [prstatus_pid(desc) for desc in registers] == [431, 432, -3]
    for cpu, desc in enumerate(registers):
        assert {name: prstatus_register(desc, name) for name in kernel.registers(cpu)} == kernel.registers(
            cpu
        )
    assert [desc.decode() for name, _, desc in core.notes() if name == "VMCOREINFO"] == [
        kernel.vmcoreinfo_text()
    ]


def test_qemu_notes_keep_cpu_plus_one(tovelf):
    kernel = make_kernel(SMALL, style="qemu")
    notes = tovelf(kernel.dump()).core.notes()
    assert [prstatus_pid(desc) for name, kind, desc in notes if (name, kind) == ("CORE", 1)] == [1, 2]
    assert [desc for name, _, desc in notes if name == "QEMU"] == [
        note.desc for note in kernel.notes() if note.name == "QEMU"
    ]


def test_vmcoreinfo_once(tovelf):
    kernel = make_kernel(SMALL)
    notes = [*kernel.notes(), note_builders.vmcoreinfo_note(kernel.vmcoreinfo_text())]
    core = tovelf(build_core(CoreSpec(kernel.segments(), notes))).core
    assert [name for name, _, _ in core.notes()].count("VMCOREINFO") == 1


def test_own_note_says_how_it_was_made(tovelf):
    kernel = make_kernel(SMALL)
    (own,) = [
        desc
        for name, kind, desc in tovelf(kernel.dump()).core.notes()
        if (name, kind) == ("kdump-elftool", 1)
    ]
    summary = json.loads(own)
    facts = {fact["name"]: fact for fact in summary["facts"]}
    assert summary["level"] == "all"
    assert summary["producer"].startswith("kdump-elftool 0.")
    assert int(facts["pgt_root"]["value"], 16) == kernel.tables.root
    assert int(facts["kaslr_offset"]["value"], 16) == kernel.spec.kaslr_offset
    assert all(fact["source"] for fact in facts.values())
    assert summary["coverage"]["lost_ranges"] == 0


def test_json(tovelf):
    kernel = make_kernel(SMALL)
    document = json.loads(tovelf(kernel.dump(), "--json").out)
    assert document["schema"] == "kdump-elftool/tovelf/1"
    assert int(document["kaslr_offset"], 16) == kernel.spec.kaslr_offset
    assert int(document["pgt_root"], 16) == kernel.tables.root
    assert document["release"] == "6.1.0-test-amd64"
    assert document["page_table_levels"] == 4
    assert document["warnings"] == []
    assert [thread["lwp"] for thread in document["threads"]] == [431, -2]


@pytest.fixture
def vmlinux(tmp_path):
    def build(**how) -> str:
        path = tmp_path / "vmlinux"
        path.write_bytes(build_vmlinux(**how))
        return str(path)

    return build


def test_auxv_from_vmlinux(tovelf, vmlinux):
    kernel = make_kernel(SMALL)
    notes = tovelf(kernel.dump(), "-m", vmlinux()).core.notes()
    (auxv,) = [desc for name, kind, desc in notes if (name, kind) == ("CORE", 6)]
    entries = dict(struct.iter_unpack("<QQ", auxv))
    assert entries == {9: 0x1000000 + kernel.spec.kaslr_offset, 0: 0}
    assert not [1 for name, kind, _ in tovelf(kernel.dump()).core.notes() if (name, kind) == ("CORE", 6)]


def test_vmlinux_of_another_build(tovelf, vmlinux):
    kernel = make_kernel(SMALL)
    other = bytes(range(20))
    result = tovelf(kernel.dump(), "-m", vmlinux(build_id=other))
    (error,) = result.lines("error")
    assert result.code == 1
    assert other.hex() in error and bytes(range(0x10, 0x24)).hex() in error
    assert "--force" in result.lines("hint")[0]
    forced = tovelf(kernel.dump(), "-m", vmlinux(build_id=other), "--force")
    assert forced.code == 0
    assert other.hex() in forced.lines("warning")[0]
    check_pages(forced.core, kernel)
    assert tovelf(kernel.dump(), "-m", vmlinux(build_id=other), "--force", "--strict").code == 1


def test_vmlinux_of_another_machine(tovelf, tmp_path):
    image = bytearray(build_vmlinux())
    image[18] = 183
    (tmp_path / "vmlinux").write_bytes(image)
    assert tovelf(make_kernel(SMALL).dump(), "-m", str(tmp_path / "vmlinux")).code == 1


def test_vmlinux_without_build_id_is_taken(tovelf, vmlinux):
    assert tovelf(make_kernel(SMALL).dump(), "-m", vmlinux(build_id=None)).code == 0


@pytest.mark.parametrize(
    "key", ["KERNELOFFSET", "NUMBER(pgtable_l5_enabled)", "NUMBER(sme_mask)", "OSRELEASE", "BUILD-ID"]
)
@pytest.mark.parametrize("levels", [4, 5])
def test_keys_that_are_not_needed(tovelf, key, levels):
    kernel = make_kernel(SMALL, levels=levels, vmcoreinfo={key: None})
    result = tovelf(kernel.dump())
    assert result.code == 0
    check_pages(result.core, kernel)


def test_wrong_level_count_is_noticed(tovelf):
    kernel = make_kernel(SMALL, levels=5, vmcoreinfo={"NUMBER(pgtable_l5_enabled)": "0"})
    check_pages(tovelf(kernel.dump()).core, kernel)


def test_without_phys_base_the_headers_of_the_dump_help(tovelf):
    kernel = make_kernel(SMALL, vmcoreinfo={"NUMBER(phys_base)": None})
    check_pages(tovelf(kernel.dump()).core, kernel)


def test_without_a_root_the_user_gives_one(tovelf, tmp_path):
    kernel = make_kernel(SMALL, style="qemu", user_pages=0,
                         vmcoreinfo={"NUMBER(phys_base)": None, "SYMBOL(swapper_pg_dir)": None})  # fmt: skip
    notes = [note for note in kernel.notes() if note.name != "QEMU"]
    image = build_core(replace(kernel.core_spec(), notes=notes))
    result = tovelf(image)
    assert result.code == 1
    assert "-P" in result.lines("hint")[0]
    check_pages(tovelf(image, "-P", hex(kernel.tables.root)).core, kernel)
    extra = tmp_path / "extra"
    extra.write_text(
        f"\nNUMBER(phys_base)={kernel.phys_base}\n\nSYMBOL(swapper_pg_dir)={kernel.text_vaddr + 0x210000:x}\n"
    )
    check_pages(tovelf(image, "-e", str(extra)).core, kernel)


def test_extra_file_overrides_the_dump(tovelf, tmp_path):
    kernel = make_kernel(SMALL, vmcoreinfo={"NUMBER(phys_base)": "12288"}, style="qemu")
    assert tovelf(kernel.dump()).code == 1
    extra = tmp_path / "extra"
    extra.write_text(f"NUMBER(phys_base)={kernel.phys_base}\n")
    result = tovelf(kernel.dump(), "-e", str(extra), "--verbose")
    check_pages(result.core, kernel)
    assert f"-e {extra}" in result.err


def test_an_extra_file_without_lines_is_an_error(tovelf, tmp_path):
    (tmp_path / "extra").write_text("\n\n")
    assert tovelf(make_kernel(SMALL).dump(), "-e", str(tmp_path / "extra")).code == 1


def test_page_table_of_a_process(tovelf):
    """-P: the user half of that table is written too."""
    kernel = make_kernel(SMALL)
    process = PageTables(kernel.ram, iter(range(0x830000, 0x840000, 4096)).__next__)
    for at in range(256, 512):
        process.put(process.root + 8 * at, kernel.tables.get(kernel.tables.root + 8 * at))
    process.map(0x7FFF12345000, 0xB00000, SIZE_4K, KERNEL | US)
    core = tovelf(kernel.dump(), "-P", hex(process.root)).core
    check_pages(core, kernel, kernel.readable_pages() | {0x7FFF12345000: 0xB00000})


def test_patched_kernels_key(tovelf):
    root = make_kernel(SMALL).tables.root
    keys = {"SYMBOL(swapper_pg_dir)": None, "ADDRESS(phys_pgd_ptr)": f"{root:x}"}
    kernel = make_kernel(SMALL, style="qemu", vmcoreinfo=keys)
    check_pages(tovelf(kernel.dump()).core, kernel)


def test_a_root_that_maps_the_image_elsewhere_is_not_believed(tovelf):
    """kexec's own tables, an old kernel's: _stext is mapped there too, but not at its place."""
    kernel = make_kernel(SMALL, vmcoreinfo={"ADDRESS(phys_pgd_ptr)": "830000"})
    other = PageTables(kernel.ram, iter(range(0x830000, 0x840000, 4096)).__next__)
    other.map_range(kernel.text_vaddr, 0x600000, 2 * SIZE_2M, SIZE_2M)
    check_pages(tovelf(kernel.dump()).core, kernel)


def test_text_from_the_dump_cannot_reach_the_terminal(tovelf, vmlinux):
    evil = "6.1\x1b[2J\x07"
    kernel = make_kernel(SMALL, vmcoreinfo={"OSRELEASE": evil, "BUILD-ID": None})
    assert tovelf(kernel.dump(), "--verbose").code == 0  # the fixture looks for control characters
    tovelf(kernel.dump(), "--json")
    tovelf(kernel.dump(), "-m", vmlinux())
    tovelf(kernel.dump(), name="dump\x1b[2J")
