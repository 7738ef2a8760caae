"""Escalation: which of a study's arms are worth running, one step after the other, and why no further one is.

A step is an arm that waits until the finals of all run before it are there. Then it is tried: a probe, which prices it,
and runs with the finals' first seeds on training and validation rows, at the rate of the best arm before it (the arm it
is weighed against), moved by as much as the middles of the two grids lie apart. Its price is that of as many runs as
the arm before took for its search and the finals of the first look.

1. It is passed over without a run where even a perfect validation score would be worth less than the price, or where
   the same arm at a lower rank was passed over: returns of rank are taken to diminish.
2. After 3 seeds it is run if the whole interval of its gain is worth more than the price, and passed over if none of
   it is. In between there are as many seeds as the finals have; then the interval is asked again, and if it still
   holds the price, the expected gain decides.

An interval is one of the study's level, and for planning: not adjusted for being asked twice or for several steps. An
arm on another grid (another method, another base) was not tuned: what it lacks for that is allowed for, up to what a
rate one point off loses on the curve of the arm before it, in expectation a third of that (a parabola, and the best
rate anywhere within a point). The best of several arms is flattered by its luck, so that later steps look a little
worse than they are. Worth is that of a gain in the metric alone; what serving costs is in none of it.

No verdict is touched: what decides whether an arm is run are validation scores and prices. Arms that are run have the
rates, seeds and rows that they would have had anyway, and the level of each comparison allows for all that were
planned, run or not.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tunetrial.analysis import arms, ladder, metrics, rates
from tunetrial.analysis.ladder import Rung
from tunetrial.analysis.prospects import Gain, measured, prospect
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.findings import Escalated, Prospect, Step
from tunetrial.core.ladder import scouted

SCOUTS = 3
FAILED = ("does not fit", "diverged", "did not train")
MORE_LABELS = "of more labels (all rows are in use; a ladder of rows prices what twice as many would gain)"
LARGER_BASE = "on a larger base (an arm with a base_model of its own would be)"


def escalated(evidence: Evidence) -> Escalated | None:
    """How far the study's escalation has gone; None without one.

    A pure function of records that are never revised: what was once decided of a step stays so, as more are added.
    """
    lock, strategy = evidence.lock, evidence.lock.study.strategy
    if strategy is None:
        return None
    steps: list[Step] = []
    for arm in strategy.steps:
        run = [step.arm for step in steps if step.state == "run"]
        if any(step.state in ("weighed", "waits") for step in steps) or not all(_ended(evidence, one) for one in run):
            steps.append(Step(arm=arm, state="waits"))
        elif not run:
            steps.append(Step(arm=arm, state="run", reason="it is the first step"))
        else:
            steps.append(_weighed(evidence, arm, steps))
    others = any(lock.base(arm).fingerprint != lock.base_fingerprint for arm in strategy.steps)
    return Escalated(
        task=lock.study.rule.primary,
        margin_usd=strategy.margin_usd,
        steps=tuple(steps),
        advised=(MORE_LABELS, *([] if others else [LARGER_BASE])),
    )


def passed_over(evidence: Evidence) -> dict[str, str]:
    """The arms that are not run, with the reason."""
    found = escalated(evidence)
    return {step.arm: step.reason for step in found.steps if step.state == "passed over"} if found else {}


def sentences(found: Escalated | None) -> Iterator[str]:
    """What was run and what not, and why; then what no step can be."""
    if found is None:
        return
    yield from (_told(step) for step in found.steps[1:])
    yield f"No step was {'; nor '.join(found.advised)}."


def stopped(found: Escalated) -> str:
    """Where the escalation stopped, in one sentence with the reason of the last step."""
    run = [step.arm for step in found.steps if step.state == "run"]
    left = [step for step in found.steps if step.state != "run"]
    so_far = f"Escalation ran {', '.join(run)}"
    return f"{so_far}: {_told(left[-1])}" if left else f"{so_far}: every step."


def _told(step: Step) -> str:
    if step.state == "waits":
        return f"{step.arm} waits for the steps before it."
    what = {"run": "was run", "passed over": "was not run", "weighed": "is being weighed"}[step.state]
    return f"{step.arm} {what}{f', because {step.reason}' if step.reason else ''}."


def _ended(evidence: Evidence, arm: str) -> bool:
    """Whether all finals of an arm's first look have a record, or its search failed."""
    task, due = evidence.lock.study.rule.primary, evidence.lock.final_seeds(evidence.lock.study.looks[0])
    there = {r.trial.seed for r in evidence.of(purpose="final", task=task, arm=arm)}
    return set(due) <= there or arms.outcome(evidence, task, arm).result.state in FAILED


