"""Tasks one by one, as a debugger would read them: the plain reference of ``kernel.tasks``.

Processes are on the list of ``init_task.tasks``; their threads on ``signal->thread_head`` through
``task->thread_node`` (v3.14 on) or on the ring of ``task->thread_group`` (until v6.6).  A list node
counts only if it points back to the one before it; where the way forward ends, the list is walked
backward up to there.  Idle tasks are on no list: each CPU's run queue names its own.  What has ended and
is waited for (a zombie, or the first thread of a process of which others live) has no stack any more where
thread_info is in the task: finish_task_switch() gives it back (put_task_stack(), v4.9 on).

References: include/linux/sched.h, include/linux/sched/signal.h; ``plain.task_states``.
"""

from __future__ import annotations

from typing import NamedTuple

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain import runqueues, task_states
from kdump_elftool.plain.runqueues import RunQueue, run_queues
from kdump_elftool.plain.target import Field, Pieces, Target, read_pieces, unsigned
from kdump_elftool.plain.task_states import EXITED, state_letter, state_letters

_NUMBERS = {"pid": 4, "tgid": 4, "on_cpu": 4, "cpu": 4, "exit_state": 4, "__state": 4, "state": 0}
"""Members of task_struct and how large they are where no type tells; 0: a long."""
_PARENTS = ("real_parent", "parent")
NEEDS = (
    "SYMBOL(init_task)",
    "OFFSET(task_struct.tasks)",
    *(f"OFFSET(task_struct.{name})" for name in _NUMBERS),
    *(f"SIZE(task_struct.{name})" for name in _NUMBERS),
    *(f"OFFSET(task_struct.{name})" for name in _PARENTS),
    "OFFSET(task_struct.comm)",
    "OFFSET(task_struct.stack)",
    "OFFSET(task_struct.thread_info)",
    "OFFSET(thread_info.cpu)",
    "OFFSET(task_struct.signal)",
    "OFFSET(task_struct.thread_node)",
    "OFFSET(task_struct.thread_group)",
    "OFFSET(signal_struct.thread_head)",
    *task_states.NEEDS,
    *runqueues.NEEDS,
)
"""What these readers ask of a kernel."""
COMM_SIZE = 16
MOST_NODES = 4 << 20
_WIDTHS = (1, 2, 4, 8)
_LARGEST_WINDOW = 1 << 16


class Task(NamedTuple):
    """Address, process, thread and name of a task, and what it is doing.

    ``ppid`` and ``cpu`` are -1, ``state`` is ``?`` where the kernel does not tell; ``idle_cpu`` is the CPU
    whose idle task this is, else -1.
    """

    vaddr: int
    tgid: int
    tid: int
    comm: bytes
    ppid: int = -1
    state: str = "?"
    cpu: int = -1
    on_cpu: bool = False
    idle_cpu: int = -1

    @property
    def lwp(self) -> int:
        """The thread's number in a core: its tid; of the idle task of CPU n -(n + 1)."""
        return self.tid if self.idle_cpu < 0 else -self.idle_cpu - 1


class TaskWalk(NamedTuple):
    """Tasks, and how many lists were damaged; ``queues`` is empty where nobody asked or it is not known."""

    tasks: list[Task]
    broken: int
    queues: tuple[RunQueue, ...] = ()


def read_tasks(target: Target, most: int = MOST_NODES) -> TaskWalk:
    """Every process with its threads.  Raises IdentityError where the layout is not known."""
    listed, broken = _listed(target, most)
    read = TaskReader(target).task
    tasks = (read(vaddr) for vaddr in listed)
    return TaskWalk([task for task in tasks if task is not None], broken)


def all_tasks(target: Target, most: int = MOST_NODES) -> TaskWalk:
    """The idle tasks of the CPUs, then every process with its threads; a task on a CPU says so.

    Raises IdentityError as :func:`read_tasks`.  Of two tasks with one number the first is kept.
    """
    listed, broken = _listed(target, most)
    init_task = target.symbol("init_task") or 0
    queues = tuple(run_queues(target, [*listed, init_task]))
    idle = [(queue.idle, queue.cpu) for queue in queues if queue.idle] if queues else [(init_task, 0)]
    reader = TaskReader(target)
    running = {queue.curr for queue in queues}
    seen: set[int] = set()
    numbers: set[int] = set()
    tasks: list[Task] = []
    for vaddr, cpu in (*idle, *((vaddr, -1) for vaddr in listed)):
        task = None if vaddr in seen else reader.task(vaddr, cpu)
        seen.add(vaddr)
        if task is not None and task.lwp not in numbers:
            numbers.add(task.lwp)
            tasks.append(task._replace(on_cpu=task.on_cpu or vaddr in running))
    return TaskWalk(tasks, broken, queues)


