"""Write contrib/completion/kdump-elftool.bash from the parser.

python -m tools.gen_completion [--check] [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.cli_model import Command, read_commands, read_program

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "contrib" / "completion" / "kdump-elftool.bash"

HEAD = """\
# bash completion for kdump-elftool(1); written by tools/gen_completion.py
_kdump_elftool() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= known= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            -*) ;;
            *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
"""
TAIL = """\
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$known" -- "$word")
    fi
}
complete -o default -o bashdefault -F _kdump_elftool kdump-elftool
"""


def _names(command: Command) -> str:
    return " ".join(name for option in command.options for name in option.names)


def _command_case(command: Command) -> str:
    lines = [
        f"        {command.name})",
        f'            known="{_names(command)}"',
        "            case $before in",
    ]
    for option in command.options:
        if option.names and option.value:
            # no words: an empty reply falls through to file names (-o default)
            words = f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(option.choices)}" -- "$word"); '
            lines.append(
                f"                {' | '.join(option.names)}) {words if option.choices else ''}return ;;"
            )
    return "\n".join([*lines, "            esac", "            ;;"]) + "\n"


def completion() -> str:
    """The whole script."""
    from kdump_elftool.cli.main import build_parser

    parser = build_parser()
    commands = read_commands(parser)
    first = " ".join([command.name for command in commands] + [_names(read_program(parser))])
    program = [
        '        "")',
        f'            mapfile -t COMPREPLY < <(compgen -W "{first}" -- "$word")',
        "            return ;;",
    ]
    cases = "".join(map(_command_case, commands))
    return HEAD + "    case $command in\n" + "\n".join(program) + "\n" + cases + "    esac\n" + TAIL


def main(argv: list[str]) -> int:
    """Write the script, or with --check say whether it is current."""
    names = [word for word in argv if word != "--check"]
    path = Path(names[0]) if names else SCRIPT
    wanted = completion()
    if "--check" in argv:
        current = path.exists() and path.read_text(encoding="utf-8") == wanted
        if not current:
            print(f"{path} is not current: run python -m tools.gen_completion")
        return 0 if current else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
