"""How the lab cuts a dump to a sample: what is told of the guest, packed pages, page tables."""

from __future__ import annotations

from pathlib import Path
from random import Random

import cramjam
import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from lab.sample import PAGE, call_trace, pack, table_frames
from tests.builders.kernel import SMALL, SyntheticKernel, make_kernel
from tests.builders.pagetables import ADDRESS_BITS, PSE, P

SEED = 20261129
CONSOLE = """\
[    1.1] Call of another kind
[   12.246660] Call Trace:
[   12.247813]  <TASK>
[   12.248097]  dump_stack_lvl+0x44/0x5c
[   12.248282]  panic+0x118/0x2f4
[   12.248282]  ? _printk+0x68/0x83
[   12.248282]  __handle_sysrq.cold+0x44/0x11c
[   12.248282] RIP: 0033:0x4446a0
[   12.248282]  </TASK>
[   13.0]  later+0x1/0x2
"""


def test_call_trace() -> None:
    assert call_trace(CONSOLE) == ["dump_stack_lvl", "panic", "__handle_sysrq.cold"]
    assert call_trace("") == []


def test_pack() -> None:
    print(f"seed {SEED}")
    noise, text = Random(SEED).randbytes(PAGE), b"word " * 819 + b"."
    packed = pack(memoryview(b"skipped!" + noise + text), [8, 8 + PAGE], PAGE)
    assert packed.sizes[0] == PAGE
    assert bytes(packed.data[:PAGE]) == noise
    assert packed.sizes[1] == len(packed.data) - PAGE < 100
    assert bytes(cramjam.zstd.decompress(packed.data[PAGE:])) == text


def tables_below(kernel: SyntheticKernel, table: int, level: int, first: int = 0) -> set[int]:
    """Tables reached from an entry on, one by one."""
    found = {table}
    for at in range(first, 512) if level else ():
        entry = kernel.tables.get(table + 8 * at)
        if entry & P and not entry & PSE:
            found |= tables_below(kernel, entry & ADDRESS_BITS, level - 1)
    return found


@pytest.mark.parametrize("levels", [4, 5])
def test_table_frames(tmp_path: Path, levels: int) -> None:
    """The tables of the kernel's half; those of the lower half, which is a process's, are not seen."""
    kernel = make_kernel(SMALL, levels=levels)
    root = kernel.tables.root
    kernel.tables.map(0x7F0000000000, SMALL.ram[0][0])
    wanted = tables_below(kernel, root, levels - 1, 256)
    assert len(wanted) > 10
    assert tables_below(kernel, root, levels - 1) - wanted
    path = tmp_path / "dump"
    path.write_bytes(kernel.dump())
    with InputFile.open(str(path)) as file:
        found = table_frames(open_dump(file), root, levels)
    assert sorted(set(found.tolist())) == sorted(wanted)
