"""What studies find out besides the verdict: a record each, in which nothing decides."""

from typing import Literal

from tunetrial.core.records import Record

Ends = tuple[float, float | None, float | None]  # a value and the ends of its interval, None where there is none


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


class Loss(Record):
    """What an arm's finals lost on one held-out text of the study, a file of `texts`; on all, where `text` is None.

    Positive is lost, each against the base of the arm on the same tokens: `nats` a token, `bits` a byte, `kl` of base
    from tuned model in nats a token; `agreed` is the share of tokens at which both find the same next one likeliest.
    `beyond` is by how many nats a token more was lost than by the reference at the same seeds; None of the reference
    itself, and where tokens are not the same. `why_bare` says why there are no intervals; None where there are.
    """

    text: str | None
    nats: Ends
    bits: Ends
    kl: Ends
    agreed: Ends
    beyond: Ends | None
    texts: int
    clusters: int
    tokens: int
    why_bare: str | None = None


class Forgotten(Record):
    """What an arm forgot that was tuned on a task: from `runs` finals, over new seeds and texts, with intervals at
    `level`.

    `diverged` finals have nothing to be asked, `unobserved` ones found no room or gave no finite number: what those
    forgot is not known, and is in no mean. `losses` is empty where no final was observed, and has the loss on all texts
    first where there are several files.
    """

    task: str
    arm: str
    reference: str
    losses: tuple[Loss, ...]
    runs: int
    diverged: int
    unobserved: int
    level: float

    @property
    def overall(self) -> Loss | None:
        """The loss on all texts together."""
        return next(iter(self.losses), None)


class Point(Record):
    """A run: what it learnt, in units of the task's metric, above what was not tuned; nats a token that it forgot."""

    learnt: float
    forgotten: float
    rate: float | None
    seed: int
    final: bool


class Frontier(Record):
    """What an arm's runs forgot for what they learnt on validation rows of a task, `above` what the base lies at.

    `line` is the frontier over the rates of the search, the mean of its seeds', from the base on; empty where the study
    did not ask for it or no rate came through with all seeds. `equal` is by how many nats a token more than the
    reference the arm forgets where both learnt `learning`, the most that all `seeds` runs of both reached, and `apart`
    the same on average from the base up to there; with ends at `level`, over new seeds on these texts and rows.
    """

    task: str
    arm: str
    reference: str
    above: Literal["the untuned base", "the best constant answer"]
    points: tuple[Point, ...]
    line: tuple[tuple[float, float], ...] = ()
    learning: float | None = None
    equal: Ends | None = None
    apart: Ends | None = None
    seeds: int | None = None
    level: float


class Explained(Record):
    """Whether runs that drifted further forgot more: correlations over `runs` finals of `arms`, one number each a run.

    `source` is the split whose states drifted. `pooled` is Spearman's over all runs, to which differences between arms
    add, `within` after taking out each arm's mean; `pooled_line` and `within_line` are Pearson's. Ends at `level` are
    None where runs lie in perfect order.
    """

    task: str
    source: str
    pooled: Ends
    within: Ends
    pooled_line: Ends
    within_line: Ends
    runs: int
    arms: tuple[str, ...]
    level: float


class Wordings(Record):
    """How far one arm's answers to a task's test rows change with the wording of the inputs alone.

    `scores` are the task's metric by variant, the rows as they are first, means over seeds; `worst` names the lowest of
    them, and `worst_score` is the score of whichever variant is worst in truth. `same` is the share of (two variants,
    row) that are answered alike, or of numbers the standard deviation between variants on a row. `right` is the share
    of rows answered right as they are, `right_everywhere` of those right under every variant; None of numbers and of
    metrics without a right answer. `sources` are the variances that seeds, variants and rows give scores, and what they
    do together, squared units, unbiased, so that chance may make one negative; none from a single seed.

    `worst_gap` and `right_gap` are the arm minus `against`, positive is better, over the seeds that both have; None
    where the two do not differ anywhere, or for the reference itself.
    """

    task: str
    arm: str
    scores: dict[str, float]
    worst: str
    worst_score: Ends
    measure: Literal["agreement", "SD between variants"]
    same: Ends
    right: float | None = None
    right_everywhere: Ends | None = None
    sources: dict[str, float] = {}
    against: str | None = None
    worst_gap: Ends | None = None
    right_gap: Ends | None = None
    level: float
    seeds: int
    examples: int


class SearchCost(Record):
    """Optimiser steps of an arm's search on a task, that of a confirmation left out.

    `steps` were taken, `whole_steps` is what the same `runs` take when each goes to its end; one that diverged counts
    in both as far as it came. Whether an exhaustive search would have tried the same runs, nobody knows. `train_s` are
    the seconds of the steps taken, without evaluation, and `whole_s` an estimate: each run's whole steps at the pace of
    those it took; absent where a step has no time.
    """

    task: str
    arm: str
    runs: int
    steps: int
    whole_steps: int
    train_s: float | None = None
    whole_s: float | None = None


