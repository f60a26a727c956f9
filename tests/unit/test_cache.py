"""The cache: what comes back, what is not trusted, what goes when there is no room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_elftool.cache import Cache, cache_home


@pytest.fixture
def home(tmp_path):
    return tmp_path / "cache"


def opened(home: Path, **changes) -> Cache:
    cache = Cache.open({"XDG_CACHE_HOME": str(home)}, **changes)
    assert cache is not None
    return cache


def directory(home: Path) -> Path:
    return home / "kdump-elftool"


def test_what_was_put_comes_back(home):
    with opened(home) as cache:
        assert cache.get("types-1") is None
        assert cache.put("types-1", b"first")
        assert cache.put("types-1", b"second")
        assert cache.put("empty", b"")
    with opened(home) as cache:
        assert (cache.get("types-1"), cache.get("empty")) == (b"second", b"")
    assert stat.S_IMODE(directory(home).stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory(home).iterdir()}
    assert modes == {"types-1": 0o600, "empty": 0o600, ".lock": 0o600}


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(home, umask):
    home.mkdir()
    before = os.umask(umask)
    try:
        cache = Cache.open({"XDG_CACHE_HOME": str(home)})
        if cache is not None:
            cache.put("key", b"x")
            cache.close()
    finally:
        os.umask(before)
    for path in (directory(home), *directory(home).glob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache"),
        ({"HOME": "relative"}, None),
        ({}, None),
    ],
)
def test_where_it_is(environ, expected):
    assert cache_home(environ) == expected


def test_no_cache_without_home():
    assert Cache.open({}) is None


@pytest.mark.parametrize("obstacle", ["file", "base_is_file", "link", "writable"])
def test_a_directory_that_is_not_trusted(home, obstacle, tmp_path):
    home.mkdir()
    if obstacle == "file":
        directory(home).write_text("")
    elif obstacle == "base_is_file":
        home.rmdir()
        home.write_text("")
    elif obstacle == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory(home).symlink_to(tmp_path / "elsewhere")
    else:
        directory(home).mkdir()
        directory(home).chmod(0o770)
    assert Cache.open({"XDG_CACHE_HOME": str(home)}) is None


def test_a_directory_of_somebody_else(home, monkeypatch):
    opened(home).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert Cache.open({"XDG_CACHE_HOME": str(home)}) is None


def test_a_readable_directory_is_closed_to_others(home):
    directory(home).mkdir(parents=True)
    directory(home).chmod(0o755)
    opened(home).close()
    assert stat.S_IMODE(directory(home).stat().st_mode) == 0o700


def test_damage_anywhere_is_seen_and_mended(home):
    with opened(home) as cache:
        cache.put("key", b"some data")
        entry = directory(home) / "key"
        good = entry.read_bytes()
        for at in range(len(good)):
            entry.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            assert cache.get("key") is None, at
            entry.write_bytes(good[:at])
            assert cache.get("key") is None, at
        entry.write_bytes(good + b"x")
        assert cache.get("key") is None
        assert cache.put("key", b"new")
        assert cache.get("key") == b"new"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "writable"])
def test_an_entry_that_is_not_ours(home, kind, tmp_path):
    with opened(home) as cache:
        cache.put("key", b"good")
        entry = directory(home) / "key"
        if kind == "writable":
            entry.chmod(0o666)
        else:
            moved = tmp_path / "moved"
            entry.rename(moved)
            {
                "link": lambda: entry.symlink_to(moved),
                "fifo": lambda: os.mkfifo(entry),
                "directory": entry.mkdir,
            }[kind]()
        assert cache.get("key") is None
        assert cache.put("key", b"new") is (kind != "directory")
        assert cache.get("key") == (None if kind == "directory" else b"new")
        if kind == "link":
            assert b"good" in moved.read_bytes()


def test_the_oldest_goes_first(home):
    with opened(home, limit=1000) as cache:
        for index, key in enumerate("abc"):
            assert cache.put(key, bytes(250))
            os.utime(directory(home) / key, (index, index))
        assert cache.get("a") == bytes(250)  # and is the youngest by that
        assert cache.put("d", bytes(250))
        assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
        assert sum(path.stat().st_size for path in directory(home).iterdir()) <= 1000
        assert cache.put("d", bytes(900))
        assert [cache.get(key) is not None for key in "abcd"] == [False, False, False, True]


def test_what_is_larger_than_the_limit_changes_nothing(home):
    with opened(home, limit=1000) as cache:
        cache.put("a", bytes(100))
        assert not cache.put("b", bytes(1000))
        assert cache.get("a") == bytes(100)


def test_what_dead_writers_left_is_removed(home):
    with opened(home) as cache:
        stale, fresh = directory(home) / ".a.1.2.tmp", directory(home) / ".b.1.2.tmp"
        stale.write_bytes(b"x")
        fresh.write_bytes(b"x")
        os.utime(stale, (0, 0))
        cache.put("key", b"")
        assert (stale.exists(), fresh.exists()) == (False, True)


@pytest.mark.parametrize("key", ["", ".", "..", ".lock", "a/b", "a\0b", "é", "x" * 201, "a\n"])
def test_keys_are_names(home, key):
    with opened(home) as cache:
        with pytest.raises(AssertionError):
            cache.get(key)
        with pytest.raises(AssertionError):
            cache.put(key, b"")


def test_a_full_disk_keeps_nothing(home, monkeypatch):
    with opened(home) as cache:
        cache.put("key", b"old")

        def full(*_args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        assert not cache.put("key", b"new")
        monkeypatch.undo()
        assert cache.get("key") == b"old"
        assert sorted(path.name for path in directory(home).iterdir()) == [".lock", "key"]


def test_a_writer_that_hangs_does_not_hang_others(home, monkeypatch):
    monkeypatch.setattr("kdump_elftool.cache._PATIENCE", 0.05)
    with opened(home) as cache, cache._lock():
        assert not cache.put("key", b"x")
        assert cache.get("key") is None


WRITER = """
import sys
from kdump_elftool import cache as module
from kdump_elftool.cache import Cache
module._PATIENCE = 60  # a machine with other work lets one wait
mark = sys.argv[1]
with Cache.open(limit=20000) as cache:
    for turn in range(100):
        for key in "abcd":
            assert cache.put(key, (mark * 4000).encode())
            found = cache.get(key)
            assert found is None or len(set(found)) == 1 and len(found) == 4000, key
