"""``tovelf --gdb-script``: a script for gdb beside the core.

Its place is proved before the core is written, or the dump changed: an error afterwards would leave half of
what was asked for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from kdump_elftool.cli.common import warn
from kdump_elftool.cli.dump_input import user_cache
from kdump_elftool.cli.gdb_core import tell_names
from kdump_elftool.errors import UsageError
from kdump_elftool.files import STDIO, InputFile, Output, open_output
from kdump_elftool.formats.base import Dump
from kdump_elftool.gdbside import gdbinit_path
from kdump_elftool.jobs.gdb_core import about, planned_session, with_vmlinux
from kdump_elftool.jobs.gdb_script import Names, script
from kdump_elftool.jobs.gdb_session import real_path
from kdump_elftool.jobs.gdb_symbols import with_symbols
from kdump_elftool.jobs.kernel import Kernel, KernelRequest, open_kernel
from kdump_elftool.jobs.velf import Velf


@dataclass(frozen=True)
class CoreScript:
    """A script that can be written, for the core ``core``.

    ``kernel``, with its vmlinux, and ``about`` are for plan_velf().
    """

    out: Output
    core: str
    names: Names
    dump: Dump
    kernel: Kernel
    about: Mapping[str, object]

    def write(self, args: argparse.Namespace, velf: Velf) -> None:
        """With the core complete."""
        kernel = self.kernel
        planned = planned_session(self.core, velf, kernel.vmlinux)
        directories = [args.vmlinux] if args.vmlinux is not None and os.path.isdir(args.vmlinux) else []
        session, warnings = with_symbols(
            planned, kernel.vmlinux, directories, self.names, lambda: (self.dump, kernel)
        )
        for message in warnings:
            warn(message, args)
        tell_names(session, kernel.identity.build_id, args)
        text = "".join(f"{line}\n" for line in script(session, self.names)).encode()
        self.out.write_at(0, text)
        self.out.finish(len(text))
        self.out.commit()


def open_core_script(
    path: str,
    core: str | None,
    stack: ExitStack,
    dump: Dump,
    request: KernelRequest,
    inputs: list[InputFile],
) -> CoreScript:
    """The script ``path``, none of ``inputs``, for a core that is still to be made.

    Raises UsageError, OutputError, KdumpError where it could not be written, or gdb not use it.
    """
    if core in (None, STDIO) or path == STDIO:
        raise UsageError("--gdb-script needs a core that has a name", hint="name both files, with -o too")
    core = str(core)
    if os.path.realpath(path) == os.path.realpath(core):
        raise UsageError("the script would replace the core", hint="name another file for --gdb-script")
    kernel = with_vmlinux(open_kernel(dump, request))
    names = Names(user_cache(stack))
    symbols = [] if kernel.vmlinux is None else [real_path(kernel.vmlinux.file)]
    for name in (core, *symbols, gdbinit_path()):
        names.word(name)
    # a vmlinux that was found is among the inputs only now
    out = stack.enter_context(open_output(path, inputs))
    return CoreScript(out, core, names, dump, kernel, about(dump, kernel, None))
