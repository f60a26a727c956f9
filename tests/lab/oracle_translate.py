"""drgn as the judge of translations: follow_phys and memory of mapped addresses, and pgds, as JSON.

usage: oracle_translate.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"addresses": [int], "pids": [int]}.  ``paddrs`` and ``bytes`` (16 of them, null where drgn cannot)
by position; ``pgds``: physical address of the page table of each process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.mm import follow_phys, virt_to_phys
from drgn.helpers.linux.pid import find_task


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except (drgn.FaultError, ValueError):
        return None


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    init_mm = prog["init_mm"].address_of_()
    paddrs = [attempt(follow_phys, init_mm, address) for address in request["addresses"]]
    data = [attempt(prog.read, address, 16) for address in request["addresses"]]
    result = {
        "paddrs": [None if paddr is None else int(paddr) for paddr in paddrs],
        "bytes": [None if block is None else block.hex() for block in data],
        "pgds": {pid: int(virt_to_phys(find_task(prog, pid).mm.pgd)) for pid in request["pids"]},
    }
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
