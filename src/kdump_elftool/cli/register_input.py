"""Registers of CPUs that a dump has otherwise than as notes, and ``--cpu-regs``."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace

from kdump_elftool.files import InputFile
from kdump_elftool.formats.base import Dump
from kdump_elftool.formats.register_text import read_registers
from kdump_elftool.kernel.saved_registers import is_cpu_note, with_register_notes

log = logging.getLogger(__name__)


def with_registers(dump: Dump, path: str | None, stack: ExitStack) -> tuple[Dump, list[InputFile]]:
    """The dump with register notes, by the file ``path`` if there is one, and the files opened for it.

    Raises KdumpError, UsageError.
    """
    if path is None:
        return with_register_notes(dump), []
    file = stack.enter_context(InputFile.open(path))
    given = read_registers(file)
    log.info("registers of %d CPUs from --cpu-regs %s", len(given), file.path)
    if dump.cpu_registers or any(map(is_cpu_note, dump.notes)):
        log.info("the registers in the dump itself are not used: --cpu-regs goes before them")
    return with_register_notes(replace(dump, cpu_registers=given)), [file]
