"""What is weighed and for whom: criteria between anchors, opinions, limits, and the volumes and prices of a use."""

from pydantic import Field

from tunetrial.core.records import Record, added

# Criteria that are shares from never to always, of which more is better.
SHARES = ("preference", "agreement")


class Criterion(Record):
    """A criterion of the decision: its weight, and the anchors in natural units that mean 0 and 1.

    The weight is of the swing from `worst` to `best`, so it means something beside these alone. Between them the value
    is linear, or with `log` linear in the logarithm: each halving counts alike.
    """

    weight: float = Field(gt=0)
    worst: float | None = None
    best: float | None = None
    log: bool = added(False)


class Opinion(Record):
    """A criterion that nothing measures: `scores` are the user's own, by arm or by method, 0 at `worst`, 1 at `best`.

    `restates` names what it is another word for, such as cost: weight that is spent on it again.
    """

    weight: float = Field(gt=0)
    worst: float = 0.0
    best: float = 10.0
    scores: dict[str, float]
    restates: str | None = None


class Inputs(Record):
    """Volumes and prices of a use: what slides. What is not said is not known, and no cost is made of it.

    `tenants` are variants that are kept and trained again, each `retrainings_per_month` times; requests are of all
    together. `usd_per_hour` is that of a machine like the one that the study was measured on, which has `room_gib` for
    weights where it serves. `engineer_hours` are for the first year.
    """

    tenants: int = Field(default=1, ge=1)
    requests_per_month: float | None = Field(default=None, ge=0)
    retrainings_per_month: float = Field(default=0.0, ge=0)
    engineer_hours: float | None = Field(default=None, ge=0)
    usd_per_hour: float | None = Field(default=None, ge=0)
    usd_per_gb_month: float | None = Field(default=None, ge=0)
    usd_per_engineer_hour: float | None = Field(default=None, ge=0)
    room_gib: float | None = Field(default=None, gt=0)


class Scenario(Record):
    """A use to decide for. `limits` are hard: an arm above one is out before anything is weighed."""

    name: str
    title: str
    story: str = ""
    criteria: dict[str, Criterion] = {}
    opinions: dict[str, Opinion] = {}
    limits: dict[str, float] = {}
    inputs: Inputs = Inputs()
