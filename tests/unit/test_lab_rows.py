"""The lab's pure parts: keys of rows, command lines, the initramfs, module order, sparse copies."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lab.__main__ import host_packages
from lab.collect import write_sparse
from lab.config import SETS, Row, load_config
from lab.crash import kernel_command_line, machine_of
from lab.guest import Cpio
from lab.kernels import load_order, module_depends
from lab.matrix import SOURCES, read_row, row_key, sources_hash
from lab.packages import Deb
from lab.resolve import KernelPackages
from lab.roots import chroot_argv

KERNEL = KernelPackages("6.1.0-50", "6.1.176-1", (Deb("i", "1", "amd64", 1),), Deb("d", "1", "amd64", 1))


def row_named(name: str) -> Row:
    return next(row for row in load_config().rows if row.name == name)


# ---- the real kernels.toml ------------------------------------------------------------------------


def test_each_set_holds_the_smaller_ones():
    config = load_config()
    names = [{row.name for row in config.select(name, [])} for name in SETS]
    assert names[0] < names[1] < names[2]
    assert names[0] == {"x64-61-l4.kdump"}


def test_the_guests_cover_levels_and_kaslr():
    guests = {row.guest for row in load_config().select("ci", []) if row.guest.arch.name == "x86_64"}
    assert {(guest.levels, guest.kaslr) for guest in guests} == {(4, True), (4, False), (5, True), (5, False)}
    for guest in guests:
        assert guest.kaslr == ("nokaslr" not in guest.cmdline.split())
        assert (guest.levels == 4) == ("la57=off" in guest.cpu)


def test_the_foreign_guests_of_the_set_ci():
    names = {row.name for row in load_config().select("ci", []) if row.guest.arch.name != "x86_64"}
    assert names == {"i386-pae.live", "a64-61.live", "armhf.live", "mipsel.machine"}


def test_only_machines_that_qemu_dumps_are_asked_for_a_dump():
    for row in load_config().rows:
        assert row.guest.arch.guest_dump or row.scenario == "machine", row.name


def test_the_packages_are_those_of_the_chosen_rows():
    demo = host_packages(load_config().select("demo", []))
    assert {"qemu-system-x86", "gcc", "libc6-dev", "debootstrap"} <= set(demo)
    assert not any("cross" in name or "qemu-system-arm" in name for name in demo)
    ci = host_packages(load_config().select("ci", []))
    assert {"qemu-system-arm", "qemu-system-mips", "gcc-i686-linux-gnu", *demo} <= set(ci)
    assert len(ci) == len(set(ci))
    matrix = load_config().select("matrix", [])
    judges = {"lldb", "llvm", "elfutils"}
    assert judges.isdisjoint(host_packages(matrix))
    assert judges <= set(host_packages(matrix, with_judges=True))


def test_only_root_makes_the_rows_of_the_newer_qemu(monkeypatch: pytest.MonkeyPatch):
    for uid, made in ((0, True), (1000, False)):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        assert row_named("x64-61-l4.dirty").can_be_made == made
        assert row_named("x64-61-l4.live").can_be_made


# ---- keys -------------------------------------------------------------------------------------------


def test_a_key_depends_on_packages_settings_modules_and_sources():
    row = row_named("x64-61-l4.kdump")
    key = row_key(row, KERNEL, ("m",), "s")
    newer = replace(KERNEL, debug=replace(KERNEL.debug, version="2"))
    others = [
        row_key(row, newer, ("m",), "s"),
        row_key(replace(row, memory="1G"), KERNEL, ("m",), "s"),
        row_key(replace(row, crashkernel="256M"), KERNEL, ("m",), "s"),
        row_key(replace(row, guest=replace(row.guest, cpu="other")), KERNEL, ("m",), "s"),
        row_key(row_named("x64-61-l4.live"), KERNEL, ("m",), "s"),
        row_key(row, KERNEL, ("m", "n"), "s"),
        row_key(row, KERNEL, ("m",), "t"),
    ]
    assert len({key, *others}) == len(others) + 1
    assert row_key(row, KERNEL, ("m",), "s") == key


def test_a_key_does_not_depend_on_sets_and_descriptions():
    row = row_named("x64-61-l4.kdump")
    other = replace(row, sets=("matrix",), guest=replace(row.guest, about="another text"))
    assert row_key(row, KERNEL, (), "s") == row_key(other, KERNEL, (), "s")


def test_the_hash_of_the_sources_covers_what_shapes_a_dump(tmp_path: Path):
    (tmp_path / "programs").mkdir()
    names = [*(name for name in SOURCES if "*" not in name), "programs/one.c"]
    for name in names:
        (tmp_path / name).write_text("a")
    before = sources_hash(tmp_path)
    (tmp_path / "matrix.py").write_text("not part of it")
    assert sources_hash(tmp_path) == before
    for name in names:
        (tmp_path / name).write_text("b")
        assert sources_hash(tmp_path) != before, name
        (tmp_path / name).write_text("a")
    (tmp_path / "programs/one.c").rename(tmp_path / "programs/two.c")
    assert sources_hash(tmp_path) != before


def test_the_sources_named_are_there():
    from lab.config import LAB_DIR

    for pattern in SOURCES:
        assert list(LAB_DIR.glob(pattern)), pattern


def test_a_row_with_a_lost_file_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KDUMP_ELFTOOL_LAB", str(tmp_path))
    row = row_named("x64-61-l4.live")
    folder = tmp_path / "dumps" / row.name
    folder.mkdir(parents=True)
    assert read_row(row) == {}
    for name in ("qemu.elf", "vmlinux", "modules"):
        (folder / name).write_text("")
    (folder / "row.json").write_text(json.dumps({"key": "k", "files": {"qemu.elf": {}}}))
    assert read_row(row)["key"] == "k"
    (folder / "qemu.elf").unlink()
    assert read_row(row) == {}
    (folder / "qemu.elf").write_text("")
    (folder / "row.json").write_text("{ half")
    assert read_row(row) == {}


# ---- command lines ----------------------------------------------------------------------------------


def test_only_a_panic_that_is_looked_at_from_outside_stays():
    assert "panic=0" in kernel_command_line(row_named("x64-61-l4.panic")).split()
    kdump = kernel_command_line(row_named("x64-61-l4.kdump")).split()
    assert {"panic=-1", "crashkernel=192M", "lab.scenario=kdump"} <= set(kdump)
    live = kernel_command_line(row_named("x64-61-l5-nokaslr.live")).split()
    assert "nokaslr" in live
    assert not any(word.startswith("crashkernel") for word in live)


def test_the_machine_has_a_disk_only_to_copy_a_dump_to():
    kdump = machine_of(row_named("x64-7x-l5.kdump"), Path("k")).argv()
    live = machine_of(row_named("x64-7x-l5.live"), Path("k")).argv()
    assert any("virtio-blk" in word for word in kdump)
    assert not any("virtio-blk" in word for word in live)
    assert live[live.index("-cpu") + 1] == "max,cx16=off"


def test_a_foreign_machine_has_its_own_devices():
    arm = machine_of(row_named("armhf.live"), Path("k")).argv()
    assert arm[0] == "qemu-system-arm"
    assert [arm[at + 1] for at, word in enumerate(arm) if word == "-machine"] == ["virt", "virt,highmem=off"]
    assert "virtconsole,chardev=truth" in arm
    assert "vmcoreinfo" not in arm
    assert "lab.port=hvc0" in arm[arm.index("-append") + 1].split()
    assert machine_of(row_named("i386-q64.machine"), Path("k")).argv()[0] == "qemu-system-x86_64"


def test_paths_with_blanks_reach_the_chroot_whole(tmp_path: Path):
    script = chroot_argv(tmp_path / "a root", ["echo", "x y"], {Path("/some dir"): "/mnt/in side"})[-1]
    assert f"mount --bind '/some dir' '{tmp_path}/a root/mnt/in side'" in script
    assert script.endswith(f"exec chroot '{tmp_path}/a root' echo 'x y'")


# ---- the initramfs ----------------------------------------------------------------------------------


def read_cpio(data: bytes) -> dict[str, tuple[int, tuple[int, int], bytes]]:
    """mode, device and contents by name: a reader of the newc format for this test."""
    found, position = {}, 0
    while True:
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        name_start = position + 110
        name = data[name_start : name_start + fields[11] - 1].decode()
        start = (name_start + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = (fields[1], (fields[9], fields[10]), data[start : start + fields[6]])
        position = (start + fields[6] + 3) // 4 * 4


def test_the_archive_holds_what_was_put_in_with_its_folders_once():
    cpio = Cpio()
    for size in range(9):
        cpio.file(f"a/b/{'n' * (size + 1)}", b"x" * size, 0o755)
    cpio.char_device("dev/console", 5, 1)
    files = read_cpio(cpio.finish())
    assert files["a"][0] == files["a/b"][0] == 0o040755
    assert list(files)[:2] == ["a", "a/b"]
    assert files["dev/console"][:2] == (0o020600, (5, 1))
    for size in range(9):
        assert files[f"a/b/{'n' * (size + 1)}"] == (0o100755, (0, 0), b"x" * size)


# ---- modules ----------------------------------------------------------------------------------------


def module(folder: Path, name: str, depends: str) -> Path:
    path = folder / f"{name}.ko"
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    return path


def test_depends_of_a_module():
    assert module_depends(b"\0depends=\0") == []
    assert module_depends(b"xx\0depends=virtio,virtio_ring\0") == ["virtio", "virtio_ring"]
    assert module_depends(b"a module with no such entry") == []


def test_modules_are_loaded_after_what_they_need(tmp_path: Path):
    paths = {
        "low": module(tmp_path, "low", ""),
        "mid_dle": module(tmp_path, "mid-dle", "low"),
        "high": module(tmp_path, "high", "mid-dle,low"),
    }
    order = load_order(["high", "built_in", "low"], paths)
    assert [path.stem for path in order] == ["low", "mid-dle", "high"]


# ---- copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"", b"end", bytes(5), bytes(65536), bytes(70000)])
def test_a_sparse_copy_holds_the_same_bytes(tmp_path: Path, tail: bytes):
    data = b"x" * 65536 + bytes(3 * 65536) + b"y" * 10 + tail
    write_sparse(io.BytesIO(data), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
