"""The README's two commands on a machine that never saw this project: a Debian made a minute ago.

    python3 -m tools.fresh [--suite bookworm] [--only demo|test] [--work-tree] [--keep]

debootstrap makes a minimal system in a folder. It gets this machine's way to its registries (apt
sources, pip configuration, certificates, proxy variables; read now, written nowhere else), a clone of
HEAD, and nothing more: no make, no Python, an empty home. ./demo and then ./test run in it as root, in
mount and process namespaces of their own, so that whatever they mount or leave running ends with them.

FRESH_LAB=FOLDER lends the lab cache of that folder, for a quick trial; without it all is cold.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lab.packages import Source, find_source

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = "root/kdump-elftool"
# what decides how registries are reached; the values are passed on, never stored in the repository
PASSED_ON = re.compile(
    r"(?i)^(pip_.*|(https?|ftp|no|all)_proxy|.*(ssl_cert|ca_?bundle|ca_?info).*|lab_mirror)$"
)
COPIED = (
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/apt/trusted.gpg.d",
    "etc/apt/keyrings",
    "etc/pip.conf",
    "etc/xdg/pip",
    "etc/resolv.conf",
    "etc/hosts",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/share/ca-certificates",
)


class FreshError(Exception):
    """The new system could not be made."""


def run(argv: Sequence[str | Path], what: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise FreshError(f"{what} failed:\n{tail}")
    return done.stdout


def debootstrap(target: Path, suite: str, source: Source) -> None:
    """A minimal Debian in target."""
    if not shutil.which("debootstrap"):
        raise FreshError("debootstrap is not installed: apt-get install debootstrap")
    options = []
    for option in source.options:
        name, _, value = option.partition("=")
        options.append(f"--keyring={value}" if name == "signed-by" else "--no-check-gpg")
    # certificates must be there before this machine's bundle is laid over them
    argv = ["debootstrap", "--variant=minbase", "--include=ca-certificates", *options]
    run([*argv, suite, target, source.uri], "debootstrap")


def copy_settings(target: Path) -> None:
    """This machine's way to its registries."""
    home_pip = [path for path in (Path.home() / ".pip", Path.home() / ".config" / "pip") if path.exists()]
    for source in [Path("/") / name for name in COPIED] + home_pip:
        if not source.exists():
            continue
        inside = (
            source.relative_to("/")
            if source not in home_pip
            else Path("root", source.relative_to(Path.home()))
        )
        copy = target / inside
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            shutil.copyfile(source, copy)
    network = [
        line
        for line in run(["apt-config", "dump"], "apt-config").splitlines()
        if re.match(r"Acquire::(https?|Check-|Retries)", line)
    ]
    (target / "etc/apt/apt.conf.d/90network").write_text("".join(f"{line}\n" for line in network))


def copy_checkout(target: Path, work_tree: bool) -> None:
    """A clone of HEAD, or the files of the work tree as they are."""
    checkout = target / CHECKOUT
    if not work_tree:
        run(["git", "clone", "-q", "--no-hardlinks", ROOT, checkout], "git clone")
        return
    names = run(["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], "git ls-files").splitlines()
    for name in names:
        source, copy = ROOT / name, checkout / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)


def mount_script(target: Path, lab: str | None) -> str:
    """What runs in the namespaces: mounts, then the command given as arguments, in the new system."""
    place = shlex.quote(str(target))
    lines = [
        "set -e",
        # a root that is a mount point of its own, so that unshare works in there as everywhere
        f"mount --bind {place} {place}",
        f"cd {place}",
        "mount -t proc proc proc",
        "mount -t sysfs sysfs sys",
        "mount --rbind /dev dev",
    ]
    if lab:
        inside = "root/.cache/kdump-elftool-lab"
        lines += [f"mkdir -p {inside}", f"mount --bind {shlex.quote(str(Path(lab).resolve()))} {inside}"]
    return "\n".join([*lines, f'exec chroot {place} "$@"'])


def run_inside(target: Path, command: str, lab: str | None) -> int:
    """Run a shell command in the checkout in there, as on a machine just installed; its exit code."""
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
    environment |= {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb", "CI": "true"}
    unshare = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    inner = ["sh", "-c", f"cd /{CHECKOUT} && {command}"]
    argv = [*unshare, "sh", "-c", mount_script(target, lab), "sh", *inner]
    return subprocess.run(argv, check=False, env=environment, stdin=subprocess.DEVNULL).returncode


def remove(target: Path) -> None:
    """Delete the new system, unless something is still mounted in it."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    if any(line.split()[1].startswith(f"{target}/") for line in mounts):
        raise FreshError(f"something is still mounted below {target}: left as it is")
    shutil.rmtree(target)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fresh", description="./demo and ./test in a new Debian")
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--only", choices=("demo", "test"), help="one of the two commands")
    parser.add_argument("--work-tree", action="store_true", help="the files as they are, not HEAD")
    parser.add_argument("--keep", action="store_true", help="keep the new system for a look")
    return parser.parse_args()


def main() -> int:
    """Make the system, run the commands, report; 1 when one of them failed."""
    args = arguments()
    if os.geteuid() != 0:
        print("error: only root can make a new system", file=sys.stderr)
        return 1
    cache = Path(os.environ.get("KDUMP_ELFTOOL_CACHE") or Path.home() / ".cache" / "kdump-elftool-dev")
    cache.mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix="fresh.", dir=cache))
    target.chmod(0o755)
    report, failed = [], False
    try:
        started = time.monotonic()
        debootstrap(target, args.suite, find_source())
        copy_settings(target)
        copy_checkout(target, args.work_tree)
        report.append(f"{time.monotonic() - started:6.0f} s  a new {args.suite} (not part of the product)")
        for command in ("./demo", "./test"):
            if args.only and command != f"./{args.only}":
                continue
            print(f"\n######## {command} in the new system", flush=True)
            started = time.monotonic()
            code = run_inside(target, command, os.environ.get("FRESH_LAB"))
            failed = failed or code != 0
            report.append(f"{time.monotonic() - started:6.0f} s  {command}, downloads included: exit {code}")
    except FreshError as error:
        print(f"error: {error}", file=sys.stderr)
        failed = True
    finally:
        print("\nfresh:", *report, sep="\n")
        if args.keep:
            print(f"kept: {target}")
        else:
            remove(target)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
