"""Which kernel a dump holds, and how its addresses translate.

Everything is taken from the dump itself on stock kernels: the page-table root from
SYMBOL(swapper_pg_dir) and phys_base, the number of levels from NUMBER(pgtable_l5_enabled), each
confirmed by translating a known address of the kernel image.  Features are probed; the kernel's
version number is never asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.addr import MASK64, NO_RANGES
from kdump_elftool.arch.base import Architecture, PagingForm
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.qemu_notes import qemu_cpus
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME, VmcoreInfo, parse
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.safe_text import printable

_MOST_TABLES = 64
"""Of those that CPUs were using; one that maps the kernel is enough."""
_NOISE_WORDS = 256
_NOISE_MARGIN = 0.05
"""Ten times the deviation of 16,384 random bits."""


@dataclass(frozen=True)
class Root:
    """A possible top table, and the forms it may have, most likely first.

    One that was only ``met`` is believed if a known address confirms it, but not for lack of a better one.
    """

    fact: Fact
    forms: tuple[PagingForm, ...]
    met: bool = False

    @property
    def paddr(self) -> int:
        """Where it lies."""
        return int(self.fact.value)


MISREAD = ", misread by that kernel (lib/buildid.c)"


@dataclass(frozen=True)
class KernelIdentity:
    """A kernel and the form of its page tables.  ``pgt_root`` is a physical address.

    ``verified`` is true when a known address of the kernel image translated to where it must lie.
    """

    arch: Architecture
    release: str | None
    build_id: bytes | None
    form: PagingForm
    pgt_root: int
    verified: bool
    stext: int | None
    phys_base: int | None
    kaslr_offset: int | None
    image_window: tuple[int, int]
    facts: tuple[Fact, ...]


def dump_vmcoreinfo(dump: Dump) -> VmcoreInfo | None:
    """The dump's VMCOREINFO note, parsed; None when it has none (or an empty one)."""
    for note in dump.notes:
        if note.name == NOTE_NAME and isinstance(note.desc, bytes):
            info = parse(note.desc)
            if info.values:
                return info
    return None


def identify(dump: Dump, arch: Architecture, info: VmcoreInfo, pgt_root: int | None) -> KernelIdentity:
    """Find root and form of the page tables.  ``pgt_root`` is the user's ``-P``.

    Raises IdentityError when no root is known or none of the possible ones can be read.
    """
    stext = info.symbol("_stext")
    forms = arch.forms(info, dump.kind.order)
    roots = (
        [Root(Fact("pgt_root", pgt_root, "-P"), forms)]
        if pgt_root is not None
        else list(_roots(dump, arch, info, forms))
    )
    root, form, verified = _choose(dump, arch, info, roots)
    facts = [
        root,
        Fact("paging", form.name, "a kernel address translates" if verified else "assumed"),
        *_noted(info),
    ]
    if form.ignored_bits and not info.number("sme_mask"):
        facts.append(Fact("sme_mask", form.ignored_bits, "the page tables"))
    return KernelIdentity(
        arch=arch,
        release=_text(info, "OSRELEASE"),
        build_id=info.build_id,
        form=form,
        pgt_root=int(root.value),
        verified=verified,
        stext=stext,
        phys_base=info.number("phys_base"),
        kaslr_offset=info.kaslr_offset,
        image_window=arch.image_window(info),
        facts=tuple(facts),
    )


def kaslr_offset_by(identity: KernelIdentity, vmlinux: Vmlinux | None) -> Fact | None:
    """How far the running kernel lies above its link address: _stext decides, then KERNELOFFSET."""
    linked = vmlinux.symbols.get("_stext") if vmlinux else None
    if identity.stext is not None and linked is not None:
        offset = (identity.stext - linked) & (MASK64 >> (64 - identity.arch.bits))
        return Fact("kaslr_offset", offset, "SYMBOL(_stext) against vmlinux")
    if identity.kaslr_offset is not None:
        return Fact("kaslr_offset", identity.kaslr_offset, "KERNELOFFSET")
    return None


def check_same_kernel(info: VmcoreInfo, vmlinux: Vmlinux, arch: Architecture) -> str | None:
    """Why ``vmlinux`` is not the dump's kernel, or None when nothing contradicts it."""
    if vmlinux.e_machine != arch.e_machine:
        return f"it is for another machine (ELF machine {vmlinux.e_machine}, the dump has {arch.e_machine})"
    build_id, release = info.build_id, info.text("OSRELEASE")
    if build_id is not None and vmlinux.build_id is not None:
        if build_id == vmlinux.build_id:
            return None
        return f"build id {vmlinux.build_id.hex()}, the dump has {build_id.hex()}"
    begins = info.build_id_start
    if begins and vmlinux.build_id is not None and not vmlinux.build_id.startswith(begins):
        return f"build id {vmlinux.build_id.hex()}, that of the dump begins with {begins.hex()}"
    if release is not None and vmlinux.release is not None and release != vmlinux.release:
        return f"release {printable(vmlinux.release)}, the dump has {printable(release)}"
    return None


