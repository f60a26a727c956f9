"""dmesg of synthetic kernels: what is printed, chosen, escaped and refused."""

from __future__ import annotations

import json
import re
import struct
from random import Random

import pytest

from kdump_elftool.cli.main import main
from tests.builders.kernel import SMALL, make_kernel
from tests.builders.looking import kernel_with_log, log_base, look
from tests.builders.printk import CPU, LOG_CONT, LOG_PREFIX, RingWriter, Said, char_log, record_log

SEED = 20261122
SECOND = 10**9
HOSTILE = b"\x1b[2J\x07\r\n\xe2\x80\xae<0>[  666.0] faked\\\ttab"
MESSAGES = [
    Said(b"Linux version 6.1.0", 0, level=5),
    Said(b"ACPI: \\_SB_.PCI0", 123_456_789, level=6),
    Said(b"two\nlines", 2 * SECOND, level=4),
    Said(b"a program's", 12345 * SECOND, facility=1, level=3, caller_id=42),
    Said(HOSTILE, 12346 * SECOND, level=0, caller_id=CPU | 1),
]


@pytest.fixture
def dmesg(tmp_path, capfd):
    return lambda image, *options: look(tmp_path, capfd, "dmesg", image, *options)


def ring(messages=None, **options) -> RingWriter:
    writer = RingWriter(count_bits=6, size_bits=11, base=log_base(), **options)
    for said in MESSAGES if messages is None else messages:
        writer.push(said)
    return writer


@pytest.fixture(scope="module")
def dump() -> bytes:
    return kernel_with_log(ring().image()).dump()


FAKED = [r"\x1b[2J\x07\x0d", "\\xe2\\x80\\xae<0>[  666.0] faked\\\ttab"]


def test_as_dmesg_prints_it(dmesg, dump):
    result = dmesg(dump)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "[    0.000000] Linux version 6.1.0",
        "[    0.123456] ACPI: \\_SB_.PCI0",
        "[    2.000000] two",
        "[    2.000000] lines",
        "[12345.000000] a program's",
        f"[12346.000000] {FAKED[0]}",
        f"[12346.000000] {FAKED[1]}",
    ]


def test_raw(dmesg, dump):
    lines = dmesg(dump, "-r").out.splitlines()
    assert [line.split("[")[0] for line in lines] == ["<5>", "<6>", "<4>", "<4>", "<11>", "<0>", "<0>"]
    assert lines[4] == "<11>[12345.000000] a program's"


def test_decoded_and_without_time(dmesg, dump):
    assert dmesg(dump, "-x").out.splitlines()[4] == "user  :err   : [12345.000000] a program's"
    assert dmesg(dump, "-x", "-t").out.splitlines()[2] == "kern  :warn  : two"
    assert dmesg(dump, "--notime").out.splitlines()[0] == "Linux version 6.1.0"


def test_time_of_day_from_the_crash(dmesg, dump):
    """CRASHTIME=1795000000 is when the last message came, 12,346 seconds after boot."""
    lines = dmesg(dump, "-T").out.splitlines()
    assert lines[0] == "[Wed Nov 18 07:40:54 2026] Linux version 6.1.0"
    assert lines[-1].startswith("[Wed Nov 18 11:06:40 2026] ")


def test_time_of_day_from_the_clock_message(dmesg):
    clock = b"rtc_cmos 00:05: setting system clock to 2026-11-18T07:41:00 UTC (1794987660)"
    forged = Said(b"setting system clock to 1970-01-01T00:00:00 UTC (0)", SECOND, facility=1)
    image = ring([forged, Said(clock, 6 * SECOND), Said(b"later", 7 * SECOND)]).image()
    dump = kernel_with_log(image, CRASHTIME=None).dump()
    assert dmesg(dump, "-T").out.splitlines()[-1] == "[Wed Nov 18 07:41:01 2026] later"
    assert "the message that sets the clock at boot" in dmesg(dump, "-T", "--verbose").err


@pytest.mark.parametrize("crashed", [None, "", "x", "-1", "99999999999999999999", "999999999999"])
def test_time_of_day_is_not_known(dmesg, crashed):
    dump = kernel_with_log(ring().image(), CRASHTIME=crashed).dump()
    result = dmesg(dump, "-T")
    assert result.code == 1
    assert "time of day" in result.lines("error")[0]
    assert dmesg(dump).code == 0


def test_stamp_that_is_no_date(dmesg):
    """A damaged time stamp of 500 years: the plain stamp instead, and no crash."""
    image = ring([Said(b"odd", (1 << 64) - 1), Said(b"last", SECOND)]).image()
    dump = kernel_with_log(image, CRASHTIME="253402300799").dump()
    assert dmesg(dump, "-T").out.splitlines()[0] == "[18446744073.709551] odd"
    assert "time" not in json.loads(dmesg(dump, "--json").out)["records"][0]


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        (["-l", "err"], [3]),
        (["-l", "err+"], [3, 0]),
        (["--level", "+notice"], [5, 6]),
        (["-l", "emerg,notice"], [5, 0]),
        (["-f", "user"], [3]),
        (["-f", "kern,user", "-l", "warn"], [4]),
        (["-f", "mail"], []),
    ],
)
def test_selection(dmesg, dump, options, levels):
    records = json.loads(dmesg(dump, "--json", *options).out)["records"]
    names = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
    assert [names.index(record["level"]) for record in records] == levels
    assert len(dmesg(dump, *options).out.splitlines()) == sum(
        record["text"].count("\n") + 1 for record in records
    )


