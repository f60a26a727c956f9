"""Text that came out of a dump, made safe for a terminal, for JSON and for a gdb script.

The only escape in the project: a dump comes from a broken or hostile machine, so its names and
log lines may hold terminal escapes, newlines, quotes or bytes that are no text at all.
"""

from __future__ import annotations

import os
import re
import shlex

_UNSAFE = re.compile(r"[^\x20-\x7e]|\\")
_SPECIAL = re.compile(rb"[^A-Za-z0-9/._-]")
_UNSAFE_IN_LOG = re.compile(r"[^\x20-\x7e\t]")


def printable(value: bytes | str, limit: int = 4096) -> str:
    r"""``value`` as one line of printable ASCII, everything else as ``\xNN``; cut at ``limit``."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    cut = text[:limit]
    safe = _UNSAFE.sub(_escape, cut)
    return safe + "..." if len(text) > limit else safe


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shell_word(text: str) -> str:
    r"""``text``, a file's name, as one word for a shell to copy: what is no printable ASCII as ``$'\NNN'``.

    bash, zsh and ksh know that, and POSIX since 2024.
    """
    if not _UNSAFE.search(text.replace("\\", "")):
        return shlex.quote(text)
    escaped = _SPECIAL.sub(lambda match: f"\\{match[0][0]:03o}".encode(), os.fsencode(text))
    return f"$'{escaped.decode()}'"


def log_text(value: bytes) -> str:
    r"""A line of the kernel's log as ``dmesg`` shows it: tabs and backslashes stay, else ``\xNN``."""
    return _UNSAFE_IN_LOG.sub(_escape, value.decode("latin-1"))
