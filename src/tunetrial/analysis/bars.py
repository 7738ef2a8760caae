"""The hard bars that a study sets: limits (at most) and floors, each held against what was measured of an arm.

They go by the value as measured, whatever its interval: a bar is a promise about this measurement, not a verdict.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, Evidence, Measurement, TrialRecord
from tunetrial.core.study import Study

SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Bar:
    """One bar: whether it holds, None if what it is about was not measured, and that in words with its numbers."""

    name: str
    holds: bool | None
    said: str


def limits_of(study: Study, arm: str, own: Mapping[str, Measurement]) -> tuple[Bar, ...]:
    """The study's limits, held against the costs of an arm. One that is not trained cannot have forgotten."""
    asked = {n: at for n, at in study.limits.items() if n != "forgetting_nats" or not study.arm(arm).untrained}
    return limits(asked, own)


def limits(asked: Mapping[str, float], own: Mapping[str, Measurement]) -> tuple[Bar, ...]:
    """Limits by name, held against what was measured by the same names."""
    return tuple(_limit(name, at, own.get(name)) for name, at in asked.items())


def floors(evidence: Evidence, results: Sequence[ArmResult], arm: str) -> tuple[Bar, ...]:
    """The study's floors (`require`), held against an arm's means over finals.

    Raises:
        EvidenceError: One is no condition, or on a task that the study has not.
    """
    return tuple(_floor(evidence, results, arm, name, text) for name, text in evidence.lock.study.require.items())


def _limit(name: str, at: float, own: Measurement | None) -> Bar:
    if own is None:
        return Bar(name, None, f"{name} is limited to {at:g} and was not measured")
    holds = own.value <= at
    return Bar(name, holds, f"{name} {own.value:.4g} is {'within' if holds else 'above'} the limit of {at:g}")


def _floor(evidence: Evidence, results: Sequence[ArmResult], arm: str, name: str, text: str) -> Bar:
    task, _, metric = name.partition(".")
    sign, bound = _condition(name, text)
    result = next((r for r in results if r.task == task and r.arm == arm), None)
    if result is None:
        raise EvidenceError(f"require.{name}: no such task, got {task!r}; name a task of the study")
    value = result.mean if metric == evidence.lock.study.task(task).metric else _mean(evidence, result, metric)
    if value is None:
        return Bar(name, None, f"{name} must be {text} and was not measured in every final")
    holds = SIGNS[sign](value, bound)
    return Bar(name, holds, f"{name} {value:.4g} is {'' if holds else 'not '}{text}")


def _condition(name: str, text: str) -> tuple[str, float]:
    for sign in SIGNS:
        if text.strip().startswith(sign):
            try:
                return sign, float(text.strip().removeprefix(sign))
            except ValueError:
                break
    raise EvidenceError(f"require.{name}: not a condition, got {text!r}; write '<= 1.5' or '>= 0.8'")


def _mean(evidence: Evidence, result: ArmResult, metric: str) -> float | None:
    finals: tuple[TrialRecord, ...] = evidence.of(purpose="final", task=result.task, arm=result.arm)
    values = [r.measurements.get(f"test.{metric}") for r in finals]
    return None if not values or None in values else sum(v.value for v in values) / len(values)
