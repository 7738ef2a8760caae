"""How long OpenAI-compatible servers take to answer over HTTP: what was asked, what each request took, what it says.

A *target* is a model behind an address; the server is the user's own and is started by nobody here. A *session* is a
turn of all targets with connections of its own, and the replicate: what another start of the server would change is in
none of them.
"""

from typing import Literal

from pydantic import Field

from tunetrial.core.deployment import Pace
from tunetrial.core.records import Record

Quantity = Literal["first token", "token", "answer"]


class Target(Record):
    """A model behind an address, which is given up to and without `/chat/completions`."""

    url: str
    model: str


class Asked(Record):
    """What is timed: `requests` a turn, each of up to `tokens` tokens, so many at once as `concurrency` lists, in each
    of so many sessions. Prompts, whose texts `prompts_digest` is of, and the order of turns follow from `seed`.
    """

    targets: tuple[Target, ...] = Field(min_length=1)
    concurrency: tuple[int, ...] = Field(min_length=1)
    requests: int = Field(ge=1)
    tokens: int = Field(ge=1)
    sessions: int = Field(ge=1)
    prompts: int = Field(ge=1)
    prompts_digest: str
    seed: int = 0


class Request(Record):
    """One request, in seconds since it was sent: to the first text, and to the end of the answer or of trying.

    `tokens` are those made, as the server counts them, None where it does not say. `fault` is what went wrong, in a
    word or two; None where the answer is whole.
    """

    first_s: float | None
    total_s: float
    tokens: int | None
    fault: str | None = None

    @property
    def token_s(self) -> float | None:
        """Seconds a token after the first; None of answers of one token or of unknown length."""
        if self.first_s is None or self.tokens is None or self.tokens < 2:
            return None
        return (self.total_s - self.first_s) / (self.tokens - 1)


class Turn(Record):
    """The requests of one target at one concurrency in one session, from first to last in `wall_s` seconds.
    `client_share` is on which share of one core whoever asked was busy meanwhile."""

    target: Target
    concurrency: int
    wall_s: float
    client_share: float
    requests: tuple[Request, ...]


class EndpointBench(Record):
    """All that was timed: the turns of each session, in the order taken."""

    schema_version: Literal[1] = 1
    asked: Asked
    sessions: tuple[tuple[Turn, ...], ...]


class Quantiles(Record):
    """Times of whole answers over all sessions, in seconds: the median, and what few of them cannot show is None.

    `middle_s` is the mean of the sessions' medians (geometric), with its interval over sessions.
    """

    p50_s: float
    p95_s: float | None
    p99_s: float | None
    middle_s: float
    low_s: float | None
    high_s: float | None


class LoadTiming(Record):
    """A target under a load. Times are of `answered` requests alone; `faults` count the others by what went wrong.

    Rates are of whole answers, over all the time that faults took too. What the server does not count is None.
    """

    target: Target
    concurrency: int
    requests: int
    answered: int
    faults: dict[str, int]
    first: Quantiles
    token: Quantiles | None
    answer: Quantiles
    answers_per_s: float
    tokens_per_s: float | None
    tokens_made: float | None
    client_share: float


class LoadRatio(Record):
    """How many times as long a target takes as the first one under the same load, by session."""

    target: Target
    against: Target
    concurrency: int
    of: Quantity
    ratio: float
    low: float | None
    high: float | None
    pace: Pace


class EndpointFindings(Record):
    """What a bench of endpoints says, with ratios judged against `margin` at a two-sided `level`."""

    asked: Asked
    margin: float
    level: float
    timings: tuple[LoadTiming, ...]
    ratios: tuple[LoadRatio, ...]

    @property
    def faults(self) -> int:
        return sum(sum(one.faults.values()) for one in self.timings)
