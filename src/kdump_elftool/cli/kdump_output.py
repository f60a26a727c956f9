"""What ``topelf --format kdump`` does: plan, write to the file or flattened to a pipe, finish."""

from __future__ import annotations

import argparse

from kdump_elftool.cli.common import warn
from kdump_elftool.cli.dump_input import Opened
from kdump_elftool.codecs.packing import default_codec
from kdump_elftool.files import open_output
from kdump_elftool.jobs.kdump_out import KdumpPlan, plan_kdump, write_plan
from kdump_elftool.progress import progress


def write_kdump_dump(args: argparse.Namespace, opened: Opened, level: str) -> tuple[KdumpPlan, bool]:
    """Write the dump to ``-o``; returns what was written, and whether it went to stdout."""
    plan = plan_kdump(opened.dump, opened.request, level, args.compress or default_codec())
    for message in plan.warnings:
        warn(message, args)
    with open_output(args.outfile, opened.files) as out:
        total = plan.layout.dumped.total * plan.layout.page_size
        with progress("writing", total, enabled=not (args.no_progress or args.quiet)) as advance:
            plan = write_plan(plan, opened.dump, out, advance)
        to_stdout = out.is_stdout()
        out.commit()
    return plan, to_stdout
