"""What a core tells gdb of its kernel: questions that are well formed, and asked once."""

from __future__ import annotations

import re

import pytest

from kdump_elftool.kernel.facts import KINDS
from kdump_elftool.plain.needs import READERS, needs
from tests.builders import modules as module_memory
from tests.builders import processes
from tests.builders.page_array import MODELS, make_array
from tests.builders.printk import RingWriter, Said, char_log, record_log
from tests.builders.recording import USES, asked_by, beyond_needs
from tests.builders.structures import Memory, make_xarray
from tests.builders.tasks import LAYOUTS, PlainTarget, make_tasks


def test_each_question_is_one_that_sources_can_answer():
    form = re.compile(rf"({'|'.join(KINDS)})\([A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\)")
    assert [question for question in needs() if not form.fullmatch(question)] == []
    assert all("." in question for question in needs() if question.startswith("OFFSET"))


def test_each_is_asked_once():
    assert len(set(needs())) == len(needs()) > 0
    assert all(set(reader.NEEDS) <= set(needs()) for reader in READERS)


def kernels():
    """Each form in which a kernel keeps something, and one that keeps nothing."""
    writer = RingWriter()
    writer.push(Said(b"hello", 1))
    yield "ring", writer.image()
    yield "records", record_log([Said(b"hello", 1)])
    yield "characters", char_log(b"<6>hello\n")
    for layout in LAYOUTS:
        memory = make_tasks(layout, [1, 3])
        yield f"tasks {layout}", PlainTarget(memory.virtual(), memory.info, "<", 8)
    info = make_tasks("both", [1]).info
    old = {key.replace("__state", "state"): value for key, value in info.values.items()}
    yield "old states", PlainTarget(make_tasks("both", [1]).virtual(), type(info)(old), "<", 8)
    for layout in module_memory.LAYOUTS:
        made = module_memory.make_modules(layout, module_memory.Made(b"ext4"), module_memory.Made(b"nbd"))
        yield f"modules {layout}", made.target()
    for form in processes.FORMS:
        yield f"process {form}", processes.make_process(form)
    for model in MODELS:
        yield f"pages {model}", make_array(model, 8)[0]
    for form in ("xarray", "shift", "path", "height"):
        trees = Memory()
        trees.keys["SYMBOL(root)"] = make_xarray(trees, form, {1: 0x1000, 5000: 0x2000})
        yield f"tree {form}", trees


KERNELS = dict(kernels())


def test_each_reader_is_tried():
    assert set(READERS) == set(USES)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__.rpartition(".")[2])
def test_readers_ask_what_they_say_they_need(reader):
    """A question that no core answers would send gdb through all types of a vmlinux.

    No kernel makes a reader ask all that it may, but these together most of it.
    """
    asked = {name: asked_by(reader, kernel) for name, kernel in KERNELS.items()}
    beyond = {name: beyond_needs(reader, questions) for name, questions in asked.items()}
    assert {name: questions for name, questions in beyond.items() if questions} == {}
    assert len(set(reader.NEEDS) & set().union(*asked.values())) >= 0.4 * len(reader.NEEDS)
