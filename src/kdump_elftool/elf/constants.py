"""ELF numbers, under the names of elf.h (System V gABI; Linux include/uapi/linux/elf.h, elf-em.h)."""

from __future__ import annotations

ELFMAG = b"\x7fELF"
EI_CLASS, EI_DATA, EI_VERSION, EI_OSABI, EI_NIDENT = 4, 5, 6, 7, 16
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
EV_CURRENT = 1
ELFOSABI_GNU = 3  # lldb refuses a core without it

ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
ET_NAMES = {1: "relocatable object", 2: "executable", 3: "shared object", 4: "core file"}

EM_386, EM_MIPS, EM_PPC, EM_PPC64, EM_S390 = 3, 8, 20, 21, 22
EM_ARM, EM_X86_64, EM_AARCH64, EM_RISCV, EM_LOONGARCH = 40, 62, 183, 243, 258
EM_NAMES = {
    EM_386: "i386",
    EM_MIPS: "mips",
    EM_PPC: "ppc32",
    EM_PPC64: "ppc64",
    EM_S390: "s390x",
    EM_ARM: "arm",
    EM_X86_64: "x86_64",
    EM_AARCH64: "arm64",
    EM_RISCV: "riscv64",
    EM_LOONGARCH: "loongarch64",
}

PT_LOAD, PT_NOTE = 1, 4
PF_RWX = 7
PN_XNUM = 0xFFFF
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 1, 2, 3, 7, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 1, 2, 4, 0x800
ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD = 1, 2
SHN_UNDEF, SHN_LORESERVE, SHN_ABS = 0, 0xFF00, 0xFFF1
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4

NT_PRSTATUS, NT_PRFPREG, NT_PRPSINFO, NT_AUXV = 1, 2, 3, 6
NT_GNU_BUILD_ID = 3
NT_ARM_PAC_MASK = 0x406
AT_NULL, AT_BASE, AT_ENTRY, AT_HWCAP = 0, 7, 9, 16