def _weighed(evidence: Evidence, arm: str, before: Sequence[Step]) -> Step:
    """What becomes of a step, once all arms run before it have ended."""
    held = _best(evidence, [step.arm for step in before if step.state == "run"])
    if held is None:
        return Step(arm=arm, state="run", reason="no arm before it came through all its finals")
    step = Step(arm=arm, state="passed over", over=held)
    lower = _lower_rank(evidence, arm, [step.arm for step in before if step.state == "passed over"])
    tried = _tried(evidence, arm)
    if lower is not None:
        return step.model_copy(update={"reason": f"{lower}, the same at a lower rank, was passed over"})
    if any(record.status == "infeasible" for record in tried):
        return step.model_copy(update={"reason": "it does not fit on this machine"})
    if any(record.status == "diverged" for record in tried):
        return step.model_copy(update={"reason": f"it diverged when it was tried at the rate of {held}"})
    usd = _price(evidence, held, tried)
    if usd is None:
        return step.model_copy(update={"state": "weighed"})
    worth, room = _worth(evidence), _room(evidence, held)
    if room is not None and room * worth <= usd:
        reason = f"even a perfect score would gain {room:.4g} over {held}, worth {room * worth:.2f} USD, for {usd:.2f}"
        return step.model_copy(update={"reason": reason})
    return _by_gain(evidence, step, usd, worth)


def _by_gain(evidence: Evidence, step: Step, usd: float, worth: float) -> Step:
    """Weigh what a step gained where it was tried against its price, with a few seeds and then with all."""
    look = evidence.lock.study.looks[0]
    for seeds in (min(SCOUTS, look), look):
        try:
            gain = _gain(evidence, step, seeds)
        except EvidenceError as error:
            return step.model_copy(update={"reason": f"nothing can be told of its gain: {error}"})
        if gain is None:
            return step.model_copy(update={"state": "weighed"})
        found = prospect(step.arm, gain, usd=usd, usd_per_unit=worth)
        pays, loses = gain.low * worth > usd, gain.high * worth <= usd
        if pays or loses or seeds == look:
            state = "run" if found.net_usd > 0 and not loses else "passed over"
            how = "the whole interval" if pays else "even its upper end" if loses else "the expected gain"
            reason = _in_words(step.over, found, worth, how, taken=state == "run")
            return Step(arm=step.arm, state=state, over=step.over, seeds=seeds, prospect=found, reason=reason)
    raise AssertionError("the last look decides")


def _in_words(held: str, found: Prospect, worth: float, how: str, *, taken: bool) -> str:
    least, most = found.low * worth, found.high * worth
    gain = f"its gain over {held} is expected to be {found.gain:+.4g} ({found.low:+.4g} to {found.high:+.4g})"
    pays = "is worth more than" if taken else "is not worth"
    return f"{gain}, worth {found.gain * worth:.2f} USD ({least:.2f} to {most:.2f}): {how} {pays} {found.usd:.2f} USD"


def _gain(evidence: Evidence, step: Step, seeds: int) -> Gain | None:
    """The gain over the arm before, where the step was tried with so many seeds; None while runs are missing."""
    study = evidence.lock.study
    task = study.rule.primary
    two = Rung(task, study.arm(step.over), 0, True), Rung(scouted(task), study.arm(step.arm), 0, False)
    found = ladder.read(evidence, two, evidence.lock.final_seeds(seeds))
    if isinstance(found, str):
        return None
    estimate, lost = found.contrast(np.array([-1.0, 1.0])), _lost_untuned(evidence, step)
    moved = {"effect": estimate.effect + lost / 3, "below": lost / 3, "above": 2 * lost / 3}
    return measured(estimate.model_copy(update=moved), level=study.rule.level)


