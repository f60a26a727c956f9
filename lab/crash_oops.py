"""The scenario oops: three panics that no system call asked for, each of a boot of its own, dumped by
QEMU afterwards:  a NULL pointer is written to -> oops.elf; on a hard interrupt of the serial console
-> irq.elf; on a non-maskable one -> nmi.elf.

No driver of these kernels writes to NULL by order, so that QEMU's gdb stub puts the instruction into the
function that a write to /proc/sysrq-trigger calls.  The CPUs are busy in the kernel when the interrupts
come.

Apart from lab.crash, so that a change here makes the rows of this scenario anew and no others.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lab.boot import Machine, Qmp, Running
from lab.collect import dig_holes
from lab.config import LAB_DIR, BootError, Config, Row
from lab.crash import BOOT_SECONDS, DUMP_SECONDS, PANIC_BEFORE_TRUTH, SETTLE_SECONDS, kernel_command_line
from lab.guest import Cpio, GuestFiles
from lab.guest import build_initrd as build_common_initrd
from lab.truth import is_complete, split_sections

SCENARIO = "oops"
SOURCES = ("crash_oops.py", "oops-crasher")
PANIC = ("oops=panic", "panic=0", "sysrq_always_enabled", "unknown_nmi_panic")
WRITE_TO_NULL = bytes.fromhex("c604250000000001")
"""movb $1, 0"""
PATCHED = "sysrq_handle_crash"


@dataclass(frozen=True)
class WithInput(Machine):
    """A machine whose serial console can be written to."""

    def argv(self) -> list[str]:
        argv = super().argv()
        at = argv.index("file:console.log")
        chardev = "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log"
        return [*argv[: at - 1], "-chardev", chardev, "-serial", "chardev:console", *argv[at + 1 :]]


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """That of every guest, and a second archive that puts oops-crasher in the place of the crasher."""
    cpio = Cpio()
    cpio.file("sbin/crasher", (LAB_DIR / "oops-crasher").read_bytes(), 0o755)
    cpio.file("lab/crasher", (files.programs / "crasher").read_bytes(), 0o755)
    first = build_common_initrd(config, row, files)
    # the kernel reads archives one behind the other; the later file of a name wins
    return first + b"\0" * (-len(first) % 512) + cpio.finish()


def run_scenario(row: Row, kernel: Path, work: Path) -> list[str]:
    """Boots, crashes and dumps three times; returns QEMU's command line. The work folder holds the initrd."""
    append = " ".join([kernel_command_line(replace(row, scenario="live")), *PANIC])
    machine = WithInput(row, kernel, append, None)
    for name, crash in CRASHES.items():
        with Running(machine, work) as running:
            running.wait(
                "the guest's truth", lambda: is_complete(work / "truth.raw"), BOOT_SECONDS, PANIC_BEFORE_TRUTH
            )
            _wait_for(running, "LAB-ARMED")
            with Console(work / "console.sock") as console:
                qmp = running.connect(DUMP_SECONDS)
                crash(running, qmp, console)
                _wait_for(running, "end Kernel panic")
                _dump(qmp, work, name)
                qmp.close()
        (work / "console.sock").unlink(missing_ok=True)
        (work / f"{name}.log").write_bytes((work / "console.log").read_bytes())
    return machine.argv()


def _wait_for(running: Running, line: str) -> None:
    running.wait(line, lambda: line in running.console(), BOOT_SECONDS)


def _oops(running: Running, qmp: Qmp, console: Console) -> None:
    path = running.work / "gdb.sock"
    qmp.human("gdbserver unix:gdb.sock,server=on,wait=off")
    with GdbStub(path) as stub:
        # the stub then takes physical addresses
        stub.expect_ok("Qqemu.PhyMemMode:1")
        where = _paddr((running.work / "truth.raw").read_bytes(), PATCHED)
        stub.expect_ok(f"M{where:x},{len(WRITE_TO_NULL):x}:{WRITE_TO_NULL.hex()}")
        stub.expect_ok("D")
    path.unlink()
    console.write(b"crash\n")


def _irq(running: Running, qmp: Qmp, console: Console) -> None:
    _busy(running, console)
    qmp.execute("chardev-send-break", id="console")
    console.write(b"c")


def _nmi(running: Running, qmp: Qmp, console: Console) -> None:
    _busy(running, console)
    qmp.execute("inject-nmi")


def _busy(running: Running, console: Console) -> None:
    console.write(b"busy\n")
    _wait_for(running, "LAB-BUSY")
    time.sleep(SETTLE_SECONDS)


CRASHES: dict[str, Callable[[Running, Qmp, Console], None]] = {"oops": _oops, "irq": _irq, "nmi": _nmi}


def _paddr(truth: bytes, function: str) -> int:
    """Where a function of the kernel is in physical memory, as the guest says."""
    sections = split_sections(truth)
    vaddr = {
        name: int(match[1], 16)
        for name in ("_text", function)
        if (match := re.search(rf"^(\w+) \w {name}$", sections["kallsyms"], re.MULTILINE))
    }
    code = re.search(r"^ *(\w+)-\w+ : Kernel code$", sections["iomem"], re.MULTILINE)
    if len(vaddr) != 2 or code is None:
        raise BootError(f"the guest does not say where {function} is")
    return int(code[1], 16) + vaddr[function] - vaddr["_text"]


class Console:
    """The guest's serial console.  What it says is read and dropped: QEMU waits for readers."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Console:
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.reader.join()
        self.socket.close()

    def _read(self) -> None:
        while self.socket.recv(65536):
            pass

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)


class GdbStub:
    """A connection to QEMU's gdb stub, which stops the machine (gdb manual, "Remote Protocol")."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DUMP_SECONDS)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            raise BootError(f"no connection to the gdb stub: {error}") from error

    def __enter__(self) -> GdbStub:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def expect_ok(self, packet: str) -> None:
        self.socket.sendall(f"${packet}#{sum(packet.encode()) % 256:02x}".encode())
        answer = b""
        # a packet that begins with T tells that the machine has stopped
        while not (match := re.search(rb"\$([^#T][^#]*)#..", answer)):
            block = self.socket.recv(4096)
            if not block:
                raise BootError(f"the gdb stub has ended the connection: {answer!r}")
            answer += block
        self.socket.sendall(b"+")
        if match[1] != b"OK":
            raise BootError(f"the gdb stub refuses {packet}: {answer!r}")


def _dump(qmp: Qmp, work: Path, name: str) -> None:
    path = work / f"{name}.elf"
    qmp.execute("stop")
    qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{path}")
    if not path.exists() or path.stat().st_size == 0:
        raise BootError(f"QEMU wrote no {path.name}")
    dig_holes(path)
