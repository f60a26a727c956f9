"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TextIO

from kdump_elftool.addr import parse_number
from kdump_elftool.errors import KdumpError, UsageError
from kdump_elftool.files import STDIO, InputFile
from kdump_elftool.jobs.selection import Pages
from kdump_elftool.kernel.pages import LEVELS
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, parse

DEFAULT_LEVEL = "kernel"
DEFAULT_VMCORE = "/proc/vmcore"
_MAX_EXTRA = 1 << 20


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options every command has."""
    group = parser.add_argument_group("diagnostics")
    group.add_argument("--verbose", action="store_true", help="show every automatic choice and its source")
    group.add_argument("-q", "--quiet", action="store_true", help="no warnings, no statistics")
    group.add_argument(
        "-d",
        "--debug",
        action="count",
        default=0,
        help="debug messages, tracebacks (repeatable)",
    )
    group.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    group.add_argument("--strict", action="store_true", help="exit 1 when anything was lost or warned about")
    group.add_argument("--force", action="store_true", help="go on although files do not match")
    group.add_argument("--no-progress", action="store_true", help="no progress display")


def add_level(group: argparse._ArgumentGroup) -> None:
    """``-l``: which pages to keep."""
    group.add_argument(
        "-l",
        "--level",
        choices=tuple(LEVELS),
        help="which pages to keep: all; inuse drops free ones; user drops free and cache; cache drops free "
        f"and user; kernel drops all three (default {DEFAULT_LEVEL}; user with another page table by -P)",
    )


def add_modules(group: argparse._ArgumentGroup) -> None:
    """``--modules``: where the files of modules are."""
    group.add_argument(
        "--modules",
        metavar="DIR",
        action="append",
        help="search this directory for the files of the kernel's modules (repeatable; default: where "
        "distributions put them, and beside the vmlinux)",
    )


def add_seed_machine(parser: argparse.ArgumentParser) -> None:
    """The original tool had to be told of what machine a migration stream is."""
    group = parser.add_argument_group("accepted from earlier versions")
    for short, bits in (("-8", 64), ("-4", 32)):
        group.add_argument(
            short,
            f"--m{bits}",
            action="store_true",
            help=f"no longer needed: a migration stream says whether its machine is of {bits} bits",
        )
    # argparse would take every negative number for an option now; these two it knows by name
    parser._has_negative_number_optionals.clear()


def print_statistics(pages: Pages, stream: TextIO) -> None:
    """The original tool's statistics; lines it did not have appear when there is something to say."""
    print(f"Skipped {pages.not_present} not present pages", file=stream)
    for category in ("free", "cache", "user", "poison"):
        print(f"        {getattr(pages, category)} {category} pages", file=stream)
    if pages.offline:
        print(f"        {pages.offline} offline pages", file=stream)
    print(f"Accepted {pages.accepted} pages", file=stream)


def pages_json(pages: Pages) -> dict[str, int]:
    """The same for ``--json``."""
    return {f"{name}_pages": getattr(pages, name) for name in Pages.__dataclass_fields__}


def setup_logging(args: argparse.Namespace) -> None:
    """Log lines go to stderr: one a stage with --verbose, everything with --debug."""
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    if args.quiet and level == logging.WARNING:
        level = logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("kdump_elftool")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


def number(text: str) -> int:
    """argparse type of an address or count: 0x hexadecimal, else decimal."""
    try:
        return parse_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number (0x for hexadecimal)") from None


def hexadecimal(text: str) -> int:
    """argparse type of an address that is hexadecimal with or without 0x."""
    try:
        return parse_number("0x" + text.strip().lower().removeprefix("0x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no hexadecimal number of 64 bits") from None


def read_extra(file: InputFile) -> VmcoreInfo:
    """The ``-e`` file: VMCOREINFO lines that override the dump's."""
    if file.size > _MAX_EXTRA:
        raise KdumpError(f"{file.path} is {file.size} bytes: no vminfo file is that large")
    info = parse(file.read_at(0, file.size), f"-e {file.path}")
    if not info.values:
        raise KdumpError(
            f"{file.path} has no KEY=value line", hint="-e wants lines such as SYMBOL(x)=ffff..."
        )
    return info


def all_inputs(args: argparse.Namespace) -> list[str]:
    """The files named by ``-i`` or position, else ``-v``; /proc/vmcore when none is.  Raises UsageError."""
    named = [*(args.infile or []), *(args.dump or [])]
    if named and args.vmcore is not None:
        other = "-i" if args.infile else "DUMP"
        raise UsageError(
            f"-v and {other} both name a dump",
            hint="leave out one; with -I oldmem -v has the headers and -i the memory",
        )
    if args.vmcore is not None:
        named.append(args.vmcore)
    if STDIO in named and sys.stdin.isatty():
        raise UsageError("the dump cannot come from a terminal", hint="name the dump file")
    return named or [DEFAULT_VMCORE]


def one_input(args: argparse.Namespace) -> str:
    """As :func:`all_inputs`, where a set of files makes no sense."""
    named = all_inputs(args)
    if len(named) > 1:
        raise UsageError(f"one file is read here, not {len(named)}")
    return named[0]


def warn(message: str, args: argparse.Namespace) -> None:
    """One ``warning:`` line on stderr unless --quiet; with --strict main() makes a failure of it."""
    args.warned = True
    if not args.quiet:
        print(f"warning: {message}", file=sys.stderr)
