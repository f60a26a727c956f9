"""Options of the commands that read a dump: which file it is, what it cannot say, which kernel in it."""

from __future__ import annotations

import argparse

from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.cli.common import number
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.formats import INTYPES

MACHINES = {
    name: (arch.e_machine, ElfKind(arch.bits, order))
    for arch in ARCHITECTURES
    for order, name in arch.byte_orders.items()
}
"""e_machine, word size and byte order by the names that ``--arch`` takes; the most likely one first."""

OPERAND_HELP = (
    "the dump to read, or the parts of a split one, or pieces of raw memory as FILE@ADDRESS "
    "(default /proc/vmcore)"
)


def add_dump(
    parser: argparse.ArgumentParser,
    infile: tuple[str, ...] = (),
    *,
    vmlinux: bool = False,
    search: bool = False,
    operands: bool = True,
    operand_help: str = OPERAND_HELP,
) -> argparse._ArgumentGroup:
    """Options of input and kernel; ``infile`` are the seed's names for the dump, beside its position.

    Without ``operands`` only they name it.  With ``search`` a vmlinux that is not given is looked for when it
    is needed.  Returns the kernel group.
    """
    parser.set_defaults(search=search)
    source = parser.add_argument_group("input")
    if operands:
        source.add_argument("dump", nargs="*", metavar="DUMP", help=operand_help)
    else:
        parser.set_defaults(dump=[])
    if infile:
        _add_seed_names(source, infile, "the same" if operands else "the dump to read")
    else:
        parser.set_defaults(infile=None, vmcore=None)
    _add_content(source)
    _add_image(source)
    kernel = parser.add_argument_group("kernel")
    if vmlinux:
        _add_vmlinux(kernel, search=search)
    else:
        parser.set_defaults(vmlinux=None)
    _add_kernel(kernel)
    return kernel


def _add_seed_names(group: argparse._ArgumentGroup, names: tuple[str, ...], what: str) -> None:
    """``-i`` and ``-v``."""
    group.add_argument(*names, dest="infile", action="append", metavar="FILE", help=f"{what} (- is stdin)")
    group.add_argument(
        "-v",
        "--vmcore",
        metavar="FILE",
        help="the dump to read when there is no -i (default /proc/vmcore); with -I oldmem the one whose "
        "headers say what memory the device -i has",
    )


def _add_content(group: argparse._ArgumentGroup) -> None:
    """How to read what every dump has."""
    group.add_argument(
        "-I",
        "--intype",
        choices=INTYPES,
        default="auto",
        help="format of the dump (default: found from its content)",
    )
    group.add_argument(
        "--zero-excluded",
        action="store_true",
        help="read pages that the dump leaves out as zeros: right only if zero pages alone were left out",
    )


def _add_image(group: argparse._ArgumentGroup) -> None:
    """What memory alone does not say."""
    group.add_argument(
        "--arch",
        choices=tuple(MACHINES),
        help="architecture of a memory image that does not say "
        "(default: that of the vmlinux given with -m, that of the kernel found in memory, "
        f"else {next(iter(MACHINES))})",
    )
    group.add_argument(
        "--ram-base",
        metavar="ADDR",
        type=number,
        help="physical address of the first byte of raw memory (-I raw; default: where its kernel must be, "
        "else 0)",
    )
    group.add_argument(
        "--cpu-regs",
        metavar="FILE",
        help="registers of the CPUs, for memory that comes without: what QEMU's monitor prints for "
        "'info registers -a', or lines such as cpu0.rip=ffffffff81000000; they go before those of the dump",
    )


def _add_vmlinux(group: argparse._ArgumentGroup, *, search: bool) -> None:
    group.add_argument(
        "-m",
        "--vmlinux",
        metavar="FILE",
        help="the kernel's vmlinux, or a directory in which it is found by its build id"
        + (" (default: looked for where it is needed)" if search else ""),
    )


def _add_kernel(group: argparse._ArgumentGroup) -> None:
    """The user's word against the dump's."""
    group.add_argument(
        "-e", "--extravminfo", metavar="FILE", help="VMCOREINFO lines that override the dump's"
    )
    group.add_argument(
        "-P",
        "--physpgd",
        metavar="PGD",
        type=number,
        help="physical address of the top page table to use, a process's for example",
    )
    group.add_argument(
        "--kernel",
        metavar="N",
        type=int,
        help="which kernel, if memory holds several: info lists them with --kernel 1",
    )
