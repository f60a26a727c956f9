"""Makes the rows that are missing: packages, kernel, boot, dumps, row.json.

A row is made anew when its key changed: a hash of the lab's sources that shape a dump, of the file
names of its packages and of its settings in kernels.toml.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import (
    crash_blocked,
    crash_dirty,
    crash_failed,
    crash_formats,
    crash_kcore,
    crash_machine,
    crash_newer,
    crash_newer_machine,
    crash_oops,
    crash_pages,
    crash_topelf,
)
from lab.built import BuiltKernel, ensure_built
from lab.busybox import ensure_busybox
from lab.collect import describe_files, disk_usage, install, write_json
from lab.config import LAB_DIR, SETS, BootError, Config, LabError, Row, cache_dir, lab_lock, row_dir, say
from lab.crash import run_scenario
from lab.guest import GuestFiles, build_initrd, ensure_programs, ensure_userland, wanted_modules
from lab.kernels import ensure_kernel, kernel_dir
from lab.packages import Apt, DownloadError
from lab.resolve import Kernel, Resolution, Resolver
from lab.sources import SourceApt
from lab.tool import tool_hash
from lab.truth import parse_truth

TRIES = 3
_MODULES = (
    crash_blocked,
    crash_dirty,
    crash_failed,
    crash_formats,
    crash_kcore,
    crash_machine,
    crash_newer,
    crash_newer_machine,
    crash_oops,
    crash_pages,
    crash_topelf,
)
SPECIAL = {module.SCENARIO: module for module in _MODULES}
"""Scenarios with sources of their own (SOURCES): a change there makes their rows anew and no others."""
MADE_WITH: dict[str, Callable[[], str]] = {
    crash_kcore.SCENARIO: tool_hash,
    crash_topelf.SCENARIO: tool_hash,
}
"""What else shapes the rows of a scenario: our program, which runs in the guest."""
SOURCES = ("init", "boot.py", "crash.py", "guest.py", "truth.py", "programs/*.c")
_PRUNE_AFTER_S = 86400
SCRATCH = ("initrd.img", "truth.raw", "qemu.log", crash_topelf.FACTS)


def sources_hash(folder: Path = LAB_DIR) -> str:
    """Changes when a dump would come out differently."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(folder.glob(pattern)):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def scenario_hash(scenario: str, common: str) -> str:
    """``common``, and for a scenario with sources of its own these and what else it is made with."""
    special = SPECIAL.get(scenario)
    if special is None:
        return common
    made_with = MADE_WITH.get(scenario)
    digest = hashlib.sha256(f"{common}\0".encode())
    if made_with:
        digest.update(f"{made_with()}\0".encode())
    for name in special.SOURCES:
        digest.update((LAB_DIR / name).read_bytes() + b"\0")
    return digest.hexdigest()


