"""Puts kdump-elftool, with the Python and the numpy it needs, into the folder an initramfs is made of.

Run by contrib/initramfs-hook as ``python3 -m kdump_elftool.jobs.initramfs FOLDER``; the Python that runs
it, of the system or of a virtual environment, is the one that is copied.  Modules are stored compiled,
without source: in the crash kernel every byte of the initramfs is memory, and compiling at start would
take longer than the dump.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

HOME = "usr/lib/kdump-elftool"
LAUNCHER = f"""#!/bin/sh
# -S -s: nothing but what lies here; one thread: a crash kernel has one CPU and little memory
PYTHONHOME=/{HOME} PYTHONPATH=/{HOME}/packages PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
export PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE OPENBLAS_NUM_THREADS
exec /{HOME}/bin/python3 -S -s -P -m kdump_elftool "$@"
"""

# Parts of the standard library that neither kdump-elftool nor numpy's core imports: its tests, other
# user interfaces, networks, data bases, and whatever would bring large shared libraries along.
STDLIB_LEFT_OUT = set(
    """__phello__ asyncio cgi cgitb curses dbm distutils doctest ensurepip ftplib http idlelib imaplib
    lib2to3 mailbox msilib multiprocessing nntplib optparse pdb pip poplib pydoc pydoc_data site-packages
    dist-packages smtplib sqlite3 ssl tarfile telnetlib test this tkinter turtle turtledemo unittest venv
    webbrowser wsgiref xml xmlrpc zoneinfo""".split()
)
EXTENSIONS_LEFT_OUT = re.compile(
    r"_(asyncio|codecs_\w+|crypt|ctypes_test|curses\w*|dbm|decimal|elementtree|gdbm|hashlib|lsprof"
    r"|multibytecodec|multiprocessing|sqlite3|ssl|test\w*|tkinter|uuid|xx\w+|zoneinfo)|audioop|nis"
    r"|ossaudiodev|pyexpat|readline|xx\w+|spwd|unicodedata"
)
NUMPY_LEFT_OUT = set("conftest distutils doc f2py fft polynomial random testing _pyinstaller".split())
NUMPY_EXTENSIONS_LEFT_OUT = re.compile(r"_simd|\w*_tests")
# what reads DWARF (by pyelftools) or asks a server, of which topelf does neither
OURS_LEFT_OUT = {"dwarf_file", "dwarf_unit", "debuginfod"}
EVERYWHERE_LEFT_OUT = {"__pycache__", "tests", "include", "pkgconfig"}
FINAL_LOADER = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)


def stem(path: Path) -> str:
    """A module's name: of its source, its extension module or its package folder."""
    return path.name.split(".")[0]


def choose_stdlib(path: Path) -> bool:
    """Whether an entry of the standard library is taken."""
    if path.suffix == ".so":
        return not EXTENSIONS_LEFT_OUT.fullmatch(stem(path))
    return stem(path) not in STDLIB_LEFT_OUT and not path.name.startswith("config-")


def choose_numpy(path: Path) -> bool:
    """Whether an entry of numpy is taken."""
    if path.suffix == ".so":
        return not NUMPY_EXTENSIONS_LEFT_OUT.fullmatch(stem(path))
    # the name of a part left out may well be that of a module deeper down
    return path.parent.name != "numpy" or stem(path) not in NUMPY_LEFT_OUT


def choose_ours(path: Path) -> bool:
    """Whether a module of kdump-elftool is taken."""
    return stem(path) not in OURS_LEFT_OUT


def choose_all(_path: Path) -> bool:
    """Every entry is taken."""
    return True


