"""tovelf of built i386 kernels: both forms, every VMSPLIT, memory above 4 GB, images that say nothing."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import read_core
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core, own_address_words
from tests.builders.images import build_image
from tests.builders.kallsyms import FORMS, build
from tests.builders.kdumpread import read_kdump
from tests.builders.kernel import Ram
from tests.builders.pagetables import NX, RW, P
from tests.builders.pagetables32 import SIZE_4K, Tables32, walk_plain32
from tests.builders.tasks import OFFSETS, make_tasks
from tests.builders.tools import readelf_complaints

EM_386, NT_PRSTATUS = 3, 1
IMAGE = 0x1000000
SIZE = 0x400000
REGISTERS = "ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss".split()
"""struct user_regs_struct of arch/x86/include/asm/user_32.h."""
PRSTATUS_SIZE = 144
ABOVE = 0x140000000
"""Memory that only PAE, or a large page of PSE-36, reaches."""
VMALLOC = 0xF8800000
PAGES = 8


@dataclass(frozen=True)
class Built:
    """A kernel in memory, and what it says of itself."""

    ram: Ram
    pae: bool
    tables: Tables32
    text: str

    def dump(self, elf_class: int) -> bytes:
        """As kexec (32) or QEMU (64) writes it."""
        desc = bytearray(144)
        struct.pack_into("<i", desc, 24, 7)
        return build_core(
            CoreSpec(
                segments=[
                    SegmentSpec(start, bytes(data))
                    for start, data in self.ram.ranges
                    if elf_class == 64 or start < 1 << 32
                ],
                notes=[
                    NoteSpec("CORE", NT_PRSTATUS, bytes(desc)),
                    NoteSpec("VMCOREINFO", 0, self.text.encode()),
                ],
                elf_class=elf_class,
                machine=EM_386,
            )
        )

    def pages(self, limit: int = 1 << 40) -> dict[int, bytes]:
        """By page what the tables map to RAM below ``limit``."""
        return {
            leaf.vaddr + done: self.ram.read(leaf.paddr + done, SIZE_4K)
            for leaf in walk_plain32(self.ram.read_or_none, self.tables.root, pae=self.pae)
            for done in range(0, leaf.size, SIZE_4K)
            if leaf.paddr + done < limit and self.ram.read_or_none(leaf.paddr + done, SIZE_4K) is not None
        }


def built(pae: bool, offset: int = 0xC0000000, *, told: bool = True, moved: int = 0) -> Built:
    """4 MB of image in large pages, small pages of vmalloc, a page at the top, one piece above 4 GB."""
    image = IMAGE + moved
    ram = Ram([(image, image + SIZE), (ABOVE, ABOVE + SIZE)])
    pool = iter(range(image + 0x200000, image + SIZE, 0x1000))
    tables = Tables32(ram, pool.__next__, pae)
    for done in range(0, SIZE, tables.large):
        tables.map(offset + image + done, image + done, tables.large)
    flags = P | RW | (NX if pae else 0)
    for page in range(PAGES):
        paddr = (ABOVE if pae else image + 0x100000) + (page * 5 % PAGES) * SIZE_4K
        tables.map(VMALLOC + page * SIZE_4K, paddr, SIZE_4K, flags)
    tables.map(0xFFFFF000, image + 0x110000, SIZE_4K, flags)
    tables.map(0xFC000000, ABOVE, tables.large)
    stext = offset + image
    text = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"
    text += f"SYMBOL(init_uts_ns)={stext + 0x120000:x}\nSYMBOL(swapper_pg_dir)={offset + tables.root:x}\n"
    text += f"SYMBOL(_stext)={stext:x}\n" + ("CONFIG_X86_PAE=y\n" if pae and told else "")
    names = ("Linux", "test", "6.1.0-test", "#1 SMP", "i686", "(none)")
    ram.write(image + 0x120000, b"".join(name.encode().ljust(65, b"\0") for name in names))
    ram.write(image + 0x130000, text.encode().ljust(SIZE_4K, b"\0"))
    return Built(ram, pae, tables, text)


def stored(core) -> dict[int, bytes]:
    return {
        load["p_vaddr"] + done: core.read(load["p_vaddr"] + done, SIZE_4K)
        for load in core.loads
        for done in range(0, load["p_filesz"], SIZE_4K)
    }


@pytest.mark.parametrize("elf_class", [32, 64])
@pytest.mark.parametrize("pae", [False, True], ids=["2-level", "PAE"])
@pytest.mark.parametrize("offset", [0xC0000000, 0xB0000000, 0x80000000, 0x78000000, 0x40000000])
def test_every_mapped_page_and_nothing_else(tovelf, pae, offset, elf_class):
    made = built(pae, offset)
    result = tovelf(made.dump(elf_class))
    assert (result.code, result.err) == (0, "")
    assert (result.core.elf_class, result.core.e_machine) == (32, EM_386)
    expected = made.pages(1 << 40 if elf_class == 64 else 1 << 32)
    assert stored(result.core) == expected
    assert len(expected) > 1024


@pytest.mark.parametrize("pae", [False, True], ids=["2-level", "PAE"])
@pytest.mark.parametrize("moved", [0, 0xF400000, 0x1C000000])
def test_a_kernel_that_moved_and_does_not_say_its_form(tovelf, pae, moved):
    made = built(pae, told=False, moved=moved)
    result = tovelf(made.dump(64))
    assert (result.code, result.err) == (0, "")
    assert stored(result.core) == made.pages()


@pytest.mark.parametrize("pae", [False, True], ids=["2-level", "PAE"])
def test_an_image_that_does_not_say_its_machine(tovelf, capfd, tmp_path, pae):
    """Its kernel does; the user may say it, and may be wrong."""
    made = built(pae)
    image = build_image("lime", [(start, bytes(data)) for start, data in made.ram.ranges])
    for words in ((), ("--arch", "i386")):
        result = tovelf(image, *words)
        assert (result.code, result.core.e_machine, result.core.elf_class) == (0, EM_386, 32), result.err
        assert stored(result.core) == made.pages()
    assert tovelf(image, "--arch", "x86_64").code == 1
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(IMAGE) + made.ram.read(IMAGE, SIZE))
    assert main(["info", "-I", "raw", "--json", str(raw)]) == 0
    assert json.loads(capfd.readouterr().out)["arch"] == "i386"


@pytest.mark.parametrize(("given", "made_as"), [(32, 32), (64, 64)], ids=["below 4 GB", "above it too"])
def test_word_size_of_a_pelf(tmp_path, given, made_as):
    """32 bits, as its kernel writes, while they can say where the memory is; readelf reads the same."""
    (tmp_path / "vmcore").write_bytes(built(True).dump(given))
    out = tmp_path / "pelf"
    assert main(["topelf", "-q", "-l", "all", "-i", str(tmp_path / "vmcore"), "-o", str(out)]) == 0
    core = read_core(out)
    assert (core.elf_class, core.e_machine) == (made_as, EM_386)
    assert (max(load["p_paddr"] + load["p_filesz"] for load in core.loads) > 1 << 32) == (given == 64)
    assert not readelf_complaints(out)


BIOS = (0x1000, 0x9FC00)
"""Memory below the EBDA, which begins where the firmware likes."""
CUT = (0x2000C00, 0x2002F00)


def test_kdump_of_pages_that_are_partly_memory(tmp_path, capfd):
    """kexec's 32-bit file begins and ends segments at any byte; what is missing of a page reads as zeros."""
    made = built(True)
    for start, end in (BIOS, CUT):
        made.ram.ranges.append((start, bytearray(own_address_words(start & ~3, end - start))))
    (tmp_path / "vmcore").write_bytes(made.dump(32))
    expected: dict[int, bytes] = {}
    for start, data in made.ram.ranges:
        if start < 1 << 32:
            first = start & ~(SIZE_4K - 1)
            whole = bytes(start - first) + bytes(data)
            whole += bytes(-len(whole) % SIZE_4K)
            expected |= {(first + at) >> 12: whole[at : at + SIZE_4K] for at in range(0, len(whole), SIZE_4K)}
    out = str(tmp_path / "kdump")
    command = ["topelf", "--format", "kdump", "-l", "all", "-i", str(tmp_path / "vmcore"), "-o", out]
    assert main([*command, "--compress", "zlib"]) == 0
    assert capfd.readouterr().err == ""
    dump = read_kdump((tmp_path / "kdump").read_bytes(), 32, 4)
    assert dump.pages == expected
    assert dump.ram == set(expected)
    assert dump.utsname["machine"] == b"i686"
    assert dump.head["max_mapnr"] == dump.sub["max_mapnr_64"] == max(expected) + 1
    cores = [tmp_path / "of-vmcore", tmp_path / "of-kdump"]
    for source, core in zip(("vmcore", "kdump"), cores, strict=True):
        assert main(["tovelf", "-l", "all", "-i", str(tmp_path / source), "-o", str(core)]) == 0
    assert stored(read_core(cores[0])) == stored(read_core(cores[1])) == made.pages(1 << 32)


