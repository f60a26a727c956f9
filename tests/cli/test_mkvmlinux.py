"""mkvmlinux of synthetic kernels: what readelf, pyelftools and gdb find, and what it says is missing."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.cli.main import main
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.vmlinux import read_vmlinux
from tests.builders import btf as b
from tests.builders import dwarf as d
from tests.builders import lines
from tests.builders.dwarf_text import described, value
from tests.builders.kallsyms import FORMS, build
from tests.builders.kernel import BUILD_ID, LINK_TEXT, RELEASE, SMALL, SyntheticKernel, make_kernel
from tests.builders.tools import gdb_batch

SYMBOLS_AT, BTF_AT = 0x380000, 0x3C0000
FILLER = 1500


def types() -> bytes:
    w = b.BtfWriter()
    integer, char = w.integer("int", 4, 1), w.integer("char", 1, 1)
    task = w.struct("task_struct", 64, [("pid", integer, 0), ("comm", w.array(char, 16), 4)])
    w.add(b.FUNC, "schedule_task", w.proto(integer, [("task", w.pointer(task)), ("flags", integer)]), vlen=1)
    w.section(".data..percpu", [(w.add(b.VAR, "current_pid", integer, [1]), 0x20, 4)])
    return w.finish()


def with_symbols(
    kernel: SyntheticKernel, btf: bytes | None, without: tuple[str, ...] = ()
) -> SyntheticKernel:
    """kallsyms in the image, and BTF where it is said to be."""
    text, end = kernel.text_vaddr, kernel.symbol("_end")
    symbols = [
        (0, "A", "__per_cpu_start"),
        (0x20, "A", "current_pid"),
        (0x1000, "A", "__per_cpu_end"),
        (text, "T", "_text"),
        (text, "T", "_stext"),
        (text + 0x1000, "T", "panic"),
        (text + 0x1100, "t", "schedule_task"),
        (text + 0x1100, "t", "schedule_alias"),
        (text + 0x1180, "W", "weak_function"),
        *((text + 0x2000 + 16 * number, "t", f"filler_{number}") for number in range(FILLER)),
        (text + 0x10000, "T", "_etext"),
        (text + 0x200000, "R", "linux_banner"),
        (text + 0x200100, "R", "_sdata"),
        (text + 0x208000, "D", "init_uts_ns"),
        (text + 0x209000, "T", "called_code"),
        (text + 0x300000, "D", "_edata"),
        (text + 0x20C000, "D", "init_task"),
        (text + BTF_AT, "R", "__start_BTF"),
        (text + BTF_AT + len(btf or b""), "R", "__stop_BTF"),
        (end, "B", "_end"),
    ]
    symbols = [symbol for symbol in symbols if symbol[2] not in without]
    image = build(symbols, FORMS[3], text + SYMBOLS_AT, text)
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS_AT, image.data)
    if btf:
        kernel.ram.write(kernel.spec.text_paddr + BTF_AT, btf)
    return kernel


@pytest.fixture
def mkvmlinux(tmp_path, capfd, monkeypatch):
    """``mkvmlinux(kernel, *options)``: exit code, standard output and error, and the file."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def run(kernel: SyntheticKernel, *options: str) -> tuple[int, str, str, Path]:
        dump, output = tmp_path / "dump", tmp_path / "vmlinux.dump"
        dump.write_bytes(kernel.dump())
        code = main(["mkvmlinux", str(dump), "-o", str(output), *options])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert "internal error" not in captured.err
        return code, captured.out, captured.err, output

    return run


def symbols_of(path: Path) -> dict[str, tuple[int, int, str, str, str]]:
    """By name: address, size, type, binding, section, as readelf prints them."""
    done = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True)
    assert not done.stderr
    rows = (line.split() for line in done.stdout.splitlines())
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    names = {str(number): section.name for number, section in enumerate(elf.iter_sections())}
    return {
        row[7]: (int(row[1], 16), int(row[2], 0), row[3], row[4], names.get(row[6], row[6]))
        for row in rows
        if len(row) == 8 and row[0] != "Num:"
    }


