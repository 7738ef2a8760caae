"""Every arm tried before anything is spent: two steps, four answers, its artifact saved and read again."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tunetrial import methods
from tunetrial.core.engine import Session
from tunetrial.core.errors import DivergedError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Lock, Trial
from tunetrial.plan.tuning import tuning_seeds

STEPS, ANSWERS = 2, 4


def attempts(lock: Lock, data: Mapping[str, TaskData]) -> Iterator[tuple[Trial, TaskData]]:
    """A trial of every arm on every task, at the rate where its search begins, with the few rows that it needs; two of
    an arm that is tuned on another base.

    None of them ever becomes a record.
    """
    for arm in lock.study.arms:
        method, seed = methods.find(arm), tuning_seeds(lock)[0]
        rate = method.learning_rate_centre(lock.base(arm.name).parameters) if method.tuned else None
        for task in lock.study.tasks:
            name = lock.parts(task.name)[0]
            splits = data[name].splits
            train = splits["train"][: STEPS * lock.controls(name, arm.name).batch_examples]
            few = replace(data[name], splits={"train": train, "validation": splits["validation"][:ANSWERS]})
            for purpose in ("tune",) if lock.study.tuned_as(arm.name) == arm else ("tune", "confirm"):
                yield lock.trial(arm.name, name, learning_rate=rate, seed=seed, purpose=purpose), few


def attempt(session: Session, trial: Trial, data: TaskData, folder: Path) -> None:
    """Carry out the first steps of a trial, answer some rows, save the artifact to `folder`, read and drop it.

    Diverging is a result, which the search of a rate will find; so is not to fit.

    Raises:
        DoesNotFitError: It does not fit.
        TunetrialError: Whatever else would have ended the trial later.
    """
    try:
        run = session.start(trial, data)
        for _ in run.steps(None, most=STEPS):
            pass
        run.predict(data.splits["validation"])
        run.save(folder)
        run.verify(folder)
    except DivergedError:
        return
    finally:
        shutil.rmtree(folder, ignore_errors=True)
