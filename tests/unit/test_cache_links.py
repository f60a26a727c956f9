"""Links in the user's cache, and a directory in it for another program's files."""

from __future__ import annotations

import os

import pytest

from kdump_elftool.cache import Cache


@pytest.fixture
def cache(tmp_path):
    with Cache.open({"XDG_CACHE_HOME": str(tmp_path)}) as opened:
        yield opened


def test_a_link_leads_to_its_target(cache, tmp_path):
    (tmp_path / "a b").write_text("here")
    path = cache.link("name-1", str(tmp_path / "a b"))
    assert path == os.path.join(cache.path, "name-1")
    with open(path) as file:
        assert file.read() == "here"
    before = os.lstat(path)
    assert cache.link("name-1", str(tmp_path / "a b")) == path
    assert os.lstat(path).st_ino == before.st_ino
    assert cache.link("name-1", str(tmp_path / "other")) == path
    assert os.readlink(path) == str(tmp_path / "other")
    assert sorted(os.listdir(cache.path)) == ["name-1"]


def test_a_link_takes_the_place_of_a_file_but_not_of_a_directory(cache):
    path = os.path.join(cache.path, "name-1")
    with open(path, "w") as file:
        file.write("in the way")
    assert cache.link("name-1", "/target") == path
    assert os.readlink(path) == "/target"
    os.mkdir(os.path.join(cache.path, "name-2"))
    assert cache.link("name-2", "/target") is None
    assert sorted(os.listdir(cache.path)) == ["name-1", "name-2"]


def test_entries_and_links_leave_each_other_alone(cache):
    cache.link("name-1", "/nowhere")
    assert cache.get("name-1") is None
    assert cache.put("entry", b"data")
    assert os.path.islink(os.path.join(cache.path, "name-1"))


def test_a_directory_of_ones_own(cache):
    path = cache.directory("gdb-index")
    assert path == os.path.join(cache.path, "gdb-index")
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert cache.directory("gdb-index") == path
    os.chmod(path, 0o777)
    assert cache.directory("gdb-index") is None, "others may write there"


@pytest.mark.parametrize("make", [lambda path: os.symlink("/tmp", path), os.mkfifo])
def test_what_is_no_directory_is_none(cache, make):
    make(os.path.join(cache.path, "gdb-index"))
    assert cache.directory("gdb-index") is None


def test_the_oldest_files_go_first(cache):
    path = cache.directory("gdb-index")
    for number, name in enumerate(("old", "older", "new")):
        with open(os.path.join(path, name), "wb") as file:
            file.write(bytes(100))
        at = {"older": 1000, "old": 2000, "new": 3000}[name] + number
        os.utime(os.path.join(path, name), (at, at))
    cache.directory("gdb-index", limit=250)
    assert sorted(os.listdir(path)) == ["new", "old"]
    cache.directory("gdb-index", limit=0)
    assert os.listdir(path) == []
