"""mkvmlinux --from-image of synthetic kernels, packed in every way, damaged, and of what is none."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kdump_elftool.cli.main import main
from tests.builders import boot_images as images
from tests.builders import orc
from tests.builders.dwarf_text import described
from tests.builders.elfcore import EM_386, EM_X86_64
from tests.builders.kallsyms import FORMS, Form
from tests.cli.test_mkvmlinux import symbols_of

BY_NAME = {form.name: form for form in FORMS}
V6_1, V6_15, LE32 = BY_NAME["v6.1"], BY_NAME["v6.15 relative"], BY_NAME["le32"]
LITTLE = [form for form in FORMS if form.order == "<"]


@pytest.fixture
def from_image(tmp_path, capfd, monkeypatch):
    """``from_image(data, *options)``: exit code, standard output and error, and the file."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def run(data: bytes, *options: str) -> tuple[int, str, str, Path]:
        image, output = tmp_path / "vmlinuz", tmp_path / "vmlinux"
        image.write_bytes(data)
        output.unlink(missing_ok=True)
        code = main(["mkvmlinux", "--from-image", str(image), "-o", str(output), *options])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert "internal error" not in captured.err
        return code, captured.out, captured.err, output

    return run


def x86_64(form: Form = V6_1, **options: bool) -> bytes:
    return images.elf(images.make(images.X86_BASE, form, **options), EM_X86_64)


@pytest.mark.parametrize("how", images.COMPRESS)
def test_bz_image(from_image, how):
    """Symbols and types at the addresses that the kernel was linked for."""
    code, out, err, path = from_image(images.bz_image(images.packed(x86_64(), how)))
    assert code == 0, err
    assert out == f"{images.FILLER + 11} symbols, 9 types, 1 functions, 3 variables\n"
    assert err == (
        "warning: there are no unwind tables (ORC) in the image, or none that can be read: "
        "backtraces are what a debugger makes of the "
        "code\n"
    )
    found, base = symbols_of(path), images.X86_BASE
    assert found["panic"] == (base + 0x1000, 0x100, "FUNC", "GLOBAL", ".kernel.text")
    assert found["filler_7"][:2] == (base + 0x2070, 16)
    assert found["init_task"][:3] == (base + images.INIT_TASK, found["init_task"][1], "OBJECT")
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    assert (elf["e_machine"], elf.elfclass) == ("EM_X86_64", 64)
    assert elf.get_section_by_name(".linux_banner").data() == b"\0" + images.BANNER.replace(b"%s", b"#7")
    (unit,) = elf.get_dwarf_info().iter_CUs()
    shown = described(unit.get_top_DIE())
    assert shown["struct list_head"] == "struct 16 {long next @0; long prev @8}"
    assert shown["schedule_task"].endswith(f" at {base + 0x1100:#x} size 0xf00")


@pytest.mark.parametrize("form", LITTLE, ids=lambda form: form.name)
@pytest.mark.parametrize("everything", [True, False])
def test_symbol_tables(from_image, form, everything):
    """Of every form, found by nothing but their shape."""
    base = images.X86_BASE if form.word == 8 else 0xC1000000
    machine = EM_X86_64 if form.word == 8 else EM_386
    kernel = images.make(base, form, everything=everything)
    code, _, err, path = from_image(images.elf(kernel, machine, percpu=form.word == 8))
    assert code == 0, err
    found = symbols_of(path)
    for address, _, name in images.symbols_of(base, everything=everything):
        assert found[name][0] == address
    assert found["linux_banner"][0] == base + images.RODATA
    assert found["init_uts_ns"][0] == base + images.UTS_NS
    assert found["init_task"][0] == base + images.INIT_TASK


@pytest.mark.parametrize("text_offset", [0, 0x80000])
@pytest.mark.parametrize("relocated", [True, False], ids=["rela", "relr"])
@pytest.mark.parametrize("pack", ["Image", "Image.gz", "zboot gzip", "zboot zstd", "zboot lz4", "zboot lzma"])
def test_arm64(from_image, pack, relocated, text_offset):
    """Its header has no address; pointers have, or the table of where they go."""
    base = images.ARM64_BASE + text_offset
    kernel = images.make(base, V6_15, everything=False, relocated=relocated)
    data = images.arm64_image(images.with_relocations(kernel), text_offset=text_offset)
    if pack == "Image.gz":
        data = gzip.compress(data, 1)
    elif pack.startswith("zboot"):
        how = pack.split()[1]
        data = images.zboot(images.packed(data, how), how)
    code, out, err, path = from_image(data)
    assert code == 0, err
    assert "9 types, 1 functions, 3 variables" in out
    found = symbols_of(path)
    assert found["filler_9"][0] == base + 0x2090
    at = {"linux_banner": images.RODATA, "init_uts_ns": images.UTS_NS, "init_task": images.INIT_TASK}
    assert {name: found[name][0] - base for name in at} == at
    assert {found[name][4] for name in at} != {"ABS"}, "gdb must move them by the KASLR offset"
    assert ELFFile(io.BytesIO(path.read_bytes()))["e_machine"] == "EM_AARCH64"


