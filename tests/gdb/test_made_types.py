"""gdb on DWARF made of BTF: what is sound reads as in C, what is not does no harm."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.elf.structs import ElfKind
from kdump_elftool.gdbside import gdbinit_path
from tests.builders import btf as b
from tests.builders.dwarf_text import debug_file
from tests.builders.random_btf import converted, random_btf
from tests.builders.tools import gdb_batch

pytestmark = pytest.mark.gdb

SEED = 20261129


def test_types_are_shown_as_in_c(tmp_path):
    w = b.BtfWriter()
    char, integer, word = w.integer("char", 1, 1), w.integer("int", 4, 1), w.integer("unsigned long", 8)
    w.struct("list_head", 16, [("next", 5, 0), ("prev", 5, 8)])
    w.pointer(4)
    w.bitfields("flags", 4, [("one", integer, 0, 1), ("two", integer, 1, 3)])
    state = w.enum("state", [("RUNNING", 0), ("DEAD", -1)], signed=True)
    call = w.pointer(w.proto(integer, [("", w.pointer(w.add(b.CONST, "", char))), ("", 0)]))
    anonymous = w.struct("", 8, [("low", integer, 0), ("high", integer, 4)])
    either = w.struct("", 8, [("whole", word, 0), ("", anonymous, 0)], kind=b.UNION)
    members = [("list", 4, 0), ("flags", 6, 16), ("state", state, 20), ("", either, 24)]
    members += [("call", call, 32), ("name", w.array(char, 16), 40), ("rest", w.array(integer, 0), 56)]
    w.struct("task", 56, members)
    path = tmp_path / "types.elf"
    path.write_bytes(debug_file(converted(w.finish()), ElfKind(64, "<")))
    shown = gdb_batch([f"file {path}", "ptype struct task", "p sizeof(struct task)", "ptype struct flags"])
    assert "".join(shown.split()) == "".join(
        """type = struct task {
            struct list_head list;
            struct flags flags;
            enum state state;
            union {
                unsigned long whole;
                struct {...};
            };
            int (*call)(const char *, ...);
            char name[16];
            int rest[];
        }
        $1 = 56
        type = struct flags {
            int one : 1;
            int two : 3;
        }""".split()
    )


def test_random_types_do_gdb_no_harm(tmp_path):
    random = Random(SEED)
    print(f"seed {SEED}")
    commands = []
    for number in range(60):
        path = tmp_path / f"{number}.elf"
        path.write_bytes(debug_file(converted(random_btf(random)), ElfKind(64, "<")))
        commands += [f"file {path}", "info types .", "info functions .", "info variables ."]
        # a type that is not there is an error, which ends the commands of a gdb in batch mode
        tags = [f"{tag} {name}" for tag in ("struct", "union") for name in "abcd"]
        commands += [f"python try_it('ptype /o {tag}')" for tag in tags]
    guard = "def try_it(command):\n  try: gdb.execute(command, to_string=True)\n  except gdb.error: pass"
    shown = gdb_batch([f'python exec("""{guard}""")', *commands, "echo the end\\n"])
    assert shown.endswith("the end\n"), shown[-2000:]
    assert "internal-error" not in shown


def test_anonymous_structs_in_each_other(tmp_path):
    """Each twice in the one around it: 2**30 ways lead to the innermost."""
    w = b.BtfWriter()
    inner = w.struct("", 8, [("x", w.integer("int", 4, 1), 0), ("y", 1, 4)])
    for _ in range(29):
        inner = w.struct("", 8, [("", inner, 0), ("", inner, 0)])
    w.struct("outer", 8, [("", inner, 0)])
    path = tmp_path / "types.elf"
    path.write_bytes(debug_file(converted(w.finish()), ElfKind(64, "<")))
    ask = "python from kdump_elftool.gdbside.target import member_place; print(member_place('outer', '{}'))"
    commands = [f"file {path}", f"source {gdbinit_path()}", ask.format("z"), ask.format("y")]
    missing, found = gdb_batch(commands).splitlines()[-2:]
    assert missing == "None"
    assert found.endswith(", 4)")


def test_fields_of_unions_and_of_types_without_a_tag(tmp_path):
    """What kd-list shows of a node is asked of gdb as an expression."""
    w = b.BtfWriter()
    member = [("x", w.integer("int", 4, 1), 0)]
    w.struct("one", 4, member)
    w.struct("two", 4, member, kind=b.UNION)
    w.add(b.TYPEDEF, "three", w.struct("", 4, member))
    path = tmp_path / "types.elf"
    path.write_bytes(debug_file(converted(w.finish()), ElfKind(64, "<")))
    ask = "python from kdump_elftool.gdbside.arguments import spelled; "
    ask += "gdb.execute('p sizeof(((%s *) 0)->x)' % spelled('{}'))"
    commands = [f"file {path}", f"source {gdbinit_path()}", *map(ask.format, ("one", "two", "three"))]
    assert gdb_batch(commands).splitlines()[-3:] == ["$1 = 4", "$2 = 4", "$3 = 4"]
