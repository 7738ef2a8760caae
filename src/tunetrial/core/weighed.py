"""What weighing a scenario found: standings, the argument, where it flips, and what would be worth knowing."""

from typing import Literal

from tunetrial.core.findings import Ends
from tunetrial.core.owning import Owned
from tunetrial.core.records import Record
from tunetrial.core.scenario import Inputs, Scenario

Basis = Literal["measured", "estimated", "given", "opinion"]


class Flip(Record):
    """A point at which the recommendation would change: of a weight, a price or a margin."""

    what: str
    now: float
    at: float
    to: str


class Abstention(Record):
    """Why no arm is recommended; still the cheapest safe choice, what it may cost at worst, and the next spend."""

    reason: str
    safe_choice: str | None
    at_worst: str | None
    next_spend: str


class Weight(Record):
    """A criterion as it was weighed: its share of all weights, and its anchors. `restates` names the cost that it tells
    again."""

    name: str
    share: float
    worst: float
    best: float
    log: bool = False
    unit: str
    basis: Basis
    restates: str | None = None


class Standing(Record):
    """How one arm stands.

    `score` is the weighted value of what was measured, `amounts` and `values` by criterion, amounts with the ends that
    hold 95 % of the draws (None where nothing varies). `first` is the share of draws in which it is first at the
    scenario's weights, `ranks` the share of each rank under any weights whatever (SMAA-2), `central` the mean weights
    that put it first, None if none do, and `confidence` how often it is first at those. `front` is the share of draws
    in which no other arm dominates it; `wins` and `dominates` are against each other arm.
    """

    score: float
    amounts: dict[str, Ends]
    values: dict[str, float]
    first: float
    ranks: tuple[float, ...]
    central: dict[str, float] | None
    confidence: float | None
    front: float
    wins: dict[str, float]
    dominates: dict[str, float]


class MoreSeeds(Record):
    """What so many more finals an arm are expected to bring: gain in score, and the chance that some arm is then first
    surely enough. Rows stay as they are."""

    seeds: int
    gain: float
    settles: float


class Weighed(Record):
    """A scenario decided from a study's records: as it was `asked`, and its `inputs` with prices that the study gave.

    `carried` is by criterion what the first arm is ahead of the second by, in score, opinions among them. `knowing` is
    what perfect knowledge of a criterion would be worth, in score, `knowing_all` of all together. `standings` are by
    arm, the first first; empty where nothing could be weighed. `left_out` are arms and criteria that were not weighed,
    `excluded` arms that were out before, with reasons. `owned` are bills of the first year by arm, where that counts.
    """

    asked: Scenario
    inputs: Inputs
    recommendation: str | None
    abstention: Abstention | None
    because: tuple[str, ...]
    warnings: tuple[str, ...]
    flips: tuple[Flip, ...]
    weights: tuple[Weight, ...]
    standings: dict[str, Standing]
    carried: dict[str, float]
    knowing: dict[str, float]
    knowing_all: float | None
    more_seeds: tuple[MoreSeeds, ...]
    owned: dict[str, Owned]
    excluded: dict[str, str]
    left_out: dict[str, str]
    draws: int
    seeds: int
