"""Which trained weights are kept: adapters all, full models only where they would be shipped."""

from collections.abc import Sequence

from tunetrial.core.evidence import Evidence, TrialRecord


def median_replicate(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """Choose the replicate with the median validation score, the lower of two middle ones; ties go by seed.

    It is what ships: a typical outcome, not the luckiest seed. Replicates without the score are not eligible.
    """
    name = f"validation.{metric}"
    scored = [record for record in records if record.status == "ok" and name in record.measurements]
    ranked = sorted(scored, key=lambda record: (record.measurements[name].value, record.trial.seed))
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def surplus(evidence: Evidence) -> tuple[str, ...]:
    """List the ids of trials whose weights need not be kept, once no further final will run.

    Adapters of finals stay, of full models the median replicate's alone, and nothing of tuning trials and probes.
    With `keep: all` nothing is surplus. Asked too early it would give away a later median.
    """
    study = evidence.lock.study
    if study.keep == "all":
        return ()
    kept = set()
    for task in study.tasks:
        for arm in study.arms:
            finals = evidence.of(purpose="final", task=task.name, arm=arm.name)
            median = median_replicate(finals, task.metric)
            kept |= {record.trial.id for record in finals if arm.method != "full" or record == median}
    return tuple(record.trial.id for record in evidence.records if record.artifacts and record.trial.id not in kept)
