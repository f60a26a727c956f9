"""DWARF out of columns of plain numbers."""
