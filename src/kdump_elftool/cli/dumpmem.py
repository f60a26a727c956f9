"""``kdump-elftool dumpmem``: memory of a dump in hexadecimal, or as it is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from kdump_elftool.addr import MASK64, u64
from kdump_elftool.cli.common import add_common, hexadecimal, warn
from kdump_elftool.cli.dump_input import Opened, open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.errors import FaultError, UsageError
from kdump_elftool.files import open_output
from kdump_elftool.jobs.kernel import open_kernel
from kdump_elftool.memory.virtual import VirtualMemory

NAME = "dumpmem"
HELP = "print memory of a dump"
_PIECE = 1 << 20
_LINE = 16
_MOST_JSON = 16 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, ("-i", "--infile"), vmlinux=True, operands=False)
    output = parser.add_argument_group("selection and output")
    output.add_argument(
        "-p", "--is_physical", action="store_true", help="ADDR is a physical address, not a virtual one"
    )
    output.add_argument("--raw", action="store_true", help="the bytes themselves, all of which must be there")
    output.add_argument("-o", "--outfile", metavar="FILE", help="where --raw writes to (default: stdout)")
    output.add_argument("address", metavar="ADDR", type=hexadecimal, help="where to begin, hexadecimal")
    output.add_argument("size", metavar="SIZE", type=hexadecimal, help="how many bytes, hexadecimal")
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.outfile is not None and not args.raw:
        raise UsageError("-o is for --raw", hint="the shell redirects text: dumpmem ... >FILE")
    if args.size == 0 or args.address + args.size - 1 > MASK64:
        raise UsageError(f"{args.size:#x} bytes from {args.address:#x} on are no range of addresses")
    with ExitStack() as stack:
        opened = open_input(args, stack)
        memory = _memory(args, opened)
        if args.raw:
            _write_raw(args, opened, memory)
            return 0
        absent = _print_json(args, memory) if args.json else _print_lines(args, memory)
    sys.stdout.flush()
    if absent:
        warn(f"{absent} of {args.size} bytes are not in the dump", args)
    return 1 if absent == args.size else 0


def _memory(args: argparse.Namespace, opened: Opened) -> VirtualMemory:
    """The memory by the kind of address that was given."""
    if args.is_physical:
        return VirtualMemory.of(opened.dump.memory, u64([0]), u64([0]), u64([MASK64]))
    kernel = open_kernel(opened.dump, opened.request)
    for message in kernel.warnings:
        warn(message, args)
    return kernel.asked(opened.dump)


def _pieces(args: argparse.Namespace, memory: VirtualMemory) -> Iterator[tuple[int, bytes, bytes]]:
    """Address, bytes, and a mask that is 1 where a byte is there."""
    end = args.address + args.size
    for vaddr in range(args.address, end, _PIECE):
        buffer = bytearray(min(_PIECE, end - vaddr))
        there = bytearray(b"\1" * len(buffer))
        for low, high in memory.read_present(vaddr, memoryview(buffer)):
            there[low:high] = bytes(high - low)
        yield vaddr, bytes(buffer), bytes(there)


def _print_lines(args: argparse.Namespace, memory: VirtualMemory) -> int:
    """Lines as the original tool prints them, ``??`` for what is absent; returns its size."""
    absent = 0
    for vaddr, data, there in _pieces(args, memory):
        absent += there.count(0)
        for at in range(0, len(data), _LINE):
            print(_line(vaddr + at, data[at : at + _LINE], there[at : at + _LINE]))
    return absent


def _line(vaddr: int, data: bytes, there: bytes) -> str:
    pairs = zip(data, there, strict=True)
    words = [f"{byte:02x}" if present else "??" for byte, present in pairs]
    pairs = zip(data, there, strict=True)
    text = "".join(chr(byte) if present and 0x20 <= byte < 0x7F else "." for byte, present in pairs)
    return f"{vaddr:x}: {' '.join(words):<{3 * _LINE - 1}}  {text}"


def _print_json(args: argparse.Namespace, memory: VirtualMemory) -> int:
    if args.size > _MOST_JSON:
        raise UsageError(f"--json prints at most {_MOST_JSON:#x} bytes", hint="--raw writes any number")
    absent, pieces = 0, []
    for vaddr, data, there in _pieces(args, memory):
        absent += there.count(0)
        at = 0
        while at < len(data):
            end = there.find(bytes([1 - there[at]]), at)
            end = len(data) if end < 0 else end
            if there[at]:
                pieces.append({"address": f"{vaddr + at:#x}", "hex": data[at:end].hex()})
            at = end
    print(json.dumps({**_head(args), "absent_bytes": absent, "pieces": pieces}))
    return absent


def _head(args: argparse.Namespace) -> dict[str, object]:
    return {"schema": "kdump-elftool/dumpmem/1", "address": f"{args.address:#x}", "bytes": args.size}


def _write_raw(args: argparse.Namespace, opened: Opened, memory: VirtualMemory) -> None:
    """All of it or an error: bytes without addresses cannot show a gap."""
    space = "paddr" if args.is_physical else "vaddr"
    for vaddr, _, there in _pieces(args, memory):
        at = there.find(b"\0")
        if at >= 0:
            raise FaultError(space, vaddr + at, "not in the dump: --raw cannot show gaps")
    with open_output(args.outfile, opened.files) as out:
        for vaddr, data, _ in _pieces(args, memory):
            out.write_at(vaddr - args.address, data)
        out.finish(args.size)
        to_stdout = out.is_stdout()
        out.commit()
    if args.json:
        stream = sys.stderr if to_stdout else sys.stdout
        print(json.dumps({**_head(args), "absent_bytes": 0, "output": args.outfile}), file=stream)
