"""What a study may ask besides its question: one arm at parts of its training rows and at several ranks."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Self, TypeVar

from pydantic import Field, model_validator

from tunetrial.core.records import Record

FEWEST_RUNGS = 3
_ROWS, _RANK, _SCOUT = "@rows=", "@rank=", "@scout"
_RUNG = re.compile(rf"({_ROWS}[0-9.e-]+|{_RANK}([0-9]+)|{_SCOUT})\Z")
Value = TypeVar("Value")


class Ladder(Record):
    """What a study asks about more rows, more rank and full fine-tuning, on the task that decides.

    `rows` are shares of the training rows, nested; `ranks` those of `arm`, its own among them. `label_usd` is the price
    of a labelled row, `margin_usd` what a gain of one margin is worth to the user: both are the user's to say, and
    without them nothing is priced or advised.
    """

    arm: str
    rows: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    label_usd: float | None = Field(default=None, ge=0)
    margin_usd: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        for name, rungs in (("rows", self.rows), ("ranks", self.ranks)):
            if rungs and not all(a < b for a, b in pairwise((0, *rungs))):
                raise ValueError(f"{name}: must rise from above 0, got {list(rungs)}; write the smallest first")
            if rungs and len(rungs) < FEWEST_RUNGS:
                raise ValueError(f"{name}: needs {FEWEST_RUNGS} or more rungs, got {list(rungs)}; add one below")
        if self.rows and self.rows[-1] != 1:
            raise ValueError(f"rows: must end with 1, all rows, got {list(self.rows)}; the finals are that rung")
        return self

    @property
    def further(self) -> int:
        """How many rungs it has besides the arm as it is, which the finals show."""
        return sum(len(rungs) - 1 for rungs in (self.rows, self.ranks) if rungs)


def rows_rung(task: str, share: float) -> str:
    """The name under which a task with so much of its training rows is carried out."""
    return task if share == 1 else f"{task}{_ROWS}{share:g}"


def rank_rung(task: str, rank: int, own: int) -> str:
    """The name under which a task is carried out by an arm at another rank than its own."""
    return task if rank == own else f"{task}{_RANK}{rank}"


def scouted(task: str) -> str:
    """The name under which a task is carried out by an arm that is only tried (`core.strategy`)."""
    return f"{task}{_SCOUT}"


def rungs(ladder: Ladder, task: str, own_rank: int | None) -> tuple[str, ...]:
    """The names of all rungs but the arm as it is: parts of the rows, then ranks, the smallest first."""
    names = [rows_rung(task, share) for share in ladder.rows]
    names += [rank_rung(task, rank, own_rank) for rank in ladder.ranks]
    return tuple(name for name in names if name != task)


def grounded(task: str) -> str:
    """The task that a rung, or the trying of an arm, is of; any other is its own."""
    return _RUNG.sub("", task) if "@" in task else task


def on_rung(settings: Mapping[str, Value], task: str) -> dict[str, Value]:
    """An arm's settings on a rung: at another rank, alpha goes with it so that the scale of the update, and hence the
    rate, stays (with rsLoRA as the root of the rank)."""
    found = _RUNG.search(task)
    if found is None or found[2] is None:
        return dict(settings)
    rank, own = int(found[2]), settings["rank"]
    power = 0.5 if settings.get("rslora") else 1.0
    return {**settings, "rank": rank, "alpha": settings["alpha"] * (rank / own) ** power}
