"""Lists of modules by their content, for kernels whose symbol table has functions only.

``modules`` is a list's head: the only node on it around which there is no ``struct module``.  Such a one
has a name, and its kernel object (``mkobj``) points back to it.  ``btf_modules`` heads the list of those
whose types the kernel has read; each entry points to a module.

References: include/linux/module.h (struct module, struct module_kobject), kernel/module/main.c (modules),
kernel/bpf/btf.c (struct btf_module).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import U64, Bools, align_up, u64
from kdump_elftool.kernel.btf import MAGIC
from kdump_elftool.kernel.facts import Source
from kdump_elftool.kernel.words import Words

log = logging.getLogger(__name__)

_NAME = re.compile(rb"[A-Za-z0-9_-]{1,63}\0")
_NAME_SIZE = 56
"""MODULE_NAME_LEN; 60 on 32-bit machines."""
_LARGEST_OFFSET = 1 << 14
"""In struct module and the like: what VMCOREINFO says of them may be any number."""

_SHAPES = {
    "modules": ("module.list", None, ()),
    "btf_modules": ("btf_module.list", "btf_module.module", ("btf_module.btf", "btf.data")),
}
"""By the head's name: where the nodes of the list are, and the pointer to the module where it is not around;
pointers that lead on from there to a BTF object (kernel/tracepoint.c has a list that looks alike)."""
LISTS = tuple(_SHAPES)


@dataclass(frozen=True)
class _Shape:
    """Offsets: of a list's node and of the pointer to its module, if any; of a module's name, and of the
    pointer to the module itself; of pointers that lead to BTF."""

    node: int
    pointer: int | None
    name: int
    back: int
    to_btf: tuple[int, ...]


def find_module_list(words: Words, known: Source, window: tuple[int, int], symbol: str) -> int | None:
    """The address of ``symbol``, one of LISTS, in the image in ``window``; None if it is not there."""
    shape = _shape(known, *_SHAPES[symbol])
    if shape is None:
        log.info("%s cannot be looked for: the layout of struct module is not known", symbol)
        return None
    found: set[int] = set()
    for start, data in words.memory.scan(*window, 2 * words.word):
        found.update(_heads(words, shape, start, data).tolist())
        if len(found) > 1:
            log.info("%s: several lists look like it", symbol)
            return None
    return found.pop() if found else None


def _shape(known: Source, node: str, pointer: str | None, to_btf: tuple[str, ...]) -> _Shape | None:
    questions = (node, pointer or node, "module.name", "module.mkobj", "module_kobject.mod", *to_btf)
    facts = [known.find("OFFSET", name) for name in questions]
    offsets = [int(fact.value) for fact in facts if fact is not None]
    if len(offsets) < len(questions) or not all(0 <= offset <= _LARGEST_OFFSET for offset in offsets):
        return None
    at_node, at_pointer, name, mkobj, mod, *path = offsets
    return _Shape(at_node, at_pointer if pointer else None, name, mkobj + mod, tuple(path))


def _heads(words: Words, shape: _Shape, start: int, data: bytes) -> U64:
    """Heads of lists of modules in a piece of memory."""
    word = words.word
    skip = align_up(start, word) - start
    count = (len(data) - skip) // word
    if count < 2:
        return u64([])
    number = np.frombuffer(data, dtype=f"{words.order}u{word}", count=count, offset=skip).astype(np.uint64)
    head = np.uint64(start + skip) + np.arange(count - 1, dtype=np.uint64) * np.uint64(word)
    following, preceding = number[:-1], number[1:]
    linked = (following != head) & (preceding != head) & (following % np.uint64(word) == 0)
    linked &= (preceding % np.uint64(word) == 0) & (following > np.uint64(1 << 12))
    head, following, preceding = head[linked], following[linked], preceding[linked]
    back, _ = words.column(following + np.uint64(word) & words.mask)
    head, following, preceding = (column[back == head] for column in (head, following, preceding))
    forth, _ = words.column(preceding)
    head, following, preceding = (column[forth == head] for column in (head, following, preceding))
    first, last, own = (_is_module(words, shape, node) for node in (following, preceding, head))
    heads: U64 = head[first & last & ~own]
    return heads


def _is_module(words: Words, shape: _Shape, node: U64) -> Bools:
    """Whether these nodes of a list are those of modules."""
    entry = node - np.uint64(shape.node) & words.mask
    vaddr = entry if shape.pointer is None else _follow(words, entry, shape.pointer)
    back, readable = words.column(vaddr + np.uint64(shape.back) & words.mask)
    good: Bools = readable & (back == vaddr)
    if shape.to_btf:
        for offset in shape.to_btf:
            entry = _follow(words, entry, offset)
        magic, readable = words.memory.gather(entry, 2)
        good &= readable & (magic.view(f"{words.order}u2").reshape(-1) == MAGIC)
    rows = np.flatnonzero(good)
    names, there = words.memory.gather(vaddr[rows] + np.uint64(shape.name) & words.mask, _NAME_SIZE)
    named = [bool(_NAME.match(name.tobytes())) for name in names]
    good[rows] = np.array(named, dtype=np.bool_) & there
    return good


def _follow(words: Words, vaddr: U64, offset: int) -> U64:
    """The pointers at ``offset`` from these addresses; 0 where there is none."""
    return words.column(vaddr + np.uint64(offset) & words.mask)[0]
