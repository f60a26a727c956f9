"""What a made vmlinux lacks, in sentences: why, and what one can do."""

from __future__ import annotations

from kdump_elftool.jobs.frames import FrameFile
from kdump_elftool.jobs.module_parts import ModuleParts
from kdump_elftool.kernel.btf import Btf

_HAS_ALL = (
    "the vmlinux of the kernel's debug package has them, and --btf takes types that pahole makes of that "
    "(--btf_encode_detached)"
)


def lacking(
    where: str,
    modules: ModuleParts | None,
    types: Btf | None,
    frames: FrameFile | None,
    *,
    given: bool,
    wants_frames: bool,
) -> list[str]:
    """The sentences.

    ``where`` things were looked for; ``given``: types in a file; ``modules`` None of an image.
    """
    said = [] if modules is None else list(modules.warnings)
    if types is None and not given:
        lost = ["types"]
        if modules is not None and not modules.parts:
            lost, said = [*lost, "modules"], []
        if frames is None and wants_frames:
            lost, wants_frames = [*lost, "rules to unwind stacks"], False
        kinds = f"{', '.join(lost[:-1])} and {lost[-1]}" if lost[1:] else lost[0]
        said.append(
            f"there is no BTF in {where} (CONFIG_DEBUG_INFO_BTF), or none that can be read: "
            f"symbols are all there is, without {kinds}; {_HAS_ALL}"
        )
    elif types is None:
        said.append("the file of --btf is none that can be read: there are no types")
    elif types.damage is not None:
        said.append(f"BTF is damaged: {types.damage}")
    if frames is not None:
        said += frames.warnings
    elif wants_frames:
        said.append(
            f"there are no unwind tables (ORC) in {where}, or none that can be read: "
            "backtraces are what a debugger makes of the code"
        )
    return said
