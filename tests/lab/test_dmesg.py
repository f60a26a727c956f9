"""dmesg and info of every lab dump, against the guest's own account, its console and drgn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_elftool.cli.log_lines import FACILITIES, LEVELS
from kdump_elftool.safe_text import log_text
from tests.lab.dumps import LabDump, kdump_elftool, selected_dumps

pytestmark = pytest.mark.lab

DUMPS = selected_dumps()
ORACLE = Path(__file__).with_name("oracle_dmesg.py")
STAMPED = re.compile(r"\[ *\d+\.\d{6}\] ")


@pytest.fixture(scope="module", params=DUMPS, ids=lambda dump: dump.id)
def dump(request: pytest.FixtureRequest) -> LabDump:
    request.param.check()
    return request.param


@pytest.fixture(scope="module")
def raw(dump: LabDump) -> list[str]:
    """``dmesg -r``, line by line."""
    done = kdump_elftool("dmesg", "-r", dump.path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def said_by_guest(dump: LabDump) -> list[str]:
    return [log_text(line.encode()) for line in dump.truth["dmesg"]]


def test_log_is_what_the_guest_read_from_its_kernel(dump: LabDump, raw: list[str]) -> None:
    """klogctl() just before the dump gave the same lines; older ones may have been overwritten since."""
    guest = said_by_guest(dump)
    assert len(guest) > 300
    first = guest.index(raw[0])
    assert first == 0 or len(raw) > 2000
    assert raw[: len(guest) - first] == guest[first:]


def test_what_came_after_is_on_the_console(dump: LabDump, raw: list[str]) -> None:
    """A crash adds lines; each must have been printed on the console too, and the panic among them."""
    added = raw[len(said_by_guest(dump)) :]
    if dump.scenario == "live":
        assert len(added) < 20
        return
    console = [line.rstrip("\r") for line in console_text(dump).splitlines()]
    shown = [line for line in console if STAMPED.match(line)]
    assert [line for line in added if without_level(line) not in shown] == []
    assert any("Kernel panic - not syncing: sysrq triggered crash" in line for line in added)
    panicked = next(index for index, line in enumerate(shown) if "Kernel panic - not syncing" in line)
    # what the console has of the dying kernel the log has as well; the crash kernel starts at 0 again
    for line in shown[panicked:]:
        if re.match(r"\[ {4}0\.000000\]", line):
            break
        assert line in [without_level(known) for known in raw], line


def console_text(dump: LabDump) -> str:
    return (dump.directory / "console.log").read_text("utf-8", "replace")


def without_level(line: str) -> str:
    return re.sub(r"^<\d+>", "", line)


def test_records_are_drgns(dump: LabDump) -> None:
    done = subprocess.run(
        [sys.executable, str(ORACLE), str(dump.path), str(dump.vmlinux)],
        capture_output=True,
        timeout=600,
        check=True,
    )
    theirs = json.loads(done.stdout)
    for record in theirs:
        record["text"] = "\n".join(log_text(line) for line in bytes.fromhex(record["text"]).split(b"\n"))
        record["facility"], record["level"] = FACILITIES[record["facility"]], LEVELS[record["level"]]
    ours = json.loads(kdump_elftool("dmesg", "--json", dump.path).stdout)["records"]
    assert len(ours) > 300
    assert [{key: record[key] for key in theirs[0]} for record in ours] == theirs


def test_json_has_every_record(dump: LabDump, raw: list[str]) -> None:
    done = kdump_elftool("dmesg", "--json", dump.path)
    log = json.loads(done.stdout)
    assert log["schema"] == "kdump-elftool/dmesg/1"
    assert sum(record["text"].count("\n") + 1 for record in log["records"]) == len(raw)
    assert log["skipped"] == {}
    sequence = [record["seq"] for record in log["records"]]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))


def test_times_of_day(dump: LabDump) -> None:
    """The guest's clock when it wrote its account, within two seconds of the log's last line then."""
    done = kdump_elftool("dmesg", "--json", dump.path)
    records = json.loads(done.stdout)["records"]
    uptime, clock = dump.truth["uptime"], dump.truth["time"]
    last = [record for record in records if record["ts_nsec"] / 1e9 <= uptime][-1]
    (seconds,) = re.findall(r"T\d\d:\d\d:(\d\d)Z", last["time"])
    expected = clock - (uptime - last["ts_nsec"] / 1e9)
    difference = (int(seconds) - expected) % 60
    assert min(difference, 60 - difference) < 3


def test_info(dump: LabDump) -> None:
    done = kdump_elftool("info", dump.path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found, truth = json.loads(done.stdout), dump.truth
    assert found["release"] == truth["release"]
    assert found["arch"] == "x86_64"
    assert found["cpus"] == 2
    text = int(truth["kallsyms"]["_text"], 16)
    assert int(found["kaslr_offset"], 16) == text - 0xFFFFFFFF81000000
    assert found["page_table_levels"] == json.loads((dump.directory / "row.json").read_text())["levels"]
    categories = found["categories"]
    assert sum(categories.values()) == found["memory"]["present_pages"]
    kilobytes = truth["meminfo"]
    assert abs(categories["free"] * 4 - kilobytes["MemFree"]) < 40000  # the guest went on for a moment
    # AnonPages counts what is mapped; hugetlb pages and the swap cache belong to users as well
    of_users = sum(kilobytes[name] for name in ("AnonPages", "SwapCached", "Hugetlb"))
    assert abs(categories["user"] * 4 - of_users) < 8000
    if dump.scenario == "live":
        assert found["panic_message"] is None
        assert "panic_pid" not in found
        return
    assert found["panic_message"] == "sysrq triggered crash"
    assert (found["panic_pid"], found["panic_comm"]) == (truth["crasher"]["pid"], "crasher")
    assert re.search(rf"CPU: {found['panic_cpu']} .*PID: {found['panic_pid']} ", console_text(dump))
    assert found["uptime_seconds"] >= truth["uptime"] - 1


def test_info_for_people(dump: LabDump) -> None:
    done = kdump_elftool("info", dump.path)
    labels = [
        line.split(":")[0] for line in done.stdout.splitlines() if re.match(r"[a-z_ ]+: {1,13}\S", line)
    ]
    wanted = ["file", "format", "release", "build id", "arch", "uptime", "panic message", "cpus", "memory"]
    wanted += ["kaslr offset", "phys_base", "page tables", "vmcoreinfo", "coverage"]
    assert [label for label in labels if label in wanted] == wanted
    assert done.stdout.splitlines()[-11] == "last 10 lines of the log:"
