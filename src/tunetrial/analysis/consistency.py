"""Does an arm say the same again: with another seed, or to the same input worded otherwise?

Every measure here is the grand mean of *parts*, a matrix over seeds and examples, so that one machinery serves all:
`intervals.of_share(parts)` gives its interval, `compare(parts, parts)` the paired difference of two arms, over new
seeds and new examples alike. Agreement is no quality: an arm that always gives one wrong answer agrees with itself, so
it is shown beside `right_everywhere_parts`, the rate of answers that are right under every variant.

Axis letters: R replicate (seed), V variant of the inputs, E example. Answers are labels, numbers, or texts that
`texts.canonical` has brought to one form. Nothing is claimed about variants that were not tried.
"""

from collections.abc import Sequence

import numpy as np

from tunetrial.analysis import intervals, ratings
from tunetrial.analysis.intervals import Interval
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record


class Worst(Record):
    """The variant on which an arm scores lowest, and the score of whichever variant is worst in truth."""

    variant: str
    score: Interval


class Sources(Record):
    """Where scores vary: variances between seeds, variants and examples, of each two together, and of the rest.

    Unbiased estimates in squared units of the score, which chance may make negative; nothing is clipped.
    """

    seed: float
    variant: float
    example: float
    seed_variant: float
    seed_example: float
    variant_example: float
    rest: float


def agreement_parts(label_RE: np.ndarray) -> Floats:
    """Parts of the mean pairwise agreement between seeds: the share of (pair of seeds, example) with one answer.

    Leave-one-out pseudo-values over seeds, for each example: they average to the agreement, and vary between seeds as
    its estimate does. They may lie outside of [0, 1].

    Source: a U-statistic of degree 2 (Hoeffding 1948), jackknifed as in Arvesen (1969).
    Raises:
        EvidenceError: Fewer than 3 seeds (of 2 there is one pair, and no spread between pairs) or no example.
    """
    code_RE = _codes(label_RE, axes=2)
    return _pair_parts(code_RE[:, None] == code_RE[None])


def variance_parts(number_RE: np.ndarray) -> Floats:
    """Parts of the variance between seeds within an example; `intervals.of_root` of them is the within-item SD.

    The mean over pairs of seeds of half the squared difference, which is the unbiased variance, as pseudo-values.
    Raises:
        EvidenceError: As `agreement_parts`, or a number that is not finite.
    """
    number_RE = _numbers(number_RE, axes=2)
    return _pair_parts((number_RE[:, None] - number_RE[None]) ** 2 / 2)


def alpha(label_RE: np.ndarray, cluster_E: Sequence[str] | None = None, *, level: float = 0.95) -> Interval | None:
    """Krippendorff's nominal alpha with seeds as raters: agreement beyond what the labels' frequencies alone give.

    None where every answer is one label, for which it is not defined. The interval is of the two-way jackknife: the
    variance over seeds and that over examples (or clusters) added, which counts what is of neither twice and so errs
    towards long; on the scale of log(1 - alpha), without one (both ends None) where alpha is 1.

    Raises:
        EvidenceError: Fewer than 3 seeds or 2 examples.
    """
    code_RE = _codes(label_RE, axes=2)
    if len(code_RE) < 3 or code_RE.shape[1] < 2:
        raise EvidenceError(f"answers: need 3 or more seeds and 2 or more examples, got {code_RE.shape}; add seeds")
    count_EK = np.stack([(code_RE == label).sum(axis=0) for label in range(int(code_RE.max()) + 1)], axis=1)
    value = _nominal_alpha(count_EK)
    if value is None:
        return None
    _, group_E = np.unique(np.arange(code_RE.shape[1]) if cluster_E is None else cluster_E, return_inverse=True)
    without_seed = [_nominal_alpha(_without(count_EK, row_E)) for row_E in code_RE]
    without_group = ratings.alphas_without(count_EK, np.arange(count_EK.shape[1]), "nominal", group_E)
    return intervals.of_coefficient(value, (without_seed, without_group), level=level)


def icc(number_RE: np.ndarray, *, level: float = 0.95) -> Interval | None:
    """ICC(2,1) with seeds as raters: the share of all variance that is between examples; None without any variance.

    Source and interval: `ratings.icc`.
    """
    found = ratings.icc(_numbers(number_RE, axes=2).T, level=level)
    return found and found.single


def churn_parts(candidate_RE: np.ndarray, reference_RE: np.ndarray) -> Floats:
    """Parts of the churn: the share of examples that two arms answer differently at the same seed.

    Not all of it is the method's: set it beside 1 - agreement of each arm with itself.
    """
    if np.shape(candidate_RE) != np.shape(reference_RE):
        raise _unpaired(candidate_RE, reference_RE)
    code_ARE = _codes(np.stack([candidate_RE, reference_RE]), axes=3)
    return (code_ARE[0] != code_ARE[1]).astype(np.float64)


