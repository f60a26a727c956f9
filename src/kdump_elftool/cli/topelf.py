"""``kdump-elftool topelf``: the pages that matter, as a core of physical memory."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import DEFAULT_LEVEL, add_common, add_level, pages_json, print_statistics, warn
from kdump_elftool.cli.dump_input import add_dump, open_input, write_result
from kdump_elftool.jobs.pelf import Pelf, plan_pelf

NAME = "topelf"
HELP = "make a smaller core of physical memory with the pages that matter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--oldmem", "--infile"))
    selection = parser.add_argument_group("selection and output")
    add_level(selection)
    selection.add_argument("-o", "--outfile", metavar="FILE", help="the core to write (default: stdout)")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:
        opened = open_input(args, stack, writes_core=True)
        pelf = plan_pelf(opened.dump, opened.request, args.level or DEFAULT_LEVEL)
        pelf, to_stdout = write_result(args, pelf, opened)
    return _report(args, pelf, to_stdout)


def _report(args: argparse.Namespace, pelf: Pelf, to_stdout: bool) -> int:
    stream = sys.stderr if to_stdout else sys.stdout
    partial = pelf.coverage.is_partial
    if partial:
        warn("the dump is not complete; what is missing is absent from the result", args)
    if partial or args.verbose:
        print(f"coverage: {pelf.coverage.line(everything=args.verbose)}", file=sys.stderr)
    if args.json:
        document = {
            "schema": "kdump-elftool/topelf/1",
            "output": args.outfile,
            "release": pelf.release,
            "level": args.level or DEFAULT_LEVEL,
            "segments": pelf.layout.nr_segments,
            **pages_json(pelf.pages),
            "coverage": pelf.coverage.as_json(),
            "warnings": list(pelf.warnings),
        }
        print(json.dumps(document), file=stream)
    elif not args.quiet:
        print_statistics(pelf.pages, stream)
    stream.flush()
    return 1 if args.strict and (partial or pelf.warnings) else 0
