"""Bytes of a dump become one line of harmless ASCII."""

from __future__ import annotations

import os
import subprocess

import pytest

from kdump_elftool.safe_text import log_text, printable, shell_word


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        (b"swapper/0", "swapper/0"),
        (b"\x1b[2Jx", "\\x1b[2Jx"),
        (b"a\nb\r\t\0", "a\\x0ab\\x0d\\x09\\x00"),
        (b"\\x41", "\\\\x41"),
        (b"\xff\x80\x7f\x9b", "\\xff\\x80\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\U0001f600", "\\U0001f600"),
        ("\udce9", "\\udce9"),
        (b"", ""),
    ],
)
def test_printable(raw, safe):
    assert printable(raw) == safe


def test_no_two_inputs_look_alike():
    seen = {printable(bytes((first, second))) for first in range(256) for second in range(256)}
    assert len(seen) == 65536


def test_limit_is_on_the_input_and_shown():
    assert printable(b"x" * 10, limit=10) == "x" * 10
    assert printable(b"x" * 11, limit=10) == "x" * 10 + "..."
    assert len(printable(b"\x00" * 10**6)) < 20000


def test_log_text_keeps_what_dmesg_keeps():
    r"""Tabs and backslashes are common in logs (ACPI: \_SB); what else is not ASCII text shows as bytes."""
    assert log_text(b"ACPI: \\_SB.PCI0\ttab") == "ACPI: \\_SB.PCI0\ttab"
    assert log_text(b"\x1b[31m\r\n\x00\x7f\xe2\x80\xae") == r"\x1b[31m\x0d\x0a\x00\x7f\xe2\x80\xae"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/boot/vmlinux-6.1", "/boot/vmlinux-6.1"),
        ("", "''"),
        ("a b$(x)\\`", None),
        ("it's", None),
        ("\u00fcn\u00ef9 x", r"$'\303\274n\303\2579\040x'"),
        ("\udcff\udcfe'\\7", r"$'\377\376\047\1347'"),
        ("\x1b]0;title\x07\n", r"$'\033\1350\073title\007\012'"),
    ],
)
def test_shell_word(name, shown):
    """One harmless word, of which the shell makes the name again."""
    word = shell_word(name)
    assert word.isascii()
    assert word.isprintable()
    assert shown in (None, word)
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)
