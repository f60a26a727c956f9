"""What the commands that only look at a dump share: naming it, and opening its kernel."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from kdump_elftool.cli.common import number, one_input, read_extra
from kdump_elftool.files import InputFile
from kdump_elftool.formats import FORMATS, open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from kdump_elftool.jobs.kernel import KernelRequest


def add_dump(parser: argparse.ArgumentParser) -> None:
    """The dump, its format, and what the user knows about its kernel."""
    source = parser.add_argument_group("input")
    source.add_argument("dump", nargs="*", metavar="DUMP", help="the dump to read (default /proc/vmcore)")
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
        "-P",
        "--physpgd",
        metavar="PGD",
        type=number,
        help="physical address of the kernel's top page table",
    )
    parser.set_defaults(infile=None, vmcore=None)  # these commands name dumps by position alone


def open_input(args: argparse.Namespace, stack: ExitStack) -> tuple[Dump, KernelRequest]:
    """Open what :func:`add_dump` named; ``stack`` closes it."""
    file = stack.enter_context(InputFile.open(one_input(args)))
    dump = open_dump(file, args.intype, OpenOptions(zero_excluded=args.zero_excluded))
    extra = None
    if args.extravminfo is not None:
        with InputFile.open(args.extravminfo) as lines:
            extra = read_extra(lines)
    return dump, KernelRequest(extra=extra, pgt_root=args.physpgd, force=args.force)
