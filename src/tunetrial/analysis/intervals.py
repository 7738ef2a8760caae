"""A number and where its true value lies: intervals of what is no mean of free values, such as shares and spreads.

Axis letters: R replicate (seed, or rater), E example. All intervals are over new replicates *and* new examples, by the
crossed layout of `stats`; with one replicate over new examples alone, for other seeds then nothing is claimed.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from tunetrial.analysis import stats
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record


class Interval(Record):
    """A measured value and the interval in which the true one lies with confidence `level`.

    An end that the data do not bound is None.
    """

    value: float
    low: float | None
    high: float | None
    level: float


def estimate(part_RE: Floats, cluster_E: Sequence[str] | None = None) -> Estimate:
    """Estimate the grand mean of parts over new replicates and examples; `stats.crossed`, or a t over one replicate.

    Args:
        cluster_E: Groups of examples that vary together; without them each is its own.
    Raises:
        EvidenceError: Fewer than 2 examples or clusters, a value that is not finite, or no spread.
    """
    part_RE = clustered(part_RE, cluster_E)
    return stats.crossed(part_RE) if len(part_RE) > 1 else stats.paired(part_RE[0])


def clustered(part_RE: Floats, cluster_E: Sequence[str] | None = None) -> Floats:
    """Parts as float64, one column a cluster; EvidenceError where one is not finite or there is no example."""
    part_RE = np.asarray(part_RE, dtype=np.float64)
    if part_RE.ndim != 2 or not part_RE.size or not np.isfinite(part_RE).all():
        raise EvidenceError(f"parts: need a finite one a seed and example, got shape {part_RE.shape}; rerun the trials")
    return part_RE if cluster_E is None else stats.cluster_values(part_RE, cluster_E)


def of_mean(part_RE: Floats, cluster_E: Sequence[str] | None = None, *, level: float = 0.95) -> Interval:
    """The grand mean with its crossed t interval; raises as `estimate`."""
    found = estimate(part_RE, cluster_E)
    low, high = found.interval(level)
    return Interval(value=found.effect, low=low, high=high, level=level)


def of_share(part_RE: Floats, cluster_E: Sequence[str] | None = None, *, level: float = 0.95) -> Interval:
    """The grand mean where it is a share, in [0, 1], as its interval is; parts themselves may lie outside.

    The exact binomial interval (Clopper & Pearson 1934) of as many independent examples as would have the standard
    error measured, fewer by the squared ratio of t quantiles for the standard error's own degrees of freedom; never
    more than there are parts. Where nothing varies (all seeds right on all examples) they count as one an example, and
    the interval is over new examples alone: of what no seed showed, a collapse of one run in ten, nothing is known.

    Source: Korn & Graubard (1998), the standard of national health surveys for shares near 0 and 1.
    Raises:
        EvidenceError: No example, a value that is not finite, or a mean outside of [0, 1].
    """
    part_RE = clustered(part_RE, cluster_E)
    mean, units = float(part_RE.mean()), part_RE.shape[1]
    if not -1e-9 <= mean <= 1 + 1e-9:
        raise EvidenceError(f"share: must lie between 0 and 1, got {mean}; give parts of a share")
    mean = min(max(mean, 0.0), 1.0)
    count = float(units)
    if 0 < mean < 1 and units > 1:
        try:
            found = estimate(part_RE)
        except EvidenceError:  # equal means throughout: no standard error to go by
            pass
        else:
            tail = (1 - level) / 2
            ratio = stats.t_critical(tail, units - 1) / stats.t_critical(tail, found.df)
            count = min(mean * (1 - mean) / found.se**2 * ratio**2, float(part_RE.size))
    return Interval(value=mean, **_binomial(mean * count, count, level), level=level)


def _binomial(hits: float, count: float, level: float) -> dict[str, float]:
    """Clopper and Pearson's ends, for counts that need not be whole."""
    misses, tail = count - hits, (1 - level) / 2
    low = float(special.betaincinv(hits, misses + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, misses, 1 - tail)) if misses > 0 else 1.0
    return {"low": low, "high": high}


def of_root(part_RE: Floats, cluster_E: Sequence[str] | None = None, *, level: float = 0.95) -> Interval:
    """The root of a grand mean that is a variance: a standard deviation, its t interval made on the log scale.

    Where nothing varies the value is 0 and no end is known: nothing bounds what was not seen to vary.
    Raises:
        EvidenceError: As `estimate`, or the mean is below 0.
    """
    mean = float(clustered(part_RE, cluster_E).mean())
    if mean < -1e-12:
        raise EvidenceError(f"variance: must not be below 0, got {mean}; give parts of a variance")
    if mean <= 1e-12 * float(np.abs(part_RE).max()) or mean <= 0:
        return Interval(value=0.0, low=None, high=None, level=level)
    found = estimate(part_RE, cluster_E)
    half = stats.t_critical((1 - level) / 2, found.df) * found.se / mean
    root = mean**0.5
    return Interval(value=root, low=float(root * np.exp(-half / 2)), high=float(root * np.exp(half / 2)), level=level)


def of_coefficient(value: float, without: Sequence[Sequence[float | None]], *, level: float = 0.95) -> Interval:
    """A coefficient of at most 1, such as alpha, from its values with one unit left out, for each kind of unit.

    The jackknife variances of all kinds of unit (raters, items) are added, which counts what is of neither twice and so
    errs towards long; degrees of freedom by Satterthwaite (1946). A t interval on the scale of log(1 - value). Both
    ends are None where the value is 1 or is not defined (None) once some unit is left out.

    Source: Tukey (1958).
    """
    if value >= 1 or any(len(of_unit) < 2 or None in of_unit for of_unit in without):
        return Interval(value=value, low=None, high=None, level=level)
    found = [(len(of_unit) - 1, np.var(np.array(of_unit, dtype=np.float64))) for of_unit in without]
    variance = sum(free * spread for free, spread in found)
    if variance == 0:
        return Interval(value=value, low=None, high=None, level=level)
    df = variance**2 / sum((free * spread) ** 2 / free for free, spread in found)
    half = stats.t_critical((1 - level) / 2, df) * variance**0.5 / (1 - value)
    low, high = (float(1 - (1 - value) * np.exp(sign * half)) for sign in (1, -1))
    return Interval(value=value, low=low, high=high, level=level)
