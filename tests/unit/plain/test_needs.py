"""What a core tells gdb of its kernel: questions that are well formed, and asked once."""

from __future__ import annotations

import re

from kdump_elftool.kernel.facts import KINDS
from kdump_elftool.plain.needs import READERS, needs


def test_each_question_is_one_that_sources_can_answer():
    form = re.compile(rf"({'|'.join(KINDS)})\([A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\)")
    assert [question for question in needs() if not form.fullmatch(question)] == []
    assert all("." in question for question in needs() if question.startswith("OFFSET"))


def test_each_is_asked_once():
    assert len(set(needs())) == len(needs()) > 0
    assert all(set(reader.NEEDS) <= set(needs()) for reader in READERS)