"""


def test_two_processes_at_once(home):
    """Each entry is always one writer's whole work, and the limit holds."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, mark], env={**os.environ, "XDG_CACHE_HOME": str(home)}
        )
        for mark in "xy"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    with opened(home) as cache:
        assert {len(cache.get(key) or b"") for key in "abcd"} == {4000}
    assert not [path for path in directory(home).iterdir() if path.name.endswith(".tmp")]


def test_a_file_for_another_program(home):
    with opened(home) as cache:
        path = cache.file("module-x.ko", b"contents")
        assert path == str(directory(home) / "module-x.ko")
        assert Path(path).read_bytes() == b"contents"
        before = os.stat(path).st_ino
        assert cache.file("module-x.ko", b"contents") == path
        assert os.stat(path).st_ino == before
        # what somebody changed is written again
        Path(path).write_bytes(b"contentz")
        assert cache.file("module-x.ko", b"contents") == path
        assert Path(path).read_bytes() == b"contents"
        assert cache.get("module-x.ko") is None
    with opened(home, limit=16) as cache:
        assert cache.file("large", bytes(17)) is None


def test_a_file_of_somebody_else_is_not_used(home, tmp_path):
    with opened(home) as cache:
        (tmp_path / "other").write_bytes(b"contents")
        link = directory(home) / "module-x.ko"
        link.symlink_to(tmp_path / "other")
        path = cache.file("module-x.ko", b"contents")
        assert path is not None
        assert not os.path.islink(path)
        assert (tmp_path / "other").read_bytes() == b"contents"
