# Everything here is a thin name for a script: ./demo and ./test need no make at all.
.DEFAULT_GOAL := help
.PHONY: help setup unit check test demo demo-live lab lab-matrix bench fresh clean-lab
SH := ROOT=$(CURDIR) sh
PY := .venv/bin/python
KDUMP_ELFTOOL_LAB ?= $(HOME)/.cache/kdump-elftool-lab

help:             ## this list
	@sed -n 's/^\([a-z-]*\): *[a-z./-]* *## /\1\t/p' Makefile | expand -t 14

setup:            ## .venv with the package from src and every development tool
	@$(SH) tools/setup.sh

.venv/.ready: pyproject.toml constraints.txt tools/setup.sh
	@$(SH) tools/setup.sh

unit: .venv/.ready ## the inner loop: under a minute, no root, network, gdb or QEMU
	@env -u PYTHONUNBUFFERED $(PY) -m pytest -q -n 2 -m "not lab and not gdb and not root and not slow"

check: .venv/.ready ## lint, format, types, import rule, man page
	@PYTHON_DEV=$(PY) sh tools/check.sh

test:             ## what CI runs: the wheel, real kernels included
	@./test

demo:             ## the real crash in sample/, explained by gdb
	@./demo

demo-live:        ## a real crash, made on the spot, explained by gdb
	@./demo --live

lab:              ## the dumps that ./test uses
	@python3 -m lab ensure --set ci

lab-matrix: .venv/.ready ## every dump the lab knows, made and tested; ROWS=pattern for some
	@$(PY) -m lab test --set matrix $(if $(KEEP),--keep)

bench: .venv/.ready ## speed and memory, as ratios within one run
	@$(PY) -m bench.run

fresh:            ## ./demo and ./test in a newly debootstrapped Debian
	@python3 -m tools.fresh

clean-lab:        ## forget every dump and kernel of the lab
	rm -rf -- "$(KDUMP_ELFTOOL_LAB)"
