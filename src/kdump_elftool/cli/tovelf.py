"""``kdump-elftool tovelf``: a dump becomes a core of kernel virtual memory for gdb."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import ExitStack
from typing import TextIO

from kdump_elftool.cli.common import add_common, number, one_input, read_extra, warn
from kdump_elftool.elf.layout import MANY_SEGMENTS
from kdump_elftool.elf.writer import write_core
from kdump_elftool.files import InputFile, open_output
from kdump_elftool.formats import FORMATS, open_dump
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.jobs.selection import Pages
from kdump_elftool.jobs.velf import LEVEL, Velf, plan_velf
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.progress import progress
from kdump_elftool.safe_text import printable

NAME = "tovelf"
HELP = "make a core file of kernel virtual memory that gdb can open"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    source = parser.add_argument_group("input")
    source.add_argument("dump", nargs="*", metavar="DUMP", help="the dump to read")
    source.add_argument(
        "-i", "--infile", action="append", metavar="FILE", help="the dump to read (- is stdin)"
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
        "-m", "--vmlinux", metavar="FILE", help="the kernel's vmlinux: checks it, adds AT_ENTRY"
    )
    kernel.add_argument(
        "-e", "--extravminfo", metavar="FILE", help="VMCOREINFO lines that override the dump's"
    )
    kernel.add_argument(
        "-P",
        "--physpgd",
        metavar="PGD",
        type=number,
        help="physical address of the top page table to write out",
    )
    selection = parser.add_argument_group("selection and output")
    selection.add_argument("-l", "--level", choices=(LEVEL,), default=LEVEL, help="which pages to keep")
    selection.add_argument("-o", "--outfile", metavar="FILE", help="the core to write (default: stdout)")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:

        def opened(path: str | None) -> InputFile | None:
            return None if path is None else stack.enter_context(InputFile.open(path))

        file = stack.enter_context(InputFile.open(one_input(args)))
        extra, vmlinux = opened(args.extravminfo), opened(args.vmlinux)
        dump = open_dump(file, args.intype, OpenOptions(zero_excluded=args.zero_excluded))
        request = KernelRequest(
            vmlinux=read_vmlinux(vmlinux) if vmlinux else None,
            extra=read_extra(extra) if extra else None,
            pgt_root=args.physpgd,
            force=args.force,
        )
        velf = plan_velf(dump, request)
        for message in velf.warnings:
            warn(message, args)
        inputs = [source for source in (file, extra, vmlinux) if source]
        with open_output(args.outfile, inputs) as out:
            shown = not (args.no_progress or args.quiet)
            with progress("writing", velf.layout.file_size, enabled=shown) as advance:
                write_core(velf.layout, dump.memory, out, advance)
            to_stdout = not out.is_file and out.is_stdout()
            out.commit()
    return _report(args, velf, to_stdout)


def _report(args: argparse.Namespace, velf: Velf, to_stdout: bool) -> int:
    stream = sys.stderr if to_stdout else sys.stdout
    if args.verbose:
        _print_facts(velf)
    if velf.layout.nr_segments > MANY_SEGMENTS:
        warn(f"{velf.layout.nr_segments} segments: gdb will be slow", args)
    partial = velf.coverage.is_partial
    if partial:
        warn("the dump is not complete; what is missing is absent from the result", args)
    if partial or args.verbose:
        print(f"coverage: {velf.coverage.line(everything=args.verbose)}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(args, velf)), file=stream)
    elif not args.quiet:
        _print_statistics(velf.pages, stream)
    stream.flush()
    if not args.quiet and args.outfile and (args.verbose or sys.stderr.isatty()):
        print(f"open it with: {_gdb_command(args, velf)}", file=sys.stderr)
    return 1 if args.strict and (partial or velf.warnings) else 0


def _gdb_command(args: argparse.Namespace, velf: Velf) -> str:
    """How to start gdb: vmlinux gives symbols only, or gdb would fill absent pages from it."""
    offset = f" -o {int(velf.kaslr_offset.value):#x}" if velf.kaslr_offset else ""
    words = ["gdb", "-ex", f"core-file {args.outfile}"]
    words += ["-ex", f"symbol-file{offset} {args.vmlinux or 'vmlinux'}"]
    return printable(shlex.join(words))


def _print_statistics(pages: Pages, stream: TextIO) -> None:
    """The original tool's statistics; level ``all`` filters nothing."""
    print(f"Skipped {pages.not_present} not present pages", file=stream)
    for category in ("free", "cache", "user", "poison"):
        print(f"        0 {category} pages", file=stream)
    print(f"Accepted {pages.accepted} pages", file=stream)


def _print_facts(velf: Velf) -> None:
    facts = [*velf.identity.facts, *([velf.kaslr_offset] if velf.kaslr_offset else [])]
    for fact in facts:
        print(f"{fact.name}: {fact.shown()} ({fact.source})", file=sys.stderr)
    for thread in velf.threads:
        print(f"cpu {thread.cpu}: thread {thread.lwp}, ip {thread.ip:#x}, sp {thread.sp:#x}", file=sys.stderr)


def _as_json(args: argparse.Namespace, velf: Velf) -> dict[str, object]:
    offset = velf.kaslr_offset
    return {
        "schema": "kdump-elftool/tovelf/1",
        "output": args.outfile,
        "architecture": velf.identity.arch.name,
        "release": velf.identity.release,
        "build_id": velf.identity.build_id.hex() if velf.identity.build_id else None,
        "page_table_levels": len(velf.identity.form.levels),
        "pgt_root": f"{velf.identity.pgt_root:#x}",
        "kaslr_offset": f"{int(offset.value):#x}" if offset else None,
        "segments": velf.layout.nr_segments,
        "threads": [{"cpu": thread.cpu, "lwp": thread.lwp} for thread in velf.threads],
        "accepted_pages": velf.pages.accepted,
        "not_present_pages": velf.pages.not_present,
        "coverage": velf.coverage.as_json(),
        "warnings": list(velf.warnings),
    }
