"""What a QEMU migration stream says at its very end about its devices: a JSON text.

The devices of a stream have no lengths, and what they consist of depends on QEMU's version and on the
guest.  The description names every field with its size: it is used instead of versions, and nothing in
it is believed before it is checked.  Machine types before 2.4 don't have it, and it can be switched off.

Sources: ``qemu_savevm_state_complete_precopy_non_iterable`` and ``vmstate_save_old_style`` in
migration/savevm.c, ``vmstate_save_state_v`` and ``vmsd_desc_field_start`` in migration/vmstate.c of QEMU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kdump_elftool.formats.migration_structs import Cursor, Section

LONGEST = 16 << 20
"""Bytes; a machine of 2 CPUs has 110,000, each further CPU adds 10,000."""
_MOST_ITEMS = 1 << 20
_DEEPEST = 16
"""Structures within each other; QEMU's own reach 5."""
MOST_STATE = 1 << 40
MOST_VALUES, _MOST_OF_ONE = 1 << 21, 1 << 15
"""Numbers that are looked at in all devices, and in one; an Arm CPU has some 1000."""
_HEAD = 5
_LOOKS = (1 << 20, LONGEST + _HEAD)


class Misdescribed(Exception):  # noqa: N818  # no error: a warning says why there are no registers
    """The description is missing, or cannot be true."""


@dataclass(frozen=True)
class Device:
    """A device section as it was described; ``content`` has its fields and subsections, unchecked."""

    name: str
    instance: int
    content: dict[str, object]

    def size(self) -> int:
        """Bytes of the section between header and footer.  Raises Misdescribed."""
        if "fields" not in self.content:
            raise Misdescribed(f"the device {self.name!r} is described without its fields")
        return _size(self.content, 0)


def find_description(cursor: Cursor) -> tuple[int, list[Device]]:
    """Where the description begins, and its devices in the order of their sections.  Raises Misdescribed."""
    for look in _LOOKS:
        begin = max(cursor.limit - look, cursor.at)
        tail = cursor.file.read_at(begin, cursor.limit - begin)
        at = _header(tail)
        if at is not None:
            return begin + at, _devices(tail[at + _HEAD :])
        if begin == cursor.at:
            break
    raise Misdescribed("the description of the devices at the end is missing")


def _header(tail: bytes) -> int | None:
    """The first place in ``tail`` from which type, length and a text of that length reach to its end."""
    data = np.frombuffer(tail, dtype=np.uint8)
    if len(data) <= _HEAD:
        return None
    places = np.flatnonzero((data[:-_HEAD] == Section.VMDESCRIPTION) & (data[_HEAD:] == ord("{")))
    for at in places.tolist():
        if int.from_bytes(tail[at + 1 : at + _HEAD], "big") == len(tail) - at - _HEAD:
            return int(at)
    return None


def _devices(text: bytes) -> list[Device]:
    if text.count(b",") + text.count(b"{") + text.count(b"[") > _MOST_ITEMS:
        raise Misdescribed("the description of the devices is longer than any can be")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise Misdescribed("the description of the devices is damaged") from None
    found = document.get("devices") if isinstance(document, dict) else None
    devices = []
    for content in _objects(found):
        name, instance = content.get("name"), content.get("instance_id")
        if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) < 256:
            raise Misdescribed("a device is described without a name")
        # it is printed as an int64, and is an unsigned number of 32 bits
        if type(instance) is not int or not -(1 << 31) <= instance < 1 << 32:
            raise Misdescribed(f"the device {name!r} is described without its number")
        devices.append(Device(name, instance & 0xFFFFFFFF, content))
    return devices


@dataclass
class Budget:
    """How many numbers may still be looked at."""

    left: int = MOST_VALUES


def values(
    device: Device, data: bytes, wanted: Callable[[str], bool], budget: Budget
) -> Iterator[tuple[str, int]]:
    """Numbers in a device's state: ``env.regs[3]``, ``env.segs[1].base``, ``env.eip``.

    ``data`` is the section between header and footer, of :meth:`Device.size` bytes; ``wanted`` is asked
    for each field's name.  Subsections are left out.  Raises Misdescribed.
    """
    at = 0
    end = max(budget.left - _MOST_OF_ONE, 0)
    for item in _objects(device.content.get("fields")):
        name = _name(item)
        if wanted(name):
            for told, offset, size in _places(item, name, at, 0):
                budget.left -= 1
                if budget.left < end:
                    raise Misdescribed("the devices are described with too many numbers")
                if size:
                    yield told, int.from_bytes(data[offset : offset + size], "big")
        at += _field_size(item)


def _places(item: dict[str, object], name: str, at: int, depth: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each element of a field; size 0 for what is no number."""
    if depth > _DEEPEST:
        raise Misdescribed("the description of the devices has too many levels")
    size, count = _natural(item, "size"), _count(item)
    parts = item.get("struct")
    for index in range(count):
        told = name
        if "array_len" in item or "index" in item:
            told = f"{name}[{_natural(item, 'index') if 'index' in item else index}]"
        begin = at + index * size
        is_number = size <= 8 and not isinstance(parts, dict)
        yield told, begin, size if is_number else 0
        if not isinstance(parts, dict):
            continue
        for part in _objects(parts.get("fields")):
            yield from _places(part, f"{told}.{_name(part)}", begin, depth + 1)
            begin += _field_size(part)
        if begin > at + (index + 1) * size:
            raise Misdescribed(f"the field {told!r} is described as larger than what it is in")


def _size(content: dict[str, object], depth: int) -> int:
    """Bytes of fields and subsections."""
    if depth > _DEEPEST:
        raise Misdescribed("the description of the devices has too many levels")
    total = sum(_field_size(item) for item in _objects(content.get("fields")))
    for part in _objects(content.get("subsections", [])):
        name = part.get("vmsd_name")
        if not isinstance(name, str):
            raise Misdescribed("a subsection is described without a name")
        total += 1 + 1 + len(name.encode("utf-8", "replace")) + 4 + _size(part, depth + 1)
    if total > MOST_STATE:
        raise Misdescribed("a device is described as larger than any can be")
    return total


def _field_size(item: dict[str, object]) -> int:
    """Bytes of a field, with whatever is within it."""
    return _natural(item, "size") * _count(item)


def _count(item: dict[str, object]) -> int:
    return _natural(item, "array_len") if "array_len" in item else 1


def _name(item: dict[str, object]) -> str:
    name = item.get("name")
    return name if isinstance(name, str) else ""


def _natural(item: dict[str, object], key: str) -> int:
    number = item.get(key)
    if type(number) is not int or not 0 <= number <= MOST_STATE:
        raise Misdescribed(f"a field is described without its {key}")
    return number


def _objects(items: object) -> Iterator[dict[str, object]]:
    if not isinstance(items, list):
        raise Misdescribed("the description of the devices is damaged")
    for item in items:
        if not isinstance(item, dict):
            raise Misdescribed("the description of the devices is damaged")
        yield item
