"""``kdump-elftool dmesg``: the kernel's log out of a dump."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli import log_lines
from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.errors import KdumpError, UsageError
from kdump_elftool.jobs.dmesg import DumpLog, dump_log
from kdump_elftool.jobs.kernel import Kernel, open_kernel
from kdump_elftool.plain.printk import Record, lines
from kdump_elftool.safe_text import printable

NAME = "dmesg"
HELP = "print the kernel's log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: those of dmesg(1) where it has one."""
    add_dump(parser, vmlinux=True)
    output = parser.add_argument_group("selection and output")
    output.add_argument("-r", "--raw", action="store_true", help="facility and level as <N> before each line")
    output.add_argument("-x", "--decode", action="store_true", help="facility and level as words")
    output.add_argument("-T", "--ctime", action="store_true", help="the time of day (UTC), not since boot")
    output.add_argument("-t", "--notime", action="store_true", help="no time stamps")
    output.add_argument(
        "-l",
        "--level",
        metavar="LIST",
        type=log_lines.levels,
        help="only these levels, by comma; err+ means err and graver, +err means err and milder",
    )
    output.add_argument(
        "-f", "--facility", metavar="LIST", type=log_lines.facilities, help="only these facilities, by comma"
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    _check(args)
    with ExitStack() as stack:
        opened = open_input(args, stack)
        dump, request = opened.dump, opened.request
        kernel = open_kernel(dump, request)
        found = dump_log(dump, kernel)
    warnings = [*kernel.warnings, *filter(None, [found.warning()])]
    for message in warnings:
        warn(message, args)
    if args.verbose:
        _print_sources(found)
    if args.json:
        print(json.dumps(_as_json(args, kernel, found, warnings)))
    else:
        _print_lines(args, found)
    sys.stdout.flush()
    return 0


def _check(args: argparse.Namespace) -> None:
    for first, others in (("raw", ("decode", "ctime", "notime")), ("ctime", ("notime",))):
        for other in others:
            if getattr(args, first) and getattr(args, other):
                raise UsageError(f"--{first} and --{other} exclude each other", hint="give one of them")


def _print_lines(args: argparse.Namespace, found: DumpLog) -> None:
    if args.ctime and found.boot is None and any(rec.ts_nsec is not None for rec in found.log.records):
        raise KdumpError(
            "-T: nothing in this dump tells the time of day: no CRASHTIME in VMCOREINFO, and no message "
            "in the log that the clock was set at boot",
            hint="without -T times are since boot",
        )
    show = log_lines.formatter(
        raw=args.raw, decode=args.decode, time=not args.notime, boot=found.boot if args.ctime else None
    )
    for line in lines(found.log):
        if _wanted(args, line.record):
            print(show(line))


def _wanted(args: argparse.Namespace, record: Record) -> bool:
    return (args.level is None or record.level in args.level) and (
        args.facility is None or record.facility in args.facility
    )


def _print_sources(found: DumpLog) -> None:
    print(f"log: {len(found.log.records)} records, kept as {found.log.form}", file=sys.stderr)
    source = found.boot.source if found.boot else "not known"
    print(f"time of day: {source}", file=sys.stderr)


def _as_json(
    args: argparse.Namespace, kernel: Kernel, found: DumpLog, warnings: list[str]
) -> dict[str, object]:
    records = [record for record in found.log.records if _wanted(args, record)]
    return {
        "schema": "kdump-elftool/dmesg/1",
        "release": kernel.identity.release,
        "form": found.log.form,
        "time_source": found.boot.source if found.boot else None,
        "records": [log_lines.as_json(record, found.boot) for record in records],
        "skipped": found.log.skipped,
        "warnings": [printable(message) for message in warnings],
    }
