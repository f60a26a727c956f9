"""Judge a velf without the package: every header field by struct, every page by its bytes."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from pathlib import Path

from tests.builders.elfcore import PAGE, PHDR_FIELDS, PHDR_FORMAT, PN_XNUM, PT_LOAD, PT_NOTE
from tests.builders.kernel import SyntheticKernel


@dataclass
class Core:
    """An ELF core as struct sees it."""

    image: bytes
    order: str
    elf_class: int
    osabi: int
    e_type: int
    e_machine: int
    e_flags: int
    segments: list[dict[str, int]] = field(default_factory=list)

    @property
    def loads(self) -> list[dict[str, int]]:
        """PT_LOADs in file order."""
        return [segment for segment in self.segments if segment["p_type"] == PT_LOAD]

    def notes(self) -> list[tuple[str, int, bytes]]:
        """(name, type, desc) of every note."""
        out = []
        for segment in self.segments:
            if segment["p_type"] != PT_NOTE:
                continue
            at, end = segment["p_offset"], segment["p_offset"] + segment["p_filesz"]
            assert end <= len(self.image)
            while at < end:
                namesz, descsz, kind = struct.unpack_from(self.order + "III", self.image, at)
                name = self.image[at + 12 : at + 12 + namesz]
                assert name.endswith(b"\0")
                start = at + 12 + -(-namesz // 4) * 4
                out.append((name[:-1].decode(), kind, self.image[start : start + descsz]))
                at = start + -(-descsz // 4) * 4
            assert at == end
        return out

    def read(self, vaddr: int, size: int) -> bytes | None:
        """Memory as the first PT_LOAD that holds it has it, or None."""
        for load in self.loads:
            if load["p_vaddr"] <= vaddr and vaddr + size <= load["p_vaddr"] + load["p_filesz"]:
                at = load["p_offset"] + vaddr - load["p_vaddr"]
                return self.image[at : at + size]
        return None


def read_core(image: bytes | Path) -> Core:
    """Parse a core."""
    image = image.read_bytes() if isinstance(image, Path) else image
    assert image[:4] == b"\x7fELF"
    bits, order = {1: 32, 2: 64}[image[4]], {1: "<", 2: ">"}[image[5]]
    form = order + ("HHIQQQIHHHHHH" if bits == 64 else "HHIIIIIHHHHHH")
    (e_type, machine, _, _, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, shnum, _) = (
        struct.unpack_from(form, image, 16)
    )
    assert ehsize == 16 + struct.calcsize(form)
    if phnum == PN_XNUM:
        assert (shnum, shentsize) == (1, 64 if bits == 64 else 40)
        (phnum,) = struct.unpack_from(order + "I", image, shoff + (44 if bits == 64 else 28))
        assert phnum >= PN_XNUM
    core = Core(image, order, bits, image[7], e_type, machine, flags)
    form = order + PHDR_FORMAT[bits]
    assert phentsize == struct.calcsize(form)
    for index in range(phnum):
        values = struct.unpack_from(form, image, phoff + index * phentsize)
        core.segments.append(dict(zip(PHDR_FIELDS[bits], values, strict=True)))
    return core


def check_shape(core: Core) -> None:
    """What holds for every core the package writes."""
    assert (core.osabi, core.e_type) == (3, 4)
    assert core.segments[0]["p_type"] == PT_NOTE
    assert all(segment["p_type"] == PT_LOAD for segment in core.segments[1:])
    spans = sorted((load["p_vaddr"], load["p_vaddr"] + load["p_memsz"]) for load in core.loads)
    for load in core.loads:
        assert load["p_filesz"] == load["p_memsz"] > 0
        assert load["p_offset"] % PAGE == load["p_vaddr"] % PAGE
        assert load["p_offset"] + load["p_filesz"] <= len(core.image)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start >= end, f"two segments hold {start:#x}"


def check_pages(core: Core, kernel: SyntheticKernel, expected: dict[int, int] | None = None) -> None:
    """Exactly the expected pages are there, each with the bytes that RAM has."""
    wanted = kernel.readable_pages() if expected is None else expected
    found: dict[int, int] = {}
    for load in core.loads:
        assert load["p_vaddr"] % PAGE == 0
        for done in range(0, load["p_filesz"], PAGE):
            found[load["p_vaddr"] + done] = load["p_offset"] + done
    missing, surplus = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    assert not missing, f"{len(missing)} pages lack, first {min(missing):#x}"
    assert not surplus, f"{len(surplus)} pages too many, first {min(surplus):#x}"
    ram = {start: bytes(data) for start, data in kernel.ram.ranges}
    for vaddr, offset in found.items():
        paddr = wanted[vaddr]
        start = max(low for low in ram if low <= paddr)
        assert core.image[offset : offset + PAGE] == ram[start][paddr - start : paddr - start + PAGE], hex(
            vaddr
        )


def check_subset(core: Core, kernel: SyntheticKernel) -> int:
    """Whatever is there is right: known pages with RAM's bytes.  Returns how many pages there are."""
    wanted = kernel.kernel_pages()
    count = 0
    for load in core.loads:
        at = load["p_vaddr"]
        while at < load["p_vaddr"] + load["p_filesz"]:
            step = min(PAGE - at % PAGE, load["p_vaddr"] + load["p_filesz"] - at)
            offset = load["p_offset"] + at - load["p_vaddr"]
            paddr = wanted[at - at % PAGE] + at % PAGE
            assert core.image[offset : offset + step] == kernel.ram.read(paddr, step), hex(at)
            count += 1
            at += step
    return count


def check_aliases_share(core: Core, copied: bool = False) -> None:
    """Pages of one physical address lie at one file offset, different ones at different offsets."""
    by_offset: dict[int, int] = {}
    by_paddr: dict[int, int] = {}
    for load in core.loads:
        if load["p_paddr"] == (1 << 64) - 1:
            assert copied
            continue
        for done in range(0, load["p_filesz"], PAGE):
            offset, paddr = load["p_offset"] + done, load["p_paddr"] + done
            assert by_offset.setdefault(offset, paddr) == paddr
            if not copied:
                assert by_paddr.setdefault(paddr, offset) == offset
