"""Expressions and names of types are C's here, whatever language gdb has.

gdb's language is that of the selected frame's code unless the user sets one, and decides how expressions are
read, which types have short names, which symbols are found and how values look: in Rust there is no
``unsigned long``, no ``->``, and no symbol without debugging information.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gdb

_WANTED = "c"


@contextmanager
def in_c() -> Iterator[None]:
    """gdb's language is C; afterwards it is as the user has it, by the frame that is then selected."""
    before = str(gdb.parameter("language"))
    if before == _WANTED:
        yield
        return
    _set(_WANTED)
    try:
        yield
    finally:
        _set(before)


def _set(language: str) -> None:
    """Unheard: gdb may warn that the selected frame's code is in another one."""
    gdb.execute(f"set language {language}", to_string=True)
