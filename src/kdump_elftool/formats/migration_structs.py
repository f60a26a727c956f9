"""The pieces a QEMU migration stream is made of, all big-endian, and a cursor that reads them in order.

Source: migration/savevm.c (``qemu_savevm_state_header``, ``save_section_header``,
``save_section_footer``, ``vmstate_configuration``, ``qemu_savevm_command_send``) and vmstate.c
(``vmstate_subsection_save``) of QEMU.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kdump_elftool.errors import CorruptDumpError, ReadFailedError, UnsupportedError
from kdump_elftool.files import ByteSource, readable_end
from kdump_elftool.safe_text import printable

MAGIC = b"QEVM"
VERSION = 3
PAGE = 4096
_WINDOW = 4 << 20
_FIRST_WINDOW = 1 << 16
_NEAR = 2 * PAGE
"""The next record begins so near to the end of a window, before or behind it."""
_MOST_CAPABILITIES = 64
_LONGEST_NAME = 256
"""Of a machine; QEMU's own are below 40 bytes."""


class Section(enum.IntEnum):
    """The byte that begins each section (migration/savevm.h, ``QEMU_VM_*``)."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


POSTCOPY_COMMANDS = range(4, 8)
"""``MIG_CMD_POSTCOPY_LISTEN`` to ``MIG_CMD_PACKAGED``: pages then come on request."""


class StreamEnds(Exception):  # noqa: N818  # no error: the caller says what is lost
    """The file ends before what is read next."""


class Cursor:
    """Reads a stream front to back through a window, a buffer that is filled anew each time.

    It grows to 4 MB while it goes on where it ended: what a window costs by itself is then spread over a
    thousand pages at least, and the processor's caches still hold much of it.

    What lies beyond ``limit`` (the end of the file, or its first lost byte) raises StreamEnds.
    """

    def __init__(self, file: ByteSource) -> None:
        self.file = file
        self.limit = min(readable_end(file, 0), file.size)
        self.at = 0
        self._base = 0
        self._window = bytearray()
        self._ahead = 0
        self.failure: str | None = None
        """Why the system cannot read what is at ``limit``."""

    def view(self, size: int) -> tuple[bytearray, int]:
        """A buffer, and the index in it from which ``size`` bytes of the stream can be read.

        The next call may put other bytes into it.
        """
        here = self.at - self._base
        if here >= 0 and here + size <= len(self._window):
            return self._window, here
        if self.at + size > self.limit:
            raise StreamEnds
        goes_on = self._ahead and abs(here - len(self._window)) <= _NEAR
        self._ahead = min(4 * self._ahead, _WINDOW) if goes_on else min(_FIRST_WINDOW, _WINDOW)
        room = max(min(self._ahead, self.limit - self.at), size)
        if room != len(self._window):
            self._window = bytearray(room)
        self._base = self.limit  # so that nothing is found in a window that could not be filled
        self._fill(size)
        self._base = self.at
        return self._window, 0

    def _fill(self, size: int) -> None:
        """The window; no more than ``size`` bytes of it where the system cannot read all of it."""
        try:
            self.file.read_into(self.at, memoryview(self._window))
        except ReadFailedError:
            self._window, self._ahead = bytearray(size), 0
            try:
                self.file.read_into(self.at, memoryview(self._window))
            except ReadFailedError as error:
                self.limit, self.failure = self.at, error.why
                raise StreamEnds from None

    def take(self, size: int) -> bytes:
        """The next bytes."""
        window, here = self.view(size)
        self.at += size
        return bytes(window[here : here + size])

    def skip(self, size: int) -> None:
        """Go over bytes that are not looked at here."""
        if self.at + size > self.limit:
            raise StreamEnds
        self.at += size

    def number(self, size: int) -> int:
        """The next unsigned integer."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> str:
        """A name behind its length in one byte, as text that is fit to be printed."""
        return printable(self.take(self.number(1)).decode("utf-8", "replace"))

    def corrupt(self, at: int, why: str) -> CorruptDumpError:
        """The error about the bytes at ``at``."""
        return CorruptDumpError(self.file.path, why, file_offset=at)

    def unsupported(self, at: int, why: str, hint: str) -> UnsupportedError:
        """The error about something at ``at`` that can be true."""
        return UnsupportedError(self.file.path, why, file_offset=at, hint=hint)


