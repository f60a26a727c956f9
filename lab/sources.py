"""Debian's sources: the packed tree of Linux and the upstream part of source packages.
-> sources/PACKAGE_VERSION/, each unpacked once
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab.config import Config, LabError, cache_dir, say
from lab.packages import Apt, Deb, DownloadError, find_source

NOT_UNPACKED = (
    "*/Documentation/*/*",
    "*/drivers/gpu/drm/amd/include/*",
    "*/tools/testing/*",
    "*/arch/arm*/boot/dts/*.dts*",
)
"""A third of Linux; no guest's kernel is built of it. Kconfig reads Documentation/Kconfig."""
UNPACK = """deb=$1 member=$2 folder=$3; shift 3
dpkg-deb --fsys-tarfile "$deb" | tar -xO "$member" | xz -d | tar -x -C "$folder" --strip-components=1 "$@"
"""


class SourceApt(Apt):
    """Source packages, in an apt state apart: their lists are fetched only when one is to be built."""

    def __init__(self, config: Config, suite: str) -> None:
        super().__init__(config)
        self.dir = self.dir / f"source-{suite}"
        self.suite = suite

    def sources_text(self) -> str:
        source = find_source()
        options = f"[{' '.join(source.options)}] " if source.options else ""
        return f"deb-src {options}{source.uri} {self.suite} main\n"

    def fetch(self, package: Deb, folder: Path) -> Path:
        """The upstream archive of a source package, in `folder`; apt checks sizes and sums."""
        self.refresh()
        try:
            self.run("source", "--download-only", f"{package.name}={package.version}", cwd=folder)
        except LabError as error:
            raise DownloadError(str(error)) from None
        found = sorted(folder.glob("*.orig.tar.*[!c]"))  # not its signature
        if not found:
            raise LabError(f"no upstream archive in the source package {package.name} {package.version}")
        return found[0]


def sources_dir(package: Deb) -> Path:
    """make does not bear colons and percent signs in paths."""
    return cache_dir() / "sources" / f"{package.name}_{package.version.replace(':', '_')}"


def ensure_linux(package: Deb, apt: Apt) -> Path:
    """The unpacked tree of a linux-source package."""
    target = sources_dir(package)
    if target.exists():
        target.touch()  # young enough to stay for the next build
        return target
    (deb,) = apt.download([package])
    work = _empty(target.with_name(f"{target.name}.tmp"))
    member = f"./usr/src/{package.name}.tar.xz"
    excluded = [f"--exclude={pattern}" for pattern in NOT_UNPACKED]
    _checked(["sh", "-c", UNPACK, "unpack", str(deb), member, str(work), *excluded], f"unpacking {deb.name}")
    if not (work / "Makefile").exists():
        raise LabError(f"no Linux in {deb.name}")
    work.rename(target)
    deb.unlink()
    say(f"{package.name} {package.version} unpacked")
    return target


def ensure_upstream(package: Deb, apt: SourceApt) -> Path:
    """The unpacked upstream archive of a source package, without Debian's patches."""
    target = sources_dir(package)
    if target.exists():
        target.touch()
        return target
    work = _empty(target.with_name(f"{target.name}.tmp"))
    archives = _empty(target.with_name(f"{target.name}.archives"))
    path = apt.fetch(package, archives)
    _checked(["tar", "-xf", str(path), "-C", str(work), "--strip-components=1"], f"unpacking {path.name}")
    work.rename(target)
    shutil.rmtree(archives)
    return target


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _checked(argv: list[str], what: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{what} failed:\n{result.stderr.strip()[-2000:]}")
