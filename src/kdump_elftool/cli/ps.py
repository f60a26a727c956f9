"""``kdump-elftool ps``: the tasks of a dump."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

import numpy as np

from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import Opened, open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.elf.task_table import TaskRow, as_json, noted_tasks
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.tasks import list_tasks, task_table
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.plain.ps import column_names, columns
from kdump_elftool.safe_text import printable

NAME = "ps"
HELP = "list the tasks of a dump"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, vmlinux=True, search=True)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:
        opened = open_input(args, stack)
        rows, warnings, facts = _tasks(opened)
    for message in warnings:
        warn(message, args)
    if args.verbose:
        for fact in facts:
            print(f"{fact.name}: {fact.shown()} ({fact.source})", file=sys.stderr)
    rows.sort(key=lambda row: (row.pid, row.tid, -row.lwp))
    if args.json:
        document = as_json(rows, "kdump-elftool/ps/1")
        print(json.dumps({**document, "warnings": [printable(message) for message in warnings]}))
    else:
        _print(rows)
    sys.stdout.flush()
    return 0


def _tasks(opened: Opened) -> tuple[list[TaskRow], list[str], tuple[Fact, ...]]:
    """The tasks, warnings, and the facts they rest on; a core with a table of its own is believed."""
    noted = noted_tasks(opened.dump.notes)
    if noted is not None:
        return noted, [], (Fact("tasks", len(noted), "the core's own table"),)
    kernel = open_kernel(opened.dump, opened.request)
    listed = list_tasks(opened.dump, kernel)
    rows = task_table(listed, np.arange(len(listed.tasks)))
    return rows, [*kernel.warnings, *listed.warnings], listed.known.used


def _print(rows: list[TaskRow]) -> None:
    width = max((len(row.task) for row in rows), default=0)
    print(column_names(width))
    for row in rows:
        task = row.task.ljust(width)
        print(columns(row.pid, row.tid, row.ppid, row.state, row.cpu, task, row.comm, on_cpu=row.on_cpu))
