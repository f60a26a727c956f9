#!/bin/sh
# make setup: .venv, a thin environment on the cached pinned packages, with this checkout in it
set -eu
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=tools/bootstrap.sh
. "$ROOT/tools/bootstrap.sh"
cd "$ROOT"
find_python
deps_env dev dev
thin_env .venv
pip_into .venv --no-build-isolation -e . || die "the checkout does not install"
touch .venv/.ready
