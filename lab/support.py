"""`lab test`: makes rows, tests each by itself, remembers what passed, writes docs/support-matrix.md.

What is remembered counts until the row or the code changes, so a run that was stopped goes on where
it was.  The document has nothing that no run has shown; what it is made of lies beside it, so that rows
of a run on another machine stay, each with its date and the commit that it was of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.collect import write_json
from lab.config import IN_ROOT, LAB_DIR, LabError, Row, cache_dir, load_config, row_dir, say
from lab.crash_newer import SUITE
from lab.matrix import Lab, read_row
from lab.roots import chroot_argv, root_dir

ROOT = LAB_DIR.parent
DOCUMENT = ROOT / "docs" / "support-matrix.md"
RESULTS = ROOT / "docs" / "support-matrix.json"
_CODE = ("src/**/*.py", "tests/lab/*.py", "tests/unit/arch/*.py", "tests/builders/*.py")
ASPECTS: Mapping[str, tuple[str, ...]] = {
    "memory": ("test_velf", "address", "migration", "raw", "numa", "formats", "scattered", "alone", "walk")
    + ("memory", "translation", "module_text", "images", "of_a_process"),
    "threads": ("task", "registers", "failed_kdump", "debuggers", "newer_gdb", "thread", "frames"),
    "log": ("dmesg", "log"),
    "pages": ("pages", "makedumpfile", "topelf", "crash_kernel", "level", "reduced"),
}
"""Columns of the document, each with words in the names of tests that it sums up, the name of a test
itself before that of its file; the rest is `other`."""
_OTHER = "other"


@dataclass(frozen=True)
class Count:
    """Tests of one kind: how many passed, and of how many that ran."""

    passed: int = 0
    ran: int = 0

    def plus(self, passed: bool) -> Count:
        return Count(self.passed + passed, self.ran + 1)

    def shown(self) -> str:
        """Nothing where nothing ran."""
        return "" if not self.ran else f"{self.passed}" if self.passed == self.ran else f"**{self}**"

    def __str__(self) -> str:
        return f"{self.passed} of {self.ran}"


@dataclass(frozen=True)
class Result:
    """What the tests of one row, or of one architecture's generated fixtures, came to."""

    name: str
    key: str
    code: str
    when: str
    release: str
    versions: str
    counts: Mapping[str, Count]

    @property
    def is_good(self) -> bool:
        """A row of which nothing was asked is not."""
        return bool(self.counts) and all(count.passed == count.ran for count in self.counts.values())


def code_hash(root: Path = ROOT) -> str:
    """Changes with the code and with the tests that judge it."""
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def aspect_of(module: str, test: str) -> str:
    """The column of a test, by its own name and the name of its file."""
    for name in (test, module):
        for aspect, words in ASPECTS.items():
            if any(word in name for word in words):
                return aspect
    return _OTHER


def read_junit(text: str, *, by_module: bool = False) -> dict[str, Count]:
    """Counts of a pytest report, by column or by test file; what was skipped did not run."""
    counts: dict[str, Count] = {}
    for case in ET.fromstring(text).iter("testcase"):  # our own pytest wrote it
        module = case.get("classname", "").split(".")[-1]
        test = case.get("name", "").partition("[")[0]
        name = module.removeprefix("test_") if by_module else aspect_of(module, test)
        if case.find("skipped") is None:
            good = case.find("failure") is None and case.find("error") is None
            counts[name] = counts.get(name, Count()).plus(good)
    return counts


def logs_dir() -> Path:
    return cache_dir() / "results"


def read_result(name: str) -> Result | None:
    try:
        record = dict(_results()[name])
        counts = {aspect: Count(**count) for aspect, count in record.pop("counts").items()}
        return Result(**record, name=name, counts=counts)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _results() -> dict[str, Any]:
    try:
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise LabError(f"{RESULTS} holds no results: delete it")
    return found


