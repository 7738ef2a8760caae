"""Which trials come next, from the records alone: one pure function that a study is carried out, resumed and
extended by.

For each task: the search of every arm's learning rate; once all rates of the task are known, the finals of the first
look, every arm with the same seeds, but one alone of an arm in which nothing is random. Once all rates of all tasks are
known, the probes, one after the other. When every task has completed a look, the next one for all, if an open
comparison is bound by seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunetrial.analysis import extend
from tunetrial.core.evidence import Evidence
from tunetrial.core.study import Lock, Trial
from tunetrial.plan.tuning import Rate, Search, search


@dataclass(frozen=True)
class Wave:
    """Trials that can be run now, in order and without a record yet, and what they are for."""

    trials: tuple[Trial, ...]
    why: str


def next_wave(evidence: Evidence) -> Wave | None:
    """Say what to run next; None when the study is complete.

    An arm that does not fit, or that diverged at every rate, is given nothing more; the others go on. Ask again
    after a trial that turned out infeasible: the rest of its arm's trials are then gone from the wave.
    """
    searches = {(t.name, a.name): search(evidence, a.name, t.name) for t in _tasks(evidence) for a in _arms(evidence)}
    rates = {key: found.rate for key, found in searches.items() if found.rate}
    tuned = [task.name for task in _tasks(evidence) if not _pending(searches, task.name)]
    pending = [t for task in _tasks(evidence) for t in _pending(searches, task.name)]
    parts = [
        ("learning-rate search", pending),
        ("probes", [] if pending else list(_missing(evidence, _probes(evidence.lock, rates)))),
        _finals(evidence, rates, tuned),
    ]
    trials = tuple(trial for _, part in parts for trial in part)
    return Wave(trials, " and ".join(why for why, part in parts if part)) if trials else None


def chosen_rate(evidence: Evidence, arm: str, task: str) -> Rate | None:
    """The learning rate of an arm on a task; None while it is searched for, or where the search failed."""
    return search(evidence, arm, task).rate


def _finals(evidence: Evidence, rates: dict, tuned: list[str]) -> tuple[str, list[Trial]]:
    """The finals of the first look that is not complete, of tasks that may go there."""
    lock = evidence.lock
    for number, look in enumerate(lock.study.looks):
        seeds = lock.final_seeds(look)
        if number and not _goes_on(evidence, lock.final_seeds(lock.study.looks[number - 1])):
            break
        missing = list(_missing(evidence, _trials(lock, rates, tuned, seeds)))
        if missing or len(tuned) < len(lock.study.tasks):
            return f"finals of the look at {look} seeds", missing
    return "finals", []


def _goes_on(evidence: Evidence, seeds: tuple[int, ...]) -> bool:
    """Whether the look with these seeds calls for the next, judged by it alone."""
    records = tuple(r for r in evidence.records if r.trial.purpose != "final" or r.trial.seed in seeds)
    return extend(replace(evidence, records=records))


def _probes(lock: Lock, rates: dict) -> Iterator[Trial]:
    """One probe an arm and task, at the chosen rate."""
    seed = lock.final_seeds(1)[0]
    for (task, arm), rate in rates.items():
        yield lock.trial(arm, task, learning_rate=rate.value, seed=seed, purpose="probe")


def _trials(lock: Lock, rates: dict, tuned: list[str], seeds: tuple[int, ...]) -> Iterator[Trial]:
    """Finals, seed by seed, so that an interrupted study has pairs; one of an arm in which nothing is random."""
    for seed in seeds:
        for (task, arm), rate in rates.items():
            if task in tuned and (seed == seeds[0] or not lock.study.arm(arm).fixed):
                yield lock.trial(arm, task, learning_rate=rate.value, seed=seed, purpose="final")


def _missing(evidence: Evidence, trials: Iterator[Trial]) -> Iterator[Trial]:
    """Those without a record."""
    known = {record.trial.id for record in evidence.records if record.trial.purpose != "tune"}
    return (trial for trial in trials if trial.id not in known)


def _pending(searches: dict[tuple[str, str], Search], task: str) -> list[Trial]:
    return [trial for (other, _), found in searches.items() if other == task for trial in found.pending]


def _tasks(evidence: Evidence):
    return evidence.lock.study.tasks


def _arms(evidence: Evidence):
    return evidence.lock.study.arms
