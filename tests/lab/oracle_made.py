"""drgn as the reader of a made vmlinux and of the real one, as JSON: what it takes from either.

usage: oracle_made.py CORE VMLINUX ANSWER < REQUEST

REQUEST: {"types": ["struct NAME"], "functions": [NAME]}.  The answer has each of them as text, a type with
size, offsets and widths of its members in bits, ``null`` where drgn knows none of that name; the number of
``tasks`` and the ``banner``, by the types and symbols of the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drgn
from drgn.helpers.linux.pid import for_each_task


def main() -> None:
    core, vmlinux, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    prog = drgn.Program()
    prog.set_core_dump(core)
    try:
        prog.load_debug_info([vmlinux])
    except drgn.MissingDebugInfoError as error:
        assert vmlinux not in str(error), error  # of modules there is none

    def of_type(name: str) -> list[Any]:
        found = prog.type(name)
        return [str(found), found.size, members(found)]

    def signature(name: str) -> str:
        return str(prog.function(name).type_)

    release = prog["init_uts_ns"].name.release.string_().decode()
    result = {
        "types": {name: known(of_type, name) for name in request["types"]},
        "functions": {name: known(signature, name) for name in request["functions"]},
        "tasks": len(list(for_each_task(prog))),
        "banner": f"{prog['init_task'].comm.string_().decode()} {release}",
    }
    Path(answer).write_text(json.dumps(result))


def known(look: Callable[[str], Any], name: str) -> Any:
    try:
        return look(name)
    except (LookupError, drgn.BadDataError):  # what functions written in assembly return is no type to it
        return None


def members(found: drgn.Type) -> list[Any]:
    """With those of members that have no name of their own."""
    return [
        [each.bit_offset, each.bit_field_size, None if each.name else members(each.type)]
        for each in found.members
    ]


if __name__ == "__main__":
    main()
