"""Run inside gdb: how it shows types and functions.

KD_REQUEST is a JSON file: ``structs``, asked for in this order until gdb knows ``count`` of them (those in
functions it does not); ``functions``, their addresses, besides those of the ``units`` that have these
functions; ``offset``, what to add to addresses.
KD_ANSWER gets ``structs`` by name, ``functions`` by address.
"""

import json
import os
import re

import gdb

SETTINGS = (
    "width 0",
    "pagination off",
    "max-value-size unlimited",
    "language c",
    "opaque-type-resolution off",
)
"""What a unit only declares is printed by its name: to look for it in others takes half as long again."""


def shown(tag):
    """``ptype /o``, None where gdb knows no such type."""
    try:
        return gdb.execute(f"ptype /o {tag}", to_string=True)
    except gdb.error as error:
        # an enum of that name elsewhere is another definition
        assert re.search("No (struct|union) type|has class, union or enum", str(error)), error
        return None


def signature(address):
    """Name, return type, and types and names of parameters of the function that begins there."""
    block = gdb.block_for_pc(address)
    # the outermost one: what is inlined at its beginning begins there as well
    while block and block.superblock and not block.superblock.is_static:
        block = block.superblock
    if block is None or block.start != address or not block.function:
        return None
    arguments = [f"{argument.type} {argument.name}" for argument in block if argument.is_argument]
    return f"{block.function.name}: {block.function.type.target()} ({', '.join(arguments)})"


def main():
    with open(os.environ["KD_REQUEST"]) as file:
        request = json.load(file)
    for setting in SETTINGS:
        gdb.execute(f"set {setting}")
    addresses = set(request["functions"])
    for name in request["units"]:
        table = gdb.lookup_global_symbol(name).symtab
        for block in (table.static_block(), table.global_block()):
            addresses |= {int(symbol.value().address) for symbol in block if symbol.is_function}
    found = {address: signature(address) for address in sorted(addresses)}
    functions = {f"{address + request['offset']:x}": text for address, text in found.items() if text}
    structs, known = {}, 0
    for name in request["structs"]:
        if known == request["count"]:
            break
        structs[name] = shown(name)
        known += structs[name] is not None
    answer = {"structs": structs, "functions": functions}
    with open(os.environ["KD_ANSWER"], "w") as file:
        json.dump(answer, file)


main()
