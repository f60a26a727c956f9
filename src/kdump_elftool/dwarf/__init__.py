"""A small writer of DWARF 5, usable alone: it takes columns of numbers and knows no dump."""
