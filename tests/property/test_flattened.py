"""Flattened files against the plain reference: an empty file that every record is written into."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kdump_elftool.addr import u64
from kdump_elftool.errors import CorruptDumpError
from kdump_elftool.formats.base import OpenOptions
from kdump_elftool.formats.flattened import open_flattened
from kdump_elftool.formats.flattened_records import Scanner, Stop, scan
from tests.builders.dumps import BytesFile
from tests.builders.flattened import END, Record, flatten, rearranged

RECORDS = st.lists(
    st.builds(Record, st.integers(0, 300), st.binary(max_size=40)).filter(lambda r: r.data or r.offset),
    min_size=1,
    max_size=12,
)


@given(RECORDS, st.lists(st.tuples(st.integers(0, 350), st.integers(0, 350)), max_size=6))
def test_contents_equal_the_reference(records, reads):
    image = rearranged(record for record in records if record.data)
    if not image:
        return
    source = open_flattened(BytesFile(flatten(records)), OpenOptions())
    assert (source.size, len(source.missing)) == (len(image), 0)
    assert source.read_at(0, source.size + 1) == image
    for offset, size in reads:
        assert source.read_at(offset, size) == image[offset : offset + size]


@given(RECORDS, st.lists(st.integers(0, 5000), max_size=8), st.sampled_from([END, b"", b"\0" * 40, END[:9]]))
def test_a_stream_in_pieces_gives_the_same_records(records, cuts, end):
    image = flatten(records, end=end)
    scanner = Scanner()
    for begin, stop in pairwise(sorted({0, len(image), *(cut for cut in cuts if cut < len(image))})):
        scanner.feed(begin, memoryview(image)[begin:stop])
    fed, scanned = scanner.finish(), scan(BytesFile(image))
    assert fed.start.tolist() == scanned.start.tolist() == [record.offset for record in records]
    assert fed.size.tolist() == scanned.size.tolist() == [len(record.data) for record in records]
    assert (fed.next_at, fed.stop) == (scanned.next_at, scanned.stop)
    assert fed.stop == {END: Stop.END_MARK, b"\0" * 40: Stop.NO_RECORD}.get(end, Stop.NOTHING)
    data = [image[at : at + n] for at, n in zip(fed.position.tolist(), fed.size.tolist(), strict=True)]
    assert data == [record.data for record in records]


@given(RECORDS, st.integers(1, 400))
def test_what_did_not_arrive_is_missing(records, cut):
    """In a stream that was cut, each byte is as some record has it, or not there."""
    records = [record for record in records if record.data]
    if not records:
        return
    whole = flatten(records)
    image = whole[: max(len(whole) - cut, 4096)]
    came = BytesFile(image)
    try:
        source = open_flattened(came, OpenOptions())
    except CorruptDumpError as error:
        assert "without anything" in str(error)
        return
    assert source.warnings
    values: dict[int, set[int]] = {}
    for record in records:
        for index, byte in enumerate(record.data):
            values.setdefault(record.offset + index, set()).add(byte)
    for offset in range(source.size):
        found = source.read_at(offset, 1)
        assert bool(found) != bool(source.missing.contains(u64([offset]))[0])
        assert not found or found[0] in values[offset]
