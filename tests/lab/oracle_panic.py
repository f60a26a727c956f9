"""drgn as the judge of a panic: the frames of the CPU on which it happened, from the original dump.

usage: oracle_panic.py CORE VMLINUX ANSWER

``frames``: [return address, function] from the innermost one on, without inlined functions; ``cpu``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_present_cpu
from drgn.helpers.linux.sched import cpu_curr


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    cpu = prog["panic_cpu"].counter.value_()
    assert cpu in list(for_each_present_cpu(prog))
    trace = prog.stack_trace(cpu_curr(prog, cpu))
    frames = [[frame.pc, frame.name] for frame in trace if not frame.is_inline]
    Path(answer).write_text(json.dumps({"cpu": cpu, "frames": frames}))


if __name__ == "__main__":
    main()
