"""Carrying out a study: one wave of trials after the other, each planned from the records of those before."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tunetrial import models, plan
from tunetrial.core import files
from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.study import Study, Trial
from tunetrial.plan import Plan, Wave
from tunetrial.store import StudyFolder, home, surplus
from tunetrial.trial.calibration import learn, predicted
from tunetrial.trial.crew import Crew
from tunetrial.trial.machine import free_host_bytes
from tunetrial.trial.openings import note_openings
from tunetrial.trial.pinning import Pinned, pin
from tunetrial.trial.pool import cores
from tunetrial.trial.progress import Pace, Progress, label
from tunetrial.trial.spending import Purse, Spending


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended: `failed` names the trials that erred, by label, and what went wrong in each."""

    status: Literal["done", "failed", "interrupted", "out of budget"]
    evidence: Evidence
    failed: dict[str, str] = field(default_factory=dict)


def preview(study: Study, root: Path, folder: Path, *, engine: str = "torch") -> Plan:
    """Say what a study will take before anything is spent, and keep it as the folder's `plan.json`.

    Raises:
        TunetrialError: The study cannot be locked, see `pin`, or the folder not be made.
    """
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    store = StudyFolder(folder)
    return _write_plan(_fitted(pin(study, root, engine=engine, log=folder / "worker.log"), store), store)


