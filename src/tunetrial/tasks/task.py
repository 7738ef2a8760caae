"""What a task is, and how its rows are read and rendered."""

import json
from pathlib import Path
from typing import Literal

from tunetrial.core.errors import DataError
from tunetrial.core.manifest import check_manifest
from tunetrial.core.records import Record
from tunetrial.tasks import prompt


class Task(Record):
    """Pinned data, a prompt and a measure.

    `input` is a Jinja template over a row's fields, rendered in a sandbox; `target` is the field to predict, `cluster`
    the one that groups rows of one source: no two splits share a group. `margin` is the smallest difference that
    matters, in units of `metric`, set before any trial. Completions of at most `max_new_tokens` are held against
    `json_schema`, the canonical JSON of a schema.
    """

    name: str
    kind: Literal["classify", "regress", "generate"]
    folder: Path
    splits: tuple[str, ...]
    input: str
    target: str
    cluster: str
    labels: tuple[str, ...] = ()
    json_schema: str | None = None
    max_new_tokens: int = 128
    metric: str
    margin: float
    margin_reason: str


def read_rows(task: Task, split: str) -> list[dict]:
    """Read one split in its pinned order, after checking its digest.

    Raises:
        DataError: The task has no such split.
        IntegrityError: The file is missing, truncated or altered.
    """
    if split not in task.splits:
        raise DataError(f"{task.name}: no such split, got {split!r}; use one of {', '.join(task.splits)}")
    check_manifest(task.folder, [f"{split}.jsonl"])
    return [json.loads(line) for line in (task.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def render(task: Task, row: dict) -> str:
    """Render the prompt of one row, to the last newline.

    Raises:
        DataError: The row lacks a field that the template names, or has no value to print there.
    """
    try:
        return prompt.fill(task.input, row)
    except DataError as error:
        where = f"{task.name}: row {row.get('id', '?')}"
        raise DataError(f"{where}: {error}, got fields {', '.join(row)}; add the field or change the input") from None