def variant_agreement_parts(label_RVE: np.ndarray) -> Floats:
    """For every seed and example the share of pairs of variants with one answer, in [0, 1]; a first may be the plain
    prompt. Raises EvidenceError for fewer than 2 variants."""
    code_RVE = _codes(label_RVE, axes=3)
    pairs = _pairs(code_RVE.shape[1])
    return np.mean([code_RVE[:, u] == code_RVE[:, v] for u, v in pairs], axis=0)


def variant_variance_parts(number_RVE: np.ndarray) -> Floats:
    """For every seed and example the variance of its numbers over variants (over V - 1), in squared units."""
    number_RVE = _numbers(number_RVE, axes=3)
    _pairs(number_RVE.shape[1])
    return number_RVE.var(axis=1, ddof=1)


def right_everywhere_parts(right_RVE: np.ndarray) -> Floats:
    """For every seed and example whether the answer is right under all variants: the correct-and-consistent rate."""
    right_RVE = _numbers(right_RVE, axes=3)
    if not np.isin(right_RVE, (0.0, 1.0)).all():
        raise EvidenceError("right answers: must be 0 or 1, got others; score answers as right or wrong first")
    return right_RVE.min(axis=1)


def worst_variant(
    score_RVE: np.ndarray, variants: Sequence[str], cluster_E: Sequence[str] | None = None, *, level: float = 0.95
) -> Worst:
    """The lowest mean score over variants (higher is better), and an interval of the true lowest.

    The lowest of several noisy means lies below the mean that is lowest in truth. So the interval's high end is the
    lowest of the variants' high ends, each at (1 - level) / 2V (Bonferroni), its low end the lowest of their low ends,
    each at (1 - level) / 2: whichever variant is worst, its own end holds. It covers at least its level, mostly more.
    """
    score_RVE = _named(score_RVE, variants)
    tail = (1 - level) / 2
    found = [_bounds(score_RVE[:, v], cluster_E, low=tail, high=tail / len(variants)) for v in range(len(variants))]
    mean_V = score_RVE.mean(axis=(0, 2))
    score = Interval(
        value=float(mean_V.min()), low=min(low for low, _ in found), high=min(high for _, high in found), level=level
    )
    return Worst(variant=variants[int(mean_V.argmin())], score=score)


