"""Everything that the readers ask of a kernel: a core carries the answers, so that gdb need not search.

Each reader module says in ``NEEDS`` what it asks, as ``KIND(name)`` (``kernel.facts``).  A test holds
the readers to it.
"""

from __future__ import annotations

from kdump_elftool.plain import (
    backtraces,
    blocked,
    crash_summary,
    files,
    module_sections,
    modules,
    pages,
    percpu,
    printk,
    ps,
    task_details,
    tasks,
    user_memory,
    vmas,
    vminfo,
    xarray,
)

READERS = (
    printk,
    tasks,
    ps,
    backtraces,
    percpu,
    crash_summary,
    task_details,
    user_memory,
    xarray,
    files,
    vmas,
    pages,
    modules,
    module_sections,
    vminfo,
    blocked,
)


def needs() -> tuple[str, ...]:
    """Each question once, in a fixed order."""
    return tuple(dict.fromkeys(question for reader in READERS for question in reader.NEEDS))
