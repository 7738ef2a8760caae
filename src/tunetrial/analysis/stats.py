"""Intervals and tests that a verdict rests on: arrays in, numbers out.

Axis letters: R replicate (seed), E example. Differences are candidate minus reference on the same seed and the same
example, turned so that higher is better. Seeds and examples are crossed: every seed is scored on the same examples,
so more seeds never shrink the noise of the examples, and more examples never shrink that of the seeds.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import scipy  # its statistics load at first use: seconds that workers need not wait for
from numpy.typing import NDArray
from scipy import special

from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def t_tail(t: float, df: float) -> float:
    """Probability that Student's t exceeds `t`."""
    return float(special.stdtr(df, -t))


def t_critical(tail: float, df: float) -> float:
    """The value that Student's t exceeds with probability `tail`."""
    return -float(special.stdtrit(df, tail))


class Components(Record):
    """Mean squares of a crossed two-way layout without repeats, and the variances that they imply.

    Variances are the unbiased ones of the random-effects model and may be negative by chance; nothing is clipped.
    """

    replicates: int
    examples: int
    ms_replicate: float
    ms_example: float
    ms_residual: float

    @property
    def var_replicate(self) -> float:
        """Variance between seeds, in squared units of the difference."""
        return (self.ms_replicate - self.ms_residual) / self.examples

    @property
    def var_example(self) -> float:
        """Variance between examples, in squared units of the difference."""
        return (self.ms_example - self.ms_residual) / self.replicates

    @property
    def total(self) -> float:
        """The mean square of the grand mean, MS_R + MS_E - MS_res, floored at the larger of the first two."""
        return max(self.ms_replicate + self.ms_example - self.ms_residual, self.ms_replicate, self.ms_example)

    @property
    def se(self) -> float:
        """Standard error of the mean difference over new seeds and new examples."""
        return (self.total / (self.replicates * self.examples)) ** 0.5

    @property
    def df(self) -> float:
        """Degrees of freedom of `se` by Satterthwaite (1946)."""
        r, e = self.replicates - 1, self.examples - 1
        return self.total**2 / (self.ms_replicate**2 / r + self.ms_example**2 / e + self.ms_residual**2 / (r * e))

    def at(self, replicates: int, examples: int) -> "Components":
        """The mean squares to expect of another number of seeds and examples; a negative variance counts as 0."""
        return Components(
            replicates=replicates,
            examples=examples,
            ms_replicate=self.ms_residual + examples * max(self.var_replicate, 0.0),
            ms_example=self.ms_residual + replicates * max(self.var_example, 0.0),
            ms_residual=self.ms_residual,
        )


