"""The file without a name that input from a pipe is kept in."""

from __future__ import annotations

import errno
import os
import stat
from random import Random

import pytest

from kdump_elftool import files, spool
from kdump_elftool.errors import OutputError
from kdump_elftool.spool import Spool, spool_directory

SEED = 20261124


def kept(path, image: bytes, piece: int) -> tuple[bytes, os.stat_result]:
    found = Spool(str(path), "the dump", "save it")
    for at in range(0, len(image), piece):
        found.append(memoryview(image)[at : at + piece])
    found.finish()
    data, status = os.pread(found.fd, len(image) + 1, 0), os.fstat(found.fd)
    assert found.size == len(image)
    buffer = bytearray(len(image))
    found.read_into(0, memoryview(buffer))
    assert bytes(buffer) == image
    descriptors = len(os.listdir("/proc/self/fd"))
    del found
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
    return data, status


@pytest.mark.parametrize("piece", [1, 4095, 4096, 10000, 1 << 20])
def test_what_was_appended_is_there(tmp_path, piece):
    random = Random(SEED)
    image = b"".join(
        random.choice([bytes(4096), bytes(4095) + b"x", b"x" + bytes(4095), random.randbytes(4096)])
        for _ in range(20 if piece == 1 else 300)
    )
    for data in (image, image + bytes(5000), image + b"abc"):
        assert kept(tmp_path, data, piece)[0] == data


def test_nothing_at_all(tmp_path):
    assert kept(tmp_path, b"", 1)[0] == b""


def test_it_is_private_has_no_name_and_zeros_take_no_room(tmp_path):
    image = b"x" * 4096 + bytes(1 << 20) + b"y"
    data, status = kept(tmp_path, image, 1 << 20)
    assert data == image
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_nlink == 0
    assert status.st_blocks * 512 <= 4 * 4096
    assert os.listdir(tmp_path) == []


def test_without_o_tmpfile(tmp_path, monkeypatch):
    """NFS has no files without a name: then it loses its name at once."""
    real, names = os.open, []

    def refusing(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        names.append(path)
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(files.os, "open", refusing)
    data, status = kept(tmp_path, b"abc", 3)
    assert (data, status.st_nlink, stat.S_IMODE(status.st_mode)) == (b"abc", 0, 0o600)
    assert os.path.dirname(names[0]) == str(tmp_path)
    assert os.listdir(tmp_path) == []
    assert not files._temporaries


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_failure_says_where_how_much_and_what_to_do(tmp_path, monkeypatch, number):
    found = Spool(str(tmp_path), "the dump from stdin", "save it")
    found.append(memoryview(b"x" * 8192))

    def failing(*_args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(spool.os, "pwrite", failing)
    with pytest.raises(OutputError) as caught:
        found.append(b"x" * 4096)
    parts = ("the dump from stdin", str(tmp_path), "8192 bytes", os.strerror(number))
    assert all(part in caught.value.message for part in parts)
    assert "TMPDIR" in (caught.value.hint or "")
    assert "save it" in (caught.value.hint or "")


def test_the_disk_is_not_filled(tmp_path, monkeypatch):
    """A tenth stays free, or 64 MB."""
    found = Spool(str(tmp_path), "the dump", "save it")
    found.append(b"x" * 4096)
    monkeypatch.setattr(spool, "_room", lambda fd: (64 << 20, 1 << 40))
    with pytest.raises(OutputError, match="4096 bytes of it"):
        found.append(b"x")
    monkeypatch.setattr(spool, "_room", lambda fd: (1000, 10000))
    small = Spool(str(tmp_path), "the dump", "save it")
    small.append(b"")
    with pytest.raises(OutputError, match="1 more are needed, 1000 are free, 1000 stay so"):
        small.append(b"y")


def test_given_away(tmp_path):
    found = Spool(str(tmp_path), "the dump", "save it")
    found.append(b"abc")
    fd = found.give_away()
    found.close()
    del found
    assert os.pread(fd, 9, 0) == b"abc"
    os.close(fd)


def test_no_such_directory(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        Spool(str(tmp_path / "none"), "the dump", "save it")


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    (tmp_path / "there").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "sub" / "file")
    os.mkfifo(tmp_path / "fifo")
    assert spool_directory(str(tmp_path / "new")) == str(tmp_path)
    assert spool_directory(str(tmp_path / "there")) == str(tmp_path)
    assert spool_directory(str(tmp_path / "link")) == str(tmp_path / "sub"), "beside what is written"
    monkeypatch.chdir(tmp_path)
    assert spool_directory("new") == str(tmp_path)
    for streamed in (None, "-", str(tmp_path / "fifo"), "/dev/null", str(tmp_path / "there" / "x")):
        assert spool_directory(streamed) == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert spool_directory(None) == str(tmp_path)
