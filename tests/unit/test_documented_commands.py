"""Every command that gdb gets is in the man page and in docs/gdb.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdump_elftool import gdbside

ROOT = Path(__file__).parents[2]
SOURCES = sorted(Path(str(gdbside.__file__)).parent.glob("*.py"))
NAMES = {name for path in SOURCES for name in re.findall(r'^    NAME = "([\w-]+)"$', path.read_text(), re.M)}


@pytest.mark.parametrize("document", ["docs/gdb.md", "docs/man/kdump-elftool.1"])
def test_all_are_there(document: str) -> None:
    text = (
        (ROOT / document)
        .read_text(encoding="utf-8")
        .replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fR", "")
    )
    assert len(NAMES) > 15
    assert [name for name in sorted(NAMES) if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)] == []