def read_task(target: Target, vaddr: int, idle_cpu: int = -1) -> Task | None:
    """One task; None where it cannot be read or cannot be one.  For many there is :class:`TaskReader`."""
    return TaskReader(target).task(vaddr, idle_cpu)


class TaskReader:
    """Reads tasks whose layout was looked up once.  Raises IdentityError where it is not known."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._comm = Field(_offset(target, "task_struct.comm"), COMM_SIZE)
        found = {name: _member(target, name, width or target.word) for name, width in _NUMBERS.items()}
        self._numbers = {name: field for name, field in found.items() if field is not None}
        for name in ("pid", "tgid"):
            _offset(target, f"task_struct.{name}")
        self._pointers: dict[str, Field] = {}
        for name in ("stack", *_PARENTS):
            offset = target.offset(f"task_struct.{name}")
            if offset is not None:
                self._pointers[name] = Field(offset, target.word)
        inside, cpu = target.offset("task_struct.thread_info"), target.offset("thread_info.cpu")
        self._cpu_on_stack = cpu if inside is None else None
        if inside is not None and cpu is not None:
            self._numbers.setdefault("cpu", Field(inside + cpu, 4))
        self._letters = state_letters(target)
        fields = (*self._numbers.values(), *self._pointers.values(), self._comm)
        self._start = min(field.offset for field in fields)
        self._size = max(field.offset + field.width for field in fields) - self._start
        self._parents: dict[int, int] = {}

    def task(self, vaddr: int, idle_cpu: int = -1) -> Task | None:
        """One task; None where it cannot be read or cannot be one."""
        pieces = self._window(vaddr)
        if pieces is None:
            return None
        tid, tgid = (self._number(pieces, name, -1) for name in ("pid", "tgid"))
        comm = self._bytes(pieces, self._comm)
        stack = self._pointer(pieces, "stack")
        if comm is None or tgid < 0 or not 0 <= tid < MOST_NODES or not (tid or idle_cpu >= 0):
            return None
        if "stack" in self._pointers and not stack and self._number(pieces, "exit_state", 0) not in EXITED:
            return None
        return Task(
            vaddr=vaddr,
            tgid=tgid,
            tid=tid,
            comm=comm.split(b"\0", 1)[0],
            ppid=self._ppid(pieces),
            state=self._state(pieces),
            cpu=idle_cpu if idle_cpu >= 0 else self._cpu(pieces, stack),
            on_cpu=self._number(pieces, "on_cpu", 0) != 0,
            idle_cpu=idle_cpu,
        )

    def _window(self, vaddr: int) -> Pieces | None:
        """All members at once; None where nothing of them is there."""
        if self._size > _LARGEST_WINDOW:
            raise IdentityError(
                "OFFSET(task_struct.comm)", "the members of task_struct cannot lie that far apart"
            )
        pieces = read_pieces(self._target, vaddr + self._start, self._size)
        return None if pieces.nothing else pieces

    def _bytes(self, pieces: Pieces, field: Field) -> bytes | None:
        at = field.offset - self._start
        return pieces.data[at : at + field.width] if pieces.whole(at, at + field.width) else None

    def _number(self, pieces: Pieces, name: str, default: int) -> int:
        """A signed number."""
        field = self._numbers.get(name)
        data = None if field is None else self._bytes(pieces, field)
        return default if data is None else _signed(data, self._target.order)

    def _pointer(self, pieces: Pieces, name: str) -> int:
        field = self._pointers.get(name)
        data = None if field is None else self._bytes(pieces, field)
        return 0 if data is None else int.from_bytes(data, "little" if self._target.order == "<" else "big")

    def _ppid(self, pieces: Pieces) -> int:
        """The parent's process; -1 where it is not known."""
        name = next((name for name in _PARENTS if name in self._pointers), None)
        if name is None:
            return -1
        parent = self._pointer(pieces, name)
        if parent not in self._parents:
            self._parents[parent] = self._read_signed(parent + self._numbers["tgid"].offset)
        return self._parents[parent]

    def _cpu(self, pieces: Pieces, stack: int) -> int:
        """``task_struct.cpu``, or that of the thread_info, which may be at the bottom of the stack."""
        if "cpu" not in self._numbers and self._cpu_on_stack is not None and stack:
            return self._read_signed(stack + self._cpu_on_stack)
        return self._number(pieces, "cpu", -1)

    def _state(self, pieces: Pieces) -> str:
        name = "__state" if "__state" in self._numbers else "state"
        if name not in self._numbers:
            return "?"
        low = (1 << 32) - 1
        state, ending = (self._number(pieces, each, 0) & low for each in (name, "exit_state"))
        return state_letter(state, ending, self._letters)

    def _read_signed(self, vaddr: int) -> int:
        try:
            return _signed(self._target.read(vaddr, 4), self._target.order)
        except FaultError:
            return -1


