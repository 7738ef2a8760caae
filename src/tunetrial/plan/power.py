"""What a study can find out, before anything is spent: effects it would show, what its margin takes, chances of each
verdict.

It rests on a prior, which real studies differ from by a factor of two and more, or on a pilot, which says how far it
may be off. The report says what was found.
"""

from collections.abc import Callable
from math import ceil, inf
from textwrap import fill
from typing import Literal

from scipy.special import ndtri

from tunetrial.analysis import metrics, stats, verdict
from tunetrial.analysis.folds import test_to_train
from tunetrial.analysis.verdict import MANY_EXAMPLES, MANY_SEEDS
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record
from tunetrial.core.study import Folding, Lock, TaskSpec
from tunetrial.plan import chances
from tunetrial.plan.chances import Chance, Levels, Sampling
from tunetrial.plan.noise import Pilot, Prior, prior, prior_of

__all__ = ["Outlook", "Pilot", "Power", "Prior", "Takes", "power", "power_of", "prior", "prior_of", "rows_needed"]

POWER = 0.8
COLUMNS = 100
SHARES = ("share", "F1", "fraction")
NONE = "no number of"
Claim = Literal["direction", "within", "not_worse"]


class Outlook(Record):
    """The chances of verdicts if the candidate truly differs by `effect` from the reference, higher being better.

    `looks` are by seeds (by folds, where there are folds), each as if it alone were made, at its own level; `overall`
    is of what the study ends with.
    """

    effect: float
    looks: dict[int, Chance]
    overall: Chance


class Takes(Record):
    """What it takes to show one claim with 80 % power if the true difference is `effect`.

    `seeds` with the test rows there are, `rows` with each look's seeds; None where no number up to 10,000 seeds or
    10 million examples is enough.
    """

    claim: Claim
    effect: float
    seeds: int | None
    rows: dict[int, int | None]


class Power(Record):
    """What the test split of a task allows: effects that are found with 80 % power, at the level of one look.

    `detectable` is by seeds, for each look; `detectable_at_best` with endless seeds; `rows_needed` for the margin,
    with endless seeds. None where there is no prior. A margin that is a share of a gain has no value in units of the
    metric before the untuned base is scored, hence no `rows_needed`, nothing that the margin `takes` and no `outlook`.

    `takes` has each claim: the direction of a difference as large as the margin; an effect within the margin, if there
    is none and if half the margin is lost; and a candidate that is not worse, if there is no difference. `outlook` is
    at no difference and at losses and gains of the margin and of half of it. No `rows_needed` either where what tuned
    rates may lose is no less than the margin.
    With a `pilot` the prior is what it estimates, and `ends` are the same figures at the low and the high ends of its
    intervals, both spreads at once.

    Of a task in folds `test_rows` are all rows, `detectable` is by the number of folds in all, `detectable_at_best`
    with endless repeats, and `rows_needed` with the repeats there are: None if no number of rows is enough.
    """

    task: str
    metric: str
    margin: float | str
    test_rows: int
    prior: Prior | None
    detectable: dict[int, float] = {}
    detectable_at_best: float | None = None
    rows_needed: int | None = None
    folding: Folding | None = None
    takes: tuple[Takes, ...] = ()
    outlook: tuple[Outlook, ...] = ()
    pilot: Pilot | None = None
    ends: tuple["Power", "Power"] | None = None

    @property
    def rests_on_gain(self) -> bool:
        """Whether the margin is a share of a gain."""
        return isinstance(self.margin, str)

    def __str__(self) -> str:
        head, *facts = _facts(self)
        return "\n".join(
            [head, *(fill(fact, COLUMNS, initial_indent="  ", subsequent_indent="    ") for fact in facts)]
        )


