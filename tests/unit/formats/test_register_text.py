"""Registers as text: what QEMU prints for each architecture, lines by hand, and what is refused."""

from __future__ import annotations

from random import Random

import pytest

from kdump_elftool.errors import KdumpError
from kdump_elftool.files import InputFile
from kdump_elftool.formats import register_text
from kdump_elftool.formats.register_text import read_registers

X86_64 = """\

CPU#0
RAX=000000004d433a9b RBX=00007ffc4f12fe48 RCX=00000000004a4108 RDX=00007ffc4f12fe48
RSI=00007ffc4f12fe38 RDI=0000000000000001 RBP=00000000004a06f0 RSP=00007ffc4f12fc78
R8 =0000000036586680 R9 =00000000365866a0 R10=0000000000000004 R11=0000000000000206
R12=00007ffc4f12fe38 R13=0000000000000001 R14=0000000000000002 R15=0000000000000003
RIP=000000000040161e RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0
ES =0000 0000000000000000 00000000 00000000
CS =0033 0000000000000000 ffffffff 00affb00 DPL=3 CS64 [-RA]
SS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000036585380 00000000 00000000
GS =0000 ffff8df35ef00000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=000000000e29e730 CR3=0000000001374000 CR4=00750eb0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000000 CCD=0000000000000000 CCO=EFLAGS
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=00000000000000000000000000000000 XMM01=00000000000000000000000000000000
YMM00=0000000000000000 0000000000000000 0000000000000000 ffffffffffffffff
Code=4c 89 d8 <0f> 0b
"""
I386 = """\
EAX=3ddf7399 EBX=080eaff4 ECX=d9644217 EDX=bf99d704
ESI=080eaff4 EDI=00000001 EBP=00000001 ESP=bf99d6cc
EIP=080496e0 EFL=00000206 [-----P-] CPL=3 II=0 A20=1 SMM=0 HLT=0
ES =007b 00000000 ffffffff 00cff300 DPL=3 DS   [-WA]
CS =0073 00000000 ffffffff 00cffa00 DPL=3 CS32 [-R-]
GS =0033 0927c380 ffffffff 00dff300 DPL=3 DS   [-WA]
TR =0080 ff406000 0000206b 00008900 DPL=0 TSS32-avl
GDT=     ff401000 000000ff
CR0=80050033 CR2=080eb000 CR3=06d7a000 CR4=003506f0
"""
ARM64 = """\
CPU#1
 PC=ffffc85bf03a8f5c X00=0000000000004834 X01=ffff00001feca550
X02=ffff37a42f202000 X03=ffff37a42f202000 X04=ffff37a42f202000
X29=ffff8000080dbde0 X30=7287c85bf03a8f74  SP=ffff8000080dbde0
PSTATE=404000c5 -Z-- EL1h  SVCR=00000000 --  BTYPE=0     FPCR=00000000 FPSR=00000000
P00=000000000000ffff P01=0000000000000000 P02=0000000000000000
P15=0000000000000000 FFR=0000000000000000
Z00[3-2]=0000000000000000:0000000000000000:0000000000000000:0000000000000000
   [1-0]=0000000000000000:0000000000000000:2525252525252525:2525252525252525
Q00=0000000000000000:0000000000000000 Q01=4d4f4800313d4c56:4c48530072656e6e
    FPU disabled
"""
ARM = """\
CPU#0
R00=00000001 R01=be9b7ed4 R02=be9b7edc R03=48704113
R12=00f89000 R13=be9b7d78 R14=000104bd R15=00010446
PSR=000f0030 ---- T NS usr32
s00=05f5e100 s01=4197d784 d00=4197d78405f5e100
FPSCR: 80000010
"""
MIPS = """\
CPU#0
pc=0x80342200 HI=0x00000002 LO=0x019bc981 ds 00d0 81b540c4 0
GPR00: r0 00000000 at 00000001 v0 32af750d v1 7f88d1d8
GPR28: gp 004a62b0 sp 7f88d1b0 s8 01a0d268 ra 004007d0
CP0 Status  0x0400a413 Cause   0x50808000 EPC    0x004006d8
    Config0 0x80000482 Config1 0x9e190c8f LLAddr 0x0000000000000001
    Config2 0x80000000 Config3 0x00000000
CP1 FCR0 0x00739300  FCR31 0x00000000  SR.FR 0  fp_status 0x00
f0 : w:00000000 d:0000000000000000 fd:               0 fs:               0 psu:               0
"""


@pytest.fixture
def read(tmp_path):
    def run(text: str | bytes) -> dict[int, dict[str, int]]:
        path = tmp_path / "registers"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with InputFile.open(str(path)) as file:
            return {cpu.number: dict(cpu.values) for cpu in read_registers(file)}

    return run


def test_x86_64(read):
    (values,) = read(X86_64).values()
    assert values["rax"] == 0x4D433A9B
    assert [values[f"r{n}"] for n in (8, 9, 15)] == [0x36586680, 0x365866A0, 3]
    assert (values["rip"], values["rflags"], values["rsp"]) == (0x40161E, 0x202, 0x7FFC4F12FC78)
    assert (values["cs"], values["cs_limit"], values["cs_flags"]) == (0x33, 0xFFFFFFFF, 0xAFFB00)
    assert (values["fs_base"], values["gs_base"]) == (0x36585380, 0xFFFF8DF35EF00000)
    assert (values["gdt_base"], values["idt_limit"]) == (0xFFFFFE0000001000, 0xFFF)
    assert [values[f"cr{n}"] for n in (0, 2, 3, 4)] == [0x80050033, 0xE29E730, 0x1374000, 0x750EB0]
    assert len(values) == 16 + 2 + 8 * 4 + 2 * 2 + 4  # and nothing else


