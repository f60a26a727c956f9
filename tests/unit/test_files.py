"""Inputs by offset, outputs whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat

import pytest

from kdump_elftool import files
from kdump_elftool.errors import (
    CorruptDumpError,
    KdumpError,
    OutputError,
    ReadFailedError,
    UsageError,
)
from kdump_elftool.files import InputFile, open_output
from tests.builders.dumps import BytesFile


@pytest.fixture
def ten(tmp_path):
    path = tmp_path / "ten"
    path.write_bytes(b"0123456789")
    return path


def test_read_at_is_short_only_at_the_end(ten):
    with InputFile.open(str(ten)) as file:
        assert file.size == 10
        assert file.read_at(2, 3) == b"234"
        assert file.read_at(8, 100) == b"89"
        assert file.read_at(10, 1) == b""
        assert file.read_at(2**63, 5) == b""
        assert file.read_at(0, 2**63) == b"0123456789"


def test_read_into_says_where_a_shrunken_file_ends(ten):
    with InputFile.open(str(ten)) as file:
        os.truncate(ten, 4)
        with pytest.raises(CorruptDumpError, match="0x4") as caught:
            file.read_into(2, memoryview(bytearray(6)))
        assert caught.value.hint


class Failing(BytesFile):
    """A read that touches one of these pages gives nothing."""

    bad: frozenset[int] = frozenset()
    reads = 0

    def read_at(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self.bad & set(range(offset // 4096, -(-min(offset + size, self.size) // 4096))):
            raise ReadFailedError(self.path, "Input/output error", file_offset=offset, hint="-")
        return super().read_at(offset, size)


@pytest.mark.parametrize("bad", [{0}, {3}, {3, 4, 9}, {15}, set(range(16))])
def test_reads_end_before_what_fails(bad):
    image = bytes(range(251)) * 300
    file = Failing(image[: 16 * 4096 - 100])
    file.bad = frozenset(bad)
    careful = files.UpToFailure(file)
    for _ in range(2):
        for offset in (0, 5, 4096, 3 * 4096 - 1, 5 * 4096, 14 * 4096 + 7, file.size - 1, file.size):
            for size in (1, 16, 4095, 4096, 100_000):
                end = min([offset + size, file.size, *(page * 4096 for page in bad if page * 4096 > offset)])
                right = b"" if offset // 4096 in bad else image[offset:end]
                assert careful.read_at(offset, size) == right
    assert careful.failure
    known = {page for a, b in zip(careful.missing.start.tolist(), careful.missing.end.tolist(), strict=True)
             for page in range(a // 4096, -(-b // 4096))}  # fmt: skip
    assert known <= bad
    file.reads = 0
    assert careful.read_at(min(bad) * 4096, 4096) == b""
    assert file.reads <= 1, "what failed is not tried again"


def test_a_dead_disk_is_missing_in_large_pieces(monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 10)
    file = Failing(bytes(16 << 20))
    file.bad = frozenset(range(4096))
    careful, at = files.UpToFailure(file), 0
    while at < file.size:
        assert careful.read_at(at, 1 << 20) == b""
        at = files.behind_gap(careful, at)
    assert file.reads < 21 * 120
    assert careful.missing.start.tolist() == [0]
    assert careful.missing.end.tolist() == [file.size]


@pytest.mark.parametrize("name", ["absent", "directory"])
def test_what_cannot_be_opened_has_a_hint(tmp_path, name):
    (tmp_path / "directory").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KdumpError) as caught:
        InputFile.open(str(tmp_path / name))
    assert name in caught.value.message and caught.value.hint
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("number", "hint"), [(errno.EPERM, "locked down"), (errno.EACCES, "root")])
def test_why_a_file_may_not_be_opened(monkeypatch, number, hint):
    """/proc/kcore answers root with EPERM where the kernel is locked down."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KdumpError) as caught:
        InputFile.open("/proc/kcore")
    assert os.strerror(number) in caught.value.message
    assert hint in (caught.value.hint or "")


def test_terminal_codes_in_a_file_name_do_not_reach_the_message(tmp_path):
    with pytest.raises(KdumpError) as caught:
        InputFile.open(str(tmp_path / "\x1b[2J"))
    assert "\x1b" not in caught.value.message


