"""Run inside gdb: how it shows types and functions.

KD_REQUEST is a JSON file: ``structs``, of which ``count`` are drawn with ``seed``, only from those of the
``units`` with these functions if ``from_units``; ``functions``, their addresses (all of these units if
there are none); ``offset``, what to add to addresses.  KD_ANSWER gets ``structs`` by name, ``functions``
by name and address.
"""

import json
import os
import random

import gdb


def shown(tag):
    """``ptype /o``, None where gdb knows no such type."""
    try:
        return gdb.execute(f"ptype /o {tag}", to_string=True)
    except gdb.error as error:
        assert "No struct type" in str(error) or "No union type" in str(error), error
        return None


def tags_of(block):
    """struct and union tags of a unit."""
    kinds = {gdb.TYPE_CODE_STRUCT: "struct", gdb.TYPE_CODE_UNION: "union"}
    for symbol in block:
        if symbol.addr_class == gdb.SYMBOL_LOC_TYPEDEF and symbol.type.code in kinds and symbol.type.tag:
            yield f"{kinds[symbol.type.code]} {symbol.type.tag}"


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
    for setting in ("width 0", "pagination off", "max-value-size unlimited", "language c"):
        gdb.execute(f"set {setting}")
    if request["units"]:
        # names are then looked for in this unit first, and no other one need be read
        gdb.execute(f"list {request['units'][0]}", to_string=True)
    structs, addresses = set(), set(request["functions"])
    for name in request["units"]:
        table = gdb.lookup_global_symbol(name).symtab
        for block in (table.static_block(), table.global_block()):
            structs |= set(tags_of(block))
            addresses |= {int(symbol.value().address) for symbol in block if symbol.is_function}
    found = {address: signature(address) for address in sorted(addresses)}
    functions = {f"{address + request['offset']:x}": text for address, text in found.items() if text}
    names = sorted(structs & set(request["structs"])) if request["from_units"] else request["structs"]
    if len(names) > request["count"]:
        names = random.Random(request["seed"]).sample(names, request["count"])
    answer = {"structs": {name: shown(name) for name in names}, "functions": functions}
    with open(os.environ["KD_ANSWER"], "w") as file:
        json.dump(answer, file)


main()
