"""Files of a row: sparse copies, holes for pages of zeros, row.json, the folder put in place at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any

BLOCK = 65536
ZEROS = bytes(BLOCK)


def write_sparse(source: IO[bytes], target: Path) -> None:
    """Copies a stream, leaving holes where whole blocks are zero."""
    with target.open("wb") as output:
        while block := source.read(BLOCK):
            if block == ZEROS[: len(block)]:
                output.seek(len(block), os.SEEK_CUR)
            else:
                output.write(block)
        output.truncate(output.tell())


def dig_holes(path: Path) -> None:
    """Gives pages of zeros back to the file system; a file system that can't is no error."""
    subprocess.run(["fallocate", "--dig-holes", path], capture_output=True, check=False)


def disk_usage(path: Path) -> int:
    """Bytes that a file or a folder takes on disk (holes take none, links are not followed)."""
    if path.is_symlink():
        return 0
    if path.is_dir():
        return sum(disk_usage(entry) for entry in path.iterdir())
    return path.stat().st_blocks * 512


def describe_files(folder: Path) -> dict[str, dict[str, int]]:
    return {
        path.name: {"bytes": path.stat().st_size, "bytes_on_disk": disk_usage(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.is_symlink()
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def install(work: Path, target: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
