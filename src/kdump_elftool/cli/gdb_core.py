"""``kdump-elftool gdb``: the core that gdb opens, found, made, or made of the dump itself."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace

from kdump_elftool.cli.common import warn
from kdump_elftool.cli.dump_input import kernel_request, open_files
from kdump_elftool.cli.raw_input import named_inputs
from kdump_elftool.errors import KdumpError, OutputError, UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.debug_files import where_lines_are
from kdump_elftool.jobs.gdb_script import Names
from kdump_elftool.jobs.gdb_session import (
    MadeOf,
    Noted,
    Session,
    made_without,
    noted,
    opened_session,
    remember,
    stale,
    vmlinux_of,
)
from kdump_elftool.jobs.gdb_symbols import OpenKernel, has_made_vmlinux, with_symbols
from kdump_elftool.jobs.kernel import Kernel, open_kernel
from kdump_elftool.kernel.identity import dump_vmcoreinfo
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.safe_text import printable

SUFFIX = ".velf"
_OPTIONS = ("level", "procthreads", "zero_excluded", "arch", "ram_base", "physpgd", "kernel")


@dataclass(frozen=True)
class Ready:
    """A core that is complete, its vmlinux, its kernel for those who have to look into it, its build id."""

    session: Session
    vmlinux: Vmlinux | None
    open_kernel: OpenKernel
    build_id: bytes | None


def ready_session(args: argparse.Namespace, stack: ExitStack, names: Names) -> Session:
    """The session that the command line asks for, its core complete."""
    ready = _of_core(args, stack) or (_changed(args, stack) if args.in_place else _copied(args, stack))
    found, warnings = with_symbols(
        ready.session, ready.vmlinux, module_directories(args), names, ready.open_kernel
    )
    for message in warnings:
        warn(message, args)
    tell_names(found, ready.build_id, args)
    return found


def tell_names(found: Session, build_id: bytes | None, args: argparse.Namespace) -> None:
    """Where the names in gdb are from, if not from the vmlinux at the right place."""
    if has_made_vmlinux(found):
        _say("no vmlinux of this kernel was found: names and types are the dump's own", args)
        _say(where_lines_are(build_id), args)
    elif found.vmlinux is None:
        warn("no vmlinux of this kernel was found: there are no names (-m FILE says where it is)", args)
    elif found.kaslr_offset is None:
        warn("where the kernel ran is not known: its symbols are at their link addresses", args)


def module_directories(args: argparse.Namespace) -> list[str]:
    """Where files of modules are looked for; nothing: in the usual places."""
    given = list(args.modules or [])
    return [*given, args.vmlinux] if args.vmlinux is not None and os.path.isdir(args.vmlinux) else given


def _of_core(args: argparse.Namespace, stack: ExitStack) -> Ready | None:
    """With a dump that is a core of this tool already."""
    if len(args.dump) != 1 or not os.path.isfile(args.dump[0]):
        return None
    file = stack.enter_context(InputFile.open(args.dump[0]))
    found = noted(file)
    if found is None:
        return None
    if args.outfile is not None:
        raise UsageError(f"{file.path} is a core already", hint="leave out --velf")
    if not args.in_place and (args.level is not None or not args.procthreads):
        warn(f"{file.path} is a core already: it stays as it is, whatever -l or --no-procthreads say", args)
    dump, known = found
    return _opened(args, stack, file, dump, known)


def _opened(args: argparse.Namespace, stack: ExitStack, velf: InputFile, dump: Dump, known: Noted) -> Ready:
    """A core that is there, with its vmlinux."""
    request, _ = kernel_request(args, stack)
    vmlinux, warnings = vmlinux_of(dump, request)
    for message in warnings:
        warn(message, args)
    remember(request.cache, vmlinux)

    def kernel() -> tuple[Dump, Kernel]:
        return dump, replace(open_kernel(dump, request), vmlinux=vmlinux)

    info = dump_vmcoreinfo(dump)
    build_id = None if info is None else info.build_id
    return Ready(opened_session(velf, dump, request, vmlinux, known), vmlinux, kernel, build_id)


def _copied(args: argparse.Namespace, stack: ExitStack) -> Ready:
    """With a core of its own, made unless there is one that is as it would become."""
    files = open_files(args, stack)
    made_of = MadeOf.of(files, _options(args, stack))
    by_default = args.outfile is None
    if by_default:
        args.outfile = named_inputs(args).paths[0] + SUFFIX
    if os.path.lexists(args.outfile):
        again = _again(args, stack, made_of, by_default=by_default)
        if isinstance(again, Ready):
            return again
        _say(f"{printable(args.outfile)} is made again: {again}", args)
    # a core that is there already need not load it
    from kdump_elftool.cli.gdb_convert import converted

    try:
        return converted(args, stack, files, made_of)
    except OutputError as error:
        if by_default:  # beside a dump that is in /proc, say
            error.hint = "--velf FILE puts the core elsewhere"
        raise


def _changed(args: argparse.Namespace, stack: ExitStack) -> Ready:
    from kdump_elftool.cli.gdb_convert import changed

    return changed(args, stack)


def _again(args: argparse.Namespace, stack: ExitStack, made_of: MadeOf, *, by_default: bool) -> Ready | str:
    """The session with the core that is there, or why it has to be made again.

    Raises KdumpError for a file that nobody said may be replaced.
    """
    file = stack.enter_context(InputFile.open(args.outfile))
    found = noted(file)
    if found is None or found[1].made_of is None:
        if by_default and not args.force:
            raise KdumpError(
                f"{file.path} is there already, and this command did not make it",
                hint="--force replaces it, --velf FILE names another one; a core is opened by its own name",
            )
        return "this command did not make it"
    dump, known = found
    why = "it was asked for" if args.force else stale(known, made_of)
    if why is not None:
        return why
    ready = _opened(args, stack, file, dump, known)
    why = made_without(known, ready.vmlinux)
    if why is not None:
        return why
    _say(f"{file.path} was made of this dump before: used again", args)
    return ready


def _options(args: argparse.Namespace, stack: ExitStack) -> dict[str, object]:
    """Whatever on the command line decides what the core looks like."""
    inputs = named_inputs(args)
    others = [path for path in (args.extravminfo, args.cpu_regs) if path is not None]
    return {
        **{name: getattr(args, name) for name in _OPTIONS},
        "input": [inputs.intype, *inputs.addresses],
        "others": MadeOf.of([stack.enter_context(InputFile.open(path)) for path in others], {}).files,
    }


def _say(message: str, args: argparse.Namespace) -> None:
    if not args.quiet:
        print(message, file=sys.stderr)
