"""The sample: a dump of the lab, cut to what a debugger's first questions read          -> sample/

    .venv/bin/python -m lab sample

Unlike the rest of the lab it needs the package, so that the command line imports it only when it is asked
for.  Which pages stay goes by what they hold; sample/README.md says the same in words.  Slab pages are
shared by whatever came along: those stay in which the structures of STRUCTURES are, and those to which the
package's own readers come from there (open files, mappings, sections of modules).  x86_64 only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cramjam import zstd

from kdump_elftool.addr import U64, Ranges, merge_ranges, subtract_ranges, u64
from kdump_elftool.codecs.packing import Packed
from kdump_elftool.errors import FaultError
from kdump_elftool.files import InputFile, open_output
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump
from kdump_elftool.formats.diskdump_writer import write_kdump
from kdump_elftool.jobs.frames import functions_of
from kdump_elftool.jobs.kdump_out import DUMP_LEVELS, plan_kdump
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.knowledge import in_dump, knowledge
from kdump_elftool.jobs.pages import choose_pages
from kdump_elftool.jobs.plain_target import DumpTarget
from kdump_elftool.kernel.facts import Knowledge
from kdump_elftool.memory.virtual import VirtualMemory
from kdump_elftool.plain import (
    files,
    memmap,
    module_sections,
    modules,
    percpu,
    printk,
    task_details,
    tasks,
    vmas,
)
from lab.collect import write_json
from lab.config import LAB_DIR, LabError, load_config, row_dir, say
from lab.matrix import read_row

ROW = "x64-61-l4.kdump"
FOLDER = LAB_DIR.parent / "sample"
NAME = "crash.kdump"
MOST_BYTES = 4_000_000
PAGE = 4096
LEVEL = 19
"""Of zstd; 22 gains nothing on single pages."""
IMAGE = (
    ("linux_banner", "linux_banner"),
    ("__start_BTF", "__stop_BTF"),
    ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
    ("__start_orc_unwind", "__stop_orc_unwind"),
    ("_sdata", "_edata"),
    ("__bss_start", "__bss_stop"),
)
"""What stays of the kernel image, from symbol to symbol; the page of the last one is part of it."""
STRUCTURES = {
    "signal": "signal_struct",
    "sighand": "sighand_struct",
    "mm": "mm_struct",
    "active_mm": "mm_struct",
    "cred": "cred",
    "real_cred": "cred",
    "files": "files_struct",
    "fs": "fs_struct",
    "nsproxy": "nsproxy",
    "thread_pid": "pid",
}
"""Members of task_struct, and what they point to."""
STACK = 16384
"""THREAD_SIZE of x86_64 without KASAN."""
_BEHIND = 64
"""Bytes of code to see behind an address."""
_LONGEST = 0x4000
"""Bytes of a function; what is further from its start is none of it, as with code of modules."""
_ADDRESS = 0x000F_FFFF_FFFF_F000


@dataclass
class Recorder:
    """A target that remembers which pages were read (plain.target.Target)."""

    target: DumpTarget
    pages: set[int] = field(default_factory=set)
    """Virtual addresses."""

    @property
    def order(self) -> str:
        return self.target.order

    @property
    def word(self) -> int:
        return self.target.word

    def read(self, vaddr: int, size: int, /) -> bytes:
        data = self.target.read(vaddr, size)
        self.pages.update(range(vaddr & -PAGE, vaddr + max(size, 1), PAGE))
        return data

    def symbol(self, name: str, /) -> int | None:
        return self.target.symbol(name)

    def offset(self, name: str, /) -> int | None:
        return self.target.offset(name)

    def size(self, name: str, /) -> int | None:
        return self.target.size(name)

    def length(self, name: str, /) -> int | None:
        return self.target.length(name)

    def number(self, name: str, /) -> int | None:
        return self.target.number(name)

    def need(self, name: str) -> int:
        """The address of a symbol that every such kernel has."""
        vaddr = self.symbol(name)
        if vaddr is None:
            raise LabError(f"the dump's kernel has no symbol {name}")
        return vaddr

    def pointer(self, vaddr: int, member: str) -> int:
        """A member of a structure."""
        offset = self.offset(member)
        if offset is None:
            raise LabError(f"the dump's kernel has no {member}")
        return int.from_bytes(self.read(vaddr + offset, 8), "little")

    def take(self, vaddr: int, size: int) -> None:
        """What can be read of it."""
        for page in range(vaddr & -PAGE, vaddr + size, PAGE):
            with suppress(FaultError):
                self.read(page, PAGE)


def of_image(target: Recorder) -> None:
    """Tables and data of the kernel itself, and the copy of its per-CPU data that each CPU has."""
    for first, last in IMAGE:
        start = target.need(first)
        target.take(start, target.need(last) + 1 - start)
    tokens, symbols = target.need("kallsyms_token_table"), target.need("kallsyms_num_syms")
    order = 3 * int.from_bytes(target.read(symbols, 4), "little")  # kallsyms_seqs_of_names: names in order
    target.take(target.need("kallsyms_offsets"), tokens - order - target.need("kallsyms_offsets"))
    target.take(tokens, target.need("kallsyms_token_index") + 512 - tokens)
    areas = percpu.find_percpu(target)
    if areas is None:
        raise LabError("the dump's per-CPU areas were not found")
    size = int.from_bytes(target.read(target.need("pcpu_unit_size"), 4), "little")
    for _, vaddr in areas.addresses(target.need("__per_cpu_start")):
        target.take(vaddr, size)


def of_tasks(target: Recorder) -> Iterator[bytes]:
    """Tasks with their stacks, files and mappings; yields the parts of the stacks that are in use."""
    size = target.size("task_struct") or PAGE
    for task in tasks.all_tasks(target).tasks:
        target.take(task.vaddr, size)
        for member, name in STRUCTURES.items():
            vaddr = target.pointer(task.vaddr, f"task_struct.{member}")
            target.take(vaddr, target.size(name) or 0)
        list(task_details.detail_lines(target, task_details.read_details(target, task)))
        list(files.open_files(target, task.vaddr))
        list(vmas.process_vmas(target, task.vaddr))
        stack = target.pointer(task.vaddr, "task_struct.stack")
        target.take(stack, STACK)
        sp = target.pointer(task.vaddr, "task_struct.thread.sp")
        used = 0 if task.on_cpu or not 0 <= sp - stack < STACK else sp - stack
        yield target.read(stack + used, STACK - used)


def of_modules(target: Recorder) -> list[tuple[int, int]]:
    """Modules with their sections and symbols but for code; returns where that is."""
    text = []
    for module in modules.read_modules(target).modules:
        target.take(module.vaddr, target.size("module") or 0)
        module_sections.read_sections(target, module)
        module_sections.read_build_id(target, module)
        module_sections.symbol_table(target, module)
        for region in module.regions:
            target.take(region.base + region.text, region.size - region.text)
            text.append((region.base, region.base + region.text))
    return text


def of_code(target: Recorder, stacks: Sequence[bytes], text: Sequence[tuple[int, int]], starts: U64) -> None:
    """The code that addresses on stacks are in, from the start of the function (``starts``) on."""
    words = np.unique(np.concatenate([np.frombuffer(stack, dtype="<u8") for stack in stacks]))
    for low, high in text:
        for vaddr in words[(words > np.uint64(low)) & (words <= np.uint64(high))].tolist():
            row = int(np.searchsorted(starts, np.uint64(vaddr), side="left")) - 1
            start = max(low, int(starts[row])) if row >= 0 else low
            start = start if vaddr - start < _LONGEST else vaddr
            target.take(start, min(vaddr + _BEHIND, high) - start)


def of_frames(target: Recorder, paddr: U64) -> None:
    """What the kernel keeps about these pages: their struct page, and how to find it."""
    array, size = memmap.find_memmap(target), target.size("page") or 0
    for pfn in np.unique(paddr // np.uint64(PAGE)).tolist():
        vaddr = array.page_of(pfn)
        if vaddr is not None:
            target.take(vaddr, size)


def in_memory(virtual: VirtualMemory, pages: set[int]) -> U64:
    """Physical addresses of what is mapped."""
    paddr, mapped = virtual.translate(u64(sorted(pages)))
    return paddr[mapped]


def table_frames(dump: Dump, root: int, levels: int) -> U64:
    """Physical addresses of the page tables of the kernel's half (Intel SDM, volume 3, 4.5)."""
    found = tables = u64([root])
    for level in range(levels - 1):
        blocks, there = dump.memory.gather(tables, PAGE)
        entries = blocks[there].view(np.uint64)
        entries = entries[:, 256:] if level == 0 else entries
        deeper = (entries & np.uint64(0x81)) == np.uint64(1)
        tables = np.unique(entries[deeper] & np.uint64(_ADDRESS))
        found = np.concatenate([found, tables])
    return found


