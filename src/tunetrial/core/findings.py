"""What studies find out besides the verdict: a record each, in which nothing decides."""

from typing import Literal

from tunetrial.core.records import Record


class Repeats(Record):
    """How far one arm's answers to a task's test rows change with the seed alone.

    `same` is, with its ends at `level`, the share of rows that two seeds answer alike, or of numbers the standard
    deviation between seeds on a row, in units of the target. `beyond_chance` is Krippendorff's alpha of labels and
    texts, of numbers ICC(2,1); `churn` the share of rows that the arm and its reference answer differently at the same
    seed. Each is None, or an end is, where it is not defined.
    """

    task: str
    arm: str
    measure: Literal["agreement", "SD between seeds"]
    same: tuple[float, float | None, float | None]
    beyond_chance: tuple[float, float | None, float | None] | None
    churn: tuple[float, float | None, float | None] | None
    level: float
    seeds: int
    examples: int
