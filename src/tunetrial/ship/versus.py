"""Two versions held against each other: on the same items beforehand, and by logged outcomes while both serve."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tunetrial.analysis import sequential
from tunetrial.analysis.versions import ItemScores, compare_on_items
from tunetrial.core.errors import DataError, EvidenceError
from tunetrial.core.evidence import Comparison, Words
from tunetrial.core.records import Record, digest
from tunetrial.ship.versions import Version
from tunetrial.store import TestLedger, home

LEVEL = 0.95
SCORES = "scores.parquet"
_COLUMNS = ("example_id", "cluster", "split", "target", "score")


class Offline(Record):
    """A paired comparison of two versions. `times_compared` counts openings of these items, this one included."""

    name: str
    reference: int
    candidate: int
    comparison: Comparison
    items: str
    times_compared: int


class Seen(Record):
    """How many outcomes of a version were logged, and their mean."""

    version: int
    outcomes: int
    mean: float


class Online(Record):
    """What pairs of logged outcomes say of candidate minus reference, at whatever moment one looks.

    `stop` is whether nothing more need be logged, `settled_at` after how many outcomes of both that was so first.
    """

    name: str
    reference: Seen
    candidate: Seen
    pairs: int
    effect: float
    low: float
    high: float
    level: float
    margin: float
    words: Words
    stop: bool
    settled_at: int | None
    why: str
    other_outcomes: int


def offline(reference: Version, candidate: Version, files: tuple[Path, Path] | None, *, margin: float) -> Offline:
    """Compare two versions by the score of each test item, `scores.parquet` as studies keep it, and count the look.

    Args:
        files: The tables of reference and candidate; if None those within the versions.
        margin: Smallest difference that matters, in units of the scores.
    Raises:
        EvidenceError: A version has no scores, or the items are not the same.
        DataError: A file is no table of scores.
    """
    names = tuple(f"{one.name}@{one.version}" for one in (reference, candidate))
    paths = files or tuple(own_scores(one) for one in (reference, candidate))
    about = {"task": reference.name, "study": candidate.shipped.study}
    comparison, items, count = compare_tables(paths, names, margin=margin, **about)
    return Offline(
        name=reference.name,
        reference=reference.version,
        candidate=candidate.version,
        comparison=comparison,
        items=items,
        times_compared=count,
    )


def compare_tables(
    paths: tuple[Path, Path], names: tuple[str, str], *, task: str, study: str, margin: float
) -> tuple[Comparison, str, int]:
    """Compare two tables of scores, reference and candidate by these names, and count the look as one of this study.

    Returns:
        The comparison, the digest of the items, and how many comparisons on them there were, this one included.
    Raises:
        EvidenceError, DataError: As `offline`.
    """
    (own, own_items), (other, other_items) = (_read_scores(path) for path in paths)
    if changed := sorted(one for one in own_items.keys() & other_items.keys() if own_items[one] != other_items[one]):
        got = f"got other ones of {len(changed)} items, the first {changed[0]!r:.60}"
        raise EvidenceError(f"items: targets must be the same for both versions, {got}; score both on one set")
    comparison = compare_on_items(own, other, names=names, task=task, margin=margin, level=LEVEL)
    items = digest(sorted(own_items.items()))
    ledger, what = TestLedger(home()), f"{names[1]} against {names[0]}"
    if not any((one.study_digest, one.what) == (study, what) for one in ledger.openings(items)):
        ledger.note(items, study, what)
    return comparison, items, ledger.count(items)


def online(reference: Version, candidate: Version, log: Path, *, bounds: tuple[float, float], margin: float) -> Online:
    """Judge two versions by a log of outcomes, a JSON object a line: `{"version": 3, "outcome": 1}`, higher is better.

    It may be asked as often as one likes while the log grows; a last line that is still being written is left out.

    Raises:
        DataError: A line is not such an object, with its number.
        EvidenceError: A version has no outcomes, or one lies outside the bounds.
    """
    rows = list(_read_outcomes(log, bounds))
    own = {
        one.version: [outcome for version, outcome in rows if version == one.version] for one in (reference, candidate)
    }
    for version, outcomes in own.items():
        if not outcomes:
            raise EvidenceError(f"{log}: version {version} has no outcomes yet, got {len(rows)} in all; log both")
    kept = [(version == candidate.version, outcome) for version, outcome in rows if version in own]
    of_candidate_T, outcome_T = (np.array(column) for column in zip(*kept, strict=True))
    found = sequential.monitor(of_candidate_T, outcome_T, bounds=bounds, margin=margin, level=LEVEL)
    seen = [Seen(version=version, outcomes=len(one), mean=float(np.mean(one))) for version, one in own.items()]
    return Online(
        name=reference.name,
        reference=seen[0],
        candidate=seen[1],
        pairs=found.pairs,
        effect=found.effect,
        low=found.low,
        high=found.high,
        level=LEVEL,
        margin=margin,
        words=found.words,
        stop=found.settled_at is not None or found.contradicts,
        settled_at=found.settled_at,
        why=_why(found, margin),
        other_outcomes=len(rows) - len(kept),
    )


def _why(found: sequential.Monitoring, margin: float) -> str:
    if found.contradicts:
        return "the bounds contradict each other: the difference changed while it was logged"
    if found.settled_at is None:
        return f"the interval holds 0 and reaches beyond {margin:g} on one side or both"
    where = "above 0" if found.low > 0 else "below 0" if found.high < 0 else f"within {margin:g} of 0"
    return f"the interval lies {where}; it could be stopped after outcome {found.settled_at}"


def own_scores(version: Version) -> Path:
    """The table of scores within a version; raises EvidenceError where it has none."""
    if not any(one.path == SCORES for one in version.files):
        got, remedy = f"got no {SCORES} in it", "name both tables with --scores A.parquet,B.parquet"
        raise EvidenceError(f"{version.name}@{version.version}: has no scores of its own, {got}; {remedy}")
    return version.folder / SCORES


def _read_scores(path: Path) -> tuple[ItemScores, dict[str, str]]:
    """The scores of the test rows of a table, and each item's target in words."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns = parquet.ParquetFile(path).read().to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a table of scores, got {str(error)[:80]}; name a scores.parquet") from None
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise DataError(f"{path}: not a table of scores, got no column {missing[0]!r}; name a scores.parquet")
    rows = [row for row, split in enumerate(columns["split"]) if split == "test"]
    if not rows:
        splits = sorted({str(one)[:40] for one in columns["split"]})
        raise EvidenceError(f"{path}: no test rows, got {', '.join(splits) or 'none at all'}; name scores of finals")
    ids, clusters, targets, scores = ([columns[name][row] for row in rows] for name in _COLUMNS if name != "split")
    if None in scores or not all(isinstance(one, float | int) for one in scores):
        raise EvidenceError(f"{path}: score: a number for each test row, got one without; score the items again")
    items = dict(zip(map(str, ids), map(repr, targets), strict=True))
    return ItemScores(tuple(map(str, ids)), tuple(map(str, clusters)), np.array(scores, dtype=np.float64)), items


