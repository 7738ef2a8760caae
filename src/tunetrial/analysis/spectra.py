"""What an update did to a weight matrix, from singular values and vectors: its size, its ranks, intruder dimensions.

Axis letters: K singular value or vector, largest first.
"""

from collections.abc import Sequence

import numpy as np
import scipy  # its special functions load at first use
from numpy.typing import NDArray

from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

TOPS = (1, 5, 10, 20)
EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Ranks(Record):
    """How many directions a matrix has, by its singular values s.

    `stable`: sum of s**2 over the largest s**2. `effective`: exp of the entropy of s / sum of s (Roy & Vetterli 2007).
    `participation`: (sum of s**2)**2 over the sum of s**4.
    """

    stable: float
    effective: float
    participation: float


def ranks(singular_K: Floats) -> Ranks | None:
    """The ranks of a matrix with these singular values; None of one that is 0, which has no directions."""
    s_K = _valid(singular_K)
    if s_K.max(initial=0.0) == 0:
        return None
    s_K = s_K[s_K > 0] / s_K.max()
    share_K = s_K / s_K.sum()
    return Ranks(
        stable=float((s_K**2).sum()),
        effective=float(np.exp(-(share_K * np.log(share_K)).sum())),
        participation=float((s_K**2).sum() ** 2 / (s_K**4).sum()),
    )


def relative_size(update_K: Floats, base_K: Floats) -> tuple[float, float]:
    """||dW|| / ||W|| by the Frobenius norm and by the spectral norm, from the singular values of both.

    Raises:
        EvidenceError: The base's matrix is 0.
    """
    update_K, base_K = _valid(update_K), _valid(base_K)
    if base_K.max(initial=0.0) == 0:
        raise EvidenceError("base: its matrix is 0, nothing to be relative to; leave the matrix out")
    frobenius = np.linalg.norm(update_K) / np.linalg.norm(base_K)
    return float(frobenius), float(update_K.max(initial=0.0) / base_K.max())


def intruders(
    similarity_K: Floats, *, tops: Sequence[int] = TOPS, epsilons: Sequence[float] = EPSILONS
) -> NDArray[np.int64]:
    """Count intruder dimensions, (tops, epsilons): those of the tuned matrix's first k singular vectors that are less
    than epsilon similar to every one of the base's.

    `similarity_K` is the largest |cosine| of each tuned vector with any of the base's (left with left, right with
    right). The published setting is k = 10 and epsilon = 0.5; a count depends on both, so a sweep is read as a whole,
    and beside `drawn_similarity`: below it nothing tells an intruder from a vector drawn at random. A vector among
    equal singular values is any of a plane's, and may count though nothing intruded.

    Raises:
        EvidenceError: A k is larger than there are vectors.
    Source: Shuttleworth et al. (2024), arXiv:2410.21228, algorithm 1.
    """
    similarity_K = _valid(similarity_K)
    if max(tops) > len(similarity_K):
        raise EvidenceError(f"tops: need {max(tops)} vectors, got {len(similarity_K)}; ask for fewer")
    return np.array([[int((similarity_K[:top] < epsilon).sum()) for epsilon in epsilons] for top in tops])


def drawn_similarity(dimensions: int, *, vectors: int | None = None) -> float:
    """The median largest |cosine| of a vector drawn at random with `vectors` orthogonal ones (all of them if None).

    Cosines are taken as independent normal numbers of variance 1 / dimensions: within 1 % from 64 dimensions on.
    """
    count = dimensions if vectors is None else vectors
    return float(scipy.special.ndtri((1 + 0.5 ** (1 / count)) / 2) / dimensions**0.5)


def _valid(value_K: Floats) -> Floats:
    value_K = np.asarray(value_K, dtype=np.float64)
    if value_K.ndim != 1 or not np.isfinite(value_K).all() or (value_K < 0).any():
        raise EvidenceError(f"singular values: need finite ones of 0 and more, got {value_K}; check the weights")
    return value_K
