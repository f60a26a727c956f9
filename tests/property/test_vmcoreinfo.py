"""VMCOREINFO: what was written is read, and no bytes at all make the parser raise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_elftool.kernel.vmcoreinfo import override, parse

NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True)
KINDS = ("SYMBOL", "ADDRESS", "SIZE", "OFFSET", "LENGTH", "NUMBER")


def ask_everything(info) -> None:
    """Every look-up, with every key that occurs."""
    assert info.kaslr_offset is None or isinstance(info.kaslr_offset, int)
    assert info.build_id is None or isinstance(info.build_id, bytes)
    for key in info.values:
        assert isinstance(info.text(key), str)
        name = key.partition("(")[2].rstrip(")")
        for look in (info.symbol, info.address, info.size, info.offset, info.length, info.number):
            value = look(name)
            assert value is None or -(1 << 63) <= value < 1 << 64


@given(st.binary(max_size=300))
@settings(max_examples=150)
def test_any_bytes(data):
    ask_everything(parse(data))


@given(st.lists(st.tuples(st.sampled_from(KINDS), NAME, st.text(max_size=30)), max_size=12))
@settings(max_examples=60)
def test_any_values(lines):
    text = "".join(f"{kind}({name})={value}\n" for kind, name, value in lines)
    info = parse(text.encode("utf-8", "surrogatepass"))
    ask_everything(info)
    ask_everything(override(info, info))


@given(
    st.dictionaries(NAME, st.integers(0, 2**64 - 1)), st.dictionaries(NAME, st.integers(-(2**63), 2**63 - 1))
)
def test_round_trip(symbols, numbers):
    text = "".join(f"SYMBOL({name})={value:x}\n" for name, value in symbols.items())
    text += "".join(f"NUMBER({name})={value}\n" for name, value in numbers.items())
    info = parse(text.encode() + b"\0garbage")
    assert {name: info.symbol(name) for name in symbols} == symbols
    decimal = {
        name: value for name, value in numbers.items() if name not in ("kimage_voffset", "PHYS_OFFSET")
    }
    assert {name: info.number(name) for name in decimal} == decimal