def choose(dump: Dump, kernel: Kernel) -> Ranges:
    """The page frames that stay, of those that ``topelf -l kernel`` keeps."""
    known = knowledge(dump, kernel)
    target = Recorder(DumpTarget.of(dump, kernel))
    of_image(target)
    printk.read_log(target)
    stacks = list(of_tasks(target))
    text = [(target.need("_stext"), target.need("_etext")), *of_modules(target)]
    of_code(target, stacks, text, function_starts(known))
    tables = table_frames(dump, kernel.identity.pgt_root, len(kernel.identity.form.levels))
    virtual = kernel.virtual(dump)
    known_pages = -1
    while known_pages != len(target.pages):  # the array has entries for its own pages, too
        known_pages = len(target.pages)
        wanted = np.concatenate([in_memory(virtual, target.pages), tables])
        of_frames(target, wanted)
    ranges = merge_ranges(wanted, wanted + np.uint64(PAGE))
    choice, warnings = choose_pages(dump, kernel, "kernel")
    if choice is None or warnings:
        raise LabError(f"the dump cannot be filtered: {' '.join(warnings)}")
    left = subtract_ranges(ranges, choice.dropped)
    return Ranges(left.start // np.uint64(PAGE), left.end // np.uint64(PAGE))


def function_starts(known: Knowledge) -> U64:
    """Addresses of all symbols of code, ascending."""
    symbols, _ = in_dump(known)
    if symbols is None:
        raise LabError("the dump's symbol table was not found")
    return np.unique(functions_of(symbols))


def pack(source: memoryview, begin: Sequence[int], page: int) -> Packed:
    """Pages by zstd at a level that is worth it for a file that is written once (codecs.packing.Pack)."""
    pieces = []
    for at in begin:
        piece = bytes(zstd.compress(source[at : at + page], LEVEL))
        pieces.append(piece if len(piece) < page else bytes(source[at : at + page]))
    return Packed(b"".join(pieces), [len(piece) for piece in pieces])


def write_sample(dump_path: str, target: str) -> int:
    """Writes the cut dump; returns its size."""
    with ExitStack() as stack:
        file = stack.enter_context(InputFile.open(dump_path))
        dump = open_dump(file)
        frames = choose(dump, open_kernel(dump, KernelRequest()))
        layout = plan_kdump(dump, KernelRequest(), "all", "zstd").layout
        layout = replace(layout, dumped=frames, dump_level=DUMP_LEVELS["kernel"])
        out = stack.enter_context(open_output(target, [file]))
        size = write_kdump(layout, dump.memory, out, pack).file_size
        out.finish(size)
        out.commit()
    say(f"{target}: {frames.total} pages, {size} bytes")
    return size


def call_trace(console: str) -> list[str]:
    """The functions of the panic's stack as the dying kernel printed them, without those that it doubts."""
    block = console.partition(" Call Trace:")[2].partition("</TASK>")[0]
    return re.findall(r"\]  ([\w.]+)\+0x", block)


def truth_of(truth: dict[str, Any], record: dict[str, Any], console: str) -> dict[str, Any]:
    """What the guest said before it died, as far as the tests of the sample want it."""
    return {
        "row": record["row"],
        "packages": record["packages"],
        "release": truth["release"],
        "version": truth["version"],
        "cmdline": truth["cmdline"],
        "crasher": truth["crasher"],
        "tasks": [{key: task[key] for key in ("pid", "tid", "comm")} for task in truth["tasks"]],
        "modules": truth["modules"],
        "call_trace": call_trace(console),
    }


def make_sample() -> None:
    """sample/crash.kdump and sample/truth.json of the row ROW."""
    row = next(row for row in load_config().rows if row.name == ROW)
    record, folder = read_row(row), row_dir(row)
    if not record:
        raise LabError(f"{ROW} is not made yet: python3 -m lab ensure {ROW}")
    size = write_sample(str(folder / "vmcore"), str(FOLDER / NAME))
    if size > MOST_BYTES:
        raise LabError(f"the sample has {size} bytes, which is more than {MOST_BYTES}")
    truth = json.loads((folder / "truth.json").read_text())
    write_json(
        FOLDER / "truth.json", truth_of(truth, record, (folder / "console.log").read_text(errors="replace"))
    )
