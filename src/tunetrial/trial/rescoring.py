"""A shipped model on the test rows that its run answered: is it still as good?"""

from pathlib import Path

from tunetrial import methods
from tunetrial.analysis import metrics
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.evidence import Evidence, Example, TaskData, TrialRecord
from tunetrial.core.study import Arm
from tunetrial.trial.execution import Answers, Terms, score
from tunetrial.trial.openings import note_use
from tunetrial.trial.raters import answered

MOST_PROBES = 100


def probes(evidence: Evidence, task: str, arm: str, root: Path) -> tuple[Example, ...]:
    """The first validation rows that an arm's finals answered, as they are read again, by which exports are proven:
    they are no test rows, so none is opened.

    Raises:
        ConfigError: There is no such arm or task, or it is in folds, whose runs share no rows.
        IntegrityError: The rows are others now.
    """
    lock = evidence.lock
    if task not in {spec.name for spec in lock.study.tasks} or lock.folding(task):
        raise ConfigError(f"--prove: needs a task that is split once, got {task!r}; leave it out")
    if not any(record.status == "ok" for record in evidence.of(purpose="final", task=task, arm=arm)):
        raise ConfigError(f"--prove: no finished run of {arm!r} on {task!r}, got none; run the study")
    return tuple(answered(evidence, lock.study.task(task), root, "validation").values())[:MOST_PROBES]


def rescore(evidence: Evidence, root: Path, record: TrialRecord, folder: Path) -> float:
    """The metric of a model folder on the test rows that the run was scored on; counted in the test ledger beforehand.

    Raises:
        ConfigError: The task is in folds, whose runs share no test rows.
        IntegrityError: The test rows are others now.
        EvidenceError: The metric is not defined on what was answered.
    """
    from tunetrial.engine.saved import open_saved  # torch

    lock, trial = evidence.lock, record.trial
    spec = lock.study.task(trial.task)
    if lock.folding(trial.task):
        raise ConfigError(f"--score: folds share no test rows, got task {spec.name!r}; leave it out")
    rows = tuple(answered(evidence, spec, root).values())
    note_use(lock, spec.name, f"{trial.arm.name}, seed {trial.seed}: scored as shipped")
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    data = TaskData(spec.name, spec.kind, lock.data[spec.name].labels, splits)
    untuned = trial.model_copy(update={"arm": Arm(name="none", method="none", settings=methods.settle("none", {}))})
    run = open_saved(folder, untuned, data)
    likelihoods = [run.likelihoods(rows)] if spec.kind == "generate" else None
    answers = Answers([run.predict(rows)], likelihoods)
    terms = Terms(spec.metric, synthetic=False, json_schema=spec.json_schema)
    value = metrics.value(metrics.find(spec.metric), score(answers, 0, rows, spec.kind, trial, terms))
    if value is None:
        raise EvidenceError(f"{folder}: {spec.metric} is not defined on its answers, got {len(rows)}; use another run")
    return value
