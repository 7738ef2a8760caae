"""What raters said of a study's answers, in its folder `ratings/`.

ratings/<digest>.json             what one rater said, sealed
        sheets/<name>.json        what a sheet asks, sealed; <name>.jsonl its key
        asked/<digest>.json       a judge's answer to each question
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial.core import files
from tunetrial.core.errors import StoreError
from tunetrial.core.manifest import sha256
from tunetrial.core.records import digest
from tunetrial.store import sealed


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
