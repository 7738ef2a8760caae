"""The test split is sealed until rates lock; each look at it, and each rater, is noted in the user's test ledger."""

from collections.abc import Iterable

from tunetrial.core.study import Lock, Trial, whole
from tunetrial.store import TestLedger, home


def note_openings(lock: Lock, trials: Iterable[Trial]) -> None:
    """Note that these trials are about to see test splits: once a study, task and look, however often resumed.

    Of a task in folds every row is a test row of some fold: all its rows are opened once a study.
    """
    ledger = TestLedger(home())
    for task, look in sorted({(whole(t.task), _look(lock, t)) for t in trials if t.purpose == "final"}):
        test_digest, what = lock.tested(task), f"{task}: {look}"
        noted = {(opening.study_digest, opening.what) for opening in ledger.openings(test_digest)}
        if (lock.digest, what) not in noted:
            ledger.note(test_digest, lock.digest, what)


def note_use(lock: Lock, task: str, what: str) -> None:
    """Note that raters are about to see what arms answered to test rows, or that a shipped model is about to answer
    them: once a study, task and `what`."""
    ledger, test_digest, said = TestLedger(home()), lock.tested(task), f"{task}: {what}"
    if not any((one.study_digest, one.what) == (lock.digest, said) for one in ledger.openings(test_digest)):
        ledger.note(test_digest, lock.digest, said)


def count_openings(lock: Lock) -> dict[str, int]:
    """How often the test split of each task has been opened, by this study and any other of this user."""
    ledger = TestLedger(home())
    return {task.name: ledger.count(lock.tested(task.name)) for task in lock.study.tasks}


def _look(lock: Lock, trial: Trial) -> str:
    """Which look a final belongs to, from 1: looks are taken after so many final seeds. All folds are one."""
    if lock.folding(trial.task):
        return f"{lock.folding(trial.task)}"
    number = trial.seed - 1000 * lock.study.seed
    return f"look {1 + sum(number > seeds for seeds in lock.study.looks)}"
