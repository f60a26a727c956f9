"""Types that the user brings along (``--btf``), for a kernel without and for its modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import ByteSource
from kdump_elftool.kernel.btf_file import read_btf_file
from kdump_elftool.safe_text import printable


@dataclass(frozen=True)
class GivenTypes:
    """BTF objects of the kernel, if any, and of modules by their names."""

    kernel: bytes | None = None
    modules: Mapping[str, bytes] = field(default_factory=dict)

    def unused(self, loaded: Iterable[str], *, has_base: bool) -> list[str]:
        """Sentences on objects that nothing can be done with; ``loaded`` are names of modules."""
        if self.modules and not has_base:
            return ["types of modules (--btf) go on where those of the kernel end, and there are none"]
        names = sorted(self.modules.keys() - set(loaded))
        return [f"--btf: no module {printable(name)} is loaded: its types are left out" for name in names]


def given_types(files: Iterable[ByteSource]) -> GivenTypes:
    """Read the files.  Raises FormatError, and KdumpError where two are of one thing."""
    kernel: bytes | None = None
    modules: dict[str, bytes] = {}
    for file in files:
        found = read_btf_file(file)
        if found.module in modules or (found.module is None and kernel is not None):
            of = "the kernel" if found.module is None else f"the module {printable(found.module)}"
            raise KdumpError(f"{file.path}: another file of --btf has the types of {of}")
        if found.module is None:
            kernel = found.data
        else:
            modules[found.module] = found.data
    return GivenTypes(kernel, modules)