def test_a_pipe_is_refused_as_a_dump(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    saved = os.dup(0)
    os.dup2(reading, 0)
    try:
        with pytest.raises(KdumpError, match="pipe"):
            InputFile.open("-")
    finally:
        os.dup2(saved, 0)
        for fd in (reading, writing, saved):
            os.close(fd)


def test_output_appears_when_committed_with_mode_0600(tmp_path):
    target = tmp_path / "out"
    umask = os.umask(0)
    try:
        with open_output(str(target)) as output:
            output.write_at(10, b"abc")
            assert not target.exists()
            (temporary,) = os.listdir(tmp_path)
            assert re.fullmatch(rf"\.out\.{os.getpid()}\.[0-9a-f]+\.tmp", temporary)
            assert stat.S_IMODE((tmp_path / temporary).stat().st_mode) == 0o600
            output.write_at(0, b"xy")
            output.finish(20)
            output.commit()
    finally:
        os.umask(umask)
    assert target.read_bytes() == b"xy" + bytes(8) + b"abc" + bytes(7)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["out"]


def test_data_is_synced_before_the_file_gets_its_name(tmp_path, monkeypatch):
    target, calls = tmp_path / "out", []
    for name in ("fdatasync", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1]
        )
    with open_output(str(target)) as output:
        output.write_at(0, b"abc")
        output.commit()
    assert calls[:2] in (["fdatasync", "replace"], ["fsync", "replace"])
    assert "fsync" in calls[2:], "the directory is synced as well"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_directory_that_may_not_be_read_can_have_an_output(tmp_path, monkeypatch, number):
    """Mode 0300 or 1733: making and renaming files takes no more, opening the directory does."""
    real = os.open

    def unreadable(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", unreadable)
    with open_output(str(tmp_path / "out")) as output:
        output.write_at(0, b"abc")
        output.commit()
    assert (tmp_path / "out").read_bytes() == b"abc"


def test_a_directory_that_cannot_be_synced_is_an_error(tmp_path, monkeypatch):
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with open_output(str(tmp_path / "out")) as output, pytest.raises(OutputError, match="Input/output"):
        output.commit()


def test_output_without_commit_leaves_nothing_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), open_output(str(target)) as output:
        output.write_at(0, b"new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_existing_file_is_replaced_not_written_into(tmp_path):
    target, other = tmp_path / "out", tmp_path / "other"
    target.write_bytes(b"old")
    os.link(target, other)
    with open_output(str(target)) as output:
        output.write_at(0, b"new")
        output.commit()
    assert (target.read_bytes(), other.read_bytes()) == (b"new", b"old")


def test_symbolic_link_to_an_output_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    with open_output(str(link)) as output:
        output.write_at(0, b"new")
        output.commit()
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("how", ["same", "hard", "symbolic"])
def test_an_input_is_no_output(ten, tmp_path, how):
    other = tmp_path / "other"
    if how == "hard":
        os.link(ten, other)
    elif how == "symbolic":
        other.symlink_to(ten)
    path = ten if how == "same" else other
    with InputFile.open(str(ten)) as file, pytest.raises(UsageError) as caught:
        open_output(str(path), [file])
    assert caught.value.hint
    assert ten.read_bytes() == b"0123456789"


def test_directories_and_missing_directories_are_refused(tmp_path):
    with pytest.raises(KdumpError, match="directory"):
        open_output(str(tmp_path))
    with pytest.raises(OutputError):
        open_output(str(tmp_path / "no" / "such" / "place"))
    assert os.listdir(tmp_path) == []


def test_a_very_long_name_still_has_a_temporary_name(tmp_path):
    target = tmp_path / ("n" * 255)
    with open_output(str(target)) as output:
        output.write_at(0, b"x")
        output.commit()
    assert os.listdir(tmp_path) == ["n" * 255]


def test_two_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    """Containers that share a volume are all process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    target = tmp_path / "out"
    with open_output(str(target)) as first, open_output(str(target)) as second:
        first.write_at(0, b"whole")
        second.write_at(0, b"unfini")
        first.commit()
        assert target.read_bytes() == b"whole"
        second.write_at(6, b"shed")
        second.commit()
    assert target.read_bytes() == b"unfinished"
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_that_is_taken_is_neither_removed_nor_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    taken = tmp_path / f".out.{os.getpid()}.a.tmp"
    taken.symlink_to(victim)
    clock = iter([10, 10, 11])
    monkeypatch.setattr(files.time, "monotonic_ns", lambda: next(clock))
    with open_output(str(tmp_path / "out")) as output:
        output.write_at(0, b"new")
        output.commit()
    assert victim.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == [taken.name, "out", "victim"]


def test_no_name_at_all_is_an_error(tmp_path, monkeypatch):
    (tmp_path / f".out.{os.getpid()}.a.tmp").write_bytes(b"precious")
    monkeypatch.setattr(files.time, "monotonic_ns", lambda: 10)
    with pytest.raises(OutputError, match="File exists"):
        open_output(str(tmp_path / "out"))
    files.remove_temporaries()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_a_file_that_took_the_place_of_ours_does_not_get_the_name(tmp_path):
    with open_output(str(tmp_path / "out")) as output:
        output.write_at(0, b"ours")
        (temporary,) = tmp_path.iterdir()
        temporary.unlink()
        temporary.write_bytes(b"theirs")
        with pytest.raises(OutputError, match="another file"):
            output.commit()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"theirs"]


def test_a_stream_gets_gaps_as_zeros(tmp_path):
    reading, writing = os.pipe()
    try:
        with open_output(f"/proc/self/fd/{writing}") as output:
            assert not output.is_file
            output.write_at(0, b"ab")
            output.write_at(5, b"c")
            output.finish(7)
            output.commit()
        os.close(writing)
        writing = -1
        assert os.read(reading, 100) == b"ab\0\0\0c\0"
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
