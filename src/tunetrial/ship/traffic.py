"""Who is served by which version: a rule that any gateway can follow, written so that it can be checked there.

A key (a user, a session) always goes the same way, and which way is as good as random. A larger share keeps all keys
that the challenger had. Another seed deals anew.
"""

import hashlib
from typing import Annotated

from pydantic import Field

from tunetrial.core.errors import ConfigError
from tunetrial.core.records import Record
from tunetrial.ship.versions import CHALLENGER, CHAMPION, Version

BUCKETS = 2**32
ALGORITHM = (
    "bucket = the first 4 bytes, big-endian and unsigned, of SHA-256 over the UTF-8 bytes of: salt, ':', key. "
    "Serve the part with first <= bucket < below."
)
_KEYS = ("user-1", "user-2", "user-3", "user-4", "user-5", "user-6", "user-7", "user-8", "", "Zoë")


class Part(Record):
    """The buckets of one version, from `first` up to and without `below`."""

    alias: str
    version: int
    share: float
    first: int
    below: int


class Worked(Record):
    """A key and where it goes, for the tests of who follows the rule."""

    key: str
    bucket: int
    version: int


class Split(Record):
    """A rule that deals keys to two versions of a name."""

    format: str = "tunetrial-split-1"
    name: str
    seed: int
    algorithm: str = ALGORITHM
    salt: str
    buckets: int = BUCKETS
    parts: Annotated[tuple[Part, ...], Field(min_length=2, max_length=2)]
    examples: tuple[Worked, ...]


def split(champion: Version, challenger: Version, *, share: float, seed: int) -> Split:
    """Deal a share of all keys to the challenger and the others to the champion.

    Raises:
        ConfigError: The share is not between 0 and 1, or both are one version.
    """
    below = round(share * BUCKETS) if 0 < share < 1 else 0
    if not 0 < below < BUCKETS:
        raise ConfigError(f"challenger share: must lie between 0 and 1, got {share:g}; 0.1 is usual")
    if champion.version == challenger.version:
        got = f"got version {champion.version} for both"
        raise ConfigError(f"{champion.name}: champion and challenger must differ, {got}; promote another challenger")
    salt = hashlib.sha256(f"{champion.name}:{seed}".encode()).hexdigest()[:16]
    parts = (
        Part(alias=CHALLENGER, version=challenger.version, share=below / BUCKETS, first=0, below=below),
        Part(alias=CHAMPION, version=champion.version, share=1 - below / BUCKETS, first=below, below=BUCKETS),
    )
    examples = tuple(Worked(key=key, bucket=(found := bucket(salt, key)), version=_part(parts, found)) for key in _KEYS)
    return Split(name=champion.name, seed=seed, salt=salt, parts=parts, examples=examples)


def bucket(salt: str, key: str) -> int:
    """The bucket of a key, from 0 to 2**32 - 1; of all keys equally many in each."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{key}".encode()).digest()[:4])


def _part(parts: tuple[Part, ...], found: int) -> int:
    return next(part.version for part in parts if part.first <= found < part.below)
