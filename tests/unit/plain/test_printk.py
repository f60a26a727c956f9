"""Every form of the kernel's log: what the writer left is what the reader finds, damage or not."""

from __future__ import annotations

import struct
from random import Random

import pytest

from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.plain.printk import Record, caller, lines, read_log
from kdump_elftool.plain.target import Target
from tests.builders.printk import (
    COMMITTED,
    CPU,
    LOG_CONT,
    LOG_NEWLINE,
    LOG_PREFIX,
    PAGE,
    RESERVED,
    Desc,
    LogImage,
    RingWriter,
    Said,
    char_log,
    record_log,
)

SEED = 20261122
MACHINES = [("<", 8), (">", 8), ("<", 4), (">", 4)]
machines = pytest.mark.parametrize(("order", "word"), MACHINES, ids=["le64", "be64", "le32", "be32"])


def texts(target: Target) -> list[bytes]:
    return [record.text for record in read_log(target).records]


def as_record(desc: Desc) -> Record:
    said = desc.said
    assert said is not None
    return Record(said.text, desc.seq, said.ts_nsec, said.facility, said.level, said.caller_id, said.flags)


def random_message(random: Random, number: int) -> Said:
    text = bytes(random.choices(b"abcdefgh \n\t\x1b\xc3\xa4", k=random.randrange(0, 90)))
    return Said(
        text=b"%d " % number + text if random.random() > 0.1 else b"",
        ts_nsec=random.randrange(1 << 40),
        facility=random.choice((0, 0, 0, 1, 3, 23)),
        level=random.randrange(8),
        flags=random.choice((0, LOG_NEWLINE, LOG_NEWLINE | LOG_PREFIX, LOG_CONT)),
        caller_id=random.choice((0, 1, 4711, CPU, CPU | 3)),
    )


