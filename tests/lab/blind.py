"""The command line with a dump's own BTF and kallsyms hidden: as if the kernel were built without them."""

from __future__ import annotations

import sys

from kdump_elftool.cli.main import main
from kdump_elftool.jobs import knowledge


def nothing(*_args: object) -> None:
    """There are none in this dump."""


knowledge.open_btf = nothing
knowledge.open_kallsyms = nothing
sys.exit(main(sys.argv[1:]))
