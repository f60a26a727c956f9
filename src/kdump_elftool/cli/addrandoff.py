"""``kdump-elftool addrandoff``: put the KASLR offset into a core that lacks it."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import add_common, one_input, warn
from kdump_elftool.cli.dump_input import kernel_request
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.elf.rewrite import ChangedFile
from kdump_elftool.errors import UnsupportedError, UsageError
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.jobs.address_offset import add_offset, kernel_offset
from kdump_elftool.jobs.in_place import refuse_layers, undo

NAME = "addrandoff"
HELP = "put the KASLR offset into a core file that exists already"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--infile"), vmlinux=True)
    output = parser.add_argument_group("selection and output")
    output.add_argument(
        "--undo",
        action="store_true",
        help="take the last change back: the file is what it was, byte for byte",
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if not (args.infile or args.dump or args.vmcore):
        raise UsageError("no file is named that may be changed", hint="name it with -v FILE")
    path = one_input(args)
    with ExitStack() as stack:
        target = stack.enter_context(ChangedFile.open(path))
        if args.undo:
            done = undo(target, force=args.force)
            return _report(args, {"output": path, "undone": True, "bytes": done.length})
        if args.vmlinux is None:
            raise UsageError("the kernel's vmlinux is needed", hint="name it with -m vmlinux")
        refuse_layers(target.file, "decompress it first, or convert it with tovelf -m")
        request, _ = kernel_request(args, stack)
        dump = open_dump(target.file, args.intype, OpenOptions())
        if dump.format != "elf":
            raise UnsupportedError(
                path, "only an ELF core has notes to change", hint="convert it with tovelf -m"
            )
        offset, entry, warnings = kernel_offset(dump, request)
        changed = add_offset(target, dump, entry)
    for message in warnings:
        warn(message, args)
    if args.verbose:
        print(f"kaslr_offset: {offset:#x} (SYMBOL(_stext) against vmlinux)", file=sys.stderr)
    return _report(args, {"output": path, "changed": changed, "kaslr_offset": f"{offset:#x}"})


def _report(args: argparse.Namespace, document: dict[str, object]) -> int:
    if args.json:
        print(json.dumps({"schema": "kdump-elftool/addrandoff/1", **document}))
    return 0
