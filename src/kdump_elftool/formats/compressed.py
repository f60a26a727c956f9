"""Files that were compressed as a whole, as layers around whatever dump is in them."""

from __future__ import annotations

import logging
from functools import partial

from kdump_elftool.codecs.index import build_index
from kdump_elftool.codecs.outer import IndexedSource
from kdump_elftool.codecs.streams import STREAMS, Stream
from kdump_elftool.files import ByteSource
from kdump_elftool.formats.base import Layer, OpenOptions
from kdump_elftool.progress import progress
from kdump_elftool.safe_text import printable
from kdump_elftool.spool import Spool, spool_directory

log = logging.getLogger(__name__)


def open_compressed(stream: Stream, source: ByteSource, options: OpenOptions) -> ByteSource:
    """The contents of ``source``; what is wrong with it is in their ``warnings``.

    Raises CorruptDumpError, UnsupportedError, MissingCodecError, OutputError.
    """

    def spool() -> Spool:
        directory = options.spool_directory or spool_directory(None)
        log.warning(
            "%s: %s gives no way to begin in the middle: its contents are kept in a temporary file in %s",
            source.path,
            stream.name,
            printable(directory),
        )
        found = Spool(directory, f"the contents of {source.path}", "decompress it yourself")
        found.need(source.size)  # the contents will hardly take less
        return found

    with progress("decompressing", source.size, enabled=options.show_progress) as advance:
        index = build_index(source, stream, spool, advance)
    log.info(
        "%s: %d bytes of %s hold %d bytes, with %d points to begin at",
        source.path,
        source.size,
        stream.name,
        index.size,
        len(index.points),
    )
    return IndexedSource(source, stream, index)


LAYERS = tuple(Layer(stream.name, stream.probe, partial(open_compressed, stream)) for stream in STREAMS)
