"""Command line of the lab: `python3 -m lab COMMAND`, run from the root of the repository."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from types import FrameType

from lab.built import BUILD_PACKAGES
from lab.config import SETS, LabError, Row, load_config, row_dir
from lab.matrix import Lab, describe, read_row
from lab.roots import ensure_root
from lab.support import test_rows

HOST_PACKAGES = (
    "binutils",
    "debootstrap",
    "gdb",
    "xz-utils",
    "util-linux",
)
SOON_SECONDS = 0.01
JUDGES = ("elfutils", "lldb", "llvm")
"""Whose opinion of a made vmlinux the tests of the set matrix ask for, besides binutils' and gdb's."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="real kernels, crashed in QEMU")
    commands = parser.add_subparsers(dest="command", required=True)
    packages = commands.add_parser("packages-host", help="Debian packages this machine needs")
    ensure = commands.add_parser("ensure", help="make the rows that are missing")
    ensure.add_argument("--remake", action="store_true", help="make them anew")
    listing = commands.add_parser("list", help="rows and whether they are made")
    listing.add_argument("--json", action="store_true")
    tests = commands.add_parser("test", help="make rows, test each, write docs/support-matrix.md")
    tests.add_argument("--keep", action="store_true", help="keep the dumps of rows that passed")
    for command in (packages, ensure, listing, tests):
        command.add_argument("--set", choices=SETS, help="rows of this set only (default: all)")
        command.add_argument("rows", nargs="*", metavar="ROW_PATTERN", help="also by the variable ROWS")
    commands.add_parser(
        "sample", help="cut a dump to the one in sample/ (needs the package: .venv/bin/python)"
    )
    path = commands.add_parser("path", help="folder of a row")
    path.add_argument("row")
    root = commands.add_parser("root", help="make a newer Debian for its tools, print its folder")
    root.add_argument("suite", choices=sorted(load_config().root_packages))
    root.add_argument("--remake", action="store_true", help="make it anew")
    return parser


def _rows(args: argparse.Namespace) -> list[Row]:
    patterns = args.rows or os.environ.get("ROWS", "").replace(",", " ").split()
    rows = load_config().select(args.set, patterns)
    if not rows:
        raise LabError(f"no row matches {' '.join(patterns)}")
    return rows


def host_packages(rows: list[Row], *, with_judges: bool = False) -> list[str]:
    """What this machine needs to make those rows; and to have all of the set matrix judged."""
    of_guests = {name for row in rows for name in row.guest.arch.packages}
    of_guests |= {*JUDGES} if with_judges else set()
    if any(row.guest.fragments or row.guest.arch.built_userland for row in rows):
        of_guests |= {*BUILD_PACKAGES}
    return [*HOST_PACKAGES, *sorted(of_guests - {*HOST_PACKAGES})]


def _list(args: argparse.Namespace) -> None:
    rows = describe(_rows(args))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = f"{row['release']} {row['bytes_on_disk'] / 1e6:.0f} MB" if row["made"] else "not made"
        print(f"{row['row']:26} {','.join(row['sets']):16} {state:40} {row['about']}")


def _path(args: argparse.Namespace) -> None:
    for row in load_config().rows:
        if row.name == args.row:
            if not read_row(row):
                raise LabError(f"{row.name} is not made yet: python3 -m lab ensure {row.name}")
            print(row_dir(row))
            return
    raise LabError(f"no row {args.row}")


def run(args: argparse.Namespace) -> int:
    if args.command == "packages-host":
        print(" ".join(host_packages(_rows(args), with_judges=args.set == "matrix")))
    elif args.command == "ensure":
        Lab(load_config()).ensure(_rows(args), args.remake)
    elif args.command == "list":
        _list(args)
    elif args.command == "test":
        return min(test_rows(_rows(args), args.keep), 1)
    elif args.command == "path":
        _path(args)
    elif args.command == "sample":
        # the only part of the lab that needs the package
        from lab.sample import make_sample

        make_sample()
    else:
        print(ensure_root(load_config(), args.suite, args.remake))
    return 0


def _unwind_at(*signals: signal.Signals) -> None:
    """Whoever ends this program ends its QEMU: with-blocks do that, and the default action passes them by."""
    came: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        came.append(number)
        while frame is not None:
            if frame.f_code.co_name == "_internal_poll":
                # of subprocess: its lock would stay taken, and the with-block wait for ever
                signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS)
                return
            frame = frame.f_back
        sys.exit(128 + came[0])

    signal.signal(signal.SIGALRM, unwind)
    for number in signals:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, unwind)


def main() -> int:
    _unwind_at(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    try:
        return run(build_parser().parse_args())
    except LabError as error:
        print(f"lab: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
