"""Scores of test items that travel with a version: cut out of a trial's table, and read again to be compared. No torch.

They are of the run as it was trained, whatever format ships: merging and fewer bits change answers, which the fidelity
chain measures and these scores do not.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from tunetrial.analysis.versions import ItemScores
from tunetrial.core import manifest
from tunetrial.core.errors import DataError, EvidenceError, IntegrityError

NAME = "scores.parquet"
COLUMNS = ("example_id", "cluster", "split", "target", "score")


def keep(trial: Path, folder: Path) -> bool:
    """Write the test rows of a finished trial's scores into `folder`, ids, targets and scores alone; returns whether it
    has any. Prompts and answers stay where they are.

    Raises:
        IntegrityError: The table is not that of the trial's manifest.
    """
    import pyarrow.compute as pc
    from pyarrow import parquet

    path = trial / NAME
    try:
        content, (expected, _) = path.read_bytes(), manifest.read_manifest(trial, [NAME])[NAME]
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read, got {error.strerror}; restore the file") from None
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise IntegrityError(f"{path}: expected SHA-256 {expected}, got {found}; restore the file")
    table = parquet.read_table(io.BytesIO(content), columns=list(COLUMNS))
    tested = table.filter(pc.equal(table["split"], "test"))
    there = tested.num_rows > 0 and tested["score"].null_count == 0
    if there:
        parquet.write_table(tested, folder / NAME)
    return there


def read(path: Path) -> tuple[ItemScores, dict[str, str]]:
    """The scores of the test rows of a table, and each item's target in words.

    Raises:
        DataError: The file is no table of scores.
        EvidenceError: It has no test rows, or one without a score.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns = parquet.ParquetFile(path).read().to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a table of scores, got {str(error)[:80]}; name a scores.parquet") from None
    if missing := [name for name in COLUMNS if name not in columns]:
        raise DataError(f"{path}: not a table of scores, got no column {missing[0]!r}; name a scores.parquet")
    rows = [row for row, split in enumerate(columns["split"]) if split == "test"]
    if not rows:
        splits = sorted({str(one)[:40] for one in columns["split"]})
        raise EvidenceError(f"{path}: no test rows, got {', '.join(splits) or 'none at all'}; name scores of finals")
    ids, clusters, targets, scores = ([columns[name][row] for row in rows] for name in COLUMNS if name != "split")
    if None in scores or not all(isinstance(one, float | int) for one in scores):
        raise EvidenceError(f"{path}: score: a number for each test row, got one without; score the items again")
    items = dict(zip(map(str, ids), map(repr, targets), strict=True))
    return ItemScores(tuple(map(str, ids)), tuple(map(str, clusters)), np.array(scores, dtype=np.float64)), items