@dataclass(frozen=True)
class Configuration:
    """What the CONFIGURATION section says of the machine."""

    machine: str
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class SectionHeader:
    """A section's id; the device's name and version where the section begins a device (else None)."""

    id: int
    name: str | None
    version: int


def read_file_header(cursor: Cursor) -> None:
    """Magic and version.  Raises UnsupportedError for another version than 3."""
    cursor.skip(len(MAGIC))
    version = cursor.number(4)
    if version != VERSION:
        raise cursor.unsupported(
            4,
            f"this is a QEMU migration stream of version {version}, which is not supported",
            f"supported: {VERSION}",
        )


def read_configuration(cursor: Cursor) -> Configuration:
    """The section behind its type byte: the machine's name, then subsections."""
    at = cursor.at
    size = cursor.number(4)
    if not 0 < size <= _LONGEST_NAME:
        raise cursor.corrupt(at, f"a machine's name of {size} bytes")
    machine = printable(cursor.take(size).decode("utf-8", "replace"))
    capabilities: tuple[str, ...] = ()
    while cursor.take(1)[0] == Section.SUBSECTION:
        at = cursor.at
        name = cursor.name()
        cursor.skip(4)  # its version
        if name == "configuration/target-page-bits":
            _refuse_page_size(cursor)
        elif name == "configuration/capabilities":
            capabilities = _read_capabilities(cursor)
        elif name == "configuration/uuid":
            cursor.skip(16)
        else:
            raise cursor.unsupported(
                at, f"a subsection {name!r} of unknown length", "use QEMU's dump-guest-memory instead"
            )
    cursor.at -= 1
    return Configuration(machine, capabilities)


def _refuse_page_size(cursor: Cursor) -> None:
    at = cursor.at
    bits = cursor.number(4)
    if 1 << min(bits, 63) != PAGE:
        raise cursor.unsupported(
            at, f"pages of 2**{bits} bytes", "only streams of 4096-byte pages are supported"
        )


def _read_capabilities(cursor: Cursor) -> tuple[str, ...]:
    at = cursor.at
    count = cursor.number(4)
    if count > _MOST_CAPABILITIES:
        raise cursor.corrupt(at, f"{count} migration capabilities")
    return tuple(cursor.name() for _ in range(count))


def read_section_header(cursor: Cursor, kind: int) -> SectionHeader:
    """What follows the type byte of START, PART, END and FULL."""
    number = cursor.number(4)
    if kind not in (Section.START, Section.FULL):
        return SectionHeader(number, None, 0)
    name = cursor.name()
    cursor.skip(4)  # instance
    return SectionHeader(number, name, cursor.number(4))


def skip_command(cursor: Cursor) -> None:
    """A command behind its type byte.  Raises UnsupportedError for postcopy."""
    at = cursor.at
    command, size = cursor.number(2), cursor.number(2)
    if command in POSTCOPY_COMMANDS:
        raise cursor.unsupported(
            at, "the guest was moved by postcopy: its memory is not in here", "migrate without postcopy-ram"
        )
    cursor.skip(size)


def skip_footer(cursor: Cursor, section: int) -> None:
    """The footer of a section, which streams of machine types before 2.4 don't have."""
    at = cursor.at
    if cursor.take(1)[0] != Section.FOOTER:
        cursor.at = at
        return
    found = cursor.number(4)
    if found != section:
        raise cursor.corrupt(at, f"the footer of section {found} where section {section} ends")
