"""Per-CPU variables by the kernel's BTF: it lists them all, with their places in one section.

Where that section lies, the address of any of them tells; kernels export some to their modules.
Reference: Documentation/bpf/btf.rst, BTF_KIND_DATASEC (".data..percpu", since v5.12 what pahole encodes).
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kdump_elftool.addr import MASK64
from kdump_elftool.elf.btf_kinds import WORDS_EACH, Kind
from kdump_elftool.kernel.btf import Btf
from kdump_elftool.kernel.facts import Fact, Source

log = logging.getLogger(__name__)

SECTION = ".data..percpu"
_LABEL = "BTF's list of per-CPU variables"


@dataclass(frozen=True)
class BtfPercpu:
    """Symbols of the variables in BTF's section, given some of them by ``known``."""

    btf: Btf
    known: Source

    def find(self, kind: str, name: str, /) -> Fact | None:
        """As :class:`kernel.facts.Source`."""
        offset = self._offsets.get(name) if kind == "SYMBOL" else None
        if offset is None or self._start is None:
            return None
        return Fact(f"SYMBOL({name})", (self._start + offset) & MASK64, _LABEL)

    @cached_property
    def _offsets(self) -> dict[str, int]:
        """Places within the section, of names that it has once."""
        btf, found, seen = self.btf, dict[str, int](), Counter[str]()
        for section in btf.ids(SECTION, (Kind.DATASEC,))[:1]:
            row, each = section - 1, WORDS_EACH[Kind.DATASEC]
            first = int(btf.start[row]) + 3
            table = btf.words[first : first + each * int(btf.vlen[row])].reshape(-1, each)
            variable = table[:, 0].astype(np.intp) - 1
            inside = (variable >= 0) & (variable < len(btf))
            inside[inside] &= btf.kind[variable[inside]] == Kind.VAR
            for at, offset in zip(variable[inside].tolist(), table[inside, 1].tolist(), strict=True):
                begin = int(btf.name[at])
                end = btf.strings.find(b"\0", begin)
                text = btf.strings[begin:end].decode("latin-1")
                seen[text] += 1
                found[text] = offset
        return {name: offset for name, offset in found.items() if seen[name] == 1}

    @cached_property
    def _start(self) -> int | None:
        """Where the section begins, by what most of the known variables say."""
        votes = Counter[int]()
        for name, offset in self._offsets.items():
            fact = self.known.find("SYMBOL", name)
            if fact is not None:
                votes[(int(fact.value) - offset) & MASK64] += 1
        if not votes:
            log.info("per-CPU variables of BTF: the address of none is known")
            return None
        ((start, agreed),) = votes.most_common(1)
        log.info(
            "per-CPU variables of BTF: %d of %d say that they begin at %#x", agreed, votes.total(), start
        )
        return start if 2 * agreed > votes.total() else None
