"""What runs in gdb's own Python: the standard library only, in the syntax of Python 3.9."""

from __future__ import annotations

from pathlib import Path


def gdbinit_path() -> str:
    """The file that gdb sources, which lies here whatever links lead to it."""
    return str(Path(__path__[0]).resolve() / "kdump_gdbinit")
