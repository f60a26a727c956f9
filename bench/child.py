"""Run one command and print what it cost as JSON, from a small process of its own.

A program's ru_maxrss begins at the size of the process that started it (exec keeps the high-water
mark of the memory it replaces: exec_mmap() in fs/exec.c), so the benchmark itself, numpy and all,
cannot measure peaks.  Run as a script, with the standard library only:

    python -I -S bench/child.py FILE-TO-SYNC-OR-EMPTY COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time


def main(arguments: list[str]) -> int:
    """Run, wait, sync the result (within the time measured), print the cost."""
    to_sync, *command = arguments
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begin = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    if to_sync and status == 0:
        fd = os.open(to_sync, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "wall": time.perf_counter() - begin,
        "user": usage.ru_utime,
        # a program that syncs by itself pays for it: so does one that leaves it to us
        "system": usage.ru_stime + after.ru_stime - before.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(cost))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
