"""``kdump-elftool gdb``: the core that gdb opens, found, made, or made of the dump itself."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import warn
from kdump_elftool.cli.dump_input import kernel_request, open_files, open_input, write_result
from kdump_elftool.cli.raw_input import named_inputs
from kdump_elftool.cli.tovelf import file_to_change
from kdump_elftool.elf.layout import MANY_SEGMENTS
from kdump_elftool.errors import KdumpError, UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.jobs.gdb_session import (
    MadeOf,
    Session,
    about,
    made_without,
    noted,
    opened_session,
    planned_session,
    remember,
    stale,
    vmlinux_of,
    with_vmlinux,
)
from kdump_elftool.jobs.in_place import convert_in_place, open_for_change
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.velf import Velf, plan_velf
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.safe_text import printable

SUFFIX = ".velf"
_OPTIONS = ("level", "procthreads", "zero_excluded", "arch", "ram_base", "physpgd", "kernel")


def ready_session(args: argparse.Namespace, stack: ExitStack) -> Session:
    """The session that the command line asks for, its core complete."""
    found = _of_core(args, stack) or (_changed(args, stack) if args.in_place else _copied(args, stack))
    if found.vmlinux is None:
        warn("no vmlinux of this kernel was found: there are no names (-m FILE says where it is)", args)
    elif found.kaslr_offset is None:
        warn("where the kernel ran is not known: its symbols are at their link addresses", args)
    return found


def _of_core(args: argparse.Namespace, stack: ExitStack) -> Session | None:
    """With a dump that is a core of this tool already."""
    if len(args.dump) != 1 or not os.path.isfile(args.dump[0]):
        return None
    file = stack.enter_context(InputFile.open(args.dump[0]))
    found = noted(file)
    if found is None:
        return None
    if args.outfile is not None:
        raise UsageError(f"{file.path} is a core already", hint="leave out --velf")
    dump, known = found
    return opened_session(file, dump, _symbols(args, stack, file), known)


def _symbols(args: argparse.Namespace, stack: ExitStack, velf: InputFile) -> Vmlinux | None:
    """The vmlinux that goes with a core."""
    found = noted(velf)
    if found is None:
        return None
    request, _ = kernel_request(args, stack)
    vmlinux, warnings = vmlinux_of(found[0], request)
    for message in warnings:
        warn(message, args)
    remember(request.cache, vmlinux)
    return vmlinux


def _copied(args: argparse.Namespace, stack: ExitStack) -> Session:
    """With a core of its own, made unless there is one that is as it would become."""
    files = open_files(args, stack)
    made_of = MadeOf.of(files, _options(args, stack))
    by_default = args.outfile is None
    if by_default:
        args.outfile = real_name(args) + SUFFIX
    if os.path.lexists(args.outfile):
        again = _again(args, stack, made_of, by_default=by_default)
        if isinstance(again, Session):
            return again
        _say(f"{printable(args.outfile)} is made again: {again}", args)
    return _converted(args, stack, files, made_of)


def real_name(args: argparse.Namespace) -> str:
    """The first file of the dump."""
    return named_inputs(args).paths[0]


def _again(args: argparse.Namespace, stack: ExitStack, made_of: MadeOf, *, by_default: bool) -> Session | str:
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
    why = stale(known, made_of)
    if why is not None:
        return why
    vmlinux = _symbols(args, stack, file)
    why = made_without(known, vmlinux)
    if why is not None:
        return why
    _say(f"{file.path} was made of this dump before: used again", args)
    return opened_session(file, dump, vmlinux, known)


def _converted(
    args: argparse.Namespace, stack: ExitStack, files: tuple[InputFile, ...], made_of: MadeOf
) -> Session:
    opened = open_input(args, stack, opened=files)
    dump, request = opened.dump, opened.request
    kernel = with_vmlinux(open_kernel(dump, request))
    remember(request.cache, kernel.vmlinux)
    plan = plan_velf(
        dump,
        request,
        level=args.level,
        procthreads=args.procthreads,
        kernel=kernel,
        about=about(dump, kernel, made_of),
    )
    velf, _ = write_result(args, plan, opened)
    _report(args, velf)
    return planned_session(args.outfile, velf, kernel.vmlinux)


def _changed(args: argparse.Namespace, stack: ExitStack) -> Session:
    target = stack.enter_context(file_to_change(args))
    request, _ = kernel_request(args, stack)
    dump = open_for_change(target, args.intype)
    if dump is None:  # a damaged one: _of_core() takes those that can be opened
        raise KdumpError(f"{target.file.path} was changed in place, and is not what it became then")
    kernel = with_vmlinux(open_kernel(dump, request))
    remember(request.cache, kernel.vmlinux)
    velf = convert_in_place(
        target,
        dump,
        request,
        procthreads=args.procthreads,
        kernel=kernel,
        about=about(dump, kernel, None),
    )
    for message in velf.warnings:
        warn(message, args)
    _report(args, velf)
    return planned_session(args.dump[0], velf, kernel.vmlinux)


def _report(args: argparse.Namespace, velf: Velf) -> None:
    if velf.layout.nr_segments > MANY_SEGMENTS:
        warn(f"{velf.layout.nr_segments} segments: gdb will be slow", args)
    if velf.coverage.is_partial:
        warn("the dump is not complete; what is missing is absent from the result", args)
    if velf.coverage.is_partial or args.verbose:
        print(f"coverage: {velf.coverage.line(everything=args.verbose)}", file=sys.stderr)


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
