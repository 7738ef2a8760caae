"""What a study can find out at best: the smallest effect it would show, before anything is spent.

It rests on a stated prior, not on measurements: how far runs of one arm differ by seed, and on how much of the test
set two arms differ. Real studies differ from it by a factor of two and more; the report says what was found.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from tunetrial.analysis import metrics, stats
from tunetrial.analysis.folds import test_to_train
from tunetrial.analysis.stats import Components
from tunetrial.core.records import Record
from tunetrial.core.study import Folding, Lock, TaskSpec

POWER = 0.8
SEED_SD = 0.01
DISCORDANCE = 0.10
SEED_SHARE, EXAMPLE_SHARE = 0.02, 0.3
IN_UNITS_OF_TARGET = ("mae", "rmse")


class Prior(Record):
    """What is assumed of a task, in units of its metric.

    `seed_sd` is of one run's score; `example_sd` of the difference between two arms on one example, the same at
    every seed, so that no number of seeds averages it out.
    """

    seed_sd: float
    example_sd: float


class Power(Record):
    """What the test split of a task allows: effects that are found with 80 % power, at the level of one look.

    `detectable` is by seeds, for each look; `detectable_at_best` with endless seeds; `rows_needed` for the margin,
    with endless seeds. None where there is no prior. A margin that is a share of a gain has no value in units of the
    metric before the untuned base is scored, hence no `rows_needed`.

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

    @property
    def rests_on_gain(self) -> bool:
        """Whether the margin is a share of a gain."""
        return isinstance(self.margin, str)

    def __str__(self) -> str:
        title = metrics.find(self.metric).title
        margin = (
            f"{self.margin}, known in {title} once the base is scored,"
            if self.rests_on_gain
            else f"{self.margin:g} {title}"
        )
        on = f"{self.folding} of {self.test_rows} rows" if self.folding else f"{self.test_rows} test rows"
        head = f"{self.task}: margin {margin} on {on}"
        if self.prior is None:
            return f"{head}; power unknown: the spread of {title} is not known"
        if self.folding is not None:
            return head + self._of_folds()
        seen = ", ".join(f"{effect:.2g} with {seeds} seeds" for seeds, effect in self.detectable.items())
        text = f"{head}; would show {seen} (if seeds differ by {self.prior.seed_sd:.2g})"
        if self.rows_needed is not None and self.rows_needed > self.test_rows:
            text += (
                f"; with {self.test_rows} test rows no number of seeds can resolve the margin: "
                f"about {self.rows_needed} rows would"
            )
        return text

    def _of_folds(self) -> str:
        text = "".join(f"; would show {effect:.2g}" for effect in self.detectable.values())
        text += f" (if seeds differ by {self.prior.seed_sd:.2g})"
        if self.rows_needed is None:
            return f"{text}; no number of rows would resolve the margin in so many folds"
        more = f"; about {self.rows_needed} rows would resolve the margin"
        return text + (more if self.rows_needed > self.test_rows else "")


def prior(spec: TaskSpec, targets: Sequence[float] | None = None) -> Prior | None:
    """The prior of a task; for errors in units of the target it needs test targets, and is None without.

    One point between seeds and 10 % of examples on which two arms differ, for metrics between 0 and 1; for errors
    2 % and 30 % of the standard deviation of the targets. None for likelihoods, whose spread the base decides.
    """
    if metrics.find(spec.metric).constant is None:
        return None
    if spec.metric not in IN_UNITS_OF_TARGET:
        return Prior(seed_sd=SEED_SD, example_sd=DISCORDANCE**0.5)
    if targets is None or len(targets) < 2:
        return None
    sd = float(np.std(targets, ddof=1))
    return Prior(seed_sd=SEED_SHARE * sd, example_sd=EXAMPLE_SHARE * sd)


def power(lock: Lock, spec: TaskSpec, assumed: Prior | None) -> Power:
    """Work out what a task's test split allows, at the level that Holm's first step and the looks leave."""
    study, cut = lock.study, lock.folding(spec.name)
    rows = lock.data[spec.name].counts["test" if cut is None else "all"]
    head = {"task": spec.name, "metric": spec.metric, "margin": spec.margin, "test_rows": rows, "prior": assumed}
    head["folding"] = cut
    family = len(study.tasks) * (len(study.arms) - 1)
    if assumed is None or family == 0 or rows < 2:
        return Power(**head)
    if cut is not None:
        return Power(**head, **_in_folds(lock, spec, assumed, 1 - (1 - study.rule.level) / family))
    alpha = stats.per_look((1 - study.rule.level) / family, study.looks, sides=2)
    planned = {look: _components(assumed, look, rows) for look in study.looks}
    binary, known = spec.metric == "accuracy", spec.kept_share is None
    return Power(
        **head,
        detectable={s: stats.detectable_effect(c.se, c.df, level=1 - alpha, power=POWER) for s, c in planned.items()},
        detectable_at_best=stats.detectable_effect(assumed.example_sd / rows**0.5, rows - 1, level=1 - alpha),
        rows_needed=round(rows_needed(spec.margin, assumed.example_sd**2, alpha=alpha, binary=binary))
        if known
        else None,
    )


def _in_folds(lock: Lock, spec: TaskSpec, assumed: Prior, level: float) -> dict:
    """What folds allow, by the variance of a verdict (`stats.resampled`) with the spread that the prior implies.

    A fold's difference has the seeds of both arms and the examples of its test rows.
    """
    cut, rows, ratio = lock.folding(spec.name), lock.data[spec.name].counts["all"], test_to_train(lock, spec.name)

    def detectable(share: float, count: float) -> float:
        spread = 2 * assumed.seed_sd**2 + assumed.example_sd**2 * cut.folds / count
        return stats.detectable_effect((share * spread) ** 0.5, cut.splits - 1, level=level, power=POWER)

    share = 1 / cut.splits + ratio
    needed = None
    if detectable(share, float("inf")) < spec.margin:
        needed = brentq(lambda log: detectable(share, np.exp(log)) - spec.margin, 0.0, 50.0)
    return {
        "detectable": {cut.splits: detectable(share, rows)},
        "detectable_at_best": detectable(ratio, rows),
        "rows_needed": needed and round(np.exp(needed)),
    }


def rows_needed(effect: float, variance: float, *, alpha: float = 0.05, binary: bool = True) -> float:
    """Test rows at which an effect is found with 80 % power by a two-sided test, seeds apart.

    For right or wrong answers `variance` is the discordance, the share of examples on which two arms differ
    (Connor 1987); otherwise the variance of the difference on one example.
    """
    under_effect = max(variance - effect**2, 0.0) if binary else variance
    return float((-ndtri(alpha / 2) * variance**0.5 + ndtri(POWER) * under_effect**0.5) ** 2 / effect**2)


def _components(assumed: Prior, seeds: int, rows: int) -> Components:
    """Mean squares to expect: two arms' seeds, and what belongs to arm and example at every seed."""
    return Components(
        replicates=seeds,
        examples=rows,
        ms_replicate=rows * 2 * assumed.seed_sd**2,
        ms_example=seeds * assumed.example_sd**2,
        ms_residual=0.0,
    )
