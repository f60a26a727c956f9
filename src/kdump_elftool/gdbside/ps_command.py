"""``ps`` and ``ps_old`` in gdb: the tasks of the kernel."""

from __future__ import annotations

from typing import Any

from kdump_elftool.gdbside.command import Command, say, usage, warn
from kdump_elftool.gdbside.find_task import listed_tasks
from kdump_elftool.gdbside.target import target
from kdump_elftool.plain.ps import Choice, all_columns, seed_lines, tree_lines


class Ps(Command):
    """List the processes of the kernel, each with its threads.

    ps [-a] [-t] [-s STATES] [-n NAME] [PID...]

    Columns are PID, terminal, name and task_struct; further threads of a process are below it.
    -a         all columns, a row a thread, idle tasks of the CPUs included:
               PID TID PPID ST CPU TASK COMM (> marks what a CPU was running)
    -t         as a tree; with -a further threads too, in braces
    -s STATES  only tasks in these states, in all columns: letters as ps(1) has them, such as D or RD
    -n NAME    only tasks of this name, a pattern as in a shell: kworker*
    PID        only these processes or threads"""

    NAME = "ps"

    def run(self, words: list[str]) -> None:
        """One line a task."""
        flags, choice = self._parsed(words)
        found = listed_tasks(target())
        if "-a" in flags and not found.queues:
            warn("the run queues of the CPUs cannot be found: idle tasks but the first are missing")
        tasks = [task for task in found.tasks if choice.takes(task)]
        if "-a" not in flags:
            tasks = [task for task in tasks if task.idle_cpu < 0]
        if "-t" in flags:
            lines = tree_lines(task for task in tasks if "-a" in flags or task.tid == task.tgid)
        elif "-a" in flags or choice.states:
            lines = all_columns(tasks)
        else:
            lines = seed_lines(target(), tasks)
        for line in lines:
            say(line)

    def _parsed(self, words: list[str]) -> tuple[set[str], Choice]:
        flags: set[str] = set()
        values: dict[str, Any] = {"-s": "", "-n": ""}
        pids: set[int] = set()
        rest = iter(words)
        for word in rest:
            if word in ("-a", "-t"):
                flags.add(word)
            elif word in values:
                values[word] = next(rest, "")
                if not values[word]:
                    raise usage(self)
            elif word.isascii() and word.isdigit():
                pids.add(int(word))
            else:
                raise usage(self)
        return flags, Choice(values["-s"], values["-n"], frozenset(pids))


class PsOld(Ps):
    """The same as ps, which looks for itself how the kernel keeps its threads.

    ps_old [-a] [-t] [-s STATES] [-n NAME] [PID...]

    The original kdump_gdbinit had this command for kernels before 3.10."""

    NAME = "ps_old"
