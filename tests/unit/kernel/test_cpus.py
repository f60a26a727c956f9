"""Thread ids of CPU notes: unique, never 0, and everything else unchanged."""

from __future__ import annotations

import pytest

from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.elf.notes import Note
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.kernel.cpus import cpu_threads
from tests.builders.notes import PR_PID_AT, prstatus_pid, qemu_cpu, vmcoreinfo_note, x86_64_prstatus

ARCH, KIND = ARCHITECTURES[0], ElfKind(64, "<")


def note(spec) -> Note:
    return Note(spec.name.encode(), spec.type, spec.desc)


def threads(*pids: int):
    return cpu_threads(tuple(note(x86_64_prstatus(pid, {"rip": 5, "rsp": 9})) for pid in pids), ARCH, KIND)


@pytest.mark.parametrize(
    ("pids", "lwps"),
    [
        ([1, 2, 3], [1, 2, 3]),  # QEMU: CPU + 1, which drgn looks up
        ([431, 0], [431, -2]),
        ([0, 0, 0], [-1, -2, -3]),
        ([77, 77, 0], [77, -2, -3]),
        ([0, 5, 0, 5], [-1, 5, -3, -4]),
        ([-1, -1], [-1, -2]),
        ([0, -1], [-1, -2]),
        ([2**31 - 1, -(2**31)], [2**31 - 1, -2]),
    ],
)
def test_ids(pids, lwps):
    found = threads(*pids)
    assert [thread.lwp for thread in found.threads] == lwps
    assert [prstatus_pid(note.desc) for note in found.notes] == lwps
    assert [thread.cpu for thread in found.threads] == list(range(len(pids)))
    assert len(set(lwps)) == len(lwps) and 0 not in lwps


def test_only_the_pid_changes():
    before = x86_64_prstatus(0, {name: index + 1 for index, name in enumerate(ARCH.prstatus.registers)})
    (after,) = cpu_threads((note(before),), ARCH, KIND).notes
    assert after.desc[:PR_PID_AT] == before.desc[:PR_PID_AT]
    assert after.desc[PR_PID_AT + 4 :] == before.desc[PR_PID_AT + 4 :]


def test_other_notes_pass_in_order():
    notes = (
        note(vmcoreinfo_note("A=1\n")), note(x86_64_prstatus(0)), note(qemu_cpu(0x1000)),
        Note(b"LINUX", 1, bytes(336)), Note(b"CORE", 2, bytes(512)),
    )  # fmt: skip
    found = cpu_threads(notes, ARCH, KIND)
    assert [(kept.name, kept.type) for kept in found.notes] == [(kept.name, kept.type) for kept in notes]
    assert [kept.desc for kept in found.notes[2:]] == [kept.desc for kept in notes[2:]]
    assert len(found.threads) == 1


@pytest.mark.parametrize("size", [0, 3, 32, 112, 144, 335])
def test_short_prstatus_is_no_thread(size):
    found = cpu_threads((Note(b"CORE", 1, bytes(size)),), ARCH, KIND)
    assert found.threads == ()
    assert [kept.size for kept in found.notes] == [size]


def test_pointers():
    (thread,) = threads(3).threads
    assert (thread.ip, thread.sp) == (5, 9)
