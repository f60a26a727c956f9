"""Which gdb is started, for whose dumps."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.errors import KdumpError
from kdump_elftool.jobs.gdb_program import check_named, find_gdb

ARCH = {arch.name: arch for arch in ARCHITECTURES}
FITS_ALL = "#!/bin/sh\nexit 0\n"
OWN_ALONE = "#!/bin/sh\necho 'Undefined item: \"x\".' >&2\nexit 1\n"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """``programs(gdb=..., ...)`` are all that there are; the machine is an x86_64."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    def make(**scripts: str) -> Path:
        for name, text in scripts.items():
            path = tmp_path / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o700)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("scripts", "arch", "chosen"),
    [
        ({"gdb": OWN_ALONE}, "x86_64", "gdb"),
        ({"gdb": OWN_ALONE}, "i386", "gdb"),
        ({"gdb": OWN_ALONE, "gdb_multiarch": FITS_ALL}, "x86_64", "gdb"),
        ({"gdb_multiarch": FITS_ALL}, "x86_64", "gdb-multiarch"),
        ({"gdb": OWN_ALONE, "gdb_multiarch": FITS_ALL}, "arm64", "gdb-multiarch"),
        ({"gdb": FITS_ALL}, "arm64", "gdb"),
    ],
    ids=str,
)
def test_chosen(programs, scripts, arch, chosen):
    place = programs(**scripts)
    assert find_gdb(None, ARCH[arch]) == str(place / chosen)


def test_a_gdb_of_this_machine_alone(programs):
    programs(gdb=OWN_ALONE)
    with pytest.raises(KdumpError, match="does not read cores of arm64") as caught:
        find_gdb(None, ARCH["arm64"])
    assert "gdb-multiarch" in str(caught.value.hint)


def test_the_users_word(programs):
    place = programs(gdb=FITS_ALL, mine=OWN_ALONE)
    assert find_gdb("mine", ARCH["arm64"]) == str(place / "mine")
    assert find_gdb(str(place / "mine"), ARCH["arm64"]) == str(place / "mine")
    with pytest.raises(KdumpError, match="there is no program other"):
        check_named("other")


def test_none_at_all(programs):
    programs()
    with pytest.raises(KdumpError, match="there is no gdb"):
        check_named(None)
