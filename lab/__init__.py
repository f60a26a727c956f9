"""The lab: distribution kernels booted in QEMU, crashed, and their dumps collected with the truth.

Standard library only: it runs before any virtual environment exists.
"""
