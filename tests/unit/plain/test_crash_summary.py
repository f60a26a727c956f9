"""What a kernel's own variables say of a crash: which CPU, and whether there was one."""

from __future__ import annotations

import pytest

from kdump_elftool.plain.crash_summary import crash_cpu, summary
from tests.builders.printk import LogImage, RingWriter, Said

NONE = 0xFFFFFFFF


def target(order: str = "<", *said: bytes, **cpus: int | None) -> LogImage:
    """A kernel with these variables; None is one that is in no page of the dump."""
    ring = RingWriter(order)
    for number, text in enumerate(said):
        ring.push(Said(text, number))
    image = ring.image()
    for number, (name, cpu) in enumerate(cpus.items()):
        at = 0x1000 * (number + 1)
        image.keys[f"SYMBOL({name})"] = f"{at:x}"
        if cpu is not None:
            image.memory.append((at, bytearray(cpu.to_bytes(4, "little" if order == "<" else "big"))))
    return image


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("cpus", "told"),
    [
        ({}, None),
        ({"panic_cpu": 0}, 0),
        ({"panic_cpu": 3, "crashing_cpu": 5}, 3),
        ({"panic_cpu": NONE}, None),
        ({"panic_cpu": NONE, "crashing_cpu": NONE}, None),
        # x86 from v4.5 to v4.11, and before, in a kernel that is well: crashing_cpu is in .bss
        ({"panic_cpu": NONE, "crashing_cpu": 0}, None),
        ({"crashing_cpu": 0}, None),
        ({"crashing_cpu": NONE}, None),
        ({"crashing_cpu": 2}, 2),
        ({"panic_cpu": None, "crashing_cpu": 2}, 2),
        ({"panic_cpu": 0x12345678, "crashing_cpu": 0x12345678}, None),
        ({"crashing_cpu": 0x12345678}, None),
    ],
)
def test_the_cpu_of_a_crash(order, cpus, told):
    assert crash_cpu(target(order, **cpus)) == told


def test_an_old_oops_is_no_crash_of_a_kernel_that_is_well():
    lockup = b"BUG: soft lockup - CPU#1 stuck for 67s! [find:123]"
    for cpus, message in (
        ({"crashing_cpu": 0}, "none in the log"),
        ({"panic_cpu": NONE, "crashing_cpu": 0}, "none in the log"),
        ({"panic_cpu": 0, "crashing_cpu": 0}, lockup.decode()),
        ({"crashing_cpu": 1}, lockup.decode()),
    ):
        found = dict(summary(target("<", lockup, **cpus), lambda: "RS"))
        assert found["panic message"] == message
        assert ("by" in found) == (message != "none in the log")
        assert found.get("last oops") == (lockup.decode() if message == "none in the log" else None)
