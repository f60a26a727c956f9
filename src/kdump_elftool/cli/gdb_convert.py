"""``kdump-elftool gdb``: a core is made, beside the dump or of the dump itself."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import warn
from kdump_elftool.cli.dump_input import kernel_request, open_input, write_result
from kdump_elftool.cli.gdb_core import Ready
from kdump_elftool.cli.tovelf import file_to_change
from kdump_elftool.elf.layout import MANY_SEGMENTS
from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.jobs.gdb_core import about, planned_session, with_vmlinux
from kdump_elftool.jobs.gdb_session import MadeOf, remember
from kdump_elftool.jobs.in_place import convert_in_place, open_for_change
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.velf import Velf, plan_velf


def converted(
    args: argparse.Namespace, stack: ExitStack, files: tuple[InputFile, ...], made_of: MadeOf
) -> Ready:
    """With a core that is a file of its own."""
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
    session = planned_session(args.outfile, velf, kernel.vmlinux)
    return Ready(session, kernel.vmlinux, lambda: (dump, kernel), kernel.info.build_id)


def changed(args: argparse.Namespace, stack: ExitStack) -> Ready:
    """With the dump itself changed into one."""
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
    session = planned_session(args.dump[0], velf, kernel.vmlinux)
    return Ready(session, kernel.vmlinux, lambda: (dump, kernel), kernel.info.build_id)


def _report(args: argparse.Namespace, velf: Velf) -> None:
    if velf.layout.nr_segments > MANY_SEGMENTS:
        warn(f"{velf.layout.nr_segments} segments: gdb will be slow", args)
    if velf.coverage.is_partial:
        warn("the dump is not complete; what is missing is absent from the result", args)
    if velf.coverage.is_partial or args.verbose:
        print(f"coverage: {velf.coverage.line(everything=args.verbose)}", file=sys.stderr)
