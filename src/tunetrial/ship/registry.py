"""Versions of shipped artifacts under names, aliases that point to them, and a history that only grows.

An alias is what the history says: `promote` sets it, `rollback` takes the last `promote` that still stands back. So
both are one row, there or not, and every state that ever was can be read again. A version is never changed or removed.
The registry answers for bytes, not for whoever wrote them: who can write its folder can write anything in it.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, IntegrityError, StoreError
from tunetrial.ship import database
from tunetrial.ship.artifacts import Shelf, StoredFile, Swept, content_digest, describe
from tunetrial.ship.shipped import Shipped, read_shipped
from tunetrial.ship.versions import CHAMPION, Entry, Event, Listing, Move, Version
from tunetrial.store import home

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"


@dataclass(frozen=True)
class Registry:
    """A registry's folder, by default `registry` under TUNETRIAL_HOME. Nothing is made before the first `add`."""

    folder: Path

    @classmethod
    def at(cls, folder: Path | None = None) -> "Registry":
        """The registry in this folder.

        Raises:
            StoreError: It is no folder.
        """
        found = (folder or home() / "registry").absolute()
        if found.exists() and not found.is_dir():
            raise StoreError(f"{found}: not a folder, got a file; name the folder of a registry, or a new one")
        return cls(found)

    def add(self, name: str, folder: Path) -> tuple[Version, bool]:
        """Keep a shipped folder as the next version of a name. The same content twice is the same version.

        Returns:
            The version, and whether it is new.
        Raises:
            TunetrialError: A bad name; the folder says not what it is, or holds what is refused; no room.
        """
        _check_name(name, "name")
        shipped, listed = read_shipped(folder), describe(folder)
        check_sealed(folder, listed)
        with self._shelf.leased("making"):
            database.create(self._database)
        with self._shelf.leased("adding"):
            with self._reading() as rows:
                stamps = _stamps(rows)
            content = self._shelf.keep(folder, listed, self._intact(stamps))
            with self._writing() as rows:
                version = _number(rows, name, content)
                is_new = version is None
                if is_new:
                    version = _insert(rows, name, content, shipped, listed)
                _remember(rows, {one.sha256: stamp for one in listed if (stamp := self._shelf.stamp(one))})
        return self.find(name, str(version)), is_new

    def listing(self) -> Listing:
        """All names in order; none where nothing was added yet."""
        if not self._database.exists():
            return Listing(folder=self.folder, entries=(), stored_bytes=0, apart_bytes=0)
        with self._reading() as rows:
            names = [name for (name,) in rows.execute("SELECT DISTINCT name FROM versions ORDER BY name")]
            entries = tuple(self._entry(rows, name) for name in names)
        once = {file.sha256: file.bytes for entry in entries for one in entry.versions for file in one.files}
        apart = sum(one.bytes for entry in entries for one in entry.versions)
        stated = [one.shipped for entry in entries for one in entry.versions if one.shipped.base_bytes is not None]
        bases = {one.base_fingerprint: one.base_bytes for one in stated}
        return Listing(
            folder=self.folder,
            entries=entries,
            stored_bytes=sum(once.values()),
            apart_bytes=apart,
            adapters=len(stated),
            bases_bytes=sum(bases.values()),
            full_bytes=sum(one.base_bytes for one in stated),
        )

    def entry(self, name: str) -> Entry:
        """All of one name; ConfigError if there is none."""
        _check_name(name, "name")
        if self._database.exists():
            with self._reading() as rows:
                return self._entry(rows, name)
        raise ConfigError(f"{self.folder}: no such name, got {name!r}; add a version of it first")

    def find(self, name: str, which: str) -> Version:
        """One version of a name, by its number or an alias; ConfigError if there is none."""
        return _find(self.entry(name), which)

    def intact(self, name: str, which: str) -> Version:
        """One version, its files checked as before a promotion.

        Raises:
            ConfigError: There is none.
            IntegrityError: A file is altered, truncated or missing.
        """
        version = self.find(name, which)
        self.check_files(version)
        return version

    def damages(self, version: Version) -> tuple[str, ...]:
        """Read every file of a version in full and name what is altered, truncated, missing or foreign, a line each."""
        return self._shelf.damages(version.content, version.files, self._shelf.holds)

    def promote(self, name: str, which: str, alias: str = CHAMPION) -> Move:
        """Point an alias to a version, in one transaction, its files checked first.

        A file is read in full unless its inode and times are those of when it was last found intact.

        Raises:
            ConfigError: No such name or version, or a bad alias.
            StoreError: The version's fidelity chain failed.
            IntegrityError: A file is altered, truncated or missing.
        """
        _check_alias(alias)
        version = self.find(name, which)
        if version.shipped.chain.passed is False:
            broken = version.shipped.chain.first_break or "a hop that is not named"
            got = f"got FAIL at {broken}"
            remedy = "promote a version whose chain passed, or ship it again"
            raise StoreError(f"{name}@{version.version}: its fidelity chain failed, {got}; {remedy}")
        self.check_files(version)
        return self._move(name, alias, "promote", lambda stack: version.version)

    def rollback(self, name: str, alias: str = CHAMPION) -> Move:
        """Point an alias to the version that it had before its last promotion that still stands.

        Raises:
            ConfigError: No such name, or a bad alias.
            StoreError: There is nothing to go back to, or somebody moved the alias meanwhile.
            IntegrityError: A file of that version is altered, truncated or missing.
        """
        _check_alias(alias)
        earlier = _earlier(name, alias, _stacks(self.entry(name).history).get(alias, []))
        self.check_files(self.find(name, str(earlier)))

        def back(stack: list[int]) -> int:
            if _earlier(name, alias, stack) != earlier:
                raise StoreError(f"{name}: {alias} was moved by another process meanwhile; look, and run again")
            return earlier

        return self._move(name, alias, "rollback", back)

    def check_files(self, version: Version, *, in_full: bool = False) -> None:
        """Refuse a version with a damaged file. A file is read in full where its inode and times are not those of when
        it was last found intact, or always with `in_full`.

        Raises:
            IntegrityError: A file is altered, truncated or missing.
        """
        with self._reading() as rows:
            known = _stamps(rows)
        stamps = {} if in_full else dict(known)
        if found := self._shelf.damages(version.content, version.files, self._intact(stamps)):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            remedy = "add the shipped folder again, which mends it"
            raise IntegrityError(f"{version.name}@{version.version}: {found[0]}{more}; {remedy}")
        if not stamps.items() <= known.items():
            with self._writing() as rows:
                _remember(rows, stamps)

    def sweep(self) -> Swept:
        """Remove files that no version names: what a crash or a full disk left of an `add`.

        Raises:
            StoreError: Something is being added just now.
        """
        if not self._database.exists():
            return Swept(files=0, bytes=0)
        with self._shelf.leased("sweeping"):
            with self._reading() as rows:
                contents = {content for (content,) in rows.execute("SELECT content FROM versions")}
                digests = {sha256 for (sha256,) in rows.execute("SELECT sha256 FROM files")}
            return self._shelf.sweep(contents, digests)

    @property
    def _shelf(self) -> Shelf:
        return Shelf(self.folder)

    @property
    def _database(self) -> Path:
        return self.folder / "registry.sqlite"

    def _reading(self):
        return database.transaction(self._database, write=False)

    def _writing(self):
        return database.transaction(self._database, write=True)

    def _entry(self, rows: sqlite3.Connection, name: str) -> Entry:
        query = "SELECT version, content, shipped, at FROM versions WHERE name = ? ORDER BY version"
        versions = tuple(self._version(rows, name, *row) for row in rows.execute(query, (name,)).fetchall())
        if not versions:
            raise ConfigError(f"{self.folder}: no such name, got {name!r}; see `tunetrial registry list`")
        query = "SELECT at, event, version, alias FROM history WHERE name = ? ORDER BY id"
        try:
            history = tuple(
                Event(at=at, event=event, version=version, alias=alias)
                for at, event, version, alias in rows.execute(query, (name,))
            )
            aliases = {alias: stack[-1] for alias, stack in sorted(_stacks(history).items())}
        except (ValidationError, LookupError):
            raise IntegrityError(f"{self._database}: the history of {name} was altered; restore it") from None
        return Entry(name=name, versions=versions, aliases=aliases, history=history)

    def _version(
        self, rows: sqlite3.Connection, name: str, number: int, content: str, shipped: str, at: str
    ) -> Version:
        query = "SELECT path, sha256, bytes FROM files WHERE content = ? ORDER BY path"
        try:
            listed = tuple(StoredFile(path=p, sha256=s, bytes=b) for p, s, b in rows.execute(query, (content,)))
            said = Shipped.model_validate_json(shipped)
        except ValidationError:
            listed, said = (), None
        if said is None or content_digest(listed) != content:
            raise IntegrityError(f"{self._database}: rows of {name}@{number} were altered; restore it")
        return Version(
            name=name,
            version=number,
            content=content,
            folder=self._shelf.tree(content),
            at=at,
            shipped=said,
            files=listed,
        )

    def _move(self, name: str, alias: str, event: str, choose: Callable[[list[int]], int]) -> Move:
        """Choose by what the alias has been, and note it, in one transaction."""
        with self._writing() as rows:
            entry = self._entry(rows, name)
            stack = _stacks(entry.history).get(alias, [])
            version, before = choose(stack), stack[-1] if stack else None
            if version != before:
                _note(rows, name, event, version, alias)
        now, old = _find(entry, str(version)), before and _find(entry, str(before))
        return Move(
            name=name,
            alias=alias,
            version=version,
            before=before,
            moved=version != before,
            folder=now.folder,
            notes=_notes(now, old or None),
        )

    def _intact(self, stamps: dict[str, str]) -> Callable[[StoredFile], bool]:
        """Whether a kept file is as it was when last found intact, or is found so by reading it in full: then its
        stamp, taken before it was read, joins `stamps`."""

        def intact(one: StoredFile) -> bool:
            now = self._shelf.stamp(one)
            if now is None or stamps.get(one.sha256) != now and not self._shelf.holds(one):
                return False
            stamps[one.sha256] = now
            return True

        return intact


