"""The checker of the import rule: it passes on the package and sees what is planted for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.import_rule import ALLOWED, check_tree

SRC = Path(__file__).parents[2] / "src" / "kdump_elftool"


def plant(tmp_path: Path, where: str, source: str) -> list[str]:
    root = tmp_path / "kdump_elftool"
    path = root / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return [str(violation).removeprefix(f"{root}/") for violation in check_tree(root)]


def test_package_keeps_the_rule() -> None:
    assert len(list(SRC.rglob("*.py"))) > 10, "the package was not found"
    assert check_tree(SRC) == []


@pytest.mark.parametrize(
    ("where", "source", "complaint"),
    [
        ("elf/reader.py", "from kdump_elftool.memory import extents\n", "elf must not import memory"),
        ("elf/reader.py", "from ..memory.extents import Extents\n", "elf must not import memory"),
        ("elf/reader.py", "from .. import memory\n", "elf must not import memory"),
        ("elf/a/deep.py", "from ...memory import extents\n", "elf must not import memory"),
        ("elf/reader.py", "import kdump_elftool.cli.main\n", "elf must not import cli"),
        ("formats/x.py", "from kdump_elftool.arch.base import Arch\n", "formats must not import arch"),
        ("arch/x.py", "from kdump_elftool import formats\n", "arch must not import formats"),
        ("errors.py", "from .files import Output\n", "errors must not import files"),
        ("dwarf/x.py", "from ..kernel.btf import read\n", "dwarf must not import kernel"),
        ("jobs/x.py", "from ..cli.common import options\n", "jobs must not import cli"),
        ("plain/x.py", "import numpy\n", "plain runs inside gdb: no numpy there"),
        ("plain/x.py", "from ..addr import PAGE\n", "plain must not import addr"),
        ("cli/x.py", "import requests\n", "requests is no dependency of this package"),
        ("cli/x.py", "import rich\n", "rich is optional: import it where a terminal needs it"),
        (
            "cli/x.py",
            "import elftools\n",
            "pyelftools is optional: only kernel.dwarf_file, kernel.dwarf_unit",
        ),
        ("kernel/x.py", "from elftools.elf import elffile\n", "pyelftools is optional"),
        ("jobs/x.py", "from kdump_elftool.kernel.dwarf_file import Budget\n", "this needs pyelftools"),
        ("kernel/x.py", "from .dwarf_unit import resolve\n", "this needs pyelftools"),
        ("kernel/x.py", "from . import dwarf_unit\n", "this needs pyelftools"),
        ("surprise.py", "import os\n", "surprise is not in the import rule"),
    ],
)
def test_planted_violation_is_found(tmp_path: Path, where: str, source: str, complaint: str) -> None:
    found = plant(tmp_path, where, "import os\n" + source)
    assert len(found) == 1
    assert found[0].startswith(f"{where}:{2 if 'surprise' not in where else 1}: {complaint}")


@pytest.mark.parametrize(
    "late",
    [
        "def f():\n    from ..memory import extents\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..memory import extents\n",
        "try:\n    from ..memory import extents\nexcept ImportError:\n    pass\n",
    ],
)
def test_imports_away_from_the_top_count_too(tmp_path: Path, late: str) -> None:
    assert len(plant(tmp_path, "elf/reader.py", late)) == 1


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("elf/reader.py", "from .structs import Ehdr\nfrom ..errors import KdumpError\n"),
        ("elf/reader.py", "from . import structs\nfrom .. import addr\nimport numpy as np\n"),
        ("kernel/x.py", "from ..arch import walker\nfrom ..formats.base import Dump\n"),
        ("cli/x.py", "from ..jobs import velf\n\ndef f():\n    import rich\n"),
        ("gdbside/x.py", "import gdb\nfrom ..plain import lists\n"),
        ("progress.py", "import sys\n\ndef f():\n    from rich.progress import Progress\n"),
    ],
)
def test_allowed_imports_pass(tmp_path: Path, where: str, source: str) -> None:
    assert plant(tmp_path, where, source) == []


def test_rule_has_no_cycle() -> None:
    """Groups of one rank (errors, addr, safe_text; files, cache, ...) may see each other; stages may not."""
    stages = ["elf", "memory", "arch", "formats", "kernel", "dwarf", "plain", "gdbside", "jobs", "cli"]
    for one in stages:
        for other in stages:
            assert one == other or not (other in ALLOWED[one] and one in ALLOWED[other])
