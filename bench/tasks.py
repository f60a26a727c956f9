"""A generated dump of a machine with thousands of tasks, as real ones are: stacks in scattered pages.

Tasks lie in slabs of the direct map, processes on one list, threads on a list for each process, every
task asleep with its registers on its own stack in vmalloc space.  Where everything is stands in
VMCOREINFO, so that neither BTF nor kallsyms is needed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.generate import (
    IMAGE_SIZE,
    MIB,
    PAGE_OFFSET,
    SIZE_4K,
    START_KERNEL_MAP,
    SWAPPER_PADDR,
    TABLE_POOL,
    TEXT_PADDR,
    TEXT_VADDR,
    VMALLOC,
    PageTables,
    note,
    pwrite,
)

U64 = npt.NDArray[np.uint64]

RAM_BYTES = 768 * MIB
TASKS_PADDR, SIGNALS_PADDR, STACKS_PADDR = 128 * MIB, 240 * MIB, 256 * MIB
TASK_STRIDE, SIGNAL_STRIDE, STACK_SIZE = 8192, 128, 16384
INIT_TASK = TEXT_PADDR + 0x100000
SP_IN_STACK = 3 * SIZE_4K + 0x800
TASK = {
    "__state": 0x18, "stack": 0x20, "cpu": 0x38, "tasks": 0x400, "pid": 0x500, "tgid": 0x504,
    "real_parent": 0x510, "thread_node": 0x600, "comm": 0xB00, "signal": 0xC00, "thread": 0x1800,
}  # fmt: skip
THREAD_SP, THREAD_HEAD = 0x18, 0x10
FRAME = ("r15", "r14", "r13", "r12", "bx", "bp", "ret_addr")


@dataclass(frozen=True)
class TasksSpec:
    """``processes`` with ``threads`` each."""

    processes: int = 2000
    threads: int = 5
    seed: int = 4

    @property
    def tasks(self) -> int:
        """All of them but init_task."""
        return self.processes * self.threads


def generate_tasks(path: Path, spec: TasksSpec) -> None:
    """Write the dump; on disk it takes about 150 MB."""
    if spec.tasks * TASK_STRIDE > SIGNALS_PADDR - TASKS_PADDR:
        raise ValueError("too many tasks for this machine")
    random = np.random.default_rng(spec.seed)
    tables = PageTables(SWAPPER_PADDR, TABLE_POOL)
    tables.map_range(TEXT_VADDR, TEXT_PADDR, TEXT_PADDR + IMAGE_SIZE)
    tables.map_range(PAGE_OFFSET, 0, RAM_BYTES)
    frames = STACKS_PADDR + SIZE_4K * random.permutation(4 * spec.tasks).astype(np.uint64)
    stacks = VMALLOC + np.arange(spec.tasks, dtype=np.uint64) * np.uint64(STACK_SIZE + SIZE_4K)
    for number, frame in enumerate(frames.tolist()):
        stack, page = divmod(number, 4)
        tables.map(int(stacks[stack]) + page * SIZE_4K, frame)
    notes = _notes()
    head = -(-(64 + 2 * 56 + len(notes)) // SIZE_4K) * SIZE_4K
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, head + RAM_BYTES)
        pwrite(fd, _headers(len(notes), head) + notes, 0)
        for paddr, table in tables.tables.items():
            pwrite(fd, table.tobytes(), head + paddr)
        tasks, signals, init_task = _tasks(spec, stacks, random)
        pwrite(fd, tasks, head + TASKS_PADDR)
        pwrite(fd, signals, head + SIGNALS_PADDR)
        pwrite(fd, init_task, head + INIT_TASK)
        frame = struct.pack("<7Q", *range(6), TEXT_VADDR + 0x2000)
        for number in range(spec.tasks):
            top = int(frames[4 * number + 3])
            pwrite(fd, frame, head + top + SP_IN_STACK - 3 * SIZE_4K)
        os.fsync(fd)
    finally:
        os.close(fd)


def _tasks(spec: TasksSpec, stacks: U64, random: np.random.Generator) -> tuple[bytes, bytes, bytes]:
    """The tasks' slabs, the signal structs, and init_task."""
    count = spec.tasks
    places = PAGE_OFFSET + TASKS_PADDR + TASK_STRIDE * random.permutation(count).astype(np.uint64)
    tgid = np.repeat(np.arange(spec.processes, dtype=np.uint64) * spec.threads + 1, spec.threads)
    signal = PAGE_OFFSET + SIGNALS_PADDR + SIGNAL_STRIDE * np.arange(spec.processes, dtype=np.uint64)
    rows = np.zeros((count, TASK_STRIDE), dtype=np.uint8)
    init_task = np.zeros((1, TASK_STRIDE), dtype=np.uint8)

    def put(name: str, values: U64, width: int = 8) -> None:
        column = values.astype(f"<u{width}").view(np.uint8).reshape(count, width)
        rows[:, TASK[name] : TASK[name] + width] = column

    put("__state", np.ones(count, dtype=np.uint64), 4)
    put("stack", stacks)
    put("pid", np.arange(1, count + 1, dtype=np.uint64), 4)
    put("tgid", tgid, 4)
    put("real_parent", np.full(count, TEXT_VADDR + INIT_TASK - TEXT_PADDR, dtype=np.uint64))
    put("signal", np.repeat(signal, spec.threads))
    put("thread", stacks)
    rows[:, TASK["thread"] + THREAD_SP :][:, :8] = (
        (stacks + np.uint64(SP_IN_STACK)).astype("<u8").view(np.uint8).reshape(count, 8)
    )
    rows[:, TASK["comm"] : TASK["comm"] + 6] = np.frombuffer(b"worker", dtype=np.uint8)
    leaders = places[:: spec.threads]
    init = np.uint64(TEXT_VADDR + INIT_TASK - TEXT_PADDR)
    ring = np.concatenate([[init], leaders]) + np.uint64(TASK["tasks"])
    links = np.stack([np.roll(ring, -1), np.roll(ring, 1)], axis=1)
    at = TASK["tasks"]
    rows[:: spec.threads, at : at + 16] = links[1:].astype("<u8").view(np.uint8).reshape(-1, 16)
    init_task[0, at : at + 16] = links[:1].astype("<u8").view(np.uint8)
    init_task[0, TASK["comm"] : TASK["comm"] + 9] = np.frombuffer(b"swapper/0", dtype=np.uint8)
    init_task[0, TASK["stack"] : TASK["stack"] + 8] = links[:1, 0].astype("<u8").view(np.uint8)
    signals = np.zeros((spec.processes, SIGNAL_STRIDE), dtype=np.uint8)
    members = places.reshape(spec.processes, spec.threads) + np.uint64(TASK["thread_node"])
    rings = np.concatenate([(signal + np.uint64(THREAD_HEAD))[:, None], members], axis=1)
    pairs = np.stack([np.roll(rings, -1, axis=1), np.roll(rings, 1, axis=1)], axis=2)
    data = pairs.astype("<u8").view(np.uint8).reshape(spec.processes, spec.threads + 1, 16)
    signals[:, THREAD_HEAD : THREAD_HEAD + 16] = data[:, 0]
    node = TASK["thread_node"]
    rows[:, node : node + 16] = data[:, 1:].reshape(count, 16)
    slabs = np.zeros_like(rows)
    slabs[((places - np.uint64(PAGE_OFFSET + TASKS_PADDR)) // np.uint64(TASK_STRIDE)).astype(np.intp)] = rows
    return slabs.tobytes(), signals.tobytes(), init_task.tobytes()


def _headers(notes_size: int, head: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    rows = struct.pack("<IIQQQQQQ", 4, 0, 64 + 2 * 56, 0, 0, notes_size, notes_size, 4)
    return ehdr + rows + struct.pack("<IIQQQQQQ", 1, 7, head, PAGE_OFFSET, 0, RAM_BYTES, RAM_BYTES, 4096)


def _notes() -> bytes:
    swapper = TEXT_VADDR + SWAPPER_PADDR - TEXT_PADDR
    lines: dict[str, object] = {
        "OSRELEASE": "6.1.0-bench-amd64",
        "PAGESIZE": 4096,
        "SYMBOL(swapper_pg_dir)": f"{swapper:x}",
        "SYMBOL(_stext)": f"{TEXT_VADDR:x}",
        "SYMBOL(init_task)": f"{TEXT_VADDR + INIT_TASK - TEXT_PADDR:x}",
        "NUMBER(phys_base)": TEXT_PADDR - (TEXT_VADDR - START_KERNEL_MAP),
        "NUMBER(pgtable_l5_enabled)": 0,
        "OFFSET(signal_struct.thread_head)": THREAD_HEAD,
        "OFFSET(thread_struct.sp)": THREAD_SP,
    }
    lines |= {f"OFFSET(task_struct.{name})": at for name, at in TASK.items()}
    lines |= {f"OFFSET(inactive_task_frame.{name})": 8 * at for at, name in enumerate(FRAME)}
    text = "".join(f"{key}={value}\n" for key, value in lines.items())
    return note(b"VMCOREINFO", 0, text.encode())
