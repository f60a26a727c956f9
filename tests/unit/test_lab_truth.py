"""lab.truth: what the guest wrote on its second serial port, taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.config import BootError
from lab.truth import (
    is_complete,
    parse_iomem,
    parse_kallsyms,
    parse_markers,
    parse_modules,
    parse_sections,
    parse_tasks,
    parse_truth,
    split_sections,
    task_comm,
)

SECTIONS = {
    "version": "Linux version 6.1.0\n",
    "release": "6.1.0-50\n",
    "cmdline": "console=ttyS0\n",
    "iomem": "00001000-0009fbff : System RAM\n  00002000-00002fff : Kernel code\n",
    "kallsyms": "ffffffff81000000 T _text\n",
    "modules": "loop 32768 2 - Live 0xffffffffc0510000\n",
    "sections": "loop .text 0xffffffffc0510000\n",
    "markers": "12 worker 0x7f00 a marker, with blanks\n",
    "meminfo": "MemTotal:      541716 kB\nHugePages_Total:       0\n",
    "dmesg": "<5>[    0.000000] Linux version\n<6>[    1.5] @section fake 3\n",
    "uptime": "7.74 1.00\n",
    "crasher": "168 1 1795384766\n",
    "tasks": "168 168 R crasher\n1 1 S init\n",
}


def stream(sections: dict[str, str]) -> bytes:
    parts = [f"@section {name} {len(text.encode())}\n{text}\n" for name, text in sections.items()]
    return ("@begin\n" + "".join(parts) + "@end\n").encode()


def test_a_whole_stream():
    truth = parse_truth(stream(SECTIONS))
    assert truth["release"] == "6.1.0-50"
    assert truth["crasher"] == {"pid": 168, "cpu": 1, "comm": "crasher"}
    assert [task["tid"] for task in truth["tasks"]] == [1, 168]
    assert truth["kallsyms"] == {"_text": "0xffffffff81000000"}
    assert truth["dmesg"][1] == "<6>[    1.5] @section fake 3"
    assert truth["meminfo"] == {"MemTotal": 541716, "HugePages_Total": 0}
    assert truth["uptime"] == 7.74


def test_every_cut_of_a_stream_is_noticed():
    whole = stream(SECTIONS)
    for size in range(len(whole)):
        with pytest.raises(BootError):
            parse_truth(whole[:size])


def test_foreign_text_between_sections_is_noticed():
    whole = stream(SECTIONS)
    place = whole.index(b"@section modules")
    with pytest.raises(BootError, match="damaged at byte"):
        split_sections(whole[:place] + b"[   1.0] noise\n" + whole[place:])


def test_a_lost_byte_is_noticed():
    whole = stream(SECTIONS)
    place = whole.index(b"Kernel code")
    with pytest.raises(BootError):
        split_sections(whole[:place] + whole[place + 1 :])


@pytest.mark.parametrize("missing", sorted(SECTIONS))
def test_a_missing_section_is_an_error(missing: str):
    with pytest.raises(BootError):
        parse_truth(stream({name: text for name, text in SECTIONS.items() if name != missing}))


def test_complete_means_ended(tmp_path: Path):
    path = tmp_path / "truth.raw"
    assert not is_complete(path)
    path.write_bytes(b"")
    assert not is_complete(path)
    path.write_bytes(stream(SECTIONS)[:-1])
    assert not is_complete(path)
    path.write_bytes(stream(SECTIONS))
    assert is_complete(path)


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        ("init", "init"),
        ("kworker/0:0-rcu_gp", "kworker/0:0"),
        ("kworker/u4:2+events_unbound", "kworker/u4:2"),
        ("kworker/1:1H-kblockd", "kworker/1:1H"),
        ("kworker/R-mm_percpu_wq", "kworker/R-mm_pe"),
        ("rcu_tasks_rude_kthread", "rcu_tasks_rude_"),
        ("a-name with)x", "a-name with)x"),
    ],
)
def test_names_as_the_task_structure_holds_them(shown: str, held: str):
    assert task_comm(shown) == held


def test_task_names_may_hold_blanks_and_brackets():
    (task,) = parse_tasks("9 10 S a (b) c\n")
    assert task == {"pid": 9, "tid": 10, "comm": "a (b) c", "state": "S", "proc_comm": "a (b) c"}


def test_iomem_keeps_the_nesting():
    outer, inner = parse_iomem(SECTIONS["iomem"])
    assert outer == {"start": "0x1000", "end": "0x9fbff", "name": "System RAM", "depth": 0}
    assert (inner["name"], inner["depth"]) == ("Kernel code", 1)


def test_modules_and_their_sections():
    text = "nbd 61440 0 - Live 0xffffffffc0584000 (OE)\n"
    assert parse_modules(text) == [{"name": "nbd", "size": 61440, "addr": "0xffffffffc0584000"}]
    assert parse_sections("nbd .text 0x10\nnbd .data 0x20\n") == {"nbd": {".text": "0x10", ".data": "0x20"}}


def test_module_symbols_are_in_the_flat_table_only_where_unique():
    text = (
        "ffffffff81000000 T panic\n"
        "ffffffffc0000010 t panic\t[one]\n"
        "ffffffffc0000020 t common\t[one]\n"
        "ffffffffc0000030 t common\t[two]\n"
        "ffffffffc0000040 d own\t[two]\n"
    )
    kernel, modules = parse_kallsyms(text)
    assert kernel == {"panic": "0xffffffff81000000", "own": "0xffffffffc0000040"}
    assert [(symbol["module"], symbol["name"]) for symbol in modules] == [
        ("one", "panic"),
        ("one", "common"),
        ("two", "common"),
        ("two", "own"),
    ]


def test_markers_keep_blanks():
    assert parse_markers(SECTIONS["markers"]) == [
        {"pid": 12, "comm": "worker", "vaddr": "0x7f00", "text": "a marker, with blanks"}
    ]
