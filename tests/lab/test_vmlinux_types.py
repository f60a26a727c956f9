"""Types out of the DWARF of real kernels: those of their BTF, those that drgn sees, enough for every task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kdump_elftool.arch.x86_64 import ARCH
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.vminfo import GROUPS
from kdump_elftool.kernel.cpus import is_prstatus
from kdump_elftool.kernel.dwarf_types import open_dwarf_types
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import vmlinux_btf
from lab.stripped import has_section, hide_sections
from tests.lab.dumps import HERE, LabDump, kdump_elftool, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MEMBERS = {
    "task_struct": "state __state exit_state cpu on_cpu real_parent parent thread_info thread_node signal "
    "stack tasks pid tgid comm thread thread.sp se.vruntime in_execve cred mm nothing",
    "rq": "curr idle cpu nr_running cfs.nr_running",
    "module": "name list state core_layout mem",
    "printk_info": "seq ts_nsec text_len caller_id",
    "printk_ringbuffer": "desc_ring desc_ring.head_id text_data_ring.data",
    "uts_namespace": "name name.release",
    "thread_info": "flags cpu",
    "inactive_task_frame": "bx bp ret_addr",
    "page": "flags lru mapping _refcount compound_head compound_info slab_cache",
    "list_head": "next prev",
    "signal_struct": "thread_head nr_threads",
}
QUESTIONS = [
    *(key for keys in GROUPS.values() for key in keys if not key.startswith("SYMBOL")),
    *(key for key in ARCH.thread_keys if not key.startswith("SYMBOL")),
    *(f"{kind}({struct}.{member})" for struct, members in MEMBERS.items() for member in members.split()
      for kind in ("OFFSET", "SIZE", "LENGTH")),
    *(f"SIZE({name})" for name in (*MEMBERS, "u64", "atomic_t", "pid_t", "context_switch_frame", "nowhere")),
    *(f"NUMBER({name})" for name in ("PIDTYPE_PID", "NR_ZONE_INACTIVE_ANON", "MODULE_STATE_LIVE", "PG_none")),
]  # fmt: skip


@dataclass(frozen=True)
class Stripped:
    """One dump of each kernel, and that kernel's vmlinux without .BTF; ``home`` is for a cache."""

    dump: LabDump
    vmlinux: Path
    home: Path


def _one_a_kernel() -> list[LabDump]:
    dumps = [dump for dump in selected_dumps() if dump.scenario in ("kdump", "live")]
    by_kernel = {dump.vmlinux: dump for dump in reversed(dumps)}
    return sorted(by_kernel.values(), key=lambda dump: dump.id)


@pytest.fixture(scope="module", params=_one_a_kernel(), ids=lambda dump: dump.id)
def stripped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stripped]:
    dump: LabDump = request.param
    dump.check()
    folder = tmp_path_factory.mktemp("debug")
    target = folder / "vmlinux.debug"
    hide_sections(dump.vmlinux, target, ".BTF")
    assert has_section(dump.vmlinux, ".BTF")
    assert not has_section(target, ".BTF")
    yield Stripped(dump, target, tmp_path_factory.mktemp("home"))
    target.unlink()


@cache
def dwarf_answers(path: Path) -> dict[str, int | None]:
    """By a file that is there once: its name is that of no other."""
    with InputFile.open(str(path)) as file:
        source = open_dwarf_types(read_vmlinux(file))
        assert source is not None
        return {key: source.ask(key.partition("(")[0], key.partition("(")[2][:-1]) for key in QUESTIONS}


def btf_answers(path: Path) -> dict[str, int | None]:
    with InputFile.open(str(path)) as file:
        source = vmlinux_btf(read_vmlinux(file), 8)
        assert source is not None
        facts = {key: source.find(key.partition("(")[0], key.partition("(")[2][:-1]) for key in QUESTIONS}
    return {key: None if fact is None else int(fact.value) for key, fact in facts.items()}


def differences(ours: dict[str, int | None], theirs: dict[str, int | None]) -> dict[str, object]:
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


def test_every_answer_is_that_of_btf(stripped: Stripped) -> None:
    found = dwarf_answers(stripped.vmlinux)
    # BTF has no variables but per-CPU ones
    different = differences(found, btf_answers(stripped.dump.vmlinux))
    assert set(different) <= {"LENGTH(node_data)", "LENGTH(mem_section)"}, different
    assert sum(value is not None for value in found.values()) > 100


def test_every_answer_is_that_of_drgn(stripped: Stripped, tmp_path: Path) -> None:
    answer = tmp_path / "drgn.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "oracle_types.py"), str(stripped.vmlinux), str(answer)],
        input=json.dumps(QUESTIONS),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert differences(dwarf_answers(stripped.vmlinux), json.loads(answer.read_text())) == {}


def test_without_address_ranges(stripped: Stripped, tmp_path: Path) -> None:
    """As clang leaves a kernel: the units' own ranges decide."""
    target = tmp_path / "vmlinux"
    try:
        hide_sections(stripped.vmlinux, target, ".debug_aranges")
        assert dwarf_answers(target) == dwarf_answers(stripped.vmlinux)
    finally:
        target.unlink()


def blind(home: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command on a dump whose own types and symbols are hidden."""
    return subprocess.run(
        [sys.executable, str(HERE / "blind.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(home)},
    )


def test_tasks_by_dwarf_and_by_the_cache(stripped: Stripped) -> None:
    """The same list as from the dump's own BTF; the second time nothing of the DWARF is read."""
    expected = kdump_elftool("ps", stripped.dump.path)
    assert expected.returncode == 0, expected.stderr
    assert expected.stdout.count("\n") > 40
    for is_read in (True, False):
        done = blind(stripped.home, "ps", stripped.dump.path, "-m", stripped.vmlinux.parent, "--verbose")
        assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
        assert "OFFSET(task_struct.comm)" in done.stderr
        assert "(BTF in the dump)" not in done.stderr
        assert ("DWARF: kernel/" in done.stderr) == is_read
    assert "by its build id" in done.stderr


def test_threads_by_dwarf(stripped: Stripped, tmp_path: Path) -> None:
    """Register notes are those that the dump's own BTF and kallsyms lead to; ps has asked for half of it."""
    notes = {}
    for name, by_dwarf in (("own", False), ("dwarf", True)):
        velf = tmp_path / name
        arguments = ("tovelf", "-p", "-i", stripped.dump.path, "-o", velf)
        words = ("-m", stripped.vmlinux)
        done = blind(stripped.home, *arguments, *words) if by_dwarf else kdump_elftool(*arguments)
        assert done.returncode == 0, done.stderr
        with InputFile.open(str(velf)) as file:
            notes[name] = [note.desc for note in open_dump(file).notes if is_prstatus(note)]
        velf.unlink()
    assert notes["own"] == notes["dwarf"]
    assert len(notes["own"]) > 40


def test_vminfo_of_a_vmlinux(stripped: Stripped, tmp_path: Path) -> None:
    """With BTF and without it: the same lines."""
    with_btf, without = (
        blind(tmp_path, "vminfo", path) for path in (stripped.dump.vmlinux, stripped.vmlinux)
    )
    assert (with_btf.returncode, with_btf.stderr) == (without.returncode, without.stderr) == (0, "")
    assert with_btf.stdout == without.stdout
    assert "OFFSET(task_struct.tasks)=" in without.stdout
