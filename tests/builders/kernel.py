"""A synthetic x86_64 kernel dump: RAM with page tables, VMCOREINFO, CPU registers.

Addresses as in Documentation/arch/x86/x86_64/mm.rst.  Every word of RAM that nothing was written
to holds its own physical address, so whoever reads any mapping can tell whether the bytes are
right.  The truth about the mappings is the plain walker of ``pagetables``.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from tests.builders import notes as note_builders
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core, own_address_words
from tests.builders.pagetables import (
    KERNEL,
    NX,
    SIZE_1G,
    SIZE_2M,
    SIZE_4K,
    US,
    Leaf,
    PageTables,
    walk_plain,
)

START_KERNEL_MAP = 0xFFFFFFFF80000000
LINK_TEXT = 0xFFFFFFFF81000000
MODULES_VADDR = 0xFFFFFFFFC0000000
ESPFIX_START, ESPFIX_END = 0xFFFFFF0000000000, 0xFFFFFF8000000000
CPU_ENTRY_AREA = 0xFFFFFE0000000000
VSYSCALL_VADDR = 0xFFFFFFFFFF600000
APIC_FIXMAP, APIC_PADDR = 0xFFFFFFFFFF5FB000, 0xFEE00000
IMAGE_SIZE = 4 << 20
SWAPPER_AT = 0x210000  # of swapper_pg_dir within the image
IMAGE_POOL = 0x220000  # table pages within the image, as the kernel's level2_kernel_pgt etc.
LINKED_SIZE = 0x2000  # of .text in the vmlinux
BUILD_ID = bytes(range(0x10, 0x24))
RELEASE = "6.1.0-test-amd64"
BASES = {
    4: {"page_offset": 0xFFFF888000000000, "vmalloc": 0xFFFFC90000000000, "vmemmap": 0xFFFFEA0000000000},
    5: {"page_offset": 0xFF11000000000000, "vmalloc": 0xFFA0000000000000, "vmemmap": 0xFFD4000000000000},
}
MIB = 1 << 20


class Ram:
    """Physical memory: sorted, disjoint ranges of bytes; outside of them there is nothing."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.ranges = [(start, bytearray(own_address_words(start, end - start))) for start, end in ranges]

    def _find(self, paddr: int, size: int) -> tuple[bytearray, int] | None:
        for start, data in self.ranges:
            if start <= paddr and paddr + size <= start + len(data):
                return data, paddr - start
        return None

    def read(self, paddr: int, size: int) -> bytes:
        """Bytes at ``paddr``; KeyError where there is no RAM."""
        raw = self.read_or_none(paddr, size)
        if raw is None:
            raise KeyError(f"no RAM at {paddr:#x}")
        return raw

    def read_or_none(self, paddr: int, size: int) -> bytes | None:
        """Bytes at ``paddr`` or None."""
        found = self._find(paddr, size)
        return None if found is None else bytes(found[0][found[1] : found[1] + size])

    def write(self, paddr: int, data: bytes) -> None:
        """Put ``data`` at ``paddr``."""
        found = self._find(paddr, len(data))
        if found is None:
            raise KeyError(f"no RAM at {paddr:#x}")
        found[0][found[1] : found[1] + len(data)] = data


@dataclass(frozen=True)
class KernelSpec:
    """What kind of kernel and dump."""

    levels: int = 4
    kaslr_offset: int = 0x1A000000
    text_paddr: int = 0x400000
    ram: tuple[tuple[int, int], ...] = ((0x1000, 0x9F000), (0x100000, 16 * MIB))
    direct_size: int = SIZE_2M
    sme_mask: int = 0
    vmalloc_pages: int = 64
    module_pages: int = 16
    cpus: int = 2
    espfix: bool = False
    user_pages: int = 3
    style: str = "kdump"  # kdump (p_vaddr set, text twice) | qemu (p_vaddr 0, section headers)
    zero_ranges: tuple[tuple[int, int], ...] = ((0xE00000, 0xE40000),)
    absent: tuple[tuple[int, int], ...] = ()  # RAM that the dump leaves out
    vmcoreinfo: Mapping[str, str | None] = field(default_factory=dict)  # overrides; None removes
    noted: bool = True  # the dump has the VMCOREINFO note
    pool: int = 0x800000  # where page tables are taken from
    scattered: int = 0xB00000  # where pages of vmalloc and modules are taken from
    seed: int = 1


