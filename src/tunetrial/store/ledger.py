"""The test ledger: how often each test split was opened, by all studies of one user."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError
from tunetrial.core.records import Record
from tunetrial.store import lines


class Opening(Record):
    """One use of a test split: by which study, for what, and when (UTC)."""

    test_digest: str
    study_digest: str
    what: str
    at: str


def home() -> Path:
    """Find the folder that a user's studies share: TUNETRIAL_HOME, or `~/.tunetrial`."""
    return Path(os.environ.get("TUNETRIAL_HOME") or "~/.tunetrial").expanduser()


@dataclass(frozen=True)
class TestLedger:
    """An append-only list of openings in `home`. It counts honest use; nothing stops a user from deleting it."""

    __test__ = False  # not a test, whatever pytest makes of the name
    home: Path

    def note(self, test_digest: str, study_digest: str, what: str) -> int:
        """Note an opening, on the disk before this returns, and count those of this test split, this one included.

        Raises:
            StoreError: The disk is full or the ledger cannot be written: nothing was noted, so open nothing.
        """
        from filelock import FileLock

        at = datetime.now(UTC).isoformat(timespec="seconds")
        opening = Opening(test_digest=test_digest, study_digest=study_digest, what=what, at=at)
        with files.writing(self._path):
            self.home.mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / ".ledger.lease", fallback_to_soft=False):
                lines.append(self._path, opening.model_dump(), durable=True)
                files.sync(self.home)
                return self.count(test_digest)

    def count(self, test_digest: str) -> int:
        """Count the openings of a test split so far."""
        return len(self.openings(test_digest))

    def openings(self, test_digest: str) -> tuple[Opening, ...]:
        """List the openings of a test split, oldest first.

        Raises:
            IntegrityError: A line of the ledger is not an opening.
        """
        found = []
        for number, line in enumerate(lines.read(self._path), start=1):
            try:
                opening = Opening.model_validate(line)
            except ValidationError:
                raise IntegrityError(f"{self._path}:{number}: not an opening; restore the file") from None
            if opening.test_digest == test_digest:
                found.append(opening)
        return tuple(found)

    @property
    def _path(self) -> Path:
        return self.home / "test_ledger.jsonl"
