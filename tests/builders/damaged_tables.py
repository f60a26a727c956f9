"""mkvmlinux of a dump whose tables are damaged in memory, in a process whose memory and time are bounded.

usage: python -m tests.builders.damaged_tables < REQUEST > ANSWER

REQUEST: {"dump", "tables": {NAME: [vaddr, size]}, "seed", "cases", "folder", "room" (bytes), "seconds"}.
Every case damages one table, each in turn: bits turned over, numbers that are counts and offsets, noise,
pieces that stand elsewhere, an end that is zeros.  The files are in ``folder``, by their numbers.  ANSWER: a
list of {"table", "how", "file", "error", "missing", "symbols", "types", "frames"}; the first is of no damage.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from kdump_elftool.addr import u64
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.mkvmlinux import make_vmlinux
from kdump_elftool.memory.physical import BlockReader, PhysicalMemory

PAGE = 4096
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
Patch = tuple[int, bytes]
"""An offset within a table, and what stands there."""


def flips(random: Random, table: bytes) -> list[Patch]:
    places = [random.randrange(len(table)) for _ in range(random.choice([1, 1, 3, 30]))]
    return [(at, bytes([table[at] ^ 1 << random.randrange(8)])) for at in places]


def numbers(random: Random, table: bytes) -> list[Patch]:
    """At the beginning, where headers and counts are, or anywhere."""
    found = []
    for _ in range(random.choice([1, 2, 20])):
        end = random.choice([min(64, len(table)), len(table)])
        at = random.randrange(max(end // 4, 1)) * 4
        value = random.choice([*ODD, len(table), random.getrandbits(32)])
        found.append((at, value.to_bytes(4, "little")[: len(table) - at]))
    return found


def noise(random: Random, table: bytes) -> list[Patch]:
    at = random.randrange(len(table))
    return [(at, random.randbytes(min(random.choice([16, 300, 70000]), len(table) - at)))]


def elsewhere(random: Random, table: bytes) -> list[Patch]:
    size = random.choice([4, 64, 5000])
    source, at = random.randrange(len(table)), random.randrange(len(table))
    return [(at, table[source : source + min(size, len(table) - at)])]


def end_missing(random: Random, table: bytes) -> list[Patch]:
    at = random.randrange(len(table))
    return [(at, bytes(len(table) - at))]


HOW: tuple[Callable[[Random, bytes], list[Patch]], ...] = (flips, numbers, noise, elsewhere, end_missing)


@dataclass(frozen=True)
class Overlay:
    """A reader with other bytes at some positions."""

    reader: BlockReader
    patches: tuple[Patch, ...]

    def read_into(self, offset: int, view: memoryview, /) -> None:
        self.reader.read_into(offset, view)
        for at, data in self.patches:
            low, high = max(at, offset), min(at + len(data), offset + len(view))
            if low < high:
                view[low - offset : high - offset] = data[low - at : high - at]


def at_positions(dump: Dump, kernel: Kernel, vaddr: int, patches: list[Patch]) -> Iterator[Patch]:
    """The same, by position in the dump's data: pages of a table may lie anywhere."""
    memory, extents = kernel.virtual(dump), dump.memory.extents
    for at, data in patches:
        begin = 0
        while begin < len(data):
            start = vaddr + at + begin
            size = min(PAGE - start % PAGE, len(data) - begin)
            paddr, mapped = memory.translate(u64([start]))
            index, found = extents.locate(paddr)
            assert mapped.all() and found.all(), hex(start)
            position = extents.position[index] + paddr - extents.start[index]
            yield int(position[0]), data[begin : begin + size]
            begin += size


def damaged(dump: Dump, patches: tuple[Patch, ...]) -> Dump:
    reader = dump.memory.reader
    assert hasattr(reader, "read_into")
    overlaid = PhysicalMemory(Overlay(reader, patches), dump.memory.extents, dump.memory.declared)
    return replace(dump, memory=overlaid)


def outcome(dump: Dump, kernel: Kernel, path: Path) -> dict[str, Any]:
    try:
        made = make_vmlinux(dump, kernel)
    except KdumpError as error:
        return {"file": None, "error": error.message}
    path.write_bytes(made.data)
    types = sum(unit.types for unit in made.units)
    found: dict[str, Any] = {"file": str(path), "error": None, "missing": made.missing, "types": types}
    return {**found, "symbols": made.symbols, "frames": b".debug_frame" in made.data}


def main() -> None:
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    random, folder = Random(request["seed"]), Path(request["folder"])
    with InputFile.open(request["dump"]) as file:
        dump = open_dump(file)
        kernel = open_kernel(dump, KernelRequest())
        answers = [{"table": None, "how": None, **outcome(dump, kernel, folder / "whole")}]
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + request["room"],) * 2)
        tables = {name: kernel.virtual(dump).read(*where) for name, where in request["tables"].items()}
        for number in range(request["cases"]):
            name = [*tables][number % len(tables)]
            how = random.choice(HOW)
            print(f"case {number}: {how.__name__} in {name}", file=sys.stderr)
            patches = at_positions(dump, kernel, request["tables"][name][0], how(random, tables[name]))
            found = outcome(damaged(dump, tuple(patches)), kernel, folder / str(number))
            answers.append({"table": name, "how": how.__name__, **found})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    main()
