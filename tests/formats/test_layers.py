"""Formats that read in pieces of their own, inside a compressed file: the same memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from tests.builders.kdumptext import read_kdump_spec
from tests.builders.streams import COMPRESS


@pytest.mark.parametrize("outer", COMPRESS)
@pytest.mark.parametrize("codec", ["zlib", "zstd", "raw"])
def test_kdump_inside(tmp_path, outer, codec):
    image = read_kdump_spec(Path(__file__).parent / "kdump" / f"codec_{codec}.spec").build()
    (tmp_path / "plain").write_bytes(image)
    (tmp_path / "packed").write_bytes(COMPRESS[outer](image))
    with InputFile.open(str(tmp_path / "plain")) as one, InputFile.open(str(tmp_path / "packed")) as other:
        plain, packed = open_dump(one), open_dump(other)
        assert packed.format == plain.format == "kdump"
        assert packed.notes == plain.notes
        ranges, same = plain.memory.present(), packed.memory.present()
        assert ranges.start.tolist() == same.start.tolist()
        assert ranges.total
        for start, end in zip(ranges.start.tolist(), ranges.end.tolist(), strict=True):
            assert packed.memory.read(start, end - start) == plain.memory.read(start, end - start)
