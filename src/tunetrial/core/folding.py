"""Few rows used more than once: folds, each of which is a task with rows of its own."""

import re

from pydantic import Field

from tunetrial.core.records import Record


class Folding(Record):
    """How few rows are used more than once: cut into folds, each the test of a model of the others, so many times."""

    folds: int = Field(ge=2)
    repeats: int = Field(ge=1)

    @property
    def splits(self) -> int:
        """Pairs of training and test rows in all."""
        return self.folds * self.repeats

    def __str__(self) -> str:
        return f"{self.folds} folds × {self.repeats} repeat{'' if self.repeats == 1 else 's'}"


def fold_name(task: str, repeat: int, fold: int) -> str:
    """The name under which one fold of one repeat, both from 1, is a task with rows of its own."""
    return f"{task}#{repeat}.{fold}"


def whole(task: str) -> str:
    """The task of a study that a fold belongs to; any other task is its own."""
    return re.sub(r"#\d+\.\d+$", "", task) if "#" in task else task
