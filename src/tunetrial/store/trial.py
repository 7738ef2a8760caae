"""The folder of one trial: its curve while it runs, its sealed record when it is done."""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from tunetrial.core import files, manifest
from tunetrial.core.checkpoint import common_checkpoint, drop_checkpoints, newest_checkpoint
from tunetrial.core.engine import Step
from tunetrial.core.errors import EvidenceError, IntegrityError, StoreError
from tunetrial.core.evidence import Scores, Table, TrialRecord
from tunetrial.core.pins import VARIANT
from tunetrial.store import lease, lines, observed, paused, sealed, table

_CURVE = "curve.jsonl"
_SCORES = "scores.parquet"
_RECORD = "record.json"
_ATTEMPTS = "attempts.jsonl"
_DROPPED = "artifact.dropped"
_SEALS = (manifest.NAME, f"artifact/{manifest.NAME}")
_SPLITS = {
    "tune": ("validation",),
    "rung": ("validation",),
    "anchor": ("validation",),
    "confirm": ("validation",),
    "final": ("validation", "test"),
    "probe": (),
}
_KNOWN = (manifest.NAME, _RECORD, _ATTEMPTS, _DROPPED, "checkpoint", "artifact")


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial. Only the process that holds it writes here; reading needs no hold."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The folder of checkpoints of a trial in hand: the engine's, until the trial is complete."""
        return self.path / "checkpoint"

    @property
    def artifact(self) -> Path:
        """The saved weights: there until retention drops them."""
        return self.path / "artifact"

    @property
    def done(self) -> bool:
        """Whether the trial is complete.

        Raises:
            IntegrityError: It is, but a file is missing, altered or foreign.
        """
        return (self.path / _RECORD).exists() and bool(self.record())

    @contextmanager
    def hold(self, wait_s: float = 0.0) -> Iterator[None]:
        """Be the one process that carries this trial out; wait at most `wait_s` for another to end.

        It keeps a new worker from a trial which an orphan of a killed run still has in hand.

        Raises:
            StoreError: Another process holds the trial; the message says which, where and since when.
        """
        with lease.hold(self.path, wait_s, "trial"):
            yield

    def begin(self, *, latest: int | None = None, pack: Sequence[str] = ()) -> int:
        """Start an attempt at the newest checkpoint, of no later step than `latest`, and return its number, 1 first.

        `pack` are the trials that train together in it, if it does not train alone.

        What earlier attempts left behind after that checkpoint goes: lines of the curve, scores, weights. A
        checkpoint whose step exceeds the lines of the curve (which a power loss can cut) goes as well.

        Raises:
            StoreError: The trial is complete.
        """
        if (self.path / _RECORD).exists():
            raise StoreError(f"{self.path}: trial is complete; remove the folder to run it again")
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            files.sync(self.path.parent)
        self._close_leg()
        kept = self._cut_curve(latest)
        self._sweep(*self._tables(), manifest.NAME, self.artifact.name)
        attempt = len(self._legs()) + 1
        started = datetime.now(UTC).isoformat(timespec="seconds")
        noted = {"attempt": attempt, "first_line": kept, "started": started, "pack": list(pack)}
        lines.append(self.path / _ATTEMPTS, noted, durable=True)
        return attempt

    @property
    def paused(self) -> Path:
        """Where courses are kept that have ended at a rung, for trials that go on from there: curve and checkpoint."""
        return self.path.parent.parent / "paused"

    def pause(self, course: str) -> None:
        """Keep curve and newest checkpoint of this trial for whoever goes on from it; before `finish` drops them."""
        paused.keep(self.paused / course, checkpoint=self.checkpoint, curve=self.path / _CURVE)

    def take_up(self, course: str) -> None:
        """Go on from where this course was paused, unless this trial was begun already or nothing is kept."""
        kept = self.paused / course
        if kept.exists() and not self._legs():
            paused.restore(kept, checkpoint=self.checkpoint, curve=self.path / _CURVE)

    @property
    def taken_up(self) -> int:
        """How many steps of its course this trial did not take itself: those of the rung that it went on from."""
        begun = [line for line in lines.read(self.path / _ATTEMPTS) if "first_line" in line]
        return begun[0]["first_line"] if begun else 0

    def append(self, step: Step) -> None:
        """Add a step to the curve; a number that is not finite becomes null. It survives a kill, not a power loss."""
        values = asdict(step).items()
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values
        }
        lines.append(self.path / _CURVE, finite, durable=False)

    def leg(self, seconds: float) -> None:
        """Note the wall time of the current attempt so far: the last note counts.

        An attempt that was killed before any note counts with the sum of its steps' seconds.
        """
        lines.append(self.path / _ATTEMPTS, {"attempt": len(self._legs()), "leg_s": seconds}, durable=True)

    def save_artifact(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill a folder, which becomes the artifact if it succeeds.

        Raises:
            StoreError: The disk is full; nothing of it is left.
        """
        temporary = self.path / f".{self.artifact.name}.tmp"
        with files.writing(self.artifact):
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                write(temporary)
                shutil.rmtree(self.artifact, ignore_errors=True)
                os.replace(temporary, self.artifact)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def finish(
        self,
        record: TrialRecord,
        scores: Mapping[str, Scores],
        contributions: Mapping[str, np.ndarray] | None = None,
        tables: Mapping[str, Table] | None = None,
    ) -> TrialRecord:
        """Seal the trial: curve, scores, tables and artifact, then the record, then drop the checkpoints.

        Args:
            scores: By split; none for a trial that failed and for a probe.
            contributions: By split, each example's share of the metric, shape (E,).
            tables: What was observed of the model besides its answers, by name.
        Returns:
            The record as kept, with attempt, legs and the digests of scores, tables and the artifact's files filled in.
        Raises:
            StoreError: The trial is another one or complete, or the disk is full: `begin` again when there is room.
            EvidenceError: Scores are malformed or of other splits than an ok trial's purpose opens, or the curve
                lacks a step of a trial said to be ok.
        """
        if record.trial.id != self.path.name:
            raise StoreError(f"{self.path}: folder of another trial, got the record of {record.trial.id}; use its own")
        if (self.path / _RECORD).exists():
            raise StoreError(f"{self.path}: trial is complete; remove the folder to run it again")
        plain = {split for split in scores if record.trial.purpose != "final" or not split.startswith(VARIANT)}
        if record.status == "ok" and plain != set(_SPLITS[record.trial.purpose]):
            wanted = f"a {record.trial.purpose} trial has scores of {_SPLITS[record.trial.purpose]}"
            raise EvidenceError(f"{self.path}: {wanted}, got {tuple(scores)}; score those and no others")
        settled = table.settle(scores, str(self.path))
        seen = {name: observed.settle(one, f"{self.path}: {name}") for name, one in (tables or {}).items()}
        self._check_curve(record)
        self._close_leg()
        artifacts = self._seal(settled, contributions or {}, seen)
        legs = self._legs()
        found = {"attempt": len(legs), "legs_s": tuple(legs.values())} if legs else {}
        record = TrialRecord.model_validate(
            record.model_dump()
            | found
            | {"artifacts": artifacts, "scores_digest": table.scores_digest(settled) if settled else None}
            | {"tables": {name: observed.table_digest(one) for name, one in seen.items()}}
        )
        names = [name for name in _SEALS if (self.path / name).exists()]
        seals = {name: manifest.sha256(self.path / name) for name in names}
        sealed.write(self.path / _RECORD, {"manifests": seals, "record": record.model_dump(mode="json")})
        self._sweep()
        return record

    def record(self) -> TrialRecord:
        """Read the record of a complete trial after checking every file of the folder.

        Files whose name begins with a dot are not looked at.

        Raises:
            StoreError: The trial is not complete.
            IntegrityError: A file is missing, altered or foreign, or the record is of another trial.
        """
        path = self.path / _RECORD
        if not path.exists():
            raise StoreError(f"{self.path}: trial is not complete; run the study first")
        content = sealed.read(path)
        try:
            record = TrialRecord.model_validate(content["record"])
            seals = {str(name): str(seal) for name, seal in content["manifests"].items()}
        except (ValidationError, KeyError, AttributeError) as error:
            found = str(error).splitlines()[0]
            raise IntegrityError(f"{path}: not a record of this version, got {found}; restore it") from None
        if record.trial.id != self.path.name:
            raise IntegrityError(
                f"{path}: expected the record of trial {self.path.name}, got {record.trial.id}; "
                "restore the folder or remove it"
            )
        _check_sealed(self.path, seals.get(manifest.NAME), known=_KNOWN)
        if record.artifacts:
            self._check_artifact(seals.get(_SEALS[1]))
        return record

    def scores(self, record: TrialRecord) -> dict[str, Scores]:
        """Read the scores that belong to the trial's record, by split; none if it has none.

        Raises:
            IntegrityError: They are not those of the record.
        """
        return table.read_parquet(self.path / _SCORES, record.scores_digest) if record.scores_digest else {}

    def tables(self, record: TrialRecord) -> dict[str, Table]:
        """Read what was observed besides answers, by name, as the trial's record has it.

        Raises:
            IntegrityError: A table is not that of the record.
        """
        return {name: observed.read_parquet(self._table(name), record.tables[name]) for name in record.tables}

    def _table(self, name: str) -> Path:
        return self.path / f"{name}.parquet"

    def _tables(self) -> list[str]:
        return [path.name for path in self.path.glob("*.parquet")]

    def curve(self) -> tuple[dict, ...]:
        """Read the steps so far, in order."""
        return lines.read(self.path / _CURVE)

    def drop_artifact(self) -> None:
        """Remove the weights of a complete trial for good; the record keeps their digests. Repeat as you like.

        Raises:
            StoreError: The trial is not complete.
        """
        if not (self.path / _RECORD).exists():
            raise StoreError(f"{self.path}: trial is not complete; run the study first")
        with files.writing(self.path):
            (self.path / _DROPPED).touch()
            files.sync(self.path)
        shutil.rmtree(self.artifact, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a kill left behind after the record was written, or amid the dropping of weights.

        A trial that another process has in hand is left to it.
        """
        dropped = (self.path / _DROPPED).exists() and self.artifact.exists()
        if dropped or ((self.path / _RECORD).exists() and self._leftovers()):
            with suppress(StoreError), self.hold():
                self._sweep()
                if dropped:
                    shutil.rmtree(self.artifact)

    def last_pack(self) -> list[str] | None:
        """With which trials the newest attempt trained; None where there was none."""
        begun = [line for line in lines.read(self.path / _ATTEMPTS) if "first_line" in line]
        return begun[-1].get("pack", ["unknown"]) if begun else None

    def _legs(self) -> dict[int, float | None]:
        """Wall time in seconds by attempt, None where it was not noted."""
        legs: dict[int, float | None] = {}
        for line in lines.read(self.path / _ATTEMPTS):
            legs[line["attempt"]] = line.get("leg_s")
        return legs

    def _close_leg(self) -> None:
        """Note the wall time of an attempt that did not: the sum of its steps' seconds."""
        legs = self._legs()
        if legs and legs[len(legs)] is None:
            first = lines.read(self.path / _ATTEMPTS)[-1]["first_line"]
            self.leg(math.fsum(step["seconds"] for step in self.curve()[first:]))

    def _cut_curve(self, latest: int | None) -> int:
        """Bring curve and checkpoints to the newest step that both know; return how many steps that is."""
        curve = self.curve()[:latest]
        drop_checkpoints(self.checkpoint, after=len(curve))
        newest = newest_checkpoint(self.checkpoint)
        kept = newest[0] if newest else 0
        lines.write(self.path / _CURVE, curve[:kept])
        return kept

    def _check_curve(self, record: TrialRecord) -> None:
        """Refuse a curve with a gap, and an ok trial that was not trained to its last step."""
        curve = self.curve()
        steps = [line["step"] for line in curve]
        path = self.path / _CURVE
        if steps != list(range(steps[0], steps[0] + len(steps)) if steps else ()):
            raise EvidenceError(f"{path}: steps must follow one another, got {len(steps)} with gaps; train again")
        if record.trial.learning_rate is None and not curve:
            return
        wanted = record.trial.stop(curve[-1]["steps"]) if curve else None
        if record.status == "ok" and record.trial.purpose != "probe" and len(curve) != wanted:
            raise EvidenceError(f"{path}: must hold all {wanted or 'its'} steps, got {len(curve)}; resume the trial")

    def _seal(
        self, scores: Mapping[str, Scores], contributions: Mapping[str, np.ndarray], tables: Mapping[str, Table]
    ) -> dict[str, str]:
        """Bring curve, scores, tables and artifact to the disk with their manifests; return the artifact's digests."""
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / _CURVE).touch()
            files.sync(self.path / _CURVE)
            self._sweep(*self._tables())
            artifacts = {}
            if self.artifact.exists():
                manifest.seal(self.artifact)
                artifacts = manifest.check_manifest(self.artifact)
            if scores:
                files.write(self.path / _SCORES, table.to_parquet(scores, contributions))
            for name, one in tables.items():
                files.write(self._table(name), observed.to_parquet(one))
            manifest.write_manifest(
                self.path, [_CURVE, *([_SCORES] if scores else []), *(self._table(name).name for name in tables)]
            )
        return artifacts

    def _check_artifact(self, seal: str | None) -> None:
        try:
            _check_sealed(self.artifact, seal, known=(manifest.NAME,))
        except (IntegrityError, FileNotFoundError):
            if not (self.path / _DROPPED).exists():
                raise

    def _leftovers(self) -> list[Path]:
        """List temporaries and, if the trial is complete, what only a trial in hand needs."""
        working = [self.checkpoint, self.path / _ATTEMPTS] if (self.path / _RECORD).exists() else []
        return [path for path in (*self.path.glob(".*.tmp"), *working) if path.exists()]

    def _sweep(self, *names: str) -> None:
        """Remove leftovers and the files or folders named."""
        for path in (*self._leftovers(), *(self.path / name for name in names)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def begin_together(folders: Sequence[TrialFolder], pack: Sequence[str], *, afresh: bool = False) -> None:
    """Start an attempt at trials that train together, at the newest step of which all have a checkpoint, or afresh:
    as well where one was last trained with others than `pack`, the ids of all that train together.

    Raises:
        StoreError: One of the trials is complete.
    """
    pack = list(pack) if len(pack) > 1 else []
    afresh = afresh or any(folder.last_pack() not in (None, pack) for folder in folders)
    most = 0 if afresh else min(len(folder.curve()) for folder in folders)
    while (found := common_checkpoint([folder.checkpoint for folder in folders])) and found[0] > most:
        for folder in folders:
            drop_checkpoints(folder.checkpoint, after=found[0] - 1)
    for folder in folders:
        folder.begin(latest=found[0] if found else 0, pack=pack)


def _check_sealed(folder: Path, seal: str | None, *, known: tuple[str, ...]) -> None:
    """Check that a folder holds what its manifest lists and nothing else but `known` names and dotted ones."""
    path = folder / manifest.NAME
    found = f"SHA-256 {manifest.sha256(path)}" if path.is_file() else "no file"
    if found != f"SHA-256 {seal}":
        raise IntegrityError(f"{path}: expected SHA-256 {seal}, got {found}; restore the file")
    listed = manifest.check_manifest(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if not name.name.startswith(".") and name.as_posix() not in listed and name.parts[0] not in known:
            raise IntegrityError(f"{file}: not in {manifest.NAME}, got a foreign file; remove it")
