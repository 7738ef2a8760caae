"""Which trained weights are kept: adapters all, full models only where they would be shipped."""

from collections.abc import Sequence

from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.study import Lock


def median_replicate(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """Choose the replicate with the median validation score, the lower of two middle ones; ties go by seed.

    It is what ships: a typical outcome, not the luckiest seed. Replicates without the score are not eligible.
    """
    ranked = _ranked(records, metric)
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def replicates(lock: Lock, task: str) -> int:
    """Of how many finals of an arm the median ships: of the first look, so that a further one changes nothing of what
    ships; of all folds of a task in folds."""
    cut = lock.folding(task)
    return cut.splits if cut else lock.study.looks[0]


def first_look(lock: Lock, finals: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those of an arm's finals on one task of which the median ships, see `replicates`."""
    last = lock.final_seeds(replicates(lock, finals[0].trial.task))[-1] if finals else 0
    return [record for record in finals if record.trial.seed <= last]


def _ranked(records: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    name = f"validation.{metric}"
    scored = [record for record in records if record.status == "ok" and name in record.measurements]
    return sorted(scored, key=lambda record: (record.measurements[name].value, record.trial.seed))


def may_be_median(place: int, *, known: int, pending: int) -> bool:
    """Whether one of `known` ranked scores, at this place from 0, is the lower of the middle ones, or may yet become it
    once some of `pending` more are known."""
    return any(place <= (known + more - 1) // 2 <= place + more for more in range(pending + 1))


def most_kept(count: int) -> int:
    """Of so many replicates that end one after the other, how many at most may at one time yet become the median."""
    return max(
        sum(may_be_median(place, known=known, pending=count - known) for place in range(known))
        for known in range(1, count + 1)
    )


def surplus(evidence: Evidence) -> tuple[str, ...]:
    """List the ids of trials whose weights need not be kept, now or at any later time.

    Adapters of finals stay; of full models only what is, or may yet become, the median of `replicates`; and nothing of
    tuning trials and probes. With `keep: all` nothing is surplus.
    """
    study, kept = evidence.lock.study, set()
    if study.keep == "all":
        return ()
    for task in study.tasks:
        for arm in study.arms:
            finals = evidence.of(purpose="final", task=task.name, arm=arm.name)
            kept |= {r.trial.id for r in (_eligible(evidence.lock, finals) if arm.method == "full" else finals)}
    return tuple(record.trial.id for record in evidence.records if record.artifacts and record.trial.id not in kept)


def _eligible(lock: Lock, finals: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The replicates of the first look that may yet be its median."""
    early = first_look(lock, finals)
    if not early:
        return []
    task = lock.study.task(early[0].trial.task)
    ranked, pending = _ranked(early, task.metric), replicates(lock, task.name) - len(early)
    return [r for place, r in enumerate(ranked) if may_be_median(place, known=len(ranked), pending=pending)]