def same_kernel_by(info: VmcoreInfo, vmlinux: Vmlinux) -> str | None:
    """What shows that a ``vmlinux`` that was checked is the dump's kernel; None when nothing does."""
    if info.build_id is not None and info.build_id == vmlinux.build_id:
        return f"build id {info.build_id.hex()}"
    release = info.text("OSRELEASE")
    return f"release {printable(release)}" if release is not None and release == vmlinux.release else None


def _roots(dump: Dump, arch: Architecture, info: VmcoreInfo, forms: tuple[PagingForm, ...]) -> Iterator[Root]:
    """Possible roots, best first."""

    def root(paddr: int, source: str) -> Root:
        return Root(Fact("pgt_root", paddr, source), forms)

    patched = info.address("phys_pgd_ptr")
    if patched is not None:
        source = info.source("ADDRESS(phys_pgd_ptr)")
        yield root(patched, "ADDRESS(phys_pgd_ptr)" if source == "VMCOREINFO" else source)
    symbol = info.symbol("swapper_pg_dir")
    for paddr in () if symbol is None else arch.image_paddrs(info, symbol, dump.memory.declared):
        yield root(paddr, f"SYMBOL(swapper_pg_dir) {arch.image_source}")
    yield from _running(dump, arch, info, symbol)
    if symbol is None:
        return
    claimed = dump.claimed
    inside = (claimed.vaddr <= np.uint64(symbol)) & (np.uint64(symbol) - claimed.vaddr < claimed.size)
    for at in np.flatnonzero(inside).tolist():
        paddr = int(claimed.paddr[at]) + symbol - int(claimed.vaddr[at])
        yield root(paddr, "SYMBOL(swapper_pg_dir) and the dump's PT_LOADs")


def _running(dump: Dump, arch: Architecture, info: VmcoreInfo, symbol: int | None) -> Iterator[Root]:
    """The tables that the CPUs were using: the kernel's own by way of a process's, else that itself."""
    tables: dict[int, PagingForm] = {}
    for registers in qemu_cpus(dump.notes):
        tables |= arch.running_tables(info, registers)
    for table, form in itertools.islice(tables.items(), _MOST_TABLES):
        paddr, source = table, "CR3"
        if symbol is not None:
            try:
                paddr = translate(dump.memory, form, table, symbol).paddr
            except FaultError:
                continue
            source = "SYMBOL(swapper_pg_dir) by way of CR3"
        yield Root(Fact("pgt_root", paddr, f"{source} in QEMU's note"), (form,), met=True)


def _choose(
    dump: Dump, arch: Architecture, info: VmcoreInfo, roots: list[Root]
) -> tuple[Fact, PagingForm, bool]:
    for root in roots:
        for form in _best_first(dump, root):
            if _confirms(dump, arch, info, root.paddr, form):
                return root.fact, form, True
    sealed = _sealed(dump, info, roots)
    if sealed is not None:
        raise sealed
    roots = [root for root in roots if not root.met]
    if not roots:
        raise IdentityError(
            "SYMBOL(swapper_pg_dir)",
            "the page-table root is not known: VMCOREINFO lacks SYMBOL(swapper_pg_dir), or what places it",
            hint="give its physical address with -P, or the missing lines in a file with -e",
        )
    readable = [root for root in roots if _readable(dump, root.paddr, root.forms[0])]
    if not readable:
        tried = ", ".join(f"{root.fact.shown()} by {root.fact.source}" for root in roots)
        raise IdentityError(
            "pgt_root",
            f"the top page table cannot be read ({tried}): its page is not in the dump",
            hint=dump.hint("give its physical address with -P if you know a better one"),
        )
    return readable[0].fact, readable[0].forms[0], False