class Estimate(Record):
    """A mean difference with its standard error and degrees of freedom: all that a t interval or test needs.

    `below` and `above` are how far the true effect may lie below and above the measured one apart from noise. Interval
    and tests all allow for them: the tests are of the worst effect so allowed, the interval is that much longer.
    """

    effect: float
    se: float
    df: float
    below: float = 0.0
    above: float = 0.0

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided t interval; `level` in (0, 1)."""
        if not 0 < level < 1:
            raise EvidenceError(f"level: must lie between 0 and 1, got {level}; 0.95 is usual")
        half = t_critical((1 - level) / 2, self.df) * self.se
        return self.effect - self.below - half, self.effect + self.above + half

    def p_not_zero(self) -> float:
        """Two-sided p of no difference."""
        return min(1.0, 2 * t_tail(max(self.effect - self.below, -self.effect - self.above) / self.se, self.df))

    def p_not_below(self, bound: float) -> float:
        """One-sided p of `true effect <= bound`; with bound = -margin it is the test of non-inferiority."""
        return t_tail((self.effect - self.below - bound) / self.se, self.df)

    def p_not_above(self, bound: float) -> float:
        """One-sided p of `true effect >= bound`."""
        return t_tail((bound - self.effect - self.above) / self.se, self.df)

    def at_least(self, level: float) -> float:
        """One-sided lower bound, above which the true effect lies with this level of confidence."""
        return self.effect - self.below - t_critical(1 - level, self.df) * self.se


def components(diff_RE: Floats) -> Components:
    """Split the variation of differences among seeds, examples and the rest.

    Raises:
        EvidenceError: Fewer than 2 seeds or 2 examples, a value that is not finite, or no spread at all: equal
            differences throughout would otherwise pass for certainty.
    """
    diff_RE = np.asarray(diff_RE, dtype=np.float64)
    if diff_RE.ndim != 2 or min(diff_RE.shape) < 2:
        raise EvidenceError(f"differences: need 2 or more seeds and examples, got shape {diff_RE.shape}; add seeds")
    if not np.isfinite(diff_RE).all():
        missing = int((~np.isfinite(diff_RE)).sum())
        raise EvidenceError(f"differences: {missing} values are not finite; rerun the trials that lack scores")
    replicates, examples = diff_RE.shape
    if np.ptp(diff_RE) <= 1e-12 * np.abs(diff_RE).max():
        raise EvidenceError(f"differences: all equal {diff_RE[0, 0]}, no spread to judge by; check that arms differ")
    mean_R, mean_E, mean = diff_RE.mean(axis=1), diff_RE.mean(axis=0), diff_RE.mean()
    residual_RE = diff_RE - mean_R[:, None] - mean_E[None, :] + mean
    return Components(
        replicates=replicates,
        examples=examples,
        ms_replicate=float(examples * mean_R.var(ddof=1)),
        ms_example=float(replicates * mean_E.var(ddof=1)),
        ms_residual=float((residual_RE**2).sum() / ((replicates - 1) * (examples - 1))),
    )


def crossed(diff_RE: Floats) -> Estimate:
    """Estimate the mean difference over new seeds *and* new examples.

    It claims nothing about other tasks, models or tuning budgets, and takes examples as drawn independently:
    average correlated ones first (`cluster_means`).

    Source: two-way random effects without repeats, Var = (MS_R + MS_E - MS_res) / (R E), floored at
    max(MS_R, MS_E) / (R E); degrees of freedom by Satterthwaite (1946).
    """
    parts = components(diff_RE)
    if parts.total <= 0:
        raise EvidenceError("differences: seeds and examples all have equal means, no spread to judge by; add examples")
    return Estimate(effect=float(np.mean(diff_RE)), se=parts.se, df=parts.df)


def paired(diff_R: Floats) -> Estimate:
    """Estimate the mean of one difference a seed (Student 1908); the examples are held fixed."""
    diff_R = np.asarray(diff_R, dtype=np.float64)
    if diff_R.ndim != 1 or len(diff_R) < 2 or not np.isfinite(diff_R).all() or np.ptp(diff_R) == 0:
        raise EvidenceError(
            f"differences: need 2 or more finite values that are not all equal, got {diff_R.tolist()}; add seeds"
        )
    return Estimate(effect=float(diff_R.mean()), se=float(scipy.stats.sem(diff_R)), df=float(len(diff_R) - 1))


def resampled(diff_J: Floats, *, test_to_train: float) -> Estimate:
    """Estimate the mean difference over new training and test rows from the folds of repeated cross-validation.

    `diff_J` is one difference a fold and repeat. Folds share training rows, so their spread understates that of their
    mean: a plain t interval is too short, the more so the more repeats there are. The variance here is
    (1/J + n_test/n_train) s**2 with J - 1 degrees of freedom: the correlation between folds is *taken* to be
    n_test / (n_test + n_train), for no unbiased estimate of it exists (Bengio & Grandvalet 2004). The level is
    therefore approximate; what simulations show stands in docs/few.md.

    Args:
        test_to_train: Rows of a fold over all rows outside of it, those included by which settings were chosen.
    Raises:
        EvidenceError: Fewer than 2 folds, a value that is not finite, or no spread at all.
    Source: Nadeau & Bengio (2003), the corrected resampled t-test.
    """
    spread = paired(diff_J)
    count = len(diff_J)
    return spread.model_copy(update={"se": spread.se * (1 + count * test_to_train) ** 0.5})


def detectable_effect(se: float, df: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """Smallest true effect that a two-sided t test at 1 - level finds with this power, in the units of `se`.

    Takes `se` and `df` as known and fixed; exact for the noncentral t distribution.
    """
    if not 1 - level < power < 1:
        raise EvidenceError(f"power: must lie between {1 - level:g} and 1, got {power}; 0.8 is usual")
    critical = t_critical((1 - level) / 2, df)

    def shortfall(noncentrality: float) -> float:
        # The lower tail is written as an upper one: scipy's lower tail is NaN far from the centre.
        return power - float(sum(scipy.stats.nct.sf(critical, df, sign * noncentrality) for sign in (1, -1)))

    top = 1.0
    while shortfall(top) > 0:
        top *= 2
    return float(scipy.optimize.brentq(shortfall, 0, top)) * se


def variance_interval(variance: float, df: float, *, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a variance or mean square of normal values, from its chi-square with `df`.

    Three values know their standard deviation within factors of 0.52 and 6.3 of what they show.
    """
    if not (0 < level < 1 and df > 0):
        raise EvidenceError(f"variance: needs a level between 0 and 1 and df above 0, got {level} and {df}; add seeds")
    low, high = (2 * special.gammaincinv(df / 2, share) for share in ((1 - level) / 2, (1 + level) / 2))
    return float(variance * df / high), float(variance * df / low)