class TestRing:
    @machines
    @pytest.mark.parametrize("fits_at_end", [False, True])
    @pytest.mark.parametrize(("count_bits", "size_bits"), [(4, 9), (2, 11), (7, 9), (4, 8)])
    def test_what_is_left_after_many(self, order, word, fits_at_end, count_bits, size_bits):
        """Ids and positions pass through zero on the way, as they begin just below it."""
        random = Random(SEED)
        ring = RingWriter(order, word, count_bits, size_bits, fits_at_end)
        assert read_log(ring.image()) == ("ring buffer", (), {})
        for number in range(250):
            ring.push(random_message(random, number))
            if number % 3 == 0:
                log = read_log(ring.image())
                assert list(log.records) == [as_record(desc) for desc in ring.expected()]
                assert not log.skipped
        assert ring.next_seq > ring.count
        assert len(ring.expected()) > 1

    def test_block_that_ends_at_the_end(self):
        """8 bytes of id and 120 of text, four times: newer kernels leave the last one there."""
        for fits in (False, True):
            ring = RingWriter(size_bits=9, fits_at_end=fits)
            for number in range(4):
                ring.push(Said(bytes([65 + number]) * 120))
            assert ring.descs[3].next % 512 == (0 if fits else 128)
            assert texts(ring.image()) == [bytes([65 + n]) * 120 for n in range(0 if fits else 1, 4)]

    def test_states(self):
        ring = RingWriter()
        ring.push(Said(b"first"))
        ring.push(Said(b"still being written"), state=RESERVED)
        ring.push(Said(b"no end of line yet"), state=COMMITTED)
        ring.push(Said(b"no room for this"), lost=True)
        ring.push(Said(b""))
        log = read_log(ring.image())
        assert [record.text for record in log.records] == [b"first", b"no end of line yet", b""]
        assert log.skipped == {"being written": 1, "text given up by the kernel": 1}

    def test_text_shorter_than_its_length(self):
        ring = RingWriter()
        ring.push(Said(b"cut"))
        image = ring.image()
        infos, _ = image.part(image.memory[2][0])
        struct.pack_into("<H", infos, 16, 60000)
        assert texts(image) == [b"cut" + bytes(5)]

    @pytest.mark.parametrize("part", ["id of the block", "id", "seq", "begin", "next", "unaligned", "lap"])
    def test_one_damaged_record_is_left_out(self, part):
        ring = RingWriter()
        for text in (b"one", b"two", b"three"):
            ring.push(Said(text))
        image = ring.image()
        (descs_at, infos_at, data_at) = (start for start, _ in image.memory[1:])
        where, value = {
            "id of the block": (data_at + 16, 77),
            "id": (descs_at + 24, 0x8000000000000005),
            "seq": (infos_at + 88, 8),
            "begin": (descs_at + 32, ring.descs[2].begin + 8),
            "next": (descs_at + 40, ring.descs[1].begin),
            "unaligned": (descs_at + 32, ring.descs[1].begin + 4),
            "lap": (descs_at + 40, ring.descs[1].next + 2 * 512 & ring.lpos_mask),
        }[part]
        data, at = image.part(where)
        struct.pack_into("<Q", data, at, value)
        log = read_log(image)
        assert [record.text for record in log.records] == [b"one", b"three"]
        assert log.skipped == {"damaged": 1}

    def test_pages_that_are_absent(self):
        ring = RingWriter(count_bits=9, size_bits=15)
        for number in range(400):
            ring.push(Said(b"message %d" % number))
        everything = texts(ring.image())
        assert len(everything) == 400
        for which, (per_page, record_size) in {1: (170, 24), 2: (46, 88), 3: (170, 24)}.items():
            image = ring.image()
            start = image.memory[which][0]
            image.holes = [(start + PAGE, start + 2 * PAGE)]
            log = read_log(image)
            lost = log.skipped["not in the dump"]
            assert per_page <= lost <= per_page + 2, (which, record_size)
            kept = [record.text for record in log.records]
            assert len(kept) == 400 - lost
            first = next(n for n in range(400) if kept[n] != everything[n])
            assert kept == everything[:first] + everything[first + lost :]
            assert abs(first - PAGE // record_size) <= 1

    @pytest.mark.parametrize(
        ("at", "width", "value"),
        [(0x40, 4, 0), (0x40, 4, 32), (0x40, 4, 0xFFFFFFFF), (0x70, 4, 0), (0x70, 4, 32), (0x70, 4, 64)],
    )
    def test_impossible_ring_is_refused(self, at, width, value):
        ring = RingWriter()
        ring.push(Said(b"x"))
        image = ring.image()
        image.memory[0][1][at : at + width] = value.to_bytes(width, "little")
        with pytest.raises(IdentityError, match="cannot be real"):
            read_log(image)

    def test_huge_ring_is_bounded(self):
        """2^31 records are claimed where there are 16: few reads, and the 16 are found."""
        ring = RingWriter()
        for number in range(10):
            ring.push(Said(b"%d" % number))
        image = ring.image()
        struct.pack_into("<I", image.memory[0][1], 0x40, 31)
        struct.pack_into("<Q", image.memory[0][1], 0x40 + 32, (ring.head_id - (1 << 30)) & ring.id_mask)
        log = read_log(image)
        assert sum(log.skipped.values()) + len(log.records) == (1 << 30) + 1
        assert image.reads < 60_000

    @pytest.mark.parametrize("name", ["prb_desc", "printk_info"])
    def test_huge_records_are_refused(self, name):
        """As a file for -e may say: each batch of them would be half a gigabyte, for every 512 records."""
        ring = RingWriter()
        for number in range(10):
            ring.push(Said(b"%d" % number))
        for size in (257, 1 << 20):
            image = ring.image()
            image.keys[f"SIZE({name})"] = str(size)
            with pytest.raises(IdentityError, match=f"size of struct {name} is said to be {size}") as caught:
                read_log(image)
            assert caught.value.key == f"SIZE({name})"
            assert image.reads < 20

    def test_larger_records_of_kernels_to_come(self):
        ring = RingWriter(count_bits=4)
        ring.push(Said(b"hello"))
        image = ring.image()
        infos, at = image.part(image.memory[2][0])
        wide = bytearray().join(bytes(infos[n : n + 88]).ljust(256, b"\0") for n in range(at, len(infos), 88))
        base = 0x7F000000
        image.memory.append((base, wide))
        struct.pack_into("<Q", image.memory[0][1], 0x40 + 16, base)
        image.keys["SIZE(printk_info)"] = "256"
        assert texts(image) == [b"hello"]

    def test_head_and_tail_too_far_apart(self):
        ring = RingWriter()
        for number in range(10):
            ring.push(Said(b"%d" % number))
        image = ring.image()
        struct.pack_into("<Q", image.memory[0][1], 0x40 + 32, 12345)
        log = read_log(image)
        assert [record.text for record in log.records] == [b"%d" % number for number in range(10)]
        assert log.skipped["damaged head or tail of the ring"] == 1

    @pytest.mark.parametrize(
        "key", ["SIZE(printk_info)", "OFFSET(prb_desc.state_var)", "SIZE(prb_data_ring)"]
    )
    @pytest.mark.parametrize("value", [None, "-1", "0", "99999999999"])
    def test_missing_and_lying_keys(self, key, value):
        ring = RingWriter()
        ring.push(Said(b"x"))
        image = ring.image()
        del image.keys[key]
        if value is not None:
            image.keys[key] = value
        if (key, value) == ("OFFSET(prb_desc.state_var)", "0"):
            assert texts(image) == [b"x"]
            return
        with pytest.raises(IdentityError) as caught:
            read_log(image)
        assert caught.value.key in (key, key.replace("SIZE", "OFFSET"), "OFFSET(prb_data_ring.size_bits)")

    @machines
    def test_random_damage(self, order, word):
        """300 rings with damaged bytes anywhere: nothing unexpected, and bounded work."""
        print(f"seed {SEED}")
        random = Random(SEED)
        ring = RingWriter(order, word, 5, 10)
        for number in range(80):
            ring.push(random_message(random, number))
        readable = 0
        for _ in range(300):
            image = ring.image()
            damage(image, random)
            try:
                log = read_log(image)
            except (IdentityError, FaultError):
                continue
            readable += 1
            assert image.reads < 3_000_000
            assert sum(len(record.text) for record in log.records) <= 1 << 31
            lines(log)
        assert readable > 100


def damage(image: LogImage, random: Random) -> None:
    """A few bytes, words or pages, in variables or contents."""
    for _ in range(random.randrange(1, 6)):
        start, data = random.choice(image.memory)
        at = random.randrange(len(data))
        what = random.randrange(5)
        if what == 0:
            data[at] ^= 1 << random.randrange(8)
        elif what == 1:
            size = random.choice((1, 4, 8))
            data[at : at + size] = random.choice((bytes(size), b"\xff" * size))[: len(data) - at]
        elif what == 2:
            data[at : at + 16] = random.randbytes(16)[: len(data) - at]
        elif what == 3:
            other = random.randrange(len(data))
            data[at : at + 24] = bytes(data[other : other + 24])[: len(data) - at].ljust(
                min(24, len(data) - at), b"\0"
            )
        elif start != image.memory[0][0]:
            image.holes.append((start + at, start + at + random.randrange(1, 64)))


class TestRecords:
    @machines
    @pytest.mark.parametrize("name", ["printk_log", "log"])
    @pytest.mark.parametrize("with_caller", [False, True])
    def test_all_of_them(self, order, word, name, with_caller):
        random = Random(SEED)
        said = [random_message(random, number) for number in range(12)]
        for first in (0, 400, 960):
            image = record_log(said, order, word, size=2048, name=name, first=first, caller=with_caller)
            log = read_log(image)
            expected = [
                Record(
                    s.text,
                    None,
                    s.ts_nsec,
                    s.facility,
                    s.level,
                    s.caller_id if with_caller else None,
                    s.flags,
                )
                for s in said
            ]
            assert list(log.records) == expected
            assert not log.skipped

    def test_no_records(self):
        assert read_log(record_log([], first=100)).records == ()

    def test_wrapped(self):
        said = [Said(b"number %02d" % number + b"." * 30, level=number % 8) for number in range(15)]
        image = record_log(said, size=1024, first=520)
        (next_idx,) = struct.unpack_from("<I", image.memory[0][1], 16)
        assert next_idx < 520
        assert texts(image) == [message.text for message in said]

    def test_16_bit_level_of_v3_5(self):
        said = [Said(b"kernel", level=6), Said(b"user", facility=1, level=3), Said(b"gravest", level=0)]
        log = read_log(record_log(said, name="log", v35=True))
        assert [(rec.facility, rec.level, rec.flags) for rec in log.records] == [
            (0, 6, 0),
            (1, 3, 0),
            (0, 0, 0),
        ]

    def test_continued_lines_are_joined(self):
        """The pieces of one line, with another CPU's message after it."""
        said = [
            Said(b"Booting: ", flags=LOG_CONT | LOG_PREFIX, ts_nsec=1),
            Said(b"#1 ", flags=LOG_CONT, ts_nsec=2),
            Said(b"#2 OK", flags=LOG_NEWLINE, ts_nsec=3),
            Said(b"next", flags=LOG_NEWLINE | LOG_PREFIX),
            Said(b"left open ", flags=LOG_CONT | LOG_PREFIX),
            Said(b"another message", flags=LOG_NEWLINE | LOG_PREFIX),
            Said(b"and its end", flags=LOG_CONT | LOG_NEWLINE),
        ]
        shown = [(line.record.ts_nsec, line.text) for line in lines(read_log(record_log(said)))]
        assert shown == [
            (1, b"Booting: #1 #2 OK"),
            (0, b"next"),
            (0, b"left open "),
            (0, b"another message"),
            (0, b"and its end"),
        ]

    def test_continued_and_several_lines(self):
        said = [
            Said(b"a\nb ", flags=LOG_CONT | LOG_PREFIX),
            Said(b"c\nd", flags=LOG_NEWLINE),
            Said(b"", flags=LOG_NEWLINE),
        ]
        assert [line.text for line in lines(read_log(record_log(said)))] == [b"a", b"b c", b"d", b""]

    @pytest.mark.parametrize("length", [1, 8, 15, 4000, 65535])
    def test_impossible_length_ends_the_walk(self, length):
        said = [Said(b"one"), Said(b"two"), Said(b"three")]
        image = record_log(said)
        struct.pack_into("<H", image.memory[1][1], 24 + 8, length)
        log = read_log(image)
        assert [record.text for record in log.records] == [b"one"]
        assert log.skipped == {"the rest: damaged": 1}

    def test_cycle_ends(self):
        """A length of 0 jumps to the beginning: once, and never when nothing wrapped."""
        image = record_log([Said(b"one"), Said(b"two")])
        struct.pack_into("<H", image.memory[1][1], 24 + 8, 0)
        assert texts(image) == [b"one"]
        wrapped = record_log([Said(b"x" * 100)] * 5, size=512, first=300)
        struct.pack_into("<H", wrapped.memory[1][1], 8, 0)
        assert read_log(wrapped).skipped == {"the rest: damaged": 1}

    @pytest.mark.parametrize(("at", "value"), [(8, 0), (8, 0xFFFFFFFF), (12, 5000), (16, 5000)])
    def test_impossible_variables_are_refused(self, at, value):
        image = record_log([Said(b"one")])
        struct.pack_into("<I", image.memory[0][1], at, value)
        with pytest.raises(IdentityError):
            read_log(image)

    def test_absent_page(self):
        said = [Said(b"%04d" % number + b"." * 36) for number in range(300)]
        image = record_log(said, size=1 << 15)
        start = image.memory[1][0]
        image.holes = [(start + 2 * PAGE, start + 3 * PAGE)]
        log = read_log(image)
        assert [record.text for record in log.records] == [
            message.text for message in said[: len(log.records)]
        ]
        assert 140 < len(log.records) < 150
        assert sum(log.skipped.values()) >= 1

    @machines
    def test_random_damage(self, order, word):
        print(f"seed {SEED}")
        random = Random(SEED)
        said = [random_message(random, number) for number in range(20)]
        for _ in range(300):
            image = record_log(said, order, word, size=2048, first=random.choice((0, 1200)))
            damage(image, random)
            try:
                log = read_log(image)
            except (IdentityError, FaultError):
                continue
            assert image.reads < 1000
            lines(log)


class TestCharacters:
    TEXT = (
        b"<5>[    0.000000] Linux version 2.6.32\n<6>[    1.500000] two\n<3>[   12.000123] no colon\n"
        b"<7>without time\nwithout level\n"
    )

    @machines
    def test_lines(self, order, word):
        log = read_log(char_log(self.TEXT, order, word))
        assert [(rec.level, rec.ts_nsec, rec.text) for rec in log.records] == [
            (5, 0, b"Linux version 2.6.32"),
            (6, 1_500_000_000, b"two"),
            (3, 12_000_123_000, b"no colon"),
            (7, None, b"without time"),
            (None, None, b"without level"),
        ]
        assert [line.text for line in lines(log)] == [record.text for record in log.records]

    @pytest.mark.parametrize("cleared", [False, True])
    def test_wrapped(self, cleared):
        """The buffer holds the last 1,024 characters; the first line of them has lost its beginning."""
        text = b"".join(b"<6>[%5d.000000] message number %d\n" % (n, n) for n in range(100))
        shown = texts(char_log(text, cleared=cleared))
        whole = [b"message number %d" % n for n in range(100)]
        assert shown[1:] == whole[-len(shown) + 1 :]
        assert len(shown) > 25
        assert text[-1024:].split(b"\n")[0].endswith(shown[0])

    def test_empty(self):
        assert read_log(char_log(b"")).records == ()

    def test_absent_page(self):
        text = b"".join(b"<6>[%5d.000000] message number %d\n" % (n, n) for n in range(400))
        image = char_log(text, size=1 << 14)
        start = image.memory[1][0]
        image.holes = [(start + PAGE, start + 2 * PAGE)]
        log = read_log(image)
        assert log.skipped == {"pages not in the dump": 1}
        whole = {b"message number %d" % n for n in range(400)}
        assert len(whole - {record.text for record in log.records}) in range(110, 120)
        assert not [record for record in log.records if b"\0" in record.text]

    @pytest.mark.parametrize("length", [0, 1000, 1 << 30, 0xFFFFFFFF])
    def test_impossible_length_is_refused(self, length):
        image = char_log(self.TEXT)
        struct.pack_into("<I", image.memory[0][1], 8, length)
        with pytest.raises(IdentityError):
            read_log(image)


def test_no_log_known():
    with pytest.raises(IdentityError, match="not known"):
        read_log(LogImage("<", 8, [], {}))


def test_caller():
    def of(caller_id: int | None) -> str | None:
        return caller(Record(b"", None, None, None, None, caller_id, 0))

    assert [of(None), of(0), of(42), of(CPU), of(CPU | 7)] == [None, "T0", "T42", "C0", "C7"]
