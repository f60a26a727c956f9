"""``tovelf --in-place`` and ``--undo``: the dump itself becomes the core, and the dump again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.elf.reader import ElfFile
from kdump_elftool.elf.rewrite import ChangedFile, append_and_switch
from kdump_elftool.elf.tail import notes_tail, read_original
from kdump_elftool.jobs import in_place
from tests.builders.check import check_aliases_share, check_pages, read_core
from tests.builders.descriptors import leaked, open_descriptors
from tests.builders.elfcore import CoreSpec, NoteSpec, SegmentSpec, build_core
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel
from tests.builders.notes import prstatus_pid
from tests.builders.tools import gdb_batch, readelf_complaints


@dataclass(frozen=True)
class Run:
    """One run of the command line."""

    code: int
    out: str
    err: str

    def lines(self, kind: str) -> list[str]:
        """Lines of stderr that begin with ``kind:``."""
        return [line for line in self.err.splitlines() if line.startswith(kind + ":")]


@pytest.fixture
def tool(capfd):
    """``tool(*options)``: run, and check what holds for every run."""

    def run(*options: str | Path) -> Run:
        descriptors = open_descriptors()
        code = main(["tovelf", *map(str, options)])
        captured = capfd.readouterr()
        result = Run(code, captured.out, captured.err)
        assert "Traceback" not in result.err
        assert "internal error" not in result.err, result.err
        count = 1 if code and not result.err.startswith("warning") else 0
        assert (len(result.lines("error")), len(result.lines("hint"))) == (count, count), result.err
        assert not leaked(descriptors), "a descriptor leaked"
        return result

    return run


@pytest.fixture
def dump(tmp_path):
    """``dump(image)``: a file with these bytes."""

    def write(image: bytes) -> Path:
        path = tmp_path / "dump"
        path.write_bytes(image)
        return path

    return write


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shape(path: Path, before: bytes) -> None:
    """PT_NOTE first, nothing claimed that is not there, and every old byte but the header's in place."""
    core = read_core(path)
    assert (core.osabi, core.e_type, core.segments[0]["p_type"]) == (3, 4, 4)
    assert core.image[64 : len(before)] == before[64:]
    for load in core.loads:
        assert load["p_type"] == 1
        assert load["p_filesz"] == load["p_memsz"] > 0
        assert load["p_offset"] + load["p_filesz"] <= len(before)
        assert load["p_align"] == 1 or load["p_offset"] % 4096 == load["p_vaddr"] % 4096
    assert not readelf_complaints(path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"levels": 5},
        {"style": "qemu"},
        {"levels": 5, "style": "qemu", "sme_mask": 1 << 51},
        {"ram": ((0x1000, 0x9F000), (0x400000, 0x840000), (0x980000, 0xB80000), (0xB90000, 0xC00000))},
    ],
    ids=str,
)
def test_every_mapped_page_and_back_again(tool, dump, changes):
    kernel = make_kernel(SMALL, **changes)
    image = kernel.dump()
    path = dump(image)
    before = sha256(path)
    done = tool("--in-place", "-i", path)
    assert (done.code, done.lines("warning"), done.lines("coverage")) == (0, [], [])
    assert done.out.splitlines()[-1].startswith("Accepted ")
    shape(path, image)
    core = read_core(path)
    check_pages(core, kernel)
    check_aliases_share(core)
    assert [name for name, _, _ in core.notes()].count("VMCOREINFO") == 1
    assert path.stat().st_size - len(image) < 64 << 10
    done = tool("--undo", "-i", path)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert sha256(path) == before


def test_data_at_unaligned_offsets(tool, dump):
    kernel = make_kernel(SMALL, style="qemu")
    notes = [*kernel.notes()]
    image = build_core(CoreSpec(kernel.segments(), notes, sections=True))
    assert read_core(image).loads[0]["p_offset"] % 4096
    path = dump(image)
    assert tool("--in-place", "-i", path).code == 0
    shape(path, image)
    core = read_core(path)
    assert {load["p_align"] for load in core.loads} == {1}
    check_pages(core, kernel)
    assert struct.unpack_from("<Q", core.image, 40) == struct.unpack_from("<Q", image, 40)