def _sealed(dump: Dump, info: VmcoreInfo, roots: list[Root]) -> IdentityError | None:
    """The error about memory that is in the dump as its encryption left it; None where nothing shows that."""
    noise = [root for root in roots if _is_noise(dump, root.paddr, root.forms[0])]
    if not noise:
        return None
    told = [f"the page table at {noise[0].fact.shown()} ({noise[0].fact.source}) is noise"]
    mask = info.number("sme_mask")
    if mask:
        told.append(f"{info.source('NUMBER(sme_mask)')} has the encryption mask {mask:#x}")
    bits = [form.ignored_bits for root in noise if root.met for form in root.forms if form.ignored_bits]
    if bits and not mask:
        told.append(f"the CPUs' CR3 has the encryption bit {bits[0].bit_length() - 1}")
    if len(told) > 1:
        why = f"this memory is encrypted (AMD SEV or SME): {', and '.join(told)}"
    else:
        why = f"{told[0]}: this memory is encrypted (AMD SEV, Intel TDX), or was overwritten"
    return IdentityError(
        "pgt_root",
        why,
        hint="what is encrypted nobody but the guest itself can read: have it take the dump (kdump)",
    )


def _is_noise(dump: Dump, root: int, form: PagingForm) -> bool:
    """Whether a table is there that looks like ciphertext.

    No entry twice, none of 0, half of all bits set: of tables that is never true.
    """
    block, readable = dump.memory.gather(np.array([root], dtype=np.uint64), form.levels[0].table_size)
    words = np.sort(block[0].view(np.uint64))
    if not readable[0] or len(words) < _NOISE_WORDS or not words[0] or np.any(words[1:] == words[:-1]):
        return False
    return abs(float(np.unpackbits(block[0]).mean()) - 0.5) < _NOISE_MARGIN


def _best_first(dump: Dump, root: Root) -> tuple[PagingForm, ...]:
    """The forms of a root, by how many entries look right in them if that can be said."""
    if len(root.forms) < 2 or root.forms[0].fits is None:
        return root.forms
    # entries found with fewer levels may belong to a table behind a top one that is smaller
    rated = [
        (form.fits(form, dump.memory, root.paddr) if form.fits else 0, len(form.levels), form)
        for form in root.forms
    ]
    return tuple(form for _, _, form in sorted(rated, key=lambda each: (-each[0], -each[1])))


def _confirms(dump: Dump, arch: Architecture, info: VmcoreInfo, root: int, form: PagingForm) -> bool:
    """Whether a known address of the image translates to where it must lie.

    Without one it must do that anything is mapped where the image has to be.
    """
    vaddr = info.symbol("_stext") or info.symbol("swapper_pg_dir")
    if vaddr is None:
        low, high = (form.raw(edge) for edge in arch.image_window(info))
        return bool(len(walk(dump.memory, form, root, Window(low, high)).mappings))
    if not form.is_canonical(vaddr):
        return False
    try:
        found = translate(dump.memory, form, root, vaddr).paddr
    except FaultError:
        return False
    if form.image_distance is not None and vaddr - found != form.image_distance:
        return False
    return _is_there(dump, arch, info, form, root, vaddr, found)


def _is_there(
    dump: Dump, arch: Architecture, info: VmcoreInfo, form: PagingForm, root: int, vaddr: int, found: int
) -> bool:
    """Whether ``vaddr`` of the image must lie at ``found``; true as well where nothing is known of that.

    Where only the dump's RAM tells, the kernel's own table is looked at by its address: that is in the
    same piece of memory, and maps ``vaddr`` and itself to there, too.
    """
    certain = arch.image_paddrs(info, vaddr, NO_RANGES)
    symbol = info.symbol("swapper_pg_dir")
    if certain or symbol is None or not arch.image_paddrs(info, vaddr, dump.memory.declared):
        return not certain or found in certain
    try:
        own = translate(dump.memory, form, root, symbol).paddr
        again = [translate(dump.memory, form, own, address).paddr for address in (vaddr, symbol)]
    except FaultError:
        return False
    return again == [found, own] and found - own == vaddr - symbol


def _readable(dump: Dump, root: int, form: PagingForm) -> bool:
    _, readable = dump.memory.gather(np.array([root], dtype=np.uint64), form.levels[0].table_size)
    return bool(readable[0])


def _text(info: VmcoreInfo, key: str) -> str | None:
    value = info.text(key)
    return None if value is None else printable(value)


def _noted(info: VmcoreInfo) -> Iterator[Fact]:
    for name, key in (("release", "OSRELEASE"), ("build_id", "BUILD-ID")):
        text = info.text(key)
        if text is not None:
            misread = key == "BUILD-ID" and info.build_id_start is not None
            yield Fact(name, printable(text), info.source(key) + (MISREAD if misread else ""))
    for name in ("phys_base", "sme_mask"):
        value = info.number(name)
        if value is not None:
            yield Fact(name, value, info.source(f"NUMBER({name})"))
