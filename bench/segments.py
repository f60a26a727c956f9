"""What the number and the order of a core's PT_LOADs cost gdb: opening it, a read, all backtraces.

Made cores: segments of one page in vmalloc space, in several orders of the program headers; gdb's own Python
times what gdb does, in CPU time.  And a lab dump's core with such segments added, in the order of ``tovelf``
and in that of the addresses.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import rivals
from bench.generate import VMALLOC
from bench.report import Figure
from bench.rivals import BenchError
from kdump_elftool.arch.x86_64 import ARCH as X86_64
from kdump_elftool.elf import constants as c
from kdump_elftool.elf.notes import Note, encode_notes
from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump

COUNTS = (1_000, 10_000, 100_000)
THREADS = 1_000
TIMES = 3
SEED = 11
PAGE = 4096
READS = 2_000
ROW = "x64-61-l4.kdump"
_PHDR = struct.Struct("<IIQQQQQQ")
_EHDR_SIZE, _SHDR_SIZE = 64, 64
_MAX_COUNTED = 0xFFFE
_EM_X86_64 = 62
_REGISTERS, _RIP, _RSP = 112, 16, 19
"""In elf_prstatus: include/linux/elfcore.h and arch/x86/include/asm/user_64.h of the kernel."""
_KIND = ElfKind(64, "<")
_GDB = ("gdb", "-nx", "-nh", "-batch", "-iex", "set debuginfod enabled off")
_OPEN = """
import json, time
begin = time.process_time()
gdb.execute("core-file " + CORE)
said = {"open": time.process_time() - begin}
memory = gdb.selected_inferior()
for name, address in PLACES.items():
    begin = time.process_time()
    for _ in range(READS):
        try:
            memory.read_memory(address, 8)
        except gdb.MemoryError:
            pass
    said[name] = (time.process_time() - begin) / READS
