"""From patterns to packages: which kernel is the newest, which libraries a program needs.

What a pattern was resolved to is remembered, so that a warm run needs no network: it is only looked
up again when the package lists have been refreshed, which happens when they are older than
lists_max_age_hours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab.built import BuiltKernel, built_kernel
from lab.config import Config, Guest, LabError, cache_dir, say
from lab.packages import Apt, Deb


@dataclass(frozen=True)
class KernelPackages:
    """The newest kernel that a guest's pattern matched."""

    release: str
    version: str
    image: tuple[Deb, ...]
    debug: Deb

    @property
    def folder(self) -> str:
        return f"{self.release}_{self.version}"

    @property
    def series(self) -> str:
        return ".".join(self.release.split(".")[:2])

    @property
    def debs(self) -> tuple[Deb, ...]:
        return (*self.image, self.debug)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a row's key has of the kernel."""
        return tuple(deb.file_name for deb in self.debs)


Kernel = KernelPackages | BuiltKernel


@dataclass(frozen=True)
class Resolution:
    """What every pattern stands for at present."""

    kernels: Mapping[str, KernelPackages]
    userland: Mapping[str, tuple[Deb, ...]]
    sources: Mapping[str, Deb]


class PackageIndex:
    """A Packages file; a stanza is taken apart when it is asked for."""

    def __init__(self, text: str) -> None:
        self.stanzas: dict[str, str] = {}
        for stanza in text.split("\n\n"):
            match = re.search(r"^Package: (.*)$", stanza, re.MULTILINE)
            if match is None:
                continue
            other = self.stanzas.get(match[1])
            if other is None or _version_key(stanza) > _version_key(other):
                self.stanzas[match[1]] = stanza

    def __contains__(self, name: str) -> bool:
        return name in self.stanzas

    def __iter__(self) -> Iterator[str]:
        return iter(self.stanzas)

    def fields(self, name: str) -> dict[str, str]:
        if name not in self.stanzas:
            raise LabError(f"no package {name}")
        return dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", self.stanzas[name], re.MULTILINE))

    def deb(self, name: str) -> Deb:
        fields = self.fields(name)
        return Deb(name, fields["Version"], fields["Architecture"], int(fields["Size"]))


def _version_key(stanza: str) -> list[tuple[int, int | str]]:
    match = re.search(r"^Version: (.*)$", stanza, re.MULTILINE)
    return natural_key(match[1] if match else "")


def natural_key(text: str) -> list[tuple[int, int | str]]:
    """Sorts 6.1.0-9 before 6.1.0-50."""
    return [(1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text) if part]


def newest_match(pattern: str, names: Iterable[str]) -> str:
    """The newest of the names that match the pattern as a whole."""
    matches = [name for name in names if re.fullmatch(pattern, name)]
    if not matches:
        raise LabError(f"no package matches {pattern}")
    return max(matches, key=natural_key)


def resolve_kernel(pattern: str, index: PackageIndex) -> KernelPackages:
    """The packages of the newest kernel whose -dbg package matches the pattern.

    Debian splits the image since 7.x: linux-image-* is empty, linux-binary-* holds vmlinuz and
    linux-modules-* the modules.
    """
    debug = newest_match(pattern, index)
    release = debug.removeprefix("linux-image-").removesuffix("-dbg")
    names = [f"linux-image-{release}"]
    if f"linux-binary-{release}" in index:
        names = [f"linux-binary-{release}", f"linux-modules-{release}"]
    image = tuple(index.deb(name) for name in names)
    return KernelPackages(release, image[0].version, image, index.deb(debug))


def resolve_libraries(packages: Iterable[str], index: PackageIndex) -> tuple[Deb, ...]:
    """The packages with all the shared libraries they depend on."""
    queue, found = list(packages), dict[str, Deb]()
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found[name] = index.deb(name)
        for clause in index.fields(name).get("Depends", "").split(","):
            first = clause.split("|")[0].split("(")[0].split(":")[0].strip()
            if first.startswith(("lib", "zlib")) and first in index:
                queue.append(first)
    return tuple(found[name] for name in sorted(found))


def resolve_source(binary: str, index: PackageIndex) -> Deb:
    """The source package that a binary package was built of (deb822: Source, where it is not the same)."""
    fields = index.fields(binary)
    match = re.fullmatch(r"(\S+)(?: \((\S+)\))?", fields.get("Source", binary))
    if match is None:
        raise LabError(f"{binary}: no source package in {fields.get('Source')}")
    return Deb(match[1], match[2] or fields["Version"], "source", 0)


