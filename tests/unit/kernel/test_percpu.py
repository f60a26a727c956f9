"""Per-CPU areas and which CPU a register note belongs to."""

from __future__ import annotations

import struct

import pytest

from kdump_elftool.arch.x86_64 import ARCH
from kdump_elftool.kernel.cpus import cpu_of_notes, cpus_by_base
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.percpu import find_percpu
from kdump_elftool.plain.percpu import find_percpu as plain_percpu
from tests.builders.tasks import PlainTarget
from tests.unit.kernel.kernelspace import BASE, KernelSpace, info_of

LAYOUT = ARCH.prstatus


def desc(pid: int, mark: int = 0) -> bytes:
    data = bytearray(LAYOUT.size)
    struct.pack_into("<i", data, LAYOUT.pid_offset, pid)
    data[LAYOUT.regs_offset] = mark
    return bytes(data)


def found(space: KernelSpace, **keys: object):
    return find_percpu(space.virtual(), Knowledge((info_of(**keys),)), "<", 8)


def test_areas_of_the_cpus_that_are_there():
    space = KernelSpace()
    space.put(0x1000, "I", 8)
    space.put(0x2000, "Q", 0b10110)
    space.put(0x3000, "8Q", *(BASE + number * 0x10000 for number in range(8)))
    keys = {
        "SYMBOL_nr_cpu_ids": BASE + 0x1000,
        "SYMBOL___cpu_present_mask": BASE + 0x2000,
        "SYMBOL___per_cpu_offset": BASE + 0x3000,
    }
    percpu = found(space, **keys)
    assert percpu is not None
    assert percpu.cpu == (1, 2, 4)
    assert percpu.address(0x31980).tolist() == [BASE + number * 0x10000 + 0x31980 for number in (1, 2, 4)]
    # from v6.15 on symbols are addresses and the offsets distances: the sum wraps
    space.put(0x3000, "8Q", *((BASE + number * 0x10000 - 0xFFFFFFFF9D000000) % 2**64 for number in range(8)))
    percpu = found(space, **keys)
    assert percpu is not None
    assert percpu.address(0xFFFFFFFF9D031980).tolist() == [BASE + n * 0x10000 + 0x31980 for n in (1, 2, 4)]


def test_mask_of_an_old_kernel():
    """Until v4.4 cpu_present_mask was a pointer to the bits."""
    space = KernelSpace()
    space.put(0x1000, "I", 4)
    space.put(0x2000, "Q", BASE + 0x2800)
    space.put(0x2800, "Q", 0b1010)
    symbols = {"nr_cpu_ids": 0x1000, "cpu_present_mask": 0x2000, "__per_cpu_offset": 0x3000}
    percpu = found(space, **{f"SYMBOL_{name}": BASE + at for name, at in symbols.items()})
    assert percpu is not None
    assert percpu.cpu == (1, 3)


@pytest.mark.parametrize(
    ("size", "cpus"), [(None, (0, 1)), (8, (0, 1)), (16, (0, 1, 66)), (-8, (0, 1)), (1 << 62, (0, 1))]
)
def test_a_kernel_whose_number_of_cpus_is_fixed(size, cpus):
    """CONFIG_FORCE_NR_CPUS: no variable nr_cpu_ids; behind the mask lies that of other CPUs."""
    space = KernelSpace()
    space.put(0x2000, "3Q", 0b11, 0b100, 0b1000)
    space.put(0x3000, "192Q", *(number * 0x10000 for number in range(192)))
    keys = {"SYMBOL___cpu_present_mask": BASE + 0x2000, "SYMBOL___per_cpu_offset": BASE + 0x3000}
    if size is not None:
        keys["SIZE_cpumask"] = size
    percpu, plain = found(space, **keys), plain_percpu(PlainTarget(space.virtual(), info_of(**keys), "<", 8))
    assert percpu is not None
    assert plain is not None
    assert percpu.cpu == cpus == tuple(cpu for cpu, _ in plain.areas)


