"""Functions for gdb's expressions: ``$kd_task``, ``$kd_percpu``, ``$kd_current``, ``$kd_container_of``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gdb

from kdump_elftool.errors import KdumpError
from kdump_elftool.gdbside.at_work import patience
from kdump_elftool.gdbside.find_task import task_address
from kdump_elftool.gdbside.language import in_c
from kdump_elftool.gdbside.percpu import percpu_variable
from kdump_elftool.gdbside.target import member_place, target
from kdump_elftool.gdbside.values import address_of, pointer, word
from kdump_elftool.plain.runqueues import run_queues
from kdump_elftool.plain.tasks import all_tasks


class Function(gdb.Function):  # type: ignore[misc]
    """Base of all functions; ``NAME`` is what the user types behind ``$``, the docstring its help."""

    NAME = ""
    ARGUMENTS = 1

    def __init__(self) -> None:
        super().__init__(self.NAME)

    def invoke(self, *values: Any) -> Any:
        """Called by gdb."""
        if len(values) != self.ARGUMENTS:
            raise gdb.GdbError(f"what is asked for is {self.__doc__}")
        try:
            with patience.at_work(f"${self.NAME}"), in_c():
                return self.call(*values)
        except KdumpError as error:
            raise gdb.GdbError(error.message) from None
        except gdb.error as error:
            raise gdb.GdbError(str(error)) from None

    @abstractmethod
    def call(self, *values: Any) -> Any:
        """The value.  Raises KdumpError, gdb.GdbError."""


class TaskOf(Function):
    """$kd_task(PID): a pointer to the task_struct of a thread; the idle task of CPU n is -(n+1)."""

    NAME = "kd_task"

    def call(self, pid: Any) -> Any:
        return pointer(task_address(target(), int(pid)), "task_struct")


class PerCpuOf(Function):
    """$kd_percpu("SYMBOL", CPU): a pointer to the copy of a per-CPU variable that a CPU has."""

    NAME = "kd_percpu"
    ARGUMENTS = 2

    def call(self, symbol: Any, cpu: Any) -> Any:
        return percpu_variable(target(), _text(symbol)).pointer(int(cpu))


class CurrentOf(Function):
    """$kd_current(CPU): a pointer to the task_struct of what a CPU runs."""

    NAME = "kd_current"

    def call(self, cpu: Any) -> Any:
        kernel = target()
        # without the variable's name the queues are found from the tasks
        queues = run_queues(kernel, ()) or all_tasks(kernel).queues
        for queue in queues:
            if queue.cpu == int(cpu) and queue.curr:
                return pointer(queue.curr, "task_struct")
        raise gdb.GdbError(f"there is no CPU {int(cpu)}, or what it runs is not known")


class ContainerOf(Function):
    """$kd_container_of(POINTER, "struct NAME", "MEMBER"): what has that member there, as a pointer."""

    NAME = "kd_container_of"
    ARGUMENTS = 3

    def call(self, value: Any, struct: Any, member: Any) -> Any:
        name, path = _text(struct), _text(member)
        found = member_place(name, path)
        if found is None:
            raise gdb.GdbError(f"gdb knows no {name} with a member {path}")
        kind, distance = found
        return word(address_of(value) - distance).cast(kind.pointer())


def _text(value: Any) -> str:
    """A string of gdb's."""
    try:
        text = value.string()
    except (gdb.error, UnicodeError):
        raise gdb.GdbError('a name in quotes is wanted, as in $kd_percpu("runqueues", 0)') from None
    return str(text)