def test_what_is_in_it(mkvmlinux):
    kernel = with_symbols(make_kernel(SMALL), types())
    code, out, err, path = mkvmlinux(kernel)
    assert code == 0
    assert out == f"{FILLER + 21} symbols, 5 types, 1 functions, 3 variables\n"
    assert "no unwind tables" in err
    text = kernel.text_vaddr
    found = symbols_of(path)
    assert found["schedule_task"] == (text + 0x1100, 0x80, "FUNC", "LOCAL", ".kernel.text")
    assert found["schedule_alias"] == (text + 0x1100, 0x80, "FUNC", "LOCAL", ".kernel.text")
    assert found["panic"] == (text + 0x1000, 0x100, "FUNC", "GLOBAL", ".kernel.text")
    assert found["weak_function"][2:4] == ("FUNC", "WEAK")
    assert found["filler_7"] == (text + 0x2000 + 7 * 16, 16, "FUNC", "LOCAL", ".kernel.text")
    assert found["_text"][1] == 0, "it marks a place"
    assert found["current_pid"] == (0x20, 0xFE0, "OBJECT", "WEAK", ".data..percpu")
    assert found["init_task"][:4] == (text + 0x20C000, found["init_task"][1], "OBJECT", "GLOBAL")
    # in .data, which the kernel's linker took for code
    assert found["called_code"][2:] == ("OBJECT", "GLOBAL", ".kernel.data")
    assert found["vmlinux"][2:] == ("FILE", "LOCAL", "ABS")
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    for section in elf.iter_sections():
        if section["sh_flags"] & 2 and section["sh_size"]:
            assert section["sh_type"] == "SHT_NOBITS", f"{section.name} could be taken for memory"
    for name in (".text", ".data"):
        # crash: "no text and data contents"
        empty, real = (elf.get_section_by_name(which) for which in (name, f".kernel{name}"))
        assert (empty["sh_type"], empty["sh_size"]) == ("SHT_PROGBITS", 0)
        assert empty["sh_addr"] == real["sh_addr"]
        assert empty["sh_flags"] == real["sh_flags"]
    # gdb's index cache knows files by it, and would take this one for the real vmlinux
    assert elf.get_section_by_name(".note.gnu.build-id") is None
    assert elf.header["e_ident"]["EI_OSABI"] == "ELFOSABI_LINUX", "lldb goes by it"
    (segment,) = elf.iter_segments()
    assert (segment["p_vaddr"], segment["p_filesz"]) == (text, 0)
    (unit,) = elf.get_dwarf_info().iter_CUs()
    shown = described(unit.get_top_DIE())
    assert value(unit.get_top_DIE(), "name") == "vmlinux"
    assert shown["struct task_struct"] == "struct 64 {int pid @0; char[16] comm @4}"
    assert shown["schedule_task"] == (
        f"static int (*8 struct task_struct task, int flags) at {text + 0x1100:#x} size 0x80"
    )
    assert shown["current_pid"] == "int at 032000000000000000"
    assert shown["init_task"].startswith("struct task_struct at 03")


@pytest.mark.parametrize(
    "there,strings",
    [
        (b"Linux version 6.1.0-test (me@here) #1 SMP\n\0more", "Linux version 6.1.0-test (me@here) #1 SMP"),
        (b"Linux version \x1b[2J" + b"x" * 4096, "Linux version ?[2J" + "x" * 1006),
        (b"another version\0", ""),
    ],
    ids=["banner", "endless", "none"],
)
def test_banner(mkvmlinux, there, strings):
    """crash asks strings(1) for it; it has no address at which gdb could take it for memory."""
    kernel = with_symbols(make_kernel(SMALL), types())
    kernel.ram.write(kernel.spec.text_paddr + 0x200000, there)
    path = mkvmlinux(kernel)[3]
    done = subprocess.run(["strings", "-n", "14", path], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "version" in line] == ([strings] if strings else [])
    section = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(".linux_banner")
    assert (section is None) == (not strings)
    if section:
        assert (section["sh_flags"], section["sh_addr"], section["sh_type"]) == (0, 0, "SHT_PROGBITS")


