"""Budgets that bind: a study is made smaller beforehand until it fits, and is refused where even the smallest cannot.

What is reduced, in this order: a ladder, which no verdict needs, as a whole; points of the learning-rate search, down
to three, and with them how far it may go beyond its ends; then looks, the last first; then repeats of the folds of few
rows, down to one. Never the first look, the folds, the seeds of the search or an arm: the verdict's protocol needs
them. A study fits if the most trials that it may come to, one after the other, end within the budget as they are likely
to, or at the middle of the estimated speed (geometric). It is refused if the fewest trials of the smallest study do not
at the highest speed. Between the two it begins, and stops when the budget is spent.
"""

from collections.abc import Iterator, Mapping

from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.study import Budget, Hardware, Lock, Reduction, Study
from tunetrial.models import ModelShape
from tunetrial.plan.timing import Known, Timed, Trials, counts, timed

FEWEST_POINTS = 3
BEYOND_POINTS = 2

Times = Mapping[tuple[str, str], Timed]
Counts = Mapping[tuple[str, str], Trials]


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
    steps: list[Study] = [study]
    if study.ladder is not None:
        steps.append(study.model_copy(update={"ladder": None}))
    tuning, looks = study.tuning, study.looks
    for points in range(tuning.points - 1, FEWEST_POINTS - 1, -1) if tuning.learning_rate == "auto" else ():
        beyond = min(tuning.max_points, points + BEYOND_POINTS)
        fewer = tuning.model_copy(update={"points": points, "max_points": beyond})
        steps.append(steps[-1].model_copy(update={"tuning": fewer}))
    for left in range(len(looks) - 1, 0, -1):
        steps.append(steps[-1].model_copy(update={"looks": looks[:left]}))
    for left in range(study.repeats - 1, 0, -1) if folds else ():
        steps.append(steps[-1].model_copy(update={"repeats": left}))
    for step in steps:
        changed = ((f, _value(study, f), _value(step, f)) for f in Reduction.model_fields["field"].annotation.__args__)
        yield tuple(Reduction(field=f, asked=asked, now=now) for f, asked, now in changed if asked != now)


def fit_budget(lock: Lock, shape: ModelShape, known: Known | None = None) -> Lock:
    """Make a study as much smaller as its budget calls for; the lock's `reductions` say what was reduced.

    Without a budget, or without a known speed of the machine, it stays as it is.

    Raises:
        DoesNotFitError: Not even the smallest can end within the budget.
    """
    allowed, times = allowed_s(lock.study), timed(lock, shape, known or Known())
    if allowed is None or times is None:
        return lock
    for reductions in smaller(lock.study, folds=bool(lock.folds)):
        study = reduced(lock.study, reductions)
        fitted = lock.model_copy(update={"study": study, "reductions": reductions})
        if most_s(times, counts(fitted)) <= allowed:
            return fitted
    least = least_s(times, counts(fitted))
    if least > allowed:
        refuse(lock, least)
    return fitted


def most_s(times: Times, counts: Counts) -> float:
    """The most trials there may be, each as long as is likely, else at the middle of its range."""
    middle = lambda r: (r.low * r.high) ** 0.5 if r.likely is None else r.likely  # noqa: E731
    return sum(
        counts[key].tuning.high * middle(counts[key].searched(one.tune).seconds)
        + counts[key].finals.high * middle(one.final.seconds)
        + middle(counts[key].laddered(one.tune).seconds)
        for key, one in times.items()
    )


def least_s(times: Times, counts: Counts) -> float:
    """The fewest trials there may be, each at the low end of its range."""
    return sum(
        counts[key].tuning.low * counts[key].searched(one.tune).seconds.low
        + counts[key].finals.low * one.final.seconds.low
        + counts[key].laddered(one.tune).seconds.low
        for key, one in times.items()
    )


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
    if field == "ladder":
        return study.ladder.further if study.ladder else 0
    head, _, rest = field.partition(".")
    return getattr(getattr(study, head), rest) if rest else getattr(study, head)


def _with(study: Study, field: str, value: int | tuple[int, ...]) -> Study:
    if field == "ladder":
        return study.model_copy(update={"ladder": None})
    head, _, rest = field.partition(".")
    new = getattr(study, head).model_copy(update={rest: value}) if rest else value
    return study.model_copy(update={head: new})
