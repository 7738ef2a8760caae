"""What is assumed of a task's noise before its finals: a usual prior, or what a pilot's scores show of it."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tunetrial.analysis import arms, metrics, rates, stats
from tunetrial.analysis.compare import outcome
from tunetrial.analysis.stats import Floats
from tunetrial.core.evidence import Evidence, Scores
from tunetrial.core.records import Record
from tunetrial.core.study import TaskSpec

SEED_SD = 0.01
DISCORDANCE = 0.10
SEED_SHARE, EXAMPLE_SHARE = 0.02, 0.3
IN_UNITS_OF_TARGET = ("mae", "rmse")
ENDS = ("prior", "low", "high")


class Prior(Record):
    """What is assumed of a task, in units of its metric.

    `seed_sd` is of one run's score; `example_sd` of the difference between two arms on one example, the same at
    every seed, so that no number of seeds averages it out; `rest_sd` of what varies there from seed to seed besides.
    An example is a cluster of `rows_per_example` rows where rows come in clusters. `below` and `above` are what the
    tuned rates of the reference and of the candidate are expected to lose, which a verdict allows for (`rates`).
    """

    seed_sd: float = Field(ge=0)
    example_sd: float = Field(ge=0)
    rest_sd: float = Field(default=0.0, ge=0)
    rows_per_example: float = Field(default=1.0, ge=1)
    below: float = Field(default=0.0, ge=0)
    above: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _varies(self) -> Self:
        if not any(self.variances):
            raise ValueError("prior: nothing varies, got 0 for every standard deviation; give one that is above 0")
        return self

    @property
    def variances(self) -> tuple[float, float, float]:
        """Of the difference of two arms between seeds (one seed of each arm), between examples, and the rest."""
        return 2 * self.seed_sd**2, self.example_sd**2, self.rest_sd**2


class Pilot(Record):
    """What few runs show of a task's noise: an estimate, and the ends of an interval of each spread at `level`.

    `low` and `high` have both spreads at their ends at once, the rest as estimated. The interval of the seeds' is that
    of a chi-square of their mean square with replicates - 1 degrees of freedom (Williams 1962; for planning by its
    upper end see Browne 1995), at three seeds a factor of twelve wide; its upper end keeps the rest's share. That of
    the examples' has degrees of freedom that allow for their kurtosis.
    """

    replicates: int
    examples: int
    level: float
    prior: Prior
    low: Prior
    high: Prior


def prior_of(metric: str, targets: Sequence[float] | None = None) -> Prior | None:
    """The usual prior of a metric; for errors in units of the target it needs test targets, and is None without.

    One point between seeds and 10 % of examples on which two arms differ, for metrics between 0 and 1; for errors
    2 % and 30 % of the standard deviation of the targets. None for likelihoods, whose spread the base decides.
    """
    if metrics.find(metric).constant is None:
        return None
    if metric not in IN_UNITS_OF_TARGET:
        return Prior(seed_sd=SEED_SD, example_sd=DISCORDANCE**0.5)
    if targets is None or len(targets) < 2 or np.ptp(targets) == 0:
        return None
    sd = float(np.std(targets, ddof=1))
    return Prior(seed_sd=SEED_SHARE * sd, example_sd=EXAMPLE_SHARE * sd)


def prior(spec: TaskSpec, targets: Sequence[float] | None = None) -> Prior | None:
    """The usual prior of a task's metric."""
    return prior_of(spec.metric, targets)


def pilot(
    evidence: Evidence, task: str, candidate: str, *, purpose: Literal["final", "tune"] = "final", level: float = 0.95
) -> Pilot | None:
    """What the finals of an earlier study, or the tune trials of this one, show of a candidate and its reference.

    Finals are compared on test rows. Tune trials are those at the tried rates nearest to the chosen ones, on validation
    rows: the test split stays sealed. None for the reference itself, in folds, and where both arms have fewer than two
    seeds in common.

    Raises:
        EvidenceError: As `observed`.
    """
    against = arms.reference(evidence, task)
    if evidence.lock.folding(task) or candidate == against:
        return None
    gather = _finals if purpose == "final" else _tuned
    one, other = (gather(evidence, task, arm) for arm in (candidate, against))
    rows = next((scores for scores, _ in one.values()), None)
    seeds = [
        s for s in sorted(one.keys() & other.keys()) if all(arms.same_rows(arm[s][0], rows) for arm in (one, other))
    ]
    if len(seeds) < 2:
        return None
    diff_RE = np.stack([one[seed][1] - other[seed][1] for seed in seeds])
    found = observed(diff_RE, rows.cluster_E, level=level)
    below, above = (_regret(evidence, task, arm) for arm in (against, candidate))
    allowed = {name: getattr(found, name).model_copy(update={"below": below, "above": above}) for name in ENDS}
    return found.model_copy(update=allowed)


def observed(diff_RE: Floats, cluster_E: Sequence[str] | None = None, *, level: float = 0.95) -> Pilot:
    """What differences of two arms show, shape (seeds, rows); a variance that comes out negative counts as 0.

    Raises:
        EvidenceError: As `stats.components`.
    """
    rows = diff_RE.shape[-1]
    if cluster_E is not None:
        diff_RE = stats.cluster_values(diff_RE, cluster_E)
    parts = stats.components(diff_RE)
    seeds, examples, rest = parts.replicates, parts.examples, parts.ms_residual
    seed_ends = stats.variance_interval(parts.ms_replicate, seeds - 1, level=level)
    example_ends = stats.variance_interval(parts.ms_example, stats.variance_df(diff_RE.mean(axis=0)), level=level)

    def prior(ms_seed: float, ms_example: float) -> Prior:
        return Prior(
            seed_sd=(max(ms_seed - rest, 0.0) / examples / 2) ** 0.5,
            example_sd=(max(ms_example - rest, 0.0) / seeds) ** 0.5,
            rest_sd=rest**0.5,
            rows_per_example=rows / examples,
        )

    return Pilot(
        replicates=seeds,
        examples=examples,
        level=level,
        prior=prior(parts.ms_replicate, parts.ms_example),
        low=prior(seed_ends[0], example_ends[0]),
        # Few seeds may lie so close by chance that less than the rest would be left of even the upper end.
        high=prior(seed_ends[1] + rest, example_ends[1]),
    )


def _finals(evidence: Evidence, task: str, arm: str) -> dict[int, tuple[Scores, Floats]]:
    """Finals as a verdict counts them, by seed, with the rows that they are of."""
    rows = arms.scored_rows(evidence, task)
    return {seed: (rows, part_E) for seed, part_E in outcome(evidence, task, arm).parts.items()}


def _tuned(evidence: Evidence, task: str, arm: str) -> dict[int, tuple[Scores, Floats]]:
    """Tune trials at the rate nearest to the chosen one, by seed, with the rows that they are of."""
    chosen, metric = rates.tuned(evidence, arm, task), metrics.find(evidence.lock.study.task(task).metric)
    if chosen is None:
        return {}
    rate = chosen.curve[rates.nearest_point(chosen)].learning_rate
    found = {
        r.trial.seed: evidence.scores.get((r.trial.id, "validation"))
        for r in evidence.settling(task=task, arm=arm)
        if r.status == "ok" and r.trial.learning_rate == rate
    }
    return {seed: (s, metrics.contributions(metric, s)) for seed, s in found.items() if arms.sound(s)}


def _regret(evidence: Evidence, task: str, arm: str) -> float:
    """What a verdict allows for the arm's rate; nothing where its search cannot tell, as there."""
    chosen = rates.tuned(evidence, arm, task)
    return (chosen and chosen.expected_regret) or 0.0