@pytest.mark.parametrize(
    "options", [["-r", "-T"], ["-r", "-x"], ["-r", "-t"], ["-T", "-t"], ["-l", "loud"], ["-f", "kernel"]]
)
def test_senseless_options(dmesg, dump, options):
    assert dmesg(dump, *options).code == 2


def test_json(dmesg, dump):
    log = json.loads(dmesg(dump, "--json").out)
    assert log["schema"] == "kdump-elftool/dmesg/1"
    assert log["release"] == "6.1.0-test-amd64"
    assert (log["form"], log["skipped"], log["warnings"]) == ("ring buffer", {}, [])
    assert log["records"][3] == {
        "seq": 3,
        "ts_nsec": 12345 * SECOND,
        "facility": "user",
        "level": "err",
        "caller": "T42",
        "flags": 2,
        "text": "a program's",
        "time": "2026-11-18T11:06:39Z",
    }
    assert log["records"][4]["caller"] == "C1"
    assert log["records"][4]["text"] == "\n".join(FAKED)


def test_records_of_older_kernels(dmesg):
    said = [Said(b"one ", SECOND, flags=LOG_CONT | LOG_PREFIX), Said(b"line", 2 * SECOND)]
    dump = kernel_with_log(record_log(said, base=log_base())).dump()
    assert dmesg(dump, "-r").out == "<6>[    1.000000] one line\n"
    assert [record["seq"] for record in json.loads(dmesg(dump, "--json").out)["records"]] == [None, None]


def test_characters_of_older_kernels(dmesg):
    text = b"<5>[    0.000000] Linux version 2.6.32\nno level\n<3>no time\n"
    dump = kernel_with_log(char_log(text, base=log_base())).dump()
    assert dmesg(dump, "-r").out.encode() == text
    assert dmesg(dump, "-l", "notice").out == "[    0.000000] Linux version 2.6.32\n"
    assert dmesg(dump, "-x").out.splitlines()[1] == " " * 16 + "no level"


def test_what_cannot_be_read_is_counted(dmesg):
    writer = ring([Said(b"m%d" % number) for number in range(40)])
    image = writer.image()
    struct.pack_into("<Q", image.memory[1][1], 24 * 7, 99)
    result = dmesg(kernel_with_log(image).dump())
    assert result.code == 0
    assert len(result.out.splitlines()) == 39
    assert result.lines("warning") == ["warning: log records left out: 1 damaged"]
    assert dmesg(kernel_with_log(image).dump(), "--strict").code == 1
    assert dmesg(kernel_with_log(image).dump(), "-q").err == ""


def test_no_log_in_vmcoreinfo(dmesg):
    result = dmesg(make_kernel(SMALL).dump())
    assert result.code == 1
    assert "log" in result.lines("error")[0]


def test_no_vmcoreinfo(dmesg, dump, tmp_path):
    kernel = kernel_with_log(ring().image())
    keys = dict.fromkeys(line.partition("=")[0] for line in kernel.vmcoreinfo_text().splitlines())
    bare = kernel_with_log(ring().image(), **keys)
    assert dmesg(bare.dump()).code == 1
    lines = tmp_path / "vminfo"
    lines.write_text(kernel.vmcoreinfo_text())
    assert dmesg(bare.dump(), "-e", str(lines)).out == dmesg(dump).out


def test_pointer_into_nowhere(dmesg):
    image = ring().image()
    struct.pack_into("<Q", image.memory[0][1], 0, 0xFFFFFFFFFFFFFFF0)
    result = dmesg(kernel_with_log(image).dump())
    assert result.code == 1
    assert result.out == ""


def test_random_damage(dmesg, tmp_path):
    """100 dumps with damage in the log: an error or a log, and never anything else."""
    print(f"seed {SEED}")
    random = Random(SEED)
    path = tmp_path / "damaged"
    image = ring().image()
    kernel = kernel_with_log(image)
    path.write_bytes(kernel.dump())
    whole = path.read_bytes()
    logs = 0
    for _ in range(100):
        broken = bytearray(whole)
        for start, data in image.memory:
            places = [found.start() for found in re.finditer(re.escape(bytes(data[:64])), whole)]
            assert len(places) == 2, hex(start)  # the image's own segment and the direct map's
            for _ in range(random.randrange(3)):
                at = random.randrange(len(data))
                damage = random.choice((b"\0" * 4, b"\xff" * 4, random.randbytes(4)))
                for place in places:
                    broken[place + at : place + at + 4] = damage
        path.write_bytes(broken)
        logs += dmesg(path).code == 0
    assert logs > 50


def test_one_dump_at_a_time(capfd, tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(make_kernel(SMALL).dump())
    assert main(["dmesg", str(path), str(path)]) == 2
    assert "one dump" in capfd.readouterr().err
