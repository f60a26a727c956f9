"""``kdump-elftool tovelf``: a dump becomes a core of kernel virtual memory for gdb."""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kdump_elftool.cli.common import (
    add_common,
    add_level,
    add_seed_machine,
    one_input,
    pages_json,
    print_statistics,
    warn,
)
from kdump_elftool.cli.dump_input import kernel_request, open_input, write_result
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.elf.layout import MANY_SEGMENTS
from kdump_elftool.elf.rewrite import ChangedFile
from kdump_elftool.errors import UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.formats.base import Dump
from kdump_elftool.formats.oldmem import NAME as OLDMEM
from kdump_elftool.jobs.in_place import convert_in_place, open_for_change, undo_all
from kdump_elftool.jobs.kernel import KernelRequest
from kdump_elftool.jobs.velf import Velf, plan_velf
from kdump_elftool.safe_text import shell_word

if TYPE_CHECKING:
    from kdump_elftool.cli.core_script import CoreScript

NAME = "tovelf"
SCHEMA = "kdump-elftool/tovelf/1"
HELP = "make a core file of kernel virtual memory that gdb can open"
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+,:=@%~-]*")
"""A name that gdb takes as it is, relative ones too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--infile"), vmlinux=True, search=True)
    selection = parser.add_argument_group("selection and output")
    add_level(selection)
    selection.add_argument(
        "-p",
        "--procthreads",
        action="store_true",
        help="make every task a thread, not only what the CPUs were running (for gdb alone)",
    )
    result = selection.add_mutually_exclusive_group()
    result.add_argument("-o", "--outfile", metavar="FILE", help="the core to write (default: stdout)")
    result.add_argument(
        "--in-place", action="store_true", help="change the dump itself: new headers behind its data, no copy"
    )
    result.add_argument(
        "--undo", action="store_true", help="take back --in-place: the dump is what it was, byte for byte"
    )
    selection.add_argument(
        "--gdb-script",
        metavar="FILE",
        help="write a script for gdb's command source that opens the core, as the command gdb does",
    )
    add_seed_machine(parser)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.undo:
        return _undo(args)
    with ExitStack() as stack:
        if args.in_place:
            return _in_place(args, stack)
        opened = open_input(args, stack, writes_core=True)
        script = _script(args, stack, opened.dump, opened.request, opened.files)
        velf = plan_velf(
            opened.dump,
            opened.request,
            level=args.level,
            procthreads=args.procthreads,
            kernel=script.kernel if script else None,
            about=script.about if script else None,
        )
        velf, to_stdout = write_result(args, velf, opened)
        if script is not None:
            script.write(args, velf)
    return _report(args, velf, to_stdout)


def _script(
    args: argparse.Namespace,
    stack: ExitStack,
    dump: Dump,
    request: KernelRequest,
    inputs: list[InputFile],
) -> CoreScript | None:
    """The script that is wanted, ready to be written; None where none is."""
    if args.gdb_script is None:
        return None
    # others need not load it
    from kdump_elftool.cli.core_script import open_core_script

    return open_core_script(args.gdb_script, _output(args), stack, dump, request, inputs)


def file_to_change(args: argparse.Namespace) -> ChangedFile:
    """The dump, open to be changed in place.  Raises UsageError where options don't go with that."""
    if args.level not in (None, "all"):
        raise UsageError("--in-place keeps every page", hint="leave out -l, or make a copy with -o")
    if args.zero_excluded:
        raise UsageError(
            "--in-place cannot add zero pages to a dump", hint="make a copy with -o for --zero-excluded"
        )
    if args.intype == OLDMEM:
        raise UsageError("--in-place changes a dump, not a device", hint="make a copy with -o")
    if args.cpu_regs is not None:
        raise UsageError(
            "--in-place keeps the dump's own registers", hint="make a copy with -o for --cpu-regs"
        )
    return ChangedFile.open(_named_input(args))


def _named_input(args: argparse.Namespace) -> str:
    if not (args.infile or args.dump or args.vmcore):
        raise UsageError("no file is named that may be changed", hint="name it with -i FILE")
    return one_input(args)