@pytest.mark.parametrize("relocated", [True, False], ids=["rela", "relr"])
@pytest.mark.parametrize("everything", [True, False])
def test_arm64_since_7_0(from_image, everything, relocated):
    """The symbol table has no base."""
    kernel = images.make(images.ARM64_BASE, BY_NAME["v7.0"], everything=everything, relocated=relocated)
    code, _, err, path = from_image(images.arm64_image(images.with_relocations(kernel)))
    assert code == 0, err
    assert symbols_of(path)["filler_3"][0] == images.ARM64_BASE + 0x2030


def test_arm64_of_the_other_byte_order(from_image):
    form = BY_NAME["be64"]
    kernel = images.make(images.ARM64_BASE, form, everything=False, relocated=True)
    data = images.arm64_image(images.with_relocations(kernel), flags=0xB)
    code, _, err, path = from_image(data)
    assert code == 0, err
    assert symbols_of(path)["panic"][0] == images.ARM64_BASE + 0x1000


@pytest.mark.parametrize("how", ["gzip", "xz", "lzma"])
def test_packed_somewhere(from_image, how):
    """arm: the kernel is looked for, and its lowest symbol is where its table says."""
    kernel = images.make(images.ARM_BASE, LE32, everything=False, btf=False)
    code, out, err, path = from_image(images.z_image(images.packed(bytes(kernel.data), how)))
    assert code == 0, err
    assert "no BTF in the image" in err
    assert out == f"{images.FILLER + 4} symbols, 0 types, 0 functions, 0 variables\n"
    found = symbols_of(path)
    assert found["panic"][0] == images.ARM_BASE + 0x1000
    assert "init_task" not in found, "where the other bytes lie is not known"
    assert ELFFile(io.BytesIO(path.read_bytes()))["e_machine"] == "EM_ARM"


@pytest.mark.parametrize("shuffled", [False, True], ids=["v5.6", "v4.14"])
def test_frames(from_image, shuffled):
    """By the unwind tables, which had no order in the files of kernels before v5.6."""
    base = images.X86_BASE
    code, _, err, path = from_image(with_unwind_tables(shuffled=shuffled))
    assert (code, err) == (0, "")
    assert {base + 0x1000, base + 0x1100} <= set(places_of_frames(path))


@pytest.mark.parametrize("options", [(), ("--link-addresses",)], ids=["all", "link"])
def test_frames_that_the_tables_leave_out(from_image, options):
    """By the function's first instructions; drgn reads the tables itself, and gets these alone."""
    base = images.X86_BASE
    code, _, err, path = from_image(with_unwind_tables("__crash_kexec"), *options)
    assert (code, err) == (0, "")
    found = places_of_frames(path)
    assert base + 0x1200 in found
    assert options == () or found == [base + 0x1200]


def places_of_frames(path):
    """Where the descriptions of frames begin."""
    frames = ELFFile(io.BytesIO(path.read_bytes())).get_dwarf_info().CFI_entries()
    return [entry["initial_location"] for entry in frames if "initial_location" in entry.header]


def with_unwind_tables(left_out=None, *, shuffled=False):
    """An image with ORC; ``left_out`` is the name of a function that pushes rbp, of which it says nothing."""
    base = images.X86_BASE
    rules = {0x1000: "call sp+8", 0x1004: "call bp+16 rbp=cfa-16", 0x1100: "call sp+8", 0x1200: "undefined"}
    rows = orc.parse("\n".join(f"{base + at:#x} {rule}" for at, rule in rules.items()))
    if shuffled:
        rows = [rows[2], rows[0], rows[3], rows[1]]
    ips, entries = orc.pack(rows, "v4.14", base + images.ORC_IP_AT)
    where = [
        (images.ORC_IP_AT, "__start_orc_unwind_ip"),
        (images.ORC_IP_AT + len(ips), "__stop_orc_unwind_ip"),
        (images.ORC_AT, "__start_orc_unwind"),
        (images.ORC_AT + len(entries), "__stop_orc_unwind"),
    ]
    more = [(base + at, "R", name) for at, name in where]
    if left_out is not None:
        more.append((base + 0x1200, "T", left_out))
    kernel = images.make(base, V6_1, more=more)
    kernel.data[0x1200:0x1204] = bytes.fromhex("554889e5")
    kernel.data[images.ORC_IP_AT : images.ORC_IP_AT + len(ips)] = ips
    kernel.data[images.ORC_AT : images.ORC_AT + len(entries)] = entries
    return images.elf(kernel, EM_X86_64)


