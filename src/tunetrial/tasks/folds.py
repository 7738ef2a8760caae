"""Folds of few rows: each row is a test row once a repeat, and training or validation row of all other folds.

Nested: the validation rows that a fold's learning rates are chosen by are drawn from the rows outside of the fold, so
nothing of its test rows touches anything that is tested on them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.records import digest
from tunetrial.core.study import TaskSpec, fold_name
from tunetrial.tasks import splits
from tunetrial.tasks.splits import Examples

FEW_ROWS = 300
FOLDS = 5
FEWEST = 2


def wanted(folds: str | int, rows: int) -> int | None:
    """Into how many folds a task of one file is cut: as asked, or 5 if there are fewer than 300 rows; None for none.

    From 300 rows on a fifth is 60 test rows, on which one split begins to show what matters, and runs begin to cost.
    """
    if folds == "auto":
        return FOLDS if rows < FEW_ROWS else None
    return None if folds == "none" else folds


def fold(data: TaskData, spec: TaskSpec, repeats: int) -> dict[str, TaskData]:
    """Cut the rows of a task (split "all") into folds, as often as said; by the name of each fold its three splits.

    Whole groups go to one fold: clusters, or equal prompts. Label by label, groups are dealt to the fold that has the
    fewest of the label, then the fewest rows, the largest first and else in the order of a digest of repeat and name:
    neither a seed nor the order of rows matters. A label of a single group is never tested, since no training row
    would have it; `remarks` of the whole say so. A fold's validation rows are a fifth of the rows outside of it.

    Raises:
        DataError: There are fewer groups than folds, or a fold leaves one label or number alone to train on.
    """
    cut = {}
    for repeat in range(1, repeats + 1):
        for number, names in enumerate(_deal(data.splits["all"], spec, data.folds, repeat), start=1):
            name = fold_name(data.name, repeat, number)
            test = tuple(e for e in data.splits["all"] if group(e, spec) in names)
            rest = tuple(e for e in data.splits["all"] if group(e, spec) not in names)
            train, validation = splits.draw(
                rest,
                splits.VALIDATION_SHARE,
                group=lambda e: group(e, spec),
                by_label=spec.kind != "generate",
                order=lambda group, name=name: digest([name, group]),
            )
            _check(spec, name, train, validation, test)
            parts = {"train": train, "validation": validation, "test": test}
            cut[name] = replace(data, name=name, splits=parts, remarks=(), folds=None)
    return cut


def group(example: Example, spec: TaskSpec) -> str:
    """What stays together: the cluster, or all rows of one prompt."""
    return splits.asked(example) if spec.cluster is None else example.cluster


def untested(examples: Sequence[Example], spec: TaskSpec) -> list[str]:
    """Labels that stand in one group alone."""
    groups: dict[str, set[str]] = {}
    for example in examples if spec.kind == "classify" else ():
        groups.setdefault(example.target, set()).add(group(example, spec))
    return sorted(label for label, names in groups.items() if len(names) == 1)


def _deal(examples: Examples, spec: TaskSpec, folds: int, repeat: int) -> list[set[str]]:
    """The names of each fold's groups."""
    members: dict[str, list[Example]] = {}
    for example in examples:
        members.setdefault(group(example, spec), []).append(example)
    alone = set(untested(examples, spec))
    free = [name for name, own in members.items() if not alone & {example.target for example in own}]
    if len(free) < folds:
        what = f"{spec.cluster} groups" if spec.cluster else "different prompts"
        raise DataError(
            f"{spec.name}: {folds} folds need as many {what} of labels that recur, got {len(free)}; add rows, or ask "
            "for fewer folds"
        )
    strata: dict[str, list[str]] = {}
    for name in sorted(free, key=lambda name: (-len(members[name]), digest([repeat, name]))):
        strata.setdefault(splits.stratum(members[name]) if spec.kind != "generate" else "", []).append(name)
    dealt, rows = [set() for _ in range(folds)], Counter()
    for label in sorted(strata):
        own = Counter()
        for name in strata[label]:
            least = min(range(folds), key=lambda k: (own[k], rows[k], k))
            dealt[least].add(name)
            own[least] += len(members[name])
            rows[least] += len(members[name])
    return dealt


def _check(spec: TaskSpec, name: str, train: Examples, validation: Examples, test: Examples) -> None:
    """What cannot be learned or judged in one fold."""
    targets, least = len({example.target for example in train}), min(len(validation), len(test))
    if targets < 2 or least < FEWEST:
        raise DataError(
            f"{spec.name}: fold {name.partition('#')[2]} is too small to learn from and to judge on, got {targets} "
            f"different targets in {len(train)} training rows, {len(validation)} validation and {len(test)} test rows; "
            "add rows, or ask for other folds"
        )
