"""Every spec in ``kdump/``: a kdump-compressed dump described as text, and what reading it must give."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdump_elftool import errors
from kdump_elftool.addr import u64
from kdump_elftool.errors import KdumpError, PageAbsentError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from tests.builders.elfcore import own_address_words
from tests.builders.kdumptext import read_kdump_spec
from tests.builders.spectext import number

SPECS = sorted((Path(__file__).parent / "kdump").glob("*.spec"))


def test_there_are_specs_and_each_expects_something():
    assert len(SPECS) >= 40
    assert not [path.name for path in SPECS if not read_kdump_spec(path).expect]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec(path, tmp_path):
    spec = read_kdump_spec(path)
    (tmp_path / "dump").write_bytes(spec.build())
    options = OpenOptions(zero_excluded=["option", "zero_excluded"] in spec.expect)
    wanted = [words for words in spec.expect if words[0] != "option"]
    with InputFile.open(str(tmp_path / "dump")) as file:
        failures = [words for words in wanted if words[0] == "error"]
        if failures:
            with pytest.raises(KdumpError) as caught:
                open_dump(file, "auto", options)
            assert isinstance(caught.value, getattr(errors, failures[0][1]))
            assert caught.value.hint
            assert all(word.replace("~", " ") in caught.value.message for word in failures[0][2:])
            return
        dump = open_dump(file, "auto", options)
        assert dump.format == "kdump"
        for words in wanted:
            check(dump, words[0], words[1:])


def check(dump: Dump, what: str, words: list[str]) -> None:
    values = [number(word) for word in words if word[0].isdigit()]
    if what == "kind":
        assert (dump.kind.bits, dump.kind.order) == (values[0], words[1])
    elif what == "machine":
        assert dump.e_machine == values[0]
    elif what in ("own", "ownbig"):
        order = ">" if what == "ownbig" else "<"
        same_bytes(dump, values[0], own_address_words(values[0], values[1], order))
    elif what == "zeros":
        same_bytes(dump, values[0], bytes(values[1]))
    elif what == "absent":
        with pytest.raises(PageAbsentError, match=words[1].replace("~", " ") if len(words) > 1 else None):
            dump.memory.read(values[0], 1)
        _, readable = dump.memory.gather(u64([values[0]]), 8)
        assert not readable[0]
        view = bytearray(b"x" * 8)
        assert dump.memory.read_present(values[0], memoryview(view)) == [(0, 8)]
        assert view == bytes(8)
    elif what == "present":
        assert dump.memory.present().total == values[0]
    elif what == "declared":
        assert dump.memory.declared.total == values[0]
    elif what == "notes":
        assert [f"{note.name.decode()}:{note.type}" for note in dump.notes] == words
    elif what == "vmcoreinfo":
        texts = [note.desc for note in dump.notes if note.name == b"VMCOREINFO"]
        assert [text.decode() for text in texts] == [words[0].replace("~", "\n")]
    elif what == "lost":
        assert sum(len(lost.ranges) for lost in dump.lost) == values[0], dump.lost
        why = [lost.why for lost in dump.lost]
        assert all(any(word.replace("~", " ") in text for text in why) for word in words[1:]), why
    elif what == "warnings":
        assert len(dump.warnings) == values[0], dump.warnings
        assert all(any(word in text for text in dump.warnings) for word in words[1:]), dump.warnings
    else:
        raise ValueError(f"expect {what} is not known")


def same_bytes(dump: Dump, paddr: int, expected: bytes) -> None:
    assert dump.memory.read(paddr, len(expected)) == expected
    view = bytearray(len(expected))
    assert dump.memory.read_present(paddr, memoryview(view)) == []
    assert view == expected
    for at in (0, len(expected) - 24):
        blocks, readable = dump.memory.gather(u64([paddr + at]), 24)
        assert readable[0]
        assert blocks[0].tobytes() == expected[at : at + 24]