def test_whose_kernel_it_is(mkvmlinux):
    """By its release, since it has no build id."""
    kernel = with_symbols(make_kernel(SMALL), types())
    kernel.ram.write(kernel.spec.text_paddr + 0x200000, b"Linux version 6.0.0-other (a@b) (gcc) #1 SMP\n\0")
    path = mkvmlinux(kernel)[3]
    with InputFile.open(str(path)) as file:
        vmlinux = read_vmlinux(file)
    assert (vmlinux.release, vmlinux.build_id, vmlinux.banner) == ("6.0.0-other", None, None)


def test_as_json(mkvmlinux):
    _, out, _, path = mkvmlinux(with_symbols(make_kernel(SMALL), types()), "--json", "-q")
    told = json.loads(out)
    assert told["schema"] == "kdump-elftool/mkvmlinux/1"
    assert (told["release"], told["bytes"], told["types"]) == (RELEASE, path.stat().st_size, 5)
    assert len(told["warnings"]) == 2
    assert mkvmlinux(with_symbols(make_kernel(SMALL), types()), "--strict")[0] == 1


def test_link_addresses(mkvmlinux):
    kernel = with_symbols(make_kernel(SMALL), types())
    moved = symbols_of(mkvmlinux(kernel)[3])
    path = mkvmlinux(kernel, "--link-addresses")[3]
    linked = symbols_of(path)
    (note,) = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(".note.gnu.build-id").iter_notes()
    assert note["n_desc"] == BUILD_ID.hex(), "drgn goes by it"
    offset = kernel.spec.kaslr_offset
    assert offset
    for name in ("panic", "init_task", "_end", "schedule_task"):
        assert linked[name][0] == moved[name][0] - offset, name
    assert linked["current_pid"] == moved["current_pid"]


def test_without_types(mkvmlinux):
    """What can be had is written, the rest is named."""
    code, out, err, path = mkvmlinux(with_symbols(make_kernel(SMALL), None))
    assert code == 0
    assert "0 types, 0 functions, 0 variables" in out
    assert (
        "warning: there is no BTF in the dump (CONFIG_DEBUG_INFO_BTF), or none that can be read: "
        "symbols are all there is, without "
        "types, modules and rules to unwind stacks; the vmlinux of the kernel's debug package has them, and "
        "--btf takes types that pahole makes of that (--btf_encode_detached)\n"
    ) in err
    assert err.count("warning: ") == 1
    assert symbols_of(path)["panic"][1] == 0x100
    assert not ELFFile(io.BytesIO(path.read_bytes())).has_dwarf_info()


def test_variables_that_the_table_lacks(mkvmlinux):
    """Without CONFIG_KALLSYMS_ALL: init_uts_ns is in VMCOREINFO."""
    w = b.BtfWriter()
    w.struct("uts_namespace", 8, [("count", w.integer("int", 4, 1), 0)])
    kernel = with_symbols(make_kernel(SMALL), w.finish(), ("init_uts_ns", "init_task"))
    path = mkvmlinux(kernel)[3]
    found = symbols_of(path)
    address, _, kind, binding, _ = found["init_uts_ns"]
    assert (address, kind, binding) == (kernel.symbol("init_uts_ns"), "OBJECT", "GLOBAL")
    assert "init_task" not in found
    (unit,) = ELFFile(io.BytesIO(path.read_bytes())).get_dwarf_info().iter_CUs()
    assert described(unit.get_top_DIE())["init_uts_ns"].startswith("struct uts_namespace at 03")


def test_types_from_a_file(mkvmlinux, tmp_path):
    file = tmp_path / "btf"
    file.write_bytes(types())
    kernel = with_symbols(make_kernel(SMALL), None)
    assert "5 types, 1 functions, 3 variables" in mkvmlinux(kernel, "--btf", str(file))[1]
    code, _, err, _ = mkvmlinux(kernel, "--btf", str(file), "--btf", str(file))
    assert (code, "another file of --btf has the types of the kernel" in err) == (1, True)