def test_the_same_core_as_a_copy_but_for_two_notes(tool, dump, tmp_path):
    kernel = make_kernel(SMALL, cpus=3)
    path, copy, vmlinux = dump(kernel.dump()), tmp_path / "copy", tmp_path / "vmlinux"
    vmlinux.write_bytes(build_vmlinux())
    assert tool("-l", "all", "-i", path, "-o", copy, "-m", vmlinux).code == 0
    assert tool("-i", path, "--in-place", "-m", vmlinux).code == 0
    ours, copied = read_core(path), read_core(copy)
    undo, *notes = ours.notes()
    assert undo[:2] == ("kdump-elftool", 3)
    # what gdb's commands ask would take longer to find than all the rest
    assert notes == [note for note in copied.notes() if note[:2] != ("kdump-elftool", 4)] != copied.notes()
    assert [prstatus_pid(desc) for name, kind, desc in notes if (name, kind) == ("CORE", 1)] == [431, 432, -3]
    keys = ("p_vaddr", "p_paddr", "p_filesz")
    assert [[load[key] for key in keys] for load in ours.loads] == [
        [load[key] for key in keys] for load in copied.loads
    ]


def test_a_copy_of_a_core_made_in_place_cannot_be_undone(tool, dump, tmp_path):
    kernel = make_kernel(SMALL)
    path, copy = dump(kernel.dump()), tmp_path / "copy"
    assert tool("--in-place", "-i", path).code == 0
    assert tool("-i", path, "-o", copy).code == 0
    check_pages(read_core(copy), kernel)
    assert [kind for name, kind, _ in read_core(copy).notes() if name == "kdump-elftool"] == [4, 1]
    was = sha256(copy)
    assert tool("--undo", "-i", copy).code == 1
    assert sha256(copy) == was


def test_twice_is_once(tool, dump):
    path = dump(make_kernel(SMALL).dump())
    before = sha256(path)
    assert tool("--in-place", "-i", path).code == 0
    once = sha256(path)
    again = tool("--in-place", "-i", path)
    assert (again.code, again.out) == (0, "")
    assert "already" in again.err
    assert json.loads(tool("--in-place", "-i", path, "--json").out)["changed"] is False
    assert sha256(path) == once
    assert tool("--undo", "-i", path).code == 0
    second = tool("--undo", "-i", path)
    assert second.code == 1
    assert "nothing to undo" in second.err
    assert sha256(path) == before


def test_json(tool, dump):
    kernel = make_kernel(SMALL)
    path = dump(kernel.dump())
    size = path.stat().st_size
    document = json.loads(tool("--in-place", "-i", path, "--json").out)
    assert document["schema"] == "kdump-elftool/tovelf/1"
    assert (document["output"], document["changed"]) == (str(path), True)
    assert document["segments"] == len(read_core(path).loads)
    removed = path.stat().st_size - size
    document = json.loads(tool("--undo", "-i", path, "--json").out)
    assert document == {
        "schema": "kdump-elftool/tovelf/1",
        "output": str(path),
        "undone": True,
        "bytes": size,
        "removed_bytes": removed,
    }


def test_dump_with_missing_pages(tool, dump):
    kernel = make_kernel(SMALL, absent=((0xB10000, 0xB40000), (0x500000, 0x501000)), style="qemu")
    image = kernel.dump()
    path = dump(image)
    assert tool("--in-place", "-i", path).code == 0
    shape(path, image)
    check_pages(read_core(path), kernel)


def test_excluded_tails_stay_absent(tool, dump):
    kernel = make_kernel(SMALL, style="qemu", absent=((0xB40000, 0xB80000),))
    last = kernel.segments()[-1]
    segments = [*kernel.segments()[:-1], SegmentSpec(last.paddr, last.data, memsz=len(last.data) + 0x40000)]
    image = build_core(CoreSpec(segments, kernel.notes()))
    path = dump(image)
    done = tool("--in-place", "-i", path)
    assert done.code == 0
    assert "excluded or zero" in done.lines("coverage")[0]
    check_pages(read_core(path), kernel)
    assert tool("--undo", "-i", path).code == 0
    assert path.read_bytes() == image
    refused = tool("--in-place", "-i", path, "--zero-excluded")
    assert refused.code == 2
    assert tool("--in-place", "-i", path, "--strict").code == 1  # done, and said so
    assert tool("--undo", "-i", path).code == 0


