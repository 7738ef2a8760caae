"""How long a tuned model takes to answer, by the way it is deployed: what was asked, what was timed, what it says.

A *setup* is how weights are deployed: `base` (untuned, the floor), `full` (all weights tuned), `merged` (an adapter
folded into the base), `separate` (an adapter beside the base), `swapped` (several adapters over one base, another one
at every request) and `mixed` (several adapters in one batch). A *path* is the code that computes: `eager`, transformers
and PEFT as they come, and `engine`, tunetrial's own passes. Their ratio for one setup is the framework's overhead; the
ratio of two setups on one path is what the setup costs.
"""

from typing import Literal

from pydantic import Field

from tunetrial.core.records import Record, added
from tunetrial.core.study import Precision

Setup = Literal["base", "full", "merged", "separate", "swapped", "mixed"]
ComputePath = Literal["eager", "engine"]
Where = Literal["resident", "host", "disk"]
Pace = Literal["SAME", "SLOWER", "FASTER", "CAN'T TELL"]


class Contender(Record):
    """One deployment that is timed. `arm` is whose weights it has; the base has none."""

    setup: Setup
    path: ComputePath
    arm: str | None = None

    @property
    def name(self) -> str:
        return self.setup if self.arm is None or self.arm == self.setup else f"{self.arm} {self.setup}"


class Work(Record):
    """One kind of request: rows at once, tokens of each prompt, tokens made of each row. One token is what a prompt
    alone takes, and the time to the first token of a longer answer."""

    batch: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=1)

    def __str__(self) -> str:
        made = "first token" if self.new_tokens == 1 else f"{self.new_tokens} tokens made"
        return f"batch {self.batch}, prompts of {self.prompt_tokens} tokens, {made}"


class Asked(Record):
    """What is timed: on which base, which requests, in how many sessions of about so many seconds each.

    Order and prompts follow from `seed`: the same seed, the same order.
    """

    base: str
    base_fingerprint: str
    precision: Precision
    works: tuple[Work, ...] = Field(min_length=1)
    sessions: int = Field(ge=1)
    seconds: float = Field(ge=0)
    seed: int = 0


class Offer(Record):
    """Weights of one arm that are to be deployed, as folders: adapters over the base, the first of which is `merged`,
    or a model that was tuned in `full`."""

    arm: str
    adapters: tuple[str, ...] = ()
    merged: str | None = None
    full: str | None = None


class Laps(Record):
    """Wall times of one contender's requests in one session, in seconds, in the order taken; `adapters` is how many it
    computed with."""

    contender: Contender
    work: Work
    adapters: int
    laps_s: tuple[float, ...]


class Opened(Record):
    """What having a contender in memory takes.

    `load_s` is from files to answering, file cache warm; `weights_bytes` all of its weights, those it shares with
    others included; `peak_bytes` these and what a request takes beside them at most: on CUDA of the allocator's memory,
    on a CPU of the process's resident set, None where the system does not tell it.
    """

    contender: Contender
    load_s: float
    weights_bytes: int
    peak_bytes: int | None


class Swaps(Record):
    """Seconds from one adapter to another that is `resident` beside it, in the `host`'s memory, or on `disk` (its files
    in the system's cache)."""

    arm: str
    path: ComputePath
    where: Where
    swaps_s: tuple[float, ...]


class Gate(Record):
    """How far a contender's logits lie from those of the same weights by transformers and PEFT: the norm of the
    difference over the norm. It was timed only because this is within `tolerance`."""

    contender: Contender
    difference: float
    tolerance: float


class Session(Record):
    """One process start: fresh loads, its own warm-up, all contenders in turns. `order_digest` is of the turns that the
    seed gave, round after round. `facts` say how it ran, and in "others" on which share of all cores other processes
    computed meanwhile."""

    number: int
    order_digest: str
    laps: tuple[Laps, ...]
    opened: tuple[Opened, ...]
    swaps: tuple[Swaps, ...]
    gates: tuple[Gate, ...]
    facts: dict[str, bool | int | float | str | None]


class Bench(Record):
    """All that was timed. `artifact_bytes` are the weight files of each arm's artifacts, by contender's name, and
    `trials` the finals whose they are, by arm; empty without a study."""

    schema_version: Literal[1] = 1
    asked: Asked
    artifact_bytes: dict[str, int]
    trials: dict[str, tuple[str, ...]] = {}
    sessions: tuple[Session, ...]


class Timing(Record):
    """Times of a contender's requests over the laps of all sessions, in seconds. A quantile that so few laps cannot
    show is None. `per_s` is rows times tokens made over the time that all took."""

    contender: Contender
    work: Work
    adapters: int
    p50_s: float
    p95_s: float | None
    p99_s: float | None
    per_s: float
    laps: int
    sessions: int


class Ratio(Record):
    """How many times as long a contender takes as another, with the interval at the deployment's level over sessions;
    no ends from one session alone."""

    contender: Contender
    against: Contender
    work: Work
    ratio: float
    low: float | None
    high: float | None
    pace: Pace
    sessions: int


class Footprint(Record):
    """Medians over sessions of what having a contender in memory takes."""

    contender: Contender
    load_s: float
    weights_bytes: int
    peak_bytes: int | None
    artifact_bytes: int | None


class Swap(Record):
    """The median over sessions of the sessions' median swaps."""

    arm: str
    path: ComputePath
    where: Where
    swap_s: float


class BreakEven(Record):
    """From which volume on one way to deploy costs less than another, by storage and busy time alone.

    `own` against `against`, for one kind of request whose rows are each a request. `saved_usd` is what `own` saves in
    storage, a month and variant (negative: takes more); `extra_usd` what a request costs it more in busy time, with its
    interval `extra_low`, `extra_high`. `first` costs less at few requests, None where the interval of times does not
    tell; from between `low` and `high` requests a month and variant on the other one does (`high` None: the interval
    does not tell; both None: never). `variants_low`, `variants_high` are the numbers of variants from which `own` costs
    less at the study's number of requests, likewise.
    """

    own: Contender
    against: Contender
    work: Work
    saved_usd: float
    extra_usd: float
    extra_low: float
    extra_high: float
    first: Contender | None
    low: float | None
    high: float | None
    variants_low: float | None
    variants_high: float | None


class Volumes(Record):
    """Break-even volumes of a bench at these prices. `prices` say each in words with where it comes from, `missing`
    what there would have to be for any; then there are no pairs. `requests` are a month and variant, None: not stated,
    and reckoned as none."""

    variants: int
    requests: float | None
    prices: tuple[str, ...]
    missing: tuple[str, ...]
    pairs: tuple[BreakEven, ...]


class Deployment(Record):
    """What a bench says, with ratios judged against `margin` (a share: 0.05 is 5 %) at a two-sided `level`. `facts` are
    those of the first session, "others" the most of any."""

    asked: Asked
    margin: float
    level: float
    timings: tuple[Timing, ...]
    setup_ratios: tuple[Ratio, ...]
    path_ratios: tuple[Ratio, ...]
    footprints: tuple[Footprint, ...]
    swaps: tuple[Swap, ...]
    facts: dict[str, bool | int | float | str | None]
    volumes: Volumes | None = added()