def _read_outcomes(path: Path, bounds: tuple[float, float]) -> Iterator[tuple[int, float]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read, got {error.strerror}; name a log of outcomes") from None
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):  # without its newline: still being written
                return
            raise DataError(f"{path}:{number}: not JSON, got {ascii(line[:40])[1:]}; mend the line") from None
        yield _outcome(row, f"{path}:{number}", bounds)


def _outcome(row: object, where: str, bounds: tuple[float, float]) -> tuple[int, float]:
    example = '{"version": 3, "outcome": 1}'
    if not isinstance(row, dict) or not {"version", "outcome"} <= row.keys():
        raise DataError(f"{where}: not an outcome, got {ascii(row)[:60]}; write {example}")
    version, outcome = row["version"], row["outcome"]
    if type(version) is not int:
        raise DataError(f"{where}: version: must be a whole number, got {ascii(version)[:60]}; write {example}")
    if type(outcome) not in (int, float) or not math.isfinite(outcome):
        raise DataError(f"{where}: outcome: must be a number, got {ascii(outcome)[:60]}; write {example}")
    if not bounds[0] <= outcome <= bounds[1]:
        stated = f"must lie between {bounds[0]:g} and {bounds[1]:g}, got {outcome:g}"
        raise EvidenceError(f"{where}: outcome: {stated}; state bounds that hold for all with --bounds LOW,HIGH")
    return version, float(outcome)