def row_key(row: Row, packages: Kernel, modules: tuple[str, ...], sources: str) -> str:
    parts = {
        "sources": sources,
        "packages": packages.identity,
        "settings": row.settings(),
        "modules": modules,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A row with what it is made from."""

    row: Row
    packages: Kernel
    key: str

    def is_made(self) -> bool:
        return bool(read_row(self.row).get("key") == self.key)


def read_row(row: Row) -> dict[str, Any]:
    """row.json of a made row, else nothing."""
    folder = row_dir(row)
    try:
        record = json.loads((folder / "row.json").read_text())
        there = all((folder / name).exists() for name in [*record["files"], "vmlinux", "modules"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return record if there and isinstance(record, dict) else {}


def make_plans(config: Config, rows: list[Row], resolver: Resolver, resolution: Resolution) -> list[Plan]:
    common = sources_hash()
    plans = []
    for row in rows:
        packages = resolver.kernel(resolution, row.guest)
        sources = scenario_hash(row.scenario, common)
        plans.append(Plan(row, packages, row_key(row, packages, wanted_modules(config, row), sources)))
    return plans


def make_row(config: Config, plan: Plan, files: GuestFiles) -> float:
    """Boots until it works, at most three times; returns the seconds the good try took."""
    work = row_dir(plan.row).with_name(f".{plan.row.name}.tmp")
    special = SPECIAL.get(plan.row.scenario)
    initrd = (special.build_initrd if special else build_initrd)(config, plan.row, files)
    run = special.run_scenario if special else run_scenario
    for number in range(1, TRIES + 1):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / "initrd.img").write_bytes(initrd)
        started = time.monotonic()
        try:
            argv = run(plan.row, files.kernel / "vmlinuz", work)
            truth = parse_truth((work / "truth.raw").read_bytes())
        except BootError as error:
            if number == TRIES:
                raise
            say(f"{plan.row.name} try {number} of {TRIES} failed: {error}")
            continue
        seconds = time.monotonic() - started
        write_json(work / "truth.json", truth)
        _finish(plan, files, work, argv, seconds)
        return seconds
    raise AssertionError("unreachable")


def _finish(plan: Plan, files: GuestFiles, work: Path, argv: list[str], seconds: float) -> None:
    """row.json is written last: without it the row counts as not made."""
    facts = work / crash_topelf.FACTS
    crash_kernel = json.loads(facts.read_text()) if facts.exists() else None
    for name in SCRATCH:
        (work / name).unlink(missing_ok=True)
    (work / "vmlinux").symlink_to(files.kernel / "vmlinux")
    (work / "modules").symlink_to(files.kernel / "modules")
    (work / "debug-modules").symlink_to(files.kernel / "debug-modules")
    row = plan.row
    record = {
        "row": row.name,
        "guest": row.guest.name,
        "scenario": row.scenario,
        "sets": row.sets,
        "levels": row.guest.levels,
        "kaslr": row.guest.kaslr,
        "release": plan.packages.release,
        "packages": [deb.file_name for deb in plan.packages.debs],
        "cmdline": argv[argv.index("-append") + 1],
        "qemu": argv,
        "settings": row.settings(),
        "key": plan.key,
        "seconds": round(seconds, 1),
        "files": describe_files(work),
        "crash_kernel": crash_kernel,
    }
    write_json(work / "row.json", record)
    install(work, row_dir(row))


class Lab:
    """ensure(): what a call found missing is made, in order, under the lock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.apt = Apt(config)
        self.resolver = Resolver(config, self.apt)

    def ensure(self, wanted: list[Row], remake: bool) -> None:
        rows = [row for row in wanted if row.can_be_made]
        for row in wanted:
            if row not in rows:
                say(f"{row.name} left out: only root can make it")
        if remake or not self._all_made(rows):
            with lab_lock():
                try:
                    self._ensure_locked(rows, remake, self.resolver.resolve())
                except DownloadError:
                    # sid moves on: the remembered version may be gone from the archive
                    self._ensure_locked(rows, remake, self.resolver.resolve(refresh=True))
        self._summary(rows)

    def _all_made(self, rows: list[Row]) -> bool:
        """The quick answer, without the lock."""
        resolution = self.resolver.current()
        if resolution is None:
            return False
        plans = make_plans(self.config, rows, self.resolver, resolution)
        if not all(plan.is_made() for plan in plans):
            return False
        for plan in plans:
            say(f"{plan.row.name} cached 0.0 s")
        return True

    def _ensure_locked(self, rows: list[Row], remake: bool, resolution: Resolution) -> None:
        plans = make_plans(self.config, rows, self.resolver, resolution)
        for plan in {plan.row.guest.name: plan for plan in plans}.values():
            if plan.packages.series not in plan.row.guest.known:
                say(f"new: {plan.row.guest.name} runs {plan.packages.release}, a series not in kernels.toml")
        failed: dict[str, BootError] = {}
        for plan in plans:
            if plan.is_made() and not remake:
                say(f"{plan.row.name} cached 0.0 s")
                continue
            files = self._files(plan, resolution)
            try:
                say(f"{plan.row.name} made {make_row(self.config, plan, files):.1f} s")
            except BootError as error:
                failed[plan.row.name] = error
                say(f"{plan.row.name} failed: {error}")
        self._prune(resolution)
        if failed:
            raise LabError(f"not made: {', '.join(failed)}")

    def _files(self, plan: Plan, resolution: Resolution) -> GuestFiles:
        """Everything that has to be fetched and unpacked for a row, timed apart."""
        before = (self.apt.downloaded_bytes, self.apt.download_seconds)
        started = time.monotonic()
        arch = plan.row.guest.arch
        kernel = self._kernel(plan)
        if arch.built_userland:
            source = self.resolver.userland_source(resolution, arch.debian)
            userland = ensure_busybox(arch, source, SourceApt(self.config, self.config.userland_suite))
        else:
            userland = ensure_userland(self.resolver.userland(resolution, arch.debian), self.apt)
        programs = ensure_programs(arch.compiler)
        size, seconds = self.apt.downloaded_bytes - before[0], self.apt.download_seconds - before[1]
        if seconds:
            say(f"downloaded {size / 1e6:.0f} MB in {seconds:.1f} s")
        rest = time.monotonic() - started - seconds
        if rest > 1:
            say(f"{plan.packages.release} unpacked {rest:.1f} s")
        return GuestFiles(kernel, userland, programs)

    def _kernel(self, plan: Plan) -> Path:
        """Unpacked with the modules of every row that has it, or built."""
        guest = plan.row.guest
        if isinstance(plan.packages, BuiltKernel):
            return ensure_built(guest, plan.packages, kernel_dir(plan.packages), self.apt)
        modules = {
            name
            for row in self.config.rows
            if row.guest.package == guest.package and row.guest.suite == guest.suite
            for name in wanted_modules(self.config, row)
        }
        return ensure_kernel(plan.packages, modules, self.apt)

    def _prune(self, resolution: Resolution) -> None:
        """Removes rows that kernels.toml no longer has, kernels no row uses, sources and builds cut short.

        What is younger than a day stays: another checkout with other rows may share the cache.
        """
        dumps, kernels = cache_dir() / "dumps", cache_dir() / "kernels"
        known = {row.name for row in self.config.rows}
        for folder in _inside(dumps):
            if folder.name not in known and _old(folder):
                shutil.rmtree(folder, ignore_errors=True)
        sources, builds = cache_dir() / "sources", cache_dir() / "build"
        used = {kernel_dir(self.resolver.kernel(resolution, guest)) for guest in self.config.guests}
        used |= {(folder / "vmlinux").resolve().parent for folder in _inside(dumps)}
        for folder in (*_inside(kernels), *_inside(sources), *_inside(builds)):
            if folder not in used and _old(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _summary(self, rows: list[Row]) -> None:
        size = sum(info["bytes_on_disk"] for row in rows for info in read_row(row)["files"].values())
        say(f"{len(rows)} rows, {size / 1e9:.2f} GB of dumps in {cache_dir() / 'dumps'}")


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def _old(folder: Path) -> bool:
    return time.time() - folder.stat().st_mtime > _PRUNE_AFTER_S


def describe(rows: list[Row]) -> list[dict[str, Any]]:
    """For `lab list`."""
    described = []
    for row in rows:
        record = read_row(row)
        described.append(
            {
                "row": row.name,
                "about": row.guest.about,
                "sets": [name for name in SETS if name in row.sets],
                "made": bool(record),
                "release": record.get("release"),
                "path": str(row_dir(row)),
                "bytes_on_disk": disk_usage(row_dir(row)) if record else 0,
                "seconds": record.get("seconds"),
            }
        )
    return described
