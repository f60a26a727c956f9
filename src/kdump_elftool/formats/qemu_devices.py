"""The CPUs among the devices of a QEMU migration stream, by the stream's own description.

Behind memory there is a section for each device.  Those before a CPU's are gone over by the sizes that
are described; where one does not end at its footer, the CPU's header is searched for.
Sources: migration/savevm.c (``save_section_header``, ``save_section_footer``), hw/core/cpu-sysemu.c
(each CPU is a device ``cpu``, its instance the CPU's index) of QEMU.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from kdump_elftool.errors import ReadFailedError
from kdump_elftool.formats.base import CpuRegisters
from kdump_elftool.formats.migration_description import (
    Budget,
    Device,
    Misdescribed,
    find_description,
    values,
)
from kdump_elftool.formats.migration_structs import Cursor, Section, StreamEnds
from kdump_elftool.formats.qemu_registers import named_registers, reduced, wanted
from kdump_elftool.safe_text import printable

log = logging.getLogger(__name__)

CPU = "cpu"
MOST_CPUS = 4096
_LARGEST_CPU = 4 << 20
"""Bytes of a CPU's state; those of x86 and ARM are below 32 KB."""
_FOOTER = 5
_STEP = 4 << 20
_HEADER = re.compile(rb"\x7e.{4}(\x04.{4}\x03cpu(.{4}))", re.DOTALL)
"""Of a CPU: the footer of the device before, then type, id, name and instance."""
_OVERLAP = 17


@dataclass(frozen=True)
class Cpus:
    """The CPUs' registers by number, and the ELF machine they tell (None: not known)."""

    registers: tuple[CpuRegisters, ...]
    e_machine: int | None
    warnings: tuple[str, ...]


NO_CPUS = Cpus((), None, ())


def read_cpus(cursor: Cursor) -> Cpus:
    """The CPUs of the devices that begin where ``cursor`` is, right behind memory.

    What cannot be had becomes a warning.
    """
    found: dict[int, dict[str, int]] = {}
    try:
        end, devices = find_description(cursor)
        bad = _Reader(cursor, end).read(devices, found)
    except (Misdescribed, StreamEnds, ReadFailedError) as error:
        why = printable(str(error)) or "a part of them is missing"
        return Cpus((), None, (f"the registers of the CPUs cannot be read: {why}",))
    warnings = [f"the registers of CPU {cpu} are left out: {why}" for cpu, why in bad[:3]]
    warnings += [f"the registers of {len(bad) - 3} other CPUs are left out as well"] if len(bad) > 3 else []
    told = named_registers(found)
    if not told.registers and not warnings:
        warnings.append("the registers of the CPUs cannot be read: such CPUs are not known")
    missing = sorted(found.keys() - told.registers.keys()) if told.registers else []
    if missing:
        warnings.append(f"the registers of {len(missing)} CPUs are left out: they are not described")
    registers = tuple(CpuRegisters(cpu, told.registers[cpu]) for cpu in sorted(told.registers))
    log.info("registers of %d CPUs, by the stream's description of its devices", len(registers))
    return Cpus(registers, told.e_machine, tuple(warnings))


class _Reader:
    """Goes from section to section; ``end`` is where the description begins."""

    def __init__(self, cursor: Cursor, end: int) -> None:
        self.cursor, self.end = cursor, end
        self.lost = False
        self.headers: dict[int, int] | None = None
        self.budget = Budget()

    def read(self, devices: list[Device], found: dict[int, dict[str, int]]) -> list[tuple[int, str]]:
        """Put each CPU's fields into ``found``; returns which have none, and why."""
        cpus = [index for index, device in enumerate(devices) if device.name == CPU]
        if not cpus:
            raise Misdescribed("no CPU is described")
        if len(cpus) > MOST_CPUS:
            raise Misdescribed(f"{len(cpus)} CPUs are described")
        bad: list[tuple[int, str]] = []
        for device in devices[: cpus[-1] + 1]:
            if device.name != CPU:
                self._go_over(device)
                continue
            if device.instance in found:
                bad.append((device.instance, "another CPU has the same number"))
                continue
            try:
                found[device.instance] = self._read_cpu(device)
            except Misdescribed as error:
                self.lost = True
                bad.append((device.instance, printable(str(error))))
        return bad

    def _go_over(self, device: Device) -> None:
        """Behind a device, if it is where and as long as it is described."""
        if self.lost:
            return
        start = self.cursor.at
        try:
            section, size = self._header(device), device.size()
            if section is not None and self._ends(self.cursor.at + size, section):
                self.cursor.at += size + _FOOTER
                return
        except Misdescribed as error:
            log.info("%s", error)
        log.info("the device %r at file offset %#x is not as it is described", device.name, start)
        self.cursor.at = start
        self.lost = True

    def _read_cpu(self, device: Device) -> dict[str, int]:
        section = None if self.lost else self._header(device)
        if section is None:
            self._search(device)
            section = self._header(device)
        size = device.size()
        if section is None or size > _LARGEST_CPU or not self._ends(self.cursor.at + size, section):
            raise Misdescribed("its state is not as long as it is described")
        data = self.cursor.take(size)
        self.cursor.skip(_FOOTER)
        self.lost = False
        return reduced(dict(values(device, data, wanted, self.budget)))

    def _header(self, device: Device) -> int | None:
        """The id of the section if its header is here, which is then gone over."""
        size = 5 + len(_identity(device)) + 4  # type, id, name and instance, version
        if self.cursor.at + size > self.end:
            return None
        head = self.cursor.take(size)
        if head[0] == Section.FULL and head[5:-4] == _identity(device):
            return int.from_bytes(head[1:5], "big")
        self.cursor.at -= size
        return None

    def _ends(self, at: int, section: int) -> bool:
        """Whether the footer of a section is there."""
        if at + _FOOTER > self.end:
            return False
        before, self.cursor.at = self.cursor.at, at
        found = self.cursor.take(_FOOTER)
        self.cursor.at = before
        return found == bytes([Section.FOOTER]) + section.to_bytes(4, "big")

    def _search(self, device: Device) -> None:
        """Go to the next header of this CPU, which is behind a footer.  Raises Misdescribed."""
        if self.headers is None:
            self.headers = self._headers()
        if device.instance not in self.headers:
            raise Misdescribed("its state is not in the stream")
        self.cursor.at = self.headers[device.instance]

    def _headers(self) -> dict[int, int]:
        """The first header of each CPU from here on, by number: one look at what is left for all."""
        found: dict[int, int] = {}
        begin = max(self.cursor.at - _FOOTER, 0)
        for at in range(begin, self.end, _STEP):
            data = self.cursor.file.read_at(at, min(_STEP + _OVERLAP, self.end - at))
            for match in _HEADER.finditer(data):
                found.setdefault(int.from_bytes(match[2], "big"), at + match.start(1))
            if len(found) > MOST_CPUS:
                raise Misdescribed(f"more than {MOST_CPUS} CPUs are in the stream")
        return found


def _identity(device: Device) -> bytes:
    name = device.name.encode("utf-8", "replace")
    return bytes([len(name)]) + name + device.instance.to_bytes(4, "big")
