"""ELF files: parse, lay out, write."""
