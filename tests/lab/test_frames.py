"""Frames that a vmlinux doesn't describe: gdb with the frame file goes every way that drgn goes."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.frames import write_frame_file
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.kernel.vmlinux import read_vmlinux
from tests.lab.cfa import FrameTable
from tests.lab.dumps import IN_CI, PAGING, LabDump, drgn_says, kdump_elftool, selected_dumps, selected_rows
from tests.lab.in_gdb import kernel_part, stacks_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

SCENARIOS = ("kdump",) if IN_CI else ("kdump", "live")
DUMPS = [dump for dump in selected_dumps() if dump.scenario in SCENARIOS and dump.file != PAGING]
COMPILED = [dump for dump in DUMPS if dump.scenario == "kdump" and not IN_CI]
"""Reading all of a kernel's frames twice takes a while."""
CRASHES = {
    "oops.elf": ("asm_exc_page_fault", "sysrq_handle_crash", "write_sysrq_trigger", "do_syscall_64"),
    "irq.elf": ("sysrq_handle_crash", "common_interrupt", "asm_common_interrupt"),
    "nmi.elf": ("exc_nmi",),
}
"""The three dumps of a row, and functions on the way from the panic to what was interrupted, in order."""
OOPSES = [
    LabDump(row.name, row.scenario, file)
    for row in selected_rows()
    if row.scenario == "oops"
    for file in CRASHES
]


def whose(stacks: dict[int, list[int]], frames: list[int]) -> list[int]:
    """The threads with exactly these frames."""
    return [lwp for lwp, found in stacks.items() if kernel_part(found) == frames]


def frame_file(dump: LabDump, target: Path, vmlinux: Path | None = None) -> Path:
    with InputFile.open(str(dump.path)) as file, InputFile.open(str(vmlinux or dump.path)) as linked:
        opened = open_dump(file)
        request = KernelRequest(vmlinux=read_vmlinux(linked) if vmlinux else None)
        written = write_frame_file(opened, open_kernel(opened, request), str(target))
    assert written is not None
    assert written.warnings == ()
    return target


@cache
def panic_of(dump: LabDump) -> list[tuple[int, str]]:
    """Return addresses and functions of the CPU that panicked, as far as they are the kernel's."""
    with tempfile.TemporaryDirectory() as scratch:
        frames = drgn_says("oracle_panic.py", dump.path, dump.vmlinux, Path(scratch))["frames"]
    return [(pc, name) for pc, name in frames[: len(kernel_part([pc for pc, _ in frames]))]]


@pytest.fixture(scope="module")
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A dump, its velf with a thread a task, and how far its kernel was moved."""
    dump: LabDump = request.param
    dump.check()
    velf = tmp_path_factory.mktemp("frames") / "velf"
    done = kdump_elftool("tovelf", "-p", "-i", dump.path, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    yield dump, velf, json.loads(done.stdout)["kaslr_offset"]
    velf.unlink()


@pytest.mark.parametrize("converted", DUMPS, ids=lambda dump: dump.id, indirect=True)
def test_every_stack_by_the_dump_alone(converted, tmp_path: Path) -> None:
    """Without any vmlinux: the return addresses of every task are those that drgn finds with it."""
    dump, velf, _ = converted
    frames = frame_file(dump, tmp_path / "frames")
    found, _ = stacks_in_gdb(velf, tmp_path, f"add-symbol-file {frames}")
    said = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, tmp_path)["stacks"]
    different = {
        lwp: (list(map(hex, frames)), list(map(hex, found[int(lwp)])))
        for lwp, frames in said.items()
        if frames is not None and kernel_part(frames) != kernel_part(found[int(lwp)])
    }
    assert not different, f"{len(different)} of {len(said)}: {dict(list(different.items())[:3])}"
    assert sum(len(kernel_part(frames or [])) for frames in said.values()) > 4 * len(said) > 160
    running = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, tmp_path, "running")["running"]
    for cpu, frames in running.items():
        assert whose(found, kernel_part(frames)), (cpu, list(map(hex, frames)))


@pytest.mark.parametrize("vmlinux", [True, False], ids=["vmlinux", "alone"])
@pytest.mark.parametrize("converted", OOPSES, ids=lambda dump: dump.id, indirect=True)
def test_the_whole_way_of_a_panic(converted, vmlinux: bool, tmp_path: Path) -> None:
    """Down to the interrupted code, with and without the vmlinux beside the frame file."""
    dump, velf, offset = converted
    linked = dump.vmlinux if vmlinux else None
    frames = frame_file(dump, tmp_path / "frames", linked)
    symbols = [f"symbol-file -o {offset} {linked}"] if linked else []
    way, names = ([frame[at] for frame in panic_of(dump)] for at in (0, 1))
    passed = iter(names)
    for wanted in ("panic", *CRASHES[dump.file]):
        assert any(name == wanted for name in passed), (wanted, names)
    assert list(passed), "nothing was interrupted"
    found, _ = stacks_in_gdb(velf, tmp_path, f"add-symbol-file {frames}", *symbols)
    assert len(whose(found, way)) == 1, (
        names,
        [list(map(hex, stack)) for stack in found.values() if stack[:1] == way[:1]],
    )


@pytest.mark.parametrize("converted", [dump for dump in OOPSES if dump.file == "oops.elf"], indirect=True)
def test_gdb_alone_does_not_get_there(converted, tmp_path: Path) -> None:
    """What the frame file is good for: without it the way ends at the exception or goes astray."""
    dump, velf, offset = converted
    found, _ = stacks_in_gdb(velf, tmp_path, f"symbol-file -o {offset} {dump.vmlinux}")
    assert whose(found, [pc for pc, _ in panic_of(dump)]) == []


SAME = {("r10+0", "rsp+8"), ("r13+0", "rsp+16")}
"""Behind the instruction that puts the one into the other."""
EPILOGUE, EPILOGUES_OF_5_10 = 4, 24
"""Addresses behind a pop in __crash_kexec, of which only the prologue is known; 5.10 has more like it."""
DEAD = 0.003
"""The share of code that is never reached (overridden weak functions), for which the kernel has no tables."""


@pytest.mark.parametrize("converted", COMPILED, ids=lambda dump: dump.id, indirect=True)
def test_frames_are_where_the_compiler_says(converted, tmp_path: Path) -> None:
    """For all of the kernel: the file of the dump alone against the vmlinux's call-frame information."""
    dump, _, offset = converted
    ours = FrameTable(frame_file(dump, tmp_path / "frames"))
    theirs = FrameTable(dump.vmlinux, int(offset, 16))
    different = Counter[tuple[str, str | None]]()
    for function in theirs.functions:
        for pc, cfa in function.rows:
            if pc < function.end:
                different[cfa, ours.cfa(pc)] += 1
    total = different.total()
    wrong = {pair: count for pair, count in different.items() if pair[0] != pair[1] and pair not in SAME}
    unknown = sum(count for (_, cfa), count in wrong.items() if cfa is None)
    assert total > 200_000
    assert unknown < DEAD * total, wrong
    assert all(behind_pop(*pair) for pair in wrong if pair[1] is not None), wrong
    most = EPILOGUES_OF_5_10 if dump.row.startswith("x64-510") else EPILOGUE
    assert sum(wrong.values()) - unknown <= most, wrong


def behind_pop(cfa: str, ours: str) -> bool:
    """Of the same register, and closer."""
    (base, near), (other, far) = cfa.split("+"), ours.split("+")
    return base == other and int(near) < int(far)
