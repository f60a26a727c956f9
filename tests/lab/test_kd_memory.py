"""``kd-list``, ``kd-rbtree``, ``kd-xarray``, ``kd-files``, ``kd-vmas``, ``kd-page``, ``kd-vtop`` on dumps.

drgn is the judge: of the dump itself where it reads page tables of that architecture, else of the velf.  The
velf is made without vmlinux where the dump has types, and gdb has no symbols.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.lab.dumps import (
    CONVERTED,
    GDB_MULTIARCH,
    HERE,
    IN_CI,
    LabDump,
    drgn_says,
    gdb,
    kdump_elftool,
    one_of_each_kernel,
    one_of_each_row,
    selected_dumps,
    tells_all,
)
from tests.lab.in_gdb import gdbinit

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

SEED = 20261129
PAGES = 400
ALL_DUMPS = [*selected_dumps(), *(dump for dump in one_of_each_row() if dump.arch not in CONVERTED)]
DUMPS = one_of_each_kernel(ALL_DUMPS) if IN_CI else ALL_DUMPS
READS_TABLES = ("x86_64", "aarch64")
"""Architectures whose page tables drgn reads; of the others it is given what we made."""
WALKED = ("x86_64", "i386", "aarch64", "arm")
"""Those whose page tables can be walked in gdb."""


@dataclass(frozen=True)
class Asked:
    """What drgn says, and what gdb shows for the same questions."""

    dump: LabDump
    judged: dict[str, Any]
    shown: dict[str, list[str]]

    @property
    def arch(self) -> str:
        return self.dump.arch

    @property
    def pages(self) -> list[dict[str, Any]]:
        return [page for page in self.judged["pages"] if page is not None]

    @property
    def processes(self) -> dict[int, dict[str, Any]]:
        return {int(task): said for task, said in self.judged["tasks"].items()}


def for_drgn(velf: Path, kaslr_offset: str) -> Path:
    """A copy that says where the kernel is in the place of something else: i386 kernels don't."""
    data = velf.read_bytes()
    line = re.search(rb"^SYMBOL\(kallsyms_token_table\)=\w+$", data, re.M)
    assert line is not None
    said = b"KERNELOFFSET=%x" % int(kaslr_offset, 16)
    copy = velf.with_name("judged")
    copy.write_bytes(data.replace(line[0], said.ljust(len(line[0]), b"\n")))
    return copy


def questions(judged: dict[str, Any], dump: LabDump) -> list[str]:
    """Every command on everything that drgn knows."""
    asked = [
        *(f"kd-list {int(head):#x}" for head in judged["lists"]),
        *(f"kd-list -h {int(head):#x}" for head in judged["hlists"]),
        *(f"kd-rbtree {int(root):#x}" for root in judged["rbtrees"]),
        *(f"kd-xarray {int(root):#x}" for root in judged["xarrays"]),
    ]
    for task, said in judged["tasks"].items():
        asked += [f"kd-files {int(task):#x}", f"kd-vmas {int(task):#x}"]
        if said["physical"]:
            wanted = " ".join(hex(vaddr) for vaddr, _ in said["physical"])
            asked.append(f"kd-vtop -p {int(task):#x} {wanted}")
    pages = [page for page in judged["pages"] if page is not None]
    asked += [by_pfn(pages), by_address(pages), "kd-vtop " + addresses(pages)]
    asked += [f"kd-vtop -p {marker['pid']} {marker['vaddr']}" for marker in dump.truth["markers"]]
    return [*asked, *(f"help {name}" for name in COMMANDS), *BAD]


def by_pfn(pages: list[dict[str, Any]]) -> str:
    return "kd-page " + " ".join(hex(page["pfn"]) for page in pages)


def by_address(pages: list[dict[str, Any]]) -> str:
    return "kd-page " + " ".join(hex(page["vaddr"] + 4) for page in pages)


def addresses(pages: list[dict[str, Any]]) -> str:
    return " ".join(hex(page["vaddr"]) for page in pages)