def test_types_of_another_machine(mkvmlinux, tmp_path):
    """Those of the dump are taken, and it is said."""
    w = b.BtfWriter(">")
    w.struct("foreign", 4, [("number", w.integer("int", 4, 1), 0)])
    file = tmp_path / "btf"
    file.write_bytes(w.finish())
    code, out, err, _ = mkvmlinux(with_symbols(make_kernel(SMALL), types()), "--btf", str(file))
    assert (code, "5 types, 1 functions, 3 variables" in out) == (0, True)
    assert (
        "warning: the file of --btf is none of a machine like this: the types are those of the dump\n" in err
    )


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb nothing", b"nothing at all", b"\x7fELF\2\1\1" + bytes(57)])
def test_a_file_without_types(mkvmlinux, tmp_path, data):
    file = tmp_path / "btf"
    file.write_bytes(data)
    code, out, err, path = mkvmlinux(with_symbols(make_kernel(SMALL), None), "--btf", str(file))
    assert (code, out, path.exists()) == (1, "", False)
    assert f"error: {file}: " in err
    assert "BTF" in err


def test_a_file_of_types_tells_where_things_are_too(mkvmlinux, tmp_path):
    """As of i386, arm and mips, whose kernels Debian builds without: init_task is found by its content."""
    w = b.BtfWriter()
    integer = w.integer("int", 4, 1)
    node = w.struct("list_head", 16, [("next", integer, 0), ("prev", integer, 8)])
    members = [("tasks", node, 0x20), ("pid", integer, 0x30), ("tgid", integer, 0x34)]
    w.struct("task_struct", 0x80, [*members, ("comm", w.array(w.integer("char", 1, 1), 16), 0x40)])
    file = tmp_path / "btf"
    file.write_bytes(w.finish())
    kernel = with_symbols(make_kernel(SMALL), None, ("init_task",))
    text, paddr = kernel.text_vaddr, kernel.spec.text_paddr
    tasks = (0x20D000, 0x20E000)
    for at, other, pid, comm in (*zip(tasks, tasks[::-1], (0, 1), (b"swapper/0", b"init"), strict=True),):
        kernel.ram.write(paddr + at, bytes(0x80))
        kernel.ram.write(paddr + at + 0x20, struct.pack("<QQII", *[text + other + 0x20] * 2, pid, pid))
        kernel.ram.write(paddr + at + 0x40, comm.ljust(16, b"\0"))
    assert "init_task" not in symbols_of(mkvmlinux(kernel)[3])
    found = symbols_of(mkvmlinux(kernel, "--btf", str(file))[3])
    assert found["init_task"][0] == text + tasks[0]


def test_types_of_a_module_that_is_not_loaded(mkvmlinux, tmp_path):
    """Or whose kernel has none, on which they rest."""
    base = b.BtfWriter()
    base.integer("int", 4, 1)
    w = b.BtfWriter(base=base)
    w.struct("of_module", 4, [("number", 1, 0)])
    file = tmp_path / "snd-pcm.ko"
    file.write_bytes(w.finish())
    for types_, said in (
        (types(), "--btf: no module snd_pcm is loaded: its types are left out"),
        (None, "types of modules (--btf) go on where those of the kernel end, and there are none"),
    ):
        code, _, err, _ = mkvmlinux(with_symbols(make_kernel(SMALL), types_), "--btf", str(file))
        assert code == 0
        assert f"warning: {said}\n" in err


@pytest.mark.parametrize("kind", [20, 4])
def test_damaged_types(mkvmlinux, kind):
    """What lies before the damage is there: an unknown kind, a struct that runs over the end."""
    w = b.BtfWriter()
    w.struct("before", 4, [("number", w.integer("int", 4, 1), 0)])
    w.add(kind, "damaged", 0, vlen=60000)
    w.struct("after", 4, [("number", 1, 0)])
    code, out, err, path = mkvmlinux(with_symbols(make_kernel(SMALL), w.finish()))
    assert (code, "2 types" in out) == (0, True)
    assert "warning: BTF is damaged: type 3 makes no sense: all from it on are left out" in err
    (unit,) = ELFFile(io.BytesIO(path.read_bytes())).get_dwarf_info().iter_CUs()
    shown = described(unit.get_top_DIE())
    assert shown["struct before"] == "struct 4 {int number @0}"
    assert "struct after" not in shown


