"""The tree that puts kdump-elftool into a crash initramfs: our wheel, numpy and Python, made by
contrib/initramfs-hook as users would make it.

Both the environment (numpy as pinned in constraints.txt) and the tree are cached; the tree is made anew
when the package's sources or the hook changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.collect import disk_usage
from lab.config import LAB_DIR, LabError, cache_dir, say

ROOT = LAB_DIR.parent
HOOK = ROOT / "contrib" / "initramfs-hook"
REQUIRED = ("numpy", "hatchling")


def tool_hash(root: Path = ROOT) -> str:
    """Changes when the tree would come out differently."""
    digest = hashlib.sha256(sys.version.encode())
    sources = [path for path in (root / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in [*sorted(sources), root / "pyproject.toml", root / "contrib" / "initramfs-hook"]:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    digest.update("".join(pins(root)).encode())
    return digest.hexdigest()


def pins(root: Path = ROOT) -> list[str]:
    """The pinned versions of what the environment needs, as pip takes them."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in REQUIRED]


def _run(*argv: str | Path) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{' '.join(map(str, argv))} failed:\n{(result.stdout + result.stderr).strip()}")


def _ensure_environment(folder: Path) -> Path:
    """An environment with numpy and what builds our wheel; returns its interpreter."""
    wanted = pins()
    key = hashlib.sha256("".join([sys.version, sys.base_prefix, *wanted]).encode()).hexdigest()
    environment = folder / f"env-{key[:16]}"
    if not (environment / "done").exists():
        started = time.monotonic()
        shutil.rmtree(environment, ignore_errors=True)
        _run(sys.executable, "-m", "venv", environment)
        _run(environment / "bin" / "python", "-m", "pip", "install", "-q", *wanted)
        (environment / "done").touch()
        size, seconds = disk_usage(environment), time.monotonic() - started
        say(f"downloaded {size / 1e6:.0f} MB in {seconds:.1f} s (numpy)")
    return environment / "bin" / "python"


def ensure_tool() -> Path:
    """The folder to put into the initramfs, as it is."""
    folder = cache_dir() / "tool"
    folder.mkdir(exist_ok=True)
    tree = folder / f"tree-{tool_hash()[:16]}"
    if tree.exists():
        return tree
    python = _ensure_environment(folder)
    for old in folder.glob("tree-*"):
        shutil.rmtree(old, ignore_errors=True)
    # not editable: what is packed is what the wheel holds
    install = ("install", "-q", "--no-deps", "--no-build-isolation", "--force-reinstall", ROOT)
    _run(python, "-m", "pip", *install)
    temporary = tree.with_name("tree-new")
    shutil.rmtree(temporary, ignore_errors=True)
    _run("env", f"KDUMP_ELFTOOL_PYTHON={python}", HOOK, temporary)
    temporary.rename(tree)
    return tree
