"""``kdump-elftool topelf``: the pages that matter, as a core of physical memory."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kdump_elftool.cli.common import (
    DEFAULT_LEVEL,
    add_common,
    add_level,
    add_seed_machine,
    pages_json,
    print_statistics,
    warn,
)
from kdump_elftool.cli.dump_input import open_input, write_result
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.errors import UsageError
from kdump_elftool.jobs.pelf import Pelf, plan_pelf

if TYPE_CHECKING:
    from kdump_elftool.jobs.kdump_out import KdumpPlan

NAME = "topelf"
HELP = "make a smaller dump of physical memory with the pages that matter"
CODECS = ("zstd", "zlib", "lzo", "snappy", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--oldmem", "--infile"), vmlinux=True)
    selection = parser.add_argument_group("selection and output")
    add_level(selection)
    selection.add_argument(
        "--format",
        choices=("elf", "kdump"),
        default="elf",
        help="what to write: an ELF core, or a kdump-compressed dump as makedumpfile makes them "
        "(default elf)",
    )
    selection.add_argument(
        "--compress",
        choices=CODECS,
        help="how --format kdump compresses pages (default zstd if its package is installed, else zlib)",
    )
    selection.add_argument("-o", "--outfile", metavar="FILE", help="the file to write (default: stdout)")
    add_seed_machine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.compress is not None and args.format != "kdump":
        raise UsageError("an ELF core is never compressed", hint="--compress goes with --format kdump")
    plan: Pelf | KdumpPlan
    with ExitStack() as stack:
        opened = open_input(args, stack, writes_core=True)
        level = args.level or DEFAULT_LEVEL
        if args.format == "kdump":
            # a crash kernel, which writes ELF, need not load it
            from kdump_elftool.cli.kdump_output import write_kdump_dump

            plan, to_stdout = write_kdump_dump(args, opened, level)
        else:
            plan, to_stdout = write_result(args, plan_pelf(opened.dump, opened.request, level), opened)
    return _report(args, plan, to_stdout)


def _report(args: argparse.Namespace, plan: Pelf | KdumpPlan, to_stdout: bool) -> int:
    stream = sys.stderr if to_stdout else sys.stdout
    partial = plan.coverage.is_partial
    if partial:
        warn("the dump is not complete; what is missing is absent from the result", args)
    if partial or args.verbose:
        print(f"coverage: {plan.coverage.line(everything=args.verbose)}", file=sys.stderr)
    if args.json:
        document = {
            "schema": "kdump-elftool/topelf/1",
            "output": args.outfile,
            "release": plan.release,
            "level": args.level or DEFAULT_LEVEL,
            "format": args.format,
            **_shape(plan),
            **pages_json(plan.pages),
            "coverage": plan.coverage.as_json(),
            "warnings": list(plan.warnings),
        }
        print(json.dumps(document), file=stream)
    elif not args.quiet:
        print_statistics(plan.pages, stream)
    stream.flush()
    return 0


def _shape(plan: Pelf | KdumpPlan) -> dict[str, int | str]:
    """What only one of the forms has."""
    if isinstance(plan, Pelf):
        return {"segments": plan.layout.nr_segments}
    return {"compression": plan.codec, "file_bytes": plan.file_size}
