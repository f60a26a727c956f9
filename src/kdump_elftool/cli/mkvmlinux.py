"""``kdump-elftool mkvmlinux``: a vmlinux for debuggers, out of the dump alone."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import add_dump, open_input
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile, open_output, refuse_terminal
from kdump_elftool.jobs.debug_files import where_lines_are
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.mkvmlinux import MadeVmlinux, make_vmlinux
from kdump_elftool.kernel.btf import MAX_SIZE

NAME = "mkvmlinux"
HELP = "make a vmlinux with symbols and types for gdb, out of the dump alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser)
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
        help="the kernel's BTF, as /sys/kernel/btf/vmlinux has it (default: that in the dump)",
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
    with ExitStack() as stack:
        opened = open_input(args, stack)
        types = None
        if args.btf is not None:
            file = stack.enter_context(InputFile.open(args.btf))
            types = _read(file)
            opened.files.append(file)
        kernel = open_kernel(opened.dump, opened.request)
        for message in kernel.warnings:
            warn(message, args)
        made = make_vmlinux(
            opened.dump,
            kernel,
            btf=types,
            link_addresses=args.link_addresses,
            lines_of=kernel.vmlinux,
        )
        with open_output(args.outfile, opened.files) as out:
            out.write_at(0, made.data)
            out.finish(len(made.data))
            to_stdout = not out.is_file and out.is_stdout()
            out.commit()
        if kernel.vmlinux is None and not args.quiet:
            print(where_lines_are(kernel.info.build_id), file=sys.stderr)
    return _report(args, made, to_stdout)


def _read(file: InputFile) -> bytes:
    if file.size > MAX_SIZE:
        raise KdumpError(f"{file.path} is {file.size} bytes: no BTF is that large")
    return file.read_at(0, file.size)


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
    return 1 if args.strict and made.missing else 0
