"""What runs inside a guest: test programs, userland, modules, packed as an initramfs.

The initramfs is an uncompressed newc cpio archive (Documentation/driver-api/early-userspace/
buffer-format.rst in the kernel): under software emulation, unpacking it would cost more than
reading it.
"""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lab.config import LAB_DIR, Config, LabError, Row, cache_dir
from lab.kernels import load_order, module_files
from lab.packages import Apt, Deb

PROGRAMS = ("crasher", "worker", "spinner")
CRASH_CMDLINE = "nr_cpus=1 reset_devices irqpoll"


@dataclass
class Cpio:
    """A newc archive in the making."""

    parts: list[bytes] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    inode: int = 1

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        encoded = name.encode() + b"\0"
        numbers = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]
        self.inode += 1

    def _parents(self, name: str) -> None:
        for parent in reversed(Path(name).parents[:-1] if "/" in name else []):
            if str(parent) not in self.known:
                self.known.add(str(parent))
                self._add(str(parent), stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._parents(name)
        self._add(name, stat.S_IFREG | mode, data)

    def char_device(self, name: str, major: int, minor: int) -> None:
        self._parents(name)
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self.parts)


def ensure_programs(compiler: str) -> Path:
    """Compiles lab/programs, static, once per version of their sources."""
    sources = [LAB_DIR / "programs" / f"{name}.c" for name in PROGRAMS]
    digest = hashlib.sha256(compiler.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    target = cache_dir() / "programs" / digest[:16]
    target.mkdir(parents=True, exist_ok=True)
    for source in sources:
        output = target / source.stem
        if output.exists():
            continue
        temporary = output.with_suffix(".tmp")
        argv = [compiler, "-O1", "-Wall", "-static", "-pthread", "-o", str(temporary), str(source)]
        try:
            result = subprocess.run(argv, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise LabError(f"{compiler} is not installed") from None
        if result.returncode:
            raise LabError(f"{' '.join(argv)} failed:\n{result.stderr}")
        temporary.rename(output)
    return target


def ensure_userland(debs: Iterable[Deb], apt: Apt) -> Path:
    """Unpacks the userland packages; returns the folder that looks like a root."""
    wanted = list(debs)
    names = "\n".join(deb.file_name for deb in wanted)
    target = cache_dir() / "userland" / hashlib.sha256(names.encode()).hexdigest()[:16]
    if (target / "done").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for path in apt.download(wanted):
        subprocess.run(["dpkg-deb", "-x", path, target], check=True)
    (target / "done").write_text(names)
    return target


def _needed(path: Path) -> tuple[list[str], str | None]:
    """The shared libraries a program asks for, and its interpreter."""
    text = subprocess.run(["readelf", "-dlW", path], capture_output=True, text=True, check=True).stdout
    interpreter = re.search(r"interpreter: ([^\]]+)\]", text)
    return re.findall(r"\(NEEDED\).*\[([^\]]+)\]", text), interpreter[1] if interpreter else None


def find_program(root: Path, name: str) -> Path:
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
        if (root / folder / name).exists():
            return root / folder / name
    raise LabError(f"no program {name} in the userland packages")


def add_program(cpio: Cpio, root: Path, name: str) -> None:
    """A program of the userland with its libraries; all libraries go to /lib."""
    path = find_program(root, name)
    cpio.file(f"sbin/{name}", path.read_bytes(), 0o755)
    libraries = {
        file.name: file for file in root.rglob("*.so*") if file.exists() and "gconv" not in file.parts
    }
    queue, seen = [path], set[str]()
    while queue:
        needed, interpreter = _needed(queue.pop())
        if interpreter and interpreter not in seen:
            seen |= {interpreter, Path(interpreter).name}
            cpio.file(interpreter.lstrip("/"), libraries[Path(interpreter).name].read_bytes(), 0o755)
        for library in needed:
            if library in seen:
                continue
            seen.add(library)
            if library not in libraries:
                raise LabError(f"{name} needs {library}, which no userland package has")
            cpio.file(f"lib/{library}", libraries[library].read_bytes(), 0o755)
            queue.append(libraries[library])


@dataclass(frozen=True)
class GuestFiles:
    """Where the parts of a guest were unpacked."""

    kernel: Path
    userland: Path
    programs: Path


def wanted_modules(config: Config, row: Row) -> tuple[str, ...]:
    return (*config.disk_modules, *config.work_modules, *row.guest.modules)


def _base(files: GuestFiles, modules: Iterable[str]) -> Cpio:
    cpio = Cpio()
    cpio.file("init", (LAB_DIR / "init").read_bytes(), 0o755)
    cpio.file("bin/busybox", find_program(files.userland, "busybox").read_bytes(), 0o755)
    cpio.char_device("dev/console", 5, 1)
    order = load_order(modules, module_files(files.kernel / "modules"))
    for path in order:
        cpio.file(f"lab/modules/{path.name}", path.read_bytes())
    cpio.file("lab/modules.list", "".join(f"{path.stem}\n" for path in order).encode())
    return cpio


def build_initrd(config: Config, row: Row, files: GuestFiles) -> bytes:
    """The initramfs of the first kernel; for kdump it holds the crash kernel and its initramfs."""
    cpio = _base(files, wanted_modules(config, row))
    for name in PROGRAMS:
        cpio.file(f"sbin/{name}", (files.programs / name).read_bytes(), 0o755)
    if row.crashkernel:
        add_program(cpio, files.userland, "kexec")
        cpio.file("lab/vmlinuz", (files.kernel / "vmlinuz").read_bytes())
        cpio.file("lab/crash.img", _base(files, config.disk_modules).finish())
        cpio.file("lab/crash.cmdline", f"console={row.guest.arch.console} {CRASH_CMDLINE}".encode())
        cpio.file("lab/kexec.options", " ".join(row.guest.arch.kexec).encode())
    return cpio.finish()
