"""The folder of one study: one process at a time writes, anybody reads."""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tunetrial.core import files
from tunetrial.core.deployment import Bench
from tunetrial.core.errors import EvidenceError, IntegrityError, StoreError
from tunetrial.core.evidence import Decision, Evidence, TrialRecord
from tunetrial.core.fidelity import Proof
from tunetrial.core.study import Lock, Trial
from tunetrial.store import lease, sealed
from tunetrial.store.trial import TrialFolder

_LOCK = "study.lock.json"
_PACKS, _PLAN, _BENCH, _PROOFS = "packs.json", "plan.json", "bench.json", "chains"


@dataclass(frozen=True)
class StudyFolder:
    """The files of one study."""

    path: Path

    @contextmanager
    def hold(self, wait_s: float = 0.0) -> Iterator[None]:
        """Be the one process that carries this study out; wait at most `wait_s` for another to end.

        A worker that outlives the process that held the study is not stopped by this: it holds its trial.

        Raises:
            StoreError: Another process holds the study; the message says which, where and since when.
        """
        with lease.hold(self.path, wait_s, "study"):
            self._tidy()
            yield

    def write_study(self, text: str) -> None:
        """Keep the study file as its author wrote it."""
        self._write("study.yaml", text)

    def write_lock(self, lock: Lock) -> None:
        """Register what will be asked. A lock under which a trial was completed is kept in the history.

        Raises:
            StoreError: The folder has results of another engine.
        """
        path = self.path / _LOCK
        if path.exists():
            former = self.read_lock()
            if former == lock:
                return
            if any(self.path.glob("trials/*/record.json")):
                if former.engine != lock.engine:
                    raise StoreError(
                        f"{path}: has results of engine {former.engine}, got {lock.engine}; use a new folder"
                    )
                self._keep(former)
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        sealed.write(path, {"lock": lock.model_dump(mode="json")})

    def read_lock(self) -> Lock:
        """Read the current lock.

        Raises:
            StoreError: There is none.
            IntegrityError: It is not what was written.
        """
        if not (self.path / _LOCK).exists():
            raise StoreError(f"{self.path}: no study here, got no {_LOCK}; name a study's folder or plan one")
        return _read_lock(self.path / _LOCK)

    def read_locks(self) -> tuple[Lock, ...]:
        """Read the history, oldest first: every lock under which a trial was completed, and the current one last."""
        locks = [_read_lock(path) for path in self._history()] + [self.read_lock()]
        return tuple(lock for lock, following in zip(locks, [*locks[1:], None], strict=True) if lock != following)

    def trial(self, trial: Trial) -> TrialFolder:
        """The folder of one trial, whether or not it was begun."""
        return TrialFolder(self.path / "trials" / trial.id)

    def keep_paused(self, courses: Collection[str]) -> None:
        """Remove what is kept of all other courses that were paused at a rung."""
        for path in self.path.glob("paused/*"):
            if path.name not in courses:
                shutil.rmtree(path, ignore_errors=True)

    def records(self) -> tuple[TrialRecord, ...]:
        """Read the records of all complete trials, of former locks too, by trial id.

        Raises:
            IntegrityError: A file of a complete trial is missing, altered or foreign.
        """
        return tuple(TrialFolder(path.parent).record() for path in sorted(self.path.glob("trials/*/record.json")))

    def evidence(self) -> Evidence:
        """Read what the current lock's trials have shown: same arm settings, controls and data.

        Raises:
            EvidenceError: A record is synthetic in a study that measures, or the reverse.
            IntegrityError: A file of a complete trial is missing, altered or foreign.
        """
        lock = self.read_lock()
        records = tuple(record for record in self.records() if _belongs(record.trial, lock))
        for record in records:
            if record.synthetic != (lock.engine == "sim"):
                kind = "synthetic" if record.synthetic else "measured"
                raise EvidenceError(
                    f"{self.trial(record.trial).path}: {kind} record in a study of engine {lock.engine}; "
                    "remove the folder and run the study again"
                )
        scores = {
            (record.trial.id, split): one
            for record in records
            for split, one in self.trial(record.trial).scores(record).items()
        }
        curves = {record.trial.id: self.trial(record.trial).curve() for record in records}
        tables = {
            (record.trial.id, name): one
            for record in records
            for name, one in self.trial(record.trial).tables(record).items()
        }
        return Evidence(lock, records, scores, curves, tables)

    def write_plan(self, plan: dict) -> None:
        """Keep the first wave, the upper bounds and the estimates; once a trial has a record they stand as they are."""
        if (self.path / _PLAN).exists() and any(self.path.glob("trials/*/record.json")):
            return
        self._write(_PLAN, json.dumps(plan, indent=1, allow_nan=False) + "\n")

    def plan(self) -> dict | None:
        """What was planned before the first trial; None where nothing was kept.

        Raises:
            IntegrityError: It cannot be read.
        """
        path = self.path / _PLAN
        if not path.exists():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise IntegrityError(f"{path}: not a plan, got {error}; restore it, or remove it") from None

    def packs(self) -> list[list[str]]:
        """The packs that were formed, as ids of their trials.

        Raises:
            IntegrityError: They are not what was written.
        """
        path = self.path / _PACKS
        return sealed.read(path)["packs"] if path.exists() else []

    def write_packs(self, packs: Sequence[Sequence[str]]) -> None:
        """Keep which trials train together, before they begin."""
        with files.writing(self.path):
            sealed.write(self.path / _PACKS, {"packs": [list(pack) for pack in packs]})

    def dissolve(self, pack: Sequence[str]) -> None:
        """From now on these trials are carried out alone."""
        kept = [other for other in self.packs() if not set(other) & set(pack)]
        self.write_packs([*kept, *([name] for name in pack)])

    def write_decision(self, decision: Decision) -> None:
        """Keep the decision."""
        self._write("decision.json", json.dumps(decision.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")

    def write_bench(self, bench: Bench) -> None:
        """Keep what was timed of its artifacts, in place of what was there."""
        with files.writing(self.path):
            sealed.write(self.path / _BENCH, {"bench": bench.model_dump(mode="json")})

    def bench(self) -> Bench | None:
        """What was timed of its artifacts; None where nothing was.

        Raises:
            IntegrityError: It is not what was written.
        """
        path = self.path / _BENCH
        if not path.exists():
            return None
        try:
            return Bench.model_validate(sealed.read(path)["bench"])
        except (ValidationError, KeyError) as error:
            found = str(error).splitlines()[0]
            raise IntegrityError(f"{path}: not a bench of this version, got {found}; measure again") from None

    def write_proof(self, proof: Proof) -> None:
        """Keep what became of a run that shipped, in place of an earlier one of the same run and format."""
        path = self.path / _PROOFS / f"{proof.trial}-{proof.format}.json"
        with files.writing(path):
            path.parent.mkdir(exist_ok=True)
            sealed.write(path, {"proof": proof.model_dump(mode="json")})

    def proofs(self) -> tuple[Proof, ...]:
        """What became of runs that shipped with a proof.

        Raises:
            IntegrityError: One is not what was written.
        """
        found = []
        for path in sorted(self.path.glob(f"{_PROOFS}/*.json")):
            try:
                found.append(Proof.model_validate(sealed.read(path)["proof"]))
            except (ValidationError, KeyError) as error:
                got = str(error).splitlines()[0]
                raise IntegrityError(f"{path}: not a proof of this version, got {got}; ship again") from None
        return tuple(found)

    def write_report(self, name: str, text: str) -> None:
        """Keep a report under its name, such as `report.html`."""
        self._write(name, text)

    def _write(self, name: str, text: str) -> None:
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        files.write(self.path / name, text.encode())

    def _history(self) -> list[Path]:
        return sorted(self.path.glob("locks/*.json"))

    def _keep(self, former: Lock) -> None:
        """Add a lock to the history, twice if a process dies right after this: `read_locks` passes over repeats."""
        folder = self.path / "locks"
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
        sealed.write(folder / f"{len(self._history()) + 1:04d}.json", {"lock": former.model_dump(mode="json")})

    def _tidy(self) -> None:
        """Remove what killed processes left: temporaries, and checkpoints of complete trials."""
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("locks/.*.tmp")):
            path.unlink(missing_ok=True)
        for path in self.path.glob("trials/*"):
            TrialFolder(path).tidy()


def _read_lock(path: Path) -> Lock:
    try:
        return Lock.model_validate(sealed.read(path)["lock"])
    except (ValidationError, KeyError) as error:
        found = str(error).splitlines()[0]
        raise IntegrityError(
            f"{path}: not a lock of this version, got {found}; restore it or use a new folder"
        ) from None


def _belongs(trial: Trial, lock: Lock) -> bool:
    """Whether the lock asks for this trial, of whatever rate, seed and purpose; a rung of the ladder's arm alone."""
    arms, ladder = {arm.name for arm in lock.study.arms}, lock.study.ladder
    asked = {part for task in lock.study.tasks for part in lock.parts(task.name)}
    if ladder is not None and (trial.arm.name, trial.purpose) == (ladder.arm, "confirm"):
        asked |= set(lock.rungs)
    return trial.arm.name in arms and trial.task in asked and trial == lock.like(trial)
