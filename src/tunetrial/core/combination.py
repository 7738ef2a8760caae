"""One adapter for several tasks: how it is made of others, and what was found of it."""

from typing import Literal

from pydantic import Field

from tunetrial.core.evidence import Comparison
from tunetrial.core.records import Record

How = Literal["weighted", "ties", "dare", "sequential", "joint"]
HOWS: tuple[How, ...] = ("weighted", "ties", "dare", "sequential", "joint")
TRAINED: tuple[How, ...] = ("sequential", "joint")


class Recipe(Record):
    """How adapters are combined.

    `density` is the share of entries that TIES and DARE keep, `rank` that of the combination; without one it is the sum
    of the adapters' ranks. "sequential" and "joint" are trained, at the arm's own rank, and have neither.
    """

    how: How
    density: float = Field(default=0.5, gt=0, le=1)
    rank: int | None = Field(default=None, ge=1)

    def __str__(self) -> str:
        density = f" density {self.density:g}" if self.how in ("ties", "dare") else ""
        rank = f" rank {self.rank}" if self.rank and self.how not in TRAINED else ""
        return f"{self.how}{density}{rank}"


class Setting(Record):
    """One point of the grid that is chosen from on validation rows: the share of each task's adapter, and the factor of
    the whole; of what is trained, its learning rates by task."""

    shares: dict[str, float] = {}
    scale: float = 1.0
    rates: dict[str, float] = {}


class Tried(Record):
    """A setting and the mean over tasks of the share of the single adapters' gain over the untuned base that it keeps
    on validation rows, means over seeds; `kept` is by task. None where a metric was not defined on its answers."""

    setting: Setting
    kept: dict[str, float] | None
    mean: float | None


class Made(Record):
    """A combination that was chosen: by which setting out of how many, and what it took.

    `left_out` is how much of the update was cut off to be of its rank, the largest over seeds: a Frobenius norm,
    relative to the whole. `made_s` are the seconds in which adapters were combined or trained, `chosen_s` those in
    which validation rows were answered; all seeds and settings together.
    """

    recipe: Recipe
    chosen: Tried
    tried: tuple[Tried, ...]
    rank: int
    left_out: float
    made_s: float
    chosen_s: float


class Stored(Record):
    """What serves all tasks: how many artifacts of how many bytes, and the seconds of training that they took, one seed
    of each; these are None where that was not measured. The base is not counted but where it is in the artifacts."""

    name: str
    artifacts: int
    artifact_bytes: int
    train_s: float | None


class Combination(Record):
    """What was found: test scores by task and model, in units of the metric, means over seeds; comparisons of each
    combination with the others; what each takes. `written` is the combination in the folder, of the run with `seed`.
    """

    arm: str
    seeds: tuple[int, ...]
    metrics: dict[str, str]
    made: tuple[Made, ...]
    scores: dict[str, dict[str, float]]
    comparisons: tuple[Comparison, ...]
    stored: tuple[Stored, ...]
    written: How
    seed: int
    openings: dict[str, int]

    def of(self, how: How) -> Made:
        return next(one for one in self.made if one.recipe.how == how)


def called(arm: str, how: How) -> str:
    """The name of a combination beside arms, whose names have no spaces."""
    return f"{arm} {how}"


def shares_to_try(tasks: tuple[str, ...]) -> list[dict[str, float]]:
    """Equal shares first, then twice the share for one of the tasks: as many as there are tasks, and one."""
    found = []
    for favoured in (None, *tasks):
        parts = {name: 2.0 if name == favoured else 1.0 for name in tasks}
        found.append({name: part / sum(parts.values()) for name, part in parts.items()})
    return found


def scales_to_try(count: int) -> tuple[float, ...]:
    """The factors of the whole for so many tasks: once (a mean), half-way, and as often as there are tasks (a sum)."""
    return 1.0, (1 + count) / 2, float(count)
