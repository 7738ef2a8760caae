"""How likely each verdict is before anything is spent: what `analysis` will say, with the levels that it will use.

Differences are taken for effect + seed + example + rest, all normal and independent, as `stats.crossed` does. Then the
estimate is normal around the true effect, and independent of the mean squares, which are chi-squares; given these a
verdict is a matter of where the estimate lies. So the chances at one look are sums of normal probabilities over the
chi-squares, exact up to quadrature: the noncentral t where seeds alone vary (Student's test), Owen's Q for two
one-sided tests (Phillips 1990; Julious 2004). Looks share seeds and examples; what a study ends with is counted over
draws of all mean squares of all looks, with the rule by which `analysis.extend` goes on.

Not counted: steps of Holm's procedure after the first, which other comparisons decide and which make verdicts more
frequent. A comparison is taken for the study's only one when it is asked whether the next look is made. What tuned
rates may lose is allowed for as far as the prior says.

Axis letters: N node or draw, K look, J vector of examples, C coordinate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from typing import NamedTuple

import numpy as np
import scipy  # its statistics load at first use: seconds that workers need not wait for
from scipy import special

from tunetrial.analysis import stats
from tunetrial.analysis.stats import Floats
from tunetrial.core.records import Record
from tunetrial.plan.noise import Prior

# At one degree of freedom: of seeds, examples, the rest. Chances are good to 0.001, at two or three seeds to 0.003.
NODES = (64, 24, 8)
DRAWS = 2**14


class Chance(Record):
    """How likely each claim is: a direction (better or worse), an effect within the margin (equivalence), one that is
    not worse (non-inferiority), and none of them, CAN'T TELL YET."""

    direction: float
    within: float
    not_worse: float
    inconclusive: float


class Levels(NamedTuple):
    """Levels of one look: of the two-sided test of direction, and of the one-sided ones against the margin."""

    two_sided: float
    one_sided: float


@dataclass(frozen=True)
class Sampling:
    """How an estimate comes out: normal with `sd`; independently of it, with `weight_N`, a standard error of `se_N`
    and so many degrees of freedom. `below` and `above` are as in `stats.Estimate`."""

    sd: float
    se_N: Floats
    df_N: Floats
    weight_N: Floats
    below: float = 0.0
    above: float = 0.0


def levels(alpha: float, looks: tuple[int, ...]) -> Levels:
    """The levels of each look of one comparison, as `verdict.judge` has them."""
    return Levels(stats.per_look(alpha, looks, sides=2), stats.per_look(alpha, looks, sides=1))


def crossed(prior: Prior, seeds: int, rows: float) -> Sampling:
    """Of `stats.crossed`, at one look. `rows` are test rows, in as many examples or clusters as the prior says."""
    examples = rows / prior.rows_per_example
    seed, example, rest = prior.variances
    expected = (examples * seed + rest, seeds * example + rest, rest)
    df = (seeds - 1, examples - 1, (seeds - 1) * (examples - 1))
    nodes = [_mean_square(*args) for args in zip(expected, df, NODES, strict=True)]
    squares_N = [axis.ravel() for axis in np.meshgrid(*(value for value, _ in nodes), indexing="ij")]
    weight_N = np.prod(np.meshgrid(*(weight for _, weight in nodes), indexing="ij"), axis=0).ravel()
    total_N, df_N = _satterthwaite(*squares_N, df)
    sd = (seed / seeds + example / examples + rest / (seeds * examples)) ** 0.5
    return Sampling(sd, (total_N / (seeds * examples)) ** 0.5, df_N, weight_N, prior.below, prior.above)


