"""Real processes that cannot write what they should: no half file that looks whole, ever."""

from __future__ import annotations

import os
import pty
import resource
import select
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders.check import check_shape, read_core
from tests.builders.elfcore import CoreSpec, SegmentSpec, build_core
from tests.builders.kernel import MIB, build_vmlinux, make_kernel
from tests.builders.pagetables import SIZE_1G
from tests.builders.tools import command, run_command

pytestmark = pytest.mark.slow  # an interpreter a test: too much for the inner loop


def messages(run: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The kinds of lines on stderr."""
    assert b"Traceback" not in run.stderr, run.stderr.decode()
    return [line.split(":")[0] for line in run.stderr.decode().splitlines()]


def test_right_result(dump, velf_bytes, tmp_path):
    run = run_command("tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "out"))
    assert run.returncode == 0
    assert (tmp_path / "out").read_bytes() == velf_bytes
    check_shape(read_core(velf_bytes))


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_mode_is_0600(dump, tmp_path, umask):
    out = tmp_path / "out"
    process = subprocess.Popen(command("tovelf", "-l", "all", "-i", str(dump), "-o", str(out)), umask=umask,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    assert process.wait(60) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_file_size_limit(dump, tmp_path):
    """ulimit -f: EFBIG instead of the signal that kills."""
    run = subprocess.run(
        command("tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "out")), capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert messages(run) == ["error", "hint"]
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk(dump, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        (place / "out").write_bytes(b"old")
        run = run_command("tovelf", "-l", "all", "-i", str(dump), "-o", str(place / "out"))
        assert run.returncode == 1
        assert messages(run) == ["error", "hint"]
        assert b"No space left" in run.stderr
        assert os.listdir(place) == ["out"]
        assert (place / "out").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_dev_full(dump):
    with open("/dev/full", "wb") as full:
        run = subprocess.run(
            command("tovelf", "-l", "all", "-i", str(dump)), stdout=full, stderr=subprocess.PIPE
        )
    assert run.returncode == 1
    assert messages(run) == ["error", "hint"]


def test_statistics_into_a_full_device(dump, tmp_path):
    with open("/dev/full", "wb") as full:
        run = subprocess.run(command("tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "out")),
                             stdout=full, stderr=subprocess.PIPE)  # fmt: skip
    assert run.returncode == 1
    assert b"Traceback" not in run.stderr
    assert b"Exception ignored" not in run.stderr


def test_closed_pipe_is_silent(dump):
    process = subprocess.Popen(
        command("tovelf", "-l", "all", "-i", str(dump)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    with process.stderr:
        with process.stdout:
            assert process.stdout.read(4) == b"\x7fELF"
        assert process.stderr.read() == b""
    assert process.wait(60) == 1


@pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("argv", [["--help"], ["tovelf", "--help"], ["--version"]])
def test_closed_pipe_behind_help(argv, buffered):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    if not buffered:
        environment["PYTHONUNBUFFERED"] = "1"
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(command(*argv), stdout=writing, stderr=subprocess.PIPE, env=environment)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


def test_stdout_into_a_pipe(dump, velf_bytes):
    run = subprocess.run(
        f"{' '.join(command('tovelf', '-l', 'all', '-i', str(dump)))} | cat", shell=True, capture_output=True
    )
    assert run.stdout == velf_bytes
    assert messages(run)


def test_named_stream_outputs(dump, velf_bytes):
    """-o /dev/stdout: the statistics must not follow the core on the same stream."""
    run = run_command("tovelf", "-l", "all", "-i", str(dump), "-o", "/dev/stdout")
    assert (run.returncode, run.stdout == velf_bytes) == (0, True)


def test_process_substitution(dump, velf_bytes, tmp_path):
    line = (
        " ".join(command("tovelf", "-l", "all", "-q", "-i", str(dump), "-o"))
        + f" >(cat > {tmp_path}/copy); sleep 0.1; wait"
    )
    run = subprocess.run(["bash", "-c", line], capture_output=True)
    assert run.returncode == 0, run.stderr
    for _ in range(100):
        if (tmp_path / "copy").stat().st_size == len(velf_bytes):
            break
        time.sleep(0.05)
    assert (tmp_path / "copy").read_bytes() == velf_bytes


def test_stdin_from_a_file_and_from_a_pipe(dump, velf_bytes):
    with dump.open("rb") as file:
        run = subprocess.run(command("tovelf", "-l", "all", "-i", "-"), stdin=file, capture_output=True)
    assert (run.returncode, run.stdout == velf_bytes) == (0, True)
    piped = run_command("tovelf", "-l", "all", "-i", "-", stdin=dump.read_bytes()[:100000])
    assert piped.returncode == 1
    assert messages(piped) == ["error", "hint"]
    assert piped.stdout == b""


def interrupt(argv: list[str], number: int, seen: Path) -> subprocess.CompletedProcess[bytes]:
    """Send the signal when the temporary output has appeared and has some data."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        if any(path.name.endswith(".tmp") for path in seen.iterdir()):
            process.send_signal(number)
            break
        time.sleep(0.0005)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_leave_no_file(tmp_path, number, code):
    """Met in the middle of a long run: 6 GB of zeros take seconds."""
    large = tmp_path / "large"
    make_large(large, 6)
    place = tmp_path / "place"
    place.mkdir()
    run = interrupt(command("tovelf", "-l", "all", "-i", str(large), "-o", str(place / "out")), number, place)
    assert run.returncode == code, run.stderr
    assert os.listdir(place) == []
    assert b"Traceback" not in run.stderr
    assert not run.stdout


def make_large(large: Path, gigabytes: int) -> None:
    """A kernel with some GB more RAM that is a hole in the dump's file: seconds of work."""
    kernel = make_kernel()
    base, size = kernel.bases["page_offset"], gigabytes * SIZE_1G
    kernel.tables.map_range(base + 16 * SIZE_1G, 16 * SIZE_1G, size, SIZE_1G)
    segments = [*kernel.segments(), SegmentSpec(16 * SIZE_1G, filesz=size, offset=64 * MIB)]
    large.write_bytes(build_core(CoreSpec(segments, kernel.notes())))
    os.truncate(large, 64 * MIB + size)


def test_interrupt_before_anything_is_written(tmp_path):
    """Ctrl-C while a FIFO is waited for: no traceback either."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(command("tovelf", "-l", "all", "-i", str(fifo), "-o", str(tmp_path / "out")),
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    wait_until_blocked(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert os.listdir(tmp_path) == ["fifo"]


def wait_until_blocked(pid: int) -> None:
    """Until the process sleeps in the open of a FIFO (wait_for_partner) or half a minute is over."""
    for _ in range(600):
        try:
            where = Path(f"/proc/{pid}/wchan").read_text()
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if where in ("wait_for_partner", "fifo_open") or (where in ("", "0") and state == "S"):
            time.sleep(0.3)
            return
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["same", "hard", "symbolic", "other spelling"])
def test_output_equal_to_input(dump, tmp_path, how):
    place = tmp_path / "dump"
    place.write_bytes(dump.read_bytes())
    other = tmp_path / "other"
    if how == "hard":
        os.link(place, other)
    elif how == "symbolic":
        other.symlink_to(place)
    name = {"same": place, "other spelling": tmp_path / "." / ".." / tmp_path.name / "dump"}.get(how, other)
    before = place.read_bytes()
    run = run_command("tovelf", "-l", "all", "-i", str(place), "-o", str(name))
    assert run.returncode == 2
    assert messages(run) == ["error", "hint"]
    assert place.read_bytes() == before
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".tmp")]


@pytest.mark.parametrize("option", ["-m", "-e"])
def test_output_equal_to_another_input(dump, tmp_path, option):
    other = tmp_path / "other"
    other.write_bytes(build_vmlinux() if option == "-m" else b"OSRELEASE=6.1.0\n")
    before = other.read_bytes()
    run = run_command("tovelf", "-l", "all", "-i", str(dump), option, str(other), "-o", str(other))
    assert run.returncode == 2, run.stderr
    assert other.read_bytes() == before


def test_stdout_is_the_input(dump, tmp_path):
    place = tmp_path / "dump"
    place.write_bytes(dump.read_bytes())
    with place.open("r+b") as file:
        run = subprocess.run(
            command("tovelf", "-l", "all", "-i", str(place)), stdout=file, stderr=subprocess.PIPE
        )
    assert run.returncode == 2
    assert place.read_bytes() == dump.read_bytes()


def on_a_terminal(argv: list[str]) -> tuple[int, bytes]:
    """Exit code and what appeared on the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(argv[0], argv)
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


@pytest.mark.parametrize("options", [[], ["-o", "-"], ["-o", "/dev/stdout"], ["-o", "/dev/tty"]])
def test_a_terminal_is_refused(dump, options):
    code, shown = on_a_terminal(command("tovelf", "-l", "all", "-i", str(dump), *options))
    assert code == 2, shown
    assert b"\x7fELF" not in shown
    assert shown.startswith(b"error: ")
    assert b"hint: " in shown


def test_progress_on_a_terminal_leaves_only_the_statistics(dump, tmp_path):
    code, shown = on_a_terminal(command("tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "out")))
    assert code == 0
    assert b"Accepted" in shown
    assert b"Traceback" not in shown


def test_a_dump_from_a_terminal_is_refused():
    code, shown = on_a_terminal(command("tovelf", "-l", "all", "-i", "-", "-o", "/nowhere/out"))
    assert code == 2
    assert shown.startswith(b"error: ")


def test_output_in_a_directory_that_is_not_there(dump, tmp_path):
    run = run_command("tovelf", "-l", "all", "-i", str(dump), "-o", str(tmp_path / "no" / "out"))
    assert run.returncode == 1
    assert messages(run) == ["error", "hint"]


def test_input_that_shrinks_while_it_is_read(tmp_path):
    """The reader notices: no core with zeros for what was there."""
    place = tmp_path / "dump"
    make_large(place, 6)
    out = tmp_path / "place"
    out.mkdir()
    process = subprocess.Popen(
        command("tovelf", "-l", "all", "-i", str(place), "-o", str(out / "out")),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 30
    while not list(out.iterdir()) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    os.truncate(place, 1 << 20)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert err.startswith(b"error: ")
    assert os.listdir(out) == []


def test_termination_at_any_moment_leaves_nothing(tmp_path):
    """From the interpreter's start to after the rename: at worst nothing, at best the whole core."""
    large = tmp_path / "large"
    make_large(large, 1)
    place = tmp_path / "place"
    place.mkdir()
    argv = command("tovelf", "-l", "all", "-q", "-i", str(large), "-o", str(place / "out"))
    begin = time.monotonic()
    assert subprocess.run(argv).returncode == 0
    whole = time.monotonic() - begin
    (place / "out").unlink()
    codes = set()
    for step in range(12):
        process = subprocess.Popen(argv, stderr=subprocess.PIPE)
        time.sleep(whole * step / 12)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        codes.add(process.returncode)
        assert process.returncode in (-signal.SIGTERM, 143, 0), err
        assert b"Traceback" not in err
        assert os.listdir(place) in ([], ["out"])
    assert 143 in codes, "some of them meet the command at work"
