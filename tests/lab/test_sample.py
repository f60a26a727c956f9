"""The lab cuts a dump as the one in sample/ was cut: every page of the result is the dump's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from lab import sample
from tests.lab.dumps import LabDump, kdump_elftool, selected_dumps

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DUMPS = [dump for dump in selected_dumps() if dump.row == sample.ROW]


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.id)
def test_cut(dump: LabDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump.check()
    monkeypatch.setattr(sample, "LEVEL", 1)
    path = tmp_path / "cut.kdump"
    sample.write_sample(str(dump.path), str(path))
    with InputFile.open(str(dump.path)) as whole_file, InputFile.open(str(path)) as file:
        whole, cut = open_dump(whole_file).memory, open_dump(file).memory
        present = cut.present()
        assert 0 < present.total < whole.present().total // 20
        frames = np.concatenate(
            [
                np.arange(low, high, 4096, dtype=np.uint64)
                for low, high in zip(present.start, present.end, strict=True)
            ]
        )
        ours, there = cut.gather(frames, 4096)
        theirs, known = whole.gather(frames, 4096)
        assert there.all() and known.all() and np.array_equal(ours, theirs)
    of_whole, of_cut = (json.loads(kdump_elftool("ps", "--json", each).stdout) for each in (dump.path, path))
    assert of_cut["tasks"] == of_whole["tasks"]
