"""The plan's estimates, frozen before the first run, beside what was measured: how far planning is to be believed."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from tunetrial.core.evidence import Evidence, Scored, TrialRecord
from tunetrial.core.study import whole
from tunetrial.plan.estimate import Range
from tunetrial.plan.preview import Plan


def scored(plan: Plan, evidence: Evidence) -> tuple[Scored, ...]:
    """One row for each estimate of an arm or of the study that something was measured for, or could have been.

    Memory is the most that a solo probe of the arm took on any task; time the sum over trials of what each had of the
    machine, probes apart; a trial of a pack counts with its share. A step is the median trial's mean one.
    """
    records = [record for record in evidence.records if record.trial.purpose != "probe"]
    found = []
    for arm in evidence.lock.study.arms:
        probes = [r for r in evidence.records if (r.trial.arm.name, r.trial.purpose) == (arm.name, "probe")]
        if arm.name in plan.memory_bytes:
            peak = _most(probes, "peak_bytes")
            found.append(_row("peak memory", plan.memory_bytes[arm.name], peak, unit="bytes", arm=arm.name))
        for task, said in (plan.time.step_s.get(arm.name, {}) if plan.time else {}).items():
            steps = [taken for r in records if (taken := _step_s(r, arm.name, task)) is not None]
            name = "a step" if len(evidence.lock.study.tasks) == 1 else f"a step on {task}"
            found.append(_row(name, said, statistics.median(steps) if steps else None, unit="s", arm=arm.name))
    found.append(_row("trials", plan.trials, len(evidence.records) or None, unit="trials"))
    found.append(_row("trained tokens", plan.trained_tokens, _sum(records, _tokens), unit="tokens"))
    if plan.seconds is not None:
        found.append(_row("time of all trials", plan.seconds, _sum(records, _seconds), unit="s"))
    return tuple(found)


def _row(what: str, said: Range, measured: float | None, *, unit: str, arm: str | None = None) -> Scored:
    return Scored(what=what, arm=arm, unit=unit, low=said.low, high=said.high, likely=said.likely, measured=measured)


def _most(records: Iterable[TrialRecord], name: str) -> float | None:
    return max((r.measurements[name].value for r in records if name in r.measurements), default=None)


def _sum(records: Sequence[TrialRecord], of: Callable[[TrialRecord], float | None]) -> float | None:
    """None where any record lacks it: a part of a sum is not the sum."""
    values = [of(record) for record in records]
    return sum(values) if values and None not in values else None


def _step_s(record: TrialRecord, arm: str, task: str) -> float | None:
    """An optimiser step of a trial of this arm on this task, a member's share in a pack, as a mean over all of them."""
    of, measured = record.trial, record.measurements
    if (of.arm.name, whole(of.task)) != (arm, task) or not {"train_s", "steps"} <= measured.keys():
        return None
    return measured["train_s"].value / measured["steps"].value


def _tokens(record: TrialRecord) -> float | None:
    """None of a trial that did not come to its end; 0 of one that trains nothing."""
    if record.status != "ok":
        return None
    measured = record.measurements.get("tokens")
    return 0.0 if measured is None else measured.value


def _seconds(record: TrialRecord) -> float | None:
    return sum(record.legs_s) if record.legs_s else None