CRASHK_RES, KALLSYMS = 0x1E0000, 0x140000
LE32 = next(form for form in FORMS if form.name == "le32")


@pytest.mark.parametrize("pae", [False, True], ids=["2-level", "PAE"])
def test_the_crash_kernel_in_its_reserve(tmp_path, capfd, pae):
    """crashk_res begins with two phys_addr_t: 4 bytes each without PAE, where the name's pointer is next."""
    crashed, crash = built(pae), built(pae, moved=0x4000000)
    base = 0xC0000000 + IMAGE
    res = struct.pack(
        "<QQII" if pae else "<IIII", IMAGE + 0x4000000, IMAGE + 0x43FFFFF, 0xC1234567, 0x80000200
    )
    crashed.ram.write(IMAGE + CRASHK_RES, res)
    names = [
        (base, "T", "_stext"),
        (base + 0x120000, "D", "init_uts_ns"),
        (base + CRASHK_RES, "D", "crashk_res"),
    ]
    names += [(base + 0x1000 + number, "t", f"padding_{number}") for number in range(1500)]
    crashed.ram.write(IMAGE + KALLSYMS, build(sorted(names), LE32, base + KALLSYMS, base).data)
    parts = [part for made in (crashed, crash) for part in made.ram.ranges if part[0] < 1 << 32]
    segments = [SegmentSpec(start, bytes(data)) for start, data in parts]
    notes = [NoteSpec("CORE", NT_PRSTATUS, bytes(144))]
    image = build_core(CoreSpec(segments=segments, notes=notes, elf_class=32, machine=EM_386))
    (tmp_path / "dump").write_bytes(image)
    assert main(["info", "--json", str(tmp_path / "dump")]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [kernel["crash_kernel_of"] for kernel in found["kernels"]] == [None, 1]
    assert [int(kernel["pgt_root"], 0) for kernel in found["kernels"]] == [
        crashed.tables.root,
        crash.tables.root,
    ]
    assert "taken is 1, as its crash kernel is 2" in found["warnings"][0]


TASKS, PERCPU, AREA = 0x280000, 0x3C0000, 0x3C1000
RUNQUEUES, THREAD_IP = 0x100, 0x20
RQ = {"curr": 0x20, "idle": 0x28, "cpu": 0x30}
FRAME = ("si", "di", "bx", "bp", "ret_addr")


def with_tasks(made: Built, old: bool) -> tuple[str, dict[int, dict[str, int]]]:
    """One CPU, which runs task 1; the lines for -e, and by tid the registers of those that sleep."""
    base, area = 0xC0000000 + IMAGE, 0xC0000000 + IMAGE + AREA
    tasks = make_tasks("both", [1, 2, 1], word=4, base=base + TASKS)
    made.ram.write(IMAGE + TASKS, bytes(tasks.data))
    made.ram.write(IMAGE + PERCPU, struct.pack("<IIIII", 1, 0, 1, 0, area))
    curr = next(vaddr for vaddr, _, tid, _ in tasks.expected if tid == 1)
    made.ram.write(IMAGE + AREA + RUNQUEUES + RQ["curr"], struct.pack("<IIIIi", curr, 0, tasks.base, 0, 0))
    made.ram.write(curr - 0xC0000000 + OFFSETS["task_struct.on_cpu"], struct.pack("<i", 1))
    asleep = {}
    thread = OFFSETS["task_struct.thread"]
    for vaddr, _, tid, _ in tasks.expected:
        if tid == 1:
            continue
        sp = tasks.base + 0x10000 * (tid + 1) + 0x1000
        values = [0xC1000000 + 0x1000 * tid + number for number in range(5)]
        made.ram.write(vaddr - 0xC0000000 + thread + OFFSETS["thread_struct.sp"], struct.pack("<I", sp))
        if old:  # the flags and ebp were pushed; where it goes on is in thread.ip
            made.ram.write(vaddr - 0xC0000000 + thread + THREAD_IP, struct.pack("<I", values[4]))
            made.ram.write(sp - 0xC0000000, struct.pack("<2I", values[3], 0x246))
            asleep[tid] = {"ebp": values[3], "eip": values[4], "esp": sp + 8}
        else:
            made.ram.write(sp - 0xC0000000, struct.pack("<5I", *values))
            asleep[tid] = dict(zip(("esi", "edi", "ebx", "ebp", "eip"), values, strict=True)) | {
                "esp": sp + 20
            }
    symbols = {
        "init_task": tasks.base, "nr_cpu_ids": base + PERCPU, "__cpu_present_mask": base + PERCPU + 8,
        "__per_cpu_offset": base + PERCPU + 16, "runqueues": RUNQUEUES,
    }  # fmt: skip
    offsets = OFFSETS | {f"rq.{name}": at for name, at in RQ.items()}
    frame = {f"inactive_task_frame.{name}": 4 * at for at, name in enumerate(FRAME)}
    offsets |= {"thread_struct.ip": THREAD_IP} if old else frame
    lines = [f"SYMBOL({name})={value:x}" for name, value in symbols.items()]
    lines += [f"OFFSET({name})={value}" for name, value in offsets.items()]
    return "\n".join(lines) + "\n", asleep


@pytest.mark.parametrize("old", [False, True], ids=["inactive_task_frame", "before 4.9"])
@pytest.mark.parametrize("pae", [False, True], ids=["2-level", "PAE"])
def test_every_task_with_its_registers(tovelf, tmp_path, pae, old):
    made = built(pae)
    extra, asleep = with_tasks(made, old)
    (tmp_path / "extra").write_text(extra)
    result = tovelf(made.dump(32), "-p", "-e", str(tmp_path / "extra"))
    assert result.code == 0, result.err
    found = {}
    for name, kind, desc in result.core.notes():
        if (name, kind) == ("CORE", NT_PRSTATUS):
            assert len(desc) == PRSTATUS_SIZE
            words = dict(zip(REGISTERS, struct.unpack_from("<17I", desc, 72), strict=True))
            found[struct.unpack_from("<i", desc, 24)[0]] = words
    assert set(found) >= {1, *asleep}
    for tid, expected in asleep.items():
        assert {name: found[tid][name] for name in expected} == expected
        assert found[tid]["cs"] == 0x60
