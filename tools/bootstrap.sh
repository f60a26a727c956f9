# shellcheck shell=sh
# What ./demo, ./test and the Makefile share: system packages, Python environments, timings.
# Plain POSIX sh, sourced with $ROOT set to the checkout. A warm run asks no registry for anything.
#
# Environments live under $KDUMP_ELFTOOL_CACHE (default ~/.cache/kdump-elftool-dev):
#   envs/NAME-KEY   the pinned packages of some dependency groups, made once and never changed;
#                   KEY covers constraints.txt, the dependency groups and the interpreter
#   a run's own environment is a thin one on top of it that holds our wheel only, so that two
#   checkouts, or a demo and a test, never see each other's wheel.

CACHE=${KDUMP_ELFTOOL_CACHE:-${HOME:-/root}/.cache/kdump-elftool-dev}
mkdir -p "$CACHE"
# switches of the interpreter that users don't have set: unbuffered output, for one, hides errors
unset PYTHONUNBUFFERED PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS || true
DOWNLOAD_SECONDS=0
STAGES=
STAGE_NAME=

say() { printf '%s\n' "$*"; }
note() { printf -- '-- %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
now() { date +%s; }

# stage NAME: ends the stage before and starts this one; `stage` alone only ends
stage() {
    if [ -n "$STAGE_NAME" ]; then
        STAGES="$STAGES$(printf '%6d s  %s' "$(($(now) - STAGE_START))" "$STAGE_NAME")
"
    fi
    STAGE_NAME=${1:-}
    STAGE_START=$(now)
    if [ -n "$STAGE_NAME" ]; then printf '\n== %s\n' "$STAGE_NAME"; fi
}

# downloading COMMAND...: runs it and books its time as time for downloads and installations
downloading() {
    downloading_start=$(now)
    "$@" || return
    DOWNLOAD_SECONDS=$((DOWNLOAD_SECONDS + $(now) - downloading_start))
}

# logged FILE COMMAND...: shows the output, keeps it in FILE, returns the command's own exit status
logged() {
    log_file=$1
    shift
    { "$@" 2>&1 && echo 0 >"$log_file.rc" || echo $? >"$log_file.rc"; } | tee "$log_file"
    return "$(cat "$log_file.rc")"
}

is_root() { [ "$(id -u)" = 0 ]; }

# missing_packages NAME...: those that dpkg does not have installed
missing_packages() {
    for package in $(printf '%s\n' "$@" | sort -u); do
        case $(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null || true) in
        ii*) ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

apt_quietly() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=900 \
        -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" </dev/null >"$CACHE/apt.log" 2>&1
}

apt_install() {
    # another apt-get may hold the list lock, for which apt itself does not wait
    for attempt in 1 2 3 4 5; do
        if apt_quietly update; then break; fi
        [ "$attempt" != 5 ] || { cat "$CACHE/apt.log" >&2; return 1; }
        sleep 10
    done
    apt_quietly install --no-install-recommends "$@" || { cat "$CACHE/apt.log" >&2; return 1; }
}

# need_packages NAME...: 0 when all are there, installing what is missing; 1 with $WHY_NOT when that
# can't be done because of who we are or where we are
need_packages() {
    WHY_NOT=
    if ! command -v dpkg-query >/dev/null; then
        note "not a Debian system: install what these Debian packages hold yourself: $*"
        return 0
    fi
    absent=$(missing_packages "$@")
    [ -n "$absent" ] || return 0
    if ! is_root; then
        WHY_NOT="not root, and not installed: ${absent% }"
        return 1
    fi
    note "installing ${absent% }"
    # shellcheck disable=SC2086  # a list of words
    downloading apt_install $absent || die "apt-get could not install ${absent% }"
}

python_is_good() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python: sets $PYTHON to an interpreter that can make environments
find_python() {
    for PYTHON in python3 /usr/bin/python3; do
        if python_is_good "$PYTHON"; then return 0; fi
    done
    need_packages python3 python3-venv ca-certificates || die "Python >= 3.11 with venv is needed ($WHY_NOT)"
    for PYTHON in python3 /usr/bin/python3; do
        if python_is_good "$PYTHON"; then return 0; fi
    done
    die "no Python >= 3.11 with the venv module found"
}