def resampled(prior: Prior, rows: float, folds: int, repeats: float, *, test_to_train: float) -> Sampling:
    """Of `stats.resampled`, over folds of rows each of which is tested once a repeat; endless repeats are allowed.

    Folds of different repeats share rows, which makes their spread smaller, and their mean no surer than all rows are.
    Of the J - 1 contrasts between folds those within repeats have the variance of a fold's difference, those between
    repeats that of its seeds alone. What training on other rows adds is in no prior, and not counted.
    """
    splits = folds * repeats
    seed, example, rest = prior.variances
    shared, own = example * prior.rows_per_example / rows, seed + rest * prior.rows_per_example * folds / rows
    within, between = own + folds * shared, own
    if repeats == inf:
        square_N, weight_N = np.array([((folds - 1) * within + between) / folds]), np.ones(1)
    else:
        inner = _mean_square(within, repeats * (folds - 1), NODES[0])
        outer = _mean_square(between, repeats - 1, NODES[1])
        parts = np.meshgrid(inner[0] * repeats * (folds - 1), outer[0] * (repeats - 1), indexing="ij")
        square_N, weight_N = sum(parts).ravel() / (splits - 1), np.outer(inner[1], outer[1]).ravel()
    se_N = ((1 / splits + test_to_train) * square_N) ** 0.5
    return Sampling((shared + own / splits) ** 0.5, se_N, np.full(len(se_N), splits - 1.0), weight_N)


def chance(sampling: Sampling, effect: float, margin: float, level: Levels) -> Chance:
    """The chances of the claims at one look under a true effect: candidate minus reference, turned."""
    both_N, side_N = (_critical(sampling.df_N, tail) * sampling.se_N for tail in (level.two_sided / 2, level.one_sided))
    better_N, worse_N = sampling.below + both_N, -sampling.above - both_N
    safe_N, same_N = sampling.below + side_N - margin, margin - side_N - sampling.above

    def between(low_N: Floats, high_N: Floats) -> float:
        low_N, high_N = (special.ndtr((end - effect) / sampling.sd) for end in (low_N, high_N))
        return min(float(sampling.weight_N @ np.maximum(high_N - low_N, 0.0)), 1.0)

    return Chance(
        direction=1 - between(worse_N, better_N),
        within=between(safe_N, same_N),
        not_worse=1 - between(np.full(len(safe_N), -inf), safe_N),
        inconclusive=between(worse_N, np.minimum(better_N, safe_N)),
    )


def detectable(sampling: Sampling, level: float, power: float) -> float:
    """The smallest true effect of which the direction is found with this power, of the sign that takes more; `level`
    is two-sided."""
    sign = 1 if sampling.below >= sampling.above else -1

    def shortfall(effect: float) -> float:
        return power - chance(sampling, sign * effect, inf, Levels(level, level)).direction

    top = sampling.sd
    while shortfall(top) > 0:
        top *= 2
    return float(scipy.optimize.brentq(shortfall, 0.0, top, rtol=1e-9))


class Studies(NamedTuple):
    """Drawn studies, shapes (K, N): errors of the estimates, half-lengths of intervals, and whether seeds bind them.

    `below` and `above` are as in `stats.Estimate`.
    """

    error_KN: Floats
    both_KN: Floats
    side_KN: Floats
    by_seeds_KN: np.ndarray
    below: float
    above: float


def overall(drawn: Studies, effect: float, margin: float) -> Chance:
    """The chances of the claims at the look that a study ends with: the last, or the first that settles the verdict or
    whose interval seeds do not bind (`analysis.extend`)."""
    low_KN, high_KN = effect + drawn.error_KN - drawn.below, effect + drawn.error_KN + drawn.above
    direction_KN = (low_KN > drawn.both_KN) | (high_KN < -drawn.both_KN)
    not_worse_KN = low_KN > drawn.side_KN - margin
    within_KN = not_worse_KN & (high_KN < margin - drawn.side_KN)
    ends_KN = direction_KN | within_KN | ~drawn.by_seeds_KN
    ends_KN[-1] = True
    end_N = ends_KN.argmax(axis=0)[None]

    def share(claim_KN: np.ndarray) -> float:
        return float(np.take_along_axis(claim_KN, end_N, axis=0).mean())

    return Chance(
        direction=share(direction_KN),
        within=share(within_KN),
        not_worse=share(not_worse_KN),
        inconclusive=share(~direction_KN & ~not_worse_KN),
    )