def power(lock: Lock, spec: TaskSpec, assumed: Prior | Pilot | None) -> Power:
    """Work out what a task's test split allows, at the level that Holm's first step and the looks leave."""
    study, cut = lock.study, lock.folding(spec.name)
    rows = lock.data[spec.name].counts["test" if cut is None else "all"]
    family = len(study.tasks) * (len(study.arms) - 1)
    head = {"task": spec.name, "metric": spec.metric, "margin": spec.margin, "test_rows": rows, "folding": cut}
    if family == 0 or rows < 2:
        assumed = assumed.prior if isinstance(assumed, Pilot) else assumed
        return Power(**head, prior=assumed)
    alpha = (1 - study.rule.level) / family
    if cut is not None:
        return _power(head, assumed, lambda own: _in_folds(lock, spec, own, alpha))
    return _power(head, assumed, lambda own: _by_seeds(spec.metric, spec.margin, rows, own, alpha, study.looks))


def power_of(
    metric: str,
    margin: float,
    rows: int,
    seeds: int,
    prior: Prior | Pilot | None,
    *,
    level: float = 0.95,
    looks: tuple[int, ...] | None = None,
) -> Power:
    """As `power`, without a study: one comparison on so many test rows, with so many seeds an arm.

    `looks` are numbers of seeds that end with `seeds`; without them there is one look. `prior_of` has usual priors.

    Raises:
        EvidenceError: A metric that is not known, a margin or level out of range, fewer than 2 seeds or rows, or
            looks that end elsewhere.
    """
    looks, title = looks or (seeds,), metrics.find(metric).title
    wrong = {
        f"margin: must be above 0, got {margin}; state the smallest difference in {title} that matters": not 0
        < margin
        < inf,
        f"test rows: must be 2 or more, got {rows}; hold more rows back": rows < 2,
        f"seeds: must be 2 or more, got {seeds}; 5 is usual": seeds < 2,
        f"level: must lie between 0.5 and 1, got {level}; 0.95 is usual": not 0.5 < level < 1,
        f"looks: must rise from 2 or more and end with {seeds} seeds, got {list(looks)}; ({seeds},) is one look": (
            looks[-1] != seeds or looks[0] < 2 or list(looks) != sorted(set(looks))
        ),
    }
    for fault in (fault for fault, is_so in wrong.items() if is_so):
        raise EvidenceError(fault)
    head = {"task": "test split", "metric": metric, "margin": margin, "test_rows": rows}
    return _power(head, prior, lambda own: _by_seeds(metric, margin, rows, own, 1 - level, looks))


def _power(head: dict, assumed: Prior | Pilot | None, figures: Callable[[Prior], dict]) -> Power:
    """The figures of a prior, or of a pilot's estimate with those at its ends."""
    if assumed is None:
        return Power(**head, prior=None)
    if isinstance(assumed, Prior):
        return Power(**head, prior=assumed, **figures(assumed))
    ends = tuple(Power(**head, prior=own, **figures(own)) for own in (assumed.low, assumed.high))
    return Power(**head, prior=assumed.prior, **figures(assumed.prior), pilot=assumed, ends=ends)


def _by_seeds(
    metric: str, margin: float | str, rows: int, assumed: Prior, alpha: float, looks: tuple[int, ...]
) -> dict:
    """What seeds and test rows allow, by the variance of a verdict (`stats.crossed`)."""
    level, best = chances.levels(alpha, looks), assumed.example_sd / (rows / assumed.rows_per_example) ** 0.5
    made = {look: chances.crossed(assumed, look, rows) for look in looks}
    at_best = stats.detectable_effect(best, rows / assumed.rows_per_example - 1, level=1 - level.two_sided, power=POWER)
    found = {
        "detectable": {look: chances.detectable(one, level.two_sided, POWER) for look, one in made.items()},
        "detectable_at_best": at_best + max(assumed.below, assumed.above),
    }
    if isinstance(margin, str):
        return found
    drawn = chances.studies(assumed, rows, looks, level) if len(looks) > 1 else None
    # Clusters, and answers that change from seed to seed, are no longer right or wrong once they are averaged.
    binary = metric == "accuracy" and assumed.rows_per_example == 1 and not assumed.rest_sd
    left = margin - max(assumed.below, assumed.above)
    needed = rows_needed(left, assumed.example_sd**2, alpha=level.two_sided, binary=binary) if left > 0 else None
    return found | {
        "rows_needed": None if needed is None else max(2, ceil(needed * assumed.rows_per_example)),
        "takes": tuple(_takes(claim, effect, assumed, margin, rows, looks, level) for claim, effect in _asked(margin)),
        "outlook": tuple(_outlook(made, drawn, effect, margin, level) for effect in _effects(margin)),
    }


