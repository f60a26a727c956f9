"""Unpacks kernel packages: kernels/RELEASE_VERSION/{vmlinuz,vmlinux,modules/,debug-modules/}.

Only what is used is kept of the -dbg package (vmlinux and the modules the guests load), read from
the package as a stream: unpacked as a whole it would take several times the room.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lab.collect import write_sparse
from lab.config import LabError, cache_dir
from lab.packages import Apt
from lab.resolve import Kernel, KernelPackages

MODULE_SUFFIXES = (".ko", ".ko.xz")


def kernel_dir(kernel: Kernel) -> Path:
    return cache_dir() / "kernels" / kernel.folder


def ensure_kernel(packages: KernelPackages, modules: Iterable[str], apt: Apt) -> Path:
    """Unpacks the kernel unless that was done for these modules; returns its folder."""
    target = kernel_dir(packages)
    wanted = sorted({module_key(name) for name in modules})
    done = target / "done"
    if done.exists() and set(wanted) <= set(done.read_text().split()):
        return target
    if done.exists():
        wanted = sorted({*wanted, *done.read_text().split()})
    paths = apt.download(packages.debs)
    work = target.with_name(target.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for path in paths[:-1]:
        _unpack_image(path, packages.release, work)
    for name in ("vmlinuz", "modules"):
        if not (work / name).exists():
            raise LabError(f"no {name} in the packages of {packages.release}")
    order = load_order(wanted, module_files(work / "modules"))
    _unpack_debug(paths[-1], packages.release, work, {module_key(path.stem) for path in order})
    (work / "done").write_text("\n".join(wanted) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    for path in paths:
        path.unlink(missing_ok=True)
    return target


def _members(deb: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files of a package, in order, without unpacking it."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                yield tar, member
            while process.stdout.read(1 << 20):
                pass
    if process.returncode:
        raise LabError(f"{deb.name} can't be read")


def unpack_files(deb: Path, choose: Callable[[str], Path | None]) -> None:
    """Writes each regular file of the package to the place `choose` gives for its name."""
    for tar, member in _members(deb):
        target = choose(member.name.removeprefix("./")) if member.isfile() else None
        if target is None:
            continue
        source = tar.extractfile(member)
        assert source is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".xz":
            target.with_suffix("").write_bytes(lzma.decompress(source.read()))
        else:
            write_sparse(source, target)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _unpack_image(deb: Path, release: str, work: Path) -> None:
    def choose(name: str) -> Path | None:
        name = name.removeprefix("usr/")
        if name in (f"boot/vmlinuz-{release}", f"lib/modules/{release}/vmlinuz"):
            return work / "vmlinuz"
        if name == f"boot/System.map-{release}":
            return None  # holds no addresses on Debian
        if name == f"boot/config-{release}":
            return work / "config"
        prefix = f"lib/modules/{release}/"
        if name.startswith(prefix) and (name.endswith(MODULE_SUFFIXES) or "/modules." in name):
            return work / "modules" / name.removeprefix(prefix)
        return None

    unpack_files(deb, choose)


def _unpack_debug(deb: Path, release: str, work: Path, modules: set[str]) -> None:
    def choose(name: str) -> Path | None:
        name = re.sub(r"^usr/lib/debug/(usr/)?", "", name)
        if name in (f"boot/vmlinux-{release}", f"lib/modules/{release}/vmlinux"):
            return work / "vmlinux"
        path = Path(name)
        if name.startswith(f"lib/modules/{release}/") and module_key(path.stem.split(".")[0]) in modules:
            return work / "debug-modules" / path.name
        return None

    unpack_files(deb, choose)
    if not (work / "vmlinux").exists():
        raise LabError(f"no vmlinux in {deb.name}")


# ---- which modules to load, and in which order ---------------------------------------------------


def module_key(name: str) -> str:
    """The kernel takes - and _ in module names for the same."""
    return name.replace("-", "_")


def module_files(folder: Path) -> dict[str, Path]:
    return {module_key(path.stem): path for path in folder.rglob("*.ko")}


def module_depends(data: bytes) -> list[str]:
    """The depends= entry of a module's .modinfo (Debian ships no modules.dep)."""
    match = re.search(rb"\0depends=([A-Za-z0-9_,-]*)\0", data)
    return [name for name in match[1].decode().split(",") if name] if match else []


def load_order(names: Iterable[str], files: Mapping[str, Path]) -> list[Path]:
    """The modules with what they depend on, first what must be loaded first.

    Names without a file are left out: they are built into this kernel, or it has no such driver.
    """
    order: list[Path] = []

    def visit(name: str) -> None:
        path = files.get(module_key(name))
        if path is None or path in order:
            return
        for depends in module_depends(path.read_bytes()):
            visit(depends)
        order.append(path)

    for name in names:
        visit(name)
    return order