def _lost_untuned(evidence: Evidence, step: Step) -> float:
    """What a step may lack since its rate was not searched for: nothing on the grid of the arm before, else what the
    neighbours of the best rate lack on that arm's curve."""
    lock, task = evidence.lock, evidence.lock.study.rule.primary
    one, other = lock.study.arm(step.over), lock.study.arm(step.arm)
    if one.method == other.method and lock.base(one.name).fingerprint == lock.base(other.name).fingerprint:
        return 0.0
    curve = rates.tuned(evidence, step.over, task).curve
    place = rates.best_point(curve)
    near = [p.mean for p in (*curve[max(place - 1, 0) : place], *curve[place + 1 : place + 2]) if p.mean is not None]
    return max(0.0, curve[place].mean - statistics.fmean(near)) if near else 0.0


def _best(evidence: Evidence, run: Sequence[str]) -> str | None:
    """The arm with the best mean validation score over the finals of the first look, of those that have all."""
    task, due = evidence.lock.study.rule.primary, evidence.lock.final_seeds(evidence.lock.study.looks[0])
    metric = metrics.find(evidence.lock.study.task(task).metric)
    means = {}
    for arm in run:
        finals = {r.trial.seed: r for r in evidence.of(purpose="final", task=task, arm=arm)}
        found = [finals[s].measurements.get(f"validation.{metric.name}") for s in due if s in finals]
        if len(found) == len(due) and None not in found:
            means[arm] = statistics.fmean(one.value for one in found) * (1 if metric.higher_is_better else -1)
    return max(means, key=means.__getitem__, default=None)


def _tried(evidence: Evidence, arm: str) -> tuple[TrialRecord, ...]:
    task = evidence.lock.study.rule.primary
    scouts = evidence.of(purpose="confirm", task=scouted(task), arm=arm)
    return (*evidence.of(purpose="probe", task=task, arm=arm), *scouts)


def _lower_rank(evidence: Evidence, arm: str, passed: Sequence[str]) -> str | None:
    """Whichever of these is the same arm at a lower rank; alpha may go with the rank or stay."""
    lock = evidence.lock

    def kind(name: str) -> tuple:
        one = lock.study.arm(name)
        left = {key: value for key, value in one.settings.items() if key not in ("rank", "alpha")}
        return one.method, left, lock.base(name).fingerprint

    rank = lock.study.arm(arm).settings.get("rank")
    same = (one for one in passed if rank is not None and kind(one) == kind(arm))
    return next((one for one in same if lock.study.arm(one).settings["rank"] < rank), None)


def _price(evidence: Evidence, held: str, tried: Sequence[TrialRecord]) -> float | None:
    """The dollars of a step: runs as the arm before took, each as long as its own probe says; None without a probe."""
    study = evidence.lock.study
    probe = next((r.measurements for r in tried if r.trial.purpose == "probe"), {})
    finals = evidence.of(purpose="final", task=study.rule.primary, arm=held)
    steps = next((r.measurements["steps"].value for r in finals if "steps" in r.measurements), None)
    if "step_s" not in probe or steps is None:
        return None
    return _runs(evidence, held) * steps * probe["step_s"].value / 3600 * study.hardware.usd_per_hour


def _runs(evidence: Evidence, arm: str) -> float:
    """Whole runs' worth of steps that an arm's search and the finals of its first look took; what goes on from a rung
    counts once."""
    task = evidence.lock.study.rule.primary
    shares: dict[str, float] = {}
    for purpose in ("rung", "tune", "confirm"):
        for record in evidence.of(purpose=purpose, task=task, arm=arm):
            shares[record.trial.course] = record.trial.share or 1.0
    return sum(shares.values()) + evidence.lock.study.looks[0]


def _worth(evidence: Evidence) -> float:
    """What a gain of 1 in the metric is worth."""
    study = evidence.lock.study
    return study.strategy.margin_usd / study.task(study.rule.primary).margin


def _room(evidence: Evidence, arm: str) -> float | None:
    """What a perfect validation score would gain over the mean of an arm's finals; None where none is defined."""
    study = evidence.lock.study
    metric = metrics.find(study.task(study.rule.primary).metric)
    due, found = evidence.lock.final_seeds(study.looks[0]), []
    for record in evidence.of(purpose="final", task=study.rule.primary, arm=arm):
        scores = evidence.scores.get((record.trial.id, "validation"))
        if record.trial.seed not in due or scores is None or metric.columns or metric.constant == "empty":
            continue
        perfect, own = (
            metrics.value(metric, replace(scores, prediction_E=scores.target_E)),
            metrics.value(metric, scores),
        )
        if perfect is not None and own is not None:
            found.append(abs(perfect - own))
    return statistics.fmean(found) if found else None
