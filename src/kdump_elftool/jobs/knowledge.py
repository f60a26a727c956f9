"""Everything that can be known of a dump's kernel, from all that is at hand, in order of trust.

The ``-e`` file, VMCOREINFO, the kernel's own tables inside the dump, the vmlinux.
"""

from __future__ import annotations

from kdump_elftool.formats.base import Dump
from kdump_elftool.jobs.kernel import Kernel
from kdump_elftool.kernel.facts import Knowledge


def knowledge(dump: Dump, kernel: Kernel) -> Knowledge:
    """The sources for one dump; those that cost something are opened when they are asked."""
    del dump
    return Knowledge((kernel.info,))
