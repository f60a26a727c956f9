"""The devices of a QEMU migration stream and the description of them, from QEMU's source (struct, json)."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

FULL, SUBSECTION, VMDESCRIPTION, FOOTER = 4, 5, 6, 0x7E
FIRST_ID = 3
GENERAL = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
SEGMENTS = "es cs ss ds fs gs".split()
LONG_MODE = 1 << 14
TTBR1_EL1, TTBR0_EL1 = 0x603000000013C101, 0x603000000013C100


@dataclass(frozen=True)
class Field:
    """What a field is described as, and its bytes."""

    told: dict[str, object]
    data: bytes


def numbers(name: str, size: int, *values: int) -> Field:
    """A number, or an array of several."""
    told: dict[str, object] = {"name": name}
    if len(values) > 1:
        told["array_len"] = len(values)
    data = b"".join(value.to_bytes(size, "big") for value in values)
    return Field(told | {"type": f"uint{8 * size}", "size": size}, data)


def structure(name: str, elements: list[list[Field]], *, compressed: bool = True) -> list[Field]:
    """A structure, or an array: one field, or one for each element as where elements can differ."""
    result = []
    datas = [b"".join(part.data for part in element) for element in elements]
    for index, (element, data) in enumerate(zip(elements, datas, strict=True)):
        told: dict[str, object] = {"name": name}
        if len(elements) > 1:
            told |= {"array_len": len(elements)} if compressed else {"index": index}
        parts = {"vmsd_name": name, "version": 1, "fields": [part.told for part in element]}
        told |= {"type": "struct", "struct": parts, "size": len(data)}
        if compressed:
            return [Field(told, b"".join(datas))]
        result.append(Field(told, data))
    return result


@dataclass(frozen=True)
class Device:
    """A section: ``subsections`` by name; without ``described`` the description leaves out its fields."""

    name: str
    instance: int
    fields: list[Field]
    subsections: dict[str, list[Field]] = field(default_factory=dict)
    described: bool = True

    def section(self, number: int) -> bytes:
        """Header, state and footer."""
        name = self.name.encode()
        head = struct.pack(">BIB", FULL, number, len(name)) + name + struct.pack(">II", self.instance, 12)
        data = b"".join(part.data for part in self.fields)
        for title, fields in self.subsections.items():
            data += struct.pack(">BB", SUBSECTION, len(title)) + title.encode() + struct.pack(">I", 1)
            data += b"".join(part.data for part in fields)
        return head + data + struct.pack(">BI", FOOTER, number)

    def told(self) -> dict[str, object]:
        """As in the description."""
        told: dict[str, object] = {"name": self.name, "instance_id": self.instance}
        if not self.described:
            return told
        told |= {"vmsd_name": self.name, "version": 12, "fields": [part.told for part in self.fields]}
        if self.subsections:
            told["subsections"] = [
                {"vmsd_name": title, "version": 1, "fields": [part.told for part in fields]}
                for title, fields in self.subsections.items()
            ]
        return told


def timer() -> Device:
    """The first device of every machine."""
    return Device("timer", 0, [numbers("cpu_ticks_offset", 8, 1), numbers("unused", 8, 0)])


def common(cpu: int) -> Device:
    """What is in front of each CPU."""
    return Device("cpu_common", cpu, [numbers("halted", 4, 0), numbers("interrupt_request", 4, 0)])


def x86_cpu(cpu: int, registers: dict[str, int], *, word: int = 8, long_mode: bool = True) -> Device:
    """A CPU of qemu-system-x86_64, or, with words of 4 bytes, of qemu-system-i386."""
    names = GENERAL[: 16 if word == 8 else 8]

    def get(name: str) -> int:
        return registers.get(name, 0)

    def segment(name: str) -> list[Field]:
        return [
            numbers("selector", 4, get(name)),
            numbers("base", word, get(f"{name}_base")),
            numbers("limit", 4, get(f"{name}_limit")),
            numbers("flags", 4, get(f"{name}_flags")),
        ]

    fields = [
        numbers("env.regs", word, *map(get, names)),
        numbers("env.eip", word, get("rip")),
        numbers("env.eflags", word, get("rflags")),
        numbers("env.hflags", 4, LONG_MODE if long_mode else 0),
        numbers("env.fpuc", 2, 0x37F),
        *structure(
            "env.fpregs", [[numbers("mant", 8, 7), numbers("exp", 2, 1)]] * 8, compressed=cpu % 2 == 0
        ),
        *structure("env.segs", [segment(name) for name in SEGMENTS], compressed=cpu % 2 == 0),
        *(part for name in ("ldt", "tr", "gdt", "idt") for part in structure(f"env.{name}", [segment(name)])),
        *(numbers(f"env.cr[{number}]", word, get(f"cr{number}")) for number in (0, 2, 3, 4)),
        numbers("env.mxcsr", 4, 0x1F80),
    ]
    if word == 8:
        fields.append(numbers("env.kernelgsbase", 8, get("kernel_gs_base")))
    return Device("cpu", cpu, fields, {"cpu/pkru": [numbers("env.pkru", 4, 0x55555554)]})


def arm_cpu(
    cpu: int,
    *,
    regs: list[int],
    xregs: list[int],
    pc: int,
    cpsr: int,
    stacks: list[int],
    system: dict[int, int],
) -> Device:
    """A CPU of qemu-system-aarch64 or -arm: ``regs`` 16, ``xregs`` 32 of them, ``stacks`` of each EL."""
    fields = [
        numbers("env.regs", 4, *regs),
        numbers("env.xregs", 8, *xregs),
        numbers("env.pc", 8, pc),
        numbers("cpsr", 4, cpsr),
        numbers("env.sp_el", 8, *stacks),
        numbers("cpreg_vmstate_array_len", 4, len(system)),
        numbers("cpreg_vmstate_indexes", 8, *system),
        numbers("cpreg_vmstate_values", 8, *system.values()),
    ]
    return Device("cpu", cpu, fields)


def description(devices: list[Device]) -> bytes:
    """The JSON text."""
    return json.dumps({"page_size": 4096, "devices": [device.told() for device in devices]}).encode()


def behind(devices: list[Device], text: bytes | None = None) -> bytes:
    """What is behind memory: sections, the end, the description (``text`` instead of the true one)."""
    out = b"".join(device.section(FIRST_ID + index) for index, device in enumerate(devices)) + b"\0"
    text = description(devices) if text is None else text
    return out + struct.pack(">BI", VMDESCRIPTION, len(text)) + text
