"""``kdump-elftool vminfo``: the lines an ``-e`` file is made of, from a dump or a vmlinux."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.arch import find_architecture
from kdump_elftool.arch.base import Architecture
from kdump_elftool.cli.common import add_common, one_input, warn
from kdump_elftool.cli.dump_input import open_files, open_input, user_cache
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.elf.constants import ET_DYN, ET_EXEC
from kdump_elftool.elf.reader import read_header
from kdump_elftool.errors import FormatError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.jobs.knowledge import knowledge
from kdump_elftool.jobs.vminfo import GROUPS, vminfo
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.vmlinux import read_vmlinux
from kdump_elftool.kernel.vmlinux_source import vmlinux_knowledge

NAME = "vminfo"
HELP = "print what is known of a kernel as lines for -e"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, vmlinux=True, search=True)
    output = parser.add_argument_group("selection and output")
    output.add_argument(
        "--keys", choices=(*GROUPS, "all"), default="all", help="which keys to print (default all)"
    )
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    groups = tuple(GROUPS) if args.keys == "all" else (args.keys,)
    with ExitStack() as stack:
        one_input(args)
        files = open_files(args, stack)
        if _is_vmlinux(files[0]):
            known, arch, release = _of_vmlinux(files[0], stack)
            page = arch.page_size
        else:
            opened = open_input(args, stack, opened=files)
            kernel = open_kernel(opened.dump, opened.request)
            for message in kernel.warnings:
                warn(message, args)
            known = knowledge(opened.dump, kernel)
            arch, release = kernel.arch, kernel.identity.release
            page = 1 << kernel.identity.form.levels[-1].shift
        found = vminfo(known, arch, release, page, groups)
    for message in known.advice:
        warn(message, args)
    if args.verbose:
        for fact in found.facts:
            print(f"{fact.name}: {fact.shown()} ({fact.source})", file=sys.stderr)
    if args.json:
        values = dict(line.split("=", 1) for line in found.lines)
        print(json.dumps({"schema": "kdump-elftool/vminfo/1", "values": values}))
    else:
        print("".join(f"{line}\n" for line in found.lines), end="")
    sys.stdout.flush()
    return 0


def _is_vmlinux(file: InputFile) -> bool:
    try:
        e_type = read_header(file).e_type
    except FormatError:
        return False
    return e_type in (ET_EXEC, ET_DYN)


def _of_vmlinux(file: InputFile, stack: ExitStack) -> tuple[Knowledge, Architecture, str | None]:
    """Link-time addresses: right for a kernel without KASLR."""
    vmlinux = read_vmlinux(file)
    arch = find_architecture(vmlinux.e_machine, vmlinux.kind.bits)
    if arch is None:
        raise UnsupportedError(file.path, f"ELF machine {vmlinux.e_machine} is not supported yet")
    return vmlinux_knowledge(vmlinux, arch, user_cache(stack)), arch, vmlinux.release
