"""What the registry tells: versions, where aliases point, and how it came to that."""

from pathlib import Path
from typing import Literal

from tunetrial.core.records import Record
from tunetrial.ship.artifacts import StoredFile
from tunetrial.ship.shipped import Shipped

CHAMPION, CHALLENGER = "champion", "challenger"


class Version(Record):
    """One artifact under a name. `content` is the digest of its files, `folder` where programs open them."""

    name: str
    version: int
    content: str
    folder: Path
    at: str
    shipped: Shipped
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.files)


class Event(Record):
    """One row of the history: a version was added, or an alias was set to it."""

    at: str
    event: Literal["add", "promote", "rollback"]
    version: int
    alias: str | None


class Entry(Record):
    """All of one name: its versions from 1, where its aliases point, and how it came to that, oldest first."""

    name: str
    versions: tuple[Version, ...]
    aliases: dict[str, int]
    history: tuple[Event, ...]


class Listing(Record):
    """All names. `stored_bytes` is what their files take, each content once; `apart_bytes` what copies would.

    `adapters` is how many versions need a base that is not among their files, `bases_bytes` what these bases take,
    each once, and `full_bytes` what as many full models would, each as large as its base.
    """

    folder: Path
    entries: tuple[Entry, ...]
    stored_bytes: int
    apart_bytes: int
    adapters: int = 0
    bases_bytes: int = 0
    full_bytes: int = 0


class Move(Record):
    """Where an alias points now and pointed before; None before its first version. `moved` is False if it was there.

    `notes` say what whoever serves it should know: a chain that was not tried, another base than before.
    """

    name: str
    alias: str
    version: int
    before: int | None
    moved: bool
    folder: Path
    notes: tuple[str, ...]


def split_reference(text: str) -> tuple[str, str | None]:
    """`newsletter@champion` or `newsletter@3` to name and version; no version where there is no @."""
    name, at, which = text.partition("@")
    return name, which if at else None