def _stacks(history: Iterable[Event]) -> dict[str, list[int]]:
    """Of each alias the versions that it was promoted to and not rolled back from, the present one last."""
    stacks: dict[str, list[int]] = {}
    for event in history:
        if event.event == "promote":
            stacks.setdefault(event.alias, []).append(event.version)
        elif event.event == "rollback":
            stacks[event.alias].pop()
    return stacks


def _earlier(name: str, alias: str, stack: list[int]) -> int:
    if len(stack) < 2:
        got = f"got {alias} at version {stack[0]} since its first promotion" if stack else f"got no {alias}"
        raise StoreError(f"{name}: nothing to roll back to, {got}; promote a version instead")
    return stack[-2]


def _find(entry: Entry, which: str) -> Version:
    number = int(which) if re.fullmatch(r"[0-9]{1,9}", which) else entry.aliases.get(which)
    for version in entry.versions:
        if version.version == number:
            return version
    there = ", ".join([f"1 to {len(entry.versions)}" if len(entry.versions) > 1 else "1", *entry.aliases])
    raise ConfigError(f"{entry.name}: no such version or alias, got {which[:80]!r}; there are {there}")


def check_sealed(folder: Path, listed: Iterable[StoredFile]) -> None:
    """Hold a folder that was sealed when it was shipped to its manifest, with the digests that were just read."""
    found = {one.path: (one.sha256, one.bytes) for one in listed}
    if manifest.NAME not in found:
        return
    expected = manifest.read_manifest(folder)
    for path in sorted(expected.keys() | found.keys() - {manifest.NAME}):
        if expected.get(path) != found.get(path):
            got = (
                "no file"
                if path not in found
                else "a file that it does not list"
                if path not in expected
                else "other bytes"
            )
            raise IntegrityError(f"{folder}: {path:.100}: not as it was shipped, got {got}; ship it again")


