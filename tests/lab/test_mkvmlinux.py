"""A vmlinux made of nothing but a dump, against the distribution's own: drgn, gdb and readelf read both."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.elf.btf_kinds import Kind
from kdump_elftool.files import InputFile
from kdump_elftool.kernel.btf import Btf
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import vmlinux_btf
from tests.lab.dumps import (
    GDB,
    GDB_MULTIARCH,
    HERE,
    IN_CI,
    LabDump,
    drgn_says,
    gdb,
    kdump_elftool,
    one_of_each_row,
    selected_dumps,
)
from tests.lab.type_texts import DIMENSIONS, EMPTY, SAME, PlainBtf, reasons

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SEED = 20261129
CI_ROWS = ("x64-61-l4.kdump", "x64-7x-l5.kdump")
UNITS = ("schedule",)
"""Whose functions gdb is asked for."""
STRUCTS, FUNCTIONS = 2_000, 3_000
PARTS = 4
"""In which gdb is asked for types, side by side: it takes minutes of one CPU for all of them."""


# kernels that the lab builds have no BTF
ARM64 = [dump for dump in one_of_each_row() if dump.arch == "aarch64" and not dump.made_by.guest.fragments]
"""CI has no time for them here."""


def one_a_kernel(ci_rows: tuple[str, ...], more: list[LabDump]) -> list[LabDump]:
    """Of the chosen rows, ``more`` among them; in CI ``ci_rows`` alone."""
    dumps = [dump for dump in selected_dumps() if dump.scenario in ("kdump", "live")]
    dumps += [] if IN_CI else more
    by_kernel = {dump.vmlinux: dump for dump in reversed(dumps) if not IN_CI or dump.row in ci_rows}
    return sorted(by_kernel.values(), key=lambda dump: dump.id)


DUMPS = one_a_kernel(CI_ROWS, ARM64)
OF_TYPES = (
    "x64-510-l4.live",
    "x64-61-l4.kdump",
    "x64-612-l5.live",
    "x64-7x-l5.kdump",
    "a64-61.live",
    "a64-612-16k.live",
    "a64-7x.live",
)
"""Types are a kernel's: no other dump of it has others."""
TYPES = [dump for dump in DUMPS if not IN_CI and dump.row in OF_TYPES]


@dataclass(frozen=True)
class Made:
    """The dump, the file made of it, what the command said, and how far the kernel was moved."""

    dump: LabDump
    path: Path
    summary: dict[str, Any]
    offset: int


