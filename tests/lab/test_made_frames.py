"""Backtraces by a vmlinux that was made of a dump without ORC: frame pointers, prologues, exceptions.

Judges: drgn with the distribution's vmlinux, that vmlinux's own call-frame information, and on machines whose
stacks drgn does not read gdb with that vmlinux.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.roots import run_in_root
from tests.lab.cfa import FrameTable
from tests.lab.dumps import (
    GDB,
    GDB_MULTIARCH,
    HERE,
    IN_CI,
    LabDump,
    drgn_says,
    kdump_elftool,
    one_of_each_row,
    tool_root,
)
from tests.lab.in_gdb import kernel_part, stacks_in_gdb
from tests.lab.test_mkvmlinux import ARM64, symbols

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

PACKAGE = HERE.parents[1] / "src" / "kdump_elftool"
POINTERS = [dump for dump in one_of_each_row() if dump.arch in ("i386", "arm") and not IN_CI]
GONE = 5_000
"""Rows of code for leaving the kernel, which is in no kernel's memory."""

LED_TO = {
    "super_blocks",
    "slab_caches",
    "workqueues",
    "task_groups",
    "clocksource_list",
    "memblock",
    "panic_on_oops",
}
LED_TO |= {"linux_proc_banner", "init_thread_union"}
BY_CODE = {"curr_clocksource", "hstates", "dentry_hashtable", "inode_hashtable", "max_pfn", "nr_threads"}


@dataclass(frozen=True)
class Made:
    """A core with a thread a task, the vmlinux made of it, stacks by drgn and by gdb."""

    dump: LabDump
    velf: Path
    vmlinux: Path
    judged: dict[int, list[int]]
    running: list[list[int]]
    stacks: dict[int, list[int]]


@pytest.fixture(scope="module", params=ARM64, ids=lambda dump: dump.id)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("made_frames")
    velf, answer = folder / "velf", folder / "stacks.json"
    with pytest.MonkeyPatch.context() as patch:
        # an earlier run remembers where the vmlinux was
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("KD_ANSWER", str(answer))
        script = ("--", "-ex", f"source {HERE / 'gdb_stacks.py'}")
        done = kdump_elftool("gdb", "--batch", "--velf", velf, dump.path, *script)
    assert done.returncode == 0, done.stderr
    assert "names and types are the dump's own" in done.stderr
    assert "warning" not in done.stderr, done.stderr
    said = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, folder)["stacks"]
    running = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, folder, "running")["running"]
    yield Made(
        dump,
        velf,
        folder / "velf.symbols" / "vmlinux.dump",
        {int(lwp): kernel_part(frames) for lwp, frames in said.items() if frames is not None},
        [kernel_part(frames) for frames in running.values()],
        by_lwp(answer),
    )
    shutil.rmtree(folder)


def by_lwp(answer: Path) -> dict[int, list[int]]:
    return {int(lwp): kernel_part(frames) for lwp, frames in json.loads(answer.read_text()).items()}


def different(made: Made, stacks: dict[int, list[int]]) -> dict[int, tuple[list[str], list[str]]]:
    return {
        lwp: (list(map(hex, frames)), list(map(hex, stacks[lwp])))
        for lwp, frames in made.judged.items()
        if frames != stacks[lwp]
    }


def test_every_stack(made: Made) -> None:
    """With kdump_gdbinit in any gdb: this one is of a version that cannot read signed addresses by itself."""
    wrong = different(made, made.stacks)
    assert not wrong, f"{len(wrong)} of {len(made.judged)}: {dict(list(wrong.items())[:3])}"
    assert sum(map(len, made.judged.values())) > 4 * len(made.judged) > 160
    for frames in made.running:
        assert frames in made.stacks.values(), list(map(hex, frames))


@pytest.mark.parametrize("made", [] if IN_CI else ARM64, ids=lambda dump: dump.id, indirect=True)
@pytest.mark.parametrize("with_ours", [False, True], ids=["stock", "kdump_gdbinit"])
def test_every_stack_in_a_newer_gdb(made: Made, with_ours: bool) -> None:
    """Which reads signed addresses; of code that is not in the core it does not ask for call frames."""
    init = ["source /mnt/src/gdbside/kdump_gdbinit"] if with_ours else []
    commands = [
        "set debuginfod enabled off",
        "core-file /mnt/core/velf",
        "add-symbol-file /mnt/core/velf.symbols/vmlinux.dump",
        *init,
        "python import os; os.environ['KD_ANSWER'] = '/mnt/core/newer.json'",
        "source /mnt/tests/gdb_stacks.py",
    ]
    argv = [GDB_MULTIARCH, "-nx", "-nh", "-batch"]
    argv += [word for command in commands for word in ("-ex", command)]
    binds = {made.velf.parent: "/mnt/core", HERE: "/mnt/tests", PACKAGE: "/mnt/src"}
    shown = run_in_root(tool_root("trixie"), argv, binds=binds, timeout=600)
    answer = made.velf.with_name("newer.json")
    assert answer.exists(), shown.stdout[-2000:] + shown.stderr[-2000:]
    stacks = by_lwp(answer)
    answer.unlink()
    wrong = different(made, stacks)
    # the first idle task was called by freed code
    allowed = set() if with_ours else {-1}
    assert set(wrong) <= allowed, f"{len(wrong)} of {len(made.judged)}: {dict(list(wrong.items())[:3])}"


