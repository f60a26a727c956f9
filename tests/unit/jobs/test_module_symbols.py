"""Which file a module gets, at which addresses, and what names from a dump cannot do to gdb."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_elftool.cache import Cache
from kdump_elftool.errors import IdentityError, UsageError
from kdump_elftool.jobs.module_symbols import Missing, ModuleSymbols, module_symbols
from kdump_elftool.jobs.modules import list_modules
from kdump_elftool.plain.module_files import quoted
from kdump_elftool.plain.module_index import index_files, usual_directories
from tests.builders.modules import REGION, Made
from tests.unit.jobs.modulekernel import RELEASE, module_file, open_modules

ID = bytes(range(20))


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


@pytest.fixture
def asked(tmp_path):
    """``asked(made, ..., directories)``: what gdb is told, and the memory."""

    def ask(*modules: Made, cache: Cache | None = None, **changes: str):
        dump, kernel, memory = open_modules(*modules, **changes)
        kernel = replace(kernel, request=replace(kernel.request, cache=cache))
        (tmp_path / "scratch").mkdir(exist_ok=True)
        directories = [str(tmp_path / "files")]
        return module_symbols(dump, kernel, directories, str(tmp_path / "scratch")), memory

    return ask


def sections(command: str) -> dict[str, int]:
    """Of one command without quotes."""
    words = command.split()
    assert words[0] == "add-symbol-file"
    assert words[2::3] == ["-s"] * (len(words[2:]) // 3)
    return dict(zip(words[3::3], (int(word, 16) for word in words[4::3]), strict=True))


def test_sections_where_they_are(asked, tmp_path):
    """Those that are gone go where no kernel is: at 0 a call of NULL would have a name."""
    path = put(tmp_path / "files" / "lab.ko", module_file())
    found, memory = asked(Made())
    (command,) = found.commands
    assert command.split()[1] == path
    assert found.files == (("lab", path),)
    text = memory.texts[0]
    assert sections(command) == {
        ".note.gnu.build-id": text + REGION + 0x100,
        ".text": text,
        ".data": text + REGION,
        ".init.text": 1 << 60,
        ".modinfo": (1 << 60) + 0x30,
    }


def test_while_it_is_initialised(asked, tmp_path):
    put(tmp_path / "files" / "lab.ko", module_file())
    found, memory = asked(Made(initialised=False, state=1))
    assert sections(found.commands[0])[".init.text"] == memory.inits[0]


def test_per_cpu_variables(asked, tmp_path):
    """They count from where the kernel put the module's, which is no address."""
    put(tmp_path / "files" / "lab.ko", module_file(sections=((".data..percpu", 16),)))
    found, _ = asked(Made(percpu=0x4F000))
    assert sections(found.commands[0])[".data..percpu"] == 0x4F000


def test_a_section_larger_than_its_memory(asked, tmp_path):
    put(tmp_path / "files" / "lab.ko", module_file(sections=((".text", 8 * REGION),)))
    found, _ = asked(Made())
    assert sections(found.commands[0])[".text"] == 1 << 60


PLACES = [
    "lab_mod.ko",
    "lab-mod.ko",
    f"usr/lib/debug/lib/modules/{RELEASE}/kernel/fs/lab-mod.ko",
    f"usr/lib/debug/lib/modules/{RELEASE}/kernel/fs/lab_mod.ko.debug",
    f"usr/lib/debug/.build-id/00/{ID[1:].hex()}.debug",
    f".build-id/00/{ID[1:].hex()}.debug",
    f"lib/modules/{RELEASE}/updates/dkms/lab-mod.ko",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [b"lab_mod", b"lab-mod"])
def test_where_it_is_found(asked, tmp_path, place, name):
    path = put(tmp_path / "files" / place, module_file())
    assert asked(Made(name))[0].files == ((name.decode(), path),)