def test_without_symbols(mkvmlinux):
    code, _, err, path = mkvmlinux(make_kernel(SMALL))
    assert code == 1
    assert err.splitlines()[-2].startswith("error: the kernel's symbol table is not in the dump")
    assert not path.exists()


LINES = [(0x1000, 10), (0x1100, 20), (0x1108, 21), (0x1120, 30), (0x1180, 0)]
"""Address in the kernel's text, line."""


def program(order: str = "<") -> bytes:
    """A line table with the rows of LINES, the last of which is the end."""
    body, before = b"", 1
    for at, line in LINES[:-1]:
        body += lines.set_address(LINK_TEXT + at, order, 8) + b"\3" + d.sleb(line - before) + b"\1"
        before = line
    body += lines.set_address(LINK_TEXT + LINES[-1][0], order, 8) + lines.extended(1)
    return lines.table(body, 5, order, 8, name=b"sched.c")


def debug_vmlinux(
    path: Path,
    *,
    section: bytes | None = None,
    compressed: bool = False,
    build_id: bytes = BUILD_ID,
    short_of: int = 0,
) -> Path:
    """The debug package's: a unit with code and lines, in which schedule_task() lies, and one without.

    ``short_of``: bytes that .debug_line lacks, by what it says of itself.
    """
    writer = d.DwarfWriter(aranges=False)
    where = ((0x1B, d.STRP, "/src"), (0x13, d.DATA1, 29), (0x10, d.SEC_OFFSET, 0))
    code = ((d.LOW_PC, d.ADDR, LINK_TEXT + 0x1000), (d.HIGH_PC, d.DATA4, 0x170))
    writer.add(d.UnitSpec("sched.c", 0, 0, [d.base("int", 4)], (*where, *code)))
    writer.add(d.UnitSpec("nothing.c", 0, 0, [d.base("int", 4)]))
    sections = writer.sections() | {".debug_line": program() if section is None else section}
    flags = {}
    if compressed:
        for name, data in sections.items():
            size = len(data) + (short_of if name == ".debug_line" else 0)
            sections[name] = struct.pack("<IIQQ", 1, 0, size, 1) + zlib.compress(data)
            flags[name] = 0x800
    path.write_bytes(
        d.elf_file(sections, {"_stext": LINK_TEXT, "_text": LINK_TEXT}, build_id=build_id, flags=flags)
    )
    return path


def line_rows(path: Path, unit: int) -> list[tuple[int, int]]:
    """Address and line of each row of a unit's table, as pyelftools reads them."""
    info = ELFFile(io.BytesIO(path.read_bytes())).get_dwarf_info()
    states = [entry.state for entry in info.line_program_for_CU(list(info.iter_CUs())[unit]).get_entries()]
    return [(state.address, 0 if state.end_sequence else state.line) for state in states if state]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("link", [False, True])
def test_lines_of_the_debug_package(mkvmlinux, tmp_path, compressed, link):
    kernel = with_symbols(make_kernel(SMALL), types())
    real = debug_vmlinux(tmp_path / "vmlinux", compressed=compressed)
    options = ["--from-vmlinux", str(real), *(["--link-addresses"] if link else [])]
    code, out, err, path = mkvmlinux(kernel, *options)
    assert (code, out) == (0, f"{FILLER + 21} symbols, 5 types, 1 functions, 3 variables, 1 source files\n")
    assert "line numbers" not in err
    text = LINK_TEXT if link else kernel.text_vaddr
    assert line_rows(path, 1) == [(text + at, line) for at, line in LINES]
    own, source = ELFFile(io.BytesIO(path.read_bytes())).get_dwarf_info().iter_CUs()
    top = source.get_top_DIE()
    assert [value(top, name) for name in ("name", "comp_dir", "language")] == ["sched.c", "/src", 29]
    assert set(described(top)) == {"schedule_task"}
    # the symbol goes on to the next one, the code of its source file does not
    assert described(top)["schedule_task"].endswith(f"at {text + 0x1100:#x} size 0x70")
    assert "schedule_task" not in described(own.get_top_DIE())


