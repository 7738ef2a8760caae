"""What a further spend is expected to gain: more labels, more rank, full fine-tuning, or nothing.

A ladder measures one arm at three or more sizes (rows, ranks) and says what doubling the last would gain. That is an
extrapolation, of one step and no more, under one assumption: **returns diminish by a constant ratio**. Each doubling
gains the same share, the ratio, of what the one before gained, and the ratio lies between 0 (nothing more is to be had)
and 1 (every doubling gains as much as the last, a straight line over the logarithm of size). That is the power law
a - b n**-c with ratio 2**-c and c >= 0. Three rungs cannot fit its three parameters and check it as well: the
ratio is barely known, so nothing rests on its estimate. The interval holds whatever the ratio is: it is the union of
intervals at every ratio that the rungs do not refute (Berger & Boos 1994). Expected gain and chances average over
ratios, beforehand all from 0 to 1 alike, weighted by how well each explains the rungs. Where returns grow (a ladder
whose first rungs learn nothing), a forecast is too low, or refuted and absent.

Scores are higher-is-better. Axis letters: K rung, R replicate (seed), E example, G ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from tunetrial.analysis.contrasts import Means
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.findings import Prospect
from tunetrial.core.ladder import FEWEST_RUNGS

RATIOS = tuple(k / 40 for k in range(1, 41))
# Of the interval's error this share goes to the set of ratios, the rest to the interval at each of them.
NUISANCE_SHARE = 0.2


@dataclass(frozen=True)
class Gain:
    """A gain in units of the metric: an interval, and estimates with the weights that they have.

    Each estimate stands for its confidence distribution, a t around the effect: a posterior under a flat prior. Where
    true gains are mostly small beside the noise, chances so reckoned lie too far from a half. One estimate is a gain as
    measured; those of a forecast are one a ratio.
    """

    low: float
    high: float
    level: float
    weights: tuple[float, ...]
    estimates: tuple[Estimate, ...]

    @property
    def expected(self) -> float:
        return math.fsum(w * one.effect for w, one in zip(self.weights, self.estimates, strict=True))

    def chance_above(self, bound: float) -> float:
        """The chance that the gain exceeds a bound in units of the metric."""
        return math.fsum(w * (1 - one.p_not_below(bound)) for w, one in zip(self.weights, self.estimates, strict=True))


def measured(estimate: Estimate, *, level: float = 0.95) -> Gain:
    """A gain that trials have measured: no assumption but those of its interval."""
    low, high = estimate.interval(level)
    return Gain(low=low, high=high, level=level, weights=(1.0,), estimates=(estimate,))


def doubled(rungs: Means, sizes: Sequence[float], *, over: int = -1, level: float = 0.95) -> Gain | None:
    """Forecast what doubling the last size gains, by diminishing returns; None where the rungs refute those.

    Nothing is claimed of a second doubling, of other arms or of rates not tried; rows of the next size are taken to be
    drawn as these were.

    Args:
        sizes: Rows or ranks of the K rungs, ascending, in the order of `rungs`.
        over: The rung over which the gain is counted, if not the last: what lies between the two is as measured.
    Raises:
        EvidenceError: Fewer than 3 rungs, sizes that do not rise from above 0, or a level outside (0, 1).
    """
    size_K = np.asarray(sizes, dtype=np.float64)
    if len(size_K) < FEWEST_RUNGS or len(size_K) != len(rungs.mean_K):
        raise EvidenceError(f"ladder: needs {FEWEST_RUNGS} or more rungs, got {len(size_K)} sizes; add one below")
    if not (size_K[0] > 0 and (np.diff(size_K) > 0).all() and 0 < level < 1):
        raise EvidenceError(f"ladder: sizes must rise, level lie in (0, 1), got {size_K.tolist()} and {level}")
    below_K, unit_KK = np.log2(size_K[-1] / size_K), np.eye(len(size_K))
    between_K = unit_KK[-1] - unit_KK[over]
    refuted_at, estimates, weights, ends = NUISANCE_SHARE * (1 - level), [], [], []
    for ratio in RATIOS:
        lack_K, forecast_K = _under(ratio, below_K)
        residuals = [rungs.contrast(weight_K) for weight_K in lack_K]
        estimates.append(rungs.contrast(forecast_K + between_K))
        weights.append(math.prod(_density(one) for one in residuals))
        if min(one.p_not_zero() for one in residuals) * len(residuals) >= refuted_at:
            ends.append(estimates[-1].interval(level + refuted_at))
    if not ends:
        return None
    return Gain(
        low=min(low for low, _ in ends),
        high=max(high for _, high in ends),
        level=level,
        weights=tuple(weight / math.fsum(weights) for weight in weights),
        estimates=tuple(estimates),
    )


def _under(ratio: float, below_K: Floats) -> tuple[Floats, Floats]:
    """Contrasts of the rungs under one ratio: orthonormal ones that are then 0, shape (K - 2, K), and the next gain.

    `below_K` counts doublings from each rung to the last. With a last doubling that gains 1, a rung lies
    (ratio**-j - 1) / (1/ratio - 1) below the last one, and the next doubling gains the ratio. Both are fitted by least
    squares.
    """
    lack_K = below_K if ratio == 1 else (ratio**-below_K - 1) / (1 / ratio - 1)
    shape_K = lack_K / lack_K[0]
    design_KK = np.column_stack([np.ones_like(shape_K), shape_K, np.eye(len(shape_K))[:, : len(shape_K) - 2]])
    basis_KK = np.linalg.qr(design_KK)[0]
    centred_K = shape_K - shape_K.mean()
    return basis_KK[:, 2:].T, -centred_K / (centred_K @ centred_K) * ratio / lack_K[0]


def _density(residual: Estimate) -> float:
    """How likely a contrast is that would be 0, by Student's t."""
    t, df = residual.effect / residual.se, residual.df
    logs = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - math.log(df) / 2
    return math.exp(logs - (df + 1) / 2 * math.log1p(t * t / df)) / residual.se


def prospect(
    what: str, gain: Gain | None, *, usd: float | None, usd_per_unit: float | None, why: str | None = None
) -> Prospect:
    """Reckon what a way to spend is expected to bring.

    Args:
        usd: Its price; None where it has none.
        usd_per_unit: What a gain of 1 in the metric is worth to the user; None where that was not said.
    """
    if gain is None:
        return Prospect(what=what, usd=usd, why=why or "the rungs do not follow diminishing returns")
    expected, known = gain.expected, usd is not None and usd_per_unit is not None
    return Prospect(
        what=what,
        gain=expected,
        low=gain.low,
        high=gain.high,
        level=gain.level,
        chance=gain.chance_above(0.0),
        usd=usd,
        gain_per_usd=expected / usd if usd else None,
        net_usd=expected * usd_per_unit - usd if known else None,
        chance_pays=gain.chance_above(usd / usd_per_unit) if known else None,
        why=why if known else why or ("no price" if usd is None else "what a gain is worth was not said"),
    )


STOP = Prospect(what="stop", gain=0.0, low=0.0, high=0.0, level=1.0, chance=0.0, usd=0.0, net_usd=0.0)


def best(prospects: Sequence[Prospect]) -> Prospect | None:
    """Whichever is expected to bring most beyond its price: "stop" where none brings more than it costs.

    The user is taken to be neutral to risk: what counts is the expected gain at its worth. None where no way has both a
    forecast and a price: nothing can then be advised. A way that lacks one of them is passed over; say so.
    """
    known = [one for one in prospects if one.net_usd is not None]
    if not known:
        return None
    return max([STOP, *known], key=lambda one: one.net_usd)