class Moved(Record):
    """How far an arm's states lie from its base's: of one source, by one pooling and measure, over seeds.

    `source` is the split that the rows are of ("test", or a held-out text "text~wiki"). `by_layer` begins with the
    embeddings; a layer without a value in some run is None. Values have the ends of their interval over new seeds at
    `level`, None where there is one seed or seeds do not differ; intervals are each its own, of layers too. `overall`
    is the mean over layers, `difference` that mean less the reference's on the same seeds, `apart` the layers in which
    the two differ with at most 5 % of false ones expected among them. `at_equal_score` is the difference left at no
    difference in score; `unequal` says why there is none.

    What is no drift: `floors` are the base against itself one row at a time ("batch") and in another dtype ("dtype"),
    by layer; `chance`, of rows that do not belong together, mean and SD. `between_seeds` holds the arm's runs against
    each other, `between_arms` against the reference's run of the same seed, means by layer.
    """

    task: str
    arm: str
    source: str
    pooling: Literal["mean", "last", "tokens"]
    measure: Literal["1 - CKA", "change", "1 - cosine", "angle", "1 - RSA"]
    by_layer: tuple[Ends | None, ...]
    overall: Ends
    difference: Ends | None = None
    apart: tuple[int, ...] = ()
    at_equal_score: Ends | None = None
    unequal: Literal["few seeds", "scores apart", "no spread"] | None = None
    floors: dict[str, tuple[float | None, ...]] = {}
    chance: tuple[float, float] | None = None
    between_seeds: tuple[float | None, ...] | None = None
    between_arms: tuple[float | None, ...] | None = None
    level: float
    seeds: int
    rows: int


class Updated(Record):
    """What an arm's training did to the matrices that it changes: means over `matrices`, then over seeds, with the ends
    of an interval over new seeds at `level`, None as in `Moved`.

    `size` and `spectral` are the update's norms over the base's, Frobenius and spectral; `stable` and `effective` its
    ranks, None of updates that are 0. `rounding` is what storing the base in few bits cost it, None of a plain one.
    `intruders` are singular vectors of a tuned matrix, of its first k, that are less than epsilon like any of the
    base's, by side ("left", "right"), k in `tops` and epsilon in `epsilons`; a vector drawn at random would be as like
    as `chance`, from the matrix where that is least to that where it is most.
    """

    task: str
    arm: str
    size: Ends
    spectral: Ends
    stable: Ends | None
    effective: Ends | None
    rounding: float | None
    intruders: dict[str, tuple[tuple[Ends | None, ...], ...]]
    tops: tuple[int, ...]
    epsilons: tuple[float, ...]
    chance: tuple[float, float]
    matrices: int
    level: float
    seeds: int


class Reached(Record):
    """Where half of all runs of an arm have reached a level, with its interval; None lies beyond what was seen.

    `level` is what the interval's ends hold: at least what was asked where there are runs enough (6 for 0.95), else
    what that of the least and greatest of so many runs does. `never` counts the runs that did not get there: they are
    later than all that did.
    """

    median: float | None
    low: float | None
    high: float | None
    level: float
    runs: int
    never: int


class Learned(Record):
    """How soon the finals of an arm learn a task: after how many optimiser steps they have a share of what they gain in
    all, by share; and their mean training loss over all steps with its interval, None where a run diverged.

    `usd_per_step` is what a step of the arm's probe costs at the study's price of the hour; None without either.
    """

    task: str
    arm: str
    steps: dict[float, Reached]
    mean_loss: tuple[float, float, float] | None
    level: float
    usd_per_step: float | None


class Gained(Record):
    """A gain in units of the metric, higher is better: what is expected, and the ends of its interval."""

    expected: float
    low: float
    high: float


class Ascent(Record):
    """A ladder of "rows" or "ranks" as measured: what each size gains over the arm as it is (None at its own), and what
    the last one doubled would; `beyond` is None where the rungs refute diminishing returns."""

    of: Literal["rows", "ranks"]
    sizes: tuple[int, ...]
    gains: tuple[Gained | None, ...]
    beyond: Gained | None


class Prospect(Record):
    """One way to spend: what it is expected to gain, at what price, and whether that pays.

    Gains are in units of the metric, higher is better; `chance` is that of a gain above 0. `usd` is the price,
    `gain_per_usd` the expected gain over it, `net_usd` what the expected gain is worth less the price and
    `chance_pays` the chance that the gain is worth more than its price. What is not known is None, and `why` says why.
    """

    what: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    chance: float | None = None
    usd: float | None = None
    gain_per_usd: float | None = None
    net_usd: float | None = None
    chance_pays: float | None = None
    why: str | None = None


class Outlook(Record):
    """What the ladder of one arm found on the task that decides, by validation rows: each ladder that could be read,
    why one could not, and what there is to spend on next. `best` is the way that is expected to bring most beyond its
    price, "stop" where none brings more than it costs; None where no way has both a forecast and a price."""

    task: str
    arm: str
    level: float
    ascents: tuple[Ascent, ...]
    unread: dict[str, str]
    prospects: tuple[Prospect, ...]
    best: str | None


class Step(Record):
    """One step of an escalation: an arm that is run, was passed over, is being weighed, or waits for those before it.

    `over` is the best arm before it, `prospect` what the step was expected to gain over that one and at what price,
    from `seeds` runs on validation rows; both are None where it was not weighed by a gain.
    """

    arm: str
    state: Literal["run", "passed over", "weighed", "waits"]
    over: str | None = None
    seeds: int | None = None
    prospect: Prospect | None = None
    reason: str | None = None


class Escalated(Record):
    """How far an escalation went on the task that decides, and why; `advised` are steps that it cannot run."""

    task: str
    margin_usd: float
    steps: tuple[Step, ...]
    advised: tuple[str, ...]
