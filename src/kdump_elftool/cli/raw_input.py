"""Where raw memory lies: ``FILE@ADDRESS`` in the place of a dump's name, and ``--ram-base``."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from kdump_elftool.addr import parse_number
from kdump_elftool.cli.common import all_inputs
from kdump_elftool.errors import UsageError
from kdump_elftool.formats.raw import NAME as RAW
from kdump_elftool.safe_text import printable


@dataclass(frozen=True)
class Inputs:
    """The dump's files, what ``-I`` says or must have meant, and for raw memory the address of each."""

    paths: tuple[str, ...]
    intype: str
    addresses: tuple[int, ...] = ()


def named_inputs(args: argparse.Namespace) -> Inputs:
    """What the command line names.  Raises UsageError where places and names don't go together."""
    names = all_inputs(args)
    pieces = [split_place(name) for name in names]
    paths = tuple(path for path, _ in pieces)
    places = [address for _, address in pieces]
    given = [address for address in places if address is not None]
    intype = RAW if given and args.intype == "auto" else args.intype
    if intype != RAW:
        if given:
            raise UsageError(
                f"FILE@ADDRESS is a piece of raw memory, which -I {intype} is not", hint="leave out -I"
            )
        if args.ram_base is not None:
            raise UsageError("--ram-base is for raw memory alone", hint="say so with -I raw")
        return Inputs(paths, intype)
    if not given:
        return Inputs(paths, intype, () if args.ram_base is None else (args.ram_base,))
    if args.ram_base is not None:
        raise UsageError("FILE@ADDRESS and --ram-base both say where memory lies", hint="leave out one")
    if len(given) < len(places):
        without = printable(names[places.index(None)])
        raise UsageError(f"{without} has no address, others have", hint="name each as FILE@ADDRESS")
    return Inputs(paths, intype, tuple(given))


def split_place(name: str) -> tuple[str, int | None]:
    """File and address of ``FILE@ADDRESS``; the name as it is if a file has it or no number is behind @."""
    path, _, number = name.rpartition("@")
    if not path or os.path.lexists(name):
        return name, None
    try:
        return path, parse_number(number)
    except ValueError:
        return name, None
