"""DWARF numbers under the names of the standard (DWARF 5, chapter 7), without their DW_ prefixes."""

from __future__ import annotations

from enum import IntEnum


class Tag(IntEnum):
    """DW_TAG_*."""

    array_type = 0x01
    enumeration_type = 0x04
    formal_parameter = 0x05
    member = 0x0D
    pointer_type = 0x0F
    compile_unit = 0x11
    structure_type = 0x13
    subroutine_type = 0x15
    typedef = 0x16
    union_type = 0x17
    unspecified_parameters = 0x18
    subrange_type = 0x21
    base_type = 0x24
    const_type = 0x26
    enumerator = 0x28
    subprogram = 0x2E
    variable = 0x34
    volatile_type = 0x35
    restrict_type = 0x37


class At(IntEnum):
    """DW_AT_*."""

    location = 0x02
    name = 0x03
    byte_size = 0x0B
    low_pc = 0x11
    high_pc = 0x12
    language = 0x13
    const_value = 0x1C
    producer = 0x25
    prototyped = 0x27
    bit_size = 0x0D
    count = 0x37
    data_member_location = 0x38
    declaration = 0x3C
    encoding = 0x3E
    external = 0x3F
    type = 0x49
    ranges = 0x55
    data_bit_offset = 0x6B


class Form(IntEnum):
    """DW_FORM_*; only those whose size does not depend on the value, and ``sdata``, which is padded."""

    addr = 0x01
    data2 = 0x05
    data4 = 0x06
    data8 = 0x07
    data1 = 0x0B
    sdata = 0x0D
    strp = 0x0E
    ref_addr = 0x10
    sec_offset = 0x17
    exprloc = 0x18
    flag_present = 0x19


class Encoding(IntEnum):
    """DW_ATE_*."""

    boolean = 0x02
    float = 0x04
    signed = 0x05
    signed_char = 0x06
    unsigned = 0x07
    unsigned_char = 0x08


UT_COMPILE = 1
LANG_C11 = 0x1D
OP_ADDR = 0x03
CHILDREN_NO, CHILDREN_YES = 0, 1
RLE_END_OF_LIST, RLE_START_LENGTH = 0x00, 0x07
