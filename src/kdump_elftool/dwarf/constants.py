"""DWARF numbers under the names of the standard (DWARF 5, chapter 7), in capitals without prefixes."""

from __future__ import annotations

from enum import IntEnum


class Tag(IntEnum):
    """DW_TAG_*."""

    ARRAY_TYPE = 0x01
    ENUMERATION_TYPE = 0x04
    FORMAL_PARAMETER = 0x05
    MEMBER = 0x0D
    POINTER_TYPE = 0x0F
    COMPILE_UNIT = 0x11
    STRUCTURE_TYPE = 0x13
    SUBROUTINE_TYPE = 0x15
    TYPEDEF = 0x16
    UNION_TYPE = 0x17
    UNSPECIFIED_PARAMETERS = 0x18
    SUBRANGE_TYPE = 0x21
    BASE_TYPE = 0x24
    CONST_TYPE = 0x26
    ENUMERATOR = 0x28
    SUBPROGRAM = 0x2E
    VARIABLE = 0x34
    VOLATILE_TYPE = 0x35
    RESTRICT_TYPE = 0x37


class At(IntEnum):
    """DW_AT_*."""

    LOCATION = 0x02
    NAME = 0x03
    BYTE_SIZE = 0x0B
    STMT_LIST = 0x10
    LOW_PC = 0x11
    HIGH_PC = 0x12
    LANGUAGE = 0x13
    COMP_DIR = 0x1B
    CONST_VALUE = 0x1C
    PRODUCER = 0x25
    PROTOTYPED = 0x27
    BIT_SIZE = 0x0D
    COUNT = 0x37
    DATA_MEMBER_LOCATION = 0x38
    DECLARATION = 0x3C
    ENCODING = 0x3E
    EXTERNAL = 0x3F
    TYPE = 0x49
    RANGES = 0x55
    DATA_BIT_OFFSET = 0x6B


class Form(IntEnum):
    """DW_FORM_*; only those whose size does not depend on the value, and SDATA, which is padded."""

    ADDR = 0x01
    DATA2 = 0x05
    DATA4 = 0x06
    DATA8 = 0x07
    DATA1 = 0x0B
    SDATA = 0x0D
    STRP = 0x0E
    REF_ADDR = 0x10
    SEC_OFFSET = 0x17
    EXPRLOC = 0x18
    FLAG_PRESENT = 0x19


class Encoding(IntEnum):
    """DW_ATE_*."""

    BOOLEAN = 0x02
    FLOAT = 0x04
    SIGNED = 0x05
    SIGNED_CHAR = 0x06
    UNSIGNED = 0x07
    UNSIGNED_CHAR = 0x08


UT_COMPILE = 1
LANG_C11 = 0x1D
PRODUCER = b"kdump-elftool (from BTF)"
OP_ADDR = 0x03
CHILDREN_NO, CHILDREN_YES = 0, 1
FORM_IMPLICIT_CONST = 0x21


class Rle(IntEnum):
    """DW_RLE_*."""

    END_OF_LIST = 0x00
    BASE_ADDRESSX = 0x01
    STARTX_ENDX = 0x02
    STARTX_LENGTH = 0x03
    OFFSET_PAIR = 0x04
    BASE_ADDRESS = 0x05
    START_END = 0x06
    START_LENGTH = 0x07
