"""What runs in gdb's own Python: the standard library only, in the syntax of Python 3.9."""
