"""drgn as the judge of the commands about tasks, from the original dump, as JSON.

usage: oracle_kd_tasks.py CORE VMLINUX ANSWER

``release``; ``tasks`` by number (idle tasks as -(cpu + 1)) with everything that kd-task shows; ``stacks`` of
those that no CPU runs: address and function of each frame that is not of an inlined function;
``percpu``: by expression and CPU [address, value]; ``taints``; ``locks``: offsets in locks and waiters, by
``struct.member``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_present_cpu
from drgn.helpers.linux.list import list_count_nodes
from drgn.helpers.linux.mm import cmdline
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr, idle_task, task_cpu, task_state_to_char

PERCPU = ("runqueues.nr_running", "runqueues.cpu", "runqueues.clock", "runqueues", "kernel_cpustat")

LOCKS = {
    "mutex": ("wait_list", "first_waiter", "owner"),
    "rw_semaphore": ("wait_list", "first_waiter", "owner", "count"),
    "mutex_waiter": ("list", "task"),
    "rwsem_waiter": ("list", "task", "type"),
}


def details(task: drgn.Object, running: set[int]) -> dict[str, object]:
    parent = task.real_parent
    return {
        "task": hex(task),
        "comm": task.comm.string_().decode("latin-1"),
        "tid": int(task.pid),
        "tgid": int(task.tgid),
        "threads": int(task.signal.nr_threads),
        "state": task_state_to_char(task),
        "cpu": int(task_cpu(task)),
        "on_cpu": int(task) in running,
        "flags": hex(task.flags),
        "stack": hex(task.stack),
        "started": int(task.start_time),
        "ids": [int(getattr(task.cred, name).val) for name in ("uid", "euid", "gid", "egid")],
        "parent": [int(parent.tgid), parent.comm.string_().decode("latin-1"), hex(parent)],
        "children": int(list_count_nodes(task.children.address_of_())),
        "mm": hex(task.mm),
        "command": None if not task.mm else " ".join(each.decode("latin-1") for each in cmdline(task)),
    }


def frames(prog: drgn.Program, task: drgn.Object) -> list[list[object]] | None:
    try:
        trace = prog.stack_trace(task)
    except (ValueError, drgn.FaultError):
        return None
    return [[frame.pc, frame.name] for frame in trace if not frame.is_inline]


def percpu(prog: drgn.Program, expression: str, cpu: int) -> list[object]:
    symbol, _, member = expression.partition(".")
    value = per_cpu(prog[symbol], cpu)
    if not member:
        return [hex(value.address_), None]
    value = getattr(value, member)
    return [hex(value.address_), int(value)]


def locks(prog: drgn.Program) -> dict[str, int]:
    found = {}
    for name, members in LOCKS.items():
        kind = prog.type(f"struct {name}")
        found |= {f"{name}.{each}": drgn.offsetof(kind, each) for each in members if kind.has_member(each)}
    return found


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    cpus = list(for_each_present_cpu(prog))
    current = {cpu: int(cpu_curr(prog, cpu)) for cpu in cpus}
    running = set(current.values())
    listed = [(int(task.pid), task) for task in for_each_task(prog)]
    listed += [(-cpu - 1, idle_task(prog, cpu)) for cpu in cpus]
    said = {
        "release": prog["init_uts_ns"].name.release.string_().decode(),
        "machine": prog["init_uts_ns"].name.machine.string_().decode(),
        "taints": int(prog["tainted_mask"]),
        "tasks": {lwp: details(task, running) for lwp, task in listed},
        "stacks": {lwp: frames(prog, task) for lwp, task in listed if int(task) not in running},
        "percpu": {name: {cpu: percpu(prog, name, cpu) for cpu in cpus} for name in PERCPU},
        "locks": locks(prog),
        "current": {cpu: hex(task) for cpu, task in current.items()},
    }
    Path(answer).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
