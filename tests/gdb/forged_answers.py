"""Sourced by gdb: every command on a core whose note says anything of its kernel."""

from __future__ import annotations

import random

import gdb

from kdump_elftool.errors import KdumpError
from kdump_elftool.gdbside.loader import COMMANDS
from kdump_elftool.gdbside.target import target

SEED, ROUNDS = 20261129, 60
WORDS = {
    **dict.fromkeys(("kd-task", "kd-files", "kd-vmas", "kd-bt", "kd-page"), ("1",)),
    **dict.fromkeys(("kd-list", "kd-rbtree", "kd-xarray", "kd-vtop"), ("init_task",)),
    "kd-percpu": ("runqueues",),
    "kd-mods": ("/proc/self/task",),
}
ODD = [-1, 0, 1, 3, 8, 4095, 1 << 16, (1 << 20) - 1, 1 << 32, 1 << 62, -(1 << 63), (1 << 64) - 1]

print(f"seed {SEED}")
chance = random.Random(SEED)
kernel = target()
told = dict(kernel._answers)
commands = [command() for command in COMMANDS if not command.NAME.startswith(("vminfo", "thread_"))]
for _ in range(ROUNDS):
    forged = chance.sample(sorted(told), chance.choice((1, 5, 100)))
    kernel._answers = {**told, **{key: chance.choice(ODD) for key in forged}}
    for command in commands:
        try:
            command.run(list(WORDS.get(command.NAME, ())))
        except (KdumpError, gdb.GdbError):
            pass
print("the end")
