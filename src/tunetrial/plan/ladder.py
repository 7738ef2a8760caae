"""Which trials a ladder asks for: the runs of its rungs, once the arm's learning rate is known."""

from tunetrial.analysis.ladder import Ladder, Rung, rank_rungs, row_rungs
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Evidence
from tunetrial.core.pins import for_finals_alone
from tunetrial.core.records import digest
from tunetrial.core.study import Lock, Trial
from tunetrial.plan.tuning import search


def ladder_trials(ladder: Ladder, evidence: Evidence) -> tuple[Trial, ...]:
    """The runs of rungs that have no record yet, smallest first; none while the arm's rate is searched for.

    They have the seeds of the first look's finals, which are the rung of all rows at the arm's own rank, and see
    training and validation rows alone. Once a run of a rung turns out not to fit, the rest of that rung is left.

    Raises:
        ConfigError: The task that decides is carried out in folds: there each part of its rows would be too few.
        EvidenceError: The ladder does not go with the study, or the rows of a rung are not pinned.
    """
    lock = evidence.lock
    task = lock.study.rule.primary
    if lock.folding(task):
        raise ConfigError(f"ladder: {task} is cut into folds, got {lock.folding(task)}; write folds: none, or add rows")
    rungs = [rung for rung in (*row_rungs(ladder, lock), *rank_rungs(ladder, lock)) if not rung.own]
    rate = search(evidence, ladder.arm, task).rate
    if rate is None:
        return ()
    known = {r.trial.id: r.status for r in evidence.of(purpose="confirm", arm=ladder.arm)}
    found: list[Trial] = []
    for rung in rungs:
        runs = [
            rung_trial(lock, rung, learning_rate=rate.value, seed=seed)
            for seed in lock.final_seeds(lock.study.looks[0])
        ]
        if not any(known.get(trial.id) == "infeasible" for trial in runs):
            found += [trial for trial in runs if trial.id not in known]
    return tuple(found)


def rung_trial(lock: Lock, rung: Rung, *, learning_rate: float | None, seed: int) -> Trial:
    """One run of a rung, with the controls of the task that decides: the same epochs, so fewer steps over fewer
    rows."""
    task = lock.study.rule.primary
    own = lock.trial(rung.arm.name, task, learning_rate=learning_rate, seed=seed, purpose="confirm")
    digests = lock.data.get(rung.task, lock.data[task]).digests
    seen = digest({split: digests[split] for split in digests if not for_finals_alone(split)})
    arm = rung.arm.model_copy(update={"base_model": None})
    return own.model_copy(update={"task": rung.task, "arm": arm, "data_digest": seen})