def copy_modules(source: Path, target: Path, choose: Callable[[Path], bool]) -> Iterator[Path]:
    """Copies a folder of modules, Python compiled; yields the shared objects written."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name in EVERYWHERE_LEFT_OUT or not choose(path):
            continue
        if path.is_dir():
            yield from copy_modules(path, target / path.name, choose)
        elif path.suffix == ".py":
            compiled = target / f"{path.stem}.pyc"
            py_compile.compile(
                str(path),
                cfile=str(compiled),
                dfile=path.name,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        elif ".so" in path.suffixes:
            shutil.copyfile(path, target / path.name)
            yield target / path.name


def copy_stdlib(home: Path) -> list[Path]:
    """The interpreter and its standard library; returns the objects among them."""
    (home / "bin").mkdir(parents=True, exist_ok=True)
    program = home / "bin" / "python3"
    shutil.copyfile(os.path.realpath(sys.executable), program)
    program.chmod(0o755)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = home / "lib" / name
    # by this folder the interpreter knows its home
    (target / "lib-dynload").mkdir(parents=True, exist_ok=True)
    return [program, *copy_modules(Path(sysconfig.get_path("stdlib")), target, choose_stdlib)]


def folder_of(package: str) -> Path:
    """Where a package lies; ends the program when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"initramfs-hook: error: {sys.executable} has no {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def copy_packages(packages: Path) -> list[Path]:
    """numpy and kdump-elftool; returns the objects among them."""
    numpy = folder_of("numpy")
    objects = list(copy_modules(numpy, packages / "numpy", choose_numpy))
    bundled = numpy.with_name("numpy.libs")  # of the wheels on PyPI; distributions link their own
    if bundled.is_dir():
        objects += copy_modules(bundled, packages / "numpy.libs", choose_all)
    list(copy_modules(folder_of("kdump_elftool"), packages / "kdump_elftool", choose_ours))
    distribution = importlib.metadata.distribution("kdump-elftool")
    # the program asks for its own version
    record = packages / f"kdump_elftool-{distribution.version}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(distribution.read_text("METADATA") or "", encoding="utf-8")
    return objects


def linked(program: Path) -> list[Path]:
    """The shared libraries a program loads at start, its loader included, as ldd(1) finds them."""
    result = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if "not found" in result.stdout:
        raise SystemExit(f"initramfs-hook: error: libraries of {program} are missing:\n{result.stdout}")
    return [Path(name) for name in FINAL_LOADER.findall(result.stdout)]


def copy_libraries(objects: list[Path], root: Path) -> list[Path]:
    """Libraries outside the tree go to the same places inside it; returns those that were not there."""
    copied = []
    for library in sorted({path for program in objects for path in linked(program)}):
        if library.resolve().is_relative_to(root.resolve()):
            continue
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(library, target)
            target.chmod(0o755)
            copied.append(target)
    return copied


def strip(objects: list[Path]) -> None:
    """Removes debugging information, where binutils is there to do it (self-built Pythons are full of it)."""
    program = shutil.which("strip")
    # the libraries in numpy.libs are stripped, and were edited in a way that strip(1) does not keep
    chosen = [path for path in objects if path.parent.name != "numpy.libs"]
    if program:
        subprocess.run([program, "--strip-unneeded", *chosen], check=True)


def check(home: Path) -> None:
    """Imports every module of ours from the copy alone: fails when too much was left out.

    What runs inside gdb, and needs its module, is no part of a crash kernel.
    """
    code = (
        "import pkgutil, sys, kdump_elftool as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'kdump_elftool.'):\n"
        "    inside_gdb = module.name.startswith('kdump_elftool.gdbside.')\n"
        "    if not inside_gdb and not module.name.endswith('__main__'): __import__(module.name)\n"
        "import importlib.metadata\n"
        "importlib.metadata.version('kdump-elftool')\n"
        "assert all(path.startswith(sys.argv[1]) for path in sys.path), sys.path\n"
    )
    environment = {"PYTHONHOME": str(home), "PYTHONPATH": str(home / "packages"), "PATH": os.defpath}
    argv = [str(home / "bin" / "python3"), "-S", "-s", "-P", "-B", "-c", code, str(home)]
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"initramfs-hook: error: the copy does not run:\n{result.stderr}")


def size_of(folder: Path) -> int:
    """Bytes of the regular files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def fill(root: Path) -> None:
    """Makes /usr/bin/kdump-elftool of an initramfs that is being put together in ``root``."""
    home = root / HOME
    shutil.rmtree(home, ignore_errors=True)
    before = size_of(root)
    objects = copy_stdlib(home) + copy_packages(home / "packages")
    strip(objects + copy_libraries(objects, root))
    check(home)
    launcher = root / "usr/bin/kdump-elftool"
    launcher.parent.mkdir(parents=True, exist_ok=True)
    launcher.write_text(LAUNCHER, encoding="utf-8")
    launcher.chmod(0o755)
    added = size_of(root) - before
    sys.stderr.write(f"initramfs-hook: kdump-elftool takes {added / 1e6:.1f} MB, unpacked\n")


def main() -> int:
    """Fill the folder that is the only argument."""
    if len(sys.argv) != 2 or not sys.argv[1]:
        raise SystemExit("usage: initramfs-hook FOLDER (or DESTDIR in the environment)")
    fill(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
