"""What this machine can't run is left out openly: counted, named with its reason, and never in CI.

Markers (pyproject.toml) say what a test needs. A test whose need is not met is deselected, and the
summary says how many of which marker and why; with CI=true that fails the run. So are lab tests of which
the chosen rows have no dump, which is no failure: skips would hide a real one.

With pytest-xdist it is the workers that collect, each of them all tests, and the first process that sums up.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdump_elftool
from kdump_elftool.files import InputFile

ROOT = Path(__file__).parents[1]
DUMPS = Path(os.environ.get("KDUMP_ELFTOOL_LAB") or Path.home() / ".cache" / "kdump-elftool-lab") / "dumps"
WHEEL_ENV = os.environ.get("KDUMP_ELFTOOL_TEST_WHEEL")
IN_CI = os.environ.get("CI") == "true"
LEFT_OUT = pytest.StashKey[Counter[str]]()
WITHOUT_ROWS = pytest.StashKey[int]()


def _why_not(marker: str) -> str | None:
    """Why tests with this marker cannot run here; None when they can."""
    if marker == "root" and os.geteuid() != 0:
        return "not root"
    if marker == "gdb" and not shutil.which("gdb"):
        return "no gdb"
    if marker == "lab":
        said = os.environ.get("KDUMP_ELFTOOL_NO_LAB")
        return said or (None if any(DUMPS.glob("*/row.json")) else "no dump has been made: make lab")
    return None


def pytest_configure(config: pytest.Config) -> None:
    """./test names the environment with the wheel: nothing else may be what is tested."""
    where = Path(str(kdump_elftool.__file__)).resolve()
    if WHEEL_ENV and Path(WHEEL_ENV).resolve() not in where.parents:
        raise pytest.UsageError(f"the wheel is to be tested, but kdump_elftool comes from {where}")
    # tests of thousands of damaged files have them open at once
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    config.stash[LEFT_OUT] = Counter()
    config.stash[WITHOUT_ROWS] = 0


def pytest_report_header() -> str:
    """Which copy of the package these tests run."""
    return f"kdump_elftool: {Path(str(kdump_elftool.__file__)).parent}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here, remembering why."""
    reasons = {marker: _why_not(marker) for marker in ("lab", "gdb", "root")}
    kept, dropped = [], []
    for item in items:
        marker = next((name for name, why in reasons.items() if why and item.get_closest_marker(name)), None)
        if marker is None and item.get_closest_marker("lab") and _is_stand_in(item):
            dropped.append(item)
            config.stash[WITHOUT_ROWS] += 1
        elif marker is None:
            kept.append(item)
        else:
            dropped.append(item)
            config.stash[LEFT_OUT][f"{marker}: {reasons[marker]}"] += 1
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)


def _is_stand_in(item: pytest.Item) -> bool:
    """What pytest makes of a test that has no parameter at all."""
    reasons = (str(mark.kwargs.get("reason", "")) for mark in item.iter_markers("skip"))
    return any(reason.startswith("got empty parameter set") for reason in reasons)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker told when it ended."""
    left_out, without_rows = getattr(node, "workeroutput", {}).get("left_out", ({}, 0))
    stash = node.config.stash
    stash[LEFT_OUT] |= Counter(left_out)
    stash[WITHOUT_ROWS] = max(stash[WITHOUT_ROWS], without_rows)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With CI=true a run that left something out has failed, whatever the rest says."""
    stash = session.config.stash
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = (dict(stash[LEFT_OUT]), stash[WITHOUT_ROWS])
    if IN_CI and session.config.stash[LEFT_OUT] and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for each reason."""
    for reason, count in sorted(config.stash[LEFT_OUT].items()):
        verdict = " (a failure: CI=true)" if IN_CI else ""
        terminalreporter.write_line(f"left out: {count} tests ({reason}){verdict}", yellow=True)
    if config.stash[WITHOUT_ROWS]:
        rows = os.environ.get("LAB_SET", "ci")
        terminalreporter.write_line(f"lab tests that no row of {rows} is for: {config.stash[WITHOUT_ROWS]}")


@pytest.fixture(scope="session", autouse=True)
def _nobodys_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """No test reads or fills the caches of whoever runs it, or asks a server.

    All workers have one: gdb's index of a vmlinux takes seconds, and is made once.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if hasattr(request.config, "workerinput") else folder) / "cache"
    folder.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name in ("DEBUGINFOD_URLS", "DEBUGINFOD_CACHE_PATH"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def package_logger() -> None:
    """As it is before a command has run in this process, or in a fixture of the whole module."""
    logger = logging.getLogger("kdump_elftool")
    logger.propagate, logger.handlers[:] = True, []
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def lab_dumps() -> Path:
    """The folder that holds one folder for each of the lab's dumps."""
    return DUMPS


@pytest.fixture(autouse=True)
def _descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test opens is closed behind it: a process has a thousand descriptors on many machines."""
    opened: list[InputFile] = []
    set_up = InputFile.__init__

    def remembered(self: InputFile, *args: Any) -> None:
        set_up(self, *args)
        opened.append(self)

    monkeypatch.setattr(InputFile, "__init__", remembered)
    yield
    for file in opened:
        file.close()
