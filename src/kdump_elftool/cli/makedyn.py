"""``kdump-elftool makedyn``: let gdb move a vmlinux to where KASLR put the kernel."""

from __future__ import annotations

import argparse
import json
import os
import sys

from kdump_elftool.cli.common import add_common
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.reader import read_header
from kdump_elftool.elf.rewrite import set_type
from kdump_elftool.errors import FormatError, UsageError
from kdump_elftool.files import InputFile, open_output

NAME = "makedyn"
HELP = "turn a vmlinux into a relocatable executable that gdb moves by itself"
_CHUNK = 8 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("vmlinux", nargs="*", metavar="VMLINUX", help="changed in place, keeping its time")
    parser.add_argument("-o", "--outfile", metavar="COPY", help="write a changed copy instead")
    parser.add_argument("--undo", action="store_true", help="turn it back into an ordinary executable")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.outfile is not None and len(args.vmlinux) != 1:
        raise UsageError("-o takes exactly one VMLINUX", hint="kdump-elftool makedyn -o COPY VMLINUX")
    if not args.vmlinux:
        raise UsageError("no file is named that may be changed", hint="kdump-elftool makedyn VMLINUX...")
    wanted, accepted = (c.ET_EXEC, (c.ET_DYN,)) if args.undo else (c.ET_DYN, (c.ET_EXEC,))
    stream = sys.stdout
    if args.outfile is not None:
        if _changed_copy(args.vmlinux[0], args.outfile, wanted, accepted):
            stream = sys.stderr
        changed = [args.outfile]
    else:
        changed = [path for path in args.vmlinux if set_type(path, wanted, accepted)]
    if args.json:
        print(json.dumps({"schema": "kdump-elftool/makedyn/1", "changed": changed}), file=stream)
    return 0


def _changed_copy(path: str, copy: str, wanted: int, accepted: tuple[int, ...]) -> bool:
    """Write the copy; returns whether it went to stdout."""
    with InputFile.open(path) as file:
        header = read_header(file)
        if header.e_type not in (wanted, *accepted):
            raise FormatError(file.path, "this is not a vmlinux", hint="makedyn changes the kernel's vmlinux")
        status = os.fstat(file.fd)
        with open_output(copy, [file]) as out:
            buffer = memoryview(bytearray(_CHUNK))
            for offset in range(0, file.size, _CHUNK):
                view = buffer[: min(_CHUNK, file.size - offset)]
                file.read_into(offset, view)
                if offset == 0:
                    view[16:18] = wanted.to_bytes(2, "little" if header.kind.order == "<" else "big")
                out.write_at(offset, view)
            out.finish(file.size)
            to_stdout = out.is_stdout()
            out.commit()
            if out.is_file:
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    return to_stdout
