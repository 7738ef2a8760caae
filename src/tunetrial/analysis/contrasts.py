"""Several arms, or rungs of a ladder, on the same seeds and examples: any linear contrast of their means.

Axis letters: K arm or rung, R replicate (seed), E example.
"""

from dataclasses import dataclass

import numpy as np

from tunetrial.analysis.stats import Components, Estimate, Floats
from tunetrial.core.errors import EvidenceError


@dataclass(frozen=True)
class Means:
    """Means over seeds and examples, higher is better, and the mean squares and products of the crossed two-way layout
    of `stats.components`, shape (K, K): from them the variance of every contrast is a quadratic form."""

    mean_K: Floats
    replicates: int
    examples: int
    ms_replicate_KK: Floats
    ms_example_KK: Floats
    ms_residual_KK: Floats

    def contrast(self, weight_K: Floats, *, below: float = 0.0, above: float = 0.0) -> Estimate:
        """The weighted sum of the means, just as `stats.crossed` would estimate it.

        Its degrees of freedom are its own (Satterthwaite 1946), as in Hasler et al. (2008). For `below` and `above` see
        `stats.Estimate`.

        Raises:
            EvidenceError: Seeds and examples do not differ in it at all.
        """
        squares = {
            name: float(weight_K @ getattr(self, f"{name}_KK") @ weight_K)
            for name in ("ms_replicate", "ms_example", "ms_residual")
        }
        parts = Components(replicates=self.replicates, examples=self.examples, **squares)
        if parts.total <= 0:
            raise EvidenceError("contrast: seeds and examples all have equal means, no spread; add examples")
        return Estimate(effect=float(weight_K @ self.mean_K), se=parts.se, df=parts.df, below=below, above=above)


def means(score_KRE: Floats) -> Means:
    """Gather scores of which [k, r, e] of all k share the seed and the example.

    Raises:
        EvidenceError: Fewer than 2 seeds or 2 examples, or a value that is not finite.
    """
    score_KRE = np.asarray(score_KRE, dtype=np.float64)
    if score_KRE.ndim != 3 or min(score_KRE.shape[1:]) < 2:
        raise EvidenceError(f"scores: need 2 or more seeds and examples of each, got {score_KRE.shape}; add seeds")
    if not np.isfinite(score_KRE).all():
        raise EvidenceError("scores: some values are not finite; rerun the trials that lack scores")
    count, replicates, examples = score_KRE.shape
    mean_KR, mean_KE, mean_K = score_KRE.mean(axis=2), score_KRE.mean(axis=1), score_KRE.mean(axis=(1, 2))
    residual_KRE = score_KRE - mean_KR[:, :, None] - mean_KE[:, None, :] + mean_K[:, None, None]
    freedom = (replicates - 1) * (examples - 1)
    return Means(
        mean_K=mean_K,
        replicates=replicates,
        examples=examples,
        ms_replicate_KK=examples * np.cov(mean_KR).reshape(count, count),
        ms_example_KK=replicates * np.cov(mean_KE).reshape(count, count),
        ms_residual_KK=np.einsum("kre,jre->kj", residual_KRE, residual_KRE) / freedom,
    )
