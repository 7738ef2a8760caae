"""What raters said of a study's answers, in its folder `ratings/`.

ratings/<digest>.json             what one rater said, sealed
        sheets/<name>.json        what a sheet asks, sealed; <name>.jsonl its key
        asked/<digest>.json       a judge's answer to each question
        page/<digest>.jsonl       what one person said on the page, a line at each click
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import IntegrityError, StoreError
from tunetrial.core.manifest import sha256
from tunetrial.core.records import digest
from tunetrial.store import lease, lines, sealed


@dataclass(frozen=True)
class Journal:
    """What one person said on the page: first whom and what it is about, then a line an answer, each on the disk before
    it is acknowledged. Every line is sealed with the one before it, so that none can be altered or left out unseen;
    what a crash cut short at the end was never said."""

    path: Path

    @property
    def begun(self) -> bool:
        return bool(lines.read(self.path))

    def begin(self, about: dict) -> None:
        """Make it, or go on with it.

        Raises:
            IntegrityError: It is about something else, or was altered.
            StoreError: It cannot be written.
        """
        if found := self._content():
            if found[0] != about:
                raise IntegrityError(f"{self.path}: not about what is asked, got {str(found[0])[:80]}; restore it")
            return
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._add("", about)
        files.sync(self.path.parent)

    def add(self, content: dict) -> None:
        """Add a line, on the disk before this returns. Only who holds the page may (`RatingFolder.hold_page`)."""
        self._add(self._seals()[-1], content)

    def read(self) -> tuple[dict, tuple[dict, ...]]:
        """What it is about, and the lines since.

        Raises:
            IntegrityError: A line was altered, or one before it is missing.
        """
        about, *said = self._content()
        return about, tuple(said)

    def _add(self, before: str, content: dict) -> None:
        lines.append(self.path, {"seal": digest([before, content]), "content": content}, durable=True)

    def _seals(self) -> list[str]:
        return [line["seal"] for line in lines.read(self.path)]

    def _content(self) -> list[dict]:
        before, found = "", []
        for number, line in enumerate(lines.read(self.path), start=1):
            if set(line) != {"seal", "content"} or line["seal"] != digest([before, line["content"]]):
                raise IntegrityError(f"{self.path}:{number}: not the line that was sealed here; restore the file")
            before = line["seal"]
            found.append(line["content"])
        return found


@dataclass(frozen=True)
class RatingFolder:
    """The ratings of one study."""

    path: Path

    @property
    def asked(self) -> Path:
        """Where a judge's answers are kept."""
        return self.path / "asked"

    def key(self, sheet: Path) -> Path:
        """Where the key of a sheet of this name is."""
        return self.path / "sheets" / f"{sheet.stem}.jsonl"

    def rounds(self) -> tuple[dict, ...]:
        """Read what every rater said, in the order of file names.

        Raises:
            IntegrityError: A file is not what was sealed.
        """
        return tuple(sealed.read(path)["round"] for path in sorted(self.path.glob("*.json")))

    def journal(self, who: Sequence[str]) -> Journal:
        """The journal of one person's answers on the page; it need not be there yet."""
        return Journal(self.path / "page" / f"{digest(list(who))[:16]}.jsonl")

    def journals(self) -> tuple[Journal, ...]:
        """All journals that hold anything, in the order of file names."""
        found = (Journal(path) for path in sorted(self.path.glob("page/*.jsonl")))
        return tuple(journal for journal in found if journal.begun)

    def hold_page(self) -> AbstractContextManager[None]:
        """Be the one process that shows the page; raises StoreError, which names the other."""
        return lease.hold(self.path / "page", 0.0, "the rating page")

    def keep(self, who: Sequence[str], round_: dict) -> None:
        """Keep what a rater said, in place of what the same one said before of the same."""
        self._write(self.path / f"{digest(list(who))[:16]}.json", {"round": round_})

    def keep_sheet(self, sheet: Path, asked: dict) -> None:
        """Keep what a sheet asks, beside its key, which must be there."""
        self._write(self.key(sheet).with_suffix(".json"), {"key": sha256(self.key(sheet)), "asked": asked})

    def read_sheet(self, sheet: Path) -> dict:
        """What a sheet of this name asks.

        Raises:
            StoreError: No sheet of this name was handed out, or its key is not the one of then.
            IntegrityError: What is kept is not what was sealed.
        """
        kept = self.key(sheet).with_suffix(".json")
        if not kept.exists():
            known = ", ".join(sorted(path.stem for path in kept.parent.glob("*.json"))) or "none"
            raise StoreError(
                f"{sheet}: no sheet of this name was handed out, got {sheet.stem!r}, known: {known}; name the file "
                "as it was handed out"
            )
        content = sealed.read(kept)
        if not self.key(sheet).exists() or sha256(self.key(sheet)) != content["key"]:
            raise StoreError(f"{self.key(sheet)}: not the key of this sheet, got another or none; restore it")
        return content["asked"]

    def _write(self, path: Path, content: dict) -> None:
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        sealed.write(path, content)
