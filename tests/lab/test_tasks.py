"""``tovelf -p`` and ``ps`` on real dumps: every task a thread, with the frames that drgn sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import KernelRequest, open_kernel
from kdump_elftool.jobs.tasks import task_threads, tasks_by, threads_of
from kdump_elftool.kernel.btf import open_btf
from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.kernel.identity import kaslr_offset_by
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import VmlinuxSymbols, vmlinux_btf
from tests.lab.dumps import LabDump, drgn_says, kdump_elftool, selected_dumps
from tests.lab.in_gdb import kernel_part, stacks_in_gdb

pytestmark = [pytest.mark.lab, pytest.mark.gdb, pytest.mark.slow]

DUMPS = selected_dumps()


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
    velf = folder / "velf"
    done = kdump_elftool("tovelf", "-p", "-i", dump.path, "-o", velf, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["warnings"] == []
    said = drgn_says("oracle_tasks.py", dump.path, dump.vmlinux, folder)
    tasks, stacks = ({int(lwp): value for lwp, value in said[name].items()} for name in ("tasks", "stacks"))
    yield Converted(dump, velf, summary, tasks, stacks)
    velf.unlink()


def test_every_task_is_a_thread(converted: Converted, tmp_path: Path) -> None:
    """What the guest listed last before its end, and an idle task for each CPU."""
    symbols = f"symbol-file -o {converted.summary['kaslr_offset']} {converted.dump.vmlinux}"
    stacks, _ = stacks_in_gdb(converted.velf, tmp_path, symbols)
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


@dataclass(frozen=True)
class FunctionsOnly:
    """A kernel's symbols as they are without CONFIG_KALLSYMS_ALL: those of its text."""

    symbols: Kallsyms
    start: int
    end: int

    def find(self, kind: str, name: str, /) -> Fact | None:
        fact = self.symbols.find(kind, name)
        return fact if fact is not None and self.start <= int(fact.value) < self.end else None


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_a_kernel_that_lists_functions_alone(dump: LabDump) -> None:
    """init_task, types and run queues by their content: the same threads with the same registers."""
    dump.check()
    with InputFile.open(str(dump.path)) as file:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest())
        memory, window = kernel.virtual(opened), kernel.identity.image_window
        kallsyms = open_kallsyms(memory, kernel.info, window, "<", 8)
        assert kallsyms is not None
        start, end = (kallsyms.symbol(name) or 0 for name in ("_stext", "_etext"))
        functions = FunctionsOnly(kallsyms, start, end)
        assert functions.find("SYMBOL", "__schedule") is not None
        hidden = ("init_task", "runqueues", "__start_BTF")
        assert all(functions.find("SYMBOL", name) is None for name in hidden)
        btf = open_btf(memory, functions, window, "<", 8)
        assert btf is not None
        sources = (kernel.info, functions, btf)
        content = ContentSource(memory, Knowledge(sources), window, "<", 8)
        poor = threads_of(tasks_by(Knowledge((*sources, content)), opened, kernel), opened, kernel)
        rich = task_threads(opened, kernel)
    assert poor.listed.tasks.lwp.tolist() == rich.listed.tasks.lwp.tolist()
    assert poor.listed.tasks.task.tolist() == rich.listed.tasks.task.tolist()
    assert poor.warnings == ()
    assert [note.desc for note in poor.notes] == [note.desc for note in rich.notes]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_vmlinux_changes_nothing(dump: LabDump) -> None:
    """Thread ids and registers with the dump's own tables are those with the debug kernel's."""
    dump.check()
    with InputFile.open(str(dump.path)) as file, InputFile.open(str(dump.vmlinux)) as linked:
        opened = open_dump(file)
        kernel = open_kernel(opened, KernelRequest(vmlinux=read_vmlinux(linked)))
        assert kernel.vmlinux is not None
        offset = kaslr_offset_by(kernel.identity, kernel.vmlinux)
        assert offset is not None
        symbols = VmlinuxSymbols(kernel.vmlinux, int(offset.value), kernel.identity.image_window[0])
        types = vmlinux_btf(kernel.vmlinux, 8)
        assert types is not None
        known = Knowledge((kernel.info, symbols, types))
        with_vmlinux = threads_of(tasks_by(known, opened, kernel), opened, kernel)
        without = task_threads(opened, open_kernel(opened, KernelRequest()))
    assert {"vmlinux symbols", "vmlinux BTF"} <= {fact.source for fact in with_vmlinux.listed.known.used}
    assert without.notes == with_vmlinux.notes
