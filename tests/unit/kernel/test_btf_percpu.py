"""Per-CPU variables by BTF's section of them, given the addresses of some."""

from __future__ import annotations

from kdump_elftool.kernel.btf import Btf
from kdump_elftool.kernel.btf_percpu import BtfPercpu
from tests.builders.btf import VAR, BtfWriter
from tests.unit.kernel.kernelspace import info_of

START = 0xFFFF800081000000
PLACES = {"cpu_number": 8, "runqueues": 0x40, "kstat": 0x1000, "twice": 0x2000}


def source(section: str = ".data..percpu", **known: object) -> BtfPercpu:
    writer = BtfWriter()
    number = writer.integer("int", 4)
    variables = [(writer.add(VAR, name, number, [1]), at, 4) for name, at in PLACES.items()]
    variables.append((writer.add(VAR, "twice", number, [0]), 0x3000, 4))
    writer.section(section, [*variables, (number, 0x4000, 4), (9999, 0x5000, 4)])
    btf = Btf.parse(writer.finish(), "<", 8, "BTF")
    assert btf is not None
    return BtfPercpu(btf, info_of(**known))


def address(found: BtfPercpu, name: str) -> int | None:
    fact = found.find("SYMBOL", name)
    return None if fact is None else int(fact.value)


def test_one_tells_where_all_are() -> None:
    found = source(SYMBOL_cpu_number=START + 8)
    assert {name: address(found, name) for name in PLACES} == {
        "cpu_number": START + 8,
        "runqueues": START + 0x40,
        "kstat": START + 0x1000,
        "twice": None,
    }
    assert address(found, "int") is None
    assert found.find("SIZE", "runqueues") is None


def test_most_of_them_are_believed() -> None:
    assert address(source(SYMBOL_cpu_number=START + 8, SYMBOL_kstat=0x77), "runqueues") is None
    agreed = source(SYMBOL_cpu_number=START + 8, SYMBOL_runqueues=START + 0x40, SYMBOL_kstat=0x77)
    assert address(agreed, "kstat") == START + 0x1000


def test_nothing_to_go_by() -> None:
    assert address(source(), "runqueues") is None
    assert address(source(".data", SYMBOL_cpu_number=START + 8), "runqueues") is None