@dataclass
class SyntheticKernel:
    """The kernel in memory, before it becomes a file."""

    spec: KernelSpec
    ram: Ram
    tables: PageTables
    text_vaddr: int
    bases: Mapping[str, int]
    stacks: list[int]
    marks: dict[str, int]

    @property
    def phys_base(self) -> int:
        """What the kernel prints as NUMBER(phys_base): can be negative."""
        return self.spec.text_paddr - (self.text_vaddr - START_KERNEL_MAP)

    def symbol(self, name: str) -> int:
        """Run-time address of a symbol that the vmlinux has too."""
        return self.text_vaddr + SYMBOLS[name]

    def vmcoreinfo_text(self) -> str:
        """VMCOREINFO in the order of the kernel, with the spec's overrides applied."""
        keys: dict[str, str | None] = {
            "OSRELEASE": RELEASE,
            "BUILD-ID": BUILD_ID.hex(),
            "PAGESIZE": "4096",
            "SYMBOL(init_uts_ns)": f"{self.symbol('init_uts_ns'):x}",
            "SYMBOL(swapper_pg_dir)": f"{self.text_vaddr + SWAPPER_AT:x}",
            "SYMBOL(_stext)": f"{self.symbol('_stext'):x}",
            "SIZE(list_head)": "16",
            "OFFSET(list_head.next)": "0",
            "OFFSET(list_head.prev)": "8",
            "NUMBER(phys_base)": str(self.phys_base),
            "SYMBOL(init_top_pgt)": f"{self.text_vaddr + SWAPPER_AT:x}",
            "NUMBER(pgtable_l5_enabled)": str(int(self.spec.levels == 5)),
            "KERNELOFFSET": f"{self.spec.kaslr_offset:x}",
            "NUMBER(KERNEL_IMAGE_SIZE)": "1073741824",
            "NUMBER(sme_mask)": str(self.spec.sme_mask),
            "CRASHTIME": "1795000000",
        }
        keys |= self.spec.vmcoreinfo
        return "".join(f"{key}={value}\n" for key, value in keys.items() if value is not None)

    def put_vmcoreinfo(self, paddr: int, text: str | None = None, *, header: bool = True) -> int:
        """VMCOREINFO in memory, as vmcoreinfo_note or (without header) vmcoreinfo_data have it.

        Returns where the text begins.
        """
        blob = (self.vmcoreinfo_text() if text is None else text).encode("latin-1")
        if header:
            blob = note_builders.vmcoreinfo_note(blob.decode("latin-1")).encode("<")
        self.ram.write(paddr, blob + bytes(-len(blob) % SIZE_4K))
        return paddr + (24 if header else 0)

    def leaves(self) -> Iterator[Leaf]:
        """The truth: every leaf of the tables, by the plain walker."""
        return walk_plain(self.ram.read_or_none, self.tables.root, self.spec.levels, self.spec.sme_mask)

    def kernel_pages(self) -> dict[int, int]:
        """vaddr -> paddr of every 4K page of the kernel half outside of the ESPFIX area."""
        pages = {}
        for leaf in self.leaves():
            if leaf.vaddr >> 63 and not ESPFIX_START <= leaf.vaddr < ESPFIX_END:
                for done in range(0, leaf.size, SIZE_4K):
                    pages[leaf.vaddr + done] = leaf.paddr + done
        return pages

    def in_dump(self, paddr: int) -> bool:
        """Whether this page is RAM and not left out."""
        if self.ram.read_or_none(paddr, SIZE_4K) is None:
            return False
        return not any(start <= paddr < end for start, end in self.spec.absent)

    def readable_pages(self) -> dict[int, int]:
        """:meth:`kernel_pages` whose memory the dump holds: what a velf must contain, no more."""
        return {vaddr: paddr for vaddr, paddr in self.kernel_pages().items() if self.in_dump(paddr)}

    def notes(self) -> list[NoteSpec]:
        """CPU notes and VMCOREINFO."""
        out = [note_builders.x86_64_prstatus(self.cpu_pid(cpu), self.registers(cpu)) for cpu in self.cpus]
        if self.spec.style == "qemu":
            cr4 = 0x20 | (0x1000 if self.spec.levels == 5 else 0)
            out += [note_builders.qemu_cpu(self.tables.root, self.registers(cpu), cr4) for cpu in self.cpus]
        if self.spec.noted and self.vmcoreinfo_text():
            out.append(note_builders.vmcoreinfo_note(self.vmcoreinfo_text()))
        return out

    @property
    def cpus(self) -> range:
        """CPU numbers."""
        return range(self.spec.cpus)

    def cpu_pid(self, cpu: int) -> int:
        """QEMU writes CPU + 1; in a kdump the last CPU idles with pid 0, the others run something."""
        if self.spec.style == "qemu":
            return cpu + 1
        return 0 if cpu == self.spec.cpus - 1 else 431 + cpu

    def registers(self, cpu: int) -> dict[str, int]:
        """Registers of a CPU in kernel mode."""
        return {
            "rip": self.symbol("panic") + 0x10, "cs": 0x10, "ss": 0x18, "eflags": 0x46,
            "rsp": self.stacks[cpu % len(self.stacks)] + 0x3F00 if self.stacks else 0,
            "rbp": 0x1234_0000 + cpu, "gs_base": self.bases["page_offset"] + 0xA00000 + cpu * 0x20000,
        }  # fmt: skip

    def segments(self) -> list[SegmentSpec]:
        """PT_LOADs of the dump."""
        pieces = list(_cut_out(self.ram, self.spec.absent))
        if self.spec.style == "qemu":
            return [SegmentSpec(paddr, data) for paddr, data in pieces]
        direct = self.bases["page_offset"]
        text = self.ram.read(self.spec.text_paddr, IMAGE_SIZE)
        loads = [SegmentSpec(paddr, data, vaddr=direct + paddr, align=SIZE_4K) for paddr, data in pieces]
        if any(start < self.spec.text_paddr + IMAGE_SIZE and end > self.spec.text_paddr
               for start, end in self.spec.absent):  # fmt: skip
            return loads
        return [SegmentSpec(self.spec.text_paddr, text, vaddr=self.text_vaddr, align=SIZE_4K), *loads]

    def core_spec(self) -> CoreSpec:
        """The dump before it is bytes."""
        return CoreSpec(self.segments(), self.notes(), sections=self.spec.style == "qemu")

    def dump(self) -> bytes:
        """The dump's bytes."""
        return build_core(self.core_spec())


