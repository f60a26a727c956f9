"""What is packed in a kernel image is tried up to a limit; tests/cli has the kernels that are found."""

from __future__ import annotations

import gzip

import pytest

from kdump_elftool.codecs.whole import Held
from kdump_elftool.kernel import boot_image
from kdump_elftool.kernel.boot_image import boot_images

BOMB = gzip.compress(bytes(1 << 20))
"""Zeros, which are no kernel."""


@pytest.fixture
def unpacked(monkeypatch):
    """How many bytes became of each stream that was tried."""
    sizes: list[int] = []
    original = boot_image.decompressed

    def counting(file, most, streams, shared=None):
        before = 0 if shared is None else shared.left
        try:
            return original(file, most, streams, shared)
        finally:
            if shared is not None:
                sizes.append(before - shared.left)

    monkeypatch.setattr(boot_image, "decompressed", counting)
    monkeypatch.setattr(boot_image, "_MOST_TOGETHER", (5 << 20) + 1000)
    return sizes


def test_streams_that_are_no_kernel_come_to_an_end(unpacked):
    data = b"no magic number ".ljust(64, b"\0") + BOMB * 20
    assert list(boot_images(Held("x", data))) == []
    assert sum(unpacked) == (5 << 20) + 1000
