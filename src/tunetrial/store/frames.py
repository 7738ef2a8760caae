"""Evidence as pandas frames, for a notebook."""

from typing import TYPE_CHECKING

from tunetrial.core.evidence import Evidence, TrialRecord

if TYPE_CHECKING:
    import pandas as pd


def frames(evidence: Evidence) -> "dict[str, pd.DataFrame]":
    """Lay evidence out as three frames: `trials` (a row a record, a column a measurement, missing ones NaN),
    `curves` (a row an optimiser step) and `scores` (a row a trial, split and example, with a column for whatever was
    measured of it).

    Each row of `curves` and `scores` repeats what identifies its trial; `learning_rate` is the trial's peak in
    `trials` and the step's own in `curves`. Units are in the records, not here.
    """
    import pandas as pd

    names = sorted({name for record in evidence.records for name in record.measurements})
    trials = [
        {
            **_identity(record),
            "learning_rate": record.trial.learning_rate,
            "status": record.status,
            "reason": record.reason,
            "attempt": record.attempt,
            "synthetic": record.synthetic,
            **{name: measured.value for name, measured in record.measurements.items()},
        }
        for record in evidence.records
    ]
    curves = [{**_identity(record), **step} for record in evidence.records for step in evidence.curves[record.trial.id]]
    scores = [
        pd.DataFrame(
            {
                **_identity(record),
                "split": split,
                "example_id": one.example_id_E,
                "cluster": one.cluster_E,
                "target": one.target_E.astype(object),
                "prediction": one.prediction_E.astype(object),
                **one.measured,
            }
        )
        for record in evidence.records
        for (trial, split), one in evidence.scores.items()
        if trial == record.trial.id
    ]
    return {
        "trials": pd.DataFrame(trials, columns=[*_IDENTITY, *_OUTCOME, *names]),
        "curves": pd.DataFrame(curves, columns=None if curves else [*_IDENTITY, *_STEP]),
        "scores": pd.concat(scores, ignore_index=True) if scores else pd.DataFrame(columns=[*_IDENTITY, *_SCORE]),
    }


_IDENTITY = ("trial", "arm", "method", "task", "purpose", "seed")
_OUTCOME = ("learning_rate", "status", "reason", "attempt", "synthetic")
_STEP = ("step", "steps", "loss", "grad_norm", "learning_rate", "tokens", "seconds")
_SCORE = ("split", "example_id", "cluster", "target", "prediction")


def _identity(record: TrialRecord) -> dict[str, str | int | float]:
    trial = record.trial
    values = (trial.id, trial.arm.name, trial.arm.method, trial.task, trial.purpose, trial.seed)
    return dict(zip(_IDENTITY, values, strict=True))
