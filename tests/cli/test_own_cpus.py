"""CPUs that are in another kernel by now: their registers are not shown as this one's."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from kdump_elftool.cli.main import main
from tests.builders.check import read_core
from tests.builders.elfcore import NoteSpec, build_core
from tests.builders.kernel import ABOVE, make_kernel
from tests.builders.looking import look
from tests.builders.notes import prstatus_pid, prstatus_register, qemu_cpu, x86_64_prstatus
from tests.builders.task_kernel import AREAS, CRASH_NOTES, TaskKernel, make_task_kernel, save_crash_note

CRASH = make_kernel(ABOVE)
HERE, THERE = "here", "there"


def registers(made: TaskKernel, cpu: int, rbp: int = 0) -> dict[str, int]:
    """Of a CPU in the crashed kernel, whose per-CPU area it points at."""
    own = {"gs_base": made.kernel.bases["page_offset"] + AREAS[cpu], "rbp": rbp or 0x100 + cpu}
    return made.kernel.registers(cpu) | own


def dump(
    made: TaskKernel, cpus: tuple[str, ...], more: tuple[NoteSpec, ...] = (), crash=CRASH
) -> bytes:  # fmt: skip
    """A dump as QEMU makes it: register notes, with ``more`` behind each, then its own notes."""
    notes: list[NoteSpec] = []
    for number, place in enumerate(cpus):
        values = registers(made, number) if place == HERE else {**crash.registers(0), "rbp": 0x666}
        notes += [x86_64_prstatus(number + 1, values), *more]
    for number, place in enumerate(cpus):
        kernel = made.kernel if place == HERE else crash
        values = registers(made, number) if place == HERE else {"gs_base": 0x1234000}
        notes.append(qemu_cpu(kernel.tables.root | 0x3, values))
    notes += [note for note in made.kernel.notes() if note.name == "VMCOREINFO"]
    segments = [part for kernel in (made.kernel, crash) for part in kernel.segments()]
    return build_core(replace(made.kernel.core_spec(), segments=segments, notes=notes))


@pytest.fixture
def convert(tovelf, tmp_path):
    """Notes of the velf: owner and type; register notes; warnings."""

    def run(made: TaskKernel, image: bytes, *options: str):
        extra = tmp_path / "extra"
        extra.write_text(made.extra)
        result = tovelf(image, "-e", str(extra), *options)
        assert result.code == 0, result.err
        notes = [note for note in result.core.notes() if note[0] != "kdump-elftool"]
        cpus = [desc for owner, kind, desc in notes if (owner, kind) == ("CORE", 1)]
        return [(owner, kind) for owner, kind, _ in notes], cpus, result.lines("warning")

    return run


@pytest.fixture
def made() -> TaskKernel:
    return make_task_kernel([1, 3, 1, 2], style="qemu")


def shown(cpus: list[bytes]) -> list[tuple[int, int]]:
    return [(prstatus_pid(desc), prstatus_register(desc, "rbp")) for desc in cpus]


def test_all_in_this_kernel(convert, made):
    save_crash_note(made, 0, 7, registers(made, 0, 0x777))
    notes, cpus, warnings = convert(made, dump(made, (HERE, HERE)))
    assert notes == [("CORE", 1), ("CORE", 1), ("QEMU", 0), ("QEMU", 0), ("VMCOREINFO", 0)]
    assert (shown(cpus), warnings) == ([(1, 0x100), (2, 0x101)], [])


def test_what_the_kernel_saved_instead(convert, made):
    for cpu, pid in ((0, 1), (1, 0)):
        save_crash_note(made, cpu, pid, registers(made, cpu, 0x770 + cpu))
    notes, cpus, warnings = convert(made, dump(made, (HERE, THERE)))
    assert notes == [("CORE", 1), ("CORE", 1), ("VMCOREINFO", 0)]
    assert shown(cpus) == [(1, 0x770), (-2, 0x771)]
    (warning,) = warnings
    assert "1 of 2 CPUs were in another kernel: the registers are those that this one saved" in warning


def test_a_cpu_that_saved_nothing_keeps_the_dumps(convert, made):
    """It did not answer when the kernel died, and is still in it."""
    save_crash_note(made, 1, 0, registers(made, 1, 0x771))
    _, cpus, warnings = convert(made, dump(made, (HERE, THERE)))
    assert shown(cpus) == [(-1, 0x100), (-2, 0x771)]
    assert len(warnings) == 1


def test_every_task_a_thread(convert, made):
    for cpu, pid in ((0, 1), (1, 0)):
        save_crash_note(made, cpu, pid, registers(made, cpu, 0x770 + cpu))
    _, cpus, warnings = convert(made, dump(made, (THERE, THERE)), "-p")
    assert shown(cpus)[:2] == [(1, 0x770), (-2, 0x771)]
    assert len(cpus) == 8
    assert [
        warning for warning in warnings if "register" in warning and "without" not in warning
    ] == warnings[:1]


def test_nothing_saved(convert, made):
    """The CPU that stays keeps its registers, QEMU's note too, and the number this kernel gives it."""
    notes, cpus, warnings = convert(made, dump(made, (THERE, HERE)))
    assert notes == [("CORE", 1), ("QEMU", 0), ("VMCOREINFO", 0)]
    assert shown(cpus) == [(2, 0x101)]
    assert "1 of 2 CPUs were in another kernel: their registers are left out" in warnings[0]
    notes, cpus, _ = convert(made, dump(made, (THERE, THERE)))
    assert (notes, cpus) == ([("VMCOREINFO", 0)], [])


