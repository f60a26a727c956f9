"""drgn as the oracle: tasks and memory of a core, written as JSON.

usage: oracle_drgn.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"seed": int, "samples": {category: count}, "addresses": [int], "ram": [[start, end]]}.
The answer has the tasks, ``samples`` as [category, address, hex] where drgn itself can read, how
many addresses it could not read per category, and the bytes at ``addresses``.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import for_each_task

STACK_SIZE = 16384


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    prog.load_debug_info([vmlinux])
    result: dict[str, object] = {
        "tasks": sorted([task.pid.value_(), task.comm.string_().hex()] for task in for_each_task(prog))
    }
    samples, unreadable = draw(prog, request)
    result["samples"] = samples
    result["unreadable"] = unreadable
    result["addresses"] = [read(prog, address) for address in request["addresses"]]
    Path(answer).write_text(json.dumps(result))


def read(prog: drgn.Program, address: int) -> str | None:
    try:
        return prog.read(address, 8).hex()
    except drgn.FaultError:
        return None


def draw(prog: drgn.Program, request: dict) -> tuple[list[list[object]], dict[str, int]]:
    """Random addresses of each category that drgn can read."""
    chance = random.Random(request["seed"])
    samples: list[list[object]] = []
    unreadable: dict[str, int] = {}
    for category, count in request["samples"].items():
        ranges = RANGES[category](prog, request)
        for _ in range(count):
            start, size = chance.choice(ranges)
            address = (start + chance.randrange(size)) & ~7
            value = read(prog, address)
            if value is None:
                unreadable[category] = unreadable.get(category, 0) + 1
            else:
                samples.append([category, address, value])
    return samples, unreadable


def between(first: str, last: str) -> Callable[[drgn.Program, dict], list[tuple[int, int]]]:
    def ranges(prog: drgn.Program, _request: dict) -> list[tuple[int, int]]:
        start = prog.symbol(first).address
        return [(start, prog.symbol(last).address - start)]

    return ranges


def per_cpu(prog: drgn.Program, _request: dict) -> list[tuple[int, int]]:
    start = prog.symbol("__per_cpu_start").address
    size = prog.symbol("__per_cpu_end").address - start
    offsets = [prog["__per_cpu_offset"][cpu].value_() for cpu in for_each_online_cpu(prog)]
    return [((start + offset) % 2**64, size) for offset in offsets]


def stacks(prog: drgn.Program, _request: dict) -> list[tuple[int, int]]:
    return [(task.stack.value_(), STACK_SIZE) for task in for_each_task(prog)]


def modules(prog: drgn.Program, _request: dict) -> list[tuple[int, int]]:
    return list(_module_ranges(prog))


def _module_ranges(prog: drgn.Program) -> Iterator[tuple[int, int]]:
    for module in list_for_each_entry("struct module", prog["modules"].address_of_(), "list"):
        try:
            for memory in module.mem:
                if memory.base.value_() and memory.size.value_():
                    yield memory.base.value_(), memory.size.value_()
        except AttributeError:  # before v6.4
            layout = module.core_layout
            yield layout.base.value_(), layout.size.value_()


def direct_map(prog: drgn.Program, request: dict) -> list[tuple[int, int]]:
    base = prog["page_offset_base"].value_()
    return [(base + start, end - start) for start, end in request["ram"]]


def vmemmap(prog: drgn.Program, request: dict) -> list[tuple[int, int]]:
    base = prog["vmemmap_base"].value_()
    size = drgn.sizeof(prog.type("struct page"))
    return [(base + (start >> 12) * size, ((end - start) >> 12) * size) for start, end in request["ram"]]


RANGES = {
    "text": between("_stext", "_etext"),
    "data": between("_sdata", "_edata"),
    "bss": between("__bss_start", "__bss_stop"),
    "per-cpu": per_cpu,
    "vmalloc": stacks,
    "module": modules,
    "direct map": direct_map,
    "vmemmap": vmemmap,
}

if __name__ == "__main__":
    main()
