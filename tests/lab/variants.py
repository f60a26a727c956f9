"""Velfs of one memory that came in several forms: made, compared byte by byte, looked at by gdb."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from lab.config import Row
from tests.lab.dumps import LabDump, gdb, kdump_elftool

ROM_BYTES = 0x40000
"""The firmware below 4 GB, which dump-guest-memory writes as well and what holds the RAM alone does not."""


def both(row: Row, name: str) -> tuple[LabDump, Path]:
    """QEMU's ELF dump of a machine, and another file of the same."""
    dump = LabDump(row.name, row.scenario, "qemu.elf")
    dump.check()
    return dump, dump.directory / name


@dataclass(frozen=True)
class Variant:
    """One form of a dump: its files, and the velf of them with what ``--json`` printed."""

    files: list[Path]
    velf: Path
    summary: dict
    vmlinux: Path

    @property
    def symbol_file(self) -> str:
        return f"symbol-file -o {self.summary['kaslr_offset']} {self.vmlinux}"


def tovelf(files: list[Path], velf: Path, vmlinux: Path, *words: str | Path) -> Variant:
    done = kdump_elftool("tovelf", "-l", "all", "--json", "-o", velf, *files, *words)
    assert done.returncode == 0, done.stderr
    return Variant(files, velf, json.loads(done.stdout), vmlinux)


def loads_of(path: Path) -> list[tuple[int, int, int]]:
    """(vaddr, file offset, size) by address."""
    with path.open("rb") as file:
        segments = [part for part in ELFFile(file).iter_segments() if part["p_type"] == "PT_LOAD"]
        return sorted((part["p_vaddr"], part["p_offset"], part["p_filesz"]) for part in segments)


def same_bytes(original: Variant, variant: Variant) -> int:
    """Every byte of the variant is in the original, at the same address; returns their number."""
    whole = loads_of(original.velf)
    compared = at = 0
    with original.velf.open("rb") as old, variant.velf.open("rb") as new:
        for vaddr, offset, size in loads_of(variant.velf):
            done = 0
            while done < size:
                while whole[at][0] + whole[at][2] <= vaddr + done:
                    at += 1
                start, where, length = whole[at]
                assert start <= vaddr + done, f"{vaddr + done:#x} is not in the original"
                step = min(size - done, start + length - vaddr - done, 8 << 20)
                old.seek(where + vaddr + done - start)
                new.seek(offset + done)
                assert old.read(step) == new.read(step), hex(vaddr + done)
                done += step
            compared += size
    assert compared == sum(size for _, _, size in loads_of(variant.velf))
    return compared


def notes_of(path: Path) -> list[tuple[str, int, bytes]]:
    """Owner, type and descriptor of each note but our own account of the run, in order."""
    with path.open("rb") as file:
        (segment,) = [part for part in ELFFile(file).iter_segments() if part["p_type"] == "PT_NOTE"]
        file.seek(segment["p_offset"])
        data = file.read(segment["p_filesz"])
    notes, at = [], 0
    while at < len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        begin = at + 12 + -(-name_size // 4) * 4
        notes.append((data[at + 12 : at + 11 + name_size].decode(), kind, data[begin : begin + size]))
        at = begin + -(-size // 4) * 4
    return [note for note in notes if note[:2] != ("kdump-elftool", 1)]


def frames_of(core: Variant) -> list[str]:
    shown = gdb(f"core-file {core.velf}", core.symbol_file, "thread apply all bt")
    for function in ("panic", "sysrq_handle_crash", "write_sysrq_trigger"):
        assert re.search(rf"\b{function}\b.* at [^\n]*\.c:\d+", shown.stdout), shown.stderr
    return re.findall(r"^#\d+ .*$", shown.stdout, re.M)