def make(dump: LabDump, path: Path, *options: str | Path) -> tuple[Made, str]:
    """The file at ``path``, and what the command warned of."""
    dump.check()
    done = kdump_elftool("mkvmlinux", dump.path, *options, "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    known = json.loads(kdump_elftool("info", dump.path, "--json").stdout)
    return Made(dump, path, json.loads(done.stdout), int(known["kaslr_offset"] or "0", 16)), done.stderr


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    path = tmp_path_factory.mktemp("mkvmlinux") / "vmlinux.dump"
    yield make(request.param, path)[0]
    path.unlink()


def of_one_definition(vmlinux: Path) -> list[str]:
    """struct and union names that BTF has once, with members."""
    with InputFile.open(str(vmlinux)) as file:
        btf = vmlinux_btf(read_vmlinux(file), 8)
    assert isinstance(btf, Btf)
    structs = np.flatnonzero(np.isin(btf.kind, [Kind.STRUCT, Kind.UNION]) & (btf.name > 0) & (btf.vlen > 0))
    names = [(int(btf.kind[row]), int(btf.name[row])) for row in structs]
    count = Counter(name for _, name in names)
    tags = {Kind.STRUCT: "struct", Kind.UNION: "union"}
    return [
        f"{tags[Kind(kind)]} {btf.strings[name : btf.strings.index(0, name)].decode()}"
        for kind, name in names
        if count[name] == 1
    ]


def btf_of(vmlinux: Path) -> PlainBtf:
    with vmlinux.open("rb") as file:
        return PlainBtf.parse(ELFFile(file).get_section_by_name(".BTF").data())


def defined_again(dump: LabDump) -> frozenset[str]:
    """Names of types in the modules of a dump; and one of the compiler's, whose members gdb hides."""
    base = btf_of(dump.vmlinux)
    loaded = {module["name"] for module in dump.truth["modules"]}
    found = {"__va_list"}
    for path in (dump.directory / "modules").rglob("*.ko"):
        if path.stem.replace("-", "_") in loaded:
            with path.open("rb") as file:
                section = ELFFile(file).get_section_by_name(".BTF")
                types = PlainBtf.parse(section.data(), base).types if section else []
            found |= {name for name, kind, _ in types[len(base.types) :] if kind in (Kind.STRUCT, Kind.UNION)}
    return frozenset(found)


def asked(vmlinux: Path, request: dict[str, Any], scratch: Path, program: str = GDB) -> dict[str, Any]:
    """gdb's answer; see gdb_types.py."""
    scratch.mkdir(exist_ok=True)
    question, answer = scratch / "question.json", scratch / "answer.json"
    question.write_text(json.dumps(request))
    answer.unlink(missing_ok=True)
    done = gdb(
        f"symbol-file {vmlinux}",
        f"source {HERE / 'gdb_types.py'}",
        program=program,
        timeout=1800,
        KD_REQUEST=str(question),
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return json.loads(answer.read_text())


@cache
def real_answer(
    vmlinux: Path, offset: int, scratch: Path, program: str, without: frozenset[str]
) -> dict[str, Any]:
    """The functions first, which leaves an index for the others."""
    nothing = {"structs": [], "count": 0, "units": [], "functions": [], "offset": offset}
    answer = asked(vmlinux, {**nothing, "units": UNITS}, scratch, program)
    names = [tag for tag in of_one_definition(vmlinux) if tag.split()[1] not in without]
    drawn = random.Random(SEED).sample(names, len(names))

    def part(number: int) -> dict[str, Any]:
        request = {**nothing, "structs": drawn[number::PARTS], "count": STRUCTS // PARTS}
        return asked(vmlinux, request, scratch / str(number), program)

    with ThreadPoolExecutor(PARTS) as pool:
        parts = list(pool.map(part, range(PARTS)))
    structs = {name: text for found in parts for name, text in found["structs"].items()}
    return {"structs": structs, "functions": answer["functions"]}


def flat(text: str) -> str:
    """As BTF has it: no difference between [0] and [], the dimensions of an array multiplied."""

    def product(found: re.Match[str]) -> str:
        count = 1
        for size in re.findall(r"\[(\d*)\]", found[0]):
            count *= int(size or 0)
        return f"[{count or ''}]"

    return re.sub(r"(\[\d*\])+", product, text)


def test_drgn_takes_from_it_what_it_takes_from_the_real_one(made: Made, tmp_path: Path) -> None:
    """Every type with all of its layout, what functions take and return, and tasks through both."""
    path, dump = tmp_path / "vmlinux.link", made.dump
    assert kdump_elftool("mkvmlinux", dump.path, "-o", path, "--link-addresses").returncode == 0
    count = Counter(name for _, _, kind, name in symbols(dump.vmlinux) if kind == "FUNC")
    unique = sorted(name for name, times in count.items() if times == 1)
    functions = random.Random(SEED).sample(unique, FUNCTIONS)
    # virtio_console has a struct of this name, too
    types = [name for name in of_one_definition(dump.vmlinux) if name.split()[-1] != "console"]
    theirs, ours = (
        drgn_says("oracle_made.py", dump.path, file, tmp_path, types=types, functions=functions)
        for file in (dump.vmlinux, path)
    )
    path.unlink()
    assert (ours["banner"], ours["tasks"]) == (theirs["banner"], theirs["tasks"])
    assert ours["banner"].endswith(f" {made.summary['release']}") and ours["tasks"] > 40
    real = {name: found for name, found in theirs["types"].items() if found is not None}
    assert len(real) > 0.95 * len(types) > 5_000
    assert [name for name, found in real.items() if ours["types"][name] is None] == []
    different = {name: (found, ours["types"][name]) for name, found in real.items()}
    different = {name: pair for name, pair in different.items() if len({type_key(each) for each in pair}) > 1}
    assert not different, f"{len(different)} of {len(real)}: {next(iter(different.items()))}"
    both = [(text, ours["functions"][name]) for name, text in theirs["functions"].items() if text]
    # BTF leaves out functions whose parameters the compiler has changed
    common = [(flat(text), flat(mine)) for text, mine in both if mine is not None]
    assert len(common) > 0.7 * len(both) and len(both) > 0.3 * FUNCTIONS
    wrong = [pair for pair in common if len({same_function(text) for text in pair}) > 1]
    # the compiler may list parameters of an inlined function, vfs_statfs(), in another order
    assert len(wrong) < 0.001 * len(common), f"{len(wrong)} of {len(common)}: {wrong[:10]}"


def same_function(text: str) -> str:
    """Either may have a system call's weak stand-in; since 7.0 BTF lacks what the verifier of BPF adds."""
    return re.sub(r", (const )?struct bpf_prog_aux \*aux\)", ")", text.replace("__unused", "regs"))


def type_key(found: list[Any]) -> str:
    return json.dumps([flat(found[0]), *found[1:]])


@pytest.mark.parametrize("made", TYPES, ids=lambda dump: dump.id, indirect=True)
def test_gdb_shows_the_types_of_the_real_vmlinux(made: Made, tmp_path_factory) -> None:
    """As gdb prints them: 0.1 s of CPU time for each, even with an index."""
    scratch = tmp_path_factory.mktemp("types")
    program = GDB_MULTIARCH if made.dump in ARM64 else GDB
    real = real_answer(made.dump.vmlinux, made.offset, scratch, program, defined_again(made.dump))
    structs = {name: text for name, text in real["structs"].items() if text is not None}
    assert len(structs) == STRUCTS > 0.9 * len(real["structs"])
    request = {
        "structs": list(structs),
        "count": len(structs),
        "units": [],
    }
    addresses = [int(address, 16) for address in real["functions"]]
    ours = asked(made.path, {**request, "functions": addresses, "offset": 0}, scratch, program)
    btf = btf_of(made.dump.vmlinux)
    why = {name: reasons(name, text, ours["structs"][name] or "", btf) for name, text in structs.items()}
    seen = Counter(reason for found in why.values() for reason in found)
    print(f"{made.dump.id}: {len(structs)} types: {dict(seen)}")
    different = {name: found for name, found in why.items() if found - {SAME, EMPTY, DIMENSIONS}}
    assert not different, f"{len(different)} of {len(structs)}: {next(iter(different.items()))}"
    # 5.10 has [0] where later kernels have []
    assert seen[SAME] > (0.9 if made.dump.row == "x64-510-l4.live" else 0.95) * len(structs)
    both = [(text, ours["functions"].get(address)) for address, text in real["functions"].items()]
    # BTF leaves out functions whose parameters the compiler has changed
    common = [(theirs, mine) for theirs, mine in both if mine is not None]
    # on arm64 the real one has functions begin behind the room for ftrace, 8 bytes on
    assert len(common) > (0.2 if made.dump in ARM64 else 0.7) * len(both)
    wrong = [(theirs, mine) for theirs, mine in common if flat(theirs) != flat(mine)]
    # two functions at one address may each be shown, and of a system call BTF may have its weak stand-in
    wrong = [(theirs, mine) for theirs, mine in wrong if theirs.split(":")[0] == mine.split(":")[0]]
    wrong = [(theirs, mine) for theirs, mine in wrong if theirs != mine.replace("__unused", "regs")]
    assert not wrong, f"{len(wrong)} of {len(common)}: {wrong[:5]}"


def symbols(path: Path) -> list[tuple[int, int, str, str]]:
    """Address, size, type and name of all symbols, as readelf lists them."""
    done = subprocess.run(["readelf", "-sW", path], capture_output=True, text=True, errors="replace")
    rows = (line.split() for line in done.stdout.splitlines())
    return [
        (int(row[1], 16), int(row[2], 0), row[3], row[7])
        for row in rows
        if len(row) == 8 and row[1] != "Value"
    ]


def test_symbols_are_those_of_the_real_vmlinux(made):
    real = {(address, name): (size, kind) for address, size, kind, name in symbols(made.dump.vmlinux)}
    table = symbols(made.path)
    modules = next(at for at, row in enumerate(table) if row[2] == "FILE" and row[3].startswith("["))
    own = [row for row in table[:modules] if row[2] in ("FUNC", "OBJECT")]
    known = []
    for address, size, kind, name in own:
        # per-CPU symbols are not moved
        found = real.get((address - made.offset, name)) or real.get((address, name))
        known.append((name, size, kind, found))
    assert len(known) > 60_000 or made.dump.row.startswith("a64")
    assert not [name for name, _, _, found in known if found is None]
    typed = [(kind, found[1]) for _, _, kind, found in known if found and found[1] in ("FUNC", "OBJECT")]
    assert sum(ours != theirs for ours, theirs in typed) < 0.001 * len(typed)
    sized = [(size, found[0]) for _, size, kind, found in known if found and kind == "FUNC" and found[0]]
    # a symbol ends where the next one begins, not where its padding does
    assert sum(ours < theirs or ours > theirs + 64 for ours, theirs in sized) < 0.005 * len(sized)


def test_readelf_has_no_complaint(made):
    done = subprocess.run(
        ["readelf", "-wi", "-wa", "-wR", made.path], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0
    assert not done.stderr
    assert done.stdout.count("DW_TAG_compile_unit") >= 2, "the kernel and at least one module"
