"""``kdump-elftool gdb``: from a dump to gdb's prompt, or to the backtrace of the crash."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import add_common, add_level, add_modules
from kdump_elftool.cli.dump_input import user_cache
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.cli.gdb_core import SUFFIX, ready_session
from kdump_elftool.elf.constants import ELFMAG, ET_DYN, ET_EXEC
from kdump_elftool.errors import UsageError
from kdump_elftool.files import STDIO
from kdump_elftool.formats.oldmem import NAME as OLDMEM
from kdump_elftool.jobs import gdb_program
from kdump_elftool.jobs.gdb_script import Names, script
from kdump_elftool.jobs.gdb_session import Session
from kdump_elftool.safe_text import printable

NAME = "gdb"
HELP = "start gdb on a dump, with symbols, a thread for each task, and the crash on the screen"
SCHEMA = "kdump-elftool/gdb/1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(
        parser,
        vmlinux=True,
        search=True,
        operand_help="the dump (its parts if it was split, pieces of raw memory as FILE@ADDRESS), or a core "
        "that was made of it; and, wherever it stands, the kernel's vmlinux or the directory it is in",
    )
    result = parser.add_argument_group("conversion")
    add_level(result)
    result.add_argument(
        "--no-procthreads",
        dest="procthreads",
        action="store_false",
        help="a thread for each CPU alone, not for every task",
    )
    place = result.add_mutually_exclusive_group()
    place.add_argument(
        "--velf",
        dest="outfile",
        metavar="FILE",
        help=f"the core to write, or to use again (default: the dump's name with {SUFFIX})",
    )
    place.add_argument(
        "--in-place", action="store_true", help="change the dump itself: new headers behind its data, no copy"
    )
    add_modules(result)
    _add_session(parser)
    add_common(parser)


def _add_session(parser: argparse.ArgumentParser) -> None:
    session = parser.add_argument_group("gdb (what follows a -- on the command line are arguments for it)")
    session.add_argument(
        "--gdb",
        metavar="PROGRAM",
        help="the gdb to start (default: gdb, or gdb-multiarch for another machine's dumps)",
    )
    how = session.add_mutually_exclusive_group()
    how.add_argument(
        "--batch", action="store_true", help="print the summary and the backtrace of the crash, no prompt"
    )
    how.add_argument(
        "--print-script", action="store_true", help="print the commands for gdb and do not start it"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code, or becomes gdb."""
    _sort_operands(args)
    starts = not (args.print_script or args.json)
    if starts:
        gdb_program.check_named(args.gdb)
    with ExitStack() as stack:
        names = Names(user_cache(stack))
        session = ready_session(args, stack, names)
        lines = script(session, names, backtrace=args.batch)
    failed = args.strict and session.partial
    if args.json:
        print(json.dumps(_as_json(session, lines)))
    elif args.print_script:
        print("\n".join(lines))
    sys.stdout.flush()
    sys.stderr.flush()
    if not starts:
        return int(failed)
    program = gdb_program.find_gdb(args.gdb, session.arch)
    if args.batch:
        return gdb_program.run(program, lines, args.passed_on) or int(failed)
    return gdb_program.start(program, lines, args.passed_on)


def _as_json(session: Session, lines: tuple[str, ...]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "velf": session.velf,
        "vmlinux": session.vmlinux,
        "kaslr_offset": None if session.kaslr_offset is None else f"{session.kaslr_offset:#x}",
        "architecture": session.arch.name,
        "script": list(lines),
    }


def _sort_operands(args: argparse.Namespace) -> None:
    """A vmlinux among the files is known by its content, wherever it stands."""
    dumps: list[str] = []
    kernels: list[str] = []
    for name in args.dump:
        (kernels if _is_vmlinux(name) else dumps).append(name)
    if args.vmlinux is not None:
        kernels.append(args.vmlinux)
    if len(kernels) > 1:
        raise UsageError(f"one vmlinux is needed, not {len(kernels)}", hint="name the dump, and its vmlinux")
    if STDIO in dumps:
        raise UsageError("no dump is named", hint="name its file: what is piped is gone when gdb wants it")
    if not dumps:
        given = f": {printable(kernels[0])} is {_place_of_symbols(kernels[0])}" if kernels else ""
        raise UsageError(f"no dump is named{given}", hint="kdump-elftool gdb DUMP [VMLINUX]")
    if args.intype == OLDMEM:
        raise UsageError("a device cannot be debugged", hint="make a core of it with tovelf -o FILE")
    args.dump, args.vmlinux = dumps, kernels[0] if kernels else None


def _place_of_symbols(name: str) -> str:
    return "a directory, which may hold the vmlinux alone" if os.path.isdir(name) else "the vmlinux"


def _is_vmlinux(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            with open(name, "rb") as file:
                head = file.read(18)
            kind = int.from_bytes(head[16:18], "big" if head[5:6] == b"\2" else "little")
            return head[:4] == ELFMAG and kind in (ET_EXEC, ET_DYN)
        return stat.S_ISDIR(mode)
    except OSError:
        return False
