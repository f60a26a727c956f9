"""``tovelf -p`` and ``ps`` on real dumps: every task a thread, with the frames that drgn sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.dumps import HERE, LabDump, gdb, kdump_elftool, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMPS = selected_dumps()
KERNEL_HALF = 1 << 63


@dataclass(frozen=True)
class Converted:
    """A velf with a thread a task, made without vmlinux, and what drgn says of the original."""

    dump: LabDump
    velf: Path
    summary: dict[str, Any]
    tasks: dict[int, list[Any]]
    stacks: dict[int, list[int] | None]


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("tasks")
    velf, answer = folder / "velf", folder / "drgn.json"
    done = kdump_elftool("tovelf", "-p", "-i", dump.path, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    judged = subprocess.run(
        [sys.executable, str(HERE / "oracle_tasks.py"), str(dump.path), str(dump.vmlinux), str(answer)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert judged.returncode == 0, judged.stderr
    said = json.loads(answer.read_text())
    tasks, stacks = ({int(lwp): value for lwp, value in said[name].items()} for name in ("tasks", "stacks"))
    yield Converted(dump, velf, summary, tasks, stacks)
    velf.unlink()


def gdb_stacks(velf: Path, dump: LabDump, offset: str, scratch: Path) -> dict[int, list[int]]:
    answer = scratch / "stacks.json"
    shown = gdb(
        f"core-file {velf}",
        f"symbol-file -o {offset} {dump.vmlinux}",
        f"source {HERE / 'gdb_stacks.py'}",
        KD_ANSWER=str(answer),
    )
    assert answer.exists(), shown.stdout[-2000:] + shown.stderr[-2000:]
    assert "warning" not in shown.stderr.lower(), shown.stderr[-2000:]
    return {int(lwp): frames for lwp, frames in json.loads(answer.read_text()).items()}


def kernel_part(frames: list[int]) -> list[int]:
    """Up to the first address outside of the kernel half."""
    for index, pc in enumerate(frames):
        if pc < KERNEL_HALF:
            return frames[:index]
    return frames


def test_every_task_is_a_thread(converted: Converted, tmp_path: Path) -> None:
    """What the guest listed last before its end, and an idle task for each CPU."""
    stacks = gdb_stacks(converted.velf, converted.dump, converted.summary["kaslr_offset"], tmp_path)
    cpus = len({lwp for lwp in converted.tasks if lwp < 0})
    expected = {task["tid"] for task in converted.dump.truth["tasks"]} | {-cpu - 1 for cpu in range(cpus)}
    ours = set(stacks)
    # kernel workers come and go by themselves: only what drgn sees too may differ
    for lwp in ours ^ expected:
        assert (lwp in ours) == (lwp in converted.tasks), lwp
        assert converted.tasks.get(lwp, [0, "kworker"])[1].startswith("kworker"), converted.tasks.get(lwp)
    assert ours == set(converted.tasks)
    assert len(ours) == converted.summary["nr_threads"] > 40
    different = {
        lwp: (list(map(hex, kernel_part(frames))), list(map(hex, kernel_part(stacks[lwp]))))
        for lwp, frames in converted.stacks.items()
        if frames is not None and kernel_part(frames) != kernel_part(stacks[lwp])
    }
    assert not different, f"{len(different)} of {len(converted.stacks)}: {dict(list(different.items())[:3])}"
    assert sum(len(kernel_part(frames or [])) for frames in converted.stacks.values()) > 4 * len(ours)


def test_ps_lists_them(converted: Converted) -> None:
    done = kdump_elftool("ps", converted.dump.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {
        task["lwp"]: [task["pid"], task["comm"], int(task["task"], 16)]
        for task in json.loads(done.stdout)["tasks"]
    }
    assert listed == {lwp: [tgid, comm, at] for lwp, (tgid, comm, _, at) in converted.tasks.items()}
    shown = kdump_elftool("ps", converted.dump.path).stdout.splitlines()
    assert shown[0].split() == ["PID", "TID", "PPID", "ST", "CPU", "TASK", "COMM"]
    assert len(shown) == len(listed) + 1
