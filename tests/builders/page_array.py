"""Arrays of ``struct page`` in memory, in every form in which kernels have kept them."""

from __future__ import annotations

from tests.builders.structures import Memory

MODELS = ("extreme", "extreme by pointer", "table", "flat", "nodes")
SECTION_BITS, PHYSMEM_BITS, PAGE_SHIFT = 16, 24, 12
PER_SECTION = 1 << SECTION_BITS - PAGE_SHIFT
SECTIONS = (1, 2, 130)
"""Numbers of the sections that there are; the last is not in the first root."""
NODES = ((0x10, 32), (0x820, 16))
"""First frame and number of frames, where memory is not sparse."""
MEMBERS = ("flags", "mapping", "index", "private", "_mapcount", "_refcount", "compound_head", "slab_cache")


def make_array(model: str, word: int, head: str = "compound_head") -> tuple[Memory, dict[int, int]]:
    """Memory, and the address of each frame's struct page."""
    memory = Memory("<", word)
    memory.struct("page", *(head if each == "compound_head" else each for each in MEMBERS))
    memory.keys |= {
        "NUMBER(PAGE_SHIFT)": PAGE_SHIFT,
        "NUMBER(SECTION_SIZE_BITS)": SECTION_BITS,
        "NUMBER(MAX_PHYSMEM_BITS)": PHYSMEM_BITS,
    }
    return memory, (_nodes if model in ("flat", "nodes") else _sections)(memory, model)


def _sections(memory: Memory, model: str) -> dict[int, int]:
    memory.struct("mem_section", "section_mem_map", "usage")
    each, size = memory.keys["SIZE(mem_section)"], memory.keys["SIZE(page)"]
    per_root = (1 << PAGE_SHIFT) // each
    count = 1 << PHYSMEM_BITS - SECTION_BITS
    roots = memory.take(memory.word * -(-count // per_root), 4096)
    table = memory.take(each * count, 4096) if model == "table" else 0
    found = {}
    for number in SECTIONS:
        array = memory.take(size * PER_SECTION, 64)
        first = number * PER_SECTION
        slot = table + number * each
        if not table:
            at = roots + number // per_root * memory.word
            root = int.from_bytes(memory.read(at, memory.word), "little") or memory.take(4096, 4096)
            memory.put(at, root)
            slot = root + number % per_root * each
        # the sixth flag is one of 64-bit kernels
        memory.put(slot, array - first * size | (0b101011 if memory.word == 8 and number == 2 else 0b111))
        found |= {first + index: array + index * size for index in range(PER_SECTION)}
    variable = memory.take(memory.word)
    memory.put(variable, roots)
    memory.keys["SYMBOL(mem_section)"] = {"table": table, "extreme": roots}.get(model, variable)
    return found


def _nodes(memory: Memory, model: str) -> dict[int, int]:
    memory.struct("pglist_data", "node_start_pfn", "node_spanned_pages", "node_mem_map")
    size, found, nodes = memory.keys["SIZE(page)"], {}, []
    for first, count in NODES if model == "nodes" else NODES[:1]:
        array = memory.take(size * count, 64)
        nodes.append(
            memory.make("pglist_data", node_start_pfn=first, node_spanned_pages=count, node_mem_map=array)
        )
        found |= {first + index: array + index * size for index in range(count)}
    if model == "nodes":
        table = memory.take(memory.word * (len(nodes) + 1))
        for index, node in enumerate(nodes):
            memory.put(table + index * memory.word, node)
        memory.keys["SYMBOL(node_data)"] = table
    else:
        memory.keys["SYMBOL(contig_page_data)"] = nodes[0]
    return found
