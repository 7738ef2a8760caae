"""What metrics are given, checked, one value an example (axis E): labels numbered, numbers as float64, texts listed."""

from collections.abc import Sequence

import numpy as np

from tunetrial.analysis.stats import Codes, Floats
from tunetrial.core.errors import EvidenceError

Values = np.ndarray | Sequence[str] | Sequence[float]


def codes(target_E: Values, prediction_E: Values) -> tuple[Codes, Codes, int]:
    """Number the labels that occur, in order of text; returns both sides' numbers and how many labels there are."""
    sides = [np.asarray(values, dtype=object) for values in (target_E, prediction_E)]
    _check_lengths(*sides)
    both = sides[0].tolist() + sides[1].tolist()
    if not all(issubclass(kind, str) for kind in set(map(type, both))):
        wrong = next(label for label in both if not isinstance(label, str))
        raise EvidenceError(f"labels: must be text, got {wrong!r}; turn labels into text, or use a regress metric")
    number = {label: code for code, label in enumerate(sorted(set(both)))}
    code = np.fromiter(map(number.__getitem__, both), dtype=np.intp, count=len(both))
    return code[: len(sides[0])], code[len(sides[0]) :], len(number)


def numbers(target_E: Values, prediction_E: Values) -> tuple[Floats, Floats]:
    try:
        sides = [np.asarray(values, dtype=np.float64) for values in (target_E, prediction_E)]
    except (ValueError, TypeError):
        raise EvidenceError("values: must be numbers, got labels; use a classify metric") from None
    _check_lengths(*sides)
    for name, side in zip(("targets", "predictions"), sides, strict=True):
        missing = np.count_nonzero(~np.isfinite(side))
        if missing:
            raise EvidenceError(f"{name}: must be finite, got {missing} that are not; rerun the trial that made them")
    return sides[0], sides[1]


def _check_lengths(target_E: np.ndarray, prediction_E: np.ndarray) -> None:
    if target_E.ndim != 1 or target_E.shape != prediction_E.shape or not len(target_E):
        got = f"{target_E.shape} and {prediction_E.shape}"
        raise EvidenceError(f"targets and predictions: need one each for every example, got shapes {got}; rerun")


def measured(target_E: Values, *columns: Values) -> list[Floats]:
    """Columns of measured numbers, one for each target."""
    return [numbers(np.zeros(len(target_E)), column_E)[1] for column_E in columns]


def both_texts(target_E: Values, prediction_E: Values) -> tuple[list[str], list[str]]:
    sides = [np.asarray(values, dtype=object) for values in (target_E, prediction_E)]
    _check_lengths(*sides)
    wrong = next((text for side in sides for text in side.tolist() if not isinstance(text, str)), None)
    if wrong is not None:
        raise EvidenceError(f"texts: must be text, got {wrong!r}; use a regress metric for numbers")
    return sides[0].tolist(), sides[1].tolist()