# pip_quietly COMMAND...: its output is kept aside and shown only when it fails
pip_quietly() {
    "$@" >"$CACHE/pip.log" 2>&1 || { cat "$CACHE/pip.log" >&2; return 1; }
}

make_deps_env() {
    rm -rf "$DEPS"
    "$PYTHON" -m venv "$DEPS" || return 1
    groups=
    for group in "$@"; do groups="$groups --group $group"; done
    set -- "$DEPS/bin/python" -m pip install --root-user-action=ignore -c "$ROOT/constraints.txt"
    # pip itself first: the one that comes with Python may not know dependency groups
    pip_quietly "$@" -U pip || return 1
    # shellcheck disable=SC2086  # a list of words
    pip_quietly "$@" $groups || return 1
    touch "$DEPS/.ready"
}

# dependencies_key GROUP...: changes with whatever decides what an environment holds
dependencies_key() {
    "$PYTHON" - "$ROOT" "$@" <<'PY'
import hashlib, sys, tomllib
from pathlib import Path

root = Path(sys.argv[1])
groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
parts = (root / "constraints.txt").read_text(), groups, sys.argv[2:], sys.executable, sys.version
print(hashlib.sha256(repr(parts).encode()).hexdigest()[:12])
PY
}

# deps_env NAME GROUP...: sets $DEPS to an environment with those dependency groups
deps_env() {
    deps_name=$1
    shift
    mkdir -p "$CACHE/envs"
    key=$(dependencies_key "$@") || die "pyproject.toml does not parse"
    DEPS=$CACHE/envs/$deps_name-$key
    exec 9>"$CACHE/envs/lock"
    command -v flock >/dev/null && flock 9
    if [ ! -e "$DEPS/.ready" ]; then
        note "making the Python environment $deps_name ($*)"
        downloading make_deps_env "$@" || { rm -rf "$DEPS"; die "pip could not install the pinned packages"; }
    fi
    touch "$DEPS"
    # what no run used for a month belongs to old pins
    find "$CACHE/envs" -maxdepth 1 -type d -name "$deps_name-*" -mtime +30 -exec rm -rf {} + || true
    exec 9>&-
}

# thin_env DIR: an empty environment on top of $DEPS
thin_env() {
    rm -rf "$1"
    "$DEPS/bin/python" -m venv --without-pip "$1"
    "$1/bin/python" - "$DEPS" <<'PY'
import sys, sysconfig
from pathlib import Path

below = sysconfig.get_path("purelib", vars={"base": sys.argv[1], "platbase": sys.argv[1]})
Path(sysconfig.get_path("purelib"), "deps.pth").write_text(below + "\n")
PY
}

pip_into() {
    pip_target=$1
    shift
    pip_quietly "$DEPS/bin/python" -m pip --python "$pip_target/bin/python" install \
        --no-index --no-deps --force-reinstall --root-user-action=ignore "$@"
}

# wheel_env DIR: builds the wheel of this checkout and sets up DIR with it
wheel_env() {
    rm -rf "$1.wheel"
    pip_quietly "$DEPS/bin/python" -m build --wheel --no-isolation --outdir "$1.wheel" "$ROOT" ||
        die "the wheel does not build"
    thin_env "$1"
    pip_into "$1" "$1.wheel"/*.whl || die "the wheel does not install"
    note "built and installed $(cd "$1.wheel" && echo ./*.whl)"
}

# book_lab_downloads LOG: what the lab's own command says about downloads in its output, added to the download time
book_lab_downloads() {
    lab_seconds=$(sed -n 's/^lab: downloaded .* in \([0-9]*\)[0-9.]* s.*/\1/p' "$1" | awk '{ s += $1 } END { print s + 0 }')
    DOWNLOAD_SECONDS=$((DOWNLOAD_SECONDS + lab_seconds))
}
