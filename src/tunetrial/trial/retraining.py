"""One run more, on training and validation rows together: what ships once nothing is left to be chosen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tunetrial.core.errors import ConfigError, EvidenceError, IntegrityError
from tunetrial.core.evidence import Evidence, TaskData, TrialRecord
from tunetrial.core.pins import given
from tunetrial.core.records import digest
from tunetrial.core.study import Trial
from tunetrial.store import StudyFolder, TrialFolder
from tunetrial.trial.crew import Crew
from tunetrial.trial.openings import note_use
from tunetrial.trial.pinning import Pinned, pin
from tunetrial.trial.waves import Signals

FOLDER = "retrained"


def retrain(
    evidence: Evidence, final: TrialRecord, root: Path, folder: Path, *, tell: Callable[[str], None] = lambda said: None
) -> tuple[TrialRecord, TrialFolder]:
    """Train a final's arm again with its rate and seed, on training and validation rows, by the one loop.

    It answers the test rows once, which the test ledger counts beforehand. It lies in a study folder of its own below
    `folder`, is resumed after a stop, and is not trained again where it is there. What its record says of validation
    rows is of rows that it was trained on.

    Raises:
        ConfigError: The task is in folds, whose runs share no rows; or the machine computes in another precision.
        IntegrityError: Rows are others now.
        EvidenceError: It diverged, did not fit, or failed.
        StoreError: Another process has it in hand.
        KeyboardInterrupt: It was asked to stop; run again to go on.
    """
    lock, trial = evidence.lock, final.trial
    if lock.folding(trial.task):
        raise ConfigError(f"--retrain-final: needs a task that is split once, got {trial.task!r}; leave it out")
    pinned = pin(lock.study, root, engine=lock.engine, log=folder / "worker.log", counting=False)
    if pinned.lock.data[trial.task].digests != lock.data[trial.task].digests:
        raise IntegrityError(f"{trial.task}: rows are not those of the study; restore them")
    if pinned.lock.precision != lock.precision:
        got = f"got {pinned.lock.precision} on this machine"
        raise ConfigError(f"--retrain-final: its runs computed in {lock.precision}, {got}; use a machine like theirs")
    data = _together(pinned.data[trial.task])
    seen = given(data.splits, final=True, texts=False)
    again = trial.model_copy(update={"data_digest": digest({split: data.digest(split) for split in seen})})
    store = StudyFolder(folder / FOLDER)
    with store.hold():
        made = store.trial(again)
        if not made.done:
            note_use(lock, trial.task, f"{trial.arm.name}, seed {trial.seed}: trained on validation rows too")
            tell(f"training {trial.arm.name} on {len(data.splits['train'])} rows, validation rows among them")
            _carry_out(replace(pinned, data={**pinned.data, trial.task: data}), store, again)
        record = made.record()
    if record.status != "ok":
        raise EvidenceError(f"--retrain-final: the run is {record.status}, got {record.reason}; leave it out")
    return record, made


def _together(data: TaskData) -> TaskData:
    """The rows of a task with those for validation among those to be trained on."""
    splits = data.splits
    return replace(data, splits={**splits, "train": (*splits["train"], *splits["validation"])})


def _carry_out(pinned: Pinned, store: StudyFolder, trial: Trial) -> None:
    errors: list[str] = []
    crew = Crew(pinned, store.path, size=1)
    with Signals(crew):
        crew.carry_out(
            [(trial,)],
            lambda trial, status, error: errors.extend([error] if error else []),
            lambda: None,
            due=frozenset([trial.id]),
        )
        if crew.stopping:
            raise KeyboardInterrupt
    if errors:
        raise EvidenceError(f"--retrain-final: the run failed, got {errors[0]}; see to that and run again")
