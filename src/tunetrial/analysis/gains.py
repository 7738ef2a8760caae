"""Shares of a gain: how much of what the reference gains over the untuned base a candidate gains too.

With candidate c, reference r and untuned base b on the same test rows, the share is (c - b) / (r - b). All that is
asked of a share s is asked of the linear contrast c - s r - (1 - s) b, which is 0 where s is the true share: whether
it is above 0 is whether more than the share s is kept. A margin such as "95% of gain" is such a contrast and no ratio,
so its test holds however small the gain is (Pigeot et al. 2003). The interval of the share is all s at which a
two-sided test of the contrast does not reject (Fieller 1954); where the reference's gain is not itself shown to be
above 0 that set is unbounded or the outside of an interval, so no share is told.

Nothing is claimed of other tasks, and a share of a small gain is a wide interval. Axis letters: R replicate, E example,
G the two gains, the candidate's first.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # its root finder loads at first use

from tunetrial.analysis.contrasts import Means, means
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError


@dataclass(frozen=True)
class Gains:
    """What a candidate and its reference gain over the untuned base, by seed and example.

    `means` are those of the two gains, G in place of K. The base shares the rows; where it is one run alone it has no
    variance of seeds. The regrets are what tuned rates are expected to lose, in units of the gains.
    """

    means: Means
    candidate_regret: float = 0.0
    reference_regret: float = 0.0

    @property
    def share(self) -> float:
        """The candidate's gain as a share of the reference's, as measured."""
        return float(self.means.mean_K[0] / self.means.mean_K[1])

    @property
    def reference_gain(self) -> Estimate:
        """What the reference gains over the base; at its best rate it may gain more."""
        return self.means.contrast(np.array([0.0, 1.0]), above=self.reference_regret)

    def contrast(self, share: float) -> Estimate:
        """Candidate - share * reference - (1 - share) * base, with degrees of freedom of its own.

        A share of 1 is candidate minus reference. Of a reference at its best rate a positive share is taken, so it may
        lie lower by that much.
        """
        lost = share * self.reference_regret
        below, above = max(lost, 0.0), self.candidate_regret + max(-lost, 0.0)
        return self.means.contrast(np.array([1.0, -share]), below=below, above=above)

    def limits(self, level: float) -> tuple[float, float] | None:
        """The interval of the share, `level` in (0, 1); None where the reference's gain is not shown to be above 0.

        Source: Fieller (1954), each share tested with the degrees of freedom of its own contrast.
        """
        if self.reference_gain.interval(level)[0] <= 0:
            return None
        return self._crossing(0, level, towards=-1), self._crossing(1, level, towards=1)

    def _crossing(self, end: int, level: float, *, towards: int) -> float:
        """Where that end of the contrast's interval is 0, looked for from the measured share on."""

        def at(share: float) -> float:
            return self.contrast(share).interval(level)[end]

        near, step = self.share, 0.1 * towards
        if at(near) == 0:
            return near
        # The contrast falls as the share grows, without end: the reference's gain is shown to be above 0.
        while at(near + step) * towards > 0:
            step *= 2
        return float(scipy.optimize.brentq(at, near, near + step, xtol=1e-10))


def gains(
    candidate_RE: Floats, reference_RE: Floats, *, candidate_regret: float = 0.0, reference_regret: float = 0.0
) -> Gains:
    """Gather both gains over the base, each arm minus the base on the same seed and example, higher is better.

    Raises:
        EvidenceError: The shapes differ, fewer than 2 seeds or 2 examples, or a value that is not finite.
    """
    if candidate_RE.shape != reference_RE.shape or min(candidate_RE.shape) < 2 or candidate_RE.ndim != 2:
        what = f"gains: need the same 2 or more seeds and examples, got {candidate_RE.shape} and {reference_RE.shape}"
        raise EvidenceError(f"{what}; add seeds")
    return Gains(
        means=means(np.stack([candidate_RE, reference_RE])),
        candidate_regret=candidate_regret,
        reference_regret=reference_regret,
    )
