"""Does drift go with forgetting, over the finals of a study: one number each a run, over all runs and within arms.

Drift is 1 - CKA of states with their base's (mean pooling), mean over layers, on one kind of text; forgetting is nats a
token on all held-out texts. Arms of the reference's base alone: nats of other tokenizers mean something else. Runs of
two arms that share a seed share the order of the rows; they are taken as independent. It is no cause: rate and steps
move both.
"""

import numpy as np

from tunetrial.analysis import arms, retention
from tunetrial.analysis.association import Correlation, associate
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Table
from tunetrial.core.findings import Ends, Explained


def explained(evidence: Evidence) -> tuple[Explained, ...]:
    """One for each task and source of rows, where enough runs have both; none of a task in folds."""
    lock, found = evidence.lock, []
    study = lock.study
    asked = study.tasks if study.retention and "states" in study.drift else ()
    for task in (task.name for task in asked if lock.folding(task.name) is None):
        base = lock.base(arms.reference(evidence, task)).fingerprint
        lost = {
            (arm.name, seed): value
            for arm in study.arms
            if lock.base(arm.name).fingerprint == base
            for (_, seed), value in retention.lost_by_run(evidence, task, arm.name).items()
        }
        states = {(r.trial.arm.name, r.trial.seed): r.trial.id for r in evidence.of(purpose="final", task=task)}
        tables = {run: evidence.tables[i, "states"] for run, i in states.items() if (i, "states") in evidence.tables}
        for source in dict.fromkeys(source for table in tables.values() for source in table["source"].tolist()):
            drift = {run: _overall(table, source) for run, table in tables.items() if run in lost}
            one = _associated({run: (d, lost[run]) for run, d in drift.items() if d is not None}, study.rule.level)
            found += [Explained(task=task, source=source, **one, level=study.rule.level)] if one else []
    return tuple(found)


def _overall(table: Table, source: str) -> float | None:
    """1 - CKA of a run, mean over layers; None where no layer has a value."""
    at = (table["source"] == source) & (table["pooling"] == "mean") & np.isfinite(table["cka"])
    return float(1 - table["cka"][at].mean()) if at.any() else None


def _associated(runs: dict[tuple[str, int], tuple[float, float]], level: float) -> dict[str, object] | None:
    drift_K, lost_K = np.array(list(runs.values()), dtype=np.float64).reshape(-1, 2).T
    try:
        found = associate(drift_K, lost_K, [arm for arm, _ in runs], level=level)
    except EvidenceError:  # too few runs, or nothing that varies
        return None
    both = {"pooled": found.spearman, "within": found.spearman_within}
    straight = {"pooled_line": found.pearson, "within_line": found.pearson_within}
    told = {name: _ends(one) for name, one in (both | straight).items()}
    return {**told, "runs": len(runs), "arms": found.methods}


def _ends(found: Correlation) -> Ends:
    return found.value, *(found.interval or (None, None))
