"""``kdump-elftool gdbinit``: where the file is that gdb sources."""

from __future__ import annotations

import argparse
import json

from kdump_elftool.cli.common import add_common
from kdump_elftool.gdbside import gdbinit_path

NAME = "gdbinit"
HELP = "print the path of the file that adds this tool's part to gdb, for its command source"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    path = gdbinit_path()
    print(json.dumps({"schema": "kdump-elftool/gdbinit/1", "path": path}) if args.json else path)
    return 0