def test_variables_are_where_the_vmlinux_has_them(made: Made) -> None:
    """Exported, well-known and per-CPU ones; kallsyms of some kernels has functions alone."""
    known = json.loads(kdump_elftool("info", made.dump.path, "--json").stdout)
    offset = int(known["kaslr_offset"] or "0", 16)
    real: dict[str, set[int]] = {}
    for address, _, _, name in symbols(made.dump.vmlinux):
        real.setdefault(name, set()).add(address + offset)
    (low,), (high,) = real["_stext"], real["_end"]
    own = [
        (name, address)
        for address, _, kind, name in symbols(made.vmlinux)
        if kind == "OBJECT" and low <= address < high
    ]
    assert len(own) > 600
    wrong = {name: hex(address) for name, address in own if address not in real.get(name, set())}
    assert not wrong, f"{len(wrong)} of {len(own)}: {dict(list(wrong.items())[:5])}"
    names = {name for name, _ in own}
    assert names >= {
        "init_task",
        "init_uts_ns",
        "modules",
        "jiffies",
        "prb",
        "linux_banner",
        "init_cred",
    }
    assert names >= {"__per_cpu_offset", "node_data", "init_mm", "iomem_resource", "runqueues", "crash_notes"}
    assert names >= LED_TO | BY_CODE
    # without a reserved range nothing leads to it
    assert "crashk_res" in names or made.dump.scenario == "live"


@pytest.mark.parametrize("made", [] if IN_CI else ARM64, ids=lambda dump: dump.id, indirect=True)
def test_frames_are_where_the_compiler_says(made: Made) -> None:
    """For all code of the kernel, as far as both count from the same register."""
    known = json.loads(kdump_elftool("info", made.dump.path, "--json").stdout)
    ours = FrameTable(made.vmlinux)
    theirs = FrameTable(made.dump.vmlinux, int(known["kaslr_offset"] or "0", 16))
    seen = Counter[str]()
    wrong = []
    for function in theirs.functions:
        for pc, cfa in function.rows:
            mine = ours.cfa(pc) if pc < function.end else cfa
            if mine is None:
                seen["unknown"] += 1
            elif mine.partition("+")[0] == cfa.partition("+")[0]:
                seen["same register"] += 1
                wrong += [(hex(pc), cfa, mine)] if mine != cfa else []
            else:
                # it counts from sp all the way; the record lies where sp points to, but for large frames
                assert mine.startswith("x29+") and cfa.startswith("sp+"), (hex(pc), cfa, mine)
                seen["x29" if int(mine[4:]) <= int(cfa[3:]) else "record alone"] += 1
    assert seen["unknown"] < GONE
    assert seen["same register"] > 200_000 and seen["x29"] > 100_000
    assert len(wrong) < 0.0003 * seen.total(), f"{len(wrong)}: {wrong[:10]}"
    # functions without symbol (v7.2), and code behind an early return: the record is right there, sp is not
    assert seen["record alone"] < 0.03 * seen.total(), seen


@pytest.mark.parametrize("dump", POINTERS, ids=lambda dump: dump.id)
def test_stacks_of_32_bit_kernels(dump: LabDump, tmp_path: Path) -> None:
    """Without BTF there are no types; names and frames are those that gdb has with the real vmlinux.

    At the assembly that enters the kernel gdb goes astray with that.
    """
    dump.check()
    velf, path = tmp_path / "velf", tmp_path / "vmlinux.dump"
    done = kdump_elftool("mkvmlinux", dump.path, "-o", path)
    assert done.returncode == 0
    assert "there is no BTF in the dump" in done.stderr
    # which tasks there are the types of the real one tell
    converted = kdump_elftool("tovelf", "-p", "-m", dump.vmlinux, "-i", dump.path, "-o", velf, "--json")
    assert converted.returncode == 0, converted.stderr
    offset = json.loads(converted.stdout)["kaslr_offset"] or "0"
    found = []
    for command in (f"symbol-file -o {offset} {dump.vmlinux}", f"add-symbol-file {path}"):
        program = GDB_MULTIARCH if dump.arch == "arm" else GDB
        stacks, _ = stacks_in_gdb(velf, tmp_path, command, program=program)
        found.append({lwp: of_kernel(frames, dump.arch) for lwp, frames in stacks.items()})
    velf.unlink()
    real, ours = found
    assert real.keys() == ours.keys() and len(real) > 40
    wrong = {
        lwp: (list(map(hex, frames)), list(map(hex, ours[lwp])))
        for lwp, frames in real.items()
        if frames != ours[lwp] and not is_cut(frames, ours[lwp])
    }
    assert not wrong, f"{len(wrong)} of {len(real)}: {dict(list(wrong.items())[:3])}"
    assert sum(map(len, real.values())) > 4 * len(real)


def of_kernel(frames: list[int], arch: str) -> list[int]:
    """Up to the first address below those of kernel and modules, which arm has in front of its kernel."""
    lowest = 0xBF000000 if arch == "arm" else 0xC0000000
    return frames[: next((at for at, pc in enumerate(frames) if pc < lowest), len(frames))]


def is_cut(real: list[int], ours: list[int]) -> bool:
    """Whether the two part where the real one ends, or has one last address that is none."""
    return ours[: len(real)] == real or (real[:-1] == ours and real[-1] > 0xFFFFF000)
