"""Real processes that read a dump from a pipe: whatever ends them, nothing stays behind."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.builders.flattened import even, flatten
from tests.builders.tools import command, run_command
from tests.faults.test_outputs import messages, on_a_terminal

pytestmark = pytest.mark.slow  # an interpreter a test


@pytest.fixture(scope="module")
def flat(dump) -> bytes:
    """The dump as makedumpfile -E -F writes it."""
    return flatten(even(dump.read_bytes(), 65536))


@pytest.mark.parametrize("kind", ["plain", "flattened"])
def test_stdin(dump, flat, velf_bytes, tmp_path, kind):
    image = flat if kind == "flattened" else dump.read_bytes()
    out = tmp_path / "out"
    run = run_command("tovelf", "-l", "all", "-i", "-", "-o", str(out), stdin=image)
    assert (run.returncode, out.read_bytes() == velf_bytes) == (0, True), run.stderr
    assert os.listdir(tmp_path) == ["out"]


def test_from_pipe_to_pipe(flat, velf_bytes, tmp_path):
    """``... | kdump-elftool tovelf -i - | gzip``: kept in $TMPDIR, and gone afterwards."""
    line = f"{' '.join(command('tovelf', '-q', '-l', 'all', '-i', '-'))} | gzip -1"
    run = subprocess.run(
        ["sh", "-c", line], input=flat, capture_output=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert gzip.decompress(run.stdout) == velf_bytes, run.stderr
    assert os.listdir(tmp_path) == []


def test_a_fifo(flat, velf_bytes, tmp_path):
    fifo, out = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(flat,))
    writer.start()
    run = run_command("tovelf", "-l", "all", str(fifo), "-o", str(out))
    writer.join()
    assert (run.returncode, out.read_bytes() == velf_bytes) == (0, True), run.stderr


def test_a_socket(flat):
    """sshd gives its programs a socket pair."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(command("info", "-"), stdin=theirs, stdout=subprocess.PIPE)
    theirs.close()
    ours.sendall(flat)
    ours.close()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, b"elf, 64-bit" in out) == (0, True)


@pytest.mark.root
@pytest.mark.parametrize("where", ["output", "TMPDIR"])
def test_full_disk_behind_the_spool(flat, tmp_path, where):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        options = ["-o", str(place / "out")] if where == "output" else []
        run = subprocess.run(
            command("topelf", "-i", "-", *options),
            input=flat,
            capture_output=True,
            env={**os.environ, "TMPDIR": str(place)},
        )
        assert (run.returncode, run.stdout) == (1, b"")
        assert messages(run) == ["error", "hint"]
        for word in (b"are free", str(place).encode(), b"stdin", b"save the dump to a file"):
            assert word in run.stderr
        assert os.listdir(place) == []
        assert os.statvfs(place).f_bfree == os.statvfs(place).f_blocks, "its room is free again"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def spooling(pid: int) -> int:
    """Bytes of the file without a name that the process has open; 0 when there is none."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if "(deleted)" in os.readlink(entry):
                return os.stat(entry).st_size
    except OSError:
        pass
    return 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_interrupted_while_it_reads(flat, tmp_path, number, code):
    process = subprocess.Popen(
        command("tovelf", "-i", "-", "-o", str(tmp_path / "out")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    with process.stdin, process.stdout, process.stderr:
        process.stdin.write(flat[: 8 << 20])
        process.stdin.flush()
        end = time.monotonic() + 30
        while not spooling(process.pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert 0 < spooling(process.pid) <= 8 << 20
        assert os.listdir(tmp_path) == [], "it has no name while it is there"
        process.send_signal(number)
        assert process.stderr.read() == b""
        assert process.wait(30) == code
    assert os.listdir(tmp_path) == []


def test_reading_is_shown_on_a_terminal(flat, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def slowly() -> None:
        with fifo.open("wb") as pipe:
            pipe.write(flat[: 2 << 20])
            pipe.flush()
            time.sleep(1)
            pipe.write(flat[2 << 20 :])

    writer = threading.Thread(target=slowly)
    writer.start()
    code, shown = on_a_terminal(command("tovelf", "-l", "all", str(fifo), "-o", str(tmp_path / "out")))
    writer.join()
    assert code == 0, shown
    assert f"reading {fifo}".encode() in shown
    assert b" MB" in shown
