"""Sourced by gdb: commands on structures that a builder made, in the place of a core.

KD_FOLDERS are put into sys.path; KD_WANTED has the commands.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import gdb

sys.path[:0] = os.environ["KD_FOLDERS"].split(os.pathsep)

from kdump_elftool.gdbside import loader, process_commands, walk_commands  # noqa: E402
from tests.builders.processes import READ, REG, World  # noqa: E402
from tests.builders.structures import Memory, make_list  # noqa: E402

EVIL = b"\x1b]0;own\x07\r\n\"quote'; shell id\n\xff\x9b31m\\"


class Made(Memory):
    """A memory that has no core."""

    core = None

    def tasks(self) -> list[dict[str, Any]]:
        return []


def made() -> World:
    world = World("maple", 8)
    names, process = world.names, world.process
    dentry = names.dentry(EVIL, world.bin)
    file = process.file((world.root, dentry), names.inode(REG))
    process.open({0: file, 1: 0x1230})
    process.map([{"vm_start": 0x1000, "vm_end": 0x3000, "vm_flags": READ, "vm_file": file}])
    memory = world.memory
    memory.put(process.task + memory.keys["OFFSET(task_struct.pid)"], 7, 4)
    at = process.task + memory.keys["OFFSET(task_struct.comm)"]
    memory.data.update(zip(range(at, at + 16), EVIL[:16], strict=True))
    return world


loader.load()
world = made()
kernel = Made(world.memory.order, world.memory.word, world.memory.data, world.memory.keys, world.memory.next)
process_commands.target = walk_commands.target = lambda: kernel  # type: ignore[assignment]
head, nodes = make_list(kernel, 3)
kernel.put(nodes[2], nodes[0])
for command in json.loads(os.environ["KD_WANTED"]):
    gdb.execute(command.format(task=hex(world.process.task), head=hex(head)))
