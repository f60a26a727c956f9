"""The exception tree: raised low with numbers in hex, printed once by ``cli.main``.

``message`` says what is wrong and where, ``hint`` what the user can do about it.  Bulk code
(walks, page reads) returns masks and loss records instead of raising.
"""

from __future__ import annotations


class KdumpError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KdumpError):
    """The command line asks for something that cannot be meant."""

    exit_code = 2


class FormatError(KdumpError):
    """A file is not what it should be; ``file_offset`` is where it was noticed, if known."""

    def __init__(
        self, path: str, message: str, *, file_offset: int | None = None, hint: str | None = None
    ) -> None:
        where = path if file_offset is None else f"{path}: at file offset {file_offset:#x}"
        super().__init__(f"{where}: {message}", hint=hint)
        self.path = path
        self.file_offset = file_offset


class UnsupportedError(FormatError):
    """Recognised, but this version cannot read it."""


class CorruptDumpError(FormatError):
    """The file says something about itself that cannot be true."""

    def __init__(
        self, path: str, message: str, *, file_offset: int | None = None, hint: str | None = None
    ) -> None:
        hint = hint or "the file is damaged: copy it again from where it was made and compare checksums"
        super().__init__(path, message, file_offset=file_offset, hint=hint)


class ReadFailedError(CorruptDumpError):
    """The system could not read this part of a file (a bad sector, broken memory); ``why`` in its words."""

    def __init__(self, path: str, why: str, *, file_offset: int, hint: str) -> None:
        super().__init__(path, f"read failed: {why}", file_offset=file_offset, hint=hint)
        self.why = why


class FaultError(KdumpError):
    """Memory that was asked for is not there.  ``space`` is ``paddr`` or ``vaddr``."""

    def __init__(self, space: str, address: int, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"{space} {address:#x}: {why}", hint=hint)
        self.space = space
        self.address = address


class PageAbsentError(FaultError):
    """The dump does not contain this physical memory (filtered, truncated or never RAM)."""


class NotMappedError(FaultError):
    """The page tables have no translation; ``level`` and ``entry`` say where the walk ended."""

    def __init__(self, address: int, level: str, entry: int) -> None:
        super().__init__("vaddr", address, f"not mapped: {level} entry is {entry:#x}")
        self.level = level
        self.entry = entry


class IdentityError(KdumpError):
    """A fact about the kernel that is needed could not be found; ``key`` names it."""

    def __init__(self, key: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class MissingCodecError(KdumpError):
    """Something compressed cannot be read because the ``package`` that does it is not installed."""

    def __init__(self, package: str, message: str, install: str) -> None:
        super().__init__(message, hint=f"install it: {install}")
        self.package = package


class OutputError(KdumpError):
    """The result could not be written."""