def test_rows(rows: list[Row], keep: bool) -> int:
    """Make and test each row; returns how many are not good."""
    lab, code = Lab(load_config()), code_hash()
    bad = 0 if _generated(code).is_good else 1
    for row in rows:
        try:
            lab.ensure([row], remake=False)
        except LabError as error:
            say(f"{row.name}: {error}")
            bad += 1
            continue
        key = str(read_row(row).get("key", ""))
        known = read_result(row.name)
        if known is None or (known.key, known.code) != (key, code) or not known.is_good:
            known = _test_row(row, key, code)
        else:
            say(f"{row.name} tested before: {known.when}")
        bad += not known.is_good
        if known.is_good and not keep:
            shutil.rmtree(row_dir(row), ignore_errors=True)
    DOCUMENT.write_text(document(load_config().rows))
    say(f"{DOCUMENT.relative_to(ROOT)} written; {bad} rows are not good")
    return bad


def document(rows: tuple[Row, ...] | list[Row], template: Path = LAB_DIR / "support-matrix.md.in") -> str:
    """The whole document: the template, with tables in place of its marks."""
    text = template.read_text()
    text = text.replace("@REAL@", "\n".join(_real_table(rows)))
    text = text.replace("@REST@", _rest(rows))
    return text.replace("@GENERATED@", "\n".join(_generated_table()))


def _real_table(rows: tuple[Row, ...] | list[Row]) -> Iterator[str]:
    aspects = (*ASPECTS, _OTHER)
    yield f"| architecture | row | kernel | dump | {' | '.join(aspects)} | when | with |"
    yield "|" + "---|" * (6 + len(aspects))
    for row in rows:
        result = read_result(row.name)
        if result is None:
            continue
        cells = [result.counts.get(aspect, Count()).shown() for aspect in aspects]
        words = [row.guest.arch.name, row.name, result.release, row.scenario, *cells, result.when]
        yield f"| {' | '.join(words)} | {result.versions} |"


def _rest(rows: tuple[Row, ...] | list[Row]) -> str:
    """The rows that no run has tested yet, by name."""
    names = [f"`{row.name}`" for row in rows if read_result(row.name) is None]
    return (
        f"Rows that this command has not tested yet: {', '.join(names)}."
        if names
        else "Every row was tested."
    )


def _generated_table() -> Iterator[str]:
    yield "| tests of | passed | when |"
    yield "|---|---|---|"
    result = read_result("generated")
    for name, count in sorted(result.counts.items()) if result else ():
        yield f"| {name} | {count} | {result.when if result else ''} |"


def _test_row(row: Row, key: str, code: str) -> Result:
    environment = {**os.environ, "LAB_SET": "matrix", "ROWS": row.name}
    # tests that are of no row have been run by ./test
    counts = read_junit(_pytest(row.name, environment, "-k", row.name, "tests/lab"))
    release = str(read_row(row).get("release", ""))
    result = Result(row.name, key, code, _today(), release, _versions(row), counts)
    return _remember(result)


def _generated(code: str) -> Result:
    known = read_result("generated")
    if known is None or known.code != code or not known.is_good:
        text = _pytest("generated", dict(os.environ), "tests/unit/arch", "tests/property/test_walk.py")
        known = _remember(Result("generated", "", code, _today(), "", "", read_junit(text, by_module=True)))
    return known


def _pytest(name: str, environment: dict[str, str], *words: str) -> str:
    """The report of one run."""
    logs_dir().mkdir(parents=True, exist_ok=True)
    report = logs_dir() / f".{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
    with (logs_dir() / f"{name}.log").open("wb") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not report.exists():
        raise LabError(f"the tests of {name} did not run: {logs_dir() / (name + '.log')}")
    text = report.read_text()
    report.unlink()
    return text


def _remember(result: Result) -> Result:
    record: dict[str, Any] = asdict(result)
    write_json(RESULTS, {**_results(), record.pop("name"): record})
    counts = ", ".join(f"{aspect} {count}" for aspect, count in result.counts.items())
    say(f"{result.name} tested: {counts}")
    if not result.is_good:
        say(f"{result.name} is not good: {logs_dir() / (result.name + '.log')}")
    return result


def _versions(row: Row) -> str:
    """What was tested, the programs that made the dump and those that judged the result."""
    argv = [row.guest.arch.qemu, "--version"]
    if row.scenario in IN_ROOT:
        argv = chroot_argv(root_dir(SUITE), argv, {})
    qemu = _first_line(*argv).partition("version ")[2].split(" ")[0]
    gdb = _first_line("gdb", "--version").split(" ")[-1]
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short=7", "HEAD")
    return f"{commit or '?'}, QEMU {qemu or '?'}, gdb {gdb}"


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "?"
    return done.stdout.partition("\n")[0]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