def test_lines_without_types(mkvmlinux, tmp_path):
    real = debug_vmlinux(tmp_path / "vmlinux")
    kernel = with_symbols(make_kernel(SMALL), None)
    code, out, err, path = mkvmlinux(kernel, "--from-vmlinux", str(real))
    assert (code, "0 types" in out, "1 source files" in out) == (0, True, True)
    assert "there is no BTF" in err
    assert line_rows(path, 1) == [(kernel.text_vaddr + at, line) for at, line in LINES]


@pytest.mark.parametrize("section", [b"", b"\xff" * 100, program()[:-1]], ids=["none", "nonsense", "cut off"])
def test_a_vmlinux_without_lines(mkvmlinux, tmp_path, section):
    real = debug_vmlinux(tmp_path / "vmlinux", section=section)
    code, _, err, path = mkvmlinux(with_symbols(make_kernel(SMALL), types()), "--from-vmlinux", str(real))
    assert code == 1
    assert f"{real} has no line numbers that can be read" in err
    assert not path.exists()


def test_a_vmlinux_whose_debug_sections_end_early(mkvmlinux, tmp_path):
    """Compressed, and less comes out than should: what there is is used, and the section is named."""
    real = debug_vmlinux(tmp_path / "vmlinux", compressed=True, short_of=1)
    kernel = with_symbols(make_kernel(SMALL), types())
    code, out, err, path = mkvmlinux(kernel, "--from-vmlinux", str(real))
    assert (code, "1 source files" in out) == (0, True)
    size = len(program())
    said = f"{real}: .debug_line is compressed and ends early: {size} of {size + 1} bytes are there"
    assert f"warning: {said}\n" in err
    assert line_rows(path, 1) == [(kernel.text_vaddr + at, line) for at, line in LINES]


def test_the_vmlinux_of_another_kernel(mkvmlinux, tmp_path):
    real = debug_vmlinux(tmp_path / "vmlinux", build_id=b"\x99" * 20)
    code, _, err, _ = mkvmlinux(with_symbols(make_kernel(SMALL), types()), "--from-vmlinux", str(real))
    assert (code, "is not the kernel of this dump" in err) == (1, True)


def test_where_lines_are(mkvmlinux, tmp_path):
    """One line on how to get what no dump has; the directory and the client's cache are places for it."""
    kernel = with_symbols(make_kernel(SMALL), types())
    (said,) = [line for line in mkvmlinux(kernel)[2].splitlines() if line.startswith("line numbers")]
    assert said.endswith(f"debuginfod-find debuginfo {BUILD_ID.hex()}")
    assert "line numbers" not in mkvmlinux(kernel, "--quiet")[2]
    debug_vmlinux(tmp_path / "vmlinux-of-it")
    assert "1 source files" in mkvmlinux(kernel, "--from-vmlinux", str(tmp_path))[1]


def test_lines_from_debuginfod(mkvmlinux, tmp_path, monkeypatch):
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "client"))
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    kernel = with_symbols(make_kernel(SMALL), types())
    code, _, err, _ = mkvmlinux(kernel, "--debuginfod")
    assert (code, "DEBUGINFOD_URLS names no server" in err) == (1, True)
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:1")
    code, _, err, _ = mkvmlinux(kernel, "--debuginfod")
    assert (code, "the servers of DEBUGINFOD_URLS do not have it" in err) == (1, True)
    place = tmp_path / "client" / BUILD_ID.hex()
    place.mkdir(parents=True, exist_ok=True)
    debug_vmlinux(place / "debuginfo")
    code, out, _, path = mkvmlinux(kernel, "--debuginfod")
    assert (code, "1 source files" in out) == (0, True)
    assert line_rows(path, 1)[0] == (kernel.text_vaddr + 0x1000, 10)


