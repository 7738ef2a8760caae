"""What became of a tuned model on its way to the files that ship: hops from form to form, and whether they passed."""

from tunetrial.core.records import Record


class Tolerance(Record):
    """What a hop may change, by the names of its measures; None is no limit."""

    different: int | None = None
    largest_difference: float | None = None
    kl_mean: float | None = None
    same_next_token: float | None = None


class Measures(Record):
    """Two forms side by side, over `probes` completions and `places` of known text.

    Completions are counted as `identical`, as a `tie` where they part at a place at which the earlier form's two
    likeliest tokens are less than 1e-4 nats apart, and as `different` otherwise; `first_different` is the number of the
    first such probe. `same_next_token` is a share of places. `largest_difference` is of log-probabilities, in nats;
    `kl_mean` and `kl_largest` are Kullback-Leibler divergences of the later form from the earlier one, in nats a place,
    and None where only the likeliest tokens are known. `tokens_compared` is the least number of tokens that both forms
    told of a place.
    """

    probes: int
    places: int
    identical: int
    ties: int
    different: int
    first_different: int | None
    same_next_token: float
    largest_difference: float
    kl_mean: float | None
    kl_largest: float | None
    tokens_compared: int


class Score(Record):
    """The task's metric of both forms on the probes; `effect` is the later one minus the earlier one, turned so that
    higher is better, with a paired t interval over clusters of examples, or none where no example's part changed.
    """

    metric: str
    before: float | None
    after: float | None
    effect: float
    low: float | None
    high: float | None
    level: float


class Hop(Record):
    """One step from a form to another; `faults` say what went beyond its tolerance."""

    before: str
    after: str
    measures: Measures
    tolerance: Tolerance
    score: Score | None
    faults: tuple[str, ...]


class Chain(Record):
    """All hops in order, and checks of what llama.cpp makes of texts. `first_break` names the first that is broken.

    `left_out` says of a form that cannot be, why. `files` are the forms that were written, by name.
    """

    hops: tuple[Hop, ...]
    faults: tuple[str, ...]
    left_out: tuple[str, ...]
    files: dict[str, str]
    passed: bool
    first_break: str | None

    def __str__(self) -> str:
        lines = []
        for hop in self.hops:
            lines.append(f"{'FAIL' if hop.faults else 'PASS'}  {hop.before} → {hop.after}: {said(hop)}")
            lines += [f"      {fault}" for fault in hop.faults]
        lines += [f"FAIL  {fault}" for fault in self.faults] + [f"left out: {reason}" for reason in self.left_out]
        return "\n".join([*lines, "PASS" if self.passed else f"FAIL: first broken at {self.first_break}"])


class Proof(Record):
    """A chain that was taken from a run of a study to the files that shipped in `format`; `trial` is the run's id."""

    trial: str
    arm: str
    task: str
    seed: int
    format: str
    chain: Chain


def said(hop: Hop) -> str:
    """A hop's measures in a line."""
    found = hop.measures
    ties = f" and {found.ties} at ties" if found.ties else ""
    kl = "" if found.kl_mean is None else f", KL {found.kl_mean:.1e} nats a token"
    score = (
        "" if hop.score is None else f"; {hop.score.metric} {_number(hop.score.before)} → {_number(hop.score.after)}"
    )
    return (
        f"{found.identical} of {found.probes} texts the same{ties}, next token at {found.same_next_token:.1%}, "
        f"log-probabilities within {found.largest_difference:.1e}{kl}{score}"
    )


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