@pytest.mark.gdb
@pytest.mark.parametrize("style", ["kdump", "qemu"])
def test_gdb_reads_memory_and_registers(tool, dump, style):
    kernel = make_kernel(SMALL, style=style)
    path = dump(kernel.dump())
    assert tool("--in-place", "-i", path).code == 0
    wanted = kernel.readable_pages()
    addresses = sorted(wanted)[:: max(len(wanted) // 40, 1)]
    banner = kernel.text_vaddr + 0x200000
    shown = gdb_batch(
        [
            f"core-file {path}",
            "info threads",
            f"x/s {banner:#x}",
            *(f"x/gx {address:#x}" for address in addresses),
        ]
    )
    assert "Linux version 6.1.0-test-amd64" in shown
    got = {
        int(at, 16): int(value, 16) for at, value in re.findall(r"(?m)^(0x[0-9a-f]+):\t(0x[0-9a-f]+)$", shown)
    }
    for address in addresses:
        assert got[address] == int.from_bytes(kernel.ram.read(wanted[address], 8), "little"), hex(address)
    assert len(re.findall(r"LWP", shown.split("Id ")[-1])) == kernel.spec.cpus


def refused(tool, path: Path, *options: str, code: int = 1) -> str:
    """Run, expect an error and the file untouched; returns what was said."""
    before = path.read_bytes()
    done = tool(*options, "-i", path)
    assert done.code == code, done.err
    assert path.read_bytes() == before
    return done.err


def test_locked(tool, dump):
    path = dump(make_kernel(SMALL).dump())
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process" in refused(tool, path, "--in-place")
        assert "another process" in refused(tool, path, "--undo")
    assert tool("--in-place", "-i", path).code == 0


def test_read_only(tool, dump):
    path = dump(make_kernel(SMALL).dump())
    path.chmod(0o444)
    assert "chmod u+w" in refused(tool, path, "--in-place") or os.geteuid()
    path.chmod(0o644)
    assert tool("--in-place", "-i", path).code == 0
    path.chmod(0o400)
    refused(tool, path, "--undo")


@pytest.mark.parametrize("action", ["--in-place", "--undo"])
def test_not_a_regular_file(tool, tmp_path, action):
    os.mkfifo(tmp_path / "fifo")
    for name in ("/dev/null", "/dev/zero", str(tmp_path), str(tmp_path / "fifo"), str(tmp_path / "absent")):
        assert tool(action, "-i", name).code in (1, 2)
    assert tool(action, "-i", "-").code == 2
    assert tool(action).code == 2


@pytest.mark.parametrize(
    "image", [b"", b"text\n", b"KDUMP   " + bytes(4096), b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(99)]
)
@pytest.mark.parametrize("action", ["--in-place", "--undo"])
def test_no_elf_dump(tool, dump, image, action):
    refused(tool, dump(image), action)


def test_a_32_bit_file(tool, dump):
    kernel = make_kernel(SMALL)
    low = [segment for segment in kernel.segments() if segment.paddr < 1 << 32]
    small = [SegmentSpec(segment.paddr, segment.data) for segment in low]
    path = dump(build_core(CoreSpec(small, kernel.notes(), elf_class=32)))
    assert "32-bit" in refused(tool, path, "--in-place")
    assert "nothing to undo" in refused(tool, path, "--undo")


def test_truncated_dump(tool, dump):
    image = make_kernel(SMALL).dump()
    path = dump(image[:-5000])
    said = refused(tool, path, "--in-place")
    assert "-o" in said


def test_nothing_is_changed_when_the_kernel_is_not_found(tool, dump):
    path = dump(make_kernel(SMALL, vmcoreinfo={"NUMBER(phys_base)": "12288"}, style="qemu").dump())
    refused(tool, path, "--in-place")


def test_options_that_contradict_each_other(tool, dump, tmp_path):
    path = dump(make_kernel(SMALL).dump())
    out = str(tmp_path / "out")
    assert "every page" in refused(tool, path, "--in-place", "-l", "kernel", code=2)
    for options in (("--in-place", "--undo"), ("--in-place", "-o", out), ("--undo", "-o", out)):
        refused(tool, path, *options, code=2)


def test_undo_of_what_was_never_changed(tool, dump):
    path = dump(make_kernel(SMALL).dump())
    assert "nothing to undo" in refused(tool, path, "--undo")


def damaged(image: bytes, at: int, new: bytes) -> bytes:
    """``image`` with other bytes at ``at`` behind the owner of the undo note."""
    where = image.rindex(b"kdump-elftool\0\0\0", 0, image.index(b"VMCOREINFO", len(image) - 65536))
    return image[: where + at] + new + image[where + at + len(new) :]


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (-8, struct.pack("<I", 0x7FFFFFFF)),  # descsz
        (-8, struct.pack("<I", 4)),
        (16, struct.pack("<I", 2)),  # version
        (24, struct.pack("<Q", 1 << 63)),  # old length
        (24, struct.pack("<Q", 100)),
        (40, struct.pack("<I", 0xFFFFFFFF)),  # size of the header
        (48, bytes(64)),  # the header itself
    ],
)
def test_a_damaged_undo_note_is_not_followed(tool, dump, at, new):
    image = make_kernel(SMALL).dump()
    path = dump(image)
    assert tool("--in-place", "-i", path).code == 0
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, at, new))
    assert path.read_bytes() != whole
    refused(tool, path, "--undo")
    refused(tool, path, "--undo", "--force")


