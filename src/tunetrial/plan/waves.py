"""Which trials come next, from the records alone: one pure function that a study is carried out, resumed and
extended by.

For each task: the search of every arm's learning rate; once all rates of the task are known, the finals of the first
look, every arm with the same seeds, but one alone of an arm in which nothing is random. Once all rates of all tasks are
known, the probes, one after the other. When every task has completed a look, the next one for all, if an open
comparison is bound by seeds; after the first look the runs of the study's ladder, if it has one. Of each arm whose
finals on the primary task trained in packs one is trained again alone, as an anchor: the ledger holds the two against
each other.

With an escalation the arms that wait have none of this until they are worth their price; what weighs the next of them
comes when nothing else of the first look is left to do, and later looks when no arm waits any more.

A task in folds is carried out as its folds: each is a task with rows and rates of its own and one final an arm, without
looks; the first is probed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunetrial.analysis import extend
from tunetrial.analysis.escalation import escalated
from tunetrial.core.evidence import Evidence
from tunetrial.core.study import Lock, Trial, whole
from tunetrial.plan.escalation import admitted, under_way, weighing
from tunetrial.plan.ladder import ladder_trials
from tunetrial.plan.packs import most_members, packs
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
    tasks, steps = parts(evidence.lock), escalated(evidence)
    arms = admitted(evidence.lock.study, steps)
    searches = {(task, a.name): search(evidence, a.name, task) for task in tasks for a in arms}
    rates = {key: found.rate for key, found in searches.items() if found.rate}
    tuned = [task for task in tasks if not _pending(searches, task)]
    pending = [trial for task in tasks for trial in _pending(searches, task)]
    stages = [
        ("learning-rate search", pending),
        ("probes", [] if pending else list(_missing(evidence, _probes(evidence, rates)))),
        _finals(evidence, rates, tuned, first_alone=under_way(steps)),
        ("anchors", list(_missing(evidence, _anchors(evidence)))),
        ("the ladder", _ladder(evidence, rates, tuned)),
    ]
    if not any(stage for _, stage in stages):
        stages.append(("weighing the next step", weighing(evidence)))
    trials = tuple(trial for _, stage in stages for trial in stage)
    return Wave(trials, " and ".join(why for why, stage in stages if stage)) if trials else None


def chosen_rate(evidence: Evidence, arm: str, task: str) -> Rate | None:
    """The learning rate of an arm on a task; None while it is searched for, or where the search failed."""
    return search(evidence, arm, task).rate


def resumable(evidence: Evidence) -> frozenset[str]:
    """The courses, paused at a rung, that may yet go on: those of searches that have not ended."""
    searches = {(r.trial.task, r.trial.arm.name) for r in evidence.of(purpose="rung")}
    under_way = {key for key in searches if search(evidence, key[1], key[0]).pending}
    return frozenset(
        r.trial.course for r in evidence.of(purpose="rung") if (r.trial.task, r.trial.arm.name) in under_way
    )


def first_packs(lock: Lock, device: str) -> dict[tuple[str, str], int]:
    """How many trials train together at most when a study begins, by task and arm; arms that wait begin alike."""
    lock = lock.model_copy(update={"study": lock.study.model_copy(update={"strategy": None})})
    wave = next_wave(Evidence(lock=lock, records=(), scores={}, curves={}))
    found: dict[tuple[str, str], int] = {}
    for pack in packs(wave.trials if wave else (), most=most_members(lock.study, device)):
        for trial in pack:
            key = whole(trial.task), trial.arm.name
            found[key] = max(found.get(key, 1), len(pack))
    return found


def parts(lock: Lock) -> tuple[str, ...]:
    """What a study is carried out as: its tasks, or the folds of those that are in folds."""
    return tuple(part for task in lock.study.tasks for part in lock.parts(task.name))


def _finals(evidence: Evidence, rates: dict, tuned: list[str], *, first_alone: bool) -> tuple[str, list[Trial]]:
    """The finals of the first look that is not complete, of tasks that may go there; `first_alone`: no later look."""
    lock = evidence.lock
    for number, look in enumerate(lock.study.looks):
        seeds = lock.final_seeds(look)
        if number and (first_alone or not _goes_on(evidence, lock.final_seeds(lock.study.looks[number - 1]))):
            break
        missing = list(_missing(evidence, _trials(lock, rates, tuned, seeds)))
        if missing or len(tuned) < len(parts(lock)):
            cut = all(lock.folding(trial.task) for trial in missing)
            return "finals of folds" if missing and cut else f"finals of the look at {look} seeds", missing
    return "finals", []


def _ladder(evidence: Evidence, rates: dict, tuned: list[str]) -> list[Trial]:
    """The runs of the ladder, once the finals of the first look are there for every task."""
    lock = evidence.lock
    first = _trials(lock, rates, tuned, lock.final_seeds(lock.study.looks[0]))
    complete = len(tuned) == len(parts(lock)) and not any(_missing(evidence, first))
    return list(ladder_trials(evidence)) if complete else []


def _goes_on(evidence: Evidence, seeds: tuple[int, ...]) -> bool:
    """Whether the look with these seeds calls for the next, judged by it alone."""
    records = tuple(
        r
        for r in evidence.records
        if r.trial.purpose != "final" or r.trial.seed in seeds or evidence.lock.folding(r.trial.task)
    )
    return extend(replace(evidence, records=records))


def _probes(evidence: Evidence, rates: dict) -> Iterator[Trial]:
    """One probe an arm and task, at the chosen rate; an arm that was weighed before it was run has had its own."""
    lock = evidence.lock
    seed, probed = lock.final_seeds(1)[0], {lock.parts(task.name)[0] for task in lock.study.tasks}
    for (task, arm), rate in rates.items():
        had = lock.study.waits(arm) and evidence.of(purpose="probe", task=task, arm=arm)
        if task in probed and not had:
            yield lock.trial(arm, task, learning_rate=rate.value, seed=seed, purpose="probe")


def _anchors(evidence: Evidence) -> Iterator[Trial]:
    """The first packed final of each arm on the primary task, once more, alone and without the test split."""
    lock = evidence.lock
    for arm in lock.study.arms:
        finals = evidence.of(purpose="final", task=lock.parts(lock.study.rule.primary)[0], arm=arm.name)
        if evidence.of(purpose="anchor", arm=arm.name):
            continue
        packed = [record.trial for record in finals if record.status == "ok" and record.resolved.get("pack", 1) > 1]
        for final in sorted(packed, key=lambda trial: trial.seed)[:1]:
            rate, seed = final.learning_rate, final.seed
            yield lock.trial(arm.name, final.task, learning_rate=rate, seed=seed, purpose="anchor")


def _trials(lock: Lock, rates: dict, tuned: list[str], seeds: tuple[int, ...]) -> Iterator[Trial]:
    """Finals, seed by seed, so that an interrupted study has pairs; one of an arm in which nothing is random.

    Before them one of each fold, all arms with the fold's own seed.
    """
    of_fold = {
        part: seed
        for task in lock.study.tasks
        if lock.folding(task.name)
        for part, seed in zip(lock.parts(task.name), lock.final_seeds(lock.folding(task.name).splits), strict=True)
    }
    for (task, arm), rate in rates.items():
        if task in tuned and task in of_fold:
            yield lock.trial(arm, task, learning_rate=rate.value, seed=of_fold[task], purpose="final")
    for seed in seeds:
        for (task, arm), rate in rates.items():
            if task in tuned and task not in of_fold and (seed == seeds[0] or not lock.study.arm(arm).fixed):
                yield lock.trial(arm, task, learning_rate=rate.value, seed=seed, purpose="final")


def _missing(evidence: Evidence, trials: Iterator[Trial]) -> Iterator[Trial]:
    """Those without a record."""
    known = {record.trial.id for record in evidence.records if record.trial.purpose != "tune"}
    return (trial for trial in trials if trial.id not in known)


def _pending(searches: dict[tuple[str, str], Search], task: str) -> list[Trial]:
    return [trial for (other, _), found in searches.items() if other == task for trial in found.pending]
