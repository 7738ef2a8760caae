"""Budgets that bind: a study is made smaller beforehand until it fits, and is refused where even the smallest cannot.

What is reduced, in this order: points of the learning-rate search, down to three, and with them how far it may go
beyond its ends; then looks, the last first; then repeats of the folds of few rows, down to one. Never the first look,
the folds, the seeds of the search or an arm: the verdict's protocol needs them. A study fits if the most trials that
it may come to, one after the other, end within the budget at the middle of the estimated speed (geometric). It is
refused if the fewest trials of the smallest study do not at the highest speed. Between the two it begins, and stops
when the budget is spent.
"""

from collections.abc import Iterator, Mapping

from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.speed import Range
from tunetrial.core.study import Budget, Hardware, Lock, Reduction, Study

FEWEST_POINTS = 3
BEYOND_POINTS = 2

TrialSeconds = Mapping[tuple[str, str], Range]
Counts = Mapping[tuple[str, str], Range]


def allowed_s(study: Study) -> float | None:
    """Seconds of the machine that the budget allows, the less of money and hours; None without a budget."""
    return seconds(study.budget, study.hardware)


def seconds(budget: Budget, hardware: Hardware) -> float | None:
    """As `allowed_s`; money without a price allows no end of time, and study files refuse it."""
    bounds = [] if budget.gpu_hours is None else [budget.gpu_hours * 3600]
    if budget.usd is not None and hardware.usd_per_hour:
        bounds.append(budget.usd / hardware.usd_per_hour * 3600)
    return min(bounds, default=None)


def reduced(study: Study, reductions: tuple[Reduction, ...]) -> Study:
    """The study as it is carried out; a field that no longer is what was asked stays as it is."""
    for reduction in reductions:
        if _value(study, reduction.field) == reduction.asked:
            study = _with(study, reduction.field, reduction.now)
    return study


def smaller(study: Study, *, folds: bool = False) -> Iterator[tuple[Reduction, ...]]:
    """What may be reduced, from nothing to all that may be; repeats only where there are folds."""
    tuning, looks = study.tuning, study.looks
    steps: list[Study] = [study]
    for points in range(tuning.points - 1, FEWEST_POINTS - 1, -1) if tuning.learning_rate == "auto" else ():
        beyond = min(tuning.max_points, points + BEYOND_POINTS)
        fewer = tuning.model_copy(update={"points": points, "max_points": beyond})
        steps.append(study.model_copy(update={"tuning": fewer}))
    for left in range(len(looks) - 1, 0, -1):
        steps.append(steps[-1].model_copy(update={"looks": looks[:left]}))
    for left in range(study.repeats - 1, 0, -1) if folds else ():
        steps.append(steps[-1].model_copy(update={"repeats": left}))
    for step in steps:
        changed = ((f, _value(study, f), _value(step, f)) for f in Reduction.model_fields["field"].annotation.__args__)
        yield tuple(Reduction(field=f, asked=asked, now=now) for f, asked, now in changed if asked != now)


def most_s(trial_s: TrialSeconds, counts: Counts) -> float:
    """The most trials there may be, each at the middle of its range."""
    return sum(counts[key].high * (r.low * r.high) ** 0.5 for key, r in trial_s.items())


def least_s(trial_s: TrialSeconds, counts: Counts) -> float:
    """The fewest trials there may be, each at the low end of its range."""
    return sum(counts[key].low * r.low for key, r in trial_s.items())


def refuse(lock: Lock, needed_s: float) -> None:
    """Say that even the smallest study does not fit.

    Raises:
        DoesNotFitError: Always.
    """
    study = lock.study
    price = study.hardware.usd_per_hour
    usd = f" ({needed_s / 3600 * price:.2f} USD)" if price is not None else ""
    got = ", ".join(f"{name} {value:g}" for name, value in study.budget.model_dump(exclude_none=True).items())
    raise DoesNotFitError(
        f"budget: the smallest study with these arms and tasks takes at least {needed_s / 3600:.3g} h{usd} by "
        f"estimate, got {got}; raise it, or take fewer arms or tasks, fewer epochs or rows"
    )


def _value(study: Study, field: str) -> int | tuple[int, ...]:
    head, _, rest = field.partition(".")
    return getattr(getattr(study, head), rest) if rest else getattr(study, head)


def _with(study: Study, field: str, value: int | tuple[int, ...]) -> Study:
    head, _, rest = field.partition(".")
    new = getattr(study, head).model_copy(update={rest: value}) if rest else value
    return study.model_copy(update={head: new})
