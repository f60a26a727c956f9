"""The search of memory for a kernel, which a dump without VMCOREINFO costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import rivals
from bench.report import Figure, spread
from bench.rivals import BenchError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import open_dump
from kdump_elftool.jobs.kernel import architecture
from kdump_elftool.kernel.kernels import KernelSearch
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME

GB = 1_000_000_000
SAME_MEMORY = "qemu-paging.elf"


def measure_find_kernel(dumps: tuple[Path, ...], slowness: float) -> Iterator[Figure]:
    """CPU time of the search alone, in this process, of every lab dump without its note."""
    for path in dumps:
        if path.name == SAME_MEMORY:
            continue
        rivals.warm(path)
        with InputFile.open(str(path)) as file:
            dump = open_dump(file)
            notes = tuple(note for note in dump.notes if note.name != NOTE_NAME)
            search = KernelSearch(replace(dump, notes=notes), architecture(dump), None, None)
            size, times = dump.memory.present().total, []
            for _ in range(rivals.TIMES):
                begin = time.process_time()
                found = search.run(None, lambda _: None)
                times.append(time.process_time() - begin)
        if found.default is None:
            raise BenchError(f"{path}: no kernel was found in its memory")
        here = statistics.median(times)
        facts: dict[str, str | int] = {"bytes": size, "kernels": len(found.found)}
        raw = {"cpu s here": round(here, 3), "spread %": round(spread(times), 1)}
        per_gb = here / (size / GB) / slowness
        yield Figure("find-kernel", f"{path.parent.name}/{path.name}", per_gb, "s/GB", None, facts, raw)