def variance_df(value_E: Floats) -> float:
    """Degrees of freedom of the chi-square that has the sample variance's own variance: n - 1 for normal values, fewer
    for heavier tails, as differences of right and wrong answers have, of which most are 0.

    Source: Var(s**2) = sigma**4 (2 / (n - 1) + kurtosis / n), with the sample's excess kurtosis where it is above 0;
    matched as in Shoemaker (2003).
    """
    deviation_E, count = value_E - value_E.mean(), len(value_E)
    if np.ptp(value_E) == 0:
        return float(count - 1)
    kurtosis = (deviation_E**4).mean() / (deviation_E**2).mean() ** 2 - 3
    return 2 / (2 / (count - 1) + max(float(kurtosis), 0.0) / count)


def cluster_values(diff_RE: Floats, cluster_E: Sequence[str]) -> Floats:
    """One value a seed and cluster (a sender, a document), shape (R, clusters), for `crossed` to take as examples.

    They are cluster means where clusters are of one size. Else a cluster's deviation from the grand mean is weighted
    by its size, so that the mean over clusters stays the mean over examples: the difference of the metrics shown.
    Source: the linearised ratio estimator (Cochran 1977, 6.3), as in clustered standard errors.
    """
    if len(cluster_E) != diff_RE.shape[1]:
        raise EvidenceError(f"clusters: need one an example, got {len(cluster_E)} for {diff_RE.shape[1]} examples")
    _, code_E, size_C = np.unique(np.asarray(cluster_E), return_inverse=True, return_counts=True)
    mean = diff_RE.mean()
    sum_RC = np.stack([np.bincount(code_E, row) for row in diff_RE - mean])
    return mean + sum_RC / size_C.mean()


def macro_f1(predicted_E: Codes, target_E: Codes, classes: int) -> float:
    """Mean over classes of 2TP / (2TP + FP + FN); a class that neither side ever names counts 0."""
    return float(_f1_of_counts(*_counts(predicted_E, target_E, classes)).mean())


