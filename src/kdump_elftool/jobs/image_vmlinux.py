"""A vmlinux for debuggers out of a kernel image file (vmlinuz, Image), at the addresses it was linked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdump_elftool.dwarf.btf_to_dwarf import BtfToDwarf, DebugSections
from kdump_elftool.dwarf.orc_to_frames import orc_to_frames
from kdump_elftool.dwarf.well_known import WELL_KNOWN
from kdump_elftool.elf.constants import ELFOSABI_GNU, EM_X86_64
from kdump_elftool.elf.symfile import symbol_file
from kdump_elftool.errors import IdentityError
from kdump_elftool.files import ByteSource
from kdump_elftool.jobs.frames import FrameFile, functions_of
from kdump_elftool.jobs.given_types import GivenTypes
from kdump_elftool.jobs.image_symbols import Part, elf_symbols, image_range, kernel_part
from kdump_elftool.jobs.link_frames import orc_leaves_out
from kdump_elftool.jobs.made_lacks import lacking
from kdump_elftool.jobs.mkvmlinux import (
    NO_TYPES,
    MadeVmlinux,
    contents_of,
    made,
    name_sections,
    variables,
)
from kdump_elftool.jobs.pointer_frames import entry_text
from kdump_elftool.kernel.boot_image import BootImage, boot_images
from kdump_elftool.kernel.btf import Btf, open_btf
from kdump_elftool.kernel.content import ContentSource
from kdump_elftool.kernel.facts import Knowledge, Source
from kdump_elftool.kernel.image_content import ImageContent
from kdump_elftool.kernel.kallsyms import Kallsyms
from kdump_elftool.kernel.kallsyms_tables import open_kallsyms_of_image
from kdump_elftool.kernel.orc import joined, read_kernel_orc
from kdump_elftool.kernel.prologue import prologues
from kdump_elftool.kernel.vmlinux import build_id_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kernel:
    """An image with its symbols, and everything that is known of it."""

    image: BootImage
    symbols: Kallsyms
    types: Btf | None
    content: ImageContent
    known: Knowledge

    @property
    def order(self) -> str:
        return self.image.machine.kind.order

    @property
    def word(self) -> int:
        return self.image.machine.kind.bits // 8


def make_from_image(
    file: ByteSource, *, given: GivenTypes = NO_TYPES, link_addresses: bool = False
) -> MadeVmlinux:
    """Build it; ``link_addresses`` makes it one for drgn, as of a dump: with a build id, and with the frames
    that ORC leaves out.

    ``given`` types go before those of the image.  Raises IdentityError where no kernel with a
    symbol table is found in the file, FormatError, MissingCodecError.
    """
    kernel = _open(file, given.kernel)
    image = kernel.image
    end = image.window[1] if image.placed else None
    part = kernel_part(kernel.symbols, variables(kernel.symbols, kernel.known), end)
    frames = _frames(kernel, link_addresses)
    is_given, wants_frames = given.kernel is not None, not link_addresses
    missing = lacking("the image", None, kernel.types, frames, given=is_given, wants_frames=wants_frames)
    missing += given.unused((), has_base=kernel.types is not None)
    names = name_sections(kernel.order, _build_id(kernel) if link_addresses else None, kernel.content.banner)
    debug = None if kernel.types is None else _debug(kernel, kernel.types, part)
    data = symbol_file(
        image.machine.kind,
        image.machine.e_machine,
        contents_of([part], debug, frames, names),
        elf_symbols([part]),
        e_flags=image.machine.e_flags,
        osabi=ELFOSABI_GNU,
        loads=image_range(part),
    )
    return made(data, kernel.content.release, [part], debug, missing)


def _open(file: ByteSource, btf: bytes | None) -> _Kernel:
    """The first kernel in the file that has a symbol table."""
    seen = 0
    for image in boot_images(file):
        seen += 1
        order, word = image.machine.kind.order, image.machine.kind.bits // 8
        known = _known(image)
        symbols = open_kallsyms_of_image(image.memory, image.window, order, word, known)
        if symbols is None:
            continue
        if btf is not None:
            types = Btf.parse(btf, order, word, "--btf", partial=True)
        else:
            types = open_btf(image.memory, symbols, image.window, order, word, partial=True)
        sources: tuple[Source, ...] = (symbols,) if types is None else (symbols, types)
        content = ImageContent(image.memory, Knowledge(sources), image.window)
        if image.placed:
            task = ContentSource(image.memory, Knowledge(sources), image.window, order, word, at_rest=True)
            sources += (content, task)
        return _Kernel(image, symbols, types, content, Knowledge(sources))
    if seen:
        raise IdentityError(
            "kallsyms",
            f"{file.path}: there is a kernel in it, but its symbol table cannot be found",
            hint="--verbose says what was tried; a kernel without CONFIG_KALLSYMS has none",
        )
    raise IdentityError(
        "kernel",
        f"{file.path}: there is no kernel in it",
        hint="--from-image takes a vmlinuz, bzImage, zImage, Image, or a vmlinux without symbols; a dump is "
        "named without it",
    )


def _known(image: BootImage) -> dict[str, int]:
    """Symbols whose addresses the image tells without a table."""
    if not image.placed:
        return {}
    banner = ImageContent(image.memory, Knowledge(()), image.window).find("SYMBOL", "linux_banner")
    return {} if banner is None else {"linux_banner": int(banner.value)}


def _build_id(kernel: _Kernel) -> bytes | None:
    elf = kernel.image.elf
    return kernel.content.build_id(kernel.order) if elf is None else build_id_of(elf)


def _debug(kernel: _Kernel, types: Btf, part: Part) -> DebugSections:
    debug = BtfToDwarf(kernel.order, kernel.word)
    debug.add(part.name, types, part.symbols, WELL_KNOWN)
    return debug.finish()


def _frames(kernel: _Kernel, link_addresses: bool) -> FrameFile | None:
    """The kernel's own unwind tables; which stacks it switches to is seen in a running one only."""
    image = kernel.image
    if image.machine.e_machine != EM_X86_64:
        return None
    table = read_kernel_orc(image.memory, kernel.known, image.window, at_rest=True)
    if table is None:
        return None
    functions = functions_of(kernel.symbols)
    left_out = prologues(table, functions, image.memory.read)
    table = joined([table, *left_out])
    try:
        if link_addresses:
            return orc_leaves_out(left_out)
        entry = entry_text(kernel.symbols.symbol)
        data = orc_to_frames(table, functions=functions, entry_text=entry, switch_is_signal=True)
    except ValueError as error:
        log.warning("ORC: %s", error)
        return None
    return FrameFile(data, len(table), table.damage)
