"""The command line as plain data, read from the parser: what the man page and the completion print."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One option or positional argument as --help shows it."""

    names: tuple[str, ...]  # empty for a positional argument
    value: str  # how its value is called, "" when it takes none
    choices: tuple[str, ...]
    repeats: bool  # a positional argument that may be given more than once or not at all
    help: str


@dataclass(frozen=True)
class Command:
    """One command with its options by group, in the order of --help."""

    name: str
    help: str
    groups: tuple[tuple[str, tuple[Option, ...]], ...]

    @property
    def options(self) -> tuple[Option, ...]:
        """All options and arguments, whatever their group."""
        return tuple(option for _title, options in self.groups for option in options)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    text = (action.help or "") % {"default": action.default, "prog": parser.prog}
    return Option(
        names=tuple(action.option_strings),
        value=_value(action),
        choices=tuple(map(str, action.choices or ())),
        repeats=action.nargs in ("*", "+"),
        help=text,
    )


def _groups(parser: argparse.ArgumentParser) -> tuple[tuple[str, tuple[Option, ...]], ...]:
    # argparse has no public way to list what was added; these two names have not changed since 3.2
    groups = []
    for group in parser._action_groups:
        options = tuple(
            _option(action, parser)
            for action in group._group_actions
            if action.help is not argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
        )
        if options:
            groups.append((group.title or "", options))
    return tuple(groups)


def read_commands(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    """Every command of the parser, in its own order."""
    commands = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        short = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, sub in action.choices.items():
            commands.append(Command(name, short.get(name, ""), _groups(sub)))
    return tuple(commands)


def read_program(parser: argparse.ArgumentParser) -> Command:
    """The options before the command."""
    return Command(parser.prog, parser.description or "", _groups(parser))


def common_options(commands: tuple[Command, ...]) -> tuple[Option, ...]:
    """What every command has in the same words, in the order of the first one."""
    first, *others = commands
    return tuple(option for option in first.options if all(option in other.options for other in others))