def test_something_was_put_behind_it(tool, dump):
    image = make_kernel(SMALL).dump()
    path = dump(image)
    assert tool("--in-place", "-i", path).code == 0
    with path.open("ab") as file:
        file.write(b"more")
    assert "--force" in refused(tool, path, "--undo")
    assert tool("--undo", "-i", path, "--force").code == 0
    assert path.read_bytes() == image


def test_a_full_disk_leaves_the_old_file(tool, dump, monkeypatch):
    image = make_kernel(SMALL).dump()
    path = dump(image)

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        done = tool("--in-place", "-i", path)
    assert done.code == 1
    assert "No space left" in done.err
    assert path.read_bytes() == image


def test_changes_behind_it_are_taken_back_too(tool, dump, tmp_path):
    """addrandoff adds to what --in-place made, as often as the offset is another one."""
    kernel = make_kernel(SMALL)
    image = kernel.dump()
    path, vmlinux, extra = dump(image), tmp_path / "vmlinux", tmp_path / "extra"
    vmlinux.write_bytes(build_vmlinux())
    extra.write_text(f"SYMBOL(_stext)={kernel.symbol('_stext') + 0x1000000:x}\n")
    assert tool("--in-place", "-i", path).code == 0
    for more in ((), ("-e", str(extra))):
        before = path.stat().st_size
        assert main(["addrandoff", "-v", str(path), "-m", str(vmlinux), *more]) == 0
        assert path.stat().st_size > before
    length = path.stat().st_size
    done = json.loads(tool("--undo", "-i", path, "--json").out)
    assert path.read_bytes() == image
    assert (done["bytes"], done["removed_bytes"]) == (len(image), length - len(image))


def test_a_dump_that_addrandoff_has_changed(tool, dump, tmp_path):
    """It is no core of virtual memory yet."""
    kernel = make_kernel(SMALL)
    image = kernel.dump()
    path, vmlinux = dump(image), tmp_path / "vmlinux"
    vmlinux.write_bytes(build_vmlinux())
    assert main(["addrandoff", "-v", str(path), "-m", str(vmlinux)]) == 0
    with_offset = path.read_bytes()
    done = tool("--in-place", "-i", path)
    assert (done.code, "already" in done.err) == (0, False)
    core = read_core(path)
    check_pages(core, kernel)
    assert ("CORE", 6) in [note[:2] for note in core.notes()]
    assert core.image[64 : len(with_offset)] == with_offset[64:]
    assert "already" in tool("--in-place", "-i", path).err
    assert tool("--undo", "-i", path).code == 0
    assert path.read_bytes() == image


