"""Every ``*.spec`` beside this file: a core described as text, and what reading it must give.

The bytes come from ``tests.builders`` (struct only), the expectations stand in the spec.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kdump_elftool import errors
from kdump_elftool.addr import u64
from kdump_elftool.errors import FormatError, PageAbsentError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.formats.base import Dump, OpenOptions
from tests.builders.elfcore import own_address_words
from tests.builders.spectext import filling, number, read_spec

SPECS = sorted(Path(__file__).parent.glob("*.spec"))


@pytest.fixture
def dump_of(tmp_path):
    def build(image: bytes, options: OpenOptions) -> Dump:
        path = tmp_path / "dump"
        path.write_bytes(image)
        return open_dump(InputFile.open(str(path)), "auto", options)

    return build


def test_there_are_specs_and_each_expects_something():
    assert len(SPECS) >= 30
    assert not [path.name for path in SPECS if not read_spec(path).expect]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec(path, dump_of):
    spec = read_spec(path)
    options = OpenOptions(zero_excluded=["option", "zero_excluded"] in spec.expect)
    wanted = [words for words in spec.expect if words[0] != "option"]
    failures = [words for words in wanted if words[0] == "error"]
    if failures:
        (words,) = failures
        with pytest.raises(FormatError) as caught:
            dump_of(spec.build(), options)
        assert isinstance(caught.value, getattr(errors, words[1]))
        assert all(word.replace("~", " ") in caught.value.message for word in words[2:])
        return
    dump = dump_of(spec.build(), options)
    for words in wanted:
        check(dump, words[0], words[1:])


def check(dump: Dump, what: str, words: list[str]) -> None:
    values = [number(word) for word in words if word[0].isdigit() and what != "bytes"]
    if what == "kind":
        assert (dump.kind.bits, dump.kind.order) == (values[0], words[1])
    elif what == "machine":
        assert dump.e_machine == values[0]
    elif what == "extents":
        assert len(dump.memory.extents) == values[0]
    elif what in ("own", "ownbig"):
        order = ">" if what == "ownbig" else "<"
        same_bytes(dump, values[0], own_address_words(values[0], values[1], order))
    elif what == "bytes":
        same_bytes(dump, number(words[0]), filling(words[1], number(words[0])))
    elif what == "absent":
        with pytest.raises(PageAbsentError):
            dump.memory.read(values[0], 1)
        assert not dump.memory.present().contains(u64([values[0]]))[0]
    elif what == "declared":
        assert dump.memory.declared.total == values[0]
    elif what == "notes":
        assert [f"{note.name.decode()}:{note.type}" for note in dump.notes] == words
    elif what == "lost":
        assert sum(len(lost.ranges) for lost in dump.lost) == values[0]
        assert all(any(word in lost.why for lost in dump.lost) for word in words[1:])
    elif what == "lostrange":
        found = [
            (int(a), int(b))
            for lost in dump.lost
            for a, b in zip(lost.ranges.start, lost.ranges.end, strict=True)
        ]
        assert tuple(values) in found
    elif what == "warnings":
        assert bool(dump.warnings) if words == ["some"] else len(dump.warnings) == values[0], dump.warnings
    else:
        raise ValueError(f"expect {what} is not known")


def same_bytes(dump: Dump, paddr: int, expected: bytes) -> None:
    assert dump.memory.read(paddr, len(expected)) == expected
    blocks, readable = dump.memory.gather(u64([paddr]), len(expected))
    assert readable[0]
    assert blocks[0].tobytes() == expected
