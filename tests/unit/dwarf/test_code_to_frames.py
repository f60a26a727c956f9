"""Frames by frame pointers as .debug_frame, as readelf reads it."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from kdump_elftool.addr import u64
from kdump_elftool.dwarf.code_to_frames import ARM64, I386, X86_64, FrameMachine, code_to_frames
from kdump_elftool.elf.constants import EM_386, EM_AARCH64, EM_X86_64, STB_LOCAL, STT_NOTYPE
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.symfile import ABSOLUTE, Section, SymbolColumns, symbol_file
from kdump_elftool.kernel.code_frames import Base, CodeFrames, merged

MACHINES = {"arm64": (ARM64, EM_AARCH64), "i386": (I386, EM_386), "x86_64": (X86_64, EM_X86_64)}
AT = 0xC0001000
NAMES = {"arm64": ("sp", "x29"), "i386": ("esp", "ebp"), "x86_64": ("rsp", "rbp")}


def at(place: int, base: Base, offset: int = 0, record: int = 0) -> CodeFrames:
    return CodeFrames.of(u64([AT + place]), base, offset, record)


def read(
    rows: list[CodeFrames], name: str, folder: Path
) -> tuple[list[tuple[int, int]], dict[int, dict[str, str]]]:
    """Places of the descriptions, and by place what each row says, as readelf shows it."""
    machine, e_machine = MACHINES[name]
    data = code_to_frames(merged(rows), machine)
    kind = ElfKind(8 * machine.word, "<")
    symbols = SymbolColumns.of([("frames", 0, 0, STT_NOTYPE, STB_LOCAL, ABSOLUTE)])
    file = folder / "frames.o"
    file.write_bytes(symbol_file(kind, e_machine, [Section(".debug_frame", data=data, align=8)], symbols))
    done = subprocess.run(["readelf", "--debug-dump=frames-interp", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    places, found, heads, inside = [], {}, [], False
    for line in done.stdout.splitlines():
        if entry := re.search(r"FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", line):
            places.append((int(entry[1], 16) - AT, int(entry[2], 16) - AT))
            inside = True
        elif " CIE " in line:
            inside = False
        elif line.strip().startswith("LOC"):
            heads = line.split()[1:]
        elif inside and (row := re.match(r"([0-9a-f]{8,16}) +(\S.*)", line)):
            found[int(row[1], 16) - AT] = dict(zip(heads, row[2].split(), strict=True))
    return places, found


@pytest.mark.parametrize("name", MACHINES)
def test_a_function(name: str, tmp_path: Path) -> None:
    machine: FrameMachine = MACHINES[name][0]
    sp, fp = NAMES[name]
    size = 2 * machine.word
    rows = [
        at(0, Base.SP, machine.entry),
        at(8, Base.SP, 48, size),
        at(12, Base.FP, size, size),
        at(40, Base.UNDEFINED),
        at(64, Base.FP, size, size),
        at(96, Base.UNDEFINED),
    ]
    places, found = read(rows, name, tmp_path)
    assert places == [(0, 40), (64, 96)]
    cfa = {place: row["CFA"] for place, row in found.items()}
    assert cfa == {0: f"{sp}+{machine.entry}", 8: f"{sp}+48", 12: f"{fp}+{size}", 64: f"{fp}+{size}"}
    assert found[0][fp] == "s"
    assert found[0]["ra"] == (f"c-{machine.word}" if machine.entry else "s")
    for place in (8, 12, 64):
        assert (found[place][fp], found[place]["ra"]) == (f"c-{size}", f"c-{machine.word}")


def test_registers_of_arm64(tmp_path: Path) -> None:
    """struct user_pt_regs, 280 bytes in front of the frame record (v6.1)."""
    places, found = read([at(0, Base.REGISTERS_FP, -280), at(32, Base.UNDEFINED)], "arm64", tmp_path)
    assert places == [(0, 32)]
    expected = {f"x{number}": f"c-{264 - 8 * number}" for number in range(30)}
    assert found[0]["CFA"] == "exp"
    shown = subprocess.run(
        ["readelf", "--debug-dump=frames", tmp_path / "frames.o"], capture_output=True, text=True
    ).stdout
    assert "DW_CFA_def_cfa_expression (DW_OP_breg29 (x29): -16)" in shown
    assert expected.items() <= found[0].items()
    assert (found[0]["ra"], found[0]["sp"]) == ("c-24", "c-16")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("i386", {"CFA": "esp+68", "ebx": "c-68", "ebp": "c-48", "ra": "c-20", "esp": "c-8"}),
        (
            "x86_64",
            {"CFA": "rsp+168", "r15": "c-168", "rbp": "c-136", "rdi": "c-56", "ra": "c-40", "rsp": "c-16"},
        ),
    ],
)
def test_registers_of_x86(name: str, wanted: dict[str, str], tmp_path: Path) -> None:
    """struct pt_regs of 17 and 21 words, at the stack pointer."""
    places, found = read([at(0, Base.REGISTERS), at(32, Base.UNDEFINED)], name, tmp_path)
    assert places == [(0, 32)]
    assert wanted.items() <= found[0].items()


def test_many_rows_are_descriptions_of_their_own(tmp_path: Path) -> None:
    rows = [at(4 * place, Base.SP, 16 + 16 * (place % 2), 16) for place in range(200)]
    places, found = read([*rows, at(800, Base.UNDEFINED)], "arm64", tmp_path)
    assert len(found) == 200
    assert len(places) > 1 and places[0][0] == 0 and places[-1][1] == 800
    assert all(before[1] == after[0] for before, after in itertools.pairwise(places))


def test_more_than_a_kernel_has() -> None:
    rows = merged([at(4 * place, Base.SP, place) for place in range(20_000)])
    with pytest.raises(ValueError, match="different frames"):
        code_to_frames(rows, ARM64)
    assert len(code_to_frames(merged([at(0, Base.UNDEFINED)]), ARM64)) % 8 == 0
