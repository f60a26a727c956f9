"""The one way in: :func:`open_dump` finds out what a file is and opens it."""

from __future__ import annotations

from dataclasses import replace

from kdump_elftool.errors import CorruptDumpError, FormatError, UnsupportedError, UsageError
from kdump_elftool.files import ByteSource
from kdump_elftool.formats import (
    avml,
    compressed,
    diskdump,
    elfcore,
    flattened,
    libvirt,
    lime,
    migration,
    oldmem,
    raw,
    vmware,
)
from kdump_elftool.formats.base import Dump, Format, Layer, OpenOptions
from kdump_elftool.formats.recognised import recognise

FORMATS: tuple[Format, ...] = (
    elfcore.FORMAT,
    diskdump.FORMAT,
    lime.FORMAT,
    avml.FORMAT,
    migration.FORMAT,
    vmware.FORMAT,
    oldmem.FORMAT,
    raw.FORMAT,
)
LAYERS: tuple[Layer, ...] = (*compressed.LAYERS, flattened.LAYER, libvirt.LAYER)
INTYPES = ("auto", *(known.name for known in FORMATS), flattened.LAYER.name, libvirt.LAYER.name)
"""What ``-I`` takes."""
_HEAD = 512
_MOST_LAYERS = 4


def open_dump(
    file: ByteSource,
    fmt: str = "auto",
    options: OpenOptions | None = None,
    more: tuple[ByteSource, ...] = (),
) -> Dump:
    """Open ``file`` as ``fmt`` (``auto``: by content); ``more`` are the other files of a set.

    The name of a layer as ``fmt`` says that it must be there; the dump in it is found by content.

    Raises FormatError for a file that is no dump, UnsupportedError for a known format that this
    version does not read, CorruptDumpError for one that contradicts itself, UsageError for several
    files that are no set.
    """
    options = options or OpenOptions()
    wanted = next((layer for layer in LAYERS if layer.name == fmt), None)
    fmt = "auto" if wanted else fmt
    layered = all(known.layered for known in FORMATS if known.name == fmt)
    first = _bare(file, options, wanted) if layered else file
    head = first.read_at(0, _HEAD)
    for candidate in FORMATS:
        if candidate.name == fmt or (fmt == "auto" and candidate.probe(head)):
            if more and not candidate.sets:
                raise UsageError(
                    f"{1 + len(more)} files are given, and the first is a whole dump ({candidate.name})",
                    hint="one dump is read at a time; only the parts of a split dump go together "
                    "(a vmlinux is given with -m)",
                )
            bare = layered and candidate.members_layered
            files = (first, *(_bare(each, options, wanted) if bare else each for each in more))
            said = tuple(f"{each.path}: {warning}" for each in files for warning in each.warnings)
            try:
                dump = candidate.open(files, options)
            except CorruptDumpError as error:
                error.hint = said[0] if said else error.hint  # the cause, most likely
                raise
            return replace(dump, warnings=said + dump.warnings) if said else dump
    raise _no_dump(file, first, head)


def _no_dump(file: ByteSource, contents: ByteSource, head: bytes) -> FormatError:
    """What to say of a file that begins like no dump; ``contents``: without the layers around it."""
    if not head and contents.size:
        hint = next(iter(contents.warnings), None)
        return CorruptDumpError(contents.path, "its beginning is missing", hint=hint)
    if not head:
        return FormatError(file.path, "the file is empty", hint="was the dump written at all?")
    known = recognise(head)
    if known:
        return UnsupportedError(file.path, f"this is {known[0]}, which is not supported yet", hint=known[1])
    if file.path.endswith(vmware.MEMORY_SUFFIX):
        return vmware.no_state(file)
    return FormatError(
        file.path,
        f"not a dump: it begins with {head[:8].hex(' ')}",
        hint="an ELF core or a kdump-compressed dump is expected; a flat file of memory is read with -I raw",
    )


def layer_around(file: ByteSource) -> str | None:
    """Name of the outermost layer around a dump; None when there is none."""
    layer = _layer(file)
    return layer.name if layer else None


def _layer(file: ByteSource) -> Layer | None:
    head = file.read_at(0, _HEAD)
    return next((layer for layer in LAYERS if layer.probe(head)), None)


def _bare(file: ByteSource, options: OpenOptions, wanted: Layer | None) -> ByteSource:
    """The file without the layers around it; ``wanted`` must be one of them."""
    met: list[Layer] = []
    while (layer := _layer(file)) is not None:
        if len(met) == _MOST_LAYERS:
            raise FormatError(
                file.path,
                f"another {layer.name} stream is inside the {_MOST_LAYERS} around it",
                hint="no dump is packed like that; decompress it yourself to see what it is",
            )
        file = layer.open(file, options)
        met.append(layer)
    if wanted and wanted not in met:
        raise FormatError(
            file.path,
            f"this is no {wanted.name} stream",
            hint="without -I the format is found from the content",
        )
    return file
