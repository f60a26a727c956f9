"""Kernels found by their vmlinux: linux_banner in physical memory says where the image lies.

The image is one piece of physical memory, so the banner's place is that of every symbol.  The top
page table among them maps the banner at some address; that is the run-time one.  Memory may hold any
number of copies: the page cache's of the vmlinux, what a decompressor left behind, the image at its
link address of a kernel that moved itself.  So each is confirmed: init_uts_ns names the release, the
tables translate the kernel's text to where it must be, init_task is called swapper and its list of
tasks comes back to it.

References: init/version.c (linux_banner, init_uts_ns), init/init_task.c, include/linux/utsname.h.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from kdump_elftool.addr import MASK64, u64
from kdump_elftool.arch.base import Architecture, PagingForm
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.errors import FaultError, IdentityError, PageAbsentError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.extra import laid_over
from kdump_elftool.kernel.facts import Fact, Knowledge
from kdump_elftool.kernel.find import LONGEST, Wanted
from kdump_elftool.kernel.identity import KernelIdentity, identify
from kdump_elftool.kernel.image_facts import image_facts, said_by
from kdump_elftool.kernel.vmcoreinfo import VmcoreInfo, as_text, override
from kdump_elftool.kernel.vmlinux import Vmlinux
from kdump_elftool.kernel.vmlinux_source import VmlinuxSymbols

log = logging.getLogger(__name__)

_UTSNAME = 6 * 65 + 16
"""struct new_utsname, and what may stand before it in struct uts_namespace."""
_TASK_SIZE = 16384
"""No task_struct is larger; its name is looked for where the offset is not known."""
_MOST_COPIES = 64
"""Of those in whose init_uts_ns the release is."""
_AT_ONCE = 4096
_PAGE = 4096
_MOST_PLACES = 8
"""At which tables may map one copy."""
FOUND = "linux_banner of the vmlinux, found in memory"


@dataclass(frozen=True)
class Image:
    """One kernel: where its banner lies, how far it is from its link address, whether it has run.

    ``info`` is what VMCOREINFO would say of the place alone.  ``started`` means that there is more than one
    task.
    """

    banner: int
    kaslr_offset: int
    info: VmcoreInfo
    identity: KernelIdentity
    started: bool


@dataclass(frozen=True)
class ImageSearch:
    """Finds the kernels of one vmlinux.  ``known`` is what that says, at link-time addresses."""

    dump: Dump
    arch: Architecture
    vmlinux: Vmlinux
    known: Knowledge
    extra: VmcoreInfo = field(default_factory=lambda: VmcoreInfo({}))

    @property
    def wanted(self) -> Wanted | None:
        """What to look for in memory; None when the vmlinux does not have it."""
        banner, vaddr = self.vmlinux.banner, self._link("linux_banner")
        if not banner or vaddr is None or len(banner) > LONGEST:
            return None
        return Wanted(banner, vaddr % _PAGE)  # images begin with a page

    def images(self, places: tuple[int, ...]) -> list[Image]:
        """The kernels whose banners are at ``places``, confirmed.  Those that never ran, if no other did."""
        release = (self.vmlinux.release or "").encode("latin-1")
        copies = self._named(places, release)
        log.debug("linux_banner: %d places, init_uts_ns beside %d of them", len(places), len(copies))
        found: dict[int, Image] = {}
        for banner in copies[:_MOST_COPIES]:
            for image in self._judged(banner):
                found.setdefault(image.identity.pgt_root, image)
        started = [image for image in found.values() if image.started]
        return started or list(found.values())

    def anchor(self) -> tuple[int, int] | None:
        """Link-time addresses of linux_banner and the top table; None when one is not known."""
        symbol = next((name for name in self.arch.root_symbols if self._link(name) is not None), None)
        banner, root = self._link("linux_banner"), self._link(symbol) if symbol else None
        return None if banner is None or root is None else (banner, root)

    def doubt(self, places: tuple[int, ...]) -> str:
        """Why there is no kernel of this vmlinux."""
        if self.wanted is None:
            return f"{self.vmlinux.path} has no linux_banner by which its kernel could be found"
        if not places:
            return f"the linux_banner of {self.vmlinux.path} is nowhere in memory"
        more = f" and {len(places) - 1} other places" if len(places) > 1 else ""
        return (
            f"the linux_banner of {self.vmlinux.path} is at {places[0]:#x}{more}, but no kernel is around it "
            "whose page tables lead there"
        )

    def described(self, image: Image) -> VmcoreInfo:
        """All that VMCOREINFO would say; values of types only if the vmlinux has them."""
        symbols = VmlinuxSymbols(self.vmlinux, image.kaslr_offset, image.identity.image_window[0])
        facts = {fact.name: fact for fact in image_facts(Knowledge((symbols, *self.known.sources)))}
        facts |= self._mem_section(image, facts)
        said = as_text(facts.values())
        return override(said, image.info)

    @property
    def _keys(self) -> list[Fact]:
        """What the paging forms depend on; symbols are at their link-time addresses."""
        return list(said_by(self.known, self.arch.image_keys))

    @property
    def _said_by_vmlinux(self) -> VmcoreInfo:
        """That, with the ``-e`` lines laid over it."""
        return override(as_text(self._keys), self.extra)

    def _link(self, name: str) -> int | None:
        fact = self.known.find("SYMBOL", name)
        return None if fact is None else int(fact.value)

    def _paddr(self, banner: int, name: str) -> int | None:
        """Where a symbol is if linux_banner is at ``banner``."""
        vaddr, beside = self._link(name), self._link("linux_banner")
        return None if vaddr is None or beside is None else (banner + vaddr - beside) & MASK64

    def _read(self, paddr: int | None, size: int) -> bytes:
        """b"" where that is not in the dump."""
        try:
            return b"" if paddr is None else self.dump.memory.read(paddr, size)
        except PageAbsentError:
            return b""

    def _named(self, places: tuple[int, ...], release: bytes) -> list[int]:
        """Those of the banners beside which init_uts_ns names the release."""
        beside = self._paddr(0, "init_uts_ns")
        if beside is None:
            return []
        named: list[int] = []
        for first in range(0, len(places), _AT_ONCE):
            banners = u64(list(places[first : first + _AT_ONCE]))
            blocks, _ = self.dump.memory.gather(banners + np.uint64(beside), _UTSNAME)
            for banner, block in zip(banners.tolist(), blocks, strict=True):
                data = block.tobytes()
                if b"Linux\0" in data and b"\0" + release + b"\0" in data:
                    named.append(banner)
        return named

    def _judged(self, banner: int) -> Iterator[Image]:
        """The copy at ``banner``, if its tables map it and its first task is one."""
        symbol = next((name for name in self.arch.root_symbols if self._link(name) is not None), None)
        root = self._paddr(banner, symbol) if symbol else None
        if symbol is None or root is None:
            return
        for form in self.arch.forms(self._said_by_vmlinux, self.dump.kind.order):
            for vaddr in itertools.islice(self._mapped_at(form, root, banner), _MOST_PLACES):
                info = self._said(form, symbol, vaddr, banner)
                try:
                    identity = identify(self.dump, self.arch, laid_over(info, self.extra), None)
                except IdentityError:
                    continue
                started = self._has_started(identity, vaddr, banner)
                if identity.verified and identity.pgt_root == root and started is not None:
                    offset = (vaddr - (self._link("linux_banner") or 0)) & MASK64
                    yield Image(banner, offset, info, identity, started)

    def _mapped_at(self, form: PagingForm, root: int, banner: int) -> Iterator[int]:
        """Addresses of the banner where the image may be, by the tables or where there are none."""
        low, high = self.arch.image_window(self._said_by_vmlinux)
        found = walk(self.dump.memory, form, root, Window(form.raw(low), form.raw(high))).mappings
        at = u64([banner])
        holds = (found.paddr <= at) & (at - found.paddr < found.size)
        mapped = (found.vaddr[holds] + (at - found.paddr[holds])).tolist()
        # memory that is mapped without tables may be so several times
        vaddr = [place for place in mapped if low <= place < high]
        fixed = self._link("linux_banner") or 0
        places = self.arch.image_paddrs(self._said_by_vmlinux, fixed, self.dump.memory.declared)
        vaddr += [(fixed + banner - place) & MASK64 for place in places]
        yield from dict.fromkeys(vaddr)

    def _said(self, form: PagingForm, symbol: str, vaddr: int, banner: int) -> VmcoreInfo:
        """What VMCOREINFO says of the place of a kernel whose banner is mapped at ``vaddr``."""
        by = "vmlinux symbols, by the tables' place for linux_banner"
        offset = vaddr - (self._link("linux_banner") or 0)
        numbers = self.arch.image_numbers(form, vaddr, banner)
        facts = [Fact(f"NUMBER({name})", value, FOUND) for name, value in numbers.items()]
        names = {"swapper_pg_dir": symbol, symbol: symbol, "_stext": "_stext", "init_uts_ns": "init_uts_ns"}
        for key, name in names.items():
            link = self._link(name)
            if link is not None:
                facts.append(Fact(f"SYMBOL({key})", (link + offset) & MASK64, by))
        root = self._paddr(banner, symbol)
        places = self.arch.image_paddrs(as_text(facts), vaddr, self.dump.memory.declared)
        if root is not None and banner not in places:
            facts.append(Fact("ADDRESS(phys_pgd_ptr)", root, FOUND))
        facts += [fact for fact in self._keys if not fact.name.startswith("SYMBOL")]
        facts.append(Fact("KERNELOFFSET", offset & MASK64, by))
        default = f"as {form.name} has it"
        facts.append(Fact("NUMBER(SECTION_SIZE_BITS)", form.section_size_bits, default))
        facts.append(Fact("NUMBER(MAX_PHYSMEM_BITS)", form.physmem_bits, default))
        build_id, page = self.vmlinux.build_id, 1 << form.levels[-1].shift
        first = [Fact("OSRELEASE", self.vmlinux.release or "", "vmlinux")]
        first += [Fact("BUILD-ID", build_id.hex(), "vmlinux")] if build_id else []
        first.append(Fact("PAGESIZE", str(page), default))
        return as_text([*first, *facts])

    def _has_started(self, identity: KernelIdentity, vaddr: int, banner: int) -> bool | None:
        """Whether init_task has others beside it; None when it is no task."""
        offsets = [self._offset(f"task_struct.{member}") for member in ("comm", "tasks")]
        comm, tasks = offsets
        task = self._paddr(banner, "init_task")
        if comm is None or tasks is None:
            return True if b"swapper" in self._read(task, _TASK_SIZE) else None
        if task is None or not self._read(task + comm, 16).startswith(b"swapper"):
            return None
        node = (vaddr + task + tasks - banner) & MASK64
        word = self.arch.prstatus.word
        following = self._number(self._read(task + tasks, word))
        if following == node:
            return False
        try:
            back = translate(self.dump.memory, identity.form, identity.pgt_root, (following + word) & MASK64)
            return True if self._number(self.dump.memory.read(back.paddr, word)) == node else None
        except PageAbsentError:
            return True  # that task is not in the dump
        except FaultError:
            return None

    def _mem_section(self, image: Image, facts: Mapping[str, Fact]) -> dict[str, Fact]:
        """Where mem_section is a pointer, the kernel prints what it points at."""
        paddr, key = self._paddr(image.banner, "mem_section"), "SYMBOL(mem_section)"
        data = self._read(paddr, self.arch.prstatus.word)
        if not data or "LENGTH(mem_section)" in facts or "SIZE(mem_section)" not in facts:
            return {}
        return {key: Fact(key, self._number(data), "vmlinux symbols, read in memory")}

    def _offset(self, name: str) -> int | None:
        fact = self.known.find("OFFSET", name)
        return None if fact is None else int(fact.value)

    def _number(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.dump.kind.order == "<" else "big")
