"""The lines of a file for ``-e``: gdb and the command line print the same."""

from __future__ import annotations

import pytest

from kdump_elftool.arch import ARCHITECTURES
from kdump_elftool.kernel.vmcoreinfo import parse
from kdump_elftool.plain.vminfo import (
    BASE,
    MACHINES,
    NEEDS,
    THREADS_OF,
    header_lines,
    known_lines,
)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: arch.name)
def test_keys_are_those_of_the_architectures(arch):
    name = arch.name.removesuffix("64") if arch.name.startswith("mips") else arch.name
    assert THREADS_OF[name] == arch.thread_keys
    assert MACHINES[name] == arch.e_machine


def test_lines_are_what_is_read_back():
    """Whatever the numbers, VMCOREINFO's reader understands them; what is not known is no line."""
    values = {key: number * 0x1111 - 7 for number, key in enumerate(NEEDS) if number % 3}

    def ask(kind: str, name: str) -> int | None:
        value = values.get(f"{kind}({name})")
        return None if value is None else abs(value) if kind != "NUMBER" else value

    lines = [*header_lines("6.1.0-test", 4096), *known_lines((*NEEDS, *BASE), ask)]
    assert len(lines) == 2 + len(values)
    assert not any("?" in line for line in lines)
    info = parse("\n".join(lines).encode())
    assert (info.text("OSRELEASE"), info.text("PAGESIZE")) == ("6.1.0-test", "4096")
    for key in NEEDS:
        kind, _, name = key[:-1].partition("(")
        fact = info.find(kind, name)
        assert (None if fact is None else fact.value) == ask(kind, name)


def test_nothing_known_is_nothing_said():
    assert list(header_lines(None, None)) == []
    assert list(known_lines(NEEDS, lambda _kind, _name: None)) == []
