"""What arms may truly be, drawn jointly: one table of arms by criteria, all of it varied by the same seeds and rows.

The centre is what was measured. A draw gives every final seed one weight, the same for all arms and for all criteria
that runs of that seed have (quality, forgetting, the length of a run), so what a seed does to all of them stays
together; and one t scale, so that few seeds have the tails of Student's t. Quality varies with the test rows besides,
the same rows for all arms: by the mean products of the crossed layout (`contrasts`), seeds' part MS_R / (R E) and rows'
part (MS_E - MS_res) / (R E), which is that of every verdict but for its floor. Forgetting holds its texts fixed. Of a
task in folds a replicate is a fold, with the variance of `folds`. What was measured once (a probe's time, memory,
latency; bytes) does not vary, nor do opinions and prices; what tuned rates are expected to lose is in no draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import arms, contrasts, folds, repeats, retention, stats
from tunetrial.analysis.board import Board
from tunetrial.analysis.compare import outcome
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError

DRAWS = 4000
PerArm = Mapping[str, Mapping[int, float]]
PerSeed = Mapping[str, PerArm]


@dataclass(frozen=True)
class Draws:
    """Deviations from what was measured by criterion, in natural units, shape (B, A): those that come with seeds, and
    those that come with rows. A criterion without an entry does not vary."""

    by_seeds: Mapping[str, Floats]
    by_rows: Mapping[str, Floats]
    seeds: int

    def amounts(self, name: str, centre_A: Floats, *, seeds: float = 1.0) -> Floats:
        """Drawn amounts of one criterion, shape (B, A); `seeds` shrinks or stretches what comes with seeds."""
        moved = [part for part in (self.by_seeds.get(name), self.by_rows.get(name)) if part is not None]
        if not moved:
            return np.broadcast_to(centre_A, (DRAWS, len(centre_A)))
        return centre_A + seeds * self.by_seeds.get(name, 0.0) + self.by_rows.get(name, 0.0)


def jointly(
    board: Board, names: Sequence[str], criteria: Sequence[str], *, per_seed: PerSeed | None = None, seed: int = 0
) -> Draws:
    """Draw what varies of these arms by these criteria. The same seed gives the same draws.

    Args:
        per_seed: Further criteria by arm and seed of its finals, beside quality, forgetting and agreement.

    Raises:
        EvidenceError: The arms share fewer than two finals.
    """
    if not {"quality", "forgetting_nats", "agreement", *(per_seed or {})} & set(criteria):
        return Draws({}, {}, 0)
    rng = np.random.default_rng(seed)
    shared, score_ARE, lost = _by_seed(board, names)
    replicates = score_ARE.shape[1]
    z_BR = rng.standard_normal((DRAWS, replicates))
    scale_B = np.sqrt((replicates - 1) / rng.chisquare(replicates - 1, DRAWS))
    spread = _spread(board, replicates)
    seeds, rows = {}, {}
    if "quality" in criteria:
        turn = 1 if board.metric.higher_is_better else -1
        seeds["quality"] = turn * _moved(score_ARE.mean(axis=2), z_BR, scale_B, spread)
        if score_ARE.shape[2] > 1:
            rows["quality"] = turn * _by_rows(score_ARE, rng)
    agreed = {
        arm: repeats.agreement_by_seed(board.evidence, board.primary, arm) for arm in names if "agreement" in criteria
    }
    for name, known in ({"forgetting_nats": lost, "agreement": agreed} | dict(per_seed or {})).items():
        if name in criteria and any(known.values()):
            own_AR = np.array([[known.get(arm, {}).get(s, np.nan) for s in shared] for arm in names])
            seeds[name] = _moved(own_AR, z_BR, scale_B, spread)
    return Draws(seeds, rows, replicates)


def _by_seed(board: Board, names: Sequence[str]) -> tuple[list[int], Floats, PerArm]:
    """The finals that all arms share: their seeds, contributions by arm, seed and row, and what each forgot."""
    outcomes = {arm: outcome(board.evidence, board.primary, arm) for arm in names}
    shared = sorted(set.intersection(*(set(o.seeds) for o in outcomes.values())))
    if board.evidence.lock.folding(board.primary) is None:
        shared = shared[: arms.complete_look(len(shared), board.evidence.lock.study.looks) or 0]
    if len(shared) < 2:
        raise EvidenceError(f"draws: {' and '.join(names)} share {len(shared)} finals, 2 are needed; run the study on")
    stacked = [outcomes[arm].stack(tuple(shared)) for arm in names]
    if board.evidence.lock.folding(board.primary) is None:
        clusters = arms.scored_rows(board.evidence, board.primary).cluster_E
        stacked = [stats.cluster_values(own_RE, clusters) for own_RE in stacked]
    lost = {
        arm: {seed: nats for (_, seed), nats in retention.lost_by_run(board.evidence, board.primary, arm).items()}
        for arm in names
    }
    return shared, np.stack(stacked), lost


def _spread(board: Board, replicates: int) -> float:
    """By what the SD over replicates is multiplied for that of their mean."""
    lock = board.evidence.lock
    shared = folds.test_to_train(lock, board.primary) if lock.folding(board.primary) else 0.0
    return (1 / replicates + shared) ** 0.5


def _moved(own_AR: Floats, z_BR: Floats, scale_B: Floats, spread: float) -> Floats:
    """How far means move with the seeds, shape (B, A): covariance that of the means, whatever arms share.

    An arm that lacks a seed (NaN) moves with those that it has, as far as the mean of so few does; one with fewer than
    two does not move.
    """
    moved_BA = np.zeros((len(z_BR), len(own_AR)))
    for row, own_R in enumerate(own_AR):
        has_R = np.isfinite(own_R)
        if has_R.sum() > 1:
            away_R = np.where(has_R, own_R - own_R[has_R].mean(), 0.0)
            fewer = len(own_R) / has_R.sum()
            moved_BA[:, row] = z_BR @ away_R * (fewer / (has_R.sum() - 1)) ** 0.5
    return moved_BA * scale_B[:, None] * spread


def _by_rows(score_ARE: Floats, rng: np.random.Generator) -> Floats:
    """How far means move with the rows, shape (B, A): normal, with what their covariance has beyond the residual."""
    found = contrasts.means(score_ARE)
    extra_AA = (found.ms_example_KK - found.ms_residual_KK) / (found.replicates * found.examples)
    value_A, vector_AA = np.linalg.eigh(extra_AA)
    root_AA = vector_AA @ np.diag(np.sqrt(np.maximum(value_A, 0.0))) @ vector_AA.T
    return rng.standard_normal((DRAWS, len(root_AA))) @ root_AA
