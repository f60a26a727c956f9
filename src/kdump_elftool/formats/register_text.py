"""Registers of a machine's CPUs as text: what QEMU's monitor prints for ``info registers -a``.

A line ``CPU#N`` begins each CPU.  Or lines ``cpuN.reg=hex``, which can be written by hand.  The names
become those of :class:`~kdump_elftool.formats.base.CpuRegisters`; floating point and debug registers
are known, and not used.
Sources: target/i386/cpu-dump.c (``x86_cpu_dump_state``), target/arm/cpu.c (``arm_cpu_dump_state``,
``aarch64_cpu_dump_state``), target/mips/cpu.c (``mips_cpu_dump_state``) of QEMU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import CpuRegisters
from kdump_elftool.safe_text import printable

LONGEST = 16 << 20
"""Bytes; QEMU prints 3 to 5 KB for a CPU."""
MOST_CPUS = 4096
_MOST_REGISTERS = 512
"""Of one CPU."""
_LONGEST_LINE = 4096
_SHOWN = 60

_HEX = r"(?:0x)?([0-9a-fA-F]{1,16})"
_PAIR = re.compile(rf"([A-Za-z][A-Za-z0-9_]*) *= *{_HEX}(?![0-9a-zA-Z])")
_CPU = re.compile(r"CPU#([0-9]{1,9})")
_BY_HAND = re.compile(rf"cpu([0-9]{{1,9}})\.([a-z][a-z0-9_]*) *= *{_HEX}")
_SEGMENT = re.compile(
    r"(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ([0-9a-f]{8})(?: .*)?"
)
_TABLE = re.compile(r"(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})")
_MIPS_PC = re.compile(rf"pc={_HEX} HI={_HEX} LO={_HEX} ds .*")
_MIPS_GENERAL = re.compile(r"GPR([0-9]{2}):((?: [a-z0-9]{2} [0-9a-f]{8,16}){4})")
_MIPS_CP0 = re.compile(rf"CP0 Status +{_HEX} Cause +{_HEX} EPC .*")
_UNUSED = re.compile(
    r"\(qemu\).*|#.*|Code=.*|.*FPU disabled|\[[0-9]+-[0-9]+\]=.*"
    r"|(?:FCW|FPR[0-7]|[XYZ]MM[0-9]{2}|Opmask[0-9]{2}|DR[0-7]|CCS|EFER|[QZP][0-9]{2}|FFR|ZA|s[0-9]{2}|d[0-9]{2}|FPSCR"
    r"|SVCR)(?:\[[^]]*\])? *=.*"
    r"|FPSCR: .*|CP1 FCR0 .*|f[0-9 ]{1,2}: .*|Config[0-9] +0x.*|LLAddr .*"
)
_NOT_REGISTERS = frozenset("CPL II A20 SMM HLT BTYPE FPCR FPSR SVCR MXCSR FSW FTW CCD CCO CCS EFER".split())
_RENAMED = {"rfl": "rflags", "efl": "eflags", "psr": "cpsr"}


@dataclass
class _Reading:
    """Registers by CPU so far, and the CPU that lines are about."""

    cpus: dict[int, dict[str, int]] = field(default_factory=dict)
    cpu: int = 0

    def put(self, name: str, value: int) -> None:
        """Raises ValueError for what was there before, and what cannot be."""
        registers = self.cpus.setdefault(self.cpu, {})
        if name in registers:
            raise ValueError(f"{name} of CPU {self.cpu} is there a second time")
        if len(registers) == _MOST_REGISTERS:
            raise ValueError(f"more than {_MOST_REGISTERS} registers of CPU {self.cpu}")
        registers[name] = value

    def turn_to(self, cpu: int, *, new: bool) -> None:
        """What follows is about ``cpu``.  Raises ValueError."""
        if cpu >= MOST_CPUS:
            raise ValueError(f"a CPU number of {cpu}")
        if new and cpu in self.cpus:
            raise ValueError(f"CPU {cpu} is there a second time")
        self.cpu = cpu


def read_registers(file: ByteSource) -> tuple[CpuRegisters, ...]:
    """The CPUs in the text, by number.  Raises KdumpError with the line that cannot be understood."""
    if file.size > LONGEST:
        raise KdumpError(f"{file.path} is {file.size} bytes: no text of registers is that large", hint=_HINT)
    text = file.read_at(0, file.size).decode("utf-8", "replace")
    reading = _Reading()
    for number, line in enumerate(text.split("\n"), 1):
        try:
            _read_line(reading, line.strip())
        except ValueError as error:
            raise KdumpError(f"{file.path}, line {number}: {printable(str(error))}", hint=_HINT) from None
    found = tuple(CpuRegisters(cpu, values) for cpu, values in sorted(reading.cpus.items()) if values)
    if not found:
        raise KdumpError(f"{file.path} has no registers", hint=_HINT)
    return found


_HINT = (
    "what QEMU's monitor prints for 'info registers -a' is wanted, or lines such as cpu0.rip=ffffffff81000000"
)


def _read_line(reading: _Reading, line: str) -> None:
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"a line of {len(line)} characters")
    if not line or _UNUSED.fullmatch(line):
        return
    for pattern, read in _LINES:
        match = pattern.fullmatch(line)
        if match:
            for name, value in read(reading, match):
                reading.put(name, value)
            return
    _read_pairs(reading, line)


def _read_pairs(reading: _Reading, line: str) -> None:
    """``NAME=hex NAME=hex ...``, and flags in words at the end."""
    at = count = 0
    for match in _PAIR.finditer(line):
        if "=" in line[at : match.start()]:
            break
        name = match[1].lower()
        if match[1] not in _NOT_REGISTERS:
            name = f"{name[0]}{int(name[1:])}" if re.fullmatch(r"[rx][0-9]{2}", name) else name
            reading.put(_RENAMED.get(name, name), int(match[2], 16))
        at, count = match.end(), count + 1
    if not count or "=" in line[at:]:
        raise ValueError(f"this is not understood: {line[at:].strip()[:_SHOWN]}")


def _read_cpu(reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
    reading.turn_to(int(match[1]), new=True)
    reading.cpus[reading.cpu] = {}
    yield from ()


def _read_by_hand(reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
    reading.turn_to(int(match[1]), new=False)
    yield match[2], int(match[3], 16)


def _read_segment(_reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
    name = match[1].lower()
    for suffix, value in zip(("", "_base", "_limit", "_flags"), match.groups()[1:], strict=True):
        yield name + suffix, int(value, 16)


def _read_table(_reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
    yield f"{match[1].lower()}_base", int(match[2], 16)
    yield f"{match[1].lower()}_limit", int(match[3], 16)


def _read_named(*names: str) -> Callable[[_Reading, re.Match[str]], Iterator[tuple[str, int]]]:
    def read(_reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
        yield from ((name, int(value, 16)) for name, value in zip(names, match.groups(), strict=True))

    return read


def _read_mips_general(_reading: _Reading, match: re.Match[str]) -> Iterator[tuple[str, int]]:
    first = int(match[1])
    for index, value in enumerate(match[2].split()[1::2]):
        yield f"r{first + index}", int(value, 16)


_LINES: tuple[tuple[re.Pattern[str], Callable[[_Reading, re.Match[str]], Iterator[tuple[str, int]]]], ...] = (
    (_CPU, _read_cpu),
    (_BY_HAND, _read_by_hand),
    (_SEGMENT, _read_segment),
    (_TABLE, _read_table),
    (_MIPS_PC, _read_named("pc", "hi", "lo")),
    (_MIPS_GENERAL, _read_mips_general),
    (_MIPS_CP0, _read_named("status", "cause")),
)
"""Forms of whole lines, and the registers in each."""
