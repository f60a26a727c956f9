"""Write the generated parts of docs/man/kdump-elftool.1: title, synopsis and every option.

    python -m tools.gen_man [--check] [FILE]

The prose is written by hand; what stands between `.\\" begin NAME` and `.\\" end NAME` comes from the
parser. --check changes nothing and exits 1 when the page is not what it should be: an option missing or
stale, or a command without a section of its own.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from pathlib import Path

from tools.cli_model import Command, Option, common_options, read_commands, read_program

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "man" / "kdump-elftool.1"
BLOCK = re.compile(r'(?ms)^\.\\" begin (?P<name>[a-z -]+)\n(?P<body>.*?)^\.\\" end (?P=name)\n')


class PageError(Exception):
    """The hand-written part lacks or misnames a place for something generated."""


def escape(text: str) -> str:
    """Plain text for roff: literal hyphens and backslashes, no accidental requests."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def option_entry(option: Option) -> str:
    """One .TP entry."""
    value = f" \\fI{escape(option.value)}\\fR" if option.value else ""
    if option.names:
        tag = ", ".join(f"\\fB{escape(name)}\\fR" for name in option.names) + value
    else:
        tag = value.strip() + (" ..." if option.repeats else "")
    return f".TP\n{tag}\n{escape(option.help[:1].upper() + option.help[1:])}.\n"


def command_block(command: Command, common: tuple[Option, ...]) -> str:
    """The options that only this command has, by group."""
    parts = []
    for title, options in command.groups:
        own = [option for option in options if option not in common]
        if own:
            heading = title[:1].upper() + title[1:]
            parts.append(f".PP\n\\fI{escape(heading)}\\fR\n" + "".join(map(option_entry, own)))
    return "".join(parts)


def synopsis(command: Command) -> str:
    """One line of the synopsis."""
    operands = [option for option in command.options if not option.names]
    words = "".join(
        f" [\\fI{escape(option.value)}\\fR{' ...' if option.repeats else ''}]" for option in operands
    )
    return f".B kdump\\-elftool {escape(command.name)}\n[\\fIoptions\\fR]{words}\n.br\n"


def blocks() -> dict[str, str]:
    """Every generated block by its name."""
    from kdump_elftool.cli.main import build_parser

    parser = build_parser()
    commands = read_commands(parser)
    common = common_options(commands)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(rf"^## \[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)$", changes, re.MULTILINE)
    if not released:
        raise PageError(f"CHANGELOG.md has no dated section [{version}]")
    result = {
        "title": f'.TH KDUMP\\-ELFTOOL 1 "{released[1]}" "kdump\\-elftool {version}" "User Commands"\n',
        "synopsis": "".join(map(synopsis, commands)),
        "program options": "".join(map(option_entry, read_program(parser).options)),
        "common options": "".join(map(option_entry, common)),
    }
    for command in commands:
        result[f"{command.name} options"] = command_block(command, common)
    return result


def fill(page: str, generated: dict[str, str]) -> str:
    """The page with every block renewed. Raises PageError when the two don't fit together."""
    found = [match["name"] for match in BLOCK.finditer(page)]
    if sorted(found) != sorted(generated):
        missing, stale = set(generated) - set(found), set(found) - set(generated)
        raise PageError(
            f"the man page must have each block once; missing: {sorted(missing)}, unknown: {sorted(stale)}"
        )
    return BLOCK.sub(
        lambda match: f'.\\" begin {match["name"]}\n{generated[match["name"]]}.\\" end {match["name"]}\n',
        page,
    )


def main(argv: list[str]) -> int:
    """Renew the page, or compare it with --check."""
    check = "--check" in argv
    names = [word for word in argv if word != "--check"]
    path = Path(names[0]) if names else PAGE
    old = path.read_text(encoding="utf-8")
    try:
        new = fill(old, blocks())
    except PageError as error:
        print(f"{path}: {error}")
        return 1
    if not check:
        path.write_text(new, encoding="utf-8")
        return 0
    difference = list(
        difflib.unified_diff(old.splitlines(), new.splitlines(), str(path), "from the parser", lineterm="")
    )
    print("\n".join(difference), end="\n" if difference else "")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
