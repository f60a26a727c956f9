"""``kdump-elftool ps``: the tasks of a dump."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

import numpy as np

from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import add_dump, open_input
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.tasks import TaskList, list_tasks, task_table
from kdump_elftool.safe_text import printable

NAME = "ps"
HELP = "list the tasks of a dump"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, vmlinux=True)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:
        opened = open_input(args, stack)
        kernel = open_kernel(opened.dump, opened.request)
        listed = list_tasks(opened.dump, kernel)
        digits = 2 * kernel.arch.prstatus.word
    warnings = [*kernel.warnings, *listed.warnings]
    for message in warnings:
        warn(message, args)
    if args.verbose:
        for fact in listed.known.used:
            print(f"{fact.name}: {fact.shown()} ({fact.source})", file=sys.stderr)
    tasks = listed.tasks
    rows = np.lexsort((tasks.idle_cpu, tasks.tid, tasks.tgid))
    if args.json:
        document = {**task_table(tasks, rows), "schema": "kdump-elftool/ps/1"}
        print(json.dumps({**document, "warnings": [printable(message) for message in warnings]}))
    else:
        _print(listed, rows.tolist(), digits)
    sys.stdout.flush()
    return 1 if args.strict and warnings else 0


def _print(listed: TaskList, rows: list[int], digits: int) -> None:
    tasks = listed.tasks
    running = set(listed.running)
    print(f"{'PID':>7} {'TID':>7} {'PPID':>7} ST {'CPU':>3} {'TASK':<{digits + 2}} COMM")
    for row in rows:
        ppid, cpu = (str(value) if value >= 0 else "-" for value in (tasks.ppid[row], tasks.cpu[row]))
        # the task a CPU is running is marked as in crash
        mark = ">" if row in running else " "
        print(
            f"{mark}{tasks.tgid[row]:>6} {tasks.tid[row]:>7} {ppid:>7} {chr(tasks.state[row]):>2} {cpu:>3} "
            f"0x{int(tasks.task[row]):0{digits}x} {printable(tasks.comm[row])}"
        )
