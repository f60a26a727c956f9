"""The one way in: :func:`open_dump` finds out what a file is and opens it."""

from __future__ import annotations

from kdump_elftool.errors import FormatError, UnsupportedError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import elfcore
from kdump_elftool.formats.base import Dump, Format, OpenOptions
from kdump_elftool.formats.recognised import recognise

FORMATS: tuple[Format, ...] = (elfcore.FORMAT,)
_HEAD = 64


def open_dump(file: InputFile, fmt: str = "auto", options: OpenOptions | None = None) -> Dump:
    """Open ``file`` as ``fmt`` (``auto``: by content).

    Raises FormatError for a file that is no dump, UnsupportedError for a known format that this
    version does not read, CorruptDumpError for one that contradicts itself.
    """
    options = options or OpenOptions()
    head = file.read_at(0, _HEAD)
    for candidate in FORMATS:
        if candidate.name == fmt or (fmt == "auto" and candidate.probe(head)):
            return candidate.open(file, options)
    if not head:
        raise FormatError(file.path, "the file is empty", hint="was the dump written at all?")
    known = recognise(head)
    if known:
        raise UnsupportedError(file.path, f"this is {known[0]}, which is not supported yet", hint=known[1])
    raise FormatError(
        file.path, f"not a dump: it begins with {head[:8].hex(' ')}", hint="an ELF core is expected"
    )
