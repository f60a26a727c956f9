"""Runs in the guest of a kcore row: our program on the /proc/kcore of the kernel under it, also on one that
may not be read.  Into the current folder:

kcore.head          how /proc/kcore begins, which is all that a copy of moderate size has of it
NAME.out, NAME.err  what a command printed
account.json        by name: exit status, seconds, CPU seconds, largest resident set in kB

Nothing but the standard library, of which the tree of contrib/initramfs-hook has not all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOL, KCORE = "/usr/bin/kdump-elftool", "/proc/kcore"
ACCOUNT = "account.json"
HEAD_BYTES = 1 << 20
NOBODY = 65534
LOCKDOWN = Path("/sys/kernel/security/lockdown")
COMMANDS: Mapping[str, Sequence[str]] = {
    "info": ("info", "--json"),
    "mkvmlinux": ("mkvmlinux", "--json", "-o", "vmlinux.live"),
    "dmesg": ("dmesg", "-r"),
    "ps": ("ps",),
    "tovelf": ("tovelf", "-p", "--json", "-l", "kernel", "-o", "velf"),
    "topelf": ("topelf", "--json", "-l", "kernel", "--format", "kdump", "-o", "kcore.kdump"),
}


def run(name: str, words: Sequence[str], user: int | None = None) -> dict[str, float]:
    """What a command cost; its output goes to files."""
    started = time.monotonic()
    with open(f"{name}.out", "wb") as out, open(f"{name}.err", "wb") as err:
        argv = [TOOL, *words, KCORE]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, user=user)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    account = {
        "status": process.returncode,
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "max_rss_kb": usage.ru_maxrss,
    }
    print(f"LAB-NOTE {name} {account}", flush=True)
    return account


def lock_down(level: str) -> bool:
    """Whether the kernel takes it; there is no way back."""
    try:
        LOCKDOWN.write_text(level)
    except OSError as error:
        print(f"LAB-NOTE lockdown {level}: {error}", flush=True)
        return False
    return True


def main() -> int:
    """Exit status 0 whatever the commands said: that is for the tests."""
    with open(KCORE, "rb", buffering=0) as kcore:
        Path("kcore.head").write_bytes(kcore.read(HEAD_BYTES) or b"")
    account = {name: run(name, words) for name, words in COMMANDS.items()}
    account["user"] = run("user", ("info",), NOBODY)
    for level in ("integrity", "confidentiality"):
        if lock_down(level):
            account[level] = run(level, ("info", "--json"))
    Path(ACCOUNT).write_text(json.dumps(account, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
