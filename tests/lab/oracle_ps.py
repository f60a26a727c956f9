"""drgn as the judge of ps: every task with its parent, CPU and state, from the original dump, as JSON.

usage: oracle_ps.py CORE VMLINUX ANSWER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_present_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr, idle_task, task_cpu, task_state_to_char


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    cpus = list(for_each_present_cpu(prog))
    running = {int(cpu_curr(prog, cpu)) for cpu in cpus}
    found = [
        {
            "task": hex(int(task)),
            "pid": int(task.tgid),
            "tid": int(task.pid),
            "ppid": int(task.real_parent.tgid),
            "cpu": int(task_cpu(task)),
            "state": task_state_to_char(task),
            "on_cpu": int(task) in running,
            "comm": task.comm.string_().decode("latin-1"),
        }
        for task in (*for_each_task(prog), *(idle_task(prog, cpu) for cpu in cpus))
    ]
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