begin = time.process_time()
threads = len(gdb.execute("info threads", to_string=True).splitlines())
said["threads"] = time.process_time() - begin
print("SAID" + json.dumps(said))
"""
_BACKTRACES = """
import json, re, time
begin = time.process_time()
shown = gdb.execute("kd-bt all", to_string=True)
said = {"kd-bt all": time.process_time() - begin}
said["tasks"] = sum(map(int, re.findall(r"^(\\d+) tasks?: ", shown, re.M)))
said["threads"] = len(gdb.selected_inferior().threads())
print("SAID" + json.dumps(said))
"""

Order = Callable[[list[int]], list[int]]


def _shuffled(addresses: list[int]) -> list[int]:
    return random.Random(SEED).sample(addresses, len(addresses))


ORDERS: Mapping[str, Order] = {
    "ascending": sorted,
    "descending": lambda addresses: sorted(addresses, reverse=True),
    "in no order": _shuffled,
}


def measure_segments(dumps: tuple[Path, ...], work: Path, slowness: float) -> Iterator[Figure]:
    """Made cores, then the core of one lab dump."""
    core = work / "segments.core"
    try:
        for count in COUNTS:
            for order, arrange in ORDERS.items():
                yield _of_made(core, count, order, arrange, 1, slowness)
        for count in COUNTS:
            for name, notes_last in (("notes first", False), ("notes last", True)):
                yield _of_made(core, count, name, sorted, THREADS, slowness, notes_last=notes_last)
    finally:
        core.unlink(missing_ok=True)
    for path in dumps:
        if path.parent.name == ROW and path.name == "vmcore":
            yield from _of_dump(path, work, slowness)


def _of_made(
    core: Path,
    count: int,
    name: str,
    arrange: Order,
    threads: int,
    slowness: float,
    *,
    notes_last: bool = False,
) -> Figure:
    addresses = arrange([VMALLOC + 2 * PAGE * number for number in range(count)])
    _write(core, addresses, threads, notes_last)
    places = {"first": addresses[0], "middle": addresses[count // 2], "last": addresses[-1]}
    places["absent"] = VMALLOC + PAGE
    script = f"CORE, PLACES, READS = {str(core)!r}, {places!r}, {max(READS // (count // 1000), 50)}\n{_OPEN}"
    said = _median([_ask(core, [*_GDB], script) for _ in range(TIMES)])
    raw = {f"{each} us": 1e6 * said[each] for each in places}
    raw["info threads s"] = said["threads"]
    subject = f"{count} segments, {threads} threads, {name}"
    facts = {f"us a read of {each}": f"{1e6 * said[each] / slowness:.1f}" for each in places}
    rounded = {key: float(f"{value:.4g}") for key, value in {"open s": said["open"], **raw}.items()}
    return Figure("segments", subject, 1000 * said["open"] / slowness, "ms", None, facts, rounded)


def _of_dump(path: Path, work: Path, slowness: float) -> Iterator[Figure]:
    """All backtraces of a real machine whose memory is in many pieces."""
    velf, many = work / "segments.velf", work / "segments.many"
    command = rivals.tool("gdb", "--print-script", "-q", "--velf", str(velf), str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        if done.returncode:
            raise BenchError(f"no core of {path.parent.name}: {done.stderr.strip()}")
        for count in (0, *COUNTS):
            for name, ascending in (("order of tovelf", False), ("ascending", True)):
                segments = _with_more(velf, many, count, ascending)
                script = work / "segments.gdb"
                script.write_text(done.stdout.replace(str(velf), str(many)))
                # what is beside the core goes by its name
                _link(Path(f"{velf}.symbols"), Path(f"{many}.symbols"))
                argv = [*_GDB, "-x", str(script)]
                said = _median([_ask(many, argv, _BACKTRACES) for _ in range(TIMES)])
                if not said["tasks"] == said["threads"] > 1:
                    raise BenchError(f"kd-bt shows {said['tasks']:.0f} of {said['threads']:.0f} tasks")
                subject = f"{path.parent.name}, {segments} segments, {name}"
                rounded = {key: float(f"{value:.4g}") for key, value in said.items()}
                yield Figure("kd-bt all", subject, said["kd-bt all"] / slowness, "s", None, {}, rounded)
    finally:
        for file in (velf, many, work / "segments.gdb", Path(f"{many}.symbols")):
            file.unlink(missing_ok=True)
        for file in Path(f"{velf}.symbols").glob("*"):
            file.unlink()
        if Path(f"{velf}.symbols").exists():
            Path(f"{velf}.symbols").rmdir()


def _link(target: Path, link: Path) -> None:
    link.unlink(missing_ok=True)
    if target.exists():
        link.symlink_to(target)


def _ask(core: Path, argv: list[str], script: str) -> dict[str, float]:
    """What a script says of CPU time that it spent inside gdb."""
    file = core.with_suffix(".py")
    file.write_text(script)
    try:
        done = subprocess.run(
            [*argv, "-x", str(file)], capture_output=True, text=True, errors="replace", check=False
        )
    finally:
        file.unlink()
    line = next((line for line in done.stdout.splitlines() if line.startswith("SAID")), None)
    if line is None:
        raise BenchError(f"gdb says nothing of {core.name}: {(done.stderr or done.stdout).strip()[-300:]}")
    return dict(json.loads(line[4:]))


def _median(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def _write(core: Path, addresses: list[int], threads: int, notes_last: bool) -> None:
    """Segments of one page each, all of the same bytes of the file: gdb does not look at that."""
    prstatus = bytearray(X86_64.prstatus.size)
    notes = []
    for number in range(threads):
        struct.pack_into("<i", prstatus, X86_64.prstatus.pid_offset, number + 1)
        for register in (_RIP, _RSP):
            # what a thread looks at is in the first segment, as it is in a core of ours
            struct.pack_into("<Q", prstatus, _REGISTERS + 8 * register, addresses[0] + 0x100)
        notes.append(Note(b"CORE", c.NT_PRSTATUS, bytes(prstatus)))
    data = b"".join(part for part in encode_notes(tuple(notes), _KIND) if isinstance(part, bytes))
    loads = [(c.PT_LOAD, 7, PAGE, address, 0, PAGE, PAGE, 0) for address in addresses]
    note = (c.PT_NOTE, 0, 2 * PAGE, 0, 0, len(data), 0, 0)
    headers = [*loads, note] if notes_last else [note, *loads]
    with core.open("wb") as out:
        out.seek(2 * PAGE)
        out.write(data)
    _add_headers(core, headers)


def _with_more(velf: Path, many: Path, count: int, ascending: bool) -> int:
    """A copy with segments of a page in vmalloc space that nobody asks for; the number of all."""
    shutil.copyfile(velf, many)
    with velf.open("rb") as file:
        (phoff,) = struct.unpack_from("<Q", file.read(_EHDR_SIZE), 32)
        file.seek(phoff)
        note, *loads = _PHDR.iter_unpack(file.read(_PHDR.size * _count(velf)))
    taken = {load[3] for load in loads}
    free = (at for at in range(VMALLOC, 1 << 64, 2 * PAGE) if at not in taken)
    offset = loads[0][2]
    # behind all others, as vmalloc space is in a core of ours
    loads += [(c.PT_LOAD, 7, offset, next(free), 0, PAGE, PAGE, 0) for _ in range(count)]
    if ascending:
        loads.sort(key=lambda load: int(load[3]))
    _add_headers(many, [note, *loads])
    return len(loads)


def _count(velf: Path) -> int:
    with InputFile.open(str(velf)) as file:
        return 1 + len(open_dump(file).claimed.vaddr)


def _add_headers(core: Path, headers: Sequence[tuple[int, ...]]) -> None:
    """Program headers behind all that is in the file, and an ELF header that says so.

    More than e_phnum counts are counted by section 0 (gABI, PN_XNUM).
    """
    many = len(headers) > _MAX_COUNTED
    with core.open("r+b") as out:
        end = -(-out.seek(0, 2) // PAGE) * PAGE
        out.seek(end)
        out.write(b"".join(_PHDR.pack(*header) for header in headers))
        shoff = out.tell() if many else 0
        if many:
            out.write(struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, len(headers), 0, 0))
        ident = c.ELFMAG + bytes([2, 1, 1, c.ELFOSABI_GNU]) + bytes(8)
        out.seek(0)
        out.write(
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                ident,
                c.ET_CORE,
                _EM_X86_64,
                1,
                0,
                end,
                shoff,
                0,
                _EHDR_SIZE,
                _PHDR.size,
                c.PN_XNUM if many else len(headers),
                _SHDR_SIZE,
                int(many),
                0,
            )
        )
