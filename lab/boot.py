"""One QEMU machine: its command line, its consoles, and QMP.

QMP is documented in docs/interop/qmp-spec.rst of QEMU, the commands in its qapi/ folder.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.config import BootError, LabError, Row

POLL_SECONDS = 0.1
CONSOLE_TAIL = 25


@dataclass(frozen=True)
class Machine:
    """Everything that goes into a QEMU command line. Files are relative to the work folder."""

    row: Row
    kernel: Path
    append: str
    disk: str | None

    def argv(self) -> list[str]:
        guest = self.row.guest
        argv = [
            guest.arch.qemu,
            *guest.arch.machine,
            *("-cpu", guest.cpu_argument, "-smp", str(guest.cpus), "-m", self.row.memory),
            *("-nodefaults", "-display", "none", "-no-reboot"),
            *("-serial", "file:console.log", *guest.arch.devices),
            *("-qmp", "unix:qmp.sock,server=on,wait=off"),
            *("-kernel", str(self.kernel), "-initrd", "initrd.img", "-append", self.append),
        ]
        if self.disk:
            # detect-zeroes=unmap keeps pages of zeros as holes
            drive = f"if=none,id=d0,format=raw,discard=unmap,detect-zeroes=unmap,file={self.disk}"
            argv += ["-drive", drive, "-device", f"{guest.arch.disk},drive=d0"]
        return argv


class Qmp:
    """A QMP connection."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            raise BootError(f"no QMP connection: {error}") from error
        self.stream = self.socket.makefile("rb")
        self._receive()
        self.execute("qmp_capabilities")

    def _receive(self) -> dict[str, Any]:
        try:
            line = self.stream.readline()
        except TimeoutError:
            raise BootError("QEMU did not answer on QMP") from None
        if not line:
            raise BootError("QEMU closed its QMP connection")
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._receive()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise BootError(f"QMP {command}: {message['error'].get('desc')}")

    def human(self, command: str) -> str:
        return str(self.execute("human-monitor-command", **{"command-line": command}))

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Running:
    """A started machine; leaving the with-block ends it."""

    def __init__(self, machine: Machine, work: Path) -> None:
        self.work = work
        self.argv = machine.argv()
        for name in ("console.log", "truth.raw"):
            (work / name).write_bytes(b"")
        with (work / "qemu.log").open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    self.argv, cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            except FileNotFoundError:
                raise LabError(f"{self.argv[0]} is not installed") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        (self.work / "qmp.sock").unlink(missing_ok=True)

    def console(self) -> str:
        return (self.work / "console.log").read_text(encoding="utf-8", errors="replace")

    def fail(self, what: str) -> BootError:
        lines = [
            *self.console().splitlines()[-CONSOLE_TAIL:],
            *(self.work / "qemu.log").read_text().splitlines(),
        ]
        return BootError(f"{what}; the last console lines:\n" + "\n".join(f"    {line}" for line in lines))

    def wait(
        self, what: str, reached: Callable[[], bool], timeout: float, bad: tuple[str, ...] = ("LAB-FAILED",)
    ) -> None:
        """Polls until `reached`; a bad console line, the end of QEMU or the time limit is a failure."""
        end = time.monotonic() + timeout
        while not reached():
            ended = self.process.poll() is not None
            if reached():
                return
            if ended:
                raise self.fail(f"QEMU ended before: {what}")
            text = self.console()
            for line in bad:
                if line in text:
                    raise self.fail(f"{line!r} came before: {what}")
            if time.monotonic() > end:
                raise self.fail(f"not reached in {timeout:.0f} s: {what}")
            time.sleep(POLL_SECONDS)

    def connect(self, timeout: float) -> Qmp:
        return Qmp(self.work / "qmp.sock", timeout)
