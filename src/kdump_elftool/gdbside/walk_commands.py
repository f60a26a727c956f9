"""``kd-list``, ``kd-rbtree``, ``kd-xarray``: any list or tree of the kernel, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gdb

from kdump_elftool.errors import FaultError
from kdump_elftool.gdbside.arguments import Container, address
from kdump_elftool.gdbside.command import Command, say, usage
from kdump_elftool.gdbside.target import GdbTarget, target
from kdump_elftool.plain.lists import hlist_nodes, list_nodes
from kdump_elftool.plain.rbtree import rbtree_nodes
from kdump_elftool.plain.walking import WalkError
from kdump_elftool.plain.xarray import Entry, xarray_entries


def show(walk: Iterable[Any], line: Callable[[Any], str], what: str, *, total: bool = True) -> None:
    """Each thing that a walk finds as a line; as the last one how it ended, if that is worth a line."""
    count = 0
    try:
        for item in walk:
            say(line(item))
            count += 1
    except (FaultError, WalkError) as error:
        say(f"stopped after {count} {what}: {error.message}")
        return
    if total:
        say(f"{count} {what}")
    elif not count:
        say(f"no {what}")


class _Nodes(Command):
    """Base of those whose nodes are inside of structures."""

    def walk(self, words: list[str], nodes: Callable[[GdbTarget, int], Iterable[int]]) -> None:
        """A line a node."""
        if not words:
            raise usage(self)
        kernel = target()
        mask = (1 << 8 * kernel.word) - 1
        start, container = address(kernel, words[0]), Container(kernel, words[1:])
        show(nodes(kernel, start), lambda node: container.shown(node, mask), "nodes")


class KdList(_Nodes):
    """Show what is on a list of the kernel (struct list_head).

    kd-list [-h] HEAD [TYPE MEMBER [FIELD...]]

    HEAD is the address of the list's head: a number or an expression, in quotes if it has spaces.  With
    TYPE and MEMBER the structures around the nodes are shown, with FIELDs of each; -h takes HEAD for a
    struct hlist_head.  The walk ends with a message where a node does not point back to the one before.

    kd-list modules module list name
    kd-list init_task.tasks task_struct tasks pid comm"""

    NAME = "kd-list"
    COMPLETES = gdb.COMPLETE_EXPRESSION

    def run(self, words: list[str]) -> None:
        """A line a node."""
        if words[:1] == ["-h"]:
            self.walk(words[1:], hlist_nodes)
        else:
            self.walk(words, list_nodes)


class KdRbtree(_Nodes):
    """Show what is in a red-black tree of the kernel, in order.

    kd-rbtree ROOT [TYPE MEMBER [FIELD...]]

    ROOT is the address of a struct rb_root or rb_root_cached: a number or an expression, in quotes if it has
    spaces.  With TYPE and MEMBER the structures around the nodes are shown, with FIELDs of each.
    The walk ends with a message where a node does not point back to its parent.

    kd-rbtree vmap_area_root vmap_area rb_node va_start va_end"""

    NAME = "kd-rbtree"
    COMPLETES = gdb.COMPLETE_EXPRESSION

    def run(self, words: list[str]) -> None:
        """A line a node."""
        self.walk(words, rbtree_nodes)


class KdXarray(Command):
    """Show what is in an XArray, or in a radix tree of older kernels: each index with its entry.

    kd-xarray ROOT

    ROOT is the address of a struct xarray or radix_tree_root: a number or an expression, in quotes if it has
    spaces.  An entry is an address, or a value that the kernel stored in place of one.

    kd-xarray '&((struct address_space *) 0xffff888003a4c5d8)->i_pages'"""

    NAME = "kd-xarray"
    COMPLETES = gdb.COMPLETE_EXPRESSION

    def run(self, words: list[str]) -> None:
        """A line an entry."""
        if len(words) != 1:
            raise usage(self)
        kernel = target()
        show(xarray_entries(kernel, address(kernel, words[0])), _entry, "entries")


def _entry(entry: Entry) -> str:
    return f"{entry.at:#x}  {'value ' if entry.is_value else ''}{entry.value:#x}"