def test_one_cpu_without_areas():
    percpu = found(KernelSpace())
    assert percpu is not None
    assert (percpu.cpu, percpu.address(BASE).tolist()) == ((0,), [BASE])


def test_areas_that_cannot_be_found():
    space = KernelSpace()
    mask = {"SYMBOL_nr_cpu_ids": BASE + 0x1000, "SYMBOL___cpu_present_mask": BASE + 0x2000}
    assert found(space, **mask) is None
    assert found(space, **mask, SYMBOL___per_cpu_offset=BASE + 0x3000) is None  # no CPU in the mask
    space.put(0x2000, "Q", 1)
    assert found(space, **mask, SYMBOL___per_cpu_offset=0x1000) is None
    space.put(0x1000, "I", 0xFFFFFFFF)
    assert found(space, **mask, SYMBOL___per_cpu_offset=BASE + 0x3000) is not None


@pytest.mark.parametrize(
    ("descs", "qemu", "saved", "running", "expected"),
    [
        # CPU 1 did not answer: counting notes would give its place to CPU 2
        ([desc(5, 1), desc(9, 2)], False, [desc(5, 1), b"", desc(9, 2)], [5, 7, 9], [0, 2]),
        # nothing saved: by what the run queues say
        ([desc(9), desc(5)], False, [b"", b""], [5, 9], [1, 0]),
        # two idle CPUs: pid 0 tells nothing, as many notes as CPUs are taken in order
        ([desc(0), desc(0)], False, [b"", b""], [0, 0], [0, 1]),
        # one note, two CPUs, nothing known
        ([desc(0)], False, [b"", b""], [0, 0], [-1]),
        # QEMU counts from 1, whatever its guest runs
        ([desc(1), desc(2)], True, [b"", b""], [2, 1], [0, 1]),
        # more notes than CPUs
        ([desc(5), desc(9)], False, [b""], [5], [0, -1]),
        ([], False, [b""], [5], []),
    ],
)
def test_notes_are_given_to_their_cpus(descs, qemu, saved, running, expected):
    numbers = tuple(range(len(saved)))
    assert cpu_of_notes(descs, qemu, numbers, saved, running, LAYOUT, "<") == expected


def test_qemu_numbers_are_those_of_cpus():
    """CPU 1 was never plugged in."""
    descs = [desc(3), desc(1)]
    assert cpu_of_notes(descs, True, (0, 2), [b"", b""], [5, 9], LAYOUT, "<") == [1, 0]


AREAS = [0xFFFF888000A00000, 0xFFFF888000A20000, 0xFFFF888000A40000]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        # kernel mode has the base in the segment, user mode where swapgs will fetch it
        ([{"gs_base": AREAS[1]}, {"gs_base": 0x7F0000001000, "kernel_gs_base": AREAS[0]}], [1, 0]),
        # inside the entry code both may be set, and to the same
        ([{"gs_base": AREAS[2], "kernel_gs_base": AREAS[2]}], [2]),
        ([{"gs_base": AREAS[2], "kernel_gs_base": AREAS[1]}, {"gs_base": 5}, {}], [-1, -1, -1]),
    ],
)
def test_cpus_by_their_registers(states, expected):
    by_area = {area: cpu for cpu, area in enumerate(AREAS)}
    assert cpus_by_base(states, ("gs_base", "kernel_gs_base"), by_area) == expected


@pytest.mark.parametrize(
    ("by_base", "expected"),
    [
        ([1, 0], [1, 0]),  # the registers know better than QEMU's numbers
        ([1, -1], [1, 0]),
        ([1, 1], [1, 0]),  # two at the same area: the first has it
        ([-1, -1], [0, 1]),
        ([1], [0, 1]),  # not a state for each note: worth nothing
        ([7, -1], [0, 1]),
    ],
)
def test_registers_before_numbers(by_base, expected):
    descs = [desc(1), desc(2)]
    assert cpu_of_notes(descs, True, (0, 1), [b"", b""], [], LAYOUT, "<", by_base) == expected