def _in_folds(lock: Lock, spec: TaskSpec, assumed: Prior, alpha: float) -> dict:
    """What folds allow, by the variance of a verdict (`stats.resampled`)."""
    cut, rows, ratio = lock.folding(spec.name), lock.data[spec.name].counts["all"], test_to_train(lock, spec.name)
    level = Levels(alpha, alpha)

    def planned(count: float, repeats: float) -> Sampling:
        return chances.resampled(assumed, count, cut.folds, repeats, test_to_train=ratio)

    def enough(count: int) -> bool:
        return chances.chance(planned(count, cut.repeats), spec.margin, spec.margin, level).direction >= POWER

    made = {cut.splits: planned(rows, cut.repeats)}
    return {
        "detectable": {cut.splits: chances.detectable(made[cut.splits], alpha, POWER)},
        "detectable_at_best": chances.detectable(planned(rows, inf), alpha, POWER),
        "rows_needed": verdict.least(enough, cut.folds - 1, MANY_EXAMPLES),
        "outlook": tuple(_outlook(made, None, effect, spec.margin, level) for effect in _effects(spec.margin)),
    }


def rows_needed(effect: float, variance: float, *, alpha: float = 0.05, binary: bool = True) -> float:
    """Test rows at which an effect is found with 80 % power by a two-sided test, seeds apart.

    For right or wrong answers `variance` is the discordance, the share of examples on which two arms differ
    (Connor 1987), which is at least the effect itself; otherwise the variance of the difference on one example. The
    normal distribution stands for Student's t: too few by about two rows.
    """
    variance = max(variance, abs(effect)) if binary else variance
    under_effect = max(variance - effect**2, 0.0) if binary else variance
    return float((-ndtri(alpha / 2) * variance**0.5 + ndtri(POWER) * under_effect**0.5) ** 2 / effect**2)


def _effects(margin: float) -> tuple[float, ...]:
    return 0.0, -margin / 2, -margin, margin / 2, margin


def _asked(margin: float) -> tuple[tuple[Claim, float], ...]:
    return ("direction", margin), ("within", 0.0), ("within", -margin / 2), ("not_worse", 0.0)


def _takes(
    claim: Claim, effect: float, assumed: Prior, margin: float, rows: int, looks: tuple[int, ...], level: Levels
) -> Takes:
    def enough(seeds: int, count: int) -> bool:
        return getattr(chances.chance(chances.crossed(assumed, seeds, count), effect, margin, level), claim) >= POWER

    def enough_rows(seeds: int) -> int | None:
        return verdict.least(lambda count: enough(seeds, count), fewest, MANY_EXAMPLES)

    fewest = ceil(assumed.rows_per_example)
    return Takes(
        claim=claim,
        effect=effect,
        seeds=verdict.least(lambda seeds: enough(seeds, rows), 1, MANY_SEEDS),
        rows={look: enough_rows(look) for look in looks},
    )


def _outlook(
    made: dict[int, Sampling], drawn: chances.Studies | None, effect: float, margin: float, level: Levels
) -> Outlook:
    """Chances at each look, and overall: of several looks as drawn, of one that look's own."""
    looks = {look: chances.chance(one, effect, margin, level) for look, one in made.items()}
    (last, *_) = reversed(looks.values())
    return Outlook(
        effect=effect, looks=looks, overall=last if drawn is None else chances.overall(drawn, effect, margin)
    )


def _facts(found: Power) -> list[str]:
    """What is known, a sentence each; the first names the task."""
    title = metrics.find(found.metric).title
    margin = (
        f"{found.margin}, known in {title} once the base is scored,"
        if found.rests_on_gain
        else f"{found.margin:g} {title}"
    )
    on = f"{found.folding} of {found.test_rows} rows" if found.folding else f"{found.test_rows} test rows"
    head = f"{found.task}: margin {margin} on {on}"
    if found.prior is None:
        return [f"{head}; power unknown: the spread of {title} is not known"]
    if not found.detectable:
        return [head]
    lines = [head, *_of_pilot(found), _shown(found)]
    if not found.rests_on_gain:
        lines += [*_of_rows(found), *(_taken(found, place) for place in range(len(found.takes)))]
        lines += [_open(found)] if found.outlook else []
    return lines