def compare_worst(
    candidate_RVE: np.ndarray,
    reference_RVE: np.ndarray,
    variants: Sequence[str],
    cluster_E: Sequence[str] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """The candidate's worst variant minus the reference's, which need not be the same one.

    The difference of two minima lies between the least and the greatest difference over variants, so its interval
    reaches from the lowest low end to the highest high end of these, each at `level`: it covers at least that.

    Raises:
        EvidenceError: The shapes differ, or the arms differ equally on all examples of a variant: no spread.
    """
    candidate_RVE, reference_RVE = (_named(score_RVE, variants) for score_RVE in (candidate_RVE, reference_RVE))
    if candidate_RVE.shape != reference_RVE.shape:
        raise _unpaired(candidate_RVE, reference_RVE)
    diff_RVE = candidate_RVE - reference_RVE
    found = [intervals.of_mean(diff_RVE[:, v], cluster_E, level=level) for v in range(len(variants))]
    worst = [float(score_RVE.mean(axis=(0, 2)).min()) for score_RVE in (candidate_RVE, reference_RVE)]
    low, high = min(each.low for each in found), max(each.high for each in found)
    return Interval(value=worst[0] - worst[1], low=low, high=high, level=level)


def sources(score_RVE: np.ndarray) -> Sources:
    """Split the variation of scores among seeds, variants, examples and what they do together.

    Estimates without intervals; those of few seeds or variants are rough.
    Raises:
        EvidenceError: Fewer than 2 seeds, variants or examples.
    Source: expected mean squares of the three-way random-effects layout without repeats (Searle, Casella & McCulloch
        1992, ch. 4).
    """
    score_RVE = _numbers(score_RVE, axes=3)
    if min(score_RVE.shape) < 2:
        raise EvidenceError(f"scores: need 2 or more seeds, variants and examples, got {score_RVE.shape}; add some")
    effect, square = {(): score_RVE.mean()}, {}
    for kept in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        rest = tuple(axis for axis in range(3) if axis not in kept)
        own = score_RVE.mean(axis=rest, keepdims=True)
        effect[kept] = own - sum(part for axes, part in effect.items() if set(axes) < set(kept))
        freedom = np.prod([score_RVE.shape[axis] - 1 for axis in kept])
        square[kept] = float((np.broadcast_to(effect[kept], score_RVE.shape) ** 2).sum() / freedom)
    least, size = square[0, 1, 2], score_RVE.shape
    pair = {kept: (square[kept] - least) / size[3 - sum(kept)] for kept in ((0, 1), (0, 2), (1, 2))}
    one = [
        (square[axis,] - sum(square[kept] for kept in pair if axis in kept) + least) * size[axis] / score_RVE.size
        for axis in range(3)
    ]
    return Sources(
        seed=one[0],
        variant=one[1],
        example=one[2],
        seed_variant=pair[0, 1],
        seed_example=pair[0, 2],
        variant_example=pair[1, 2],
        rest=least,
    )


def compare(
    candidate_RE: Floats, reference_RE: Floats, cluster_E: Sequence[str] | None = None, *, level: float = 0.95
) -> Interval:
    """Candidate minus reference of any measure, from the parts of both at the same seeds and examples.

    A crossed t interval over new seeds and examples.
    Raises:
        EvidenceError: The shapes differ, or all differences are equal: no spread to judge by.
    """
    if np.shape(candidate_RE) != np.shape(reference_RE):
        raise _unpaired(candidate_RE, reference_RE)
    return intervals.of_mean(np.asarray(candidate_RE) - np.asarray(reference_RE), cluster_E, level=level)


def _pair_parts(pair_RRE: np.ndarray) -> Floats:
    """Pseudo-values over the first two axes, which are one, of the mean of a symmetric kernel over pairs of them.

    R U - (R - 1) U₋ᵣ, with U the mean over R (R - 1) / 2 pairs and U₋ᵣ that over those without r.
    """
    replicates = len(pair_RRE)
    if replicates < 3:
        raise EvidenceError(f"answers: need 3 or more seeds, got {replicates}; add seeds")
    pair_RRE = pair_RRE.astype(np.float64)
    pair_RRE[np.arange(replicates), np.arange(replicates)] = 0
    own_RE = pair_RRE.sum(axis=1)
    total_E = own_RE.sum(axis=0) / 2
    return 2 * total_E / (replicates - 1) - 2 * (total_E - own_RE) / (replicates - 2)


def _nominal_alpha(count_EK: np.ndarray) -> float | None:
    return ratings.alpha_of_counts(count_EK, np.arange(count_EK.shape[1]), "nominal")


def _without(count_EK: np.ndarray, row_E: np.ndarray) -> np.ndarray:
    less_EK = count_EK.copy()
    less_EK[np.arange(len(row_E)), row_E] -= 1
    return less_EK


def _bounds(part_RE: Floats, cluster_E: Sequence[str] | None, *, low: float, high: float) -> tuple[float, float]:
    """One-sided bounds of a mean, at these tails: of a share where all parts lie in [0, 1], else by crossed t."""
    of = intervals.of_share if part_RE.min() >= 0 and part_RE.max() <= 1 else intervals.of_mean
    return of(part_RE, cluster_E, level=1 - 2 * low).low, of(part_RE, cluster_E, level=1 - 2 * high).high


def _pairs(variants: int) -> list[tuple[int, int]]:
    if variants < 2:
        raise EvidenceError(f"variants: need 2 or more, the plain prompt included, got {variants}; add a variant")
    return [(u, v) for v in range(variants) for u in range(v)]


def _named(score_RVE: np.ndarray, variants: Sequence[str]) -> Floats:
    score_RVE = _numbers(score_RVE, axes=3)
    if score_RVE.shape[1] != len(variants) or not variants:
        raise EvidenceError(f"variants: need a name each, got {len(variants)} names for {score_RVE.shape[1]}; name all")
    return score_RVE


def _codes(label: np.ndarray, *, axes: int) -> np.ndarray:
    """Labels numbered, in the shape given."""
    label = np.asarray(label)
    if label.ndim != axes or not label.size:
        raise EvidenceError(f"answers: need {axes} axes, none of them empty, got shape {label.shape}; rerun the trials")
    number = {name: code for code, name in enumerate(sorted(set(label.ravel().tolist()), key=str))}
    return np.array([number[name] for name in label.ravel().tolist()]).reshape(label.shape)


def _numbers(value: np.ndarray, *, axes: int) -> Floats:
    value = np.asarray(value, dtype=np.float64)
    if value.ndim != axes or not value.size or not np.isfinite(value).all():
        raise EvidenceError(f"numbers: need {axes} axes of finite values, got shape {value.shape}; rerun the trials")
    return value


def _unpaired(candidate: np.ndarray, reference: np.ndarray) -> EvidenceError:
    shapes = f"{np.shape(candidate)} and {np.shape(reference)}"
    return EvidenceError(f"arms: must share seeds, variants and examples, got shapes {shapes}; compare what both have")
