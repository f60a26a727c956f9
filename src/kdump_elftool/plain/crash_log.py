"""What the log itself says about a crash: the message, and which CPU and task it was.

Only the kernel's own messages count (facility 0): anybody may write others into the log.
References: panic() in kernel/panic.c, dump_stack_print_info() in lib/dump_stack.c, the die() of the
architectures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdump_elftool.plain.printk import Log, Record

_PANIC = re.compile(rb"Kernel panic - not syncing: (.*)")
_OOPS = re.compile(
    rb"(?:watchdog: )?(?:BUG: |Oops: |Oops - |kernel BUG at |(?:CPU \d{1,5} )?Unable to handle kernel "
    rb"|Internal error: |general protection fault|Kernel BUG at )"
)
# die() counts what it prints.  x86, before "Oops: " went in front (v6.10): "divide error: 0000 [#1] SMP";
# s390: "operation exception: 0001 ilc:2 [#1]"; MIPS, LoongArch: "Oops[#1]:"; RISC-V: "Kernel BUG [#1]"
_DIE = re.compile(rb"[A-Za-z][ -Z^-~]{1,100}?(?:: [0-9a-f]{4}(?: ilc:\d)? \[#?\d{1,9}\]| ?\[#\d{1,9}\]:?$)")
# headings that tell nothing, and what those who print them said just before
_MERE = re.compile(rb"(?:Oops: )?(?:Oops|Kernel BUG|invalid opcode: 0000|monitor event: 0040 ilc:\d) ?\[#?\d")
_CAUSE = re.compile(rb"[Kk]ernel BUG at |(?:CPU \d{1,5} )?Unable to handle kernel ")
_NEAR = 16
_TASK = re.compile(
    rb"CPU: (\d{1,5}) (?:UID: \d{1,10} )?PID: (\d{1,10}) Comm: (.{,20}?) "
    rb"(?:Kdump: loaded )?(?:Not tainted|Tainted: )"
)
# x86 before v3.10: show_regs_common(), dump_stack().  The CPU is two lines before (x86_64) or one behind
_OLD_TASK = re.compile(rb"Pid: (\d{1,10}), comm: (.{,20}?) (?:Not tainted|Tainted: )")
_OLD_CPU = re.compile(rb"CPU (\d{1,5}) *(?:$|Modules linked in:)|EIP: .{,80}? CPU: (\d{1,5})$")
_CPU_WITHIN = 6
_CALLER_IS_CPU = 1 << 31

_Whose = tuple["int | None", "int | None", "bytes | None"]


@dataclass(frozen=True)
class CrashLog:
    """Everything None that the log does not tell.  ``oops`` is the last one, of whatever age."""

    message: bytes | None = None
    oops: bytes | None = None
    cpu: int | None = None
    pid: int | None = None
    comm: bytes | None = None
    ts_nsec: int | None = None


def read_crash(log: Log, *, crashed: bool) -> CrashLog:
    """Find the panic.  With ``crashed`` (the dump proves it) an oops without panic is the crash."""
    records = [record for record in log.records if record.facility in (0, None)]
    panic = next((at for at in _backwards(records) if _PANIC.match(records[at].text)), None)
    oops = _last_oops(records)
    at = panic if panic is not None else oops if crashed else None
    oops_text = None if oops is None else _first_line(records[oops])
    if at is None:
        return CrashLog(oops=oops_text)
    match = _PANIC.match(_first_line(records[at]))
    cpu, pid, comm = _task(records, at)
    return CrashLog(
        message=match[1] if match else oops_text,
        oops=oops_text,
        cpu=cpu,
        pid=pid,
        comm=comm,
        ts_nsec=records[at].ts_nsec,
    )


def last_stamp(log: Log) -> int | None:
    """The newest time stamp: how long the machine had been up, in nanoseconds."""
    return next((record.ts_nsec for record in reversed(log.records) if record.ts_nsec is not None), None)


def _task(records: list[Record], at: int) -> _Whose:
    """CPU, pid and name: from the first such line after the message, else from the last one before.

    The caller of the message, where the log has it, decides: a line about another task is not used.
    """
    caller = records[at].caller_id
    by_task = caller is not None and not caller & _CALLER_IS_CPU
    for index in (*range(at, len(records)), *range(at - 1, -1, -1)):
        found = _whose(records, index)
        if found is not None and not (by_task and found[1] != caller):
            return found
    if caller is None:
        return None, None, None
    return (None, caller, None) if by_task else (caller & ~_CALLER_IS_CPU, None, None)


def _whose(records: list[Record], index: int) -> _Whose | None:
    line = _first_line(records[index])
    match = _TASK.match(line)
    if match:
        return int(match[1]), int(match[2]), match[3]
    match = _OLD_TASK.match(line)
    return (_old_cpu(records, index), int(match[1]), match[2]) if match else None


def _old_cpu(records: list[Record], index: int) -> int | None:
    """The CPU of what a line about a task belongs to, which a heading or another task ends."""
    behind = range(index + 1, min(index + 1 + _CPU_WITHIN, len(records)))
    for places in (range(index - 1, max(index - _CPU_WITHIN, 0) - 1, -1), behind):
        for near in places:
            line = _first_line(records[near])
            match = _OLD_CPU.match(line)
            if match:
                return int(match[1] or match[2])
            if _OLD_TASK.match(line) or _is_oops(line) or _PANIC.match(line):
                break
    return None


def _last_oops(records: list[Record]) -> int | None:
    """Of its lines the one that says most."""
    last = next((at for at in _backwards(records) if _is_oops(_first_line(records[at]))), None)
    if last is None or not _MERE.match(_first_line(records[last])):
        return last
    caller = records[last].caller_id
    for at in range(last - 1, max(last - _NEAR, 0) - 1, -1):
        line = _first_line(records[at])
        if records[at].caller_id != caller:
            continue
        if _CAUSE.match(line):
            return at
        if _is_oops(line):  # an older one
            break
    return last


def _is_oops(line: bytes) -> bool:
    return bool(_OOPS.match(line) or (b"[" in line and _DIE.match(line)))


def _backwards(records: list[Record]) -> range:
    return range(len(records) - 1, -1, -1)


def _first_line(record: Record) -> bytes:
    return record.text.partition(b"\n")[0]