def _in_place(args: argparse.Namespace, stack: ExitStack) -> int:
    target = stack.enter_context(file_to_change(args))
    request, files = kernel_request(args, stack)
    files.append(target.file)
    dump = open_for_change(target, args.intype)
    if dump is None:
        if args.json:
            print(json.dumps({"schema": SCHEMA, "output": target.file.path, "changed": False}))
        elif not args.quiet:
            print(f"{target.file.path} is converted in place already", file=sys.stderr)
        if args.gdb_script is not None:
            name = shell_word(_named_input(args))
            warn(f"no script is written: kdump-elftool gdb --print-script {name} prints it", args)
        return 0
    script = _script(args, stack, dump, request, files)
    velf = convert_in_place(
        target,
        dump,
        request,
        procthreads=args.procthreads,
        kernel=script.kernel if script else None,
        about=script.about if script else None,
    )
    for message in velf.warnings:
        warn(message, args)
    if script is not None:
        script.write(args, velf)
    return _report(args, velf, to_stdout=False)


def _undo(args: argparse.Namespace) -> int:
    with ChangedFile.open(_named_input(args)) as target:
        done = undo_all(target, force=args.force)
        if args.json:
            document = {"schema": SCHEMA, "output": target.file.path, "undone": True}
            print(json.dumps({**document, "bytes": done.length, "removed_bytes": done.removed}))
        elif args.verbose:
            print(f"{done.removed} bytes removed; {done.length} bytes as before", file=sys.stderr)
    return 0


def _report(args: argparse.Namespace, velf: Velf, to_stdout: bool) -> int:
    stream = sys.stderr if to_stdout else sys.stdout
    if args.verbose:
        _print_facts(velf)
    if velf.image_loss:
        warn(_image_advice(velf), args)
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
        print_statistics(velf.pages, stream)
    stream.flush()
    if not args.quiet and _output(args) and (args.verbose or sys.stderr.isatty()):
        print(f"open it with: {_gdb_command(args, velf)}", file=sys.stderr)
    return 0


def _image_advice(velf: Velf) -> str:
    return (
        f"{velf.image_loss}: give gdb vmlinux with 'symbol-file -o OFFSET', not as the program, or it shows "
        "link-time bytes there"
    )


def _output(args: argparse.Namespace) -> str | None:
    """The file that holds the result now; None when it went to stdout."""
    path: str | None = one_input(args) if args.in_place else args.outfile
    return path


def _gdb_command(args: argparse.Namespace, velf: Velf) -> str:
    """How to start gdb: vmlinux gives symbols only, or gdb would fill absent pages from it.

    Without a vmlinux the command gdb makes one of the core; and it copes with names that gdb's commands
    would take apart, each in its own way.
    """
    core = str(_output(args))
    if args.gdb_script is not None:
        words = ["gdb", "-x", args.gdb_script]
    elif velf.vmlinux is not None and all(_PLAIN.fullmatch(name) for name in (core, velf.vmlinux)):
        offset = f" -o {int(velf.kaslr_offset.value):#x}" if velf.kaslr_offset else ""
        words = ["gdb", "-ex", f"core-file {core}", "-ex", f"symbol-file{offset} {velf.vmlinux}"]
    else:
        words = ["kdump-elftool", "gdb", core]
        # one that was found is found again
        words += [] if args.vmlinux is None else ["-m", args.vmlinux]
    return " ".join(map(shell_word, words))


def _print_facts(velf: Velf) -> None:
    facts = [*velf.identity.facts, *([velf.kaslr_offset] if velf.kaslr_offset else []), *velf.facts]
    for fact in facts:
        print(f"{fact.name}: {fact.shown()} ({fact.source})", file=sys.stderr)
    for thread in velf.threads:
        print(f"cpu {thread.cpu}: thread {thread.lwp}, ip {thread.ip:#x}, sp {thread.sp:#x}", file=sys.stderr)


def _as_json(args: argparse.Namespace, velf: Velf) -> dict[str, object]:
    offset = velf.kaslr_offset
    return {
        "schema": SCHEMA,
        "output": _output(args),
        "changed": args.in_place,
        "architecture": velf.identity.arch.name,
        "release": velf.identity.release,
        "build_id": velf.identity.build_id.hex() if velf.identity.build_id else None,
        "page_table_levels": len(velf.identity.form.levels),
        "pgt_root": f"{velf.identity.pgt_root:#x}",
        "kaslr_offset": f"{int(offset.value):#x}" if offset else None,
        "segments": velf.layout.nr_segments,
        "nr_threads": velf.nr_threads,
        "threads": [{"cpu": thread.cpu, "lwp": thread.lwp} for thread in velf.threads],
        "level": velf.level,
        **pages_json(velf.pages),
        "coverage": velf.coverage.as_json(),
        "warnings": [*velf.warnings, *([_image_advice(velf)] if velf.image_loss else [])],
    }
