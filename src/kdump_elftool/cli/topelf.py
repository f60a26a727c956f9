"""``kdump-elftool topelf``: the pages that matter, as a core of physical memory."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import (
    DEFAULT_LEVEL,
    add_common,
    add_level,
    number,
    one_input,
    pages_json,
    print_statistics,
    read_extra,
    warn,
)
from kdump_elftool.elf.writer import write_core
from kdump_elftool.files import InputFile, open_output
from kdump_elftool.formats import FORMATS, open_dump
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.jobs.pelf import Pelf, plan_pelf
from kdump_elftool.progress import progress

NAME = "topelf"
HELP = "make a smaller core of physical memory with the pages that matter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    source = parser.add_argument_group("input")
    source.add_argument("dump", nargs="*", metavar="DUMP", help="the dump to read")
    source.add_argument(
        "-i",
        "--oldmem",
        "--infile",
        dest="infile",
        action="append",
        metavar="FILE",
        help="the same (- is stdin)",
    )
    source.add_argument(
        "-v", "--vmcore", metavar="FILE", help="the dump to read when there is no -i (default /proc/vmcore)"
    )
    source.add_argument(
        "-I",
        "--intype",
        choices=("auto", *(known.name for known in FORMATS)),
        default="auto",
        help="format of the dump (default: found from its content)",
    )
    source.add_argument(
        "--zero-excluded",
        action="store_true",
        help="read pages that an ELF dump leaves out as zeros: right only if zero pages alone were left out",
    )
    kernel = parser.add_argument_group("kernel")
    kernel.add_argument(
        "-e", "--extravminfo", metavar="FILE", help="VMCOREINFO lines that override the dump's"
    )
    kernel.add_argument(
        "-P", "--physpgd", metavar="PGD", type=number, help="physical address of the kernel's top page table"
    )
    selection = parser.add_argument_group("selection and output")
    add_level(selection)
    selection.add_argument("-o", "--outfile", metavar="FILE", help="the core to write (default: stdout)")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:
        file = stack.enter_context(InputFile.open(one_input(args)))
        inputs = [file]
        extra = None
        if args.extravminfo is not None:
            inputs.append(stack.enter_context(InputFile.open(args.extravminfo)))
            extra = read_extra(inputs[-1])
        dump = open_dump(file, args.intype, OpenOptions(zero_excluded=args.zero_excluded))
        request = KernelRequest(extra=extra, pgt_root=args.physpgd, force=args.force)
        pelf = plan_pelf(dump, request, args.level or DEFAULT_LEVEL)
        for message in pelf.warnings:
            warn(message, args)
        with open_output(args.outfile, inputs) as out:
            shown = not (args.no_progress or args.quiet)
            with progress("writing", pelf.layout.file_size, enabled=shown) as advance:
                write_core(pelf.layout, dump.memory, out, advance)
            to_stdout = not out.is_file and out.is_stdout()
            out.commit()
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
