"""Sheets for people to fill in: a JSONL or CSV file without arms' names, and a key that is kept apart from it.

A sheet has a row for each pair in each order (or each answer to be rated), shuffled by a seed. In `better` goes 1, 2,
or 0 for neither; in `rating` a whole number from 1 to 10; a row may stay empty. Nothing else may change: the key holds
the digest of what was shown. In CSV a text that a spreadsheet would take for a formula has an apostrophe before it.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial.analysis.preferences import Vote
from tunetrial.analysis.ratings import Rating
from tunetrial.core import files as whole_files
from tunetrial.core.errors import ConfigError, DataError
from tunetrial.core.records import digest
from tunetrial.rating.items import Item, pairs, singles
from tunetrial.tasks import files
from tunetrial.tasks.files import Row, short

FORMULA = ("=", "+", "-", "@", "\t", "\r")
WINNERS = {"0": "tie", "1": "first", "2": "second"}


@dataclass(frozen=True)
class Filled:
    """What a rater filled in; `blank` counts rows left empty, and rows of pairs of which the other order was."""

    votes: tuple[Vote, ...] = ()
    ratings: tuple[Rating, ...] = ()
    blank: int = 0


def write_pairs(items: Sequence[Item], sheet: Path, key: Path, *, seed: int) -> int:
    """Write a sheet of pairs in both orders, and its key; returns how many rows there are to fill in.

    Pairs of one text are not asked about: the key alone has them, and they come back as ties.
    Raises:
        ConfigError: Sheet and key would lie in one folder, or the sheet's name ends in neither .csv nor .jsonl.
        DataError: As `items.pairs`.
    """
    rows, keys = [], []
    for pair in pairs(items, seed):
        named = {"item": pair.item.id, "seed": pair.item.seed, "first": pair.first, "second": pair.second}
        if pair.same:
            keys.append(named | {"number": None})
            continue
        shown = {"request": pair.item.prompt, "answer_1": pair.texts[0], "answer_2": pair.texts[1]}
        rows.append({"number": len(rows) + 1, **shown, "better": ""})
        keys.append(named | {"number": len(rows), "shown": _seal(shown)})
    _write(rows, keys, sheet, key)
    return len(rows)


def write_ratings(items: Sequence[Item], sheet: Path, key: Path, *, seed: int) -> int:
    """Write a sheet of single answers to be rated, and its key; returns and raises as `write_pairs`."""
    rows, keys = [], []
    for item, arm in singles(items, seed):
        shown = {"request": item.prompt, "answer": item.answers[arm]}
        rows.append({"number": len(rows) + 1, **shown, "rating": ""})
        keys.append({"item": item.id, "seed": item.seed, "arm": arm, "number": len(rows), "shown": _seal(shown)})
    _write(rows, keys, sheet, key)
    return len(rows)


def read(sheet: Path, key: Path, *, rater: str) -> Filled:
    """Read what a rater filled in.

    Raises:
        DataError: Rows are missing, altered, or filled in with anything else; the message shows the first by number.
    """
    keys = [row.fields for row in files.read(key, key.name)]
    rows = {str(row.fields.get("number")): row for row in files.read(sheet, sheet.name)}
    votes, ratings, torn, faults = [], [], set(), []
    for entry in keys:
        where = entry["item"], entry["seed"], frozenset((entry.get("first"), entry.get("second")))
        try:
            said = "0" if entry["number"] is None else _filled(rows.get(str(entry["number"])), entry)
        except DataError as fault:
            faults.append(str(fault))
            continue
        if not said:
            torn.add(where)
        elif "arm" in entry:
            of = {"item": entry["item"], "arm": entry["arm"], "seed": entry["seed"]}
            ratings.append(Rating(**of, points=int(said), rater=rater, blind=True))
        else:
            of = {name: entry[name] for name in ("item", "first", "second", "seed")}
            votes.append((where, Vote(**of, winner=WINNERS[said], rater=rater, blind=True)))
    files.refuse(sheet.name, faults, of=len(keys))
    kept = tuple(vote for where, vote in votes if where not in torn)
    asked = sum(entry["number"] is not None for entry in keys)
    answered = len(ratings) + sum(where not in torn for where, _ in votes) - (len(keys) - asked)
    return Filled(votes=kept, ratings=tuple(ratings), blank=asked - answered)


def _filled(row: Row | None, entry: dict) -> str:
    """What stands in the row's last column, "" if nothing does."""
    if row is None:
        raise DataError(f"number {entry['number']} is missing")
    shown = ("request", "answer") if "arm" in entry else ("request", "answer_1", "answer_2")
    if _seal({name: row.fields.get(name) for name in shown}) != entry["shown"]:
        raise DataError(f"{row.where}: its texts are not those that were handed out")
    name = "rating" if "arm" in entry else "better"
    value = row.fields.get(name)
    said = "" if value is None else str(value).strip()
    fit = {str(points) for points in range(1, 11)} if "arm" in entry else set(WINNERS)
    if said and said not in fit:
        raise DataError(f"{row.where}: {name} must be {' or '.join(sorted(fit, key=int))}, got {short(value)}")
    return said


def _seal(shown: dict) -> str:
    """Digest of the texts, without the differences in white space and apostrophes that spreadsheets make."""
    return digest([" ".join(str(text).removeprefix("'").split()) for text in shown.values()])


def _write(rows: Sequence[dict], keys: Sequence[dict], sheet: Path, key: Path) -> None:
    if sheet.resolve().parent == key.resolve().parent:
        raise ConfigError(f"{key}: the key must lie apart from the sheet, got one folder; name another")
    if sheet.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{sheet}: unknown kind of sheet, got ending {sheet.suffix!r}; use .csv or .jsonl")
    if not rows:
        raise DataError(f"{sheet}: nothing to ask, got {len(keys)} pairs of one text each; compare arms that differ")
    for path in (sheet, key):
        path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write(sheet, _csv(rows) if sheet.suffix == ".csv" else _jsonl(rows))
    whole_files.write(key, _jsonl(keys))


def _jsonl(rows: Sequence[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[dict]) -> bytes:
    """With the mark by which spreadsheets know UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return text.getvalue().encode("utf-8-sig")


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