@pytest.mark.gdb
def test_lines_in_gdb(mkvmlinux, tmp_path):
    kernel = with_symbols(make_kernel(SMALL), types())
    path = mkvmlinux(kernel, "--from-vmlinux", str(debug_vmlinux(tmp_path / "vmlinux")))[3]
    text = kernel.text_vaddr
    asked = [f"info line *{text + 0x1109:#x}", "info scope schedule_task", "ptype schedule_task"]
    shown = gdb_batch([f"symbol-file {path}", *asked])
    assert shown.splitlines() == [
        f'Line 21 of "sched.c" starts at address {text + 0x1108:#x} <schedule_task+8> '
        f"and ends at {text + 0x1120:#x} <schedule_task+32>.",
        "Scope for schedule_task:",
        "Symbol task is optimized out.",
        "Symbol flags is optimized out.",
        "type = int (struct task_struct *, int)",
    ]


def test_tovelf_makes_it_where_there_is_no_other(mkvmlinux, tmp_path, capfd, monkeypatch):
    """For the script; it is what mkvmlinux makes of the dump, or of the core.  Without a script the command
    gdb makes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = mkvmlinux(with_symbols(make_kernel(SMALL), types()))[3]
    core, script = tmp_path / "core", tmp_path / "open.gdb"
    convert = ["tovelf", "--verbose", "-i", str(tmp_path / "dump"), "-o", str(core)]
    assert main([*convert, "--gdb-script", str(script)]) == 0
    told = capfd.readouterr().err
    assert "names and types are the dump's own\nline numbers are not in a dump: " in told
    assert told.splitlines()[-1] == f"open it with: gdb -x {script}"
    (command,) = [line for line in script.read_text().splitlines() if "add-symbol-file" in line]
    assert f"add-symbol-file {core}.symbols/vmlinux.dump" in command
    assert Path(f"{core}.symbols/vmlinux.dump").read_bytes() == made.read_bytes()
    assert main(convert) == 0
    assert capfd.readouterr().err.splitlines()[-1] == f"open it with: kdump-elftool gdb {core}"
    assert main(["mkvmlinux", "-q", str(core), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == made.read_bytes()


@pytest.mark.gdb
def test_in_gdb(mkvmlinux):
    kernel = with_symbols(make_kernel(SMALL), types())
    path = mkvmlinux(kernel)[3]
    asked = ["ptype schedule_task", "p &init_task", "p &init_task->comm", "info symbol panic"]
    shown = gdb_batch([f"symbol-file {path}", *asked])
    init_task = kernel.text_vaddr + 0x20C000
    assert shown.splitlines() == [
        "type = int (struct task_struct *, int)",
        f"$1 = (struct task_struct *) {init_task:#x} <init_task>",
        f"$2 = (char (*)[16]) {init_task + 4:#x} <init_task+4>",
        "panic in section .kernel.text",
    ]


@pytest.mark.parametrize("folder", ["plain", "with space"])
def test_gdb_tells_its_own_vmlinux_from_none(tmp_path, capfd, monkeypatch, folder):
    """Also where gdb gets it by a link."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dump = tmp_path / folder / "dump"
    dump.parent.mkdir()
    dump.write_bytes(with_symbols(make_kernel(SMALL), types()).dump())
    for _ in ("made", "used again"):
        assert main(["gdb", "--no-procthreads", "--print-script", str(dump)]) == 0
        script, err = capfd.readouterr()
        assert "add-symbol-file" in script
        assert "names and types are the dump's own" in err
        assert "there are no names" not in err
        assert "files of modules are not used" not in err
    assert main(["gdb", "--no-procthreads", "--print-script", "--modules", str(tmp_path), str(dump)]) == 0
    assert "files of modules are not used" in capfd.readouterr().err
