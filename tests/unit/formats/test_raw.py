"""Raw memory: addresses come from outside, pieces are joined, and what cannot be is refused."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from kdump_elftool.cli.raw_input import Inputs, named_inputs, split_place
from kdump_elftool.errors import CorruptDumpError, FormatError, PageAbsentError, UsageError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import FORMATS, open_dump, raw
from kdump_elftool.formats.base import Dump, OpenOptions
from kdump_elftool.formats.raw import Joined

DATA = Random(9).randbytes(0x5123)


@pytest.fixture
def opened(tmp_path):
    """``opened(piece, ...)``: files of these contents."""
    with ExitStack() as stack:

        def run(*pieces: bytes) -> tuple[InputFile, ...]:
            files = []
            for index, data in enumerate(pieces):
                path = tmp_path / f"piece{index}"
                path.write_bytes(data)
                files.append(stack.enter_context(InputFile.open(str(path))))
            return tuple(files)

        yield run


def open_as_raw(files: tuple[InputFile, ...], *addresses: int, zeros: bool = False) -> Dump:
    options = OpenOptions(addresses=addresses, zero_excluded=zeros)
    return open_dump(files[0], "raw", options, files[1:])


@pytest.mark.parametrize("base", [0, 0x1000, 0x40000123, (1 << 56) - len(DATA)])
def test_a_flat_file(opened, base):
    dump = open_as_raw(opened(DATA), base)
    assert dump.format == "raw"
    assert dump.memory.read(base, len(DATA)) == DATA
    assert dump.memory.declared.start.tolist() == [base]
    assert dump.memory.declared.end.tolist() == [base + len(DATA)]
    assert not dump.lost
    assert not dump.warnings
    assert not dump.notes


def test_without_an_address_it_begins_at_0(opened):
    assert open_dump(opened(DATA)[0], "raw").memory.read(0x10, 0x100) == DATA[0x10:0x110]


@pytest.mark.parametrize(
    "magic", [b"\x7fELF", b"KDUMP   ", b"EMiL", b"\x1f\x8b\x08", b"makedumpfile\0\0\0\0"]
)
def test_the_first_bytes_mean_nothing(opened, magic):
    image = magic + DATA
    assert open_as_raw(opened(image), 0).memory.read(0, len(image)) == image


def test_it_is_never_found_by_content(opened):
    with pytest.raises(FormatError) as error:
        open_dump(opened(bytes(0x2000))[0])
    assert "-I raw" in error.value.hint
    assert [known.name for known in FORMATS if known.probe(b"")] == []
    assert not any(raw.FORMAT.probe(head) for head in (b"", bytes(512), DATA[:512]))


def test_pieces_in_any_order(opened):
    first, second, third = DATA[:0x2000], DATA[0x2000:0x3001], DATA[0x3001:]
    dump = open_as_raw(opened(third, first, second), 0x103001, 0x100000, 0x102000)
    assert dump.memory.read(0x100000, len(DATA)) == DATA
    assert len(dump.memory.declared) == 1
    assert dump.file.path.endswith("piece0 and 2 more")
    assert dump.file.size == len(DATA)


def test_neighbours_in_memory_and_order_are_read_across_the_border(opened):
    """Extents of both files become one: the reader has to go from file to file."""
    dump = open_as_raw(opened(DATA[:0x801], DATA[0x801:0x802], DATA[0x802:]), 0, 0x801, 0x802)
    assert len(dump.memory.extents) == 1
    assert dump.memory.read(0x700, 0x400) == DATA[0x700:0xB00]


def test_a_gap_is_no_memory_or_zeros(opened):
    files = opened(DATA[:0x1000], DATA[0x1000:])
    with pytest.raises(PageAbsentError):
        open_as_raw(files, 0, 0x10000).memory.read(0xFFF, 2)
    memory = open_as_raw(files, 0, 0x10000, zeros=True).memory
    assert memory.read(0xFF0, 0x20) == DATA[0xFF0:0x1000] + bytes(16)
    assert memory.read(0x10000, 16) == DATA[0x1000:0x1010]


@pytest.mark.parametrize("addresses", [(0, 0xFFF), (0xFFF, 0), (5, 5), (0x1FFF, 0x1000)])
def test_overlapping_pieces(opened, addresses):
    with pytest.raises(UsageError, match="begins at"):
        open_as_raw(opened(DATA[:0x1000], DATA[:0x1000]), *addresses)


@pytest.mark.parametrize("addresses", [(), (0,), (0, 1, 2)])
def test_a_piece_without_an_address(opened, addresses):
    with pytest.raises(UsageError, match="where each of them lies"):
        open_as_raw(opened(DATA, DATA), *addresses)


@pytest.mark.parametrize("base", [(1 << 56) - len(DATA) + 1, 1 << 56, (1 << 64) - 1])
def test_an_impossible_address(opened, base):
    with pytest.raises(UsageError, match="no machine"):
        open_as_raw(opened(DATA), base)


def test_an_empty_piece(opened):
    with pytest.raises(FormatError, match="piece1: the file is empty"):
        open_as_raw(opened(DATA, b""), 0, 0x100000)


def test_joined_files(opened):
    joined = Joined.of(opened(DATA[:7], DATA[7:0x100], DATA[0x100:]))
    for offset, size in [(0, 7), (6, 2), (3, 0x200), (0, len(DATA) + 9), (len(DATA), 1), (0x5000, 0x1000)]:
        assert joined.read_at(offset, size) == DATA[offset : offset + size]
    assert not len(joined.missing)
    with pytest.raises(CorruptDumpError, match="ends here"):
        joined.read_into(len(DATA) - 1, memoryview(bytearray(2)))


def words(*names: str, intype: str = "auto", base: int | None = None, infile=()) -> argparse.Namespace:
    return argparse.Namespace(
        dump=list(names), infile=list(infile), vmcore=None, intype=intype, ram_base=base
    )


def test_names_with_places():
    assert split_place("a@0x1000") == ("a", 0x1000)
    assert split_place("d/a@b@4096") == ("d/a@b", 4096)
    for name in ("a", "a@", "@5", "a@b", "a@-1", "a@0x", "a@1_0", f"a@{1 << 64}", "u@h/f"):
        assert split_place(name) == (name, None)


def test_a_file_of_the_whole_name_wins(tmp_path: Path):
    (tmp_path / "a@5").write_bytes(b"x")
    assert split_place(f"{tmp_path}/a@5") == (f"{tmp_path}/a@5", None)


@pytest.mark.parametrize("intype", ["auto", "raw"])
def test_pieces_imply_raw(intype):
    expected = Inputs(("b", "a"), "raw", (16, 0))
    assert named_inputs(words("b@0x10", "a@0", intype=intype)) == expected
    assert named_inputs(words("a@0", infile=["b@16"], intype=intype)) == expected


def test_other_inputs_stay_as_they_are():
    assert named_inputs(words("a", "b")) == Inputs(("a", "b"), "auto")
    assert named_inputs(words("a", intype="raw")) == Inputs(("a",), "raw")
    assert named_inputs(words("a", intype="raw", base=7)) == Inputs(("a",), "raw", (7,))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (words("a@0", intype="lime"), "-I lime"),
        (words("a", base=0), "--ram-base"),
        (words("a@0", base=0), "both say"),
        (words("a@0", "b"), "b has no address"),
    ],
)
def test_what_does_not_go_together(args, said):
    with pytest.raises(UsageError, match=said):
        named_inputs(args)