SYMBOLS = {
    "_text": 0, "_stext": 0, "startup_64": 0, "panic": 0x1000, "linux_banner": 0x200000,
    "init_uts_ns": 0x208000, "init_task": 0x20C000, "init_top_pgt": SWAPPER_AT, "swapper_pg_dir": SWAPPER_AT,
    "_end": IMAGE_SIZE,
}  # fmt: skip


SMALL = KernelSpec(
    ram=((0x1000, 0x9F000), (0x400000, 0x840000), (0xB00000, 0xB80000)), zero_ranges=(), vmalloc_pages=24
)
"""5.5 MB instead of 16: for tests that run hundreds of damaged copies."""

ABOVE = KernelSpec(
    kaslr_offset=0x2A000000,
    text_paddr=0x2000000,
    ram=((0x2000000, 0x2400000), (0x2500000, 0x2580000), (0x2600000, 0x2640000)),
    zero_ranges=(),
    vmalloc_pages=24,
    pool=0x2500000,
    scattered=0x2600000,
    vmcoreinfo={"OSRELEASE": "6.1.0-crash-amd64", "BUILD-ID": "ab" * 20},
)
"""A smaller kernel in memory of its own, above SMALL's: as a crash kernel in its reserve."""


def make_kernel(spec: KernelSpec | None = None, **changes: object) -> SyntheticKernel:
    """Build the kernel described; ``changes`` replace fields of the default description."""
    spec = replace(spec or KernelSpec(), **changes)  # type: ignore[arg-type]
    ram = Ram(spec.ram)
    for start, end in spec.zero_ranges:
        ram.write(start, bytes(end - start))
    tables = PageTables(ram, _frames(spec).__next__, spec.levels, spec.sme_mask)
    text_vaddr = LINK_TEXT + spec.kaslr_offset
    bases = dict(BASES[spec.levels]) | {"modules": MODULES_VADDR}
    kernel = SyntheticKernel(spec, ram, tables, text_vaddr, bases, [], {})
    _map_image(kernel)
    _map_direct(kernel)
    _map_scattered(kernel)
    _map_corners(kernel)
    release = spec.vmcoreinfo.get("OSRELEASE", RELEASE) or RELEASE
    ram.write(spec.text_paddr + SYMBOLS["linux_banner"], banner_of(release))
    ram.write(spec.text_paddr + SYMBOLS["init_task"] + 0xB80, b"swapper/0".ljust(16, b"\0"))
    names = ("Linux", "test", release, "#1 SMP", "x86_64", "(none)")
    uts = b"".join(name.encode("latin-1").ljust(65, b"\0") for name in names)
    ram.write(spec.text_paddr + SYMBOLS["init_uts_ns"], uts)
    return kernel


