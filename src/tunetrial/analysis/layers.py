"""How far arms' layers lie from their base's, over seeds, beside what is no drift: what the report says of states.

Of finals that came through, in studies that ask for it (`drift: [states]`); it opens nothing and decides nothing. The
replicate is the seed, layers are a curve. An arm is held against the reference where both are on one base, since the
states of two bases have nothing in common.

Axis letters: R seed, L layer, P pair of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import arms
from tunetrial.analysis.drift import adjusted, by_layer_difference
from tunetrial.analysis.grams import alignments
from tunetrial.analysis.stats import Floats, paired
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, Evidence, Table
from tunetrial.core.findings import Ends, Moved

MEASURES = {"1 - CKA": "cka", "change": "change", "1 - cosine": "cosine", "angle": "angle", "1 - RSA": "rsa"}
FALSE_SHARE = 0.05
FEWEST_PAIRS = 4


def moved(evidence: Evidence, results: Sequence[ArmResult], *, level: float = 0.95) -> tuple[Moved, ...]:
    """One for each task, arm, source, pooling and measure; none of a task in folds, whose finals have rows of their
    own.

    Args:
        results: What arms scored, by which drift at equal score is asked.
    """
    study, found = evidence.lock.study, []
    for task in (task for task in study.tasks if evidence.lock.folding(task.name) is None):
        runs = {arm.name: _Runs.of(evidence, task.name, arm.name, results) for arm in study.arms}
        reference = runs[arms.reference(evidence, task.name)]
        for own in (own for own in runs.values() if own.states):
            other = reference if own is not reference and own.base == reference.base and reference.states else None
            found += _of_arm(task.name, own, other, level)
    return tuple(found)


@dataclass(frozen=True)
class _Runs:
    """An arm's finals of one task: by seed what was seen of them, and what they scored."""

    arm: str
    base: str
    states: Mapping[int, Table]
    grams: Mapping[int, Table]
    floors: Table | None
    scores: Mapping[int, float]

    @classmethod
    def of(cls, evidence: Evidence, task: str, arm: str, results: Sequence[ArmResult]) -> "_Runs":
        finals = [r.trial for r in evidence.of(purpose="final", task=task, arm=arm)]
        seen = {
            what: {t.seed: evidence.tables[t.id, what] for t in finals if (t.id, what) in evidence.tables}
            for what in ("states", "grams", "floors")
        }
        scores = next((r.values for r in results if (r.task, r.arm) == (task, arm)), {})
        base = evidence.lock.base(arm).fingerprint
        return cls(arm, base, seen["states"], seen["grams"], next(iter(seen["floors"].values()), None), scores)

    def stack(self, source: str, pooling: str, column: str, seeds: Sequence[int]) -> Floats:
        return np.stack([_layers(self.states[seed], source, pooling, column) for seed in seeds])


def _layers(table: Table, source: str, pooling: str, column: str, pair: str | None = None) -> Floats:
    """A column by layer, (L,); of the pair of views named, where a table has several."""
    at = (table["source"] == source) & (table["pooling"] == pooling)
    at &= True if pair is None else table["pair"] == pair
    return table[column][at][np.argsort(table["layer"][at])]


def _of_arm(task: str, own: _Runs, other: _Runs | None, level: float) -> list[Moved]:
    first, seeds, found = own.states[min(own.states)], sorted(own.states), []
    for source, pooling in dict.fromkeys(zip(first["source"], first["pooling"], strict=True)):
        for measure, column in MEASURES.items():
            drift_RL = _distance(measure, own.stack(source, pooling, column, seeds))
            valued_L = np.isfinite(drift_RL).all(axis=0)
            if not valued_L.any():
                continue
            with_cka = measure == "1 - CKA"
            found.append(
                Moved(
                    task=task,
                    arm=own.arm,
                    source=source,
                    pooling=pooling,
                    measure=measure,
                    by_layer=tuple(ends(d, level) if v else None for d, v in zip(drift_RL.T, valued_L, strict=True)),
                    overall=ends(drift_RL[:, valued_L].mean(axis=1), level),
                    **({} if other is None else _against(own, other, (source, pooling, measure), level)),
                    floors=_floors(own.floors, source, pooling, measure),
                    chance=_chance(own, source, pooling) if with_cka else None,
                    **(_between(own, other, source) if with_cka and pooling == "mean" else {}),
                    level=level,
                    seeds=len(seeds),
                    rows=int(_layers(first, source, pooling, "rows")[0]),
                )
            )
    return found


