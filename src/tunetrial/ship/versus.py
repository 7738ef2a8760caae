"""Two versions held against each other: on the same items beforehand, and by logged outcomes while both serve."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tunetrial.analysis import sequential
from tunetrial.analysis.versions import compare_on_items
from tunetrial.core.errors import DataError, EvidenceError
from tunetrial.core.evidence import Comparison, Words
from tunetrial.core.records import Record, digest
from tunetrial.ship import scores
from tunetrial.ship.versions import Version
from tunetrial.store import TestLedger, home

LEVEL = 0.95


class Offline(Record):
    """A paired comparison of two versions.

    `as_trained`: the scores are those that came with the versions, of the runs before anything was merged or quantised.
    `items` is what the test ledger counts by: the study's test rows where both versions say that theirs are of these,
    else the ids and targets compared. `times_opened` are all openings of these, by studies and comparisons, this one
    included.
    """

    name: str
    reference: int
    candidate: int
    comparison: Comparison
    as_trained: bool
    items: str
    times_opened: int


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


def offline(
    reference: Version, candidate: Version, files: tuple[Path, Path] | None, *, margin: float, level: float = LEVEL
) -> Offline:
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
    stated = {one.shipped.test_rows for one in (reference, candidate)}
    rows = stated.pop() if files is None and len(stated) == 1 else None
    about = {"task": reference.name, "study": candidate.shipped.study, "rows": rows}
    comparison, items, count = compare_tables(paths, names, margin=margin, level=level, **about)
    return Offline(
        name=reference.name,
        reference=reference.version,
        candidate=candidate.version,
        comparison=comparison,
        as_trained=files is None,
        items=items,
        times_opened=count,
    )


def compare_tables(
    paths: tuple[Path, Path],
    names: tuple[str, str],
    *,
    task: str,
    study: str,
    margin: float,
    level: float = LEVEL,
    rows: str | None = None,
) -> tuple[Comparison, str, int]:
    """Compare two tables of scores, reference and candidate by these names, and count the look as one of this study.

    Args:
        rows: The digest by which the test ledger counts; None is that of the items' ids and targets.
    Returns:
        The comparison, that digest, and how many openings there were, this one included.
    Raises:
        EvidenceError, DataError: As `offline`.
    """
    (own, own_items), (other, other_items) = (scores.read(path) for path in paths)
    if changed := sorted(one for one in own_items.keys() & other_items.keys() if own_items[one] != other_items[one]):
        got = f"got other ones of {len(changed)} items, the first {changed[0]!r:.60}"
        raise EvidenceError(f"items: targets must be the same for both versions, {got}; score both on one set")
    comparison = compare_on_items(own, other, names=names, task=task, margin=margin, level=level)
    items = rows or digest(sorted(own_items.items()))
    ledger, what = TestLedger(home()), f"{names[1]} against {names[0]}"
    if not any((one.study_digest, one.what) == (study, what) for one in ledger.openings(items)):
        ledger.note(items, study, what)
    return comparison, items, ledger.count(items)


def online(
    reference: Version,
    candidate: Version,
    log: Path,
    *,
    bounds: tuple[float, float],
    margin: float,
    level: float = LEVEL,
) -> Online:
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
    found = sequential.monitor(of_candidate_T, outcome_T, bounds=bounds, margin=margin, level=level)
    seen = [Seen(version=version, outcomes=len(one), mean=float(np.mean(one))) for version, one in own.items()]
    return Online(
        name=reference.name,
        reference=seen[0],
        candidate=seen[1],
        pairs=found.pairs,
        effect=found.effect,
        low=found.low,
        high=found.high,
        level=level,
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
    if not any(one.path == scores.NAME for one in version.files):
        got, remedy = f"got no {scores.NAME} in it", "name both tables with --scores A.parquet,B.parquet"
        raise EvidenceError(f"{version.name}@{version.version}: has no scores of its own, {got}; {remedy}")
    return version.folder / scores.NAME


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
