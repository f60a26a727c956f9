"""Debian packages for the guests, fetched by apt at run time.

The lab keeps an apt state of its own (several suites and architectures at once) whose sources are
written from the address in the machine's own apt sources, or from LAB_MIRROR.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.config import Config, LabError, cache_dir, say

DEBIAN_SUITES = re.compile(
    r"(stable|oldstable|oldoldstable|testing|unstable|sid|experimental|buster|bullseye|bookworm|trixie|forky|duke)"
    r"(-updates|-backports)?"
)
APT_HELPER = "/usr/lib/apt/apt-helper"


class DownloadError(LabError):
    """A package that the lists name could not be fetched."""


@dataclass(frozen=True)
class Source:
    """One archive of Debian packages: its address and the options that make apt trust it."""

    uri: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceEntry:
    """An enabled entry of the machine's apt sources."""

    source: Source
    suites: tuple[str, ...]


@dataclass(frozen=True)
class Deb:
    """One version of a package."""

    name: str
    version: str
    architecture: str
    size: int

    @property
    def file_name(self) -> str:
        """The name `apt-get download` gives the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


# ---- the machine's sources ---------------------------------------------------------------------


def parse_sources(text: str, deb822: bool) -> list[SourceEntry]:
    """The enabled binary sources of a sources.list or .sources text."""
    return _parse_deb822(text) if deb822 else _parse_one_line(text)


def _parse_one_line(text: str) -> list[SourceEntry]:
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s", line + " ")
        if match:
            options = tuple(word for word in (match[1] or "").split() if _is_trust(word))
            found.append(SourceEntry(Source(match[2], options), (match[3],)))
    return found


def _is_trust(option: str) -> bool:
    return option.partition("=")[0].lower() in ("signed-by", "trusted")


def _parse_deb822(text: str) -> list[SourceEntry]:
    found = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields = _parse_fields(stanza)
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "uris" not in fields:
            continue
        if "deb" not in fields.get("types", "").split():
            continue
        options = []
        if fields.get("signed-by", "").startswith("/"):  # a key in the text itself can't be passed on
            options.append(f"signed-by={fields['signed-by']}")
        if fields.get("trusted", "no").lower() in ("yes", "true", "1"):
            options.append("trusted=yes")
        source = Source(fields["uris"].split()[0], tuple(options))
        found.append(SourceEntry(source, tuple(fields.get("suites", "").split())))
    return found


def _parse_fields(stanza: str) -> dict[str, str]:
    """Field names in lower case; continued lines joined."""
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.splitlines():
        if line[:1].isspace():
            fields[last] = f"{fields.get(last, '')} {line.strip()}"
        elif ":" in line:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()
    return fields


def find_source(etc_apt: Path = Path("/etc/apt")) -> Source:
    """The archive this machine gets Debian from; LAB_MIRROR overrides it."""
    override = os.environ.get("LAB_MIRROR")
    if override:
        return Source(override)
    files = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for entry in parse_sources(path.read_text(), path.suffix == ".sources"):
            if any(DEBIAN_SUITES.fullmatch(suite) for suite in entry.suites):
                return entry.source
    raise LabError("no Debian archive among this machine's apt sources; set LAB_MIRROR to the address of one")


def fetched_megabytes(report: str) -> float:
    """What apt-get update says it fetched."""
    match = re.search(r"^Fetched ([\d.,]+) ([kMG]?)B in", report, re.MULTILINE)
    return (
        float(match[1].replace(",", "")) * {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}[match[2]]
        if match
        else 0.0
    )


# ---- apt with a state of its own -----------------------------------------------------------------


class Apt:
    """Runs apt-get and reads package lists, apart from the machine's own apt."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.dir = cache_dir() / "apt"
        self.downloaded_bytes = 0
        self.download_seconds = 0.0

    def sources_text(self) -> str:
        source = find_source()
        guests = self.config.guests
        pairs = {(guest.suite, guest.arch.debian) for guest in guests}
        pairs |= {(self.config.userland_suite, guest.arch.debian) for guest in guests}
        lines = [
            f"deb [{' '.join((f'arch={arch}', *source.options))}] {source.uri} {suite} main"
            for suite, arch in sorted(pairs)
        ]
        return "\n".join(lines) + "\n"

    def options(self) -> list[str]:
        state, store = self.dir / "state", self.dir / "cache"
        architectures = sorted({guest.arch.debian for guest in self.config.guests})
        settings = {
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": store,
            # a named file, because container images switch this cache off: 20 s instead of 1 a call; the
            # other is as large and serves only where the installed packages change
            "Dir::Cache::pkgcache": store / "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourcelist": self.dir / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "APT::Architectures": ",".join(architectures),
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "20",
            "Acquire::Check-Valid-Until": "false",
        }
        return [f"-o{name}={value}" for name, value in settings.items()]

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        result = subprocess.run(
            ["apt-get", *self.options(), *argv], cwd=cwd, capture_output=True, text=True, check=False
        )
        if result.returncode:
            kind = DownloadError if argv[0] == "download" else LabError
            raise kind(f"apt-get {argv[0]} failed:\n{result.stderr.strip()}")
        return result.stdout

    def refresh(self) -> None:
        """Fetches the package lists."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        (self.dir / "state" / "status").touch()
        (self.dir / "sources.list").write_text(self.sources_text())
        started = time.monotonic()
        report = self.run("update", "-oAPT::Update::Error-Mode=any")
        seconds = time.monotonic() - started
        say(f"downloaded {fetched_megabytes(report):.0f} MB in {seconds:.1f} s (package lists)")
        (self.dir / "refreshed").write_text(self._stamp())

    def _stamp(self) -> str:
        return hashlib.sha256(self.sources_text().encode()).hexdigest()

    def lists_are_fresh(self) -> bool:
        """Young enough, and of the sources that would be used today."""
        try:
            stamp = self.dir / "refreshed"
            age = time.time() - stamp.stat().st_mtime
            return stamp.read_text() == self._stamp() and age < self.config.lists_max_age_seconds
        except OSError:
            return False

    def packages_text(self, suite: str, architecture: str) -> str:
        """The Packages file of a suite."""
        form = "$(FILENAME) $(RELEASE) $(ARCHITECTURE)"
        listing = subprocess.run(
            ["apt-get", *self.options(), "indextargets", "--format", form, "Created-By: Packages"],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in listing.stdout.splitlines():
            file_name, release, arch = line.split()
            if (release, arch) == (suite, architecture):
                text = subprocess.run(
                    [APT_HELPER, "cat-file", file_name], capture_output=True, check=True
                ).stdout
                return text.decode()
        raise LabError(f"no package list of {suite} for {architecture}")

    def download(self, debs: Iterable[Deb]) -> list[Path]:
        """Fetches what is not there yet; apt checks sizes and sums."""
        folder = cache_dir() / "debs"
        folder.mkdir(exist_ok=True)
        wanted = list(debs)
        missing = [deb for deb in wanted if not (folder / deb.file_name).exists()]
        if missing:
            started = time.monotonic()
            self.run(
                "download", *(f"{deb.name}:{deb.architecture}={deb.version}" for deb in missing), cwd=folder
            )
            self.download_seconds += time.monotonic() - started
            self.downloaded_bytes += sum((folder / deb.file_name).stat().st_size for deb in missing)
        return [folder / deb.file_name for deb in wanted]
