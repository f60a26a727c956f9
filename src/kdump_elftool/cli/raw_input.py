"""Which files are meant: ``FILE@ADDRESS`` of raw memory, ``--ram-base``, files that go together."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from kdump_elftool.addr import parse_number
from kdump_elftool.cli.common import DEFAULT_VMCORE, all_inputs
from kdump_elftool.errors import UsageError
from kdump_elftool.formats.oldmem import NAME as OLDMEM
from kdump_elftool.formats.raw import NAME as RAW
from kdump_elftool.formats.vmware import MEMORY_SUFFIX, STATE_SUFFIXES
from kdump_elftool.formats.vmware import NAME as VMWARE
from kdump_elftool.safe_text import printable


@dataclass(frozen=True)
class Inputs:
    """The dump's files, what ``-I`` says or must have meant, and for raw memory the address of each.

    ``device``: memory by physical address, which belongs to the headers in ``paths``.
    """

    paths: tuple[str, ...]
    intype: str
    addresses: tuple[int, ...] = ()
    device: str | None = None


def named_inputs(args: argparse.Namespace) -> Inputs:
    """What the command line names.  Raises UsageError where places and names don't go together."""
    if args.intype == OLDMEM:
        return _device_inputs(args)
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
        return Inputs(with_sibling(paths) if intype in ("auto", VMWARE) else paths, intype)
    if not given:
        return Inputs(paths, intype, () if args.ram_base is None else (args.ram_base,))
    if args.ram_base is not None:
        raise UsageError("FILE@ADDRESS and --ram-base both say where memory lies", hint="leave out one")
    if len(given) < len(places):
        without = printable(names[places.index(None)])
        raise UsageError(f"{without} has no address, others have", hint="name each as FILE@ADDRESS")
    return Inputs(paths, intype, tuple(given))


def _device_inputs(args: argparse.Namespace) -> Inputs:
    """Headers (-v) and a device (-i); without a device the headers' file has the data as well."""
    devices = [*(args.infile or []), *(args.dump or [])]
    if len(devices) > 1:
        raise UsageError(f"-I oldmem reads one device, not {len(devices)}", hint="-v names the headers")
    if args.ram_base is not None:
        raise UsageError("--ram-base is for raw memory alone", hint="say so with -I raw")
    headers = (args.vmcore or DEFAULT_VMCORE,)
    return Inputs(headers, OLDMEM, device=devices[0]) if devices else Inputs(headers, "pelf")


def with_sibling(paths: tuple[str, ...]) -> tuple[str, ...]:
    """A VMware guest's state and memory, the state first, where one is named and the other lies beside it."""
    if len(paths) == 2 and paths[0].endswith(MEMORY_SUFFIX) and paths[1].endswith(STATE_SUFFIXES):
        return paths[1], paths[0]
    if len(paths) != 1 or not paths[0].endswith((MEMORY_SUFFIX, *STATE_SUFFIXES)):
        return paths
    stem, _, suffix = paths[0].rpartition(".")
    if f".{suffix}" in STATE_SUFFIXES:
        memory = stem + MEMORY_SUFFIX
        return (paths[0], memory) if os.path.isfile(memory) else paths
    states = [stem + suffix for suffix in STATE_SUFFIXES if os.path.isfile(stem + suffix)]
    return (states[0], paths[0]) if states else paths


def split_place(name: str) -> tuple[str, int | None]:
    """File and address of ``FILE@ADDRESS``; the name as it is if a file has it or no number is behind @."""
    path, _, number = name.rpartition("@")
    if not path or os.path.lexists(name):
        return name, None
    try:
        return path, parse_number(number)
    except ValueError:
        return name, None
