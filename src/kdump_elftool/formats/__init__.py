"""The one way in: :func:`open_dump` finds out what a file is and opens it."""

from __future__ import annotations

from kdump_elftool.errors import FormatError, UnsupportedError, UsageError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import diskdump, elfcore
from kdump_elftool.formats.base import Dump, Format, Layer, OpenOptions
from kdump_elftool.formats.recognised import recognise

FORMATS: tuple[Format, ...] = (elfcore.FORMAT, diskdump.FORMAT)
LAYERS: tuple[Layer, ...] = ()
_HEAD = 64
_MOST_LAYERS = 4


def open_dump(
    file: ByteSource,
    fmt: str = "auto",
    options: OpenOptions | None = None,
    more: tuple[ByteSource, ...] = (),
) -> Dump:
    """Open ``file`` as ``fmt`` (``auto``: by content); ``more`` are the other files of a set.

    Raises FormatError for a file that is no dump, UnsupportedError for a known format that this
    version does not read, CorruptDumpError for one that contradicts itself, UsageError for several
    files that are no set.
    """
    options = options or OpenOptions()
    files = tuple(map(_bare, (file, *more)))
    head = files[0].read_at(0, _HEAD)
    for candidate in FORMATS:
        if candidate.name == fmt or (fmt == "auto" and candidate.probe(head)):
            if more and not candidate.sets:
                raise UsageError(
                    f"{len(files)} files are given, and the first is a whole dump ({candidate.name})",
                    hint="one dump is read at a time; only the parts of a split dump go together",
                )
            return candidate.open(files, options)
    if not head:
        raise FormatError(file.path, "the file is empty", hint="was the dump written at all?")
    known = recognise(head)
    if known:
        raise UnsupportedError(file.path, f"this is {known[0]}, which is not supported yet", hint=known[1])
    raise FormatError(
        file.path,
        f"not a dump: it begins with {head[:8].hex(' ')}",
        hint="an ELF core or a kdump-compressed dump is expected",
    )


def _bare(file: ByteSource) -> ByteSource:
    """The file without the layers around it."""
    for _ in range(_MOST_LAYERS):
        head = file.read_at(0, _HEAD)
        layer = next((layer for layer in LAYERS if layer.probe(head)), None)
        if layer is None:
            break
        file = layer.open(file)
    return file
