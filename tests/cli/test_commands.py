"""virttophys, dumpmem, addrandoff, vminfo, ps and -P as commands, on a synthetic machine."""

from __future__ import annotations

import json

import pytest

from kdump_elftool.cli.main import main
from tests.builders.kernel import SMALL, build_vmlinux, make_kernel


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL, vmalloc_pages=50)


@pytest.fixture
def dump(tmp_path, kernel):
    path = tmp_path / "dump"
    path.write_bytes(kernel.dump())
    return path


@pytest.fixture
def run(capfd):
    """``run(*words)``: exit code, stdout, stderr."""

    def call(*words):
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert "internal error" not in captured.err
        return code, captured.out, captured.err

    return call


def pages(kernel, count):
    found = sorted(kernel.readable_pages().items())
    return found[:: max(len(found) // count, 1)][:count]


class TestVirttophys:
    def test_one_and_many(self, run, dump, kernel):
        wanted = [(vaddr + 0x123, paddr + 0x123) for vaddr, paddr in pages(kernel, 30)]
        vaddr, paddr = wanted[0]
        assert run("virttophys", "-i", dump, f"{vaddr:x}") == (0, f"{paddr:x}\n", "")
        assert run("virttophys", "-i", dump, f"0x{vaddr:X}") == (0, f"{paddr:x}\n", "")
        code, out, err = run("virttophys", "-i", dump, *(f"{vaddr:x}" for vaddr, _ in wanted))
        assert (code, err) == (0, "")
        assert out.splitlines() == [f"{vaddr:x} {paddr:x}" for vaddr, paddr in wanted]

    def test_unmapped(self, run, dump):
        code, out, err = run("virttophys", "-i", dump, "1000")
        assert (code, out) == (1, "unmapped\n")
        assert "not mapped" in err
        code, out, _ = run("virttophys", "-q", "-i", dump, "8000000000000000", "ffff800000000000")
        assert (code, out) == (1, "8000000000000000 unmapped\nffff800000000000 unmapped\n")

    def test_json_and_walk(self, run, dump, kernel):
        vaddr, paddr = pages(kernel, 1)[0]
        code, out, err = run("virttophys", "-i", dump, f"{vaddr:x}", "1000", "--json", "--verbose")
        document = json.loads(out)
        assert (code, document["schema"]) == (1, "kdump-elftool/virttophys/1")
        first, second = document["addresses"]
        assert (first["vaddr"], first["paddr"], second["paddr"]) == (f"{vaddr:#x}", f"{paddr:#x}", None)
        assert [step["level"] for step in first["walk"]][:2] == ["pgd", "pud"]
        assert "  pgd  entry" in err

    @pytest.mark.parametrize("words", [(), ("zz",), ("1" * 17,), ("-1",), ("",)])
    def test_usage(self, run, dump, words):
        code, out, err = run("virttophys", "-i", dump, *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")


class TestDumpmem:
    def test_lines(self, run, dump, kernel):
        vaddr, paddr = pages(kernel, 5)[3]
        code, out, err = run("dumpmem", "-i", dump, f"{vaddr + 8:x}", "15")
        data = kernel.ram.read(paddr + 8, 0x15)
        first, second = out.splitlines()
        assert (code, err) == (0, "")
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
        assert first == f"{vaddr + 8:x}: {data[:16].hex(' ')}  {shown[:16]}"
        assert second == f"{vaddr + 24:x}: {data[16:].hex(' '):<47}  {shown[16:]}"
        assert (
            run("dumpmem", "-p", "-i", dump, f"{paddr + 8:x}", "15")[1].splitlines()[0][-66:] == first[-66:]
        )

    def test_raw(self, run, dump, kernel, tmp_path):
        vaddr, paddr = pages(kernel, 5)[2]
        target = tmp_path / "bytes"
        assert run("dumpmem", "--raw", "-o", target, "-i", dump, f"{vaddr:x}", "1000") == (0, "", "")
        assert target.read_bytes() == kernel.ram.read(paddr, 0x1000)
        assert target.stat().st_mode & 0o777 == 0o600
        code, out, err = run("dumpmem", "--raw", "-o", tmp_path / "other", "-i", dump, "1000", "10")
        assert (code, out) == (1, "")
        assert "0x1000" in err
        assert not (tmp_path / "other").exists()

    def test_json_of_raw_bytes(self, dump, kernel, tmp_path, capfdbinary):
        """Where they went; beside them where that is stdout."""
        vaddr, paddr = pages(kernel, 5)[2]
        data = kernel.ram.read(paddr, 0x1000)
        words = ["dumpmem", "--raw", "--json", "-i", str(dump), f"{vaddr:x}", "1000"]
        wanted = {
            "schema": "kdump-elftool/dumpmem/1",
            "address": f"{vaddr:#x}",
            "bytes": 0x1000,
            "absent_bytes": 0,
        }
        target = tmp_path / "bytes"
        assert main([*words, "-o", str(target)]) == 0
        out, err = capfdbinary.readouterr()
        assert (json.loads(out), err) == ({**wanted, "output": str(target)}, b"")
        assert target.read_bytes() == data
        for more in ([], ["-o", "-"]):
            assert main([*words, *more]) == 0
            out, err = capfdbinary.readouterr()
            assert out == data
            assert json.loads(err) == {**wanted, "output": more[-1] if more else None}

    def test_absent(self, run, dump):
        code, out, err = run("dumpmem", "-i", dump, "1000", "11")
        assert code == 1
        assert out.splitlines() == [f"1000: {' '.join(['??'] * 16)}  {'.' * 16}", f"1010: {'??':<47}  ."]
        assert err == "warning: 17 of 17 bytes are not in the dump\n"

    def test_partly_absent(self, run, dump, kernel):
        start, end = max((start, start + len(data)) for start, data in kernel.ram.ranges)
        del start
        code, out, _ = run("dumpmem", "-p", "--json", "-i", dump, f"{end - 16:x}", "20")
        document = json.loads(out)
        assert (code, document["absent_bytes"], len(document["pieces"])) == (0, 16, 1)
        assert bytes.fromhex(document["pieces"][0]["hex"]) == kernel.ram.read(end - 16, 16)
        assert run("dumpmem", "-p", "--strict", "-i", dump, f"{end - 16:x}", "20")[0] == 1

    @pytest.mark.parametrize(
        "words", [("1000",), ("1000", "0"), ("ffffffffffffffff", "2"), ("x", "1"), ("-o", "f", "1000", "10")]
    )
    def test_usage(self, run, dump, words):
        code, out, err = run("dumpmem", "-i", dump, *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")


class TestAddrandoff:
    def test_added_replaced_undone(self, run, dump, tmp_path, kernel):
        vmlinux = tmp_path / "vmlinux"
        vmlinux.write_bytes(build_vmlinux())
        before = dump.read_bytes()
        code, out, err = run("addrandoff", "-v", dump, "-m", vmlinux, "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert document["changed"] is True
        assert int(document["kaslr_offset"], 16) == (kernel.symbol("_stext") - 0xFFFFFFFF81000000) % 2**64
        changed = dump.read_bytes()
        assert changed[64 : len(before)] == before[64:]
        assert json.loads(run("addrandoff", "-v", dump, "-m", vmlinux, "--json")[1])["changed"] is False
        assert dump.read_bytes() == changed
        # another offset by -e replaces the first; each --undo takes one change back
        extra = tmp_path / "extra"
        extra.write_text(f"SYMBOL(_stext)={kernel.symbol('_stext') + 0x1000000:x}\n")
        assert json.loads(run("addrandoff", "-v", dump, "-m", vmlinux, "-e", extra, "--json")[1])["changed"]
        assert run("addrandoff", "-v", dump, "--undo")[0] == 0
        assert dump.read_bytes() == changed
        assert run("addrandoff", "-v", dump, "--undo")[0] == 0
        assert dump.read_bytes() == before
        code, _, err = run("addrandoff", "-v", dump, "--undo")
        assert (code, "nothing to undo" in err) == (1, True)

    def test_it_still_converts(self, run, dump, tmp_path):
        vmlinux = tmp_path / "vmlinux"
        vmlinux.write_bytes(build_vmlinux())
        plain, moved = tmp_path / "plain", tmp_path / "moved"
        assert run("tovelf", "-l", "all", "-i", dump, "-m", vmlinux, "-o", plain)[0] == 0
        assert run("addrandoff", "-v", dump, "-m", vmlinux)[0] == 0
        assert run("tovelf", "-l", "all", "-i", dump, "-m", vmlinux, "-o", moved)[0] == 0
        assert moved.read_bytes() == plain.read_bytes()

    def test_refused(self, run, dump, tmp_path):
        before = dump.read_bytes()
        other = tmp_path / "other"
        other.write_bytes(build_vmlinux(build_id=b"x" * 20))
        code, _, err = run("addrandoff", "-v", dump, "-m", other)
        assert (code, "not the kernel of this dump" in err) == (1, True)
        assert run("addrandoff", "-v", dump)[0] == 2
        assert run("addrandoff", "-m", other)[0] == 2
        assert dump.read_bytes() == before


def test_a_process_by_its_table(run, dump, kernel, tmp_path):
    """-P with the kernel's own root is the kernel; with one that maps nothing it is an error."""
    out = tmp_path / "velf"
    root = json.loads(run("tovelf", "-i", dump, "-o", out, "--json")[1])["pgt_root"]
    done = json.loads(run("tovelf", "-P", root, "-i", dump, "-o", out, "--json")[1])
    assert (done["level"], done["pgt_root"]) == ("kernel", root)
    start, data = kernel.ram.ranges[0]
    empty = start + len(data) - 4096
    kernel_page = dump.read_bytes().find(kernel.ram.read(empty, 4096))
    image = bytearray(dump.read_bytes())
    image[kernel_page : kernel_page + 4096] = bytes(4096)
    dump.write_bytes(bytes(image))
    code, _, err = run("tovelf", "-P", f"{empty:#x}", "-i", dump, "-o", out)
    assert (code, f"{empty:#x} map nothing" in err) == (1, True)


def test_tasks_ask_for_what_is_missing(run, dump, tmp_path):
    """A kernel of which nothing is known but VMCOREINFO: one error that says what to do."""
    for words in (("ps", dump), ("tovelf", "-p", "-i", dump, "-o", tmp_path / "velf")):
        code, out, err = run(*words)
        assert (code, out) == (1, "")
        assert "SYMBOL(init_task)" in err
        assert "-m" in err.splitlines()[-1]
    assert not (tmp_path / "velf").exists()


def test_vminfo(run, dump, kernel, tmp_path):
    code, out, err = run("vminfo", dump)
    assert (code, err) == (0, "")
    lines = dict(line.split("=", 1) for line in out.splitlines())
    assert int(lines["SYMBOL(_stext)"], 16) == kernel.symbol("_stext")
    assert lines["PAGESIZE"] == "4096"
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(build_vmlinux())
    code, out, err = run("vminfo", "--keys", "base", "--json", vmlinux)
    assert (code, err) == (0, "")
    assert json.loads(out)["values"]["SYMBOL(_stext)"] == "ffffffff81000000"


@pytest.mark.parametrize(
    "words",
    [
        ("vminfo", "DUMP"),
        ("info", "DUMP"),
        ("dumpmem", "-i", "DUMP", "ADDRESS", "10"),
        ("dumpmem", "--raw", "-o", "bytes", "-i", "DUMP", "ADDRESS", "10"),
        ("virttophys", "-i", "DUMP", "ADDRESS"),
        ("gdb", "--no-procthreads", "--print-script", "DUMP"),
        ("tovelf", "-i", "DUMP", "-o", "core"),
        ("topelf", "-i", "DUMP", "-o", "core"),
        ("addrandoff", "-i", "DUMP"),
    ],
    ids=" ".join,
)
def test_strict_makes_a_failure_of_any_warning(run, dump, kernel, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "other").write_bytes(build_vmlinux(build_id=b"x" * 20))
    given = {"DUMP": dump, "ADDRESS": f"{kernel.text_vaddr:x}"}
    argv = [*(given.get(word, word) for word in words), "--force", "-m", "other"]
    code, out, err = run(*argv)
    assert (code, "warning: other is not the kernel of this dump" in err) == (0, True)
    again = run(*argv, "--strict")
    assert (again[0], again[1]) == (1, out), "done nevertheless"
    code, _, err = run(*argv, "--strict", "-q")
    assert (code, err) == (1, "")
