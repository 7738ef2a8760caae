"""What is to be served: a shipped folder, or a version of the registry, its files checked before they are used."""

import re
from dataclasses import dataclass
from pathlib import Path

from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, IntegrityError, TunetrialError
from tunetrial.models.adapters import READOUT
from tunetrial.ship.registry import Registry
from tunetrial.ship.shipped import Shipped, read_shipped
from tunetrial.ship.versions import Version, split_reference

MODEL, BASE, ADAPTER = "model.gguf", "base.gguf", "adapter.gguf"
MOST_HELD = 8


@dataclass(frozen=True)
class Served:
    """An artifact whose files are as they were shipped. `digests` are their SHA-256, by path; `version` is the
    registry's, None of a folder."""

    name: str
    folder: Path
    shipped: Shipped
    digests: dict[str, str]
    version: int | None = None

    def __str__(self) -> str:
        return str(self.folder) if self.version is None else f"{self.name.partition('@')[0]}@{self.version}"

    @property
    def by_alias(self) -> bool:
        """Whether another version may take its name."""
        return self.version is not None and not self.name.rpartition("@")[2].isdigit()

    @property
    def remark(self) -> str | None:
        """What whoever serves it should know of its fidelity."""
        chain = self.shipped.chain
        if chain.passed is None:
            return f"the fidelity chain of {self} was not tried"
        return None if chain.passed else f"the fidelity chain of {self} failed at {chain.first_break}"

    @property
    def gguf(self) -> tuple[str, str | None]:
        """The names of its GGUF: of the model, and of the adapter beside it, if it is one.

        Raises:
            IntegrityError: Its manifest lists none.
        """
        if MODEL in self.digests:
            return MODEL, None
        if {BASE, ADAPTER} <= self.digests.keys():
            return BASE, ADAPTER
        raise IntegrityError(f"{self}: holds no GGUF, got neither {MODEL} nor {BASE} with {ADAPTER}; ship it again")

    def path(self, name: str) -> Path:
        """Where one of its files is.

        Raises:
            IntegrityError: Its manifest does not list the file.
        """
        if name not in self.digests:
            raise IntegrityError(f"{self}: not a file that was sealed, got {name!r}; ship it again")
        return self.folder / name


@dataclass(frozen=True)
class Alias:
    """A name of the registry that versions take in turn."""

    registry: Registry
    name: str
    alias: str

    def version(self) -> int:
        """The version that the alias is at now.

        Raises:
            StoreError, IntegrityError: The registry cannot be read.
        """
        return self.registry.entry(self.name).aliases[self.alias]

    def served(self, number: int, *, in_full: bool) -> Served:
        """A version under the alias's name, its files checked as `Registry.check_files` does."""
        version = self.registry.find(self.name, str(number))
        return _of_version(self.registry, version, f"{self.name}@{self.alias}", in_full=in_full)

    def companions(self, now: Served) -> tuple[tuple[Served, ...], tuple[str, ...]]:
        """The newest other versions that are adapters over the very same GGUF, at most 7, and what is said of those
        that are damaged. Versions whose chain failed are left out: they cannot be promoted."""
        model, adapter = now.gguf
        if adapter is None:
            return (), ()
        found, damaged = [], []
        for version in reversed(self.registry.entry(self.name).versions):
            digests = {one.path: one.sha256 for one in version.files}
            fits = digests.get(model) == now.digests[model] and adapter in digests
            wanted = fits and version.version != now.version and version.shipped.chain.passed is not False
            if wanted and len(found) < MOST_HELD - 1:
                try:
                    found.append(self.served(version.version, in_full=False))
                except TunetrialError as error:
                    damaged.append(f"left out: {error}")
        return tuple(found), tuple(damaged)


def find(what: str, registry: Registry) -> tuple[Served, Alias | None]:
    """Find what is meant and read every file of it: NAME@VERSION or NAME@ALIAS, else a folder that `ship` wrote.

    Returns:
        It, and where it is an alias, that.
    Raises:
        ConfigError: There is no such name, version or alias.
        ModelError: No such folder, or none that was shipped.
        IntegrityError: A file is altered, truncated or missing.
    """
    if "@" not in what or "/" in what:
        folder = Path(what)
        shipped = read_shipped(folder)
        name = re.sub(r"[^\w.@-]+", "-", shipped.arm)
        return _checked(Served(name, folder.absolute(), shipped, manifest.check_manifest(folder))), None
    name, which = split_reference(what)
    version = registry.find(name, which)
    served = _of_version(registry, version, what, in_full=True)
    return served, None if which.isdigit() else Alias(registry, name, which)


def _of_version(registry: Registry, version: Version, name: str, *, in_full: bool) -> Served:
    registry.check_files(version, in_full=in_full)
    digests = {one.path: one.sha256 for one in version.files}
    return _checked(Served(name, version.folder, version.shipped, digests, version.version))


def _checked(served: Served) -> Served:
    if READOUT in served.digests:
        got = f"got {READOUT}"
        raise ConfigError(
            f"{served}: answers by a head, which no engine here serves, {got}; train with readout: labels"
        )
    return served
