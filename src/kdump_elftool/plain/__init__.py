"""Readers of kernel data structures that run anywhere, gdb's own Python (3.9 on) included."""
