"""What taints a kernel or a module, by its letter.

Reference: kernel/panic.c (taint_flags), Documentation/admin-guide/tainted-kernels.rst.  New ones are added at
the end; what an old kernel does not have, it does not set.
"""

from __future__ import annotations

from kdump_elftool.plain.target import Target, unsigned

LETTERS = "PFSRMBUDAWCIOELKXTNJ"
"""By bit: P proprietary module, F module forced, S out of specification, R unload forced, M machine check,
B bad page, U by user space, D died, A ACPI table, W warned, C staging driver, I firmware workaround,
O out-of-tree module, E unsigned module, L soft lockup, K live patched, X for distributions, T struct
randomisation, N in-kernel test, J fwctl."""
NEEDS = ("SYMBOL(tainted_mask)",)
"""What this asks of a kernel."""


def taint_letters(taints: int) -> str:
    """The letters of the bits that are set."""
    return "".join(letter for bit, letter in enumerate(LETTERS) if taints >> bit & 1)


def kernel_taints(target: Target) -> int | None:
    """The bits of the running kernel; None where it is not known.  Raises FaultError."""
    vaddr = target.symbol("tainted_mask")
    return None if vaddr is None else unsigned(target, vaddr, target.word)
