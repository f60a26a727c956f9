"""mkvmlinux of kernels whose kallsyms, BTF or ORC is damaged.

What can be read is written and readelf reads it, what cannot is named, and neither memory nor time grows with
what a table claims.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.builders import btf as b
from tests.builders import orc
from tests.builders.kallsyms import FORMS, build
from tests.builders.kernel import SMALL, make_kernel

SEED, CASES = 20261129, 60
ROOM, SECONDS = 192 << 20, 120
SYMBOLS_AT, BTF_AT, IP_AT, ENTRIES_AT = 0x380000, 0x3C0000, 0x3D0000, 0x3E0000
FUNCTIONS = 1500


def types() -> bytes:
    """Structs in each other, functions with parameters, an enumeration, variables in a section."""
    w = b.BtfWriter()
    integer, char = w.integer("int", 4, 1), w.integer("char", 1, 1)
    last = integer
    for number in range(60):
        members = [("a", integer, 0), ("b", last, 4), ("c", w.array(char, 8), 8), ("d", w.pointer(last), 16)]
        last = w.struct(f"struct_{number}", 24, members)
        w.add(b.TYPEDEF, f"struct_{number}_t", last)
        proto = w.proto(integer, [("one", w.pointer(last)), ("two", integer)])
        w.add(b.FUNC, f"function_{number}", proto, vlen=1)
    w.section(".data..percpu", [(w.add(b.VAR, "current_pid", integer, [1]), 0x20, 4)])
    return w.finish()


def rows(text: int) -> list[orc.Row]:
    found = []
    for number in range(FUNCTIONS):
        at = text + 0x2000 + 32 * number
        found += [orc.Row(at, "call", "sp", 8), orc.Row(at + 1, "call", "sp", 16, "cfa", -16)]
        found += [orc.Row(at + 20, "call", "sp", 8), orc.Row(at + 21, "undefined")]
    return [*found, orc.Row(at + 64, "regs", "sp", 0, "", 0, True), orc.Row(at + 80, "undefined")]


def kernel_with_tables(path: Path) -> dict[str, list[int]]:
    """The dump, and where each table is."""
    kernel = make_kernel(SMALL)
    text = kernel.text_vaddr
    btf = types()
    ip, entries = orc.pack(rows(text), "v6.4", text + IP_AT)
    places = {"BTF": (BTF_AT, btf), "orc_unwind_ip": (IP_AT, ip), "orc_unwind": (ENTRIES_AT, entries)}
    symbols = [(0, "A", "__per_cpu_start"), (0x20, "A", "current_pid"), (0x1000, "A", "__per_cpu_end")]
    symbols += [(text, "T", "_text"), (text, "T", "_stext")]
    symbols += [(text + 0x2000 + 32 * at, "t", f"function_{at}") for at in range(FUNCTIONS)]
    symbols += [(text + 0x10000, "T", "_etext"), (text + 0x200000, "R", "linux_banner")]
    symbols += [(text + 0x200100, "R", "_sdata"), (text + 0x208000, "D", "init_uts_ns")]
    symbols += [(text + 0x20C000, "D", "init_task"), (text + 0x300000, "D", "_edata")]
    for name, (at, data) in places.items():
        edges = ("__start_BTF", "__stop_BTF") if name == "BTF" else (f"__start_{name}", f"__stop_{name}")
        symbols += [(text + at, "R", edges[0]), (text + at + len(data), "R", edges[1])]
        kernel.ram.write(kernel.spec.text_paddr + at, data)
    symbols.append((kernel.symbol("_end"), "B", "_end"))
    image = build(symbols, FORMS[3], text + SYMBOLS_AT, text)
    kernel.ram.write(kernel.spec.text_paddr + SYMBOLS_AT, image.data)
    path.write_bytes(kernel.dump())
    tables = {name: [text + at, len(data)] for name, (at, data) in places.items()}
    return {"kallsyms": [text + SYMBOLS_AT, len(image.data)], **tables}


def answers_of(dump: Path, tables: dict[str, list[int]], folder: Path, **limits: int) -> list[dict[str, Any]]:
    """Of a process of its own: one that is killed by its limits fails."""
    request = {"dump": str(dump), "tables": tables, "folder": str(folder), **limits}
    done = subprocess.run(
        [sys.executable, "-m", "tests.builders.damaged_tables"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def check(answers: list[dict[str, Any]]) -> Counter[str]:
    """readelf on every file; whatever is less than without damage is named.  Files written by table."""
    whole, *damaged = answers
    assert whole["file"]
    written: Counter[str] = Counter()
    for number, found in enumerate(damaged):
        told = (number, found)
        if found["file"] is None:
            assert found["error"], told
            continue
        written[found["table"]] += 1
        done = subprocess.run(
            ["readelf", "-a", "-w", "-W", found["file"]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert (done.returncode, done.stderr) == (0, b""), (told, done.stderr[:500])
        Path(found["file"]).unlink()
        # a record that became another good one is no damage that could be seen
        less = any(10 * found[what] < 9 * whole[what] for what in ("types", "symbols", "frames"))
        # one sentence may say it in the place of another
        assert not less or set(found["missing"]) - set(whole["missing"]), told
    return written


def test_damaged_tables(tmp_path: Path) -> None:
    tables = kernel_with_tables(tmp_path / "dump")
    answers = answers_of(
        tmp_path / "dump", tables, tmp_path, seed=SEED, cases=CASES, room=ROOM, seconds=SECONDS
    )
    assert (answers[0]["types"], answers[0]["frames"], answers[0]["symbols"]) == (302, True, FUNCTIONS + 20)
    written = check(answers)
    each = CASES // len(tables)
    assert written["BTF"] >= each and written["orc_unwind"] >= each and written["orc_unwind_ip"] >= each
    assert written["kallsyms"] > each // 3, "some damage of it leaves nothing that could be found"
    assert any("kallsyms is damaged" in text for found in answers for text in found.get("missing", []))
