"""Scores as a Parquet table, one row an example: what every paired test and later audit needs."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tunetrial.core.errors import EvidenceError, IntegrityError
from tunetrial.core.evidence import Scores
from tunetrial.core.records import digest


def scores_digest(scores: Mapping[str, Scores]) -> str:
    """SHA-256 over the scores of all splits, independent of file format."""
    return digest({split: one.digest for split, one in scores.items()})


def settle(scores: Mapping[str, Scores], where: str) -> dict[str, Scores]:
    """Bring scores to the types in which they are kept: labels and texts as objects, numbers and what was measured as
    float64.

    Raises:
        EvidenceError: The arrays of a split differ in length, or a value is not finite, or neither text nor number.
    """
    return {split: _settle(one, f"{where}: {split} scores") for split, one in sorted(scores.items())}


def to_parquet(scores: Mapping[str, Scores], contributions: Mapping[str, np.ndarray]) -> bytes:
    """Write settled scores as one table; `score` is each example's contribution to the metric, empty if not given.

    What was measured has columns of its own after these, `measured.nll` and the like.

    Raises:
        EvidenceError: Some splits hold labels and others numbers, or contributions differ in length.
    """
    import pyarrow as pa
    from pyarrow import parquet

    extra = sorted({name for one in scores.values() for name in one.measured})
    names = [*_COLUMNS, *(f"{_MEASURED}{name}" for name in extra)]
    columns: dict[str, list] = {name: [] for name in names}
    for split, one in scores.items():
        n = len(one.example_id_E)
        given = contributions.get(split)
        rows = (one.example_id_E, one.cluster_E, [split] * n, one.prediction_E, one.target_E)
        measured = (one.measured.get(name, [None] * n) for name in extra)
        for name, values in zip(names, (*rows, [None] * n if given is None else given, *measured), strict=True):
            if len(values) != n:
                raise EvidenceError(f"{split} scores: {n} examples, got {len(values)} of {name}; give one for each")
            columns[name].extend(values.tolist() if isinstance(values, np.ndarray) else values)
    kinds = {one.target_E.dtype for one in scores.values()}
    if len(kinds) > 1:
        raise EvidenceError(f"scores: one kind for all splits, got {sorted(map(str, kinds))}; score splits alike")
    value = pa.float64() if kinds == {np.dtype(np.float64)} else pa.string()
    types = {**dict.fromkeys(_COLUMNS, pa.string()), "prediction": value, "target": value, "score": pa.float64()}
    try:
        table = pa.table({name: pa.array(columns[name], types.get(name, pa.float64())) for name in names})
    except UnicodeEncodeError as error:
        raise EvidenceError(f"scores: not valid Unicode, got {error.object[:40]!r}; mend the data") from None
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def read_parquet(path: Path, expected: str) -> dict[str, Scores]:
    """Read scores by split and check their digest.

    Raises:
        IntegrityError: The file is no such table, or its content has another digest than `expected`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns = parquet.ParquetFile(path).read().to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: not a table of scores, got {error!r}; restore it") from None
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise IntegrityError(f"{path}: not a table of scores, got no column {missing[0]!r}; restore it")
    rows_of: dict[str, list[int]] = {}
    for row, split in enumerate(columns["split"]):
        rows_of.setdefault(split, []).append(row)
    scores = {split: _pick(columns, rows) for split, rows in rows_of.items()}
    found = scores_digest(scores)
    if found != expected:
        raise IntegrityError(f"{path}: expected scores with SHA-256 {expected}, got SHA-256 {found}; restore it")
    return scores


_COLUMNS = ["example_id", "cluster", "split", "prediction", "target", "score"]
_MEASURED = "measured."


def _pick(columns: Mapping[str, list], rows: list[int]) -> Scores:
    ids, clusters, targets, predictions = (
        [columns[name][row] for row in rows] for name in ("example_id", "cluster", "target", "prediction")
    )
    measured = {
        name.removeprefix(_MEASURED): np.array([values[row] for row in rows])
        for name, values in columns.items()
        if name.startswith(_MEASURED) and values[rows[0]] is not None
    }
    return Scores(tuple(ids), tuple(clusters), _values(targets), _values(predictions), measured)


def _values(values: list) -> np.ndarray:
    return np.array(values, dtype=np.float64 if isinstance(values[0], float) else object)


def _settle(scores: Scores, where: str) -> Scores:
    arrays = []
    for name, values in (("target", scores.target_E), ("prediction", scores.prediction_E)):
        kind = np.asarray(values).dtype.kind
        text = kind == "U" or (kind == "O" and all(isinstance(value, str) for value in values))
        if not text and kind not in "iuf":
            raise EvidenceError(f"{where}: {name} must be labels or numbers, got {values[:3]!r}; predict again")
        settled = np.array(values, dtype=object if text else np.float64)
        if not text and not np.isfinite(settled).all():
            raise EvidenceError(
                f"{where}: {name} must be finite, got {settled[~np.isfinite(settled)][0]}; see the model"
            )
        arrays.append(settled)
    lengths = {len(scores.example_id_E), len(scores.cluster_E), *(len(values) for values in arrays)}
    if len(lengths) > 1 or 0 in lengths:
        raise EvidenceError(
            f"{where}: one value for each of 1 or more examples, got lengths {sorted(lengths)}; score again"
        )
    if arrays[0].dtype != arrays[1].dtype:
        raise EvidenceError(
            f"{where}: targets and predictions must be of one kind, got labels and numbers; score again"
        )
    measured = {name: _settle_measured(values, name, arrays[0], where) for name, values in scores.measured.items()}
    return Scores(tuple(scores.example_id_E), tuple(scores.cluster_E), *arrays, measured)


def _settle_measured(values: np.ndarray, name: str, target_E: np.ndarray, where: str) -> np.ndarray:
    settled = np.asarray(values)
    if settled.dtype.kind not in "biuf" or settled.shape != target_E.shape or not np.isfinite(settled).all():
        raise EvidenceError(f"{where}: {name} needs a finite number for each example, got {settled!r:.80}; score again")
    return settled.astype(np.float64)
