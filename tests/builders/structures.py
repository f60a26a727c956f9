"""Lists and trees in memory, linked as the kernel links them, for the plain walkers."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdump_elftool.errors import FaultError

BASE = 0x1000000
"""Above all numbers of tasks."""
XA_SLOTS = 16
RANGE_SLOTS, ARANGE_SLOTS = 16, 10
"""As on 64-bit kernels; 32-bit ones have 32 and 21, which fit into 256 bytes as well."""


@dataclass
class Memory:
    """Words by address; what was never written is not mapped."""

    order: str = "<"
    word: int = 8
    data: dict[int, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    next: int = BASE

    def take(self, size: int, align: int = 8) -> int:
        """Zeroed memory."""
        at = -(-self.next // align) * align
        self.next = at + size
        self.data.update(dict.fromkeys(range(at, at + size), 0))
        return at

    def put(self, vaddr: int, value: int, width: int = 0) -> None:
        """A number; a word without ``width``."""
        width = width or self.word
        raw = (value & (1 << 8 * width) - 1).to_bytes(width, "little" if self.order == "<" else "big")
        self.data.update(zip(range(vaddr, vaddr + width), raw, strict=True))

    def text(self, value: bytes) -> int:
        """Its address."""
        at = self.take(-(-(len(value) + 1) // 64) * 64, 64)
        self.data.update(zip(range(at, at + len(value)), value, strict=True))
        return at

    def read(self, vaddr: int, size: int, /) -> bytes:
        try:
            return bytes(self.data[at] for at in range(vaddr, vaddr + size))
        except KeyError:
            raise FaultError("vaddr", vaddr, "not mapped") from None

    def symbol(self, name: str, /) -> int | None:
        return self.keys.get(f"SYMBOL({name})")

    def offset(self, name: str, /) -> int | None:
        return self.keys.get(f"OFFSET({name})")

    def size(self, name: str, /) -> int | None:
        return self.keys.get(f"SIZE({name})")

    def length(self, name: str, /) -> int | None:
        return self.keys.get(f"LENGTH({name})")

    def number(self, name: str, /) -> int | None:
        return self.keys.get(f"NUMBER({name})")

    def struct(self, name: str, *members: str) -> None:
        """A struct of words."""
        self.keys.update({f"OFFSET({name}.{each})": at * self.word for at, each in enumerate(members)})
        self.keys[f"SIZE({name})"] = len(members) * self.word

    def make(self, name: str, /, **members: int) -> int:
        """One of those, with values."""
        at = self.take(self.keys[f"SIZE({name})"])
        for member, value in members.items():
            self.put(at + self.keys[f"OFFSET({name}.{member})"], value)
        return at


def make_list(memory: Memory, count: int) -> tuple[int, list[int]]:
    """Head and nodes of a struct list_head."""
    head, *nodes = (memory.take(2 * memory.word) for _ in range(count + 1))
    ring = [head, *nodes]
    for at, node in enumerate(ring):
        memory.put(node, ring[(at + 1) % len(ring)])
        memory.put(node + memory.word, ring[at - 1])
    return head, nodes


def make_hlist(memory: Memory, count: int) -> tuple[int, list[int]]:
    """Head and nodes of a struct hlist_head."""
    head = memory.take(memory.word)
    nodes = [memory.take(2 * memory.word) for _ in range(count)]
    for before, node in zip([head, *nodes], nodes, strict=False):
        memory.put(before, node)
        memory.put(node + memory.word, before)
    return head, nodes


def make_rbtree(memory: Memory, count: int) -> tuple[int, list[int]]:
    """Root and nodes in order; colours are put as they come, since no walk looks at them."""
    root = memory.take(memory.word)
    nodes = [memory.take(3 * memory.word) for _ in range(count)]

    def link(low: int, high: int, parent: int) -> int:
        if low >= high:
            return 0
        middle = (low + high) // 2
        node = nodes[middle]
        memory.put(node, parent | middle % 2)
        memory.put(node + memory.word, link(middle + 1, high, node))
        memory.put(node + 2 * memory.word, link(low, middle, node))
        return node

    memory.put(root, link(0, count, 0))
    return root, nodes


def describe_xarray(memory: Memory, form: str) -> None:
    """``xarray``, or a radix tree whose nodes tell ``shift``, ``path`` or ``height``."""
    kind = "xa_node" if form == "xarray" else "radix_tree_node"
    head = "xarray.xa_head" if form == "xarray" else "radix_tree_root.rnode"
    member = "shift" if form == "xarray" else form
    memory.keys |= {f"OFFSET({head})": 8, f"OFFSET({kind}.slots)": 16, f"OFFSET({kind}.{member})": 0}
    memory.keys[f"SIZE({kind}.slots)"] = XA_SLOTS * memory.word


def make_xarray(memory: Memory, form: str, entries: dict[int, int]) -> int:
    """The root of a tree with entries as they are stored."""
    describe_xarray(memory, form)
    root = memory.take(8 + memory.word)
    levels = 1
    while max(entries) >= XA_SLOTS**levels:
        levels += 1
    mark = 2 if form == "xarray" else 1

    def node(level: int, base: int) -> int:
        at = memory.take(16 + XA_SLOTS * memory.word, 64)
        shift, width = 4 * level, 1 if form in ("xarray", "shift") else 4
        memory.put(at, shift if width == 1 else level + 1, width)
        if form == "path":
            memory.put(at, level + 1 | 5 << 17, 4)  # with the offset in the parent above
        for slot in range(XA_SLOTS):
            first = base + (slot << shift)
            if level == 0:
                memory.put(at + 16 + slot * memory.word, entries.get(first, 0))
            elif any(first <= index < first + (1 << shift) for index in entries):
                tagged = 0 if form in ("path", "height") else mark
                memory.put(at + 16 + slot * memory.word, node(level - 1, first) | tagged)
        return at

    memory.put(root + 8, node(levels - 1, 0) | mark)
    return root


def describe_maple(memory: Memory) -> None:
    """Layouts of lib/maple_tree.c."""
    word = memory.word
    memory.keys["OFFSET(maple_tree.ma_root)"] = 8
    for kind, slots in (("maple_range_64", RANGE_SLOTS), ("maple_arange_64", ARANGE_SLOTS)):
        at = word * slots
        end = at + (slots - 1) * word if kind == "maple_range_64" else at + 2 * slots * word
        memory.keys |= {
            f"OFFSET({kind}.pivot)": word,
            f"SIZE({kind}.pivot)": word * (slots - 1),
            f"OFFSET({kind}.slot)": at,
            f"SIZE({kind}.slot)": word * slots,
            f"OFFSET({kind}.meta.end)": end,
        }


def make_maple(memory: Memory, spans: list[tuple[int, int, int]], fanout: int, leaf: int) -> int:
    """A tree of the spans (first, last, entry) with gaps between them, ``leaf`` slots in a leaf."""
    describe_maple(memory)
    top = (1 << 8 * memory.word) - 1
    cells: list[tuple[int, int]] = []  # last index, entry
    reached = 0
    for first, last, entry in spans:
        if first > reached:
            cells.append((first - 1, 0))
        cells.append((last, entry))
        reached = last + 1
    if reached <= top:
        cells.append((top, 0))
    level, kind = [(last, entry) for last, entry in cells], 1
    while True:
        step = leaf if kind == 1 else fanout
        level = [_maple_node(memory, kind, level[at : at + step]) for at in range(0, len(level), step)]
        kind = 3
        if len(level) == 1:
            break
    tree = memory.take(8 + memory.word)
    memory.put(tree + 8, level[0][1] & ~4 | 2)
    return tree


def _maple_node(memory: Memory, kind: int, cells: list[tuple[int, int]]) -> tuple[int, int]:
    name = "maple_range_64" if kind == 1 else "maple_arange_64"
    at = memory.take(256, 256)
    pivot, slot, end = (memory.keys[f"OFFSET({name}.{each})"] for each in ("pivot", "slot", "meta.end"))
    pivots = memory.keys[f"SIZE({name}.pivot)"] // memory.word
    for index, (last, entry) in enumerate(cells):
        if index < pivots and (index < len(cells) - 1 or len(cells) == pivots):
            memory.put(at + pivot + index * memory.word, last)
        memory.put(at + slot + index * memory.word, entry)
    if len(cells) < pivots or kind == 3:
        memory.put(at + end, len(cells) - 1, 1)
    return cells[-1][0], at | kind << 3 | 4
