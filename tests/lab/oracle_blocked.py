"""drgn as the judge of who holds a lock, from the original dump, as JSON.

usage: oracle_blocked.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"waits": [[pid, fd, kind]...], "module": its file, "inside": pid}, with the kind of a lock that
the file ``fd`` of that process leads to: ``pipe`` its mutex, ``position`` that of the file itself, ``inode``
the rw_semaphore; ``futex``: by the task.  The answer has [address, pid of the owner] for each, all pids in
state D, and whether tasks of this kernel know what they wait for; and of the process ``inside`` the frames,
as [name, address, inlined, file, line], down to the address outside the kernel's half; and all tasks with
a number, as [pid, tid, state].
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import drgn
from drgn.helpers.linux.fs import fget
from drgn.helpers.linux.locking import mutex_owner, rwsem_owner
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.sched import task_state_to_char


def holder(prog: drgn.Program, pid: int, descriptor: int, kind: str) -> list[object]:
    task = find_task(prog, pid)
    if kind == "futex":
        lock = task.pi_blocked_on.lock
        owner = lock.owner.value_() & ~1  # the lowest bit: somebody waits
        return [hex(lock), int(drgn.Object(prog, "struct task_struct *", owner).pid)]
    file = fget(task, descriptor)
    if kind == "inode":
        lock = file.f_inode.i_rwsem.address_of_()
        return [hex(lock), int(rwsem_owner(lock).pid)]
    if kind == "pipe":
        lock = drgn.cast("struct pipe_inode_info *", file.private_data).mutex.address_of_()
    else:
        lock = file.f_pos_lock.address_of_()
    return [hex(lock), int(mutex_owner(lock).pid)]


def frames(prog: drgn.Program, pid: int) -> list[tuple[object, ...]]:
    """Those of the kernel; what drgn makes of a process's own stack may look like one.

    Of the newest the line of its very address: that it is behind a call a debugger of processes can't know.
    """
    inside = [*itertools.takewhile(lambda frame: frame.pc >> 63, prog.stack_trace(pid))]
    sources = [frame.source()[:2] for frame in inside]
    newest = prog.source_location(inside[0].pc)[0]
    sources[0] = newest.filename, newest.line
    return [
        (frame.name, frame.pc, frame.is_inline, *source)
        for frame, source in zip(inside, sources, strict=True)
    ]


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux, request["module"]])
    found = [holder(prog, *wait) for wait in request["waits"]]
    tasks = [(int(task.tgid), int(task.pid), task_state_to_char(task)) for task in for_each_task(prog)]
    blocked = [tid for _, tid, state in tasks if state == "D"]
    knows = prog.type("struct task_struct").has_member("blocker")
    inside = frames(prog, request["inside"])
    said = {"holders": found, "blocked": blocked, "knows": knows, "inside": inside, "tasks": tasks}
    Path(answer).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
