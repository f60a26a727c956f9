"""Absurd headers must not cost memory: the peak of a real process is looked at."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core
from tests.builders.kernel import SMALL, make_kernel

pytestmark = pytest.mark.slow

LIMIT_MB = 100


WATCHED = """
import sys
from kdump_elftool.cli.main import main
code = main(sys.argv[2:])
status = open("/proc/self/status").read()
open(sys.argv[1], "w").write(status.split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def peak_mb(answer: Path, *argv: str) -> tuple[int, float, bytes]:
    """Exit code, peak resident MB, stderr.

    VmHWM of the process itself: ru_maxrss of a child begins with what its parent had at the fork.
    """
    run = subprocess.run([sys.executable, "-c", WATCHED, str(answer), *argv], capture_output=True)
    return run.returncode, int(answer.read_text()) / 1024, run.stderr


KERNEL = make_kernel(SMALL)


def with_segment(**overrides: int) -> bytes:
    extra = SegmentSpec(0x10000000, b"x" * 4096, overrides=overrides)
    return build_core(CoreSpec([*KERNEL.segments(), extra], KERNEL.notes()))


ABSURD = {
    "plain": KERNEL.dump(),
    "memsz 2^63": with_segment(p_memsz=1 << 63),
    "memsz 2^55": with_segment(p_memsz=1 << 55),
    "filesz 2^63": with_segment(p_filesz=1 << 63),
    "filesz 2^55": with_segment(p_filesz=1 << 55),
    "paddr 2^55": with_segment(p_paddr=1 << 55),
    "4 G headers": build_core(replace(KERNEL.core_spec(), force_xnum=True, shdr0={"sh_info": 2**32 - 1})),
    "2^64 sections": build_core(replace(KERNEL.core_spec(), sections=True, ehdr={"e_shnum": 0},
                                        shdr0={"sh_size": 2**64 - 1})),
    "note of 4 GB": build_core(CoreSpec(KERNEL.segments(), [
        NoteSpec("", 0, b"", raw=b"\5\0\0\0\xff\xff\xff\xff\1\0\0\0CORE\0\0\0\0"), *KERNEL.notes()])),
    "PT_NOTE of 2^63": build_core(CoreSpec(
        [*KERNEL.segments(), SegmentSpec(0, p_type=4, filesz=1 << 63, offset=1 << 20)], KERNEL.notes())),
    "PT_NOTE over the memory": build_core(CoreSpec(
        [*KERNEL.segments(), SegmentSpec(0, p_type=4, filesz=1 << 23, offset=1 << 20)], KERNEL.notes())),
}  # fmt: skip


@pytest.mark.parametrize("image", ABSURD.values(), ids=ABSURD.keys())
def test_peak_memory_stays_low(tmp_path, image):
    (tmp_path / "dump").write_bytes(image)
    code, peak, err = peak_mb(
        tmp_path / "peak", "tovelf", "-l", "all", "-i", str(tmp_path / "dump"), "-o", str(tmp_path / "out")
    )
    assert code in (0, 1), err
    assert b"Traceback" not in err
    assert b"internal error" not in err
    assert peak < LIMIT_MB


def test_many_segments_and_garbage_tables(tmp_path):
    """Every entry of every table points somewhere into RAM."""
    random = Random(5)
    kernel = make_kernel(SMALL)
    for page in kernel.tables.table_pages[1:]:
        kernel.ram.write(
            page,
            struct.pack("<512Q", *(random.randrange(0x400000, 0x840000) & ~4095 | 3 for _ in range(512))),
        )
    (tmp_path / "dump").write_bytes(kernel.dump())
    code, peak, err = peak_mb(
        tmp_path / "peak", "tovelf", "-l", "all", "-i", str(tmp_path / "dump"), "-o", str(tmp_path / "out")
    )
    assert code in (0, 1), err
    assert b"internal error" not in err
    assert peak < 1000, "the number of mappings is bounded"
