"""A dump on disk for the tests that run the command as a process of its own."""

from __future__ import annotations

import signal

import pytest

from tests.builders.kernel import MIB, make_kernel


@pytest.fixture(scope="session")
def dump(tmp_path_factory):
    """30 MB, so that a run can be met in the middle."""
    path = tmp_path_factory.mktemp("dump") / "dump"
    path.write_bytes(make_kernel(ram=((0x1000, 0x9F000), (0x100000, 24 * MIB))).dump())
    return path


@pytest.fixture(scope="session")
def velf_bytes(dump):
    """The right result."""
    from tests.builders.tools import run_command

    run = run_command("tovelf", "-l", "all", "-i", str(dump))
    assert run.returncode == 0
    return run.stdout


@pytest.fixture(autouse=True)
def interruptible():
    """A background job of a shell ignores SIGINT, and so would its children; a handler is not inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
