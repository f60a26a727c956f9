"""Commands that look at a dump and write nothing: run in process, with the manners of every run checked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kdump_elftool.cli.main import main
from tests.builders.descriptors import leaked, open_descriptors
from tests.builders.kernel import LINK_TEXT, SMALL, KernelSpec, SyntheticKernel, make_kernel
from tests.builders.printk import LogImage
from tests.cli.conftest import Result

LOG_AT = 0x300000
"""Where in the synthetic kernel's image its log lies."""


def log_base(spec: KernelSpec = SMALL) -> int:
    """The address to build a log at."""
    return LINK_TEXT + spec.kaslr_offset + LOG_AT


def kernel_with_log(image: LogImage, spec: KernelSpec = SMALL, **keys: str | None) -> SyntheticKernel:
    """A synthetic kernel that holds ``image``, which was built at :func:`log_base`."""
    kernel = make_kernel(replace(spec, vmcoreinfo={**image.keys, **keys}))
    for vaddr, data in image.memory:
        kernel.ram.write(vaddr - kernel.text_vaddr + spec.text_paddr, bytes(data))
    return kernel


def look(tmp_path: Path, capfd, command: str, image: bytes | Path, *options: str) -> Result:
    """Run ``command`` on a dump: no traceback, no control characters, nothing written."""
    dump = image if isinstance(image, Path) else tmp_path / "dump"
    if isinstance(image, bytes):
        dump.write_bytes(image)
    before = set(os.listdir(tmp_path))
    descriptors = open_descriptors()
    code = main([command, str(dump), *options])
    captured = capfd.readouterr()
    result = Result(code, captured.out, captured.err, dump)
    for word in ("Traceback", "internal error", "RuntimeWarning"):
        assert word not in result.err, result.err
    assert not [char for char in captured.out + captured.err if not " " <= char <= "~" and char not in "\n\t"]
    assert (
        len(result.lines("error"))
        == len(result.lines("hint"))
        == (code in (1, 2) and "--strict" not in options)
    )
    assert set(os.listdir(tmp_path)) == before
    assert not leaked(descriptors), "a descriptor leaked"
    return result
