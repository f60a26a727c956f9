"""What the commands that read a dump share: naming it, what is known of its kernel, writing a core."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kdump_elftool.cache import Cache
from kdump_elftool.cli.common import read_extra, warn
from kdump_elftool.cli.dump_options import MACHINES
from kdump_elftool.cli.raw_input import Inputs, named_inputs
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.elf.writer import Written, write_core, write_headers
from kdump_elftool.errors import KdumpError, PageAbsentError
from kdump_elftool.files import InputFile, Output, open_output, refuse_terminal
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from kdump_elftool.formats.piped import keep_piped
from kdump_elftool.formats.raw import NAME as RAW
from kdump_elftool.jobs.debug_files import Search
from kdump_elftool.jobs.kernel import FindVmlinux, KernelRequest, architecture
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.progress import progress
from kdump_elftool.spool import spool_directory

if TYPE_CHECKING:
    from kdump_elftool.jobs.unreadable import Plan


@dataclass(frozen=True)
class Opened:
    """The dump, the user's word on its kernel, and every file that was opened for it (so far)."""

    dump: Dump
    request: KernelRequest
    files: list[InputFile]


def open_files(args: argparse.Namespace, stack: ExitStack) -> tuple[InputFile, ...]:
    """The files that the options of add_dump() name; what comes through a pipe is read to its end."""
    piped = partial(
        keep_piped,
        directory=spool_directory(getattr(args, "outfile", None)),
        show_progress=not (args.no_progress or args.quiet),
    )
    inputs = named_inputs(args)
    files = [stack.enter_context(InputFile.open(path, piped)) for path in inputs.paths]
    if inputs.device is not None:
        files.append(stack.enter_context(InputFile.open_device(inputs.device)))
    return tuple(files)


def open_input(
    args: argparse.Namespace,
    stack: ExitStack,
    *,
    opened: tuple[InputFile, ...] | None = None,
    writes_core: bool = False,
) -> Opened:
    """Open the dump that the options of add_dump() name; ``stack`` closes it.  ``opened``: its files, if
    they are open already.
    """
    if writes_core:
        refuse_terminal(args.outfile)
    inputs = named_inputs(args)
    first, *more = opened or open_files(args, stack)
    request, files = kernel_request(args, stack)
    options = _open_options(args, inputs, request)
    dump = open_dump(first, inputs.intype, options, tuple(more))
    dump, request = _with_its_kernel(args, dump, request, inputs.addresses, one_file=not more)
    # the list itself: a vmlinux that is found later joins it
    files += [first, *more]
    if args.cpu_regs is not None or dump.cpu_registers:
        # a crash kernel, whose dump has notes, need not load it
        from kdump_elftool.cli.register_input import with_registers

        dump, given = with_registers(dump, args.cpu_regs, stack)
        files += given
    return Opened(dump, request, files)


def _open_options(args: argparse.Namespace, inputs: Inputs, request: KernelRequest) -> OpenOptions:
    e_machine, kind = _machine(args.arch, request)
    return OpenOptions(
        zero_excluded=args.zero_excluded,
        e_machine=e_machine,
        kind=kind,
        addresses=inputs.addresses,
        spool_directory=spool_directory(getattr(args, "outfile", None)),
        show_progress=not (args.no_progress or args.quiet),
        use_cache=True,
    )


def _with_its_kernel(
    args: argparse.Namespace,
    dump: Dump,
    request: KernelRequest,
    addresses: tuple[int, ...],
    *,
    one_file: bool,
) -> tuple[Dump, KernelRequest]:
    """What the file alone does not say, by the kernel in it: of what machine it is, where its memory lies."""
    if not dump.machine_known and args.arch is None and request.vmlinux is None:
        # a crash kernel, whose dump says what it is, need not load it
        from kdump_elftool.jobs.guest import recognise

        anywhere = dump.format == RAW and one_file and not addresses
        dump, request = recognise(dump, request, moves=anywhere)
    if dump.format == RAW and one_file:
        # a crash kernel's topelf need not load it
        from kdump_elftool.jobs.ram_base import place

        base = addresses[0] if addresses else None
        dump, request = place(dump, architecture(dump), request, base)
    return dump, request


def _machine(arch: str | None, request: KernelRequest) -> tuple[int, ElfKind]:
    """The machine of an image that does not say: the user's word, the vmlinux's, the most likely one."""
    vmlinux = request.vmlinux
    if arch is None and vmlinux is not None and (vmlinux.e_machine, vmlinux.kind) in MACHINES.values():
        return vmlinux.e_machine, vmlinux.kind
    return MACHINES[arch] if arch else next(iter(MACHINES.values()))


def kernel_request(args: argparse.Namespace, stack: ExitStack) -> tuple[KernelRequest, list[InputFile]]:
    """What the kernel options say, and the files that are opened for them, later ones too."""

    def opened(path: str | None) -> InputFile | None:
        return None if path is None else stack.enter_context(InputFile.open(path))

    shown = partial(progress, enabled=not (args.no_progress or args.quiet))
    in_directory = args.vmlinux is not None and os.path.isdir(args.vmlinux)
    extra, vmlinux = opened(args.extravminfo), opened(None if in_directory else args.vmlinux)
    files = [file for file in (extra, vmlinux) if file]
    cache = user_cache(stack) if args.vmlinux is not None or args.search else None
    search = Search(stack, os.environ, files, shown, remembered=cache.path if cache else None)
    find: FindVmlinux | None = partial(search.in_directory, args.vmlinux) if in_directory else None
    if getattr(args, "debuginfod", False):
        find = search.from_debuginfod
    request = KernelRequest(
        vmlinux=read_vmlinux(vmlinux) if vmlinux else None,
        extra=read_extra(extra) if extra else None,
        pgt_root=args.physpgd,
        kernel=args.kernel,
        force=args.force,
        progress=shown,
        find=find,
        locate=search.locate if args.search else None,
        cache=cache,
    )
    return request, files


def user_cache(stack: ExitStack) -> Cache | None:
    """The user's cache, open until ``stack`` is closed; None where there can be none."""
    cache = Cache.open()
    return stack.enter_context(cache) if cache else None


def write_result(args: argparse.Namespace, plan: Plan, opened: Opened) -> tuple[Plan, bool]:
    """Say the warnings and write the core to ``-o``.

    Returns what was written in the end, without what could not be read, and whether it went to stdout.
    """
    for message in plan.warnings:
        warn(message, args)
    with open_output(args.outfile, opened.files) as out:
        shown = not (args.no_progress or args.quiet)
        try:
            with progress("writing", plan.layout.file_size, enabled=shown) as advance:
                written = write_core(plan.layout, opened.dump.memory, out, advance)
        except PageAbsentError as error:
            hint = "with -o FILE such pages are left out of the result"
            raise KdumpError(error.message, hint=hint) from None
        if len(written.size):
            plan = _mended(plan, opened, written, out)
        to_stdout = out.is_stdout()
        out.commit()
    return plan, to_stdout


def _mended(plan: Plan, opened: Opened, written: Written, out: Output) -> Plan:
    """Headers that leave out what could not be read."""
    # only a damaged dump comes here: topelf in a crash kernel need not load it
    from kdump_elftool.jobs.unreadable import without_unreadable

    result = without_unreadable(plan, opened.dump, written)
    write_headers(result.layout, out)
    out.finish(result.layout.file_size)
    return result