def _distance(measure: str, value: Floats) -> Floats:
    return 1 - value if measure.startswith("1 - ") else value


def ends(value_R: Floats, level: float) -> Ends:
    """The mean over seeds and its t interval; none of one seed, or where seeds do not differ."""
    mean = float(np.mean(value_R))
    return (mean, *paired(value_R).interval(level)) if len(value_R) > 1 and np.ptp(value_R) > 0 else (mean, None, None)


def _against(own: _Runs, other: _Runs, key: tuple[str, str, str], level: float) -> dict[str, object]:
    """Differences to the reference on the seeds that both have, over the layers that have a value in all runs."""
    source, pooling, measure = key
    shared = sorted(own.states.keys() & other.states.keys())
    if len(shared) < 2:
        return {}
    own_RL, other_RL = (
        _distance(measure, runs.stack(source, pooling, MEASURES[measure], shared)) for runs in (own, other)
    )
    layers = np.flatnonzero(np.isfinite(own_RL).all(axis=0) & np.isfinite(other_RL).all(axis=0))
    if not len(layers):
        return {}
    tested = by_layer_difference(own_RL[:, layers], other_RL[:, layers])
    difference_R = (own_RL - other_RL)[:, layers].mean(axis=1)
    scored = [n for n, seed in enumerate(shared) if seed in own.scores and seed in other.scores]
    score_R = np.array([own.scores[shared[n]] - other.scores[shared[n]] for n in scored])
    return {
        "difference": ends(difference_R, level),
        "apart": tuple(int(layers[one.layer]) for one in tested if one.q is not None and one.q <= FALSE_SHARE),
        **_at_equal_score(difference_R[scored], score_R, level),
    }


def _at_equal_score(difference_R: Floats, score_R: Floats, level: float) -> dict[str, object]:
    if len(score_R) < FEWEST_PAIRS:
        return {"unequal": "few seeds"}
    if not score_R.min() <= 0 <= score_R.max():
        return {"unequal": "scores apart"}
    try:
        left = adjusted(difference_R, score_R)
    except EvidenceError:  # all scores alike, or a line without error: nothing to judge by
        return {"unequal": "no spread"}
    return {"at_equal_score": (left.effect, *left.interval(level))}


def _floors(table: Table | None, source: str, pooling: str, measure: str) -> dict[str, tuple[float | None, ...]]:
    if table is None:
        return {}
    pairs = dict.fromkeys(table["pair"][table["source"] == source])
    found = {pair: _layers(table, source, pooling, MEASURES[measure], pair) for pair in pairs}
    return {pair: _plain(_distance(measure, value_L)) for pair, value_L in found.items()}


def _chance(own: _Runs, source: str, pooling: str) -> tuple[float, float] | None:
    """1 - CKA of rows that do not belong together, its mean and SD over draws, averaged over layers and seeds."""
    mean, sd = (own.stack(source, pooling, f"shuffled_{name}", sorted(own.states)) for name in ("mean", "sd"))
    valued = np.isfinite(mean) & np.isfinite(sd)
    return (float(1 - mean[valued].mean()), float(sd[valued].mean())) if valued.any() else None


def _between(own: _Runs, other: _Runs | None, source: str) -> dict[str, tuple[float | None, ...]]:
    """1 - CKA of runs with each other by layer: of the arm's own, and of each with the reference's of its seed."""
    seeds = sorted(own.grams)
    shared = sorted(own.grams.keys() & other.grams.keys()) if other else []
    names = [name for name in own.grams[seeds[0]] if name.rpartition(":")[0] == source] if seeds else []
    names.sort(key=lambda name: int(name.rpartition(":")[2]))
    found = {}
    if len(seeds) > 1:
        upper = np.triu_indices(len(seeds), 1)
        near = [_near([own.grams[seed][name] for seed in seeds])[upper].mean() for name in names]
        found["between_seeds"] = _plain(np.array(near))
    if shared:
        near = [
            np.mean([_near([own.grams[seed][name], other.grams[seed][name]])[0, 1] for seed in shared])
            for name in names
        ]
        found["between_arms"] = _plain(np.array(near))
    return {name: value for name, value in found.items() if value}


def _near(product_RP: Sequence[Floats]) -> Floats:
    return 1 - alignments(np.stack([product_P[np.isfinite(product_P)] for product_P in product_RP]))


def _plain(value_L: Floats) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in value_L)
