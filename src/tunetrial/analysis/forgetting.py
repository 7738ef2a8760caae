"""What a model lost by being tuned: likelihood of held-out text, answers that were right, tasks learnt before.

Forgetting is positive where something was lost. The base is one model: it shares the texts with every run and has no
variance of seeds of its own. Runs (seeds) and texts are crossed, as in `stats`: an interval over new runs *and* new
texts needs two or more of each. Axis letters: R run, E text or example, S stage of a sequence of tasks, T task.

    lost = per_unit(tuned_nats_RE - base_nats_E, tokens_E, cluster_E=documents)     # nats a token
    lost.effect, lost.interval(0.95)

Nothing here says why something was lost, nor that what is lost on these texts is lost on others of another kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from tunetrial.analysis import stats
from tunetrial.analysis.gains import Gains, gains
from tunetrial.analysis.stats import Estimate, Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

Rights = NDArray[np.bool_]


def per_unit(total_RE: Floats, size_E: Floats, *, cluster_E: Sequence[str] | None = None) -> Estimate:
    """Estimate what texts lost for each token or byte of theirs, over new runs and new texts.

    The effect is sum over texts / sum of sizes, averaged over runs: every token weighs the same, as in a loss. Totals
    are differences of nats (tuned minus base) over tokens for nats a token, the same / ln 2 over bytes for bits a byte
    where tokenizers differ, or sums of KL over tokens. exp(nats a token) is the factor of the perplexity.

    Args:
        total_RE: Of each run and text a sum over its tokens, shape (runs, texts).
        size_E: Tokens or bytes of each text, above 0.
        cluster_E: Texts of one source belong together, as paragraphs of a document do.
    Raises:
        EvidenceError: Fewer than 2 runs or 2 texts (or clusters), shapes that do not go together, values that are not
            finite, or no spread at all.
    Source: `parts_per_unit`, then `stats.crossed`.
    """
    part_RE = parts_per_unit(total_RE, size_E)
    return stats.crossed(part_RE if cluster_E is None else stats.cluster_values(part_RE, cluster_E))


def parts_per_unit(total_RE: Floats, size_E: Floats) -> Floats:
    """Each run's and text's part in sum over texts / sum of sizes, shape (runs, texts): their grand mean is that ratio.

    Raises:
        EvidenceError: Shapes that do not go together, or a size that is not above 0.
    Source: the ratio of two sums linearised about itself (Cochran 1977, 6.3).
    """
    total_RE, size_E = np.asarray(total_RE, dtype=np.float64), np.asarray(size_E, dtype=np.float64)
    if total_RE.ndim != 2 or size_E.shape != total_RE.shape[1:]:
        got = f"got shapes {total_RE.shape} and {size_E.shape}"
        raise EvidenceError(f"held-out text: needs a total a run and text and a size a text, {got}; score all texts")
    if not (size_E > 0).all():
        raise EvidenceError(f"held-out text: sizes must be above 0, got {size_E.min():g}; remove empty texts")
    # The sizes are the same in every run, so one ratio serves all: parts average to it.
    ratio = total_RE.sum() / len(total_RE) / size_E.sum()
    return ratio + (total_RE - ratio * size_E) / size_E.mean()


class Flips(Record):
    """Answers of one run beside the base's: how many were right and are wrong (`lost`), the other way (`gained`), right
    in both and wrong in both. `p` is the exact two-sided test that a change goes either way alike (McNemar 1947).

    It is of this run on independent examples: counts of several runs on the same examples must not be added up.
    """

    lost: int
    gained: int
    both_right: int
    both_wrong: int
    p: float

    @property
    def net(self) -> float:
        """What was lost less what was gained, as a share of all examples: the fall of accuracy."""
        return (self.lost - self.gained) / (self.lost + self.gained + self.both_right + self.both_wrong)


def flips(base_E: Rights, tuned_E: Rights) -> Flips:
    """Count how the answers of one run changed from right to wrong and back.

    Raises:
        EvidenceError: No examples, or not one value of right or wrong for each.
    """
    base_E, tuned_E = _rights(base_E), _rights(tuned_E)
    if base_E.ndim != 1 or base_E.shape != tuned_E.shape or not len(base_E):
        raise EvidenceError(f"answers: are not paired, got shapes {base_E.shape} and {tuned_E.shape}; score the same")
    lost, gained = int((base_E & ~tuned_E).sum()), int((~base_E & tuned_E).sum())
    changed = lost + gained
    p = float(scipy.stats.binomtest(lost, changed).pvalue) if changed else 1.0
    both = {"both_right": int((base_E & tuned_E).sum()), "both_wrong": int((~base_E & ~tuned_E).sum())}
    return Flips(lost=lost, gained=gained, p=p, **both)


@dataclass(frozen=True)
class Retention:
    """Right and wrong answers on a retention task: `runs` one by one, `net` (the fall of accuracy) over new runs and
    examples, and the shares of all examples that changed, `lost` and `gained`, likewise.

    `lost` and `gained` may both be large where `net` is 0: a model that knows other things than it did. One of them is
    None where it has no spread to judge by, as when no answer of any run changed so.
    """

    runs: tuple[Flips, ...]
    net: Estimate | None
    lost: Estimate | None
    gained: Estimate | None


def retention(base_E: Rights, tuned_RE: Rights, *, cluster_E: Sequence[str] | None = None) -> Retention:
    """Compare the answers of several runs with those of the base on the same examples.

    Raises:
        EvidenceError: Fewer than 2 runs or 2 examples (or clusters), or answers that are not paired.
    """
    base_E, tuned_RE = _rights(base_E), _rights(tuned_RE)
    if tuned_RE.ndim != 2 or len(tuned_RE) < 2 or len(base_E) < 2:
        raise EvidenceError(f"answers: need 2 or more runs and examples, got shape {tuned_RE.shape}; add seeds")
    runs = tuple(flips(base_E, tuned_E) for tuned_E in tuned_RE)
    lost_RE, gained_RE = (base_E & ~tuned_RE).astype(float), (~base_E & tuned_RE).astype(float)
    return Retention(runs, *(_share(one_RE, cluster_E) for one_RE in (lost_RE - gained_RE, lost_RE, gained_RE)))


def _share(value_RE: Floats, cluster_E: Sequence[str] | None) -> Estimate | None:
    part_RE = value_RE if cluster_E is None else stats.cluster_values(value_RE, cluster_E)
    if min(part_RE.shape) < 2:
        raise EvidenceError(f"answers: need 2 or more runs and clusters, got shape {part_RE.shape}; add examples")
    if not np.ptp(part_RE.mean(axis=0)) and not np.ptp(part_RE.mean(axis=1)):
        return None
    return stats.crossed(part_RE)


def _rights(value: Rights) -> Rights:
    value = np.asarray(value)
    if value.dtype != np.bool_ and not np.isin(value, (0, 1)).all():
        raise EvidenceError("answers: must be right (1) or wrong (0), got other values; use per_unit for amounts")
    return value.astype(bool)


def kept(base_E: Floats, tuned_RE: Floats, *, chance: float) -> Gains:
    """How much of what the base could do beyond chance the runs still can: (tuned - chance) / (base - chance).

    That is 1 - lost / (base - chance). `share` is the number and `limits(level)` its interval over new runs and
    examples (Fieller 1954), None where the base is not shown to be above chance.

    Args:
        base_E: Scores of the base, higher is better, right and wrong as 1 and 0.
        tuned_RE: Those of the runs, shape (runs, examples).
        chance: What a guess scores on average, the same at every example.
    Raises:
        EvidenceError: As `gains.gains`.
    """
    base_RE = np.broadcast_to(np.asarray(base_E, dtype=np.float64), np.shape(tuned_RE))
    return gains(np.asarray(tuned_RE, dtype=np.float64) - chance, base_RE - chance)


@dataclass(frozen=True)
class Transfer:
    """What learning tasks in a row did to each other, one number a run (axis R), in units of the score.

    `backward_R`: how scores on earlier tasks changed until the end, mean of R[T, j] - R[j, j] over j < T; below 0 is
    forgetting. `forward_R`: what earlier tasks brought before a task was trained on, mean of R[j-1, j] - R[0, j] over
    j > 1. `forgotten_R`: how far below its best a task ended, mean over j < T of max over l < T of R[l, j] - R[T, j],
    l from when it was trained on; it is never below `-backward_R`. An interval is `stats.paired` over runs, which holds
    the examples fixed.
    """

    backward_R: Floats
    forward_R: Floats
    forgotten_R: Floats


def transfer(score_RST: Floats) -> Transfer:
    """Measure transfer between tasks that were trained on one after the other.

    Args:
        score_RST: The score on task T after stage S, higher is better: stage 0 is the base, stage s has been trained on
            the first s tasks; shape (runs, tasks + 1, tasks).
    Raises:
        EvidenceError: Fewer than 2 tasks, another shape, or scores that are not finite.
    Source: Lopez-Paz & Ranzato (2017, arXiv:1706.08840), equations 3 and 4, with the base for their random
        initialisation; forgetting as Chaudhry et al. (2018, arXiv:1801.10112) define it.
    """
    score_RST = np.asarray(score_RST, dtype=np.float64)
    tasks = score_RST.shape[-1]
    if score_RST.ndim != 3 or tasks < 2 or score_RST.shape[1] != tasks + 1 or not len(score_RST):
        got = f"got shape {score_RST.shape}"
        raise EvidenceError(f"transfer: needs (runs, tasks + 1, tasks) of 2 or more tasks, {got}; score every stage")
    if not np.isfinite(score_RST).all():
        raise EvidenceError("transfer: some scores are not finite; score every task after every stage")
    own = np.arange(tasks)
    last_RT, when_trained_RT = score_RST[:, -1, :-1], score_RST[:, own[1:], own[:-1]]
    best_RT = np.stack([score_RST[:, j + 1 : tasks, j].max(axis=1) for j in own[:-1]], axis=1)
    return Transfer(
        backward_R=(last_RT - when_trained_RT).mean(axis=1),
        forward_R=(score_RST[:, own[1:], own[1:]] - score_RST[:, 0, 1:]).mean(axis=1),
        forgotten_R=(best_RT - last_RT).mean(axis=1),
    )


def backward_of_one(base_T: Floats, tuned_RT: Floats) -> Floats:
    """Backward transfer of training on one task: mean over other abilities of tuned minus base, one number a run (R,).

    Raises:
        EvidenceError: The shapes do not go together, or scores are not finite.
    """
    base_T, tuned_RT = np.asarray(base_T, dtype=np.float64), np.asarray(tuned_RT, dtype=np.float64)
    if tuned_RT.ndim != 2 or base_T.shape != tuned_RT.shape[1:] or not tuned_RT.size:
        raise EvidenceError(
            f"transfer: are not paired, got shapes {base_T.shape} and {tuned_RT.shape}; score all tasks"
        )
    if not (np.isfinite(base_T).all() and np.isfinite(tuned_RT).all()):
        raise EvidenceError("transfer: some scores are not finite; score every task")
    return (tuned_RT - base_T).mean(axis=1)
