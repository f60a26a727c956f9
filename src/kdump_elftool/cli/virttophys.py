"""``kdump-elftool virttophys``: where virtual addresses are in physical memory."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.arch.walker import Translation
from kdump_elftool.cli.common import add_common, hexadecimal, warn
from kdump_elftool.cli.dump_input import open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.errors import FaultError, UsageError
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel, open_kernel

NAME = "virttophys"
HELP = "translate virtual addresses to physical ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--infile"), vmlinux=True, operands=False)
    parser.add_argument(
        "address", nargs="*", metavar="ADDR", type=hexadecimal, help="virtual addresses, hexadecimal"
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if not args.address:
        raise UsageError("no address is given", hint="kdump-elftool virttophys -i DUMP ADDR...")
    with ExitStack() as stack:
        opened = open_input(args, stack)
        kernel = open_kernel(opened.dump, opened.request)
        found = [(vaddr, _translate(opened.dump, kernel, vaddr)) for vaddr in args.address]
    for message in kernel.warnings:
        warn(message, args)
    if args.verbose:
        _print_walks(found)
    if args.json:
        print(json.dumps(_as_json(found)))
    else:
        _print(args, found)
    sys.stdout.flush()
    return 1 if any(isinstance(result, FaultError) for _, result in found) else 0


Found = list[tuple[int, Translation | FaultError]]


def _translate(dump: Dump, kernel: Kernel, vaddr: int) -> Translation | FaultError:
    try:
        return kernel.translate(dump, vaddr)
    except FaultError as error:
        return error


def _print(args: argparse.Namespace, found: Found) -> None:
    for vaddr, result in found:
        where = "unmapped" if isinstance(result, FaultError) else f"{result.paddr:x}"
        print(where if len(found) == 1 else f"{vaddr:x} {where}")
        if isinstance(result, FaultError) and not args.quiet:
            print(f"{vaddr:#x}: {result.message}", file=sys.stderr)


def _print_walks(found: Found) -> None:
    """Each table entry on the way, as far as the way goes."""
    for vaddr, result in found:
        if isinstance(result, FaultError):
            continue
        print(f"{vaddr:#x}:", file=sys.stderr)
        for step in result.steps:
            print(
                f"  {step.level:<4} entry {step.index:#05x} at {step.paddr:#x}: {step.entry:#018x}",
                file=sys.stderr,
            )
        print(f"  page of {result.page_size:#x} bytes, paddr {result.paddr:#x}", file=sys.stderr)


def _as_json(found: Found) -> dict[str, object]:
    rows = []
    for vaddr, result in found:
        row: dict[str, object] = {"vaddr": f"{vaddr:#x}"}
        if isinstance(result, FaultError):
            row |= {"paddr": None, "why": result.message}
        else:
            steps = [
                {
                    "level": step.level,
                    "table": f"{step.table:#x}",
                    "index": step.index,
                    "entry": f"{step.entry:#x}",
                }
                for step in result.steps
            ]
            row |= {"paddr": f"{result.paddr:#x}", "page_bytes": result.page_size, "walk": steps}
        rows.append(row)
    return {"schema": "kdump-elftool/virttophys/1", "addresses": rows}
