"""The exception tree: exit codes, where and hint are kept, numbers in hex."""

from __future__ import annotations

import pytest

from kdump_elftool import errors
from kdump_elftool.errors import (
    CorruptDumpError,
    FaultError,
    FormatError,
    IdentityError,
    KdumpError,
    NotMappedError,
    OutputError,
    PageAbsentError,
    UnsupportedError,
    UsageError,
)


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        (UsageError, KdumpError), (FormatError, KdumpError), (UnsupportedError, FormatError),
        (CorruptDumpError, FormatError), (FaultError, KdumpError), (PageAbsentError, FaultError),
        (NotMappedError, FaultError), (IdentityError, KdumpError), (OutputError, KdumpError),
    ],
)  # fmt: skip
def test_tree(child, parent):
    assert issubclass(child, parent)


def test_only_usage_errors_exit_with_2():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KdumpError)
    ]
    assert len(kinds) >= 10
    assert [kind for kind in kinds if kind.exit_code != 1] == [UsageError]
    assert UsageError.exit_code == 2


def test_message_and_hint():
    error = KdumpError("what", hint="why")
    assert (str(error), error.message, error.hint) == ("what", "what", "why")
    assert KdumpError("what").hint is None


def test_format_error_says_where_in_hex():
    error = CorruptDumpError("a.core", "too short", file_offset=4096)
    assert "a.core" in str(error) and "0x1000" in str(error) and "too short" in str(error)
    assert (error.path, error.file_offset) == ("a.core", 4096)
    assert "offset" not in str(FormatError("a.core", "odd"))
    assert "0x0" in str(FormatError("a.core", "odd", file_offset=0))


def test_faults_name_their_address_space():
    fault = PageAbsentError("paddr", 0x5000, "not in the dump")
    assert (fault.space, fault.address) == ("paddr", 0x5000)
    assert str(fault) == "paddr 0x5000: not in the dump"
    unmapped = NotMappedError(0xFFFF888000000000, "pud", 0x80)
    assert (unmapped.space, unmapped.level, unmapped.entry) == ("vaddr", "pud", 0x80)
    assert "0xffff888000000000" in str(unmapped) and "pud" in str(unmapped) and "0x80" in str(unmapped)


def test_identity_error_names_its_key():
    assert IdentityError("BUILD-ID", "differs").key == "BUILD-ID"
