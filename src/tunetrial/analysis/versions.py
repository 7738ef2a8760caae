"""Two given models on the same items: the verdict of a paired comparison.

The estimand is the mean difference of the items' scores over new items (new clusters, where items come in clusters) for
these two sets of weights as they are. Nothing is claimed of what training either again with another seed would give:
that is what a study is for (`compare`).
"""

from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import stats, verdict
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Comparison


@dataclass(frozen=True)
class ItemScores:
    """One model's score of each item, higher being better, with the item's id and cluster, axis E."""

    example_id_E: tuple[str, ...]
    cluster_E: tuple[str, ...]
    score_E: Floats


def compare_on_items(
    reference: ItemScores, candidate: ItemScores, *, names: tuple[str, str], task: str, margin: float, level: float
) -> Comparison:
    """Judge candidate minus reference by a paired t interval over items, in the words of a study's verdicts.

    Args:
        names: Of reference and candidate, for the record.
        margin: Smallest difference that matters, in units of the scores.
    Raises:
        EvidenceError: The items differ, a score is missing, there are too few, or all differences are equal.
    Source: Student (1908) over items, their clusters as `stats.cluster_values` weights them.
    """
    own, other = _by_item(reference, names[0]), _by_item(candidate, names[1])
    if own.keys() != other.keys():
        lone = sorted(own.keys() ^ other.keys())
        got = f"got {len(lone)} of only one, the first {lone[0]!r:.60}"
        raise EvidenceError(f"items: must be the same for both versions, {got}; score both on one set")
    ids = sorted(own)
    diff_E = np.array([candidate.score_E[other[one]] - reference.score_E[own[one]] for one in ids])
    cluster_E = [reference.cluster_E[own[one]] for one in ids]
    clusters = len(set(cluster_E))
    if clusters < 2:
        raise EvidenceError(f"items: need 2 or more clusters, got {clusters} in {len(ids)} items; score more items")
    if not np.ptp(diff_E):
        got = f"got {diff_E[0]:g} for all {len(ids)}"
        raise EvidenceError(f"items: no spread of differences to judge by, {got}; score more or other items")
    effect = stats.paired(stats.cluster_values(diff_E[None, :], cluster_E)[0])
    contrasts = verdict.by_margin(effect, margin)
    (judged,) = verdict.judge([contrasts], alpha=1 - level, looks=[(1,)])
    return Comparison(
        task=task,
        candidate=names[1],
        reference=names[0],
        metric="score",
        margin=margin,
        words=judged.words,
        direction=judged.direction,
        size=judged.size,
        effect=effect.effect,
        low=judged.low,
        high=judged.high,
        level=judged.level,
        mde=stats.detectable_effect(effect.se, effect.df, level=judged.level),
        n_replicates=1,
        n_examples=len(ids),
        n_clusters=clusters,
        bound_by="examples",
        procedure=f"paired t over {len(ids)} items in {clusters} clusters, of two given models; direction two-sided "
        f"at {100 * level:g} %, margin one-sided at {100 * level:g} %; says nothing of other seeds",
    )


def _by_item(scores: ItemScores, name: str) -> dict[str, int]:
    """Where each item is; each once, with a finite score."""
    place = {one: number for number, one in enumerate(scores.example_id_E)}
    if len(place) < len(scores.example_id_E):
        got = f"got {len(scores.example_id_E)} rows of {len(place)} items"
        raise EvidenceError(f"{name}: one score for each item, {got}; score each once")
    if not np.isfinite(scores.score_E).all():
        missing = int((~np.isfinite(scores.score_E)).sum())
        raise EvidenceError(f"{name}: scores must be finite, got {missing} that are not; score the items again")
    return place