def banner_of(release: str) -> bytes:
    """The text of linux_banner, with its NUL."""
    return f"Linux version {release} (builder@test) #1 SMP\n\0".encode()


def _frames(spec: KernelSpec) -> Iterator[int]:
    """Frames for page tables: the root inside the image like swapper_pg_dir, then a pool in RAM."""
    yield spec.text_paddr + SWAPPER_AT
    yield from range(spec.pool, spec.pool + 0x200000, SIZE_4K)


def _map_image(kernel: SyntheticKernel) -> None:
    kernel.tables.map_range(kernel.text_vaddr, kernel.spec.text_paddr, IMAGE_SIZE, SIZE_2M, KERNEL)


def _map_direct(kernel: SyntheticKernel) -> None:
    base, size = kernel.bases["page_offset"], kernel.spec.direct_size
    top = max(end for _, end in kernel.spec.ram)
    if size == SIZE_1G:
        kernel.tables.map_range(base, 0, -(-top // SIZE_1G) * SIZE_1G, SIZE_1G)
        return
    for start, end in kernel.spec.ram:
        at = start
        while at < end:
            step = size if at % size == 0 and at + size <= end else SIZE_4K
            kernel.tables.map(base + at, at, step)
            at += step


def _map_scattered(kernel: SyntheticKernel) -> None:
    """vmalloc (stacks of 4 pages with a guard page), modules: single frames in random order."""
    spec, tables = kernel.spec, kernel.tables
    random = Random(spec.seed)
    frames = [
        frame
        for start, end in spec.ram
        for frame in range(max(start, spec.scattered), min(end, 1 << 32), SIZE_4K)
        if not 0xE00000 <= frame < 0x1000000
    ]
    random.shuffle(frames)
    vaddr = kernel.bases["vmalloc"]
    for count in range(spec.vmalloc_pages):
        if count % 4 == 0:
            vaddr += SIZE_4K
            kernel.stacks.append(vaddr)
        tables.map(vaddr, frames.pop())
        vaddr += SIZE_4K
    for page in range(spec.module_pages):
        tables.map(MODULES_VADDR + page * SIZE_4K, frames.pop())
    tables.map(kernel.bases["vmemmap"], 0xC00000 - SIZE_2M, SIZE_2M)
    for page in range(spec.user_pages):
        tables.map(0x400000 + page * SIZE_4K, frames.pop(), SIZE_4K, KERNEL | US)


def _map_corners(kernel: SyntheticKernel) -> None:
    """CPU entry area, vsyscall page, a device page that no dump holds, the ESPFIX aliases."""
    tables = kernel.tables
    tables.map(CPU_ENTRY_AREA + 0x1000, 0xD00000)
    tables.map(VSYSCALL_VADDR, kernel.spec.text_paddr + 0x5000, SIZE_4K, KERNEL | US)
    tables.map(APIC_FIXMAP, APIC_PADDR, SIZE_4K, KERNEL | NX | 0x10)
    if not kernel.spec.espfix:
        return
    like = ESPFIX_START
    for index in range(16):  # one page, 16 times a table: init_espfix_random()
        tables.map(like + index * 0x10000, 0xD10000)
    for pmd in range(1, 512):
        tables.share(like + pmd * SIZE_2M, like, 1)
    for pud in range(1, 8):
        tables.share(like + pud * SIZE_1G, like, 2)


def _cut_out(ram: Ram, absent: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    for start, data in ram.ranges:
        edges = [start, start + len(data)]
        for hole in absent:
            edges += [edge for edge in hole if start < edge < start + len(data)]
        edges = sorted(set(edges))
        for low, high in itertools.pairwise(edges):
            if not any(first <= low < last for first, last in absent):
                yield low, bytes(data[low - start : high - start])


def build_vmlinux(
    kernel: SyntheticKernel | None = None,
    *,
    build_id: bytes | None = BUILD_ID,
    e_type: int = 2,
    banner: bytes = b"",
) -> bytes:
    """A minimal vmlinux: .text and .data without contents, .notes, .symtab, one PT_LOAD, one PT_NOTE.

    With ``banner`` that is in a section of its own, over the beginning of .data.
    """
    note = b""
    if build_id is not None:
        note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    strings, symbols = b"\0", bytes(24)
    for name, at in SYMBOLS.items():
        kind = 0x12 if name in ("panic", "startup_64") else 0x10
        section = 0xFFF1 if name == "_end" else (1 if at < 0x200000 else 2)
        symbols += struct.pack(
            "<IBBHQQ", len(strings), kind, 0, section, LINK_TEXT + at, 0x1000 if kind == 0x12 else 16
        )
        strings += name.encode() + b"\0"
    names = b"\0.text\0.data\0.notes\0.symtab\0.strtab\0.shstrtab\0.rodata\0"
    text = kernel.ram.read(kernel.spec.text_paddr, LINKED_SIZE) if kernel else bytes(LINKED_SIZE)
    parts = {"text": text, "notes": note, "symtab": symbols, "strtab": strings, "names": names}
    parts |= {"banner": banner} if banner else {}
    offset, at = {}, 64 + 2 * 56
    at += -at % SIZE_4K
    for key, blob in parts.items():
        offset[key] = at
        at += len(blob) + (-len(blob) % 16)
    shoff = at
    phdrs = struct.pack(
        "<IIQQQQQQ", 1, 5, offset["text"], LINK_TEXT, 0x1000000, LINKED_SIZE, IMAGE_SIZE, SIZE_4K
    )
    phdrs += struct.pack("<IIQQQQQQ", 4, 4, offset["notes"], 0, 0, len(note), len(note), 4)

    def section(name: str, kind: int, flags: int, addr: int, at: int, size: int, link: int = 0,
                info: int = 0, align: int = 1, entry: int = 0) -> bytes:  # fmt: skip
        start = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        return struct.pack("<IIQQQQIIQQ", start, kind, flags, addr, at, size, link, info, align, entry)

    shdrs = bytes(64)
    shdrs += section(".text", 1, 6, LINK_TEXT, offset["text"], LINKED_SIZE, align=SIZE_4K)
    shdrs += section(".data", 8, 3, LINK_TEXT + 0x200000, offset["notes"], 0x200000, align=SIZE_4K)
    shdrs += section(".notes", 7, 0, 0, offset["notes"], len(note), align=4)
    shdrs += section(".symtab", 2, 0, 0, offset["symtab"], len(symbols), 5, 1, 8, 24)
    shdrs += section(".strtab", 3, 0, 0, offset["strtab"], len(strings))
    shdrs += section(".shstrtab", 3, 0, 0, offset["names"], len(names))
    if banner:
        shdrs += section(".rodata", 1, 2, LINK_TEXT + 0x200000, offset["banner"], len(banner))
    ehdr = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr += struct.pack(
        "<HHIQQQIHHHHHH", e_type, 62, 1, 0x1000000, 64, shoff, 0, 64, 56, 2, 64, len(shdrs) // 64, 6
    )
    image = bytearray(shoff + len(shdrs))
    image[: len(ehdr) + len(phdrs)] = ehdr + phdrs
    for key, blob in parts.items():
        image[offset[key] : offset[key] + len(blob)] = blob
    image[shoff:] = shdrs
    return bytes(image)
