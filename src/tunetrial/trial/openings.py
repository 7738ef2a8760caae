"""The test split is sealed until rates lock; each look at it is then noted in the user's test ledger."""

from collections.abc import Iterable

from tunetrial.core.study import Lock, Trial
from tunetrial.store import TestLedger, home


def note_openings(lock: Lock, trials: Iterable[Trial]) -> None:
    """Note that these trials are about to see test splits: once a study, task and look, however often resumed."""
    ledger = TestLedger(home())
    for task, look in sorted({(t.task, _look(lock, t)) for t in trials if t.purpose == "final"}):
        test_digest, what = lock.data[task].digests["test"], f"{task}: look {look}"
        noted = {(opening.study_digest, opening.what) for opening in ledger.openings(test_digest)}
        if (lock.digest, what) not in noted:
            ledger.note(test_digest, lock.digest, what)


def count_openings(lock: Lock) -> dict[str, int]:
    """How often the test split of each task has been opened, by this study and any other of this user."""
    ledger = TestLedger(home())
    return {task: ledger.count(pin.digests["test"]) for task, pin in lock.data.items()}


def _look(lock: Lock, trial: Trial) -> int:
    """Which look a final belongs to, from 1: looks are taken after so many final seeds."""
    number = trial.seed - 1000 * lock.study.seed
    return 1 + sum(number > seeds for seeds in lock.study.looks)
