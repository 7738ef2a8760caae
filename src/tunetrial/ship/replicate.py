"""Which of an arm's runs ships, and what the study says of the arm. No torch."""

from dataclasses import dataclass

from tunetrial.core.errors import EvidenceError, SpecError
from tunetrial.core.evidence import Comparison, Decision, Evidence, TrialRecord
from tunetrial.core.study import Lock
from tunetrial.spec.faults import nearest, show
from tunetrial.store import TrialFolder, first_look, median_replicate


@dataclass(frozen=True)
class Replicate:
    """The run that ships: its record, its folder, and why it."""

    record: TrialRecord
    folder: TrialFolder
    why: str


def find_arm(lock: Lock, name: str, task: str | None) -> str:
    """Check that the study has such an arm, trained on such a task; returns the task, which is the one that decides if
    none is named.

    Raises:
        SpecError: It has not, or nothing is trained in the arm.
    """
    arms, tasks = [one.name for one in lock.study.arms], [one.name for one in lock.study.tasks]
    if name not in arms:
        raise SpecError(f"ship: no such arm, got {show(name)}; {nearest(name, arms)}")
    if task is not None and task not in tasks:
        raise SpecError(f"ship: no such task, got {show(task)}; {nearest(task, tasks)}")
    if lock.study.arm(name).untrained:
        method = lock.study.arm(name).method
        raise SpecError(f"ship: {name} has no weights of its own, got method {method}; use its base as it is")
    return task or lock.study.rule.primary


def choose(
    evidence: Evidence,
    arm: str,
    task: str,
    trials: dict[str, TrialFolder],
    seed: int | None,
    *,
    with_weights: bool = True,
) -> Replicate:
    """The run with the median validation score of the first look, the lower of two middle ones, ties by lowest seed; or
    the one of this seed.

    Raises:
        EvidenceError: There is no such run, it failed, or its weights are not kept; those that are kept are named.
    """
    finals = evidence.of(purpose="final", task=task, arm=arm)
    sound = [record for record in finals if record.status == "ok"]
    if not sound:
        got = f"got {len(finals)} that failed" if finals else "got none"
        raise EvidenceError(f"ship: {arm} has no finished final run on {task}, {got}; run the study first")
    kept = [record.trial.seed for record in sound if trials[record.trial.id].artifact.is_dir()]
    kept_ones = f"seed{'' if len(kept) == 1 else 's'} {', '.join(map(str, kept))}" if kept else "none"
    metric = evidence.lock.study.task(task).metric
    if seed is None:
        chosen, why = median_replicate(first_look(evidence.lock, finals), metric), f"the median validation {metric}"
        if chosen is None:
            raise EvidenceError(f"ship: no run of {arm} has validation {metric}, got {len(sound)} runs; name a --seed")
        early = first_look(evidence.lock, sound)
        why += f" of {len(early)} runs"
    else:
        chosen, why = next((record for record in sound if record.trial.seed == seed), None), "named by --seed"
        if chosen is None:
            raise EvidenceError(f"ship: no finished run of {arm} on {task} has seed {seed}; kept are {kept_ones}")
    if with_weights and chosen.trial.seed not in kept:
        do = "name one of them with --seed" if kept else "run a study with keep: all"
        got = f"got seed {chosen.trial.seed}, {why}; kept are {kept_ones}: {do}"
        raise EvidenceError(f"ship: the weights of this run of {arm} are not kept, {got}")
    return Replicate(chosen, trials[chosen.trial.id], why)


def comparison(decision: Decision, arm: str, task: str) -> Comparison | None:
    """What was decided of the arm; None of the reference, which nothing is held against."""
    return next((c for c in decision.verdicts if (c.candidate, c.task) == (arm, task)), None)


def verdict(decision: Decision, arm: str, task: str) -> str:
    """The verdict in words, as the report has it."""
    found = comparison(decision, arm, task)
    if found is not None:
        return found.words
    references = {c.reference for c in decision.verdicts if c.task == task}
    return "reference" if arm in references else "no verdict"
