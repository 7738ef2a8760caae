"""How far apart two forms of one model answer the same probes: arrays and token lists alone.

What is compared are log-probabilities of the next token: logits up to a constant for all tokens of a place, which
changes neither a probability nor a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tunetrial.core.errors import EvidenceError
from tunetrial.core.fidelity import Measures

TIE_NATS = 1e-4
Outcome = Literal["identical", "tie", "different"]


@dataclass(frozen=True)
class Answers:
    """What one form of a model answers to the probes, of which there are L places and P prompts.

    `log_probs_LN` are natural logarithms of the probability of the next token at each place: of the whole vocabulary in
    order of ids, or, with `ids_LN`, of the N likeliest tokens. `completions` are greedy, one a prompt, without the
    token that ends them; `leads` says of each place of a completion, its end included unless it was cut off, how many
    nats the likeliest token is ahead of the next.
    """

    log_probs_LN: np.ndarray
    completions: tuple[tuple[int, ...], ...]
    leads: tuple[np.ndarray, ...]
    ids_LN: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.log_probs_LN.shape
        if self.ids_LN is not None and self.ids_LN.shape != shape:
            raise EvidenceError(f"answers: one id a log-probability is wanted, got {self.ids_LN.shape}; ask again")
        if len(shape) != 2 or 0 in shape or not self.completions or len(self.completions) != len(self.leads):
            got = f"got {shape}, {len(self.completions)} completions and leads of {len(self.leads)}"
            raise EvidenceError(f"answers: places by tokens, and leads of each completion are wanted, {got}; ask again")
        if not np.isfinite(self.log_probs_LN).all():
            got = f"got {self.log_probs_LN[~np.isfinite(self.log_probs_LN)][0]}"
            raise EvidenceError(f"answers: finite log-probabilities are wanted, {got}; ask again, or for fewer tokens")

    @property
    def best_L(self) -> np.ndarray:
        """The likeliest next token at each place."""
        best_L = self.log_probs_LN.argmax(axis=1)
        return best_L if self.ids_LN is None else self.ids_LN[np.arange(len(best_L)), best_L]


def compare(before: Answers, after: Answers) -> Measures:
    """Measure a hop from one form of a model to the next.

    Raises:
        EvidenceError: They are not answers to the same probes, or over different vocabularies; or of a place the two
            forms have not one likely token in common.
    """
    asked = [(len(form.completions), len(form.log_probs_LN)) for form in (before, after)]
    if asked[0] != asked[1]:
        raise EvidenceError(f"hop: both forms answer the same probes, got {asked[0]} and {asked[1]}; ask both again")
    outcomes = [
        completion_outcome(*three) for three in zip(before.completions, after.completions, before.leads, strict=True)
    ]
    whole = before.ids_LN is None and after.ids_LN is None
    if whole and before.log_probs_LN.shape != after.log_probs_LN.shape:
        got = f"got {before.log_probs_LN.shape[1]} and {after.log_probs_LN.shape[1]} tokens"
        raise EvidenceError(f"hop: both forms have one vocabulary, {got}; compare forms of one model")
    kl_L = divergence(before.log_probs_LN, after.log_probs_LN) if whole else None
    pairs = [_common(before, after, place) for place in range(asked[0][1])]
    compared = [len(own) for own, _ in pairs]
    if not all(compared):
        raise EvidenceError(
            f"hop: place {compared.index(0)}: no likely token in common, got none; ask for more of them"
        )
    return Measures(
        probes=asked[0][0],
        places=asked[0][1],
        identical=outcomes.count("identical"),
        ties=outcomes.count("tie"),
        different=outcomes.count("different"),
        first_different=outcomes.index("different") if "different" in outcomes else None,
        same_next_token=float((before.best_L == after.best_L).mean()),
        largest_difference=max(float(np.abs(own - other).max()) for own, other in pairs),
        kl_mean=None if kl_L is None else float(kl_L.mean()),
        kl_largest=None if kl_L is None else float(kl_L.max()),
        tokens_compared=min(compared),
    )


def divergence(log_p_LV: np.ndarray, log_q_LV: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of q from p at each place, in nats: the sum over tokens of p (log p - log q).

    Rounding may leave a value just below 0: it is 0 then.

    Source: Kullback and Leibler (1951).
    """
    return np.maximum((np.exp(log_p_LV) * (log_p_LV - log_q_LV)).sum(axis=1), 0.0)


def completion_outcome(before: Sequence[int], after: Sequence[int], leads_T: np.ndarray) -> Outcome:
    """Say whether two greedy completions are one, part at a tie, or differ.

    Args:
        leads_T: Of each place of `before`, its end included, how far the likeliest token is ahead, in nats.
    """
    parted = [place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b]
    if not parted and len(before) == len(after):
        return "identical"
    place = parted[0] if parted else min(len(before), len(after))
    return "tie" if place < len(leads_T) and leads_T[place] < TIE_NATS else "different"


def _common(before: Answers, after: Answers, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of the tokens that both forms told of a place."""
    if before.ids_LN is None and after.ids_LN is None:
        return before.log_probs_LN[place], after.log_probs_LN[place]
    own, other = _told(before, place), _told(after, place)
    shared = sorted(own.keys() & other.keys())
    return np.array([own[token] for token in shared]), np.array([other[token] for token in shared])


def _told(form: Answers, place: int) -> dict[int, float]:
    row = form.log_probs_LN[place]
    ids = range(len(row)) if form.ids_LN is None else form.ids_LN[place].tolist()
    return dict(zip(ids, row.tolist(), strict=True))
