"""The guest's own account, from the crasher's stream on the second serial port to truth.json.

The stream is described at the top of programs/crasher.c. Names of tasks are given twice: as /proc
shows them (which adds the current work to a kworker's name, proc_task_name() in fs/proc/array.c,
and gives long names of kernel threads in full), and as task_struct.comm holds them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.config import BootError

END = b"\n@end\n"
COMM_BYTES = 15


def is_complete(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(END)))
            return file.read() == END
    except OSError:
        return False


def split_sections(data: bytes) -> dict[str, str]:
    """The sections by name; a stream that is short or mixed up is an error."""
    if not data.startswith(b"@begin\n"):
        raise BootError("the truth does not start with @begin")
    sections: dict[str, str] = {}
    position = len(b"@begin\n")
    while not data.startswith(b"@end\n", position):
        match = re.compile(rb"@section (\w+) (\d+)\n").match(data, position)
        if match is None:
            raise BootError(f"the truth is damaged at byte {position}: {data[position : position + 40]!r}")
        end = match.end() + int(match[2])
        if data[end : end + 1] != b"\n":
            raise BootError(f"section {match[1].decode()} of the truth is not {int(match[2])} bytes long")
        sections[match[1].decode()] = data[match.end() : end].decode("utf-8", "replace")
        position = end + 1
    return sections


def task_comm(proc_comm: str) -> str:
    """What task_struct.comm holds for a name read from /proc."""
    worker = re.match(r"kworker/u?\d+:\d+[A-Z]*", proc_comm)
    name = worker[0] if worker else proc_comm
    return name.encode()[:COMM_BYTES].decode("utf-8", "replace")


def parse_tasks(text: str) -> list[dict[str, Any]]:
    tasks = []
    for line in text.splitlines():
        pid, tid, state, name = line.split(" ", 3)
        comm = task_comm(name)
        tasks.append({"pid": int(pid), "tid": int(tid), "comm": comm, "state": state, "proc_comm": name})
    return sorted(tasks, key=lambda task: (task["pid"], task["tid"]))


def parse_modules(text: str) -> list[dict[str, Any]]:
    """/proc/modules: name size references users state address [taint]."""
    rows = [line.split() for line in text.splitlines()]
    return [{"name": row[0], "size": int(row[1]), "addr": f"0x{int(row[5], 16):x}"} for row in rows]


def parse_iomem(text: str) -> list[dict[str, Any]]:
    ranges = []
    for line in text.splitlines():
        match = re.fullmatch(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)", line)
        if match:
            start, end = int(match[2], 16), int(match[3], 16)
            depth = len(match[1]) // 2
            ranges.append({"start": f"0x{start:x}", "end": f"0x{end:x}", "name": match[4], "depth": depth})
    return ranges


def parse_kallsyms(text: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(address by name, module symbols); a module's name is in the first only where it is unique."""
    kernel: dict[str, str] = {}
    modules: list[dict[str, str]] = []
    for line in text.splitlines():
        fields = line.split()
        address = f"0x{int(fields[0], 16):x}"
        if len(fields) == 3:
            kernel[fields[2]] = address
        else:
            module = fields[3].strip("[]")
            modules.append({"module": module, "name": fields[2], "type": fields[1], "addr": address})
    names = [symbol["name"] for symbol in modules]
    unique = {
        s["name"]: s["addr"] for s in modules if names.count(s["name"]) == 1 and s["name"] not in kernel
    }
    return {**unique, **kernel}, modules


def parse_sections(text: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        module, name, address = line.split()
        sections.setdefault(module, {})[name] = f"0x{int(address, 16):x}"
    return sections


def parse_markers(text: str) -> list[dict[str, Any]]:
    rows = [line.split(" ", 3) for line in text.splitlines()]
    return [{"pid": int(row[0]), "comm": row[1], "vaddr": row[2], "text": row[3]} for row in rows]


def parse_meminfo(text: str) -> dict[str, int]:
    """kB by name."""
    found = re.findall(r"^(\S+):\s+(\d+)(?: kB)?$", text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def parse_truth(data: bytes) -> dict[str, Any]:
    """truth.json from the raw stream."""
    sections: Mapping[str, str] = split_sections(data)
    try:
        kallsyms, module_symbols = parse_kallsyms(sections["kallsyms"])
        pid, cpu, seconds = (int(word) for word in sections["crasher"].split())
        return {
            "release": sections["release"].strip(),
            "version": sections["version"].strip(),
            "cmdline": sections["cmdline"].strip(),
            "time": seconds,
            "uptime": float(sections["uptime"].split()[0]),
            "crasher": {"pid": pid, "cpu": cpu, "comm": "crasher"},
            "tasks": parse_tasks(sections["tasks"]),
            "modules": parse_modules(sections["modules"]),
            "module_sections": parse_sections(sections["sections"]),
            "iomem": parse_iomem(sections["iomem"]),
            "kallsyms": kallsyms,
            "module_symbols": module_symbols,
            "markers": parse_markers(sections["markers"]),
            "meminfo": parse_meminfo(sections["meminfo"]),
            "dmesg": sections["dmesg"].splitlines(),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise BootError(f"the truth can't be read: {type(error).__name__}: {error}") from error
