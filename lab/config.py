"""What kernels.toml says, as frozen records, and the folders of the lab's cache.

A guest is a kernel in a machine; a row is a guest in a scenario and yields one folder of dumps.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

LAB_DIR = Path(__file__).resolve().parent
SETS = ("demo", "ci", "matrix")
IN_ROOT = ("newer", "newer-machine", "dirty")
"""Scenarios whose QEMU runs in a tool root, which takes root's rights."""
CUT_BY_QEMU = {("x64-61-numa.live", "qemu-paging.elf")}
"""QEMU gives a mapping that goes over from one memory backend into the next the file size of its first
part alone (dump/dump.c, get_offset_range()): two thirds of this dump are beyond its headers."""


class LabError(Exception):
    """Something the lab needs is not there or went wrong; the text is for the user."""


class BootError(LabError):
    """The guest did not do what it should; worth another try."""


@dataclass(frozen=True)
class Arch:
    """How QEMU and Debian name a machine, where its serial ports are, where its memory begins.

    kernel_arch, kernel_image: of the kernel's own build; built_userland: Debian has no port of it.
    """

    name: str
    debian: str
    packages: tuple[str, ...]
    compiler: str
    qemu: str
    machine: tuple[str, ...]
    cpu_options: tuple[str, ...]
    devices: tuple[str, ...]
    disk: str
    console: str
    port: str
    kexec: tuple[str, ...]
    ram_base: int = 0
    guest_dump: bool = True
    kernel_arch: str = ""
    kernel_image: str = ""
    built_userland: bool = False


@dataclass(frozen=True)
class Guest:
    """A kernel (by pattern) in a machine; with fragments, `package` has its source and it is built here."""

    name: str
    about: str
    arch: Arch
    suite: str
    package: str
    known: tuple[str, ...]
    cpu: str
    cpus: int
    levels: int
    kaslr: bool
    cmdline: str
    modules: tuple[str, ...]
    fragments: tuple[str, ...] = ()

    @property
    def cpu_argument(self) -> str:
        """QEMU's -cpu."""
        return ",".join([self.cpu, *self.arch.cpu_options])


@dataclass(frozen=True)
class Row:
    """A guest in a scenario: one folder of dumps."""

    guest: Guest
    scenario: str
    sets: tuple[str, ...]
    memory: str
    crashkernel: str | None

    @property
    def name(self) -> str:
        return f"{self.guest.name}.{self.scenario}"

    @property
    def can_be_made(self) -> bool:
        """By who we are."""
        return os.geteuid() == 0 or self.scenario not in IN_ROOT

    def settings(self) -> dict[str, Any]:
        """Everything of the configuration that shapes the dump; part of its key."""
        guest = self.guest
        return {
            "row": self.name,
            "arch": guest.arch.name,
            "qemu": guest.arch.qemu,
            "machine": guest.arch.machine,
            "devices": guest.arch.devices,
            "kexec": guest.arch.kexec,
            "cpu": guest.cpu_argument,
            "cpus": guest.cpus,
            "cmdline": guest.cmdline,
            "modules": guest.modules,
            "memory": self.memory,
            "crashkernel": self.crashkernel,
        }


@dataclass(frozen=True)
class Config:
    """All of kernels.toml."""

    rows: tuple[Row, ...]
    userland_suite: str
    userland_packages: tuple[str, ...]
    userland_source: str
    disk_modules: tuple[str, ...]
    work_modules: tuple[str, ...]
    root_packages: Mapping[str, tuple[str, ...]]
    lists_max_age_seconds: float

    @property
    def guests(self) -> tuple[Guest, ...]:
        return tuple({row.guest.name: row.guest for row in self.rows}.values())

    def select(self, set_name: str | None, patterns: list[str]) -> list[Row]:
        """The rows of a set (all without one) that match one of the patterns (all without any)."""
        rows = [row for row in self.rows if set_name is None or set_name in row.sets]
        if patterns:
            rows = [row for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]
        return sorted(rows, key=_order)


def _order(row: Row) -> tuple[int, str]:
    """The smallest set first: what everything else waits for is made first."""
    return min(SETS.index(name) for name in row.sets), ""


_ARCH_LISTS = ("packages", "machine", "cpu_options", "devices", "kexec")


def _parse_guest(name: str, table: Mapping[str, Any], document: Mapping[str, Any]) -> list[Row]:
    defaults = document["defaults"]
    arch_table = document["arch"][table["arch"]]
    lists = {key: tuple(arch_table.get(key, ())) for key in _ARCH_LISTS}
    lists["machine"] += tuple(table.get("machine", ()))
    qemu = table.get("qemu", arch_table["qemu"])
    arch = Arch(name=table["arch"], **{**arch_table, **lists, "qemu": qemu})
    guest = Guest(
        name=name,
        about=table["about"],
        arch=arch,
        suite=table["suite"],
        package=table["source"] if "source" in table else table["package"],
        known=tuple(table["known"]),
        cpu=table["cpu"],
        cpus=table.get("cpus", defaults["cpus"]),
        levels=table["levels"],
        kaslr=table["kaslr"],
        cmdline=table.get("cmdline", defaults["cmdline"]),
        modules=tuple(table.get("modules", defaults["modules"])),
        fragments=tuple(table.get("config", ())),
    )
    if ("source" in table) != bool(guest.fragments):
        raise LabError(f"{name}: source and config go together")
    rows = []
    for scenario, own in table["rows"].items():
        merged = {**defaults, **document["scenario"][scenario], **own}
        unknown = set(own["sets"]) - set(SETS)
        if unknown:
            raise LabError(f"{name}.{scenario}: no such set: {', '.join(sorted(unknown))}")
        rows.append(Row(guest, scenario, tuple(own["sets"]), merged["memory"], merged.get("crashkernel")))
    return rows


def parse_config(text: str) -> Config:
    """Reads the text of kernels.toml."""
    document = tomllib.loads(text)
    rows = [row for name, table in document["guest"].items() for row in _parse_guest(name, table, document)]
    return Config(
        rows=tuple(rows),
        userland_suite=document["userland"]["suite"],
        userland_packages=tuple(document["userland"]["packages"]),
        userland_source=document["userland"].get("source", ""),
        disk_modules=tuple(document["modules"]["disk"]),
        work_modules=tuple(document["modules"]["work"]),
        root_packages={name: tuple(table["packages"]) for name, table in document["root"].items()},
        lists_max_age_seconds=document["cache"]["lists_max_age_hours"] * 3600.0,
    )


@cache
def load_config() -> Config:
    return parse_config((LAB_DIR / "kernels.toml").read_text(encoding="utf-8"))


def cache_dir() -> Path:
    """Where everything that is downloaded or made is kept, outside of the checkout."""
    chosen = os.environ.get("KDUMP_ELFTOOL_LAB")
    path = Path(chosen) if chosen else Path.home() / ".cache" / "kdump-elftool-lab"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path.resolve()


def say(text: str, to_stderr: bool = False) -> None:
    print(f"lab: {text}", file=sys.stderr if to_stderr else sys.stdout, flush=True)


@contextmanager
def lab_lock() -> Iterator[None]:
    """One QEMU and one apt at a time, whoever runs them."""
    with (cache_dir() / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run of the lab", to_stderr=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def row_dir(row: Row) -> Path:
    return cache_dir() / "dumps" / row.name
