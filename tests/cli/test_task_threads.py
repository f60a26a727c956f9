"""``tovelf -p`` and ``ps`` on a synthetic machine: every register where it belongs, damage survived."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.formats import elfcore
from tests.builders.check import read_core
from tests.builders.elfcore import build_core, own_address_words
from tests.builders.notes import prstatus_pid, prstatus_register, x86_64_prstatus
from tests.builders.pagetables import ACCESSED, US, P, PageTables
from tests.builders.task_kernel import SP_IN_STACK, TaskKernel, make_task_kernel, save_crash_note

PROCESSES = [1, 3, 1, 2]
TIDS = list(range(1, 8))


@pytest.fixture
def convert(tmp_path, capfd):
    """``convert(made)``: prstatus notes of ``tovelf -p`` by thread number in file order, stderr, the core."""

    def run(made: TaskKernel, *options: str, notes=None):
        dump, extra, velf = tmp_path / "dump", tmp_path / "extra", tmp_path / "velf"
        spec = made.kernel.core_spec()
        dump.write_bytes(build_core(replace(spec, notes=notes) if notes is not None else spec))
        extra.write_text(made.extra)
        code = main(["tovelf", "-p", "-i", str(dump), "-e", str(extra), "-o", str(velf), *options])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        assert "Traceback" not in captured.err
        core = read_core(velf)
        registers = {
            prstatus_pid(desc): desc for name, kind, desc in core.notes() if (name, kind) == ("CORE", 1)
        }
        return registers, captured.err, velf

    return run


def saved(desc: bytes, names) -> dict[str, int]:
    return {name: prstatus_register(desc, name) for name in names}


@pytest.mark.parametrize("old", [False, True], ids=["inactive_task_frame", "before 4.9"])
def test_every_task_with_its_registers(convert, old):
    made = make_task_kernel(PROCESSES, old=old)
    found, err, _ = convert(made)
    # CPUs first, by number; then by thread number
    assert list(found) == [1, -2, -1, *TIDS[1:]] if -1 in found else [1, -2, *TIDS[1:]]
    for tid, expected in made.asleep.items():
        assert saved(found[tid], expected) == expected, tid
        assert saved(found[tid], ("cs", "ss")) == {"cs": 0x10, "ss": 0x18}
    for cpu, lwp in ((0, 1), (1, -2)):
        assert prstatus_register(found[lwp], "rbp") == made.kernel.registers(cpu)["rbp"]
    assert "left out: -1" in err  # init_task: nothing was saved on its stack


def test_a_smashed_stack_costs_one_task(convert):
    made = make_task_kernel(PROCESSES)
    for sp in (0, 0x41414141_41414141, made.tasks.base + 0x10000 * 5 + 0x4000):
        made.set_sp(4, sp)
        found, err, _ = convert(made)
        assert set(found) == {-2, *TIDS} - {4}
        assert "2 tasks without readable registers are left out: -1, 4" in err


def test_stacks_may_be_larger(convert):
    """KASAN doubles them; the kernel's own types say so."""
    made = make_task_kernel(PROCESSES)
    frame = made.kernel.ram.read(made.paddr(made.tasks.base + 0x10000 * 4 + SP_IN_STACK), 56)
    made.write(made.tasks.base + 0x10000 * 4 + 0x7000, frame)
    made.set_sp(3, made.tasks.base + 0x10000 * 4 + 0x7000)
    assert 3 not in convert(made)[0]
    found, _, _ = convert(replace(made, extra=made.extra + "SIZE(thread_union)=32768\n"))
    assert prstatus_register(found[3], "rip") == made.asleep[3]["rip"]


def test_an_unreadable_task_costs_one_task(convert):
    made = make_task_kernel(PROCESSES)
    made.put(6, "stack", bytes(8))
    found, err, _ = convert(made)
    assert set(found) == {-2, *TIDS} - {6}
    assert f"the task at {made.task_of(6):#x} makes no sense" in err


def test_what_has_ended_has_no_thread(convert, capfd):
    """A zombie, and the first thread of a process that lives on: in the core's table all the same."""
    made = make_task_kernel(PROCESSES)
    for tid in (2, 5):
        made.bury(tid)
    found, err, velf = convert(made)
    assert set(found) == {-2, *TIDS} - {2, 5}
    assert err.count("left out") == 1
    assert "1 tasks without readable registers are left out: -1\n" in err
    shown = []
    for words in ((str(velf),), (str(velf.parent / "dump"), "-e", str(velf.parent / "extra"))):
        assert main(["ps", "--json", *words]) == 0
        table = json.loads(capfd.readouterr().out)["tasks"]
        shown.append([(row["tid"], row["state"], row["on_cpu"]) for row in table if row["lwp"] != -1])
        assert [row["tid"] for row in table if row["state"] == "Z"] == [2, 5]
    assert shown[0] == shown[1]


def test_a_cpu_that_did_not_answer(convert):
    """One note, two CPUs: the crash notes say whose it is, and the other one is said to be silent."""
    made = make_task_kernel(PROCESSES)
    registers = made.kernel.registers(1)
    save_crash_note(made, 1, 0, registers)
    notes = [note for note in made.kernel.notes() if note.type != 1] + [x86_64_prstatus(0, registers)]
    found, err, _ = convert(made, notes=notes)
    assert prstatus_register(found[-2], "rbp") == registers["rbp"]
    assert not any(found[1][112:])
    assert "CPU 0 did not answer" in err
    assert list(found)[:2] == [1, -2]


