"""``kdump-elftool mkvmlinux``: a vmlinux for debuggers, out of the dump or a kernel image alone."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.errors import UsageError
from kdump_elftool.files import InputFile, open_output, refuse_terminal
from kdump_elftool.jobs.debug_files import where_lines_are
from kdump_elftool.jobs.given_types import GivenTypes, given_types
from kdump_elftool.jobs.image_vmlinux import make_from_image
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.mkvmlinux import MadeVmlinux, make_vmlinux

NAME = "mkvmlinux"
HELP = "make a vmlinux with symbols and types for gdb, out of the dump or a kernel image alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser)
    image = parser.add_argument_group("input instead of a dump")
    image.add_argument(
        "--from-image",
        metavar="FILE",
        help="a kernel image (vmlinuz, bzImage, zImage, Image) in place of DUMP: the addresses are those the "
        "kernel was linked for, and there are no modules",
    )
    output = parser.add_argument_group("selection and output")
    output.add_argument("-o", "--outfile", metavar="FILE", help="the file to write (default: stdout)")
    output.add_argument(
        "--link-addresses",
        action="store_true",
        help="the addresses the kernel was linked for, not those where it ran: for drgn, which adds the "
        "KASLR offset itself",
    )
    output.add_argument(
        "--btf",
        metavar="FILE",
        action="append",
        help="types (BTF) of the kernel, a copy of /sys/kernel/btf/vmlinux or a vmlinux with a section .BTF, "
        "or of a module, NAME or NAME.ko (repeatable; default: those in the dump)",
    )
    lines = parser.add_argument_group("line numbers, which no dump holds")
    where = lines.add_mutually_exclusive_group()
    where.add_argument(
        "--from-vmlinux",
        dest="vmlinux",
        metavar="VMLINUX",
        help="the kernel's vmlinux of the debug package, or a directory in which it is found by its build "
        "id: the line numbers are taken from it",
    )
    where.add_argument(
        "--debuginfod",
        action="store_true",
        help="the same, of the vmlinux that debuginfod has fetched or that a server of DEBUGINFOD_URLS has",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    refuse_terminal(args.outfile)
    if args.from_image is not None and (args.vmlinux is not None or args.debuginfod):
        raise UsageError("line numbers are added to what is made of a dump, not of --from-image")
    if args.from_image is not None and args.dump:
        raise UsageError("a dump and --from-image: one of them is read", hint="leave out the other")
    with ExitStack() as stack:
        files = [stack.enter_context(InputFile.open(path)) for path in args.btf or ()]
        types = given_types(files)
        if args.from_image is not None:
            files.append(stack.enter_context(InputFile.open(args.from_image)))
            made = make_from_image(files[-1], given=types, link_addresses=args.link_addresses)
        else:
            made = _of_dump(args, stack, types, files)
        with open_output(args.outfile, files) as out:
            out.write_at(0, made.data)
            out.finish(len(made.data))
            to_stdout = out.is_stdout()
            out.commit()
    return _report(args, made, to_stdout)


def _of_dump(
    args: argparse.Namespace, stack: ExitStack, types: GivenTypes, files: list[InputFile]
) -> MadeVmlinux:
    """Of the dump that is named; what is opened for it is added to ``files``."""
    opened = open_input(args, stack)
    kernel = open_kernel(opened.dump, opened.request)
    for message in kernel.warnings:
        warn(message, args)
    made = make_vmlinux(
        opened.dump, kernel, given=types, link_addresses=args.link_addresses, lines_of=kernel.vmlinux
    )
    files += opened.files
    if kernel.vmlinux is None and not args.quiet:
        print(where_lines_are(kernel.info.build_id), file=sys.stderr)
    return made


def _report(args: argparse.Namespace, made: MadeVmlinux, to_stdout: bool) -> int:
    stream = sys.stderr if to_stdout else sys.stdout
    for message in made.missing:
        warn(message, args)
    types, functions, variables = (
        sum(getattr(unit, what) for unit in made.units) for what in ("types", "functions", "variables")
    )
    counts = {"symbols": made.symbols, "types": types, "functions": functions, "variables": variables}
    if made.sources:
        counts["source_files"] = made.sources
    if args.json:
        document = {
            "schema": "kdump-elftool/mkvmlinux/1",
            "output": args.outfile,
            "release": made.release,
            "bytes": len(made.data),
            **counts,
            "warnings": list(made.missing),
        }
        print(json.dumps(document), file=stream)
    elif not args.quiet:
        print(", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()), file=stream)
    stream.flush()
    return 0
