"""``kdump-elftool info``: what a dump is and why its kernel died, at a glance."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack

from kdump_elftool.cli.common import add_common, warn
from kdump_elftool.cli.dump_input import open_input
from kdump_elftool.cli.dump_options import add_dump
from kdump_elftool.jobs.summary import Item, Summary, summarise
from kdump_elftool.plain.log_lines import plain_line
from kdump_elftool.safe_text import printable

NAME = "info"
HELP = "say what a dump is and why its kernel died"
_WIDTH = 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_dump(parser, vmlinux=True)
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    with ExitStack() as stack:
        opened = open_input(args, stack)
        dump, request = opened.dump, opened.request
        summary = summarise(dump, request, with_tasks=args.verbose)
    for message in summary.warnings:
        warn(message, args)
    if args.json:
        print(json.dumps(_as_json(summary)))
    else:
        _print(args, summary)
    sys.stdout.flush()
    return 1 if args.strict and summary.coverage.is_partial else 0


def _print(args: argparse.Namespace, summary: Summary) -> None:
    for item in summary.items:
        if item.detail and not args.verbose:
            continue
        print(_line(item.label, item.shown, item.source if args.verbose else ""))
    print(_line("coverage", summary.coverage.line(everything=args.verbose)))
    if args.verbose:
        print(f"{len(summary.facts)} values were used:")
        for fact in summary.facts:
            print(f"  {fact.name}: {fact.shown()} ({fact.source})")
    if summary.last_lines:
        print(f"last {len(summary.last_lines)} lines of the log:")
    for line in summary.last_lines:
        print(plain_line(line))


def _line(label: str, value: str, source: str = "") -> str:
    return f"{label + ':':<{_WIDTH}} {value}" + (f" ({source})" if source else "")


def _as_json(summary: Summary) -> dict[str, object]:
    return {
        "schema": "kdump-elftool/info/1",
        **{item.key: item.value for item in summary.items},
        "coverage": summary.coverage.as_json(),
        "last_log_lines": [plain_line(line) for line in summary.last_lines],
        "sources": _sources(summary.items),
        "facts": [fact.as_json() for fact in summary.facts],
        "warnings": [printable(message) for message in summary.warnings],
    }


def _sources(items: tuple[Item, ...]) -> dict[str, str]:
    return {item.key: item.source for item in items if item.source}