def run(
    study: Study,
    root: Path,
    folder: Path,
    *,
    engine: str = "torch",
    source: str = "",
    wait_s: float = 0.0,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Carry a study out, or what an earlier run left of it. No trial that has a record is repeated.

    Before the first trial every arm is tried in two steps, so that what cannot come through ends here. A trial that
    errs harms no other: all that can be carried out without it is. What finished trials show of a measured machine's
    speed is kept for later plans. SIGINT and SIGTERM stop the trials at their next step and keep what they have.

    Args:
        root: Where the paths in the study start.
        folder: Where the results are; one run at a time holds it.
        source: The study file's text, kept beside the results.
        engine: A name of `worker.ENGINES`, or "package.module:attribute".
        wait_s: How long to wait while another run holds the folder.
    Raises:
        StoreError: Another run holds the folder.
        TunetrialError: The study cannot be locked (see `pin`), or its base cannot be loaded.
    """
    store = StudyFolder(folder)
    with store.hold(wait_s):
        spending = Spending(folder)
        begun = any(folder.glob("trials/*/record.json"))
        pinned = _fitted(pin(study, root, engine=engine, log=folder / "worker.log", preflight=not begun), store)
        store.write_lock(pinned.lock)
        store.write_study(source)
        made = _write_plan(pinned, store)
        if pinned.lock.engine != "sim":  # which writes no weights
            used = sum(path.stat().st_size for path in folder.glob("trials/**/*") if path.is_file())
            plan.check_disk(made.disk_bytes, free_bytes=made.free_disk_bytes, used_bytes=used, where=folder)
        crew = Crew(pinned, folder, size=made.workers)
        with Signals(crew):
            try:
                outcome = _Course(pinned, store, crew, tell, spending).follow()
            finally:
                spending.note(at_once=True)
        learn(home(), pinned.device, predicted(outcome.evidence.records, pinned.known))
        return outcome


def _fitted(pinned: Pinned, store: StudyFolder) -> Pinned:
    """Make the study as much smaller as its budget calls for; once trials have run, what was reduced then stands."""
    if any(store.path.glob("trials/*/record.json")):
        kept = store.read_lock().reductions
        study = plan.reduced(pinned.lock.study, kept)
        return replace(pinned, lock=pinned.lock.model_copy(update={"study": study, "reductions": kept}))
    return replace(pinned, lock=plan.fit_budget(pinned.lock, models.shape(pinned.base), pinned.known))


def _write_plan(pinned: Pinned, store: StudyFolder) -> Plan:
    shape = models.shape(pinned.base)
    machine = plan.Machine(
        device=pinned.device,
        cores=cores(),
        device_bytes=pinned.free_bytes,
        host_bytes=free_host_bytes(),
        disk_bytes=files.free_bytes(store.path),
    )
    made = plan.preview(pinned.lock, shape, machine=machine, **vars(pinned.known))
    store.write_plan(made.model_dump(mode="json"))
    return made


class _Course:
    """A study under way."""

    def __init__(
        self, pinned: Pinned, store: StudyFolder, crew: Crew, tell: Callable[[Progress], None], spending: Spending
    ) -> None:
        self._pinned, self._store, self._crew, self._tell = pinned, store, crew, tell
        self._purse = Purse(pinned, spending)
        self._failed: dict[str, tuple[Trial, str]] = {}
        self._records: dict[str, TrialRecord] = {}
        self._started_s = time.monotonic()

    def follow(self) -> Outcome:
        """Go from wave to wave until nothing is left to do, or nothing that can be done."""
        while True:
            evidence = self._store.evidence()
            wave = plan.next_wave(evidence)
            done = {record.trial.id for record in evidence.records}
            trials = [t for t in wave.trials if t.id not in self._failed and t.id not in done] if wave else []
            if self._purse.empty and trials:
                return self._outcome("out of budget", evidence)
            if self._crew.stopping:
                return self._outcome("interrupted", evidence)
            self._drop_weights(evidence.records)
            self._store.keep_paused(plan.resumable(evidence))
            if not trials:
                return self._outcome("failed" if self._failed else "done", evidence)
            self._purse.learn(evidence.records)
            self._carry_out(wave, trials, before=len(done))

    def _carry_out(self, wave: Wave, trials: list[Trial], *, before: int) -> None:
        """Carry out the trials of a wave and keep count; one that does not fit may void others, so plan anew then."""
        pace = Pace(wave.why, before, len(trials), self._started_s, self._pinned.lock.study.hardware.usd_per_hour)

        def ended(trial: Trial, status: str, error: str | None) -> None:
            self._purse.ended(trial)
            if error is None:
                pace.done += 1
            else:
                pace.failed += 1
                self._failed[trial.id] = (trial, error)
            if status == "infeasible":
                self._crew.finish()
            elif error is None and trial.purpose == "final":
                self._drop_weights([self._store.trial(trial).record()])

        def moved() -> None:
            if self._purse.overdrawn() and not self._crew.stopping:
                self._crew.stop()
            self._tell(pace.moment(self._crew.running))

        note_openings(self._pinned.lock, trials)
        due = frozenset(trial.id for trial in trials)
        self._crew.carry_out(self._packs(trials), ended, moved, due=due, may_begin=self._purse.allows)

    def _packs(self, trials: list[Trial]) -> tuple[tuple[Trial, ...], ...]:
        """Which of these train together, kept before they begin."""
        formed = self._store.packs()
        known = {name: record.trial for name, record in self._records.items()}
        most = plan.most_members(self._pinned.lock.study, self._pinned.device)
        made = plan.packs(trials, most=most, formed=formed, known=known)
        news = [ids for pack in made if len(pack) > 1 and (ids := [trial.id for trial in pack]) not in formed]
        if news:
            moved = {name for ids in news for name in ids}
            self._store.write_packs([*(ids for ids in formed if not moved & set(ids)), *news])
        return made

    def _drop_weights(self, records: Sequence[TrialRecord]) -> None:
        """Keep no more weights than the study says, as each final ends: the disk need not hold those of all."""
        self._records |= {record.trial.id: record for record in records}
        ids = set(surplus(Evidence(self._pinned.lock, tuple(self._records.values()), {}, {})))
        for record in self._records.values():
            folder = self._store.trial(record.trial)
            if record.trial.id in ids and folder.artifact.exists():
                folder.drop_artifact()

    def _outcome(
        self, status: Literal["done", "failed", "interrupted", "out of budget"], evidence: Evidence
    ) -> Outcome:
        failed = {label([trial]): error for trial, error in self._failed.values()}
        return Outcome(status=status, evidence=evidence, failed=failed)


class Signals:
    """While entered, SIGINT and SIGTERM stop a crew, and no worker outlives it; other threads leave signals alone."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, lambda *_: self._crew.stop())

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._crew.kill()
