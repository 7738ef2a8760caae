"""What one adapter for several tasks is worth: gains kept on validation rows, and comparisons on test rows.

The estimand of a comparison is that of a study (`compare`): the difference of the task's metric over new seeds and new
examples, where the combination of each seed is made of that seed's adapters. How it is combined was chosen on
validation rows of all seeds together, and counts as given. Nothing is claimed of other tasks: one more task is another
combination.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import metrics, stats, verdict
from tunetrial.analysis.stats import Floats
from tunetrial.analysis.verdict import Contrasts
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Comparison


def share_kept(
    combined_S: Sequence[float | None], single_S: Sequence[float], untuned: float, *, task: str, metric: str
) -> float | None:
    """How much of a task's gain over the untuned base a combination keeps: 1 is as much as the task's own adapter.

    (mean over seeds of the combination - untuned) / (mean over seeds of the single adapter - untuned), which is the
    same whichever direction of the metric is better. A ratio of means, and no estimate with an interval: it ranks
    settings on validation rows.

    Args:
        combined_S, single_S: The metric by seed; None where it is not defined.
    Returns:
        The share; None where the metric is not defined for the combination at some seed.
    Raises:
        EvidenceError: The single adapters have gained nothing there.
    """
    gain = float(np.mean(single_S)) - untuned
    if gain == 0 or (gain > 0) != metrics.find(metric).higher_is_better:
        what = f"adapters do not improve validation {metric} over the untuned base"
        raise EvidenceError(f"{task}: {what}, got {gain:+.4g}: no gain to keep; leave the task out")
    if any(value is None for value in combined_S):
        return None
    return (float(np.mean(combined_S)) - untuned) / gain


@dataclass(frozen=True)
class Pair:
    """A combination beside what it is held against, on one task: contributions to the metric by seed and test row,
    (R, E), higher is better; `obstacle` says why that other, which then may have none, is nothing to compare with."""

    task: str
    metric: str
    margin: float
    candidate: str
    reference: str
    candidate_RE: Floats
    reference_RE: Floats | None
    cluster_E: tuple[str, ...]
    obstacle: str | None = None


def compare(pairs: Sequence[Pair], *, level: float) -> tuple[Comparison, ...]:
    """Judge all pairs as one family (Holm), at one look."""
    found = [_contrasts(pair) for pair in pairs]
    asked = [one if isinstance(one, Contrasts) else None for one in found]
    judged = verdict.judge(asked, alpha=1 - level, looks=[(1,)] * len(pairs))
    return tuple(
        Comparison(**_head(pair), words="NOT COMPARABLE" if pair.obstacle else "CAN'T TELL YET", reason=one)
        if isinstance(one, str)
        else _comparison(pair, one, said, family=len(pairs))
        for pair, one, said in zip(pairs, found, judged, strict=True)
    )


def _head(pair: Pair) -> dict:
    names = ("task", "candidate", "reference", "metric", "margin")
    return {name: getattr(pair, name) for name in names}


def _by_cluster(pair: Pair) -> Floats:
    return stats.cluster_values(pair.candidate_RE - pair.reference_RE, pair.cluster_E)


def _contrasts(pair: Pair) -> Contrasts | str:
    """What is judged, or in words why nothing can be."""
    if pair.obstacle:
        return pair.obstacle
    try:
        return verdict.by_margin(stats.crossed(_by_cluster(pair)), pair.margin)
    except EvidenceError as error:
        return str(error)


def _comparison(pair: Pair, asked: Contrasts, said: verdict.Verdict, *, family: int) -> Comparison:
    effect, parts = asked.effect, stats.components(_by_cluster(pair))
    seeds, rows = pair.candidate_RE.shape
    return Comparison(
        **_head(pair),
        words=said.words,
        direction=said.direction,
        size=said.size,
        effect=effect.effect,
        low=said.low,
        high=said.high,
        level=said.level,
        mde=stats.detectable_effect(effect.se, effect.df, level=said.level),
        n_replicates=seeds,
        n_examples=rows,
        n_clusters=parts.examples,
        bound_by=verdict.bound_by(parts),
        needs=verdict.needs(parts, effect, said, pair.margin, rows_per_example=rows / parts.examples),
        procedure=f"crossed two-way t, {seeds} paired seeds x {rows} test rows in {parts.examples} clusters, "
        f"df {effect.df:.1f}; direction two-sided at {100 * said.level:.2f} %, margin one-sided at "
        f"{100 * said.bound_level:.2f} %; levels allow for a family of {family} (Holm); the setting was chosen on "
        f"validation rows, and nothing is allowed for that or for the tuning of rates",
    )


def mean_kept(by_task: Mapping[str, float | None]) -> float | None:
    """The mean over tasks; None where one has none."""
    return None if None in by_task.values() else float(np.mean(list(by_task.values())))