def test_a_kernel_that_ran_on(convert, monkeypatch):
    """No CPU of /proc/kcore has registers, which is no silence of theirs: one sentence says what follows."""
    monkeypatch.setattr(elfcore, "place", lambda file, header, loads, notes: (loads, notes, True))
    made = make_task_kernel(PROCESSES)
    found, err, _ = convert(made, notes=[note for note in made.kernel.notes() if note.type != 1])
    assert set(found) == {-2, *TIDS}
    assert err.count("ran on while its memory was read") == 1
    assert "answer" not in err


def test_notes_in_the_wrong_order(convert):
    made = make_task_kernel(PROCESSES)
    for cpu in (0, 1):
        save_crash_note(made, cpu, made.kernel.cpu_pid(cpu), made.kernel.registers(cpu))
    notes = [*reversed(made.kernel.notes()[:2]), *made.kernel.notes()[2:]]
    found, err, _ = convert(made, notes=notes)
    assert prstatus_register(found[1], "rbp") == made.kernel.registers(0)["rbp"]
    assert prstatus_register(found[-2], "rbp") == made.kernel.registers(1)["rbp"]
    assert "answer" not in err


def test_the_core_carries_its_table(convert, capfd, tmp_path):
    """ps on the core needs nothing but the core; a table that was tampered with is not believed."""
    made = make_task_kernel(PROCESSES)
    _, _, velf = convert(made)
    assert main(["ps", "--json", str(velf)]) == 0
    tasks = json.loads(capfd.readouterr().out)["tasks"]
    assert [task["tid"] for task in tasks] == [0, *TIDS]
    assert [task["lwp"] for task in tasks if task["on_cpu"]] == [-2, 1]
    assert tasks[1]["comm"] == "task 1"
    assert main(["info", "--json", str(velf)]) == 0
    assert json.loads(capfd.readouterr().out)["cpus"] == 2
    assert main(["ps", str(velf)]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == len(tasks) + 1
    assert [line.split()[-1] for line in shown if line.startswith(">")] == ["swapper/1", "1"]
    data = velf.read_bytes()
    for good, bad in ((b'"task 1"', b'"tas\\u001b"'[:8]), (b'"tid":1,', b'"tid":"","'[:8])):
        assert good in data
        (tmp_path / "bad").write_bytes(data.replace(good, bad.ljust(len(good))[: len(good)]))
        code = main(["ps", str(tmp_path / "bad")])
        captured = capfd.readouterr()
        assert (code, captured.out) == (1, "")
        assert "SYMBOL(init_task)" in captured.err


def test_stacks_are_whole_frames(convert):
    """A stack pointer so near to the end that the frame would run over it."""
    made = make_task_kernel(PROCESSES)
    edge = made.tasks.base + 0x10000 * 3 + 0x4000 - 16
    made.set_sp(2, edge)
    found, _, _ = convert(made)
    assert 2 not in found
    assert prstatus_register(found[3], "rsp") == made.tasks.base + 0x40000 + SP_IN_STACK + 56


COMPAT = {0x08048000: 0xA80000, 0xF7FC0000: 0xA81000, 0xFFFFD000: 0xA82000}
"""Program, vDSO and stack of a process in 32-bit mode."""
IN_COMPAT_MODE = {
    "rip": 0x08048123, "rsp": 0xFFFFDF00, "rbp": 0xFFFFDFE8, "cs": 0x23, "ss": 0x2B, "ds": 0x2B, "es": 0x2B,
    "gs": 0x63, "eflags": 0x246, "rax": 0xFFFFFFFC, "r8": 0, "r15": 0,
}  # fmt: skip


def compat_process(made: TaskKernel) -> PageTables:
    """The table of a 32-bit process: its own addresses below 4 GB, above them the kernel."""
    ram = made.kernel.ram
    tables = PageTables(ram, iter(range(0xA90000, 0xAA0000, 4096)).__next__)
    for vaddr, paddr in COMPAT.items():
        ram.write(paddr, own_address_words(paddr, 4096))
        tables.map(vaddr, paddr, flags=P | US | ACCESSED)
    ram.write(tables.root + 2048, ram.read(made.kernel.tables.root + 2048, 2048))
    return tables


def test_a_task_in_32_bit_mode(convert, capfd):
    """It is a task like others: 64-bit registers whose upper halves are not used, user addresses by -P."""
    made = make_task_kernel(PROCESSES)
    tables = compat_process(made)
    notes = made.kernel.notes()
    notes[0] = x86_64_prstatus(431, IN_COMPAT_MODE)
    plain, _, _ = convert(made, notes=notes)
    found, err, velf = convert(made, "-P", hex(tables.root), notes=notes)
    assert "another kernel" not in err
    assert list(found) == list(plain) == [1, -2, *TIDS[1:]]
    assert saved(found[1], IN_COMPAT_MODE) == IN_COMPAT_MODE
    assert saved(found[3], made.asleep[3]) == made.asleep[3]
    core = read_core(velf)
    assert core.elf_class == 64
    assert core.e_machine == 62
    dump = str(velf.with_name("dump"))
    for vaddr, paddr in COMPAT.items():
        assert core.read(vaddr, 4096) == own_address_words(paddr, 4096)
        assert main(["virttophys", "-P", hex(tables.root), "-i", dump, f"{vaddr:x}"]) == 0
        assert int(capfd.readouterr().out, 16) == paddr
    assert main(["ps", str(velf)]) == 0
    shown = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in shown if line.startswith(">")] == ["swapper/1", "1"]
