"""Kernels that Debian has no package of, built from its source of Linux.
                                          -> kernels/FOLDER/{vmlinuz,vmlinux,modules/,debug-modules/,config}

The configuration is allnoconfig with fragments on top (lab/configs/NAME.config): such a kernel is built in
minutes. The folder's name has a hash of everything here that shapes the kernel.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.config import LAB_DIR, Arch, Guest, LabError, cache_dir, say
from lab.packages import Apt, Deb
from lab.sources import ensure_linux

BUILD_PACKAGES = ("bc", "bison", "flex", "gcc", "libc6-dev", "make", "perl", "xz-utils")
"""Of this machine, besides the guest's compiler."""
FIXED = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "lab",
    "KBUILD_BUILD_HOST": "lab",
    "KBUILD_BUILD_VERSION": "1",
    "SOURCE_DATE_EPOCH": "1767225600",
}
"""What would differ from build to build (Documentation/kbuild/reproducible-builds.rst)."""
LOG_TAIL = 25


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel by its source and recipe; what lab.resolve.KernelPackages is to a packaged one."""

    release: str
    version: str
    source: Deb
    recipe: str

    @property
    def folder(self) -> str:
        return f"{self.release}_{self.version}_{self.recipe[:16]}"

    @property
    def series(self) -> str:
        return ".".join(self.release.split("-")[0].split(".")[:2])

    @property
    def debs(self) -> tuple[Deb, ...]:
        return (self.source,)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a row's key has of the kernel."""
        return (self.source.file_name, self.recipe)


def built_kernel(guest: Guest, source: Deb) -> BuiltKernel:
    match = re.match(r"\d+\.\d+(\.\d+)?", source.version)
    if match is None:
        raise LabError(f"{source.name}: no version of Linux: {source.version}")
    release = f"{match[0]}{_local_version(guest)}"
    return BuiltKernel(release, source.version, source, recipe_hash(guest))


def _local_version(guest: Guest) -> str:
    return f"-lab-{guest.name}"


def wanted_config(guest: Guest) -> str:
    """The fragments of a guest, joined, with the name of its kernel."""
    fragments = [(LAB_DIR / "configs" / f"{name}.config").read_text() for name in guest.fragments]
    return "".join([*fragments, f'CONFIG_LOCALVERSION="{_local_version(guest)}"\n'])


def recipe_hash(guest: Guest) -> str:
    arch = guest.arch
    words = (wanted_config(guest), arch.compiler, arch.kernel_arch, arch.kernel_image)
    return hashlib.sha256("\0".join(words).encode() + Path(__file__).read_bytes()).hexdigest()


def not_honoured(wanted: str, config: str) -> list[str]:
    """Lines of the fragments that the configuration made of them lacks: something they need is missing."""
    there = set(config.splitlines())
    return [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in there]


def run_make(
    argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, answers: bytes = b""
) -> None:
    """make with low priority and a process per CPU; its output goes to `log`."""
    line = ["nice", "-n", "15", "make", "-s", f"-j{os.cpu_count() or 1}", *argv]
    with log.open("ab") as file:
        try:
            result = subprocess.run(
                line,
                env={**os.environ, **FIXED, **(environment or {})},
                input=answers,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except FileNotFoundError:
            raise LabError("make is not installed") from None
    if result.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise LabError(f"{' '.join(line)} failed:\n{tail}")


def make_options(arch: Arch, sources: Path, build: Path) -> list[str]:
    """make's variables; source files are named as in Debian's kernels, without a path of this machine."""
    maps = f"-ffile-prefix-map={sources}/= -ffile-prefix-map={build}=."
    return [
        *("-C", str(sources), f"O={build}", f"ARCH={arch.kernel_arch}"),
        f"CROSS_COMPILE={arch.compiler.removesuffix('gcc')}",
        *(f"KCFLAGS={maps}", f"KAFLAGS={maps}"),
    ]


def ensure_built(guest: Guest, kernel: BuiltKernel, target: Path, apt: Apt) -> Path:
    """Builds the kernel into the folder `target` unless it is there."""
    if target.exists():
        return target
    sources = ensure_linux(kernel.source, apt)
    build, work = cache_dir() / "build" / kernel.folder, target.with_name(f"{target.name}.tmp")
    started = time.monotonic()
    try:
        for folder in (build, work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        _build(guest, kernel, sources, build)
        _collect(guest.arch, build, work)
        work.rename(target)
    finally:
        shutil.rmtree(build, ignore_errors=True)
    say(f"{kernel.release} built {time.monotonic() - started:.1f} s")
    return target


def _build(guest: Guest, kernel: BuiltKernel, sources: Path, build: Path) -> None:
    options, log = make_options(guest.arch, sources, build), build / "lab.log"
    wanted = wanted_config(guest)
    (build / "lab.config").write_text(wanted)
    run_make([*options, "allnoconfig"], log, {"KCONFIG_ALLCONFIG": str(build / "lab.config")})
    if missing := not_honoured(wanted, (build / ".config").read_text()):
        raise LabError(f"{guest.name}: this kernel can't be configured with {' '.join(missing)}")
    run_make([*options, Path(guest.arch.kernel_image).name, "modules"], log)
    release = (build / "include/config/kernel.release").read_text().strip()
    if release != kernel.release:
        raise LabError(f"built {release} instead of {kernel.release}")


def _collect(arch: Arch, build: Path, work: Path) -> None:
    """What is kept of a build, named as with the kernels of packages."""
    strip = f"{arch.compiler.removesuffix('gcc')}strip"
    shutil.copyfile(build / "vmlinux", work / "vmlinux")
    shutil.copyfile(build / ".config", work / "config")
    shutil.copyfile(build / arch.kernel_image, work / "vmlinuz")
    if arch.kernel_image == "vmlinux":
        subprocess.run([strip, "--strip-all", work / "vmlinuz"], check=True)
    for folder in ("modules", "debug-modules"):
        (work / folder).mkdir()
    for module in build.rglob("*.ko"):
        shutil.copyfile(module, work / "debug-modules" / module.name)
        subprocess.run([strip, "--strip-debug", "-o", work / "modules" / module.name, module], check=True)
