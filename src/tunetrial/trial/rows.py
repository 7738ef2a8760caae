"""The rows of a study's tasks: as loaded, with the test rows under each variant, and those that every base can read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunetrial import tasks
from tunetrial.core.errors import DataError
from tunetrial.core.evidence import TaskData
from tunetrial.core.pins import VARIANT
from tunetrial.core.study import Study, TaskSpec

OVER_LONG_SHARE = 0.1


def load(study: Study, root: Path) -> dict[str, TaskData]:
    """Every task's rows, by its name; the test rows as they are, and under each variant that the task asks for.

    Raises:
        DataError: Rows cannot be used, or a variant does not apply to them, or changes none.
    """
    found = {}
    for spec in study.tasks:
        data = tasks.load(spec, root, folds=study.folds)
        found[spec.name] = _varied(spec, data, root, study.seed) if spec.variants else data
    return found


def _varied(spec: TaskSpec, data: TaskData, root: Path, seed: int) -> TaskData:
    if data.folds:
        raise DataError(
            f"{spec.name}: variants are of test rows that all finals share, got {len(data.splits['all'])} rows cut "
            f"into {data.folds} folds; name a test file, write replicates: {{folds: none}}, or remove variants"
        )
    made = tasks.vary(spec, data, root, "test", spec.variants, seed=seed)
    remarks = [f"{VARIANT}{name}: {one.changed} of {len(one.examples)} inputs changed" for name, one in made.items()]
    idle = [name for name, one in made.items() if not one.changed]
    if idle:
        rows = len(data.splits["test"])
        raise DataError(f"{spec.name}: variant {idle[0]} changes no input, got 0 of {rows} test rows; remove it")
    splits = {f"{VARIANT}{name}": one.examples for name, one in made.items()}
    return replace(data, splits={**data.splits, **splits}, remarks=(*data.remarks, *remarks))


def fitting(
    data: TaskData, lengths: Mapping[str, Mapping[str, list[int]]], limits: Mapping[str, int], max_tokens: int
) -> tuple[TaskData, dict[str, tuple[int, ...]]]:
    """Leave out the rows that are too long for any base: positions beyond its context are none that it was made for.

    A test row that is too long under any variant is left out under all of them and as it is. `lengths` are the tokens
    of each row by base and split, `limits` the most of each base. Returns besides, by base, the tokens of each training
    row that is kept; of each row, of a task in folds.

    Raises:
        DataError: More than 10 % of the rows of a split are too long.
    """
    kept: dict[str, list[int]] = {}
    remarks = list(data.remarks)
    for split, rows in data.splits.items():
        kept[split] = list(range(len(rows)))
        for base, limit in limits.items():
            tokens, before = lengths[base][split], len(kept[split])
            kept[split] = [row for row in kept[split] if tokens[row] <= limit]
            left, whose = len(rows) - len(kept[split]), "" if len(limits) == 1 else f" under {base}"
            if left > OVER_LONG_SHARE * len(rows):
                got = f"{left} of {len(rows)} above {limit} tokens{whose} (longest {max(tokens)})"
                raise _too_long(f"{data.name}: {split}", got, within=limit == max_tokens)
            if len(kept[split]) < before:
                of_what = "" if limit == max_tokens else "the base's context of "
                left = f"{before - len(kept[split])} of {len(rows)} rows left out"
                remarks.append(f"{split}: {left}: longer than {of_what}{limit} tokens{whose}")
    together = [split for split in kept if split == "test" or split.startswith(VARIANT)]
    shared = sorted(set.intersection(*(set(kept[split]) for split in together))) if together else []
    if together and len(shared) < len(kept["test"]):
        rows, left = len(data.splits["test"]), len(kept["test"]) - len(shared)
        if rows - len(shared) > OVER_LONG_SHARE * rows:
            got = f"{rows - len(shared)} of {rows} too long as they are or under a variant"
            raise _too_long(f"{data.name}: test", got, within=True)
        remarks.append(f"test: {left} more rows left out: too long under a variant, so under none")
    kept |= dict.fromkeys(together, shared)
    splits = {split: tuple(rows[row] for row in kept[split]) for split, rows in data.splits.items()}
    learned = next(split for split in kept if split in ("train", "all"))
    counted = {base: tuple(lengths[base][learned][row] for row in kept[learned]) for base in limits}
    return replace(data, splits=splits, remarks=tuple(remarks)), counted


def _too_long(where: str, got: str, *, within: bool) -> DataError:
    name = "max_tokens" if within else "the base's context"
    remedy = "raise max_tokens or shorten the input" if within else "shorten the input or use another base"
    return DataError(f"{where}: more than 10 % of the rows are longer than {name}, got {got}; {remedy}")
