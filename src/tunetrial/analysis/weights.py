"""What arms' training did to weights, over seeds: what the report says of updates.

Of finals that came through, in studies that ask for it (`drift: [weights]`). A run is one number, the mean over the
matrices that its arm changes, and the replicate is the seed. Arms change different matrices (`matrices` counts them),
so their figures are of different sets, and are not compared by a test.
"""

import numpy as np

from tunetrial.analysis.layers import ends
from tunetrial.analysis.spectra import EPSILONS, TOPS
from tunetrial.analysis.stats import Floats
from tunetrial.core.evidence import Evidence, Table
from tunetrial.core.findings import Ends, Updated

SIDES = ("left", "right")


def updated(evidence: Evidence, *, level: float = 0.95) -> tuple[Updated, ...]:
    """One for each task and arm of which weights were looked at; none of a task in folds."""
    study, found = evidence.lock.study, []
    for task in (task for task in study.tasks if evidence.lock.folding(task.name) is None):
        for arm in study.arms:
            finals = (r.trial for r in evidence.of(purpose="final", task=task.name, arm=arm.name))
            tables = {t.seed: evidence.tables[t.id, "weights"] for t in finals if (t.id, "weights") in evidence.tables}
            if tables:
                found.append(_updated(task.name, arm.name, [tables[seed] for seed in sorted(tables)], level))
    return tuple(found)


def _updated(task: str, arm: str, runs: list[Table], level: float) -> Updated:
    rounding = _means(runs, "rounding")
    chances = np.concatenate([runs[0][f"{side}_chance"] for side in SIDES])
    intruders = {
        side: tuple(tuple(_ends(runs, f"{side}_{top}_{epsilon}", level) for epsilon in EPSILONS) for top in TOPS)
        for side in SIDES
    }
    return Updated(
        task=task,
        arm=arm,
        **{name: ends(_means(runs, name), level) for name in ("size", "spectral")},
        **{name: _ends(runs, name, level) for name in ("stable", "effective")},
        rounding=float(rounding[0]) if np.isfinite(rounding).all() else None,
        intruders=intruders,
        tops=TOPS,
        epsilons=EPSILONS,
        chance=(float(chances.min()), float(chances.max())),
        matrices=len(runs[0]["matrix"]),
        level=level,
        seeds=len(runs),
    )


def _means(runs: list[Table], column: str) -> Floats:
    """By run the mean over matrices, (R,); nan where some have no value."""
    return np.array([run[column].mean() for run in runs])


def _ends(runs: list[Table], column: str, level: float) -> Ends | None:
    mean_R = _means(runs, column)
    return ends(mean_R, level) if np.isfinite(mean_R).all() else None