def _notes(now: Version, before: Version | None) -> tuple[str, ...]:
    this, found = f"{now.name}@{now.version}", []
    if now.shipped.chain.passed is None:
        found.append(f"the fidelity chain of {this} was not tried")
    if before and now.shipped.base_fingerprint != before.shipped.base_fingerprint:
        found.append(f"{this} has another base model than version {before.version}: serve it with its own")
    return tuple(found)


def _check_name(name: str, what: str) -> None:
    if not re.fullmatch(NAME, name):
        allowed = "1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        raise ConfigError(f"{what}: not allowed, got {ascii(name)[:80]}; use {allowed}")


def _check_alias(alias: str) -> None:
    _check_name(alias, "alias")
    if alias.isdigit():
        raise ConfigError(f"alias: would be taken for a version, got {alias!r}; use a word such as champion")


def _stamps(rows: sqlite3.Connection) -> dict[str, str]:
    return dict(rows.execute("SELECT sha256, stamp FROM seen_intact"))


def _remember(rows: sqlite3.Connection, stamps: dict[str, str]) -> None:
    rows.executemany("INSERT OR REPLACE INTO seen_intact VALUES (?, ?)", stamps.items())


def _number(rows: sqlite3.Connection, name: str, content: str) -> int | None:
    found = rows.execute("SELECT version FROM versions WHERE name = ? AND content = ?", (name, content)).fetchone()
    return found and found[0]


def _insert(rows: sqlite3.Connection, name: str, content: str, shipped: Shipped, listed: Iterable[StoredFile]) -> int:
    query = "SELECT coalesce(max(version), 0) + 1 FROM versions WHERE name = ?"
    (version,) = rows.execute(query, (name,)).fetchone()
    rows.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (name, version, content, shipped.model_dump_json(), _now())
    )
    kept = [(content, one.path, one.sha256, one.bytes) for one in listed]
    rows.executemany("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?)", kept)
    _note(rows, name, "add", version, None)
    return version


def _note(rows: sqlite3.Connection, name: str, event: str, version: int, alias: str | None) -> None:
    query = "INSERT INTO history (at, name, event, version, alias) VALUES (?, ?, ?, ?, ?)"
    rows.execute(query, (_now(), name, event, version, alias))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
