"""The lab's row with topelf in the crash kernel: its key, its machine, what the console tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.config import BootError, load_config
from lab.crash_topelf import machine_of, parse_facts
from lab.matrix import MADE_WITH, SPECIAL, scenario_hash
from lab.tool import pins, tool_hash

ROW = next(row for row in load_config().rows if row.scenario == "topelf")
CONSOLE = """\
LAB-READY kdump
LAB-MEMORY MemTotal 220036
LAB-MEMORY MemAvailable 133508
Accepted 20708 pages
LAB-MEMORY VmHWM 49000
LAB-MEMORY LeastAvailable 80000
LAB-PMCORE 20.50 27.75 14000000
LAB-VMCORE 645586944
"""


def package(root: Path) -> Path:
    """What the key looks at of a checkout."""
    for name in ("src/kdump_elftool/one.py", "contrib/initramfs-hook", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a")
    (root / "constraints.txt").write_text("hatchling==1\nnumpy==2.0\npytest==1\n")
    return root


def test_the_key_covers_the_program_and_its_numpy(tmp_path: Path):
    root = package(tmp_path)
    seen = {tool_hash(root)}
    for name in ("src/kdump_elftool/one.py", "contrib/initramfs-hook", "pyproject.toml"):
        (root / name).write_text("b")
        seen.add(tool_hash(root))
    (root / "src/kdump_elftool/two.py").write_text("")
    seen.add(tool_hash(root))
    (root / "constraints.txt").write_text("hatchling==1\nnumpy==2.1\npytest==1\n")
    seen.add(tool_hash(root))
    assert len(seen) == 6
    before = tool_hash(root)
    (root / "constraints.txt").write_text("hatchling==1\nnumpy==2.1\npytest==2\n")
    (root / "src/kdump_elftool/__pycache__").mkdir()
    (root / "src/kdump_elftool/__pycache__/one.cpython-311.pyc").write_bytes(b"")
    assert tool_hash(root) == before


def test_numpy_is_pinned():
    assert {pin.partition("==")[0] for pin in pins()} == {"numpy", "hatchling"}


def test_the_key_covers_the_lab():
    assert scenario_hash("topelf", "one") != scenario_hash("topelf", "two")


def test_the_key_covers_the_program(monkeypatch):
    before = scenario_hash("topelf", "one")
    monkeypatch.setitem(MADE_WITH, "topelf", lambda: "another program")
    assert scenario_hash("topelf", "one") != before


def test_the_key_covers_what_a_scenario_has_for_itself():
    hashes = {scenario_hash(name, "one") for name in SPECIAL}
    assert len(hashes) == len(SPECIAL)
    assert scenario_hash("live", "one") == "one"


def test_the_machine_has_two_disks_and_little_memory_for_the_crash_kernel():
    machine = machine_of(ROW, Path("k"))
    argv = machine.argv()
    assert sum("virtio-blk" in word for word in argv) == 2
    words = machine.append.split()
    assert {"crashkernel=256M", "lab.scenario=kdump", "clearcpuid=cx16"} <= set(words)
    assert "cx16=off" not in argv[argv.index("-cpu") + 1]
    assert "la57=off" in argv[argv.index("-cpu") + 1]


def test_what_the_crash_kernel_said():
    assert parse_facts(CONSOLE) == {
        "mem_total_kb": 220036,
        "mem_available_kb": 133508,
        "least_available_kb": 80000,
        "topelf_vm_hwm_kb": 49000,
        "topelf_gzip_seconds": 7.25,
        "vmcore_bytes": 645586944,
        "pmcore_gz_bytes": 14000000,
    }


@pytest.mark.parametrize("missing", ["MemTotal", "VmHWM", "LAB-PMCORE", "LAB-VMCORE"])
def test_an_account_with_a_gap_is_a_failed_boot(missing: str):
    rest = "".join(line for line in CONSOLE.splitlines(keepends=True) if missing not in line)
    with pytest.raises(BootError):
        parse_facts(rest)


def test_a_process_nobody_saw_is_a_failed_boot():
    with pytest.raises(BootError):
        parse_facts(CONSOLE.replace("VmHWM 49000", "VmHWM 0"))