def test_a_file_that_pretends_many_changes(tool, dump, monkeypatch):
    """Each run takes back so many, and says when that was not enough."""
    monkeypatch.setattr(in_place, "_MOST_CHANGES", 2)
    image = make_kernel(SMALL).dump()
    path = dump(image)
    for _ in range(4):
        with ChangedFile.open(str(path)) as target:
            original = read_original(target.file)
            append_and_switch(target, original, notes_tail(original, ElfFile.read(target.file), ()))
    done = tool("--undo", "-i", path)
    assert (done.code, "run the command again" in done.err) == (1, True)
    assert tool("--undo", "-i", path).code == 0
    assert path.read_bytes() == image


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_sync_leaves_the_old_file(tool, dump, monkeypatch, failing):
    image = make_kernel(SMALL).dump()
    path = dump(image)
    real, calls = os.fsync, []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert tool("--in-place", "-i", path).code == 1
    assert len(calls) > failing
    assert path.read_bytes() == image


@pytest.mark.parametrize("interrupted", [1, 2])
def test_an_interruption_leaves_the_old_file(dump, monkeypatch, interrupted):
    """Ctrl-C while the tail, or while the new header, is on its way to the disk."""
    image = make_kernel(SMALL).dump()
    path = dump(image)
    real, calls = os.fsync, []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert main(["tovelf", "--in-place", "-i", str(path)]) == 130
    assert path.read_bytes() == image


def test_large_and_damaged_notes(tool, dump):
    """A device dump of 3 MB is copied from the file to itself; what stands behind a lying note is lost."""
    kernel = make_kernel(SMALL)
    large = NoteSpec("LINUX", 0x700, bytes(range(256)) * (3 << 12) + b"end")
    image = build_core(CoreSpec(kernel.segments(), [large, *kernel.notes()]))
    path = dump(image)
    assert tool("--in-place", "-i", path).code == 0
    core = read_core(path)
    assert [desc for name, kind, desc in core.notes() if (name, kind) == ("LINUX", 0x700)] == [large.desc]
    check_pages(core, kernel)
    assert tool("--undo", "-i", path).code == 0
    assert path.read_bytes() == image
    liar = NoteSpec("", 0, b"", raw=struct.pack("<III", 4, 1 << 31, 1) + b"LIE\0")
    path.write_bytes(build_core(CoreSpec(kernel.segments(), [*kernel.notes(), liar])))
    done = tool("--in-place", "-i", path)
    assert (done.code, "notes are damaged" in done.err) == (0, True)
    check_pages(read_core(path), kernel)


def test_info_of_a_core_made_in_place(dump, capsys):
    path = dump(make_kernel(SMALL).dump())
    shown = []
    for action in ([], ["tovelf", "-q", "--in-place", "-i", str(path)]):
        assert not action or main(action) == 0
        capsys.readouterr()
        assert main(["info", "--json", str(path)]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    before, after = shown
    assert before["release"] == after["release"] == "6.1.0-test-amd64"
    assert {key for key in before if before[key] != after[key]} <= {
        "coverage",
        "memory",
        "file",
        "format",
        "warnings",
    }


def test_memory_is_not_read(tool, dump, monkeypatch):
    """The cost must not grow with the memory: pages are neither read nor written."""
    kernel = make_kernel(ram=((0x1000, 0x9F000), (0x100000, 64 << 20)), zero_ranges=())
    path = dump(kernel.dump())
    read, written = [], []
    preadv, pwrite = os.preadv, os.pwrite

    def reading(fd, buffers, offset):
        read.append(preadv(fd, buffers, offset))
        return read[-1]

    def writing(fd, data, offset):
        written.append(pwrite(fd, data, offset))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", reading)
        patch.setattr(os, "pwrite", writing)
        assert tool("--in-place", "-i", path).code == 0
    assert sum(read) < 4 << 20
    assert sum(written) < 64 << 10
