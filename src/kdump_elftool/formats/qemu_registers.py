"""Registers by name from the fields of QEMU's CPU devices; which machine they are of.

Sources: target/i386/machine.c (``vmstate_x86_cpu``) and cpu.h (``R_EAX``, ``R_ES``, ``HF_LMA_MASK``),
target/arm/machine.c (``vmstate_arm_cpu``), cpu.h (``PSTATE_nRW``) and kvm-consts.h
(``CP_REG_ARM64``) of QEMU; Linux arch/arm64/include/uapi/asm/kvm.h (``ARM64_SYS_REG``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdump_elftool.elf.constants import EM_386, EM_AARCH64, EM_ARM, EM_X86_64

Fields = Mapping[str, int]
"""Numbers of a CPU device by the names of the description, ``env.regs[3]``."""

_X86_GENERAL = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_X86_SEGMENTS = "es cs ss ds fs gs".split()
_X86: dict[str, str] = {
    **{f"env.regs[{index}]": name for index, name in enumerate(_X86_GENERAL)},
    "env.eip": "rip",
    "env.eflags": "rflags",
    **{f"env.cr[{number}]": f"cr{number}" for number in (0, 2, 3, 4)},
    "env.kernelgsbase": "kernel_gs_base",
    **{
        f"{where}.{field}": name + suffix
        for where, name in (
            *((f"env.segs[{index}]", name) for index, name in enumerate(_X86_SEGMENTS)),
            *((f"env.{name}", name) for name in ("ldt", "tr", "gdt", "idt")),
        )
        for field, suffix in (("selector", ""), ("base", "_base"), ("limit", "_limit"), ("flags", "_flags"))
    },
}
_HF_LMA = 1 << 14
"""In ``env.hflags``: long mode, by which QEMU's dump-guest-memory chooses the machine as well."""
_ARM64: dict[str, str] = {
    **{f"env.xregs[{number}]": f"x{number}" for number in range(31)},
    "env.xregs[31]": "sp",
    "env.pc": "pc",
    "cpsr": "pstate",
}
_ARM: dict[str, str] = {
    **{f"env.regs[{number}]": f"r{number}" for number in range(13)},
    "env.regs[13]": "sp",
    "env.regs[14]": "lr",
    "env.regs[15]": "pc",
    "cpsr": "cpsr",
}
_PSTATE_NRW = 1 << 4
"""AArch32."""
_INDEXES, _VALUES = "cpreg_vmstate_indexes", "cpreg_vmstate_values"
_OF_ARM64 = 0x6 << 60


def _system(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    number = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    return _OF_ARM64 | 0x0030_0000_0013_0000 | number


_SYSTEM = {
    _system(3, 0, 1, 0, 0): "sctlr_el1",
    _system(3, 0, 2, 0, 0): "ttbr0_el1",
    _system(3, 0, 2, 0, 1): "ttbr1_el1",
    _system(3, 0, 2, 0, 2): "tcr_el1",
}
_WANTED = frozenset(
    (
        *("env.regs", "env.eip", "env.eflags", "env.hflags", "env.segs", "env.ldt", "env.tr", "env.gdt"),
        *("env.idt", "env.cr[0]", "env.cr[2]", "env.cr[3]", "env.cr[4]", "env.kernelgsbase"),
        *("env.xregs", "env.pc", "cpsr", "env.sp_el", _INDEXES, _VALUES),
    )
)
_USED = frozenset((*_X86, *_ARM64, *_ARM, "env.hflags", "env.sp_el[1]"))


def wanted(name: str) -> bool:
    """Whether a field of a CPU device is looked at here."""
    return name in _WANTED


def reduced(fields: Fields) -> dict[str, int]:
    """What is of use of a CPU's fields, which may be thousands; system registers under their own names."""
    found = {name: value for name, value in fields.items() if name in _USED}
    for name, index in fields.items():
        if name.startswith(_INDEXES) and index in _SYSTEM:
            value = fields.get(_VALUES + name.removeprefix(_INDEXES))
            if value is not None:
                found[_SYSTEM[index]] = value
    return found


@dataclass(frozen=True)
class NamedRegisters:
    """Registers by CPU, and the ELF machine number of the guest; nothing for an unknown kind of CPU."""

    registers: dict[int, dict[str, int]]
    e_machine: int | None


def named_registers(cpus: Mapping[int, Fields]) -> NamedRegisters:
    """What the (reduced) fields of the CPUs, by number, are as registers.

    CPUs whose fields are not all there are left out.
    """
    first = cpus[min(cpus)] if cpus else {}
    need: tuple[str, ...] = ("pc", "sp")
    if "env.eip" in first:
        table, need = _X86, ("rip", "rsp", "cr3")
        e_machine = EM_X86_64 if first.get("env.hflags", 0) & _HF_LMA else EM_386
    elif "env.xregs[0]" in first and any(map(_is_arm64, cpus.values())):
        table, e_machine = _ARM64, EM_AARCH64
    elif "env.regs[15]" in first and "cpsr" in first:
        table, e_machine = _ARM, EM_ARM
    else:
        return NamedRegisters({}, None)
    result = {}
    for cpu, fields in cpus.items():
        named = {name: fields[field] for field, name in table.items() if field in fields}
        if table is _X86:
            named.setdefault("kernel_gs_base", 0)  # 32-bit QEMU has none, and writes this in its dumps
        if e_machine == EM_AARCH64:
            named |= {name: fields[name] for name in _SYSTEM.values() if name in fields}
            named |= _in_aarch32(fields)
        if all(name in named for name in need):
            result[cpu] = named
    return NamedRegisters(result, e_machine)


def _is_arm64(fields: Fields) -> bool:
    """In AArch64, or in AArch32 below a kernel whose stack is where only 64 bits reach."""
    return not fields.get("cpsr", 0) & _PSTATE_NRW or bool(fields.get("env.sp_el[1]", 0) >> 32)


def _in_aarch32(fields: Fields) -> dict[str, int]:
    """Registers of a CPU in AArch32 as those of AArch64 (``aarch64_sync_32_to_64``, user mode)."""
    if not fields.get("cpsr", 0) & _PSTATE_NRW:
        return {}
    named = {f"x{number}": fields.get(f"env.regs[{number}]", 0) for number in range(15)}
    return {**named, "sp": 0, "pc": fields.get("env.regs[15]", 0)}
