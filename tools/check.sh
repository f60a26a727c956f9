#!/bin/sh
# Everything that can be checked without running the program on a dump. All checks run even when an
# early one fails, so that one round shows all there is to mend.
#   PYTHON_DEV=python-of-the-dev-environment sh tools/check.sh
set -eu
cd "$(dirname -- "$0")/.."
python=${PYTHON_DEV:-.venv/bin/python}
failed=

# check NAME COMMAND...
check() {
    name=$1
    shift
    if "$@"; then
        printf 'ok      %s\n' "$name"
    else
        printf 'FAILED  %s\n' "$name"
        failed="$failed $name"
    fi
}

typed=
for tree in src lab tools bench; do
    [ -z "$(find $tree -name '*.py' 2>/dev/null | head -n 1)" ] || typed="$typed $tree"
done
for script in demo test tools/*.sh contrib/initramfs-hook lab/init lab/crash-init lab/failed-init lab/oops-crasher lab/blocked-crasher lab/kcore-crasher; do check "sh -n $script" sh -n "$script"; done
check "ruff check" "$python" -m ruff check -q --no-cache .
check "ruff format" "$python" -m ruff format -q --no-cache --check .
# shellcheck disable=SC2086  # a list of words
check "mypy --strict" "$python" -m mypy --strict $typed
check "import rule" "$python" -m tools.import_rule src/kdump_elftool
for tree in src/kdump_elftool/plain src/kdump_elftool/gdbside; do
    # these run in the Python of old gdbs
    [ ! -d $tree ] || check "Python 3.9 in $tree" "$python" -c 'from vermin import main; main()' -q --target=3.9- --violations $tree
done
check "man page" "$python" -m tools.gen_man --check
check "completion" "$python" -m tools.gen_completion --check

[ -z "$failed" ] || { printf 'checks failed:%s\n' "$failed"; exit 1; }