def macro_f1_pseudo_values(predicted_E: Codes, target_E: Codes, classes: int) -> Floats:
    """Jackknife pseudo-values n θ - (n - 1) θ₋ₑ of macro-F1, shape (E,): they average to the bias-corrected θ.

    They make a ratio metric additive over examples, so that `crossed` applies. Exact by removing one example from
    the counts, O(E · classes). Source: Tukey (1958).
    """
    hit, miss_predicted, miss_target = _counts(predicted_E, target_E, classes)
    n, whole = len(target_E), macro_f1(predicted_E, target_E, classes)
    one_hot = np.eye(classes, dtype=np.int64)
    right_E = (predicted_E == target_E)[:, None]
    said_EC, true_EC = one_hot[predicted_E], one_hot[target_E]
    without_EC = _f1_of_counts(
        hit - said_EC * right_E, miss_predicted - said_EC * ~right_E, miss_target - true_EC * ~right_E
    )
    return n * whole - (n - 1) * without_EC.mean(axis=-1)


def _counts(predicted_E: Codes, target_E: Codes, classes: int) -> tuple[Codes, Codes, Codes]:
    """True positives, false positives and false negatives a class."""
    hit = np.bincount(target_E[predicted_E == target_E], minlength=classes)
    said, true = (np.bincount(codes, minlength=classes) for codes in (predicted_E, target_E))
    return hit, said - hit, true - hit


def _f1_of_counts(hit: Codes, false_positive: Codes, false_negative: Codes) -> Floats:
    total = 2 * hit + false_positive + false_negative
    return np.divide(2 * hit, total, out=np.zeros(total.shape), where=total > 0)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for several comparisons (Holm 1979), in the order given."""
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p)[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted.tolist()


def per_look(alpha: float, looks: tuple[int, ...], *, sides: Literal[1, 2]) -> float:
    """Level of each look such that all looks together raise a false alarm with probability `alpha`.

    `looks` are the numbers of seeds at which the t test is made, the same level at each (Pocock 1977). Calibrated for
    differences that vary between seeds alone; noise of the examples, which the looks share, makes it conservative.
    """
    if len(looks) == 1:
        return alpha
    smallest_p, share = _null_of_looks(looks)[sides]
    return float(np.interp(alpha, share, smallest_p))


def over_looks(p: float, looks: tuple[int, ...], *, sides: Literal[1, 2]) -> float:
    """Adjust one look's p for all looks: the inverse of `per_look`."""
    if len(looks) == 1:
        return p
    smallest_p, share = _null_of_looks(looks)[sides]
    return float(np.interp(p, smallest_p, share))


@lru_cache
def _null_of_looks(looks: tuple[int, ...]) -> dict[int, tuple[Floats, Floats]]:
    """By sides, the distribution of the smallest p over the looks without a difference: values, share up to each.

    2**17 scrambled Sobol points with a fixed seed, one normal mean and one chi-square sum of squares a block of seeds:
    levels are good to 1 % of themselves.
    """
    if list(looks) != sorted(set(looks)) or not looks or looks[0] < 2:
        raise EvidenceError(f"looks: must rise from 2 or more seeds, got {list(looks)}; [5, 10] is usual")
    uniform = scipy.stats.qmc.Sobol(2 * len(looks), rng=20_240_501).random(2**17).T
    seeds, mean, squares, one, two = 0, np.zeros(2**17), np.zeros(2**17), np.ones(2**17), np.ones(2**17)
    for block, normal, chi in zip(np.diff((0, *looks)), uniform[::2], uniform[1::2], strict=True):
        fresh = special.ndtri(normal) / block**0.5
        squares += seeds * block / (seeds + block) * (fresh - mean) ** 2
        squares += 2 * special.gammaincinv((block - 1) / 2, chi) if block > 1 else 0
        mean, seeds = (seeds * mean + block * fresh) / (seeds + block), seeds + block
        p = special.stdtr(seeds - 1, -mean * (seeds * (seeds - 1) / squares) ** 0.5)
        one, two = np.minimum(one, p), np.minimum(two, 2 * np.minimum(p, 1 - p))
    share = np.linspace(0, 1, 2**17 + 2)
    return {sides: (np.concatenate([[0.0], np.sort(p), [1.0]]), share) for sides, p in ((1, one), (2, two))}
