"""Tasks: pinned rows, the prompt, and what is measured by which margin. One file a built-in task.

    from tunetrial import tasks
    data = tasks.load(tasks.built_in("newsletter"), Path.cwd())   # or the TaskSpec of one's own files
    data.splits["train"][0].prompt, data.remarks

A task of one's own needs no code: its study names a JSONL, CSV or Parquet file, the template of the prompt and the
field of the target. To add a built-in task:

1. Put `train.jsonl`, `validation.jsonl`, `test.jsonl` and a card `README.md` into `embedded/<name>/`, one object a
   line with `id`, a cluster field such as `sender` that never stands in two splits, and the target; seal them with
   `core.manifest.write_manifest`.
2. Write `tasks/<name>.py` with one `Task`: kind, prompt, target, metric, and the margin with its reason in words.
3. Add it to `BUILT_IN` below.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import TaskSpec
from tunetrial.core.variants import Variant
from tunetrial.tasks import loading, variants
from tunetrial.tasks.files import Row
from tunetrial.tasks.folds import fold
from tunetrial.tasks.glue import GLUE
from tunetrial.tasks.newsletter import NEWSLETTER
from tunetrial.tasks.plain import read_texts
from tunetrial.tasks.task import Task, read_rows, render
from tunetrial.tasks.tickets import TICKETS
from tunetrial.tasks.tickets_json import TICKETS_JSON

BUILT_IN: dict[str, Task] = {task.name: task for task in (NEWSLETTER, TICKETS, TICKETS_JSON)}

__all__ = ["BUILT_IN", "GLUE", "Task", "built_in", "find", "fold", "load", "read_rows", "read_texts", "render", "vary"]


def find(name: str) -> Task:
    """Return the built-in task of this name.

    Raises:
        DataError: There is none; the message lists those that there are.
    """
    if name not in BUILT_IN:
        raise DataError(f"task: unknown, got {name!r}; use one of {', '.join(BUILT_IN)}")
    return BUILT_IN[name]


def built_in(name: str) -> TaskSpec:
    """Return a built-in task as a study states it, with its own metric and margin.

    Raises:
        DataError: There is none.
    """
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1) or [", ".join(BUILT_IN)]
        raise DataError(f"tasks: no such built-in task, got {name!r}; use {near[0]}, or name your data")
    task = BUILT_IN[name]
    return TaskSpec(
        name=name,
        kind=task.kind,
        metric=task.metric,
        margin=task.margin,
        input=task.input,
        target=task.target,
        json_schema=task.json_schema,
        max_new_tokens=task.max_new_tokens,
        id="id",
        cluster=task.cluster,
    )


def load(spec: TaskSpec, root: Path, *, folds: str | int = "none") -> TaskData:
    """Read, check and split the rows of a task, before anything is trained.

    A built-in task (`spec.data` is None) has its pinned splits; else see `loading.assemble` on how splits are drawn and
    kept apart. What was dropped or drawn stands in `remarks`.

    Args:
        root: The folder that relative paths of `spec` start from.
        folds: As a study asks for them. A task of one file that is to be cut has its rows in one split, "all", for
            `fold` to cut.
    Raises:
        DataError: A file or row cannot be used; the message names the file, the rows and what to do.
        IntegrityError: The files of a built-in task are altered.
    """
    if spec.data is not None:
        rows_of, remarks = loading.read_files(spec, root)
        return loading.assemble(spec, rows_of, remarks, folds=folds)
    if spec.validation is not None or spec.test is not None:
        raise DataError(f"{spec.name}: without data it is built in and has its own splits; name data, or no files")
    task = find(built_in(spec.name).name)
    return loading.assemble(spec, {split: (f"{spec.name}/{split}", _rows(task, split)) for split in loading.SPLITS})


def vary(
    spec: TaskSpec, data: TaskData, root: Path, split: str, asked: Sequence[Variant], *, seed: int
) -> dict[str, variants.Varied]:
    """Give the examples of one split of a loaded task under each variant of its inputs, by the variant's name.

    Ids, clusters and targets are those of the plain examples, in their order. Same seed, same bytes.

    Args:
        data: The task as `load` or `fold` gave it.
        root: As for `load`.
        asked: `core.variants.USUAL` needs nothing of the task; templates, orders and paraphrases are its own.
    Raises:
        DataError: A variant does not apply to the task or to a row, or two have one name.
    """
    if len({variant.name for variant in asked}) < len(asked):
        names = ", ".join(variant.name for variant in asked)
        raise DataError(f"{spec.name}: variants need a name each, got {names}; rename one")
    if spec.data is None:
        origin = variants.Origin(f"{spec.name}/{split}", _rows(find(spec.name), split), root)
    else:
        rows_of, _ = loading.read_files(spec, root)
        origin = variants.Origin(*rows_of.get(split, rows_of["train"]), root)
    return {variant.name: variants.vary(spec, data, split, variant, origin, seed=seed) for variant in asked}


def _rows(task: Task, split: str) -> list[Row]:
    return [Row(number, None, fields) for number, fields in enumerate(read_rows(task, split), start=1)]
