"""Programs for guests that only some scenarios have: one source each, compiled once per version of it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from lab.config import LabError


def compiled(source: Path, compiler: str, folder: Path) -> bytes:
    """The static program; kept in ``folder``, which is that of the guest's compiler."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    output = folder / f"{source.stem}-{digest[:16]}"
    if not output.exists():
        temporary = output.with_suffix(".tmp")
        argv = [compiler, "-O1", "-Wall", "-static", "-o", str(temporary), str(source)]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        if result.returncode:
            raise LabError(f"{' '.join(argv)} failed:\n{result.stderr}")
        temporary.rename(output)
    return output.read_bytes()
