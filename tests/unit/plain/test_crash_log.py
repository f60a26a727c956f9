"""What the log says of a crash, in the words of every kernel and architecture.

The lines are those of die(), show_regs() and dump_stack() in the kernels that are named beside them.
"""

from __future__ import annotations

import pytest

from kdump_elftool.plain.crash_log import CrashLog, read_crash
from kdump_elftool.plain.printk_record import Log, Record

CPU = 1 << 31


def said(*lines: bytes | tuple[bytes, int]) -> Log:
    """A log of these lines; with a number each its caller."""
    pairs = [(line, None) if isinstance(line, bytes) else line for line in lines]
    records = (Record(text, at, at * 1000, 0, 4, by, 0) for at, (text, by) in enumerate(pairs))
    return Log("records", tuple(records), {})


def told(log: Log) -> tuple[bytes | None, int | None, int | None, bytes | None]:
    crash = read_crash(log, crashed=True)
    return crash.message, crash.cpu, crash.pid, crash.comm


OF = b"CPU: 3 PID: 1234 Comm: modprobe Kdump: loaded Tainted: G           OE    --------- -  - 4.18.0-305.el8"
HEADINGS = [
    # x86 before v6.10: __die_header(), arch/x86/kernel/dumpstack.c; the names in kernel/traps.c
    b"divide error: 0000 [#1] SMP PTI",
    b"invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    b"stack segment: 0000 [#1] SMP NOPTI",
    b"double fault: 0000 [#1] SMP",
    b"coprocessor segment overrun: 0000 [#2] SMP",
    b"control protection fault: 0003 [#1] PREEMPT SMP",
    b"general protection fault, probably for non-canonical address 0xdffffc0000000000: 0000 [#1] SMP",
    b"int3: 0000 [#1] PREEMPT SMP KASAN PTI",
    b"invalid opcode: 0000 [1] SMP ",  # 2.6.18
    b"Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI",
    # MIPS and LoongArch: die(), kernel/traps.c
    b"Oops[#1]:",
    b"Kernel bug detected[#1]:",
    b"Unhandled kernel unaligned access[#1]:",
    b"do_cpu invoked from kernel context![#12]:",
    # RISC-V
    b"Oops [#1]",
    b"Oops - illegal instruction [#1]",
    # s390: die(), arch/s390/kernel/dumpstack.c
    b"operation exception: 0001 ilc:2 [#1] SMP ",
    # Arm, arm64, ppc
    b"Internal error: Oops: 5 [#1] SMP ARM",
    b"Internal error: Oops: 0000000096000044 [#1] SMP",
    b"Internal error: : 1028 [#1] SMP ARM",
    b"Oops: Kernel access of bad area, sig: 11 [#1]",
]


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_heading_of_a_dying_kernel(heading):
    log = said(b"Linux version", heading, b"Modules linked in: vfat", OF)
    assert told(log) == (heading, 3, 1234, b"modprobe")
    assert read_crash(log, crashed=False) == CrashLog(oops=heading)


CAUSES = [
    (b"kernel BUG at mm/slub.c:305!", b"invalid opcode: 0000 [#1] SMP PTI"),
    (b"kernel BUG at mm/slub.c:305!", b"Oops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI"),
    (b"kernel BUG at fs/inode.c:12!", b"monitor event: 0040 ilc:2 [#1] SMP "),
    (b"kernel BUG at fs/inode.c:12!", b"Kernel BUG [#1]"),
    (b"Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000", b"Oops [#1]"),
    (
        b"CPU 1 Unable to handle kernel paging request at virtual address 00000000, epc == 80a2, ra == 80a2",
        b"Oops[#1]:",
    ),
]


@pytest.mark.parametrize(("cause", "heading"), CAUSES)
def test_the_line_that_says_more_than_the_heading(cause, heading):
    assert told(said(cause, heading, OF))[:3] == (cause, 3, 1234)
    # another task's between them; and one that is of an older oops, of another CPU, or long past
    assert told(said((cause, 1234), (b"device eth0", 7), (heading, 1234), (OF, 1234)))[0] == cause
    assert told(said((cause, CPU | 1), (heading, 1234), (OF, 1234)))[0] == heading
    assert told(said(cause, b"Oops: 0002 [#1] SMP", OF, heading, OF))[0] == heading
    assert told(said(cause, *[b"x"] * 30, heading, OF))[0] == heading


@pytest.mark.parametrize(
    "line",
    [
        b"traps: a.out[123] trap divide error ip:40051f sp:7ffc error:0 in a.out[400000+1000]",
        b"a.out[77]: segfault at 0 ip 00005 sp 00007 error 4",
        b"smp: Booting Node 0, Processors #1 #2",
        b"pci 0000:00:01.0: [8086:7010] type 00 class 0x010180",
        b"BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable",
        b"[#1]:",
    ],
)
def test_other_lines_are_no_crash(line):
    assert read_crash(said(line), crashed=True) == CrashLog()


def test_others_may_write_what_they_like():
    record = Record(b"divide error: 0000 [#1] SMP", 0, 0, 3, 4, None, 0)
    assert read_crash(Log("records", (record,), {}), crashed=True) == CrashLog()


def test_an_oops_and_the_panic_after_it():
    log = said(b"divide error: 0000 [#1] SMP", OF, b"Kernel panic - not syncing: Fatal exception")
    crash = read_crash(log, crashed=False)
    assert (crash.message, crash.oops, crash.cpu) == (b"Fatal exception", b"divide error: 0000 [#1] SMP", 3)


OLD_64 = (
    b"BUG: unable to handle kernel NULL pointer dereference at (null)",
    b"IP: [<ffffffff8134b516>] sysrq_handle_crash+0x16/0x20",
    b"PGD 7a602067 PUD 376ff067 PMD 0 ",
    b"Oops: 0002 [#1] SMP ",
    b"last sysfs file: /sys/module/virtio_net/initstate",
    b"CPU 1 ",
    b"Modules linked in: nfs lockd [last unloaded: speedstep_lib]",
    b"",
    b"Pid: 1913, comm: bash Not tainted 2.6.32-431.el6.x86_64 #1 Red Hat KVM",
    b"RIP: 0010:[<ffffffff8134b516>]  [<ffffffff8134b516>] sysrq_handle_crash+0x16/0x20",
)
OLD_32 = (
    b"Oops: 0002 [#1] SMP ",
    b"Modules linked in: nfs",
    b"",
    b"Pid: 1913, comm: my prog Tainted: G        W  (2.6.32-5-686 #1) Bochs",
    b"EIP: 0060:[<c11f2c0b>] EFLAGS: 00010286 CPU: 2",
    b"EIP is at sysrq_handle_crash+0xc/0x10",
)


def test_kernels_before_3_10():
    """__show_regs() and show_registers() of arch/x86/kernel/{process,dumpstack}_{32,64}.c."""
    assert told(said(*OLD_64)) == (OLD_64[3], 1, 1913, b"bash")
    assert told(said(*OLD_32)) == (OLD_32[0], 2, 1913, b"my prog")
    # dump_stack() names no CPU; that of an oops long before is of something else
    panic = (
        b"Kernel panic - not syncing: hung_task: blocked tasks",
        b"Pid: 37, comm: khungtaskd Not tainted 2.6.32-431.el6.x86_64 #1",
        b"Call Trace:",
    )
    for older in ((), OLD_64, (b"CPU 5 ",)):
        assert told(said(*older, *panic)) == (b"hung_task: blocked tasks", None, 37, b"khungtaskd")