def pattern_key(guest: Guest) -> str:
    return f"{guest.suite} {guest.arch.debian} {guest.package}"


def _load_kernel(record: Mapping[str, Any]) -> KernelPackages:
    image = tuple(Deb(**deb) for deb in record["image"])
    return KernelPackages(record["release"], record["version"], image, Deb(**record["debug"]))


class Resolver:
    """Looks patterns up, remembering the answers beside the package lists."""

    def __init__(self, config: Config, apt: Apt) -> None:
        self.config = config
        self.apt = apt
        self.path = cache_dir() / "resolved.json"

    def _load(self) -> Resolution | None:
        """What was remembered, if it answers every pattern there is now."""
        try:
            record = json.loads(self.path.read_text())
            kernels = {key: _load_kernel(value) for key, value in record["kernels"].items()}
            userland = {key: tuple(Deb(**deb) for deb in value) for key, value in record["userland"].items()}
            sources = {key: Deb(**deb) for key, deb in record.get("sources", {}).items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        wanted = {pattern_key(guest) for guest in self.config.guests if not guest.fragments}
        if wanted - kernels.keys() or {self._userland_key(arch) for arch in self._archs()} - userland.keys():
            return None
        if self._source_keys() - sources.keys():
            return None
        return Resolution(kernels, userland, sources)

    def _source_keys(self) -> set[str]:
        keys = {pattern_key(guest) for guest in self.config.guests if guest.fragments}
        return keys | {self._userland_key(arch) for arch in self._built_userlands()}

    def _built_userlands(self) -> set[str]:
        return {guest.arch.debian for guest in self.config.guests if guest.arch.built_userland}

    def _archs(self) -> set[str]:
        return {guest.arch.debian for guest in self.config.guests}

    def _userland_key(self, architecture: str) -> str:
        return f"{self.config.userland_suite} {architecture} {' '.join(self.config.userland_packages)}"

    def _look_up(self) -> Resolution:
        indexes: dict[tuple[str, str], PackageIndex] = {}

        def of(suite: str, architecture: str) -> PackageIndex:
            key = (suite, architecture)
            if key not in indexes:
                indexes[key] = PackageIndex(self.apt.packages_text(suite, architecture))
            return indexes[key]

        kernels = {
            pattern_key(guest): resolve_kernel(guest.package, of(guest.suite, guest.arch.debian))
            for guest in self.config.guests
            if not guest.fragments
        }
        sources = {
            pattern_key(guest): of(guest.suite, guest.arch.debian).deb(guest.package)
            for guest in self.config.guests
            if guest.fragments
        }
        for arch in self._built_userlands():
            index = of(self.config.userland_suite, arch)
            sources[self._userland_key(arch)] = resolve_source(self.config.userland_source, index)
        userland = {
            self._userland_key(arch): resolve_libraries(
                self.config.userland_packages, of(self.config.userland_suite, arch)
            )
            for arch in self._archs()
        }
        record = {
            "kernels": {key: asdict(value) for key, value in kernels.items()},
            "userland": {key: [asdict(deb) for deb in value] for key, value in userland.items()},
            "sources": {key: asdict(deb) for key, deb in sources.items()},
        }
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(self.path)
        return Resolution(kernels, userland, sources)

    def current(self) -> Resolution | None:
        """The remembered answers while the package lists are fresh: no network, no apt."""
        return self._load() if self.apt.lists_are_fresh() else None

    def resolve(self, refresh: bool = False) -> Resolution:
        """Answers for every pattern; without network, the remembered ones serve on."""
        remembered = self._load()
        if not refresh and remembered and self.apt.lists_are_fresh():
            return remembered
        if refresh or not self.apt.lists_are_fresh():
            try:
                self.apt.refresh()
            except LabError as error:
                if remembered is None:
                    raise
                say(f"package lists not refreshed, going on with the old ones: {error}")
                return remembered
        return self._look_up()

    def kernel(self, resolution: Resolution, guest: Guest) -> Kernel:
        if guest.fragments:
            return built_kernel(guest, resolution.sources[pattern_key(guest)])
        return resolution.kernels[pattern_key(guest)]

    def userland(self, resolution: Resolution, architecture: str) -> tuple[Deb, ...]:
        return resolution.userland[self._userland_key(architecture)]

    def userland_source(self, resolution: Resolution, architecture: str) -> Deb:
        return resolution.sources[self._userland_key(architecture)]
