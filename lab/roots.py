"""Newer Debian systems in a folder, for tools that the running system has too old.

Made by debootstrap from the machine's own apt source, kept in the cache, entered by chroot inside a
mount namespace of its own: whatever is mounted there vanishes with the program.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.config import Config, LabError, cache_dir, lab_lock, say
from lab.packages import find_source

_STAMP = "lab-root"
MOUNTS = ("proc", "sys", "dev")


def root_dir(suite: str) -> Path:
    return cache_dir() / "roots" / suite


def chroot_argv(root: Path, argv: Sequence[str], binds: Mapping[Path, str]) -> list[str]:
    """unshare's command line: bind mounts, then the program in the root."""
    lines = ["set -e", *(f"mount --rbind /{name} {shlex.quote(str(root / name))}" for name in MOUNTS)]
    for source, inside in binds.items():
        target = shlex.quote(str(root / inside.lstrip("/")))
        lines += [f"mkdir -p {target}", f"mount --bind {shlex.quote(str(source))} {target}"]
    lines.append(f"exec chroot {shlex.quote(str(root))} {shlex.join(argv)}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]


def run_in_root(
    root: Path,
    argv: Sequence[str],
    binds: Mapping[Path, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program in the root; `binds` maps folders of this system to folders in there."""
    environment = {
        **os.environ,
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        chroot_argv(root, argv, binds or {}),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def _mirror_uri(uri: str) -> str:
    """debootstrap knows no mirror lists: the first address of the list serves."""
    if uri.startswith("mirror+file:"):
        lines = Path(uri.removeprefix("mirror+file:")).read_text().split("\n")
        return next(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))
    return uri


def _checked(result: subprocess.CompletedProcess[str], what: str) -> None:
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise LabError(f"{what} failed:\n{tail}")


def _copy_network_settings(root: Path) -> None:
    """Name service, certificates and apt's network options of this machine."""
    for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        source = Path("/") / name
        if source.exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).unlink(missing_ok=True)
            shutil.copyfile(source, root / name)
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    acquire = [line for line in dump.splitlines() if line.startswith(("Acquire::http", "Acquire::https"))]
    (root / "etc/apt/apt.conf.d/90network").write_text("".join(f"{line}\n" for line in acquire))


def ensure_root(config: Config, suite: str, remake: bool = False) -> Path:
    """Makes the root unless it is there with these packages, or with more; returns its folder."""
    if not remake and _is_made(config, suite):
        return root_dir(suite)
    with lab_lock():
        return locked_root(config, suite, remake)


def locked_root(config: Config, suite: str, remake: bool = False) -> Path:
    """:func:`ensure_root` for a caller that has the lab's lock."""
    target, packages = root_dir(suite), config.root_packages[suite]
    if remake or not _is_made(config, suite):
        if os.geteuid() != 0:
            raise LabError(f"a {suite} root can only be made by root")
        started = time.monotonic()
        _make_root(target, suite, packages)
        (target / _STAMP).write_text(" ".join(packages) + "\n")
        say(f"{suite} root made {time.monotonic() - started:.1f} s, downloads included", to_stderr=True)
    return target


def _is_made(config: Config, suite: str) -> bool:
    stamp = root_dir(suite) / _STAMP
    return stamp.exists() and set(config.root_packages[suite]) <= set(stamp.read_text().split())


def _make_root(target: Path, suite: str, packages: Sequence[str]) -> None:
    source = find_source()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    argv = ["debootstrap", "--variant=minbase"]
    for option in source.options:
        name, _, value = option.partition("=")
        if name == "signed-by":
            argv.append(f"--keyring={value}")
        elif name == "trusted":
            argv.append("--no-check-gpg")
    try:
        result = subprocess.run(
            [*argv, suite, str(target), _mirror_uri(source.uri)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise LabError("debootstrap is not installed") from None
    _checked(result, "debootstrap")
    _copy_network_settings(target)
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    result = run_in_root(target, ["env", "DEBIAN_FRONTEND=noninteractive", *install])
    _checked(result, f"apt-get install in the {suite} root")
    run_in_root(target, ["apt-get", "clean"])
