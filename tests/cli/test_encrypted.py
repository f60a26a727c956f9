"""Memory that AMD's processors encrypt: tables with the encryption bit, and dumps of ciphertext."""

from __future__ import annotations

import json
from random import Random

import pytest

from tests.builders.check import check_pages
from tests.builders.kernel import SMALL, SyntheticKernel, make_kernel
from tests.builders.looking import look
from tests.builders.notes import qemu_cpu
from tests.cli.test_find_kernel import dump_of

SEED = 20261129
UNTOLD = {"NUMBER(sme_mask)": None}


def encrypted(kernel: SyntheticKernel) -> SyntheticKernel:
    """As the host sees the memory of an SEV guest."""
    random = Random(SEED)
    for start, end in kernel.spec.ram:
        kernel.ram.write(start, random.randbytes(end - start))
    return kernel


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("bit", [47, 51])
@pytest.mark.parametrize("vmcoreinfo", [{}, UNTOLD], ids=["told", "before v5.0"])
def test_readable_memory_with_the_bit(tovelf, levels, bit, vmcoreinfo):
    """A dump by kexec: the contents are plain, the table entries have the bit, said or not."""
    kernel = make_kernel(SMALL, levels=levels, sme_mask=1 << bit, vmcoreinfo=vmcoreinfo)
    result = tovelf(kernel.dump())
    assert (result.code, result.err) == (0, "")
    check_pages(result.core, kernel)
    source = "VMCOREINFO" if not vmcoreinfo else "the page tables"
    (summary,) = (desc for name, kind, desc in result.core.notes() if (name, kind) == ("kdump-elftool", 1))
    facts = json.loads(summary)["facts"]
    (fact,) = (fact for fact in facts if fact["name"] == "sme_mask")
    assert (int(fact["value"], 0), fact["source"]) == (1 << bit, source)


@pytest.mark.parametrize("bit", [47, 51])
def test_ciphertext(tovelf, tmp_path, capfd, bit):
    image = encrypted(make_kernel(SMALL, sme_mask=1 << bit)).dump()
    result = tovelf(image)
    assert result.code == 1
    assert "encrypted (AMD SEV or SME)" in result.err
    assert f"encryption mask {1 << bit:#x}" in result.err
    assert "nobody but the guest itself" in result.err
    assert "encrypted (AMD SEV or SME)" in look(tmp_path, capfd, "info", image).err


def test_ciphertext_of_which_nothing_is_told(tovelf):
    result = tovelf(encrypted(make_kernel(SMALL)).dump())
    assert (result.code, "is noise" in result.err, "or was overwritten" in result.err) == (1, True, True)


@pytest.mark.parametrize("bit", [47, 51])
def test_only_the_cpus_tell(tovelf, bit):
    """QEMU's note has CR3 as the guest set it, with the bit."""
    kernel = encrypted(make_kernel(SMALL, style="qemu", noted=False, sme_mask=1 << bit))
    notes = [note for note in kernel.notes() if note.name != "QEMU"]
    notes.append(qemu_cpu(kernel.tables.root | 1 << bit, kernel.registers(0)))
    result = tovelf(dump_of(kernel, notes=notes))
    assert result.code == 1
    assert f"CR3 has the encryption bit {bit}" in result.err


def test_tables_that_are_damaged_otherwise(tovelf):
    """A table of zeros, or of one entry over and over, is no ciphertext."""
    for word in (bytes(8), b"\x63\x50\x12\x00\x00\x00\x00\x80"):
        kernel = make_kernel(SMALL)
        kernel.ram.write(kernel.tables.root, word * 512)
        assert "encrypted" not in tovelf(kernel.dump()).err
