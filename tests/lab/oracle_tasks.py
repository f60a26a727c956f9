"""drgn as the judge of tasks: who they are and their frames, from the original dump, as JSON.

usage: oracle_tasks.py CORE VMLINUX ANSWER [running | VMCOREINFO]

``tasks``: by tid [tgid, comm, on a CPU, address], ``stacks``: return addresses by tid, idle tasks as
-(cpu + 1); inlined frames have no return address of their own.  With ``running`` that is all instead: the
frames of what each CPU runs.  VMCOREINFO is a file with that text, for a dump without the note.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_present_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr, idle_task


def frames(prog: drgn.Program, task: drgn.Object) -> list[int] | None:
    try:
        trace = prog.stack_trace(task)
    except (ValueError, drgn.FaultError):
        return None
    return [frame.pc for frame in trace if not frame.is_inline]


def main() -> None:
    core, vmlinux, answer, *option = sys.argv[1:]
    running_only = option == ["running"]
    text = Path(option[0]).read_bytes() if option and not running_only else None
    prog = drgn.Program(vmcoreinfo=text)
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    if running_only:
        found = {cpu: frames(prog, cpu_curr(prog, cpu)) for cpu in for_each_present_cpu(prog)}
        Path(answer).write_text(json.dumps({"running": found}))
        return
    running = {int(cpu_curr(prog, cpu)) for cpu in for_each_present_cpu(prog)}
    tasks, stacks = {}, {}
    listed = [(int(task.pid), task) for task in for_each_task(prog)]
    listed += [(-cpu - 1, idle_task(prog, cpu)) for cpu in for_each_present_cpu(prog)]
    for lwp, task in listed:
        on_cpu = int(task) in running
        tasks[lwp] = [int(task.tgid), task.comm.string_().decode("latin-1"), on_cpu, int(task)]
        if not on_cpu:
            stacks[lwp] = frames(prog, task)
    Path(answer).write_text(json.dumps({"tasks": tasks, "stacks": stacks}))


if __name__ == "__main__":
    main()
