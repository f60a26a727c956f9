"""Entry point: parser, logging, signals, exit codes.  The only place that prints errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import remove_temporaries
from kdump_elftool.safe_text import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = (
    "topelf",
    "tovelf",
    "addrandoff",
    "makedyn",
    "dumpmem",
    "virttophys",
    "vminfo",
    "info",
    "dmesg",
    "ps",
    "gdb",
    "mkvmlinux",
    "gdbinit",
)
"""Each is a module of this package; only the one that is asked for is imported."""
STARTS_ANOTHER = "gdb"
"""The command that passes words on to a program."""
PROG = "kdump-elftool"


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived: unwind, clean up, exit with 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Parser(argparse.ArgumentParser):
    """argparse with this tool's two-line errors."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """As argparse's, but a closed pipe is an error like any other."""
        if message:
            (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        self._refuse(message, f"{self.prog} --help shows how it is used")

    def no_command(self, word: str) -> NoReturn:
        """The first word is none: a file whose command was left out, or a slip."""
        name = printable(word)
        hint = f"one of {', '.join(COMMANDS)}"
        if os.path.exists(word):
            hint = f"{PROG} info {name} says what a dump is, {PROG} gdb {name} opens it"
        self._refuse(f"{name} is no command", hint)

    def _refuse(self, message: str, hint: str) -> NoReturn:
        print(f"error: {message}\nhint: {hint}", file=sys.stderr)
        raise SystemExit(2)


class Version(argparse.Action):
    """``--version``: looked up when asked, which every other run is spared."""

    def __call__(self, parser: argparse.ArgumentParser, *_others: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROG} {version('kdump-elftool')}")
        parser.exit()


def build_parser(names: Sequence[str] = COMMANDS) -> Parser:
    """The whole command line (or some commands of it); source of the man page and the completion."""
    parser = Parser(
        prog=PROG,
        description="Turn a Linux kernel memory dump into an ELF core that gdb can open.",
        epilog=f"First look: {PROG} info DUMP. The crash in gdb: {PROG} gdb DUMP [VMLINUX]. "
        f"Options of a command: {PROG} COMMAND --help.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "-v", "--version", action=Version, nargs=0, help="show program's version number and exit"
    )
    parser.set_defaults(refuse=parser.error)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in (import_module(f"kdump_elftool.cli.{name}") for name in names):
        sub = commands.add_parser(command.NAME, help=command.HELP, description=_sentence(command.HELP))
        command.add_arguments(sub)
        sub.set_defaults(run=command.run, refuse=sub.error)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    args = _parse(argv)
    if isinstance(args, int):
        return args
    from kdump_elftool.cli.common import setup_logging

    setup_logging(args)
    try:
        code = int(args.run(args))
        return code or int(args.strict and args.warned)
    except KeyboardInterrupt:
        return 130
    except Terminated as stop:
        return 128 + stop.number
    except Exception as error:  # noqa: BLE001  the last line of defence: a plain message
        return _explain(error, debug=bool(args.debug))
    finally:
        remove_temporaries()


def _explain(error: Exception, *, debug: bool) -> int:
    """Say in two lines what went wrong; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 1
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError):
        # inputs and outputs by name raise KdumpError: what is left is stdout
        return _stdout_failed(error)
    code, hint = 1, "run again with --debug and report the traceback"
    message = f"internal error: {type(error).__name__}: {error}"
    if isinstance(error, KdumpError):
        code, message, hint = error.exit_code, error.message, error.hint or ""
    elif isinstance(error, MemoryError):
        message, hint = "out of memory", "this dump may be damaged; try another machine"
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


def _parse(argv: list[str] | None) -> argparse.Namespace | int:
    """The command line, or the exit code when argparse has answered it already."""
    words, passed_on = _split(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            parser.no_command(words[0])
        args, unknown = parser.parse_known_args(words)
        if unknown:
            args.refuse(f"unrecognized arguments: {' '.join(unknown)}")
        if args.command is None:
            parser.error("no command given")
        args.passed_on, args.warned = passed_on, False
    except SystemExit as stop:
        return int(stop.code or 0)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    return args


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of a command that starts another program, and what follows -- for that."""
    if words[:1] != [STARTS_ANOTHER] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def console() -> NoReturn:
    """The installed command."""
    _open_standard_streams()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _terminate)
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        code = 1
    except OSError as error:
        code = _stdout_failed(error)
    except KeyboardInterrupt:
        code = 130
    except Terminated as stop:
        code = 128 + stop.number
    # nothing is left to clean up: a signal may end the interpreter's own way out
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Where the caller closed stdin, stdout or stderr: what people were to read goes nowhere.

    The numbers are taken, or a dump would get one, and the messages get into it; in the wrong direction, so
    that a core for stdout is an error all the same.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # gets the lowest number that is free; gdb inherits it
            fd = os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)
            os.set_inheritable(fd, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  for good


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


def _stdout_failed(error: OSError) -> int:
    """stdout took no more (a full disk behind it): say so, and keep the interpreter's last flush quiet."""
    _silence_stdout()
    print(f"error: cannot write to standard output: {error.strerror}", file=sys.stderr)
    print("hint: free some space, or name another place", file=sys.stderr)
    return 1


def _silence_stdout() -> None:
    """Point stdout at /dev/null so that the interpreter's last flush cannot fail aloud."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
