"""makedumpfile as the judge of page selection: its second bitmap and the counts that it prints."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lab.roots import run_in_root
from tests.lab.dumps import tool_root

_UTSNAME_SIZE = 6 * 65
_COUNTS = {
    "Non-private cache pages": "cache",
    "Private cache pages": "cache",
    "User process data pages": "user",
    "Free pages": "free",
    "Hwpoison pages": "poison",
    "Offline pages": "offline",
}


@dataclass(frozen=True)
class Excluded:
    """``kept`` by pfn, and the pages excluded by what they are used for.

    ``labels`` are the counts as makedumpfile names them, ``counts`` the same as we do.
    """

    kept: npt.NDArray[np.bool_]
    counts: dict[str, int]
    labels: dict[str, int]


def makedumpfile(core: Path, dump_level: int, scratch: Path) -> Excluded:
    """What ``makedumpfile -d`` makes of a dump."""
    out = scratch / "excluded" / "dump"
    out.parent.mkdir(exist_ok=True)
    argv = ["makedumpfile", "-d", str(dump_level), "--message-level", "31"]
    done = run_in_root(
        tool_root("sid"),
        [*argv, f"/mnt/in/{core.name}", f"/mnt/out/{out.name}"],
        binds={core.parent.resolve(): "/mnt/in", out.parent: "/mnt/out"},
        timeout=600,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "makedumpfile Completed." in text, text[-2000:]
    kept = second_bitmap(out)
    out.unlink()
    counts, labels = dict.fromkeys(_COUNTS.values(), 0), {}
    for label, name in _COUNTS.items():
        shown = re.search(rf"^\s*{label}\s*: 0x([0-9a-f]+)$", text, re.M)
        assert shown, f"{label} is missing: {text[-2000:]}"
        labels[label] = int(shown[1], 16)
        counts[name] += labels[label]
    return Excluded(kept, counts, labels)


def second_bitmap(dump: Path) -> npt.NDArray[np.bool_]:
    """Frames that a kdump-compressed file holds (struct disk_dump_header, makedumpfile's diskdump_mod.h)."""
    with dump.open("rb") as file:
        header = file.read(4096)
        assert header[:8] == b"KDUMP   "
        # signature, version, utsname, padding to 8, a timeval; then status, block size, sub header
        _, block, sub, blocks, _ = struct.unpack_from("<IiiII", header, 8 + 4 + _UTSNAME_SIZE + 6 + 16)
        half = blocks * block // 2
        file.seek(block * (1 + sub) + half)
        return np.unpackbits(np.frombuffer(file.read(half), dtype=np.uint8), bitorder="little") > 0


def fair_copy(core: Path, scratch: Path) -> Path:
    """The dump, or a copy with a key under the name that makedumpfile 1.7.8 knows.

    v7.1 renamed page.compound_head to page.compound_info; without that key the tool cannot tell tail
    pages and drops those of the kernel's own blocks.  The kernels of the lab still store a pointer.
    """
    with core.open("rb") as file:
        at = file.read(1 << 20).find(b"OFFSET(page.compound_info)=")
    if at < 0:
        return core
    copy = scratch / core.name
    subprocess.run(["cp", "--sparse=always", core, copy], check=True)
    with copy.open("r+b") as file:
        file.seek(at)
        file.write(b"OFFSET(page.compound_head)=")
    return copy
