"""Dumps from pipes: any command, any dump, read once; what is wrong with them is said as of a file."""

from __future__ import annotations

import os
import pty
import sys
import threading
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import pytest

from kdump_elftool.cli.main import main
from kdump_elftool.formats import flattened, piped
from tests.builders.check import check_pages, check_shape, read_core
from tests.builders.flattened import even, flatten
from tests.builders.kernel import SMALL, make_kernel

SEED = 20261124


@pytest.fixture(scope="module")
def kernel():
    return make_kernel(SMALL)


@pytest.fixture(scope="module")
def plain(kernel):
    return kernel.dump()


@pytest.fixture(scope="module")
def flat(plain):
    records = even(plain, 65536)
    Random(SEED).shuffle(records)
    return flatten(records)


class Ran(NamedTuple):
    """One run: exit code, streams, and what the input was called."""

    code: int
    out: str
    err: str
    name: str


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """``run(image, *argv)``: the command with FIFO or stdin as its input; nothing may stay behind."""
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def through(image: bytes, *argv: str, piece: int = 1 << 16, last: Sequence[str] = ()) -> Ran:
        reading, writing = os.pipe()
        descriptors = len(os.listdir("/proc/self/fd"))

        def feed() -> None:
            try:
                for at in range(0, len(image), piece):
                    os.write(writing, image[at : at + piece])
            except BrokenPipeError:
                pass
            finally:
                os.close(writing)

        writer = threading.Thread(target=feed)
        writer.start()
        name = f"/dev/fd/{reading}"
        flag = ["-i"] if argv[0] == "tovelf" else []
        code = main([*argv, *flag, name, *last])
        os.close(reading)
        writer.join()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        assert len(os.listdir("/proc/self/fd")) <= descriptors - 2, "a descriptor leaked"
        assert set(os.listdir(tmp_path)) <= {"out"}
        return Ran(code, captured.out, captured.err, name)

    return through


def test_plain_and_flattened_give_the_same(run, kernel, plain, flat, tmp_path):
    out = tmp_path / "out"
    results = []
    for image, options in ((plain, ()), (flat, ()), (flat, ("-I", "makedumpfile"))):
        code, _, err, _ = run(image, "tovelf", "-l", "all", "-o", str(out), *options)
        assert (code, err) == (0, "")
        results.append(out.read_bytes())
    assert results[0] == results[1] == results[2]
    core = read_core(results[0])
    check_shape(core)
    check_pages(core, kernel)


@pytest.mark.parametrize("piece", [1, 997, 1 << 20])
def test_in_pieces_of_any_size(run, flat, piece):
    image = flat[: 20000 if piece == 1 else len(flat)]
    code, out, err, _ = run(image, "info", piece=piece)
    assert (code, "(rearranged)" in out) == (0, True) if piece > 1 else (1, False), err


def test_a_flattened_dump_is_gone_through_once(run, flat, monkeypatch):
    monkeypatch.setattr(flattened, "scan", None)
    assert run(flat, "info")[0] == 0


@pytest.mark.parametrize(
    "argv", [("info",), ("dmesg",), ("ps",), ("virttophys", "-i"), ("dumpmem", "-i"), ("vminfo",)]
)
def test_every_command_says_what_it_says_of_a_file(run, plain, tmp_path, argv, capfd):
    (tmp_path / "out").write_bytes(plain)
    address = {"virttophys": ["ffffffff81000000"], "dumpmem": ["ffffffff81000000", "40"]}.get(argv[0], [])
    code = main([*argv, str(tmp_path / "out"), *address])
    expected = capfd.readouterr()
    found = run(plain, *argv, last=address)
    assert found.code == code
    assert found.out.replace(found.name, str(tmp_path / "out")) == expected.out
    assert found.err.replace(found.name, str(tmp_path / "out")) == expected.err


def test_format_can_be_demanded(run, plain):
    code, _, err, _ = run(plain, "info", "-I", "makedumpfile")
    assert (code, "no makedumpfile stream" in err) == (1, True)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("which", ["plain", "flat"])
def test_the_sender_died(run, plain, flat, which, share, tmp_path):
    whole = plain if which == "plain" else flatten(even(plain, 65536))
    image = whole[: int(len(whole) * share)]
    code, _, err, _ = run(image, "tovelf", "-l", "all", "-o", str(tmp_path / "out"))
    if code:
        assert err.count("error: ") == err.count("hint: ") == 1
    else:
        assert err.count("coverage: ") == 1
        assert "warning: stdin" in err or "rearranged" in err or which == "plain"
        check_shape(read_core(tmp_path / "out"))
    assert (code == 0) == (share > 0.9)


def test_it_is_kept_beside_the_output(run, plain, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    kept = []
    real = piped.Spool

    def noting(directory, *words):
        kept.append(directory)
        return real(directory, *words)

    monkeypatch.setattr(piped, "Spool", noting)
    assert run(plain, "tovelf", "-l", "all", "-o", str(tmp_path / "out"))[0] == 0
    assert kept == [str(tmp_path)]


def test_no_room(run, plain, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        code, _, err, _ = run(plain, "info")
    assert code == 1
    assert "No space left" in err
    assert str(tmp_path) in err
    assert "save the dump to a file first" in err


def test_a_core_for_the_terminal_is_refused_before_anything_is_read(monkeypatch, capfd):
    """Otherwise a dump that can be sent once only would be lost."""
    main_end, terminal = pty.openpty()
    saved = os.dup(1)
    sys.stdout.flush()
    os.dup2(terminal, 1)
    try:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(piped, "keep_piped", None)
        assert main(["topelf", "-i", "/nowhere"]) == 2
    finally:
        os.dup2(saved, 1)
        for fd in (saved, terminal, main_end):
            os.close(fd)
    assert "terminal" in capfd.readouterr().err


def test_a_set_from_pipes_is_no_set(run, plain):
    """Two pipes are both read; that they are no set is then said as of files."""
    code, _, err, _ = run(plain, "info", "/dev/null")
    assert code == 1
    assert "error: " in err


def test_the_reason_is_the_hint_where_nothing_can_be_read(run, plain):
    """Program headers come last from makedumpfile -E -F, and never when the sender dies before."""
    head, *bulk = even(plain, 64)[:1] + even(plain, 65536)[1:]
    code, _, err, _ = run(flatten([head, *bulk], end=b""), "info")
    assert code == 1
    assert "without an end mark" in err.split("hint: ")[1]
