"""The runs that a study's ladder asks for once the arm's learning rate is known, and the rows that they train on."""

from dataclasses import replace

from tunetrial.analysis.ladder import rank_rungs, row_rungs
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Evidence, TaskData
from tunetrial.core.ladder import rows_rung
from tunetrial.core.study import Lock, Study, Trial
from tunetrial.plan.tuning import search
from tunetrial.tasks.portions import portion


def ladder_trials(evidence: Evidence) -> tuple[Trial, ...]:
    """The runs of rungs that have no record yet, smallest first; none without a ladder, or while the arm's rate is
    searched for.

    They have the seeds of the first look's finals, which are the rung of all rows at the arm's own rank, the controls
    of the task that decides (the same epochs, so fewer steps over fewer rows), and see training and validation rows
    alone. Once a run of a rung turns out not to fit, the rest of that rung is left.

    Raises:
        ConfigError: The task that decides is carried out in folds: there each part of its rows would be too few.
        EvidenceError: The ladder does not go with the study, or the rows of a rung are not pinned.
    """
    lock, ladder = evidence.lock, evidence.lock.study.ladder
    if ladder is None:
        return ()
    task = lock.study.rule.primary
    _refuse_folds(task, lock.folds.get(task))
    rungs = [rung for rung in (*row_rungs(lock), *rank_rungs(lock)) if not rung.own]
    rate = search(evidence, ladder.arm, task).rate
    if rate is None:
        return ()
    known = {r.trial.id: r.status for r in evidence.of(purpose="confirm", arm=ladder.arm)}
    found: list[Trial] = []
    for rung in rungs:
        how = {"learning_rate": rate.value, "purpose": "confirm"}
        runs = [lock.trial(ladder.arm, rung.task, seed=seed, **how) for seed in lock.final_seeds(lock.study.looks[0])]
        if not any(known.get(trial.id) == "infeasible" for trial in runs):
            found += [trial for trial in runs if trial.id not in known]
    return tuple(found)


def rung_rows(study: Study, data: TaskData) -> dict[str, TaskData]:
    """The rows of a ladder's parts of the training rows, by rung; `data` are those of the task that decides.

    Raises:
        ConfigError: They are to be cut into folds.
        DataError: A part has rows of one target alone.
    """
    if study.ladder is None:
        return {}
    _refuse_folds(data.name, data.folds)
    found = {rows_rung(data.name, share): portion(data, share) for share in study.ladder.rows if share < 1}
    seen = ("train", "validation")
    return {
        name: replace(part, name=name, splits={split: part.splits[split] for split in seen})
        for name, part in found.items()
    }


def step_shares(lock: Lock) -> dict[str, float]:
    """How much of the steps of a whole run each run of a rung takes, by rung: fewer over fewer rows, at another rank as
    many."""
    if lock.study.ladder is None:
        return {}
    task = lock.study.rule.primary
    steps = lambda name: -(-lock.data[name].counts["train"] // lock.study.batch_examples)  # noqa: E731
    return {name: steps(name) / steps(task) if name in lock.data else 1.0 for name in lock.rungs}


def runs_in_words(lock: Lock) -> str | None:
    """Which runs a study's ladder adds; None without one."""
    ladder, seeds = lock.study.ladder, lock.study.looks[0]
    if ladder is None:
        return None
    ranks = [str(rank) for rank in ladder.ranks if rank != lock.study.arm(ladder.arm).settings["rank"]]
    what = [f"with {', '.join(f'{share:g}' for share in ladder.rows[:-1])} of its rows"] if ladder.rows else []
    what += [f"at rank {', '.join(ranks)}"] if ranks else []
    return f"{ladder.further * seeds} runs of {ladder.arm} after the first look, {seeds} each {' and '.join(what)}"


def _refuse_folds(task: str, folds: int | None) -> None:
    if folds:
        raise ConfigError(f"ladder: {task} is cut into folds, got {folds}; write folds: none, or add rows")
