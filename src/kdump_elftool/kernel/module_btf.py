"""The BTF of modules: the kernel keeps a list of those it has read, with their modules.

References: kernel/bpf/btf.c, struct btf_module and btf_module_notify() (v5.11 on), struct btf.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdump_elftool.addr import u64
from kdump_elftool.errors import FaultError
from kdump_elftool.kernel.btf import HEADER_SIZE, MAX_SIZE
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.kernel.lists import ListReader
from kdump_elftool.kernel.words import Words

log = logging.getLogger(__name__)

_MOST_MODULES = 1 << 12
_MOST_BYTES = 256 << 20
"""Of all modules together; those of a distribution with everything loaded take some 60 MB."""


@dataclass(frozen=True)
class ModuleBtf:
    """Address of a ``struct module``, and the bytes of its BTF object."""

    module: int
    data: bytes


def read_module_btf(words: Words, known: Knowledge) -> list[ModuleBtf]:
    """The BTF of all modules that have one and can be read."""
    head = known.symbol("btf_modules")
    names = ("btf_module.list", "btf_module.module", "btf_module.btf", "btf.data", "btf.data_size")
    offsets = [known.offset(name) for name in names]
    if head is None or any(offset is None for offset in offsets):
        log.info("BTF of modules: it is not known where the kernel has it")
        return []
    node, module, btf, data, size = (offset or 0 for offset in offsets)
    reader = ListReader(words.memory, words.order, words.word)
    found: list[ModuleBtf] = []
    left = _MOST_BYTES
    for vaddr in reader.walk(u64([head]), _MOST_MODULES).node.tolist():
        try:
            where = words.read(vaddr - node + btf)
            length = words.read(where + size, 4)
            if not HEADER_SIZE <= length <= min(MAX_SIZE, left):
                continue
            content = words.memory.read(words.read(where + data), length)
            found.append(ModuleBtf(words.read(vaddr - node + module), content))
            left -= length
        except FaultError as error:
            log.info("BTF of a module: %s", error)
    return found