def _member(target: Target, name: str, otherwise: int) -> Field | None:
    """A number in task_struct; ``otherwise`` is how large it is where no type tells."""
    if target.offset(f"task_struct.{name}") is None:
        return None
    told = target.size(f"task_struct.{name}")
    width = told if told in _WIDTHS and told is not None else otherwise
    return Field(_offset(target, f"task_struct.{name}"), width)


def _signed(data: bytes, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big", signed=True)


def _listed(target: Target, most: int) -> tuple[list[int], int]:
    """Addresses of the processes but init_task, each before its threads, and how many lists were damaged."""
    init_task = target.symbol("init_task")
    if init_task is None:
        raise IdentityError("SYMBOL(init_task)", "the address of init_task is not known")
    offset, mask = _offset(target, "task_struct.tasks"), (1 << 8 * target.word) - 1
    nodes, whole = walk_list(target, init_task + offset, most)
    broken = int(not whole)
    listed: dict[int, None] = {}
    left = most  # a forged list of threads may be that of many processes
    for node in nodes:
        leader = node - offset & mask
        if left <= 0:
            return list(listed), broken + 1
        members, whole = _threads(target, leader, left)
        broken += not whole
        left -= 1 + len(members)
        for vaddr in (leader, *members):
            listed[vaddr & mask] = None
    return list(listed), broken


def walk_list(target: Target, head: int, most: int = MOST_NODES) -> tuple[list[int], bool]:
    """The nodes of a list in order, and whether it is whole."""
    forward: list[int] = []
    pair = _pair(target, head)
    if pair is None:
        return [], False
    before, now, back = head, pair[0], pair[1]
    while now != head:
        pair = _pair(target, now)
        if pair is None or pair[1] != before or len(forward) >= most:
            return forward + _backward(target, head, back, before, most - len(forward)), False
        forward.append(now)
        before, now = now, pair[0]
    return forward, True


def _backward(target: Target, head: int, now: int, last: int, most: int) -> list[int]:
    found: list[int] = []
    after = head
    while now not in (last, head) and len(found) < most:
        pair = _pair(target, now)
        if pair is None or pair[0] != after:
            break
        found.append(now)
        after, now = now, pair[1]
    return found[::-1]


def _threads(target: Target, leader: int, most: int) -> tuple[list[int], bool]:
    head, node, signal = (
        target.offset(name)
        for name in ("signal_struct.thread_head", "task_struct.thread_node", "task_struct.signal")
    )
    if head is not None and node is not None and signal is not None:
        try:
            start = unsigned(target, leader + signal, target.word) + head
        except FaultError:
            return [], False
    else:
        node = _offset(target, "task_struct.thread_group")
        start = leader + node
    nodes, whole = walk_list(target, start, most)
    return [at - node for at in nodes], whole


def _pair(target: Target, vaddr: int) -> tuple[int, int] | None:
    try:
        data = target.read(vaddr, 2 * target.word)
    except FaultError:
        return None
    first, second = (data[: target.word], data[target.word :])
    if target.order == "<":
        return int.from_bytes(first, "little"), int.from_bytes(second, "little")
    return int.from_bytes(first, "big"), int.from_bytes(second, "big")


def _offset(target: Target, name: str) -> int:
    value = target.offset(name)
    if value is None or not 0 <= value < 1 << 20:
        raise IdentityError(f"OFFSET({name})", f"the offset of {name} is not known")
    return value
