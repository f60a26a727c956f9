"""Which kernels a dump holds: copies of VMCOREINFO judged by the memory they talk about.

A copy is believed when its page tables are there, translate the kernel's text to where the copy
says it is, and hold the release it names.  Copies with the same top table are of one kernel; among
those that differ, the one decides that the kernel itself points at, then the form.  More than one
kernel is what a failed kdump leaves behind: the crashed one, and the crash kernel in its reserve.

References: kernel/vmcore_info.c (vmcoreinfo_note, vmcoreinfo_data), include/uapi/linux/utsname.h,
kernel/crash_reserve.c (crashk_res; kernel/kexec_core.c until v6.8).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdump_elftool.addr import MASK64, NO_RANGES
from kdump_elftool.arch.base import Architecture
from kdump_elftool.arch.walker import Window, translate, walk
from kdump_elftool.elf.notes import Note
from kdump_elftool.errors import FaultError, IdentityError
from kdump_elftool.formats.base import Dump
from kdump_elftool.kernel.cpu_place import CpuPlaces
from kdump_elftool.kernel.extra import laid_over
from kdump_elftool.kernel.facts import Fact
from kdump_elftool.kernel.find import Text, Texts, Wanted, find_texts, text_at
from kdump_elftool.kernel.identity import KernelIdentity, identify
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms
from kdump_elftool.kernel.utsname import MARK, found_namespaces
from kdump_elftool.kernel.vmcoreinfo import NOTE_NAME, VmcoreInfo, as_text, override, parse
from kdump_elftool.memory.virtual import VirtualMemory
from kdump_elftool.progress import Advance
from kdump_elftool.safe_text import printable

if TYPE_CHECKING:
    from kdump_elftool.kernel.image import ImageSearch

log = logging.getLogger(__name__)

_UTSNAME = 6 * 65 + 16
"""struct new_utsname, and what may stand before it in struct uts_namespace."""
_MOST_UNVERIFIED = 8
_PAGE = 4096
_MOST_CPUS = 256
_MOST_KERNELS = 8
"""Of those that are asked what they reserve, which takes their symbol tables."""


@dataclass(frozen=True)
class FoundKernel:
    """A kernel by its VMCOREINFO; ``paddr`` is where that lies, None for the dump's own note.

    With ``by_vmlinux`` the text is made of what the vmlinux says, and ``paddr`` is where linux_banner lies.
    ``verified`` means that its page tables and its name are where the text says.  ``crash_kernel_of`` is
    the number, from 1, of the kernel in whose reserve it runs.
    """

    info: VmcoreInfo
    data: bytes
    paddr: int | None
    identity: KernelIdentity | None
    verified: bool
    crash_kernel_of: int | None = None
    by_vmlinux: bool = False

    @property
    def note(self) -> Note:
        """The note to write into a core."""
        return Note(NOTE_NAME, 0, self.data)

    @property
    def where(self) -> str:
        """Where its VMCOREINFO is."""
        if self.by_vmlinux:
            return f"made from vmlinux, its linux_banner found in memory at {self.paddr:#x}"
        return "ELF note" if self.paddr is None else f"found in memory at {self.paddr:#x}"

    @property
    def fact(self) -> Fact | None:
        """What was found in memory, if anything had to be."""
        if self.paddr is None:
            return None
        return Fact("linux_banner" if self.by_vmlinux else "vmcoreinfo", self.paddr, "found in memory")

    def shown(self) -> str:
        """One line about it."""
        build_id = self.info.build_id
        parts = [
            printable(self.info.text("OSRELEASE") or "unknown release"),
            f"build id {build_id.hex()}" if build_id else "no build id",
            f"VMCOREINFO {self.where}",
            "verified" if self.verified else "its page tables or its name are not where it says",
        ]
        if self.crash_kernel_of:
            parts.append(f"the crash kernel of {self.crash_kernel_of}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Kernels:
    """Verified ones first, by address (that of the dump's note at the top); then some that are not.

    ``default`` is the index of the one to take, None when none is verified; ``why`` says by what.
    ``doubt`` says why there is none of the vmlinux, if that was looked for.
    """

    found: tuple[FoundKernel, ...]
    default: int | None
    why: str
    complete: bool
    doubt: str | None = None


@dataclass(frozen=True)
class KernelSearch:
    """Finds the kernels of one dump.  ``extra`` are the ``-e`` lines, ``pgt_root`` is ``-P``.

    ``images`` finds those of a vmlinux.  ``seen`` is what reading all of memory has already shown.
    """

    dump: Dump
    arch: Architecture
    extra: VmcoreInfo | None
    pgt_root: int | None
    images: ImageSearch | None = None
    seen: Texts | None = None

    def run(self, noted: bytes | None, advance: Advance) -> Kernels:
        """Read all of memory.  ``noted`` is the text of the dump's own note, which stays the first."""
        texts = self.seen or find_texts(self.dump.memory, self.dump.kind.order, advance, self.wanted)
        if MARK not in texts.places and any(self._is_rootless(parse(text.data)) for text in texts.found):
            # rare enough to read all of memory again
            more = find_texts(self.dump.memory, self.dump.kind.order, lambda _size: None, (MARK,))
            texts = replace(texts, places={**texts.places, **more.places})
        if self.seen is not texts:
            return replace(self, seen=texts).run(noted, advance)
        groups: dict[int, list[tuple[Text, FoundKernel]]] = {}
        unverified: list[FoundKernel] = []
        for text in texts.found:
            kernel = self.judge(text.data, text.paddr)
            if kernel.verified and kernel.identity is not None:
                groups.setdefault(kernel.identity.pgt_root, []).append((text, kernel))
            elif len(unverified) < _MOST_UNVERIFIED:
                unverified.append(kernel)
        verified = {root: self._best(group) for root, group in groups.items()}
        places = tuple(paddr for wanted in self.wanted for paddr in texts.places.get(wanted, ()))
        for kernel in self._by_vmlinux(places, known=set(verified)):
            if kernel.identity is not None:
                verified[kernel.identity.pgt_root] = kernel
        doubt = self.images.doubt(places) if self.images and not verified else None
        own = None if noted is None else self.judge(noted, None)
        if own is not None and own.identity is not None:
            verified.pop(own.identity.pgt_root, None)
        ranked = sorted(verified.values(), key=lambda kernel: kernel.paddr or 0)
        found = self._crash_kernels(([own] if own is not None else []) + ranked)
        default, why = self._default(tuple(found)) if own is None else (0, "the dump's note")
        return Kernels((*found, *unverified), default, why, texts.complete, doubt)

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What to look for in memory beside texts."""
        banner = self.images.wanted if self.images else None
        return () if banner is None else (banner,)

    def _by_vmlinux(self, places: tuple[int, ...], known: set[int]) -> Iterator[FoundKernel]:
        """Kernels that no text describes; their top tables are not among the ``known`` ones."""
        for image in self.images.images(places) if self.images else ():
            if image.identity.pgt_root not in known and self.images:
                info = self.images.described(image)
                data = "".join(f"{key}={value}\n" for key, value in info.values.items())
                encoded = data.encode("latin-1")
                yield FoundKernel(info, encoded, image.banner, image.identity, True, by_vmlinux=True)

    def judge(self, data: bytes, paddr: int | None) -> FoundKernel:
        """The kernel that a text describes; ``paddr`` is where it was found, None for the dump's note."""
        source = "VMCOREINFO" if paddr is None else f"VMCOREINFO found in memory at paddr {paddr:#x}"
        info = parse(data, source)
        asked = laid_over(info, self.extra)
        identity = None
        if paddr is None or _is_plausible(info):
            identity = self._identify(asked)
        if (identity is None or not identity.verified) and self._is_rootless(asked):
            for root in self._roots_beside(asked):
                line = as_text([Fact("ADDRESS(phys_pgd_ptr)", root, "init_uts_ns, found in memory")])
                found = self._identify(override(asked, line))
                if found is not None and found.verified and self._has_its_name(asked, found):
                    return FoundKernel(override(info, line), data, paddr, found, True)
        verified = identity is not None and identity.verified and self._has_its_name(asked, identity)
        return FoundKernel(info, data, paddr, identity, verified)

    def is_certain(self, kernel: FoundKernel) -> bool:
        """Whether a kernel is verified by its name as well, which is in the dump."""
        identity = kernel.identity
        return bool(
            identity and kernel.verified and self._has_its_name(kernel.info, identity, where_absent=False)
        )

    def _identify(self, asked: VmcoreInfo) -> KernelIdentity | None:
        """By the kernel's own root, else by the user's."""
        identity = None
        for root in dict.fromkeys((None, self.pgt_root)):
            try:
                identity = identify(self.dump, self.arch, asked, root)
            except IdentityError:
                continue
            if identity.verified:
                break
        return identity

    def _is_rootless(self, info: VmcoreInfo) -> bool:
        """Whether a text does not say where its top table is, but where that is beside init_uts_ns."""
        table, names = info.symbol("swapper_pg_dir"), info.symbol("init_uts_ns")
        if table is None or names is None or info.address("phys_pgd_ptr") is not None:
            return False
        return not self.arch.image_paddrs(info, table, NO_RANGES)

    def _roots_beside(self, info: VmcoreInfo) -> Iterator[int]:
        """Top tables by where init_uts_ns was found: the image is one piece of memory."""
        table, names = info.symbol("swapper_pg_dir"), info.symbol("init_uts_ns")
        if self.seen is not None and table is not None and names is not None:
            for paddr in found_namespaces(self.dump.memory, self.seen, info):
                yield (paddr + table - names) & MASK64

    def _has_its_name(self, info: VmcoreInfo, identity: KernelIdentity, *, where_absent: bool = True) -> bool:
        """Whether init_uts_ns holds the release; ``where_absent`` when it is not in the dump."""
        vaddr, release = info.symbol("init_uts_ns"), info.text("OSRELEASE")
        if vaddr is None or release is None:
            return where_absent
        try:
            data = self._read(identity, vaddr, _UTSNAME)
        except FaultError:
            return where_absent
        return b"\0" + release.encode("latin-1") + b"\0" in data

    def _read(self, identity: KernelIdentity, vaddr: int, size: int) -> bytes:
        """Memory of a kernel, page by page: far less than a walk of its tables.  Raises FaultError."""
        memory, data = self.dump.memory, b""
        while len(data) < size:
            at = vaddr + len(data)
            part = min(size - len(data), _PAGE - at % _PAGE)
            data += memory.read(self._paddr(identity, at), part)
        return data

    def _paddr(self, identity: KernelIdentity, vaddr: int) -> int:
        """Where an address is by the kernel's own tables.  Raises FaultError."""
        return translate(self.dump.memory, identity.form, identity.pgt_root, vaddr & MASK64).paddr

    def _best(self, group: list[tuple[Text, FoundKernel]]) -> FoundKernel:
        """The copy to believe, of one kernel's."""
        _, kernel = min(group, key=lambda pair: (pair[0].form, -len(pair[0].data), pair[0].paddr))
        if len({text.data for text, _ in group}) == 1:
            return kernel
        assert kernel.identity is not None
        pointed = self._pointed_at(kernel.identity, [kernel.info for _, kernel in group])
        if pointed is None:
            return kernel
        chosen = self.judge(pointed.data, pointed.paddr)
        same = chosen.identity is not None and chosen.identity.pgt_root == kernel.identity.pgt_root
        return chosen if chosen.verified and same else kernel

    def _pointed_at(self, identity: KernelIdentity, infos: list[VmcoreInfo]) -> Text | None:
        """What vmcoreinfo_note points at, else vmcoreinfo_data; both were arrays until v4.12."""
        agreed = {
            key: value
            for key, value in infos[0].values.items()
            if all(info.values.get(key) == value for info in infos)
        }
        symbols = self._symbols(identity, VmcoreInfo(agreed))
        for name in ("vmcoreinfo_note", "vmcoreinfo_data"):
            symbol = symbols.find("SYMBOL", name) if symbols else None
            text = self._text_by(identity, int(symbol.value)) if symbol else None
            if text is not None:
                log.info("%s leads to the VMCOREINFO at paddr %#x", name, text.paddr)
                return text
        return None

    def _symbols(self, identity: KernelIdentity, info: VmcoreInfo) -> Kallsyms | None:
        """The kernel's own symbol table, by a walk of its image alone."""
        low, high = (identity.form.raw(edge) for edge in identity.image_window)
        found = walk(self.dump.memory, identity.form, identity.pgt_root, Window(low, high)).mappings
        memory = VirtualMemory.of(self.dump.memory, found.vaddr, found.paddr, found.size)
        order, word = self.dump.kind.order, self.arch.prstatus.word
        return open_kallsyms(memory, info, identity.image_window, order, word)

    def _text_by(self, identity: KernelIdentity, symbol: int) -> Text | None:
        """The text at the pointer that a symbol names, or at the symbol itself."""
        order, word = self.dump.kind.order, self.arch.prstatus.word
        try:
            data = self._read(identity, symbol, word)
        except FaultError:
            return None
        for vaddr in (int.from_bytes(data, "little" if order == "<" else "big"), symbol):
            try:
                text = text_at(self.dump.memory, order, self._paddr(identity, vaddr))
            except FaultError:
                continue
            if text is not None:
                return text
        return None

    def _crash_kernels(self, found: list[FoundKernel]) -> list[FoundKernel]:
        """With ``crash_kernel_of`` set for those that run in the memory another kernel reserved for that."""
        verified = [number for number, kernel in enumerate(found, 1) if kernel.verified]
        if len(verified) < 2:
            return found
        reserves = {number: self._reserve(found[number - 1]) for number in verified[:_MOST_KERNELS]}
        result = []
        for number, kernel in enumerate(found, 1):
            root = kernel.identity.pgt_root if kernel.identity else -1
            owners = [other for other, (start, end) in reserves.items() if start <= root < end]
            owner = next((other for other in owners if other != number and kernel.verified), None)
            result.append(replace(kernel, crash_kernel_of=owner))
        return result

    def _reserve(self, kernel: FoundKernel) -> tuple[int, int]:
        """Physical addresses of what a kernel keeps for a crash kernel, (0, 0) where that is not known.

        struct resource begins with the first and the last address (include/linux/ioport.h), both a
        phys_addr_t: as wide as a page-table entry, which has to hold one (CONFIG_PHYS_ADDR_T_64BIT).
        """
        identity = kernel.identity
        if identity is None:
            return 0, 0
        width = max(self.arch.prstatus.word, identity.form.levels[-1].entry)
        symbols = self._symbols(identity, kernel.info)
        symbol = symbols.find("SYMBOL", "crashk_res") if symbols else None
        try:
            data = self._read(identity, int(symbol.value), 2 * width) if symbol else bytes(2 * width)
        except FaultError:
            return 0, 0
        start, last = struct.unpack(self.dump.kind.order + ("QQ" if width == 8 else "II"), data)
        return (start, last + 1) if last > start else (0, 0)

    def _default(self, kernels: tuple[FoundKernel, ...]) -> tuple[int | None, str]:
        """A crashed kernel before its crash kernel; then the one that most CPUs were in, that one's own or
        its crash kernel; then the one that maps more memory.
        """
        if len(kernels) < 2:
            return (0, "the only one") if kernels else (None, "none is verified")
        votes = [self._cpus_in(kernel) for kernel in kernels]
        first = [index for index, kernel in enumerate(kernels) if not kernel.crash_kernel_of]
        first = first or list(range(len(kernels)))
        for index, kernel in enumerate(kernels):
            if kernel.crash_kernel_of and index not in first:
                votes[kernel.crash_kernel_of - 1] += votes[index]
        most = [index for index in first if votes[index] == max(votes[other] for other in first)]
        if len(first) == 1:
            others = ", ".join(
                str(number) for number, other in enumerate(kernels, 1) if other.crash_kernel_of
            )
            return first[0], f"its crash kernel is {others}"
        if len(most) == 1:
            return most[0], "most CPUs were in it"
        sizes = {index: self._mapped(kernels[index]) for index in most}
        return max(most, key=lambda index: sizes[index]), "it maps most memory"

    def _mapped(self, kernel: FoundKernel) -> int:
        assert kernel.identity is not None
        form = kernel.identity.form
        window = Window(*form.kernel_span)
        mapped = walk(self.dump.memory, form, kernel.identity.pgt_root, window).mappings
        return int(mapped.size.sum())

    def _cpus_in(self, kernel: FoundKernel) -> int:
        """How many CPUs used tables that map this kernel's text; by their registers, where they stood."""
        assert kernel.identity is not None
        places = CpuPlaces(self.dump, _MOST_CPUS)
        answers = places.by_tables(kernel.identity, kernel.info) or places.by_registers(kernel.identity)
        return sum(answer is True for answer in answers)


def _is_plausible(info: VmcoreInfo) -> bool:
    """What every kernel says; without it the page tables could not be checked."""
    root = info.symbol("swapper_pg_dir") or info.address("phys_pgd_ptr")
    return root is not None and info.symbol("_stext") is not None