def test_i386_without_a_cpu_line(read):
    (values,) = read(I386).values()
    assert (values["eip"], values["esp"], values["eflags"]) == (0x80496E0, 0xBF99D6CC, 0x206)
    assert (values["gs"], values["gs_base"], values["tr_base"]) == (0x33, 0x927C380, 0xFF406000)
    assert (values["cr3"], values["gdt_limit"]) == (0x6D7A000, 0xFF)


def test_arm64(read):
    (values,) = [read(ARM64)[1]]
    assert (values["pc"], values["sp"], values["pstate"]) == (
        *(0xFFFFC85BF03A8F5C, 0xFFFF8000080DBDE0, 0x404000C5),
    )
    assert set(values) == {"pc", "sp", "pstate", "x0", "x1", "x2", "x3", "x4", "x29", "x30"}


def test_arm(read):
    assert read(ARM)[0] == {
        "r0": 1,
        "r1": 0xBE9B7ED4,
        "r2": 0xBE9B7EDC,
        "r3": 0x48704113,
        "r12": 0xF89000,
        "r13": 0xBE9B7D78,
        "r14": 0x104BD,
        "r15": 0x10446,
        "cpsr": 0xF0030,
    }


def test_mips(read):
    assert read(MIPS)[0] == {
        "pc": 0x80342200,
        "hi": 2,
        "lo": 0x19BC981,
        "r0": 0,
        "r1": 1,
        "r2": 0x32AF750D,
        "r3": 0x7F88D1D8,
        "r28": 0x4A62B0,
        "r29": 0x7F88D1B0,
        "r30": 0x1A0D268,
        "r31": 0x4007D0,
        "status": 0x400A413,
        "cause": 0x50808000,
    }


def test_by_hand(read):
    text = "# from the serial console\r\ncpu1.rip=0xffffffff81000000\r\ncpu0.rip = 10\r\n\r\ncpu1.rsp=FF\r\n"
    assert read(text) == {0: {"rip": 0x10}, 1: {"rip": 0xFFFFFFFF81000000, "rsp": 0xFF}}


def test_what_is_around_in_a_terminal(read):
    assert read("(qemu) info registers -a\n" + X86_64 + "(qemu) \n") == read(X86_64)


def test_many_cpus(read):
    told = read("".join(f"\nCPU#{n}\nRIP={n:016x} RFL=00000202 [-------] CPL=3\n" for n in range(256)))
    assert told == {n: {"rip": n, "rflags": 0x202} for n in range(256)}


@pytest.mark.parametrize(
    "text,word",
    [
        ("", "no registers"),
        ("CPU#0\n", "no registers"),
        ("\n\nhello there\n", "line 3: this is not understood: hello there"),
        ("RIP=00000000004016zz\n", "line 1: this is not understood: RIP"),
        ("RIP=10 RSP=\n", "line 1: this is not understood: RSP="),
        ("RIP=10 RSP=0x RBP=10\n", "not understood: RSP=0x"),
        ("RIP=11111111111111111\n", "line 1: this is not understood"),
        ("CPU#0\nRIP=10\nCPU#0\nRIP=11\n", "line 3: CPU 0 is there a second time"),
        ("CPU#0\nRIP=10\nRIP=11\n", "line 3: rip of CPU 0 is there a second time"),
        ("cpu0.rip=10\ncpu0.rip=10\n", "line 2: rip of CPU 0"),
        ("CPU#99999\nRIP=10\n", "line 1: a CPU number of 99999"),
        ("cpu4096.rip=10\n", "line 1: a CPU number of 4096"),
        ("CPU#9999999999\nRIP=10\n", "line 1: this is not understood"),
        ("cpu0.rip=\x1b[2J\n", r"line 1: this is not understood: cpu0.rip=\\x1b"),
        (b"\x7fELF\2\1\1" + bytes(100), "line 1"),
        ("RIP=1" + "0" * 5000, "line 1: a line of 5005 characters"),
        (" ".join(f"A{n}=1" for n in range(600)) + "\n", "line 1: more than 512 registers"),
    ],
)
def test_refused(read, text, word):
    with pytest.raises(KdumpError, match=word) as caught:
        read(text)
    assert "info registers" in caught.value.hint


def test_too_large(read, monkeypatch):
    monkeypatch.setattr(register_text, "LONGEST", 1000)
    with pytest.raises(KdumpError, match="no text of registers is that large"):
        read(X86_64)


def test_damaged_text_never_crashes(read):
    random = Random(20261124)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        text = bytearray(random.choice([X86_64, I386, ARM64, ARM, MIPS]).encode())
        for _ in range(random.choice([1, 2, 5])):
            at = random.randrange(len(text))
            text[at : at + random.choice([0, 1, 9])] = random.randbytes(random.choice([0, 1, 3]))
        try:
            for values in read(bytes(text)).values():
                assert all(0 <= value < 1 << 64 for value in values.values())
            outcomes["read"] += 1
        except KdumpError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
