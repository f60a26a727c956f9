"""The userland of guests whose architecture Debian has no port of: busybox alone, built from its source.

Its options are in lab/configs/busybox.config: what lab/init runs.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path

from lab.built import not_honoured, run_make
from lab.config import LAB_DIR, Arch, LabError, cache_dir, say
from lab.packages import Deb
from lab.sources import SourceApt, ensure_upstream

OPTIONS = LAB_DIR / "configs" / "busybox.config"
DEFAULTS = 1000
"""More than there are questions about options that others bring with them."""


def userland_dir(arch: Arch, package: Deb) -> Path:
    words = f"{package.name} {package.version} {arch.compiler}\0".encode()
    digest = hashlib.sha256(words + OPTIONS.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return cache_dir() / "userland" / digest[:16]


def ensure_busybox(arch: Arch, package: Deb, apt: SourceApt) -> Path:
    """A folder that looks like a root, with bin/busybox in it."""
    target = userland_dir(arch, package)
    if (target / "bin/busybox").exists():
        return target
    sources = ensure_upstream(package, apt)
    started = time.monotonic()
    build = cache_dir() / "build" / f"busybox-{target.name}"
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    try:
        _build(arch, sources, build)
        (target / "bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(build / "busybox", target / "bin" / "busybox.tmp")
        (target / "bin/busybox.tmp").rename(target / "bin/busybox")
    finally:
        shutil.rmtree(build, ignore_errors=True)
    say(f"{package.name} {package.version} for {arch.name} built {time.monotonic() - started:.1f} s")
    return target


def with_options(config: str, wanted: str) -> str:
    """A configuration in which the options of `wanted` are set; kconfig heeds the first line of an option."""
    names = {line.split("=")[0] for line in wanted.splitlines() if line.startswith("CONFIG_")}
    kept = [line for line in config.splitlines() if not names & set(re.split("[ =]", line))]
    return "\n".join([*kept, wanted])


def _build(arch: Arch, sources: Path, build: Path) -> None:
    """busybox's allnoconfig takes no options to set as that of Linux does."""
    log, wanted = build / "lab.log", OPTIONS.read_text()
    options = [*("-C", str(sources), f"O={build}"), f"CROSS_COMPILE={arch.compiler.removesuffix('gcc')}"]
    run_make([*options, "allnoconfig"], log)
    config = build / ".config"
    config.write_text(with_options(config.read_text(), wanted))
    run_make([*options, "oldconfig"], log, answers=b"\n" * DEFAULTS)
    if missing := not_honoured(wanted, config.read_text()):
        raise LabError(f"busybox can't be configured with {' '.join(missing)}")
    run_make([*options, "busybox"], log)