def studies(prior: Prior, rows: float, looks: Sequence[int], level: Levels, *, draws: int = DRAWS) -> Studies:
    """Draw the mean squares of all looks together: scrambled Sobol points with a fixed seed, good to about 0.003.

    Seeds come in blocks, each with its mean and its squares. The examples' values at the looks are linear in those of
    the blocks; all of their inner products are drawn at once by Bartlett's decomposition (1933), in as many
    coordinates as there are vectors.
    """
    examples = rows / prior.rows_per_example
    seed, example, rest = prior.variances
    blocks, df = np.diff((0, *looks)), examples - 1
    vectors = 1 + (len(looks) if rest else 0)
    coordinates = int(min(vectors, df))
    points = iter(scipy.stats.qmc.Sobol(1 + vectors * coordinates + 3 * len(looks), rng=20_240_501).random(draws).T)
    vector_JCN = np.zeros((vectors, coordinates, draws))
    for j, c in np.ndindex(vectors, coordinates):
        normal = c < j
        vector_JCN[j, c] = special.ndtri(next(points)) if normal else 0.0
        if c == j:
            vector_JCN[j, c] = _chi_square(df - j, next(points)) ** 0.5
    grand, common = special.ndtri(next(points)) * (example / examples) ** 0.5, example**0.5 * vector_JCN[0]
    mean = [(seed + rest / examples) ** 0.5 / n**0.5 * special.ndtri(next(points)) for n in blocks]
    inner = [(seed + rest / examples) * _chi_square(n - 1, next(points)) for n in blocks]
    own = [(rest / n) ** 0.5 * vector for n, vector in zip(blocks, vector_JCN[1:], strict=False)]
    left = [rest * _chi_square((n - 1) * df, next(points)) if rest else np.zeros(draws) for n in blocks]
    found = []
    for count, seeds in enumerate(accumulate(blocks), start=1):
        mean_N, squares_N = _pooled(blocks[:count], mean[:count], inner[:count])
        centre_CN, between_N = _pooled(blocks[:count], own[:count], left[:count]) if own else (0.0, sum(left[:count]))
        squares = (
            examples * squares_N / (seeds - 1),
            seeds * ((common + centre_CN) ** 2).sum(axis=0) / df,
            between_N / ((seeds - 1) * df),
        )
        total_N, df_N = _satterthwaite(*squares, (seeds - 1, df, (seeds - 1) * df))
        se_N = (total_N / (seeds * examples)) ** 0.5
        seeds_N, examples_N = (np.maximum(square - squares[2], 0.0) for square in squares[:2])
        both_N, side_N = (_critical(df_N, tail) * se_N for tail in (level.two_sided / 2, level.one_sided))
        found.append((grand + mean_N, both_N, side_N, seeds_N >= examples_N))
    return Studies(*(np.stack(column) for column in zip(*found, strict=True)), prior.below, prior.above)


def _pooled(counts: Sequence[int], mean: Sequence[Floats], inner: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The mean of blocks, and the squares within them and between their means, summed over coordinates if any."""
    centre = np.average(mean, axis=0, weights=counts)
    apart = sum(count * (one - centre) ** 2 for count, one in zip(counts, mean, strict=True))
    return centre, sum(inner) + (apart.sum(axis=0) if apart.ndim > 1 else apart)


def _satterthwaite(
    replicate_N: Floats, example_N: Floats, rest_N: Floats, df: tuple[float, float, float]
) -> tuple[Floats, Floats]:
    """The mean square of the grand mean and its degrees of freedom, as `stats.Components` has them."""
    total_N = np.maximum(replicate_N + example_N - rest_N, np.maximum(replicate_N, example_N))
    return total_N, total_N**2 / sum(
        square**2 / one for square, one in zip((replicate_N, example_N, rest_N), df, strict=True)
    )


def _mean_square(expected: float, df: float, nodes: int) -> tuple[Floats, Floats]:
    """Nodes and weights of a mean square: Gauss-Legendre over the quantiles of its chi-square, the fewer the less it
    varies; one if it is 0."""
    if expected == 0 or df == 0:
        return np.array([expected]), np.ones(1)
    place, weight = np.polynomial.legendre.leggauss(1 + ceil(nodes / df**0.5))
    return expected * _chi_square(df, (place + 1) / 2) / df, weight / 2


def _chi_square(df: float, share_N: Floats) -> Floats:
    """Quantiles; 0 without degrees of freedom."""
    return 2 * special.gammaincinv(df / 2, share_N) if df > 0 else np.zeros(len(share_N))


def _critical(df_N: Floats, tail: float) -> Floats:
    return -special.stdtrit(df_N, tail)