def test_link_addresses_is_for_drgn(from_image):
    """As of a dump; the build id only if the image's vmlinux has one."""
    _, _, err, path = from_image(x86_64(), "--link-addresses")
    assert err == ""
    assert symbols_of(path)["panic"][0] == images.X86_BASE + 0x1000


def test_build_id_of_plain_memory(from_image):
    """Not that of the vDSO, which is an ELF file in the image."""
    kernel = images.make(images.ARM64_BASE, V6_15, everything=False, relocated=True)
    note = struct.pack("<III4s", 4, 20, 3, b"GNU")
    kernel.data[0x7A000:0x7A004] = b"\x7fELF"
    for at, build_id in ((0x7A200, b"v" * 20), (0x24008, b"k" * 20)):
        kernel.data[at : at + 36] = note + build_id
    data = images.arm64_image(images.with_relocations(kernel))
    path = from_image(data, "--link-addresses")[3]
    (found,) = ELFFile(io.BytesIO(path.read_bytes())).get_section_by_name(".note.gnu.build-id").iter_notes()
    assert found["n_desc"] == (b"k" * 20).hex()


def test_as_json(from_image):
    code, out, _, path = from_image(x86_64(), "--json", "-q")
    told = json.loads(out)
    assert (code, told["release"], told["bytes"]) == (0, images.RELEASE, path.stat().st_size)


def test_types_from_a_file(from_image, tmp_path):
    file = tmp_path / "btf"
    file.write_bytes(images.types())
    kernel = images.make(images.X86_BASE, V6_1, everything=False, btf=False)
    assert "9 types" in from_image(images.elf(kernel, EM_X86_64), "--btf", str(file))[1]


WRONG = {
    "empty": (b"", "there is no kernel in it"),
    "zeros": (b"MZ" + bytes(100_000), "there is no kernel in it"),
    "header alone": (bytes(0x202) + b"HdrS" + bytes(0x100), "there is no kernel in it"),
    "packed zeros": (images.bz_image(images.packed(bytes(100_000), "xz")), "there is no kernel in it"),
    "cut": (images.bz_image(images.packed(x86_64(), "xz")[:-1000]), "the xz stream is damaged"),
    "wrong size": (images.bz_image(images.packed(x86_64(), "xz"), size=500), "the xz stream is damaged"),
    "no stream": (images.bz_image(b"\xff" * 5000), "there is no kernel in it"),
    "arm64 without pointers": (images.arm64_image(bytes(0x10000)), "there is no kernel in it"),
    "no symbols": (
        images.elf(images.Kernel(images.X86_BASE, bytearray(images.SIZE)), EM_X86_64),
        "its symbol table cannot be found",
    ),
    "core": (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 4, 62) + bytes(44), "is an ELF core file"),
    "text": (gzip.compress(b"no kernel"), "there is no kernel in it"),
}


@pytest.mark.parametrize("data,said", WRONG.values(), ids=WRONG)
def test_what_is_no_kernel(from_image, data, said):
    code, out, err, path = from_image(data)
    assert (code, out) == (1, "")
    assert said in err
    assert not path.exists()


def test_an_old_boot_protocol_says_nothing_of_the_payload(from_image):
    data = images.bz_image(images.packed(x86_64(), "gzip"), version=0x207, size=1)
    assert from_image(data)[0] == 0


def test_a_dump_as_well(from_image, tmp_path):
    code, _, err, _ = from_image(b"", str(tmp_path / "dump"))
    assert code == 2
    assert "one of them is read" in err


@pytest.mark.parametrize("seed", range(3))
def test_damage(from_image, seed):
    """Every byte may lie: an error of one line, or what is left."""
    chance = random.Random(seed)
    kernels = (
        x86_64(),
        images.arm64_image(images.with_relocations(images.make(images.ARM64_BASE, V6_15, relocated=True))),
    )
    for whole in kernels:
        data = bytearray(whole)
        for _ in range(200):
            data[chance.choice((chance.randrange(256), chance.randrange(len(data))))] = chance.randrange(256)
        code, _, err, _ = from_image(bytes(data))
        assert code in (0, 1)
        assert code == 0 or err.startswith("error: ") or "\nerror: " in err