def test_numbers_are_this_kernels(convert, made):
    """QEMU's CPU 2 is CPU 0 of a kernel that has but one."""
    image = dump(made, (THERE, HERE, THERE))
    lines = made.extra.replace("SYMBOL(nr_cpu_ids)", "SYMBOL(other)")
    assert shown(convert(replace(made, extra=lines), image)[1]) == [(2, 0x101)]
    made.kernel.ram.write(0x3C0010, struct.pack("<Q", made.kernel.bases["page_offset"] + AREAS[1]))
    made.kernel.ram.write(0x3C0008, struct.pack("<Q", 1))
    assert shown(convert(made, dump(made, (THERE, HERE, THERE)))[1]) == [(1, 0x101)]


@pytest.mark.parametrize(
    "damage", [b"\xff" * 20, struct.pack("<III", 5, 300, 1) + b"CORE\0\0\0\0", struct.pack("<III", 5, 336, 2)]
)
def test_what_was_saved_is_no_note(convert, made, damage):
    save_crash_note(made, 1, 0, registers(made, 1, 0x771))
    made.kernel.ram.write(AREAS[1] + CRASH_NOTES, damage)
    _, cpus, warnings = convert(made, dump(made, (HERE, THERE)))
    assert shown(cpus) == [(1, 0x100)]
    assert "left out" in warnings[0]


def test_more_registers_go_with_their_cpu(convert, made):
    more = (
        NoteSpec("CORE", 2, bytes(512)),
        NoteSpec("LINUX", 0x202, bytes(832)),
        NoteSpec("CORE", 3, bytes(136)),
    )
    notes, _, _ = convert(made, dump(made, (THERE, HERE), more))
    own = [("CORE", 2), ("LINUX", 0x202), ("CORE", 3)]
    assert notes == [("CORE", 3), ("CORE", 1), *own, ("QEMU", 0), ("VMCOREINFO", 0)]


def test_tables_that_are_not_in_the_dump_prove_nothing(convert, made):
    absent = make_kernel(ABOVE)
    absent.spec = replace(ABOVE, absent=((ABOVE.text_paddr + 0x210000, ABOVE.text_paddr + 0x211000),))
    _, cpus, warnings = convert(made, dump(made, (HERE, THERE), crash=absent))
    assert (shown(cpus), warnings) == ([(1, 0x100), (2, 0x666)], [])


def test_topelf_and_info(made, tmp_path, capfd):
    for cpu, pid in ((0, 1), (1, 0)):
        save_crash_note(made, cpu, pid, registers(made, cpu, 0x770 + cpu))
    source, output, extra = tmp_path / "dump", tmp_path / "out", tmp_path / "extra"
    source.write_bytes(dump(made, (HERE, THERE)))
    extra.write_text(made.extra)
    assert main(["topelf", "-i", str(source), "-o", str(output), "-l", "all", "-e", str(extra)]) == 0
    assert "the registers are those that this one saved" in capfd.readouterr().err
    notes = [(name, kind) for name, kind, _ in read_core(output).notes() if name != "kdump-elftool"]
    assert notes == [("CORE", 1), ("CORE", 1), ("VMCOREINFO", 0)]
    assert "cpus:          2, 1 of them in another kernel" in look(tmp_path, capfd, "info", source).out
