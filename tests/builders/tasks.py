"""A kernel memory full of tasks: processes and threads on their lists, run queues, saved frames.

Three layouts: the ring of thread_group alone (until v3.13), both it and thread_head (v3.14 to
v6.6), thread_head alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from kdump_elftool.addr import u64
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse
from kdump_elftool.memory.extents import Extents
from kdump_elftool.memory.physical import PhysicalMemory
from kdump_elftool.memory.virtual import VirtualMemory

BASE = 0xFFFF888000000000
TASK_SIZE = 0x400
SIGNAL_SIZE = 0x80
OFFSETS = {
    "task_struct.__state": 0x18,
    "task_struct.stack": 0x20,
    "task_struct.on_cpu": 0x34,
    "task_struct.cpu": 0x38,
    "task_struct.tasks": 0x80,
    "task_struct.exit_state": 0x90,
    "task_struct.pid": 0x98,
    "task_struct.tgid": 0x9C,
    "task_struct.real_parent": 0xA0,
    "task_struct.thread_group": 0xB0,
    "task_struct.thread_node": 0xC0,
    "task_struct.comm": 0xE0,
    "task_struct.signal": 0xF0,
    "task_struct.thread": 0x200,
    "thread_struct.sp": 0x18,
    "signal_struct.thread_head": 0x10,
}
LAYOUTS = {
    "thread_group": ("task_struct.thread_node", "signal_struct.thread_head"),
    "both": (),
    "thread_head": ("task_struct.thread_group",),
}
"""What each layout does not have."""


class Bytes:
    """A block reader over bytes."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]


@dataclass
class TaskMemory:
    """Memory at BASE; ``expected`` are (address, tgid, tid, comm) of all tasks but the idle one."""

    data: bytearray
    layout: str
    order: str
    word: int
    base: int = BASE
    expected: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    @property
    def info(self) -> VmcoreInfo:
        """The layout as lines of an ``-e`` file."""
        lines = [f"SYMBOL(init_task)={self.base:x}"]
        lines += [f"OFFSET({name})={at}" for name, at in OFFSETS.items() if name not in LAYOUTS[self.layout]]
        return parse("\n".join(lines).encode(), "-e")

    def virtual(self) -> VirtualMemory:
        """The memory behind page tables."""
        size = u64([len(self.data)])
        extents = Extents(u64([0]), size, u64([0]))
        physical = PhysicalMemory(Bytes(self.data), extents, extents.ranges())
        return VirtualMemory.of(physical, u64([self.base]), u64([0]), size)

    def put(self, vaddr: int, size: int, value: int) -> None:
        """Write a number."""
        at = vaddr - self.base
        order = "little" if self.order == "<" else "big"
        self.data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, order)

    def link(self, *nodes: int) -> None:
        """Make a ring of list heads."""
        for index, node in enumerate(nodes):
            self.put(node, self.word, nodes[(index + 1) % len(nodes)])
            self.put(node + self.word, self.word, nodes[index - 1])


def make_tasks(
    layout: str, processes: list[int], *, order: str = "<", word: int = 8, seed: int = 1, base: int = BASE
) -> TaskMemory:
    """``processes``: how many threads each has; init_task lies at ``base``."""
    random = Random(seed)
    total = 1 + sum(processes)
    places = [base + TASK_SIZE * number for number in range(1, total)]
    random.shuffle(places)
    signals = base + TASK_SIZE * total
    memory = TaskMemory(
        bytearray(TASK_SIZE * total + SIGNAL_SIZE * (len(processes) + 1)), layout, order, word, base
    )
    lacks = LAYOUTS[layout]
    leaders, tid = [base], 0
    put_task(memory, base, 0, 0, b"swapper/0", signals)
    for number, threads in enumerate(processes):
        signal = signals + SIGNAL_SIZE * (number + 1)
        members = [places.pop() for _ in range(threads)]
        tgid = tid + 1
        for vaddr in members:
            tid += 1
            comm = b"task %d" % tid
            put_task(memory, vaddr, tgid, tid, comm, signal)
            memory.expected.append((vaddr, tgid, tid, comm))
        leaders.append(members[0])
        if "task_struct.thread_group" not in lacks:
            memory.link(*(vaddr + OFFSETS["task_struct.thread_group"] for vaddr in members))
        if "task_struct.thread_node" not in lacks:
            head = signal + OFFSETS["signal_struct.thread_head"]
            memory.link(head, *(vaddr + OFFSETS["task_struct.thread_node"] for vaddr in members))
    memory.link(*(vaddr + OFFSETS["task_struct.tasks"] for vaddr in leaders))
    return memory


def put_task(memory: TaskMemory, vaddr: int, tgid: int, tid: int, comm: bytes, signal: int) -> None:
    """Write one task; its stack lies at a place of its own behind the tasks."""

    def put(name: str, size: int, value: int) -> None:
        memory.put(vaddr + OFFSETS[f"task_struct.{name}"], size, value)

    put("__state", 4, 1)
    put("stack", memory.word, memory.base + 0x10000 * (tid + 1))
    put("cpu", 4, tid % 2)
    put("pid", 4, tid)
    put("tgid", 4, tgid)
    put("real_parent", memory.word, memory.base)
    put("signal", memory.word, signal)
    at = vaddr - memory.base + OFFSETS["task_struct.comm"]
    memory.data[at : at + 16] = comm.ljust(16, b"\0")


def bury(memory: TaskMemory, tid: int, exit_state: int = 0x20) -> None:
    """What finish_task_switch() leaves of a task that has ended and that nobody has waited for."""
    vaddr = next(row[0] for row in memory.expected if row[2] == tid)
    memory.put(vaddr + OFFSETS["task_struct.__state"], 4, 0x80)
    memory.put(vaddr + OFFSETS["task_struct.exit_state"], 4, exit_state)
    memory.put(vaddr + OFFSETS["task_struct.stack"], memory.word, 0)


@dataclass(frozen=True)
class PlainTarget:
    """The same memory for the plain readers."""

    memory: VirtualMemory
    info: VmcoreInfo
    order: str
    word: int

    def read(self, vaddr: int, size: int, /) -> bytes:
        return self.memory.read(vaddr & ((1 << 64) - 1), size)

    def symbol(self, name: str, /) -> int | None:
        return self.info.symbol(name)

    def offset(self, name: str, /) -> int | None:
        return self.info.offset(name)

    def size(self, name: str, /) -> int | None:
        return self.info.size(name)

    def length(self, name: str, /) -> int | None:
        return self.info.length(name)

    def number(self, name: str, /) -> int | None:
        return self.info.number(name)


def damage(memory: TaskMemory, random: Random, count: int) -> None:
    """Overwrite pointers at random: with garbage, with other tasks' lists, with poison."""
    size = memory.word
    for _ in range(count):
        at = random.randrange(len(memory.data) // size) * size
        value = random.choice(
            (
                0,
                random.getrandbits(8 * size),
                BASE + random.randrange(len(memory.data)) // 8 * 8,
                0xDEAD000000000122,
                BASE + OFFSETS["task_struct.tasks"],
            )
        )
        memory.put(BASE + at, size, value)