def zstd(data: bytes) -> bytes:
    """By the program, so that what makes and what reads it are two."""
    program = shutil.which("zstd")
    if program is None:
        from backports import zstd as library

        return library.compress(data)
    return subprocess.run([program, "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)])
@pytest.mark.parametrize("cached", [False, True])
def test_compressed(asked, tmp_path, suffix, pack, cached):
    """gdb reads no compressed modules: it gets a file that was decompressed once."""
    put(tmp_path / "files" / f"lab.ko{suffix}", pack(module_file()))
    cache = Cache.open({"HOME": str(tmp_path)}) if cached else None
    found, memory = asked(Made(), cache=cache)
    assert found.missing == ()
    ((_, path),) = found.files
    assert Path(path).read_bytes() == module_file()
    assert Path(path).parent == Path(cache.path if cache else tmp_path / "scratch")
    assert sections(found.commands[0])[".text"] == memory.texts[0]
    if cache:
        cache.close()


def test_addresses_in_the_file_are_taken_out(asked, tmp_path):
    """With them gdb takes all code to be in .text; without types there is nothing to be mistaken."""
    put(tmp_path / "files" / "lab.ko", module_file(types=True, sh_addr=0x40))
    ((_, path),) = asked(Made())[0].files
    assert Path(path).parent == tmp_path / "scratch"
    assert Path(path).read_bytes() == module_file(types=True)
    path = put(tmp_path / "files" / "lab.ko", module_file(sh_addr=0x40))
    assert asked(Made())[0].files == (("lab", path),)


def test_compressed_by_what_it_is_not(asked, tmp_path):
    """The contents tell, not the name; and nothing that is damaged is used."""
    put(tmp_path / "files" / "a" / "lab.ko.xz", bz2.compress(module_file()))
    assert len(asked(Made())[0].files) == 1
    put(tmp_path / "files" / "a" / "lab.ko.xz", lzma.compress(module_file())[:-8])
    found, _ = asked(Made())
    assert found.files == ()
    assert "damaged" in found.refused[0].why


def test_types_are_preferred(asked, tmp_path):
    put(tmp_path / "files" / f"lib/modules/{RELEASE}/lab.ko", module_file())
    best = put(
        tmp_path / "files" / f"usr/lib/debug/lib/modules/{RELEASE}/lab.ko.debug", module_file(types=True)
    )
    put(tmp_path / "files" / "zz" / "lab.ko", module_file(types=True))
    assert asked(Made())[0].files == (("lab", best),)


REFUSED = {
    "build id": (module_file(b"\7" * 20), f"its build id is {'07' * 20}, that of the module is {ID.hex()}"),
    "no build id": (module_file(None), "no build id"),
    "machine": (module_file(machine=183), "another machine"),
    "no symbols": (module_file(symbols=False), "no symbols"),
    "executable": (module_file(e_type=2), "not a module"),
    "text": (b"no ELF file at all", "not an ELF file"),
    "short": (module_file()[:100], ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_refused(asked, tmp_path, case):
    """With the reason; the dump's own names take its place."""
    data, why = REFUSED[case]
    path = put(tmp_path / "files" / "lab.ko", data)
    found, _ = asked(Made())
    assert found.files == ()
    assert found.missing == (Missing("lab", True),)
    assert [refused.what for refused in found.refused] == [path]
    assert why in found.refused[0].why
    assert "symbols" in found.commands[0]


def test_what_was_refused_is_not_said_where_another_one_fits(asked, tmp_path):
    put(tmp_path / "files" / "a" / "lab.ko", module_file(b"\7" * 20))
    path = put(tmp_path / "files" / "b" / "lab.ko", module_file())
    found, _ = asked(Made())
    assert (found.files, found.refused) == ((("lab", path),), ())


@pytest.mark.parametrize(("vermagic", "fits"), [(RELEASE, True), ("6.1.0-other", False), (None, False)])
def test_without_build_id_the_release_decides(asked, tmp_path, vermagic, fits):
    put(tmp_path / "files" / "lab.ko", module_file(vermagic=vermagic))
    found, _ = asked(Made(build_id=b""))
    assert bool(found.files) == fits
    assert bool(found.refused) != fits


def test_names_that_could_be_commands(asked, tmp_path):
    """Nothing of them reaches gdb, whatever lies in the directories."""
    evil = (
        b"x;shell id",
        b"a\nshell id",
        b'q"uote',
        b"../../lab",
        b"\x1b[31m",
        b"$(id)",
        b"a b",
        b"\xff\xfe",
    )
    put(tmp_path / "files" / "x;shell id.ko", module_file())
    found, _ = asked(*(Made(name) for name in evil), Made(b"fine"))
    assert len(found.commands) == 1
    assert "fine" in found.commands[0]
    assert [refused.why for refused in found.refused] == [
        "a module of that name is given to no debugger"
    ] * len(evil)
    for refused in found.refused:
        assert refused.what.isprintable()
        assert refused.what.isascii()
    assert os.listdir(tmp_path / "scratch") == [os.path.basename(found.commands[0].split()[1])]


def test_sections_that_could_be_commands(asked, tmp_path):
    names = (("-readnow", 8), (".text -o 0x10", 8), (".a\nshell id", 8), ("!id", 8), (".text", 8))
    put(tmp_path / "files" / "lab.ko", module_file(sections=names))
    found, _ = asked(Made(sections=((b".text", 0), (b"-readnow", 16), (b"!id", 32))))
    assert set(sections(found.commands[0])) == {".note.gnu.build-id", ".text"}


def test_symbols_that_could_be_commands(asked, tmp_path):
    """In a file of symbols they are names, without what a terminal would obey."""
    found, _ = asked(Made(symbols=((b"\x1b[31mred", 0, 4, "t"), (b"a\nshell id", 8, 4, "t"))))
    path = found.commands[0].split()[1]
    assert b"\0?[31mred\0a?shell?id\0" in Path(path).read_bytes()


@pytest.mark.parametrize("layout", ["first", "layout", "mem"])
def test_symbols_of_the_dump(asked, tmp_path, layout):
    """readelf sees each symbol in the section that is its memory."""
    symbols = (
        (b"lab_open", 0x10, 0x20, "T"),
        (b"lab_close", 0x30, 0x20, "t"),
        (b"lab_ops", REGION + 8, 8, "d"),
    )
    found, memory = asked(Made(symbols=(*symbols, (b"lab_counter", -(1 << 20), 8, "d"))), layout=layout)
    assert found.missing == (Missing("lab", True),)
    _, path = found.commands[0].split()
    text = memory.texts[0]
    listed = subprocess.run(["readelf", "-sSW", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    rows = [line.split() for line in listed.stdout.splitlines() if "lab_" in line]
    found_rows = {row[7]: (int(row[1], 16), row[3], row[6]) for row in rows}
    assert found_rows == {
        "lab_open": (text + 0x10, "FUNC", "1"),
        "lab_close": (text + 0x30, "FUNC", "1"),
        "lab_ops": (text + REGION + 8, "OBJECT", "2"),
    }
    assert f".text             NOBITS          {text:016x}" in listed.stdout


def test_no_symbols_at_all(asked):
    found, _ = asked(Made(symbols=()))
    assert (found.commands, found.missing) == ((), (Missing("lab", False),))


def test_what_is_not_formed_yet_is_left_out(asked):
    assert asked(Made(state=3))[0] == ModuleSymbols((), (), (), (), ())


def test_the_usual_places():
    assert usual_directories(None) == ()
    assert usual_directories(RELEASE, "/r")[0] == f"/r/usr/lib/debug/lib/modules/{RELEASE}"


@pytest.mark.parametrize(("release", "place"), [(RELEASE, f"lib/modules/{RELEASE}"), ("../../etc", None)])
def test_a_release_that_is_no_path_leads_nowhere(tmp_path, monkeypatch, release, place):
    usual = (f"{tmp_path}/lib/modules/{{release}}",)
    monkeypatch.setattr("kdump_elftool.plain.module_index._SYSTEM", usual)
    for folder in ("etc", f"lib/modules/{RELEASE}"):
        put(tmp_path / folder / "lab.ko", module_file())
    dump, kernel, _ = open_modules(Made(), release=release)
    found = module_symbols(dump, kernel, (), str(tmp_path))
    assert found.files == ((("lab", str(tmp_path / place / "lab.ko")),) if place else ())


def test_quoting():
    assert quoted("/lib/modules/6.1.0-1+b1/x.ko") == "/lib/modules/6.1.0-1+b1/x.ko"
    assert quoted('/a b/"c"\\d.ko') == '"/a b/\\"c\\"\\\\d.ko"'
    for name in ("/a\nshell id", "/a\x1b", "/\udcff"):
        with pytest.raises(UsageError):
            quoted(name)


def test_words_by_who_asks(asked, tmp_path):
    """A script that takes plain words only gets links in the place of paths."""
    put(tmp_path / "files" / "a b" / "lab.ko", module_file())
    found, memory = asked(Made())
    assert found.commands[0].startswith(f'add-symbol-file "{tmp_path}/files/a b/lab.ko" -s ')
    (command,) = found.commands_with(lambda path: "/links/1" if path.endswith("/a b/lab.ko") else path)
    assert sections(command)[".text"] == memory.texts[0]
    assert command.split()[1] == "/links/1"


def test_paths_that_are_no_text(asked, tmp_path):
    put(tmp_path / "files" / "a\nshell id" / "lab.ko", module_file())
    found, _ = asked(Made())
    assert found.files == ()
    assert "no plain text" in found.refused[0].why
    assert "\n" not in found.refused[0].what


def test_links_are_followed_once(tmp_path):
    put(tmp_path / "real" / "lab.ko", b"")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "files")
    (tmp_path / "real" / "build").symlink_to("/")
    found, cut = index_files([str(tmp_path / "files")])
    assert found == {"lab": [str(tmp_path / "files" / "link" / "lab.ko")]}
    assert cut is None


def test_damage_is_told():
    dump, kernel, memory = open_modules(Made(), Made(b"second"), damage=bytes(8))
    found = list_modules(dump, kernel)
    assert [module.name for module in found.modules] == ["second"]
    assert found.warnings == (f"the module at {memory.places[0]:#x} makes no sense and is left out",)


def test_a_kernel_of_which_nothing_is_known():
    dump, kernel, _ = open_modules(Made())
    info = replace(kernel.info, values={})
    with pytest.raises(IdentityError, match="the modules cannot be found"):
        list_modules(dump, replace(kernel, info=info))
