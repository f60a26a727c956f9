"""When a vmlinux that was not given is looked for: when types are wanted that the dump has not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdump_elftool.jobs.knowledge import _located
from kdump_elftool.kernel.facts import Knowledge, Later
from kdump_elftool.kernel.vmcoreinfo import parse


@pytest.fixture
def known():
    """``known(has_types)``: the sources of a dump, and how often a vmlinux was looked for."""

    def make(has_types: bool) -> tuple[Knowledge, list[object]]:
        looked: list[object] = []
        request = SimpleNamespace(locate=lambda *_: looked.append(1), cache=None)
        kernel = SimpleNamespace(request=request, info=parse(b""), arch=None, identity=None)
        own = parse(b"SIZE(task_struct)=1\n") if has_types else None
        types = Later(("OFFSET", "SIZE"), lambda: own)
        return Knowledge((types, *_located(kernel, types, looked.append))), looked

    return make


def test_not_when_the_dump_has_types(known):
    sources, looked = known(True)
    assert sources.size("task_struct") == 1
    assert sources.offset("task_struct.cpu") is None  # this kernel has no such member
    assert sources.symbol("crash_notes") is None
    assert looked == []


def test_once_when_it_has_none(known):
    sources, looked = known(False)
    assert looked == []
    for _ in range(2):
        assert sources.offset("task_struct.cpu") is None
        assert sources.symbol("init_task") is None
    assert looked == [1]
