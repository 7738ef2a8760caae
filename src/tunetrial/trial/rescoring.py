"""A shipped model on the test rows that its run answered: is it still as good?"""

from pathlib import Path

from tunetrial import methods
from tunetrial.analysis import metrics
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.evidence import Evidence, TaskData, TrialRecord
from tunetrial.core.study import Arm
from tunetrial.trial.execution import Answers, Terms, score
from tunetrial.trial.openings import note_use
from tunetrial.trial.raters import answered


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