COMMANDS = ("kd-list", "kd-rbtree", "kd-xarray", "kd-files", "kd-vmas", "kd-page", "kd-vtop")
BAD = [
    *COMMANDS,
    *(f"{name} 1 2 -z" for name in COMMANDS),
    *(f"{name} no_such_thing" for name in COMMANDS),
    *(
        "kd-list 0x10",
        "kd-rbtree 0x10",
        "kd-xarray 0x10",
        "kd-list -h 0x10",
        "kd-page 0xffffffff",
        "kd-vtop 0x10",
    ),
    *("kd-files 99999999", "kd-vmas 0x7fffffff", "kd-list 0x10 task_struct", "kd-list 0x10 no_struct member"),
]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    dump: LabDump = request.param
    dump.check()
    arch = dump.arch
    folder = tmp_path_factory.mktemp("kd")
    velf, wanted, answer = (folder / name for name in ("velf", "wanted.json", "answer.json"))
    vmlinux = () if tells_all(dump) else ("-m", dump.vmlinux)
    done = kdump_elftool("tovelf", "-p", *vmlinux, *dump.operands, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    judge = dump.path if arch in READS_TABLES else for_drgn(velf, json.loads(done.stdout)["kaslr_offset"])
    judged = drgn_says("oracle_structures.py", judge, dump.vmlinux, folder, seed=SEED, pages=PAGES)
    commands = questions(judged, dump)
    wanted.write_text(json.dumps(commands))
    ran = gdb(
        "set width 0",
        "set python print-stack full",
        f"core-file {velf}",
        f"source {gdbinit()}",
        f"source {HERE / 'gdb_commands.py'}",
        program=GDB_MULTIARCH,
        KD_WANTED=str(wanted),
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "Traceback" not in ran.stderr, ran.stderr[-3000:]
    texts = json.loads(answer.read_text())
    shown = {each: text.splitlines() for each, text in zip(commands, texts, strict=True)}
    velf.unlink()
    folder.joinpath("judged").unlink(missing_ok=True)
    yield Asked(dump, judged, shown)


def escaped(name: str) -> str:
    """A name in hexadecimal as it is shown; the lab has none that is not plain text."""
    return bytes.fromhex(name).decode("ascii")


def numbers(lines: list[str]) -> list[int]:
    return [int(line, 16) for line in lines[:-1]]


def test_lists_and_trees(asked: Asked) -> None:
    for command, kind in (("kd-list", "lists"), ("kd-list -h", "hlists"), ("kd-rbtree", "rbtrees")):
        for head, nodes in asked.judged[kind].items():
            lines = asked.shown[f"{command} {int(head):#x}"]
            assert numbers(lines) == nodes, (command, head, lines[-1])
            assert lines[-1] == f"{len(nodes)} nodes"
    assert sum(map(len, asked.judged["lists"].values())) > 60
    assert sum(map(len, asked.judged["hlists"].values())) >= 3
    assert sum(map(len, asked.judged["rbtrees"].values())) > (20 if asked.dump.is_small else 40)


def test_xarrays(asked: Asked) -> None:
    for root, entries in asked.judged["xarrays"].items():
        lines = asked.shown[f"kd-xarray {int(root):#x}"]
        expected = [
            f"{index:#x}  {'value ' if is_value else ''}{value:#x}" for index, value, is_value in entries
        ]
        assert lines == [*expected, f"{len(entries)} entries"]
    # more than one node; files have fewer pages where those are of 64 KB
    most = 64 if asked.dump.made_by.guest.name != "a64-64k" else 32
    assert max(map(len, asked.judged["xarrays"].values())) > most


def test_files(asked: Asked) -> None:
    compared = 0
    for task, said in asked.processes.items():
        lines = [line for line in asked.shown[f"kd-files {task:#x}"][2:] if line != "no open files"]
        found = [line.split(maxsplit=4) for line in lines]
        ours = [[int(fd), int(file, 16), int(inode, 16), name] for fd, file, inode, _, name in found]
        assert ours == [[*rest, escaped(name)] for *rest, name in said["files"]], task
        compared += len(ours)
    assert compared > 20


def test_areas(asked: Asked) -> None:
    """Flags by what they mean in /proc/PID/maps."""
    compared = 0
    for task, said in asked.processes.items():
        lines = asked.shown[f"kd-vmas {task:#x}"][1:]
        expected = [vma_line(*vma) for vma in said["vmas"]] or ["no areas"]
        if asked.arch != "x86_64" and said["vmas"]:
            # drgn has no names for these there, the kernel has
            assert any(line.endswith("[vdso]") for line in lines) or asked.arch != "aarch64"
            lines = [re.sub(r" \[(vdso|vvar|sigpage|vectors)\]$", "", line) for line in lines]
            expected = [re.sub(r" \[(vdso|vvar|sigpage|vectors)\]$", "", line) for line in expected]
        assert lines == expected, task
        compared += len(said["vmas"])
    assert compared > 80


def vma_line(vma: int, start: int, end: int, flags: int, offset: int, name: str) -> str:
    letters = "".join(letter if flags & bit else "-" for bit, letter in ((1, "r"), (2, "w"), (4, "x")))
    shared = "s" if flags & 0x80 else "p"
    text = escaped(name)
    shown = offset if text.startswith("/") else 0
    return f"{vma:#x} {start:08x}-{end:08x} {letters}{shared} {shown:08x} {text}".rstrip()


def test_user_addresses(asked: Asked) -> None:
    mapped = 0
    for task, said in asked.processes.items():
        if not said["physical"]:
            continue
        lines = asked.shown[f"kd-vtop -p {task:#x} " + " ".join(hex(vaddr) for vaddr, _ in said["physical"])]
        if asked.arch not in WALKED:
            assert len(lines) == 2 and "cannot be walked in gdb" in lines[0]
            continue
        assert len(lines) == len(said["physical"])
        for line, (vaddr, paddr) in zip(lines, said["physical"], strict=True):
            words = line.split()
            assert int(words[0], 16) == vaddr
            if paddr is None:
                assert "not mapped" in line or asked.arch not in READS_TABLES, line
            else:
                assert int(words[1], 16) == paddr, line
            mapped += words[1].startswith("0x")
    assert mapped > 60 or asked.arch not in WALKED


@pytest.mark.parametrize(
    "asked", [dump for dump in DUMPS if dump.arch in WALKED], ids=lambda dump: dump.id, indirect=True
)
def test_text_that_the_guest_wrote_is_where_its_address_leads(asked: Asked) -> None:
    with InputFile.open(str(asked.dump.path)) as file:
        memory = open_dump(file).memory
        for marker in asked.dump.truth["markers"]:
            [line] = asked.shown[f"kd-vtop -p {marker['pid']} {marker['vaddr']}"]
            text = marker["text"].encode()
            assert memory.read(int(line.split()[1], 16), len(text)) == text, line
    assert asked.dump.truth["markers"]


def test_pages(asked: Asked) -> None:
    assert len(asked.pages) > PAGES * 0.9
    blocks: list[list[str]] = []
    for line in asked.shown[by_pfn(asked.pages)]:
        if line.startswith("pfn"):
            blocks.append([])
        blocks[-1].append(line)
    for page, lines in zip(asked.pages, blocks, strict=True):
        assert lines[0].startswith(f"pfn {page['pfn']:#x}  ")
        assert lines[0].endswith(f"  struct page {page['vaddr']:#x}")
        names = check_flags(page, lines[1])
        assert names <= set(page["names"]), (lines, page)
        rest = lines[2:]
        if page["head"] != page["vaddr"]:
            assert rest.pop(0).startswith(f"  part of the compound page {page['head']:#x}, pfn "), (
                lines,
                page,
            )
        counters = f"  refcount {page['refcount']}  mapcount {page['mapcount']}"
        assert rest.pop(0) == f"{counters}  index {page['index']:#x}  private {page['private']:#x}", page
        use = rest.pop(0).strip() if rest else ""
        assert use.partition(" ")[0] == page["kind"], (lines, page)
        assert use.endswith(page["about"]), (lines, page)
        assert rest == []
    assert asked.shown[by_address(asked.pages)] == asked.shown[by_pfn(asked.pages)]
    kinds = {page["kind"] for page in asked.pages}
    assert {"free", "slab"} <= kinds or (asked.dump.is_small and {"free", "anon", "file"} <= kinds)


def check_flags(page: dict[str, Any], line: str) -> set[str]:
    """Their names: as many as there are bits, of several for one bit any."""
    flags, _, names = line.strip().partition(": ")
    assert flags == f"flags {page['flags']:#x}"
    found = [] if names == "none" else names.split()
    assert len(found) == page["nr_flags"], (line, page)
    return set(found)


def test_kernel_addresses(asked: Asked) -> None:
    """Where a struct page lies is what virttophys says of the dump."""
    given: list[str | Path] = ["-i", asked.dump.path]
    if asked.dump.file == "qemu.raw":
        given += ["-I", "raw", "--arch", asked.arch, "-m", asked.dump.vmlinux]
    wanted = (f"{page['vaddr']:x}" for page in asked.pages)
    done = kdump_elftool("virttophys", *given, *wanted)
    assert done.returncode == 0, done.stderr
    expected = [line.split() for line in done.stdout.splitlines()]
    lines = asked.shown["kd-vtop " + addresses(asked.pages)]
    assert lines == [f"0x{vaddr} 0x{paddr}" for vaddr, paddr in expected]
    assert len(lines) == len(asked.pages)


def test_nonsense_is_refused_in_a_sentence(asked: Asked) -> None:
    for command in BAD:
        lines = asked.shown[command]
        assert lines, command
        assert len(lines) <= 3, (command, lines)
        assert not re.search("Traceback|Error:|Exception", "\n".join(lines)), (command, lines)
    for name in COMMANDS:
        assert asked.shown[f"help {name}"][2].startswith(name)