def _of_pilot(found: Power) -> list[str]:
    pilot = found.pilot
    if pilot is None:
        return []

    def spread(field: str) -> str:
        at, low, high = (getattr(one, field) for one in (pilot.prior, pilot.low, pilot.high))
        return f"{at:.2g} ({low:.2g} to {high:.2g})"

    return [
        f"a pilot of {pilot.replicates} seeds on {pilot.examples} examples has standard deviations of "
        f"{spread('seed_sd')} between seeds and {spread('example_sd')} between examples; in parentheses the ends of "
        f"{100 * pilot.level:g} % intervals, and below what they would mean"
    ]


def _shown(found: Power) -> str:
    def effect(at: int) -> str:
        return _figure(found, lambda one: f"{one.detectable[at]:.2g}")

    seen = ", ".join(effect(at) + ("" if found.folding else f" with {at} seeds") for at in found.detectable)
    return f"would show {seen} (with {100 * POWER:.0f} % power, if seeds differ by {found.prior.seed_sd:.2g})"


def _of_rows(found: Power) -> list[str]:
    """Whether the test rows can resolve the margin at all."""
    if found.folding and found.outlook and found.rows_needed is None:
        return ["no number of rows would resolve the margin in so many folds"]
    if found.rows_needed is None:
        return [f"the margin takes {verdict.MORE_TUNING}"] if found.outlook else []
    if found.rows_needed <= found.test_rows:
        return []
    about = f"about {_figure(found, lambda one: _number(one.rows_needed))} rows would"
    if found.folding:
        return [f"{about} resolve the margin"]
    amount = _amount(found, found.margin)
    return [f"with {found.test_rows} test items no number of seeds can resolve {amount}: {about}"]


def _taken(found: Power, place: int) -> str:
    takes = found.takes[place]
    what = {
        "direction": f"a difference of {_amount(found, takes.effect)}",
        "within": f"SAME {_where(found, takes.effect)}",
        "not_worse": f"NOT WORSE {_where(found, takes.effect)}",
    }[takes.claim]

    def rows(look: int) -> str:
        return f"{_figure(found, lambda one: _number(one.takes[place].rows[look]))} rows with {look} seeds"

    seeds = _figure(found, lambda one: _number(one.takes[place].seeds))
    return f"to show {what}: {seeds} seeds with these rows, or {', '.join(map(rows, takes.rows))}"


def _open(found: Power) -> str:
    """The chance that nothing is told, at no difference and at losses."""

    def told(place: int) -> str:
        return _figure(found, lambda one: f"{100 * one.outlook[place].overall.inconclusive:.0f} %")

    lost = [place for place, outlook in enumerate(found.outlook) if outlook.effect <= 0]
    return "chance of CAN'T TELL YET: " + ", ".join(
        f"{told(place)} {_where(found, found.outlook[place].effect)}" for place in lost
    )


def _where(found: Power, effect: float) -> str:
    return f"at a loss of {_amount(found, -effect)}" if effect else "if the arms do not differ"


def _figure(found: Power, figure: Callable[[Power], str]) -> str:
    """A figure, and with a pilot what it is at the ends of the pilot's intervals."""
    if found.ends is None:
        return figure(found)
    low, high = (figure(one).replace(NONE, "none") for one in found.ends)
    return f"{figure(found)} ({low} to {high})"


def _number(value: int | None) -> str:
    return NONE if value is None else str(value)


def _amount(found: Power, value: float) -> str:
    """A difference of the metric; points where it is a share."""
    metric = metrics.find(found.metric)
    if metric.unit not in SHARES:
        return f"{value:g} {metric.title}"
    return f"{100 * value:g} {'point' if round(100 * value, 9) == 1 else 'points'}"
