"""The runs by which an escalation weighs its next step (`analysis.escalation`), and which arms may be run at all."""

import math

from tunetrial.analysis.escalation import SCOUTS, escalated
from tunetrial.analysis.rates import rounded
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Evidence
from tunetrial.core.findings import Escalated
from tunetrial.core.ladder import scouted
from tunetrial.core.study import Arm, Lock, Study, Trial
from tunetrial.plan.tuning import grid, search


def admitted(study: Study, found: Escalated | None) -> tuple[Arm, ...]:
    """The arms that are run: all that are no step, and the steps that are worth it so far."""
    held_back = {step.arm for step in found.steps if step.state != "run"} if found else set()
    return tuple(arm for arm in study.arms if arm.name not in held_back)


def under_way(found: Escalated | None) -> bool:
    """Whether some step has yet to be decided."""
    return found is not None and any(step.state in ("weighed", "waits") for step in found.steps)


def weighing(evidence: Evidence) -> tuple[Trial, ...]:
    """The runs that the step being weighed lacks: its probe first, then runs with the finals' first seeds, a few and
    then as many as the first look has. Once one has failed there are no more."""
    found = escalated(evidence)
    step = next((one for one in found.steps if one.state == "weighed"), None) if found else None
    if step is None:
        return ()
    lock = evidence.lock
    task, look = lock.study.rule.primary, lock.study.looks[0]
    refuse_folds(lock.study, lock.folds.get(task))
    chosen = search(evidence, step.over, task).rate.value
    rate = rounded(chosen * _middle(lock, step.arm) / _middle(lock, step.over))
    if not evidence.of(purpose="probe", task=task, arm=step.arm):
        seed = lock.final_seeds(1)[0]
        return (lock.trial(step.arm, task, learning_rate=rate, seed=seed, purpose="probe"),)
    there = {r.trial.seed for r in evidence.of(purpose="confirm", task=scouted(task), arm=step.arm)}
    due = next((seeds for n in (min(SCOUTS, look), look) if not set(seeds := lock.final_seeds(n)) <= there), ())
    how = {"learning_rate": rate, "purpose": "confirm"}
    return tuple(lock.trial(step.arm, scouted(task), seed=seed, **how) for seed in due if seed not in there)


def refuse_folds(study: Study, folds: int | None) -> None:
    """
    Raises:
        ConfigError: The task is carried out in folds, whose validation rows are too few to weigh a step by.
    """
    if study.strategy is not None and folds:
        task = study.rule.primary
        raise ConfigError(f"strategy: {task} is cut into folds, got {folds}; write folds: none, or add rows")


def steps_in_words(lock: Lock) -> str | None:
    """Which arms wait, and what weighing them takes; None without an escalation."""
    strategy, look = lock.study.strategy, lock.study.looks[0]
    if strategy is None:
        return None
    few = f"{min(SCOUTS, look)} to {look} runs each" if look > SCOUTS else f"{look} runs each"
    later = ", ".join(strategy.steps[1:])
    return f"{strategy.steps[0]} first; {later} if worth their price, weighed by a probe and {few}"


def _middle(lock: Lock, arm: str) -> float:
    """The geometric mean of the rates that the search of an arm begins with."""
    rates = grid(lock, arm)
    return math.exp(math.fsum(map(math.log, rates)) / len(rates))
