"""What came of it: examples and their scores, records of trials, verdicts, the decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tunetrial.core.deployment import Deployment
from tunetrial.core.fidelity import Proof
from tunetrial.core.findings import (
    Concord,
    Explained,
    Forgotten,
    Frontier,
    Graded,
    Learned,
    Moved,
    Outlook,
    Rated,
    Repeats,
    SearchCost,
    Updated,
    Wordings,
)
from tunetrial.core.owning import Ownership
from tunetrial.core.records import Record, added, digest
from tunetrial.core.study import Folding, Kind, Lock, Trial, whole
from tunetrial.core.work import Part

if TYPE_CHECKING:  # a command that needs no array need not wait for numpy
    import numpy as np

Fact = bool | int | float | str | None
Table = Mapping[str, "np.ndarray"]  # columns of one length: int64, float64 (nan where a value is missing) or text
ArmState = Literal["trained", "did not train", "diverged", "does not fit", "pending"]
Words = Literal[
    "BETTER",
    "SAME (within your margin)",
    "NOT WORSE",
    "WORSE, negligibly",
    "WORSE",
    "CAN'T TELL YET",
    "NOT COMPARABLE",
]


@dataclass(frozen=True)
class Example:
    """One row, rendered. `cluster` groups rows of one source (a sender, a document); `target` is a label, a number or
    the text of a completion.

    `messages` is a conversation as canonical JSON, a list of {"role", "content", …}: the base's own chat template
    renders it, so `prompt` is empty then, and `target` is the content of its last assistant turn. `tests` is code that
    a completion is executed against. `tools` are the functions that the conversation may call, as a JSON list in
    OpenAI's layout, which the template is given beside the turns.
    """

    id: str
    cluster: str
    prompt: str
    target: str | float
    messages: str | None = None
    tests: str | None = None
    tools: str | None = None


@dataclass(frozen=True)
class TaskData:
    """The rows of one task by split ("train", "validation", "test"), and what was left out or drawn, in words.

    Rows that are to be cut into `folds` are all in the split "all".
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    remarks: tuple[str, ...] = ()
    folds: int | None = None

    def digest(self, split: str) -> str:
        """SHA-256 of a split's ids, clusters, prompts, targets, conversations, tests and tools, in order."""
        return digest([example_row(example) for example in self.splits[split]])


def example_row(example: Example) -> list[str | float | None]:
    """An example as a JSON list that `Example(*row)` makes again; what it lacks at the end is left out."""
    row = list(vars(example).values())
    while row[-1] is None:
        row.pop()
    return row


class Measurement(Record):
    """A number that was measured: its unit, and of how many it is the mean or median, if of several."""

    value: float
    unit: str
    n: int | None = None


class TrialRecord(Record):
    """The end of one trial. An absent measurement is absent; errors and interruptions never become a record.

    `resolved` says how it was executed (device, dtype, attention, micro-batch, threads): comparisons refuse to mix
    these undeclared. `token_digest` is of the token stream trained on, in order, `examples_digest` of the examples'
    ids alone, which tokenizers of different bases leave equal. `tables` are digests of what was observed of the model
    besides its answers, by name. `legs_s` are the wall times of all attempts that led
    here. `synthetic` marks the simulator's records.
    """

    schema_version: Literal[1] = 1
    trial: Trial
    attempt: int = 1
    status: Literal["ok", "diverged", "infeasible"]
    reason: str | None = None
    measurements: dict[str, Measurement] = {}
    scores_digest: str | None = None
    token_digest: str | None = None
    examples_digest: str | None = added()
    artifacts: dict[str, str] = {}
    tables: dict[str, str] = added({})
    resolved: dict[str, Fact] = {}
    provenance: dict[str, Fact] = {}
    legs_s: tuple[float, ...] = ()
    synthetic: bool = False


@dataclass(frozen=True)
class Scores:
    """Per-example outcomes of one trial over one split, axis E; targets and predictions are labels, numbers or texts.

    `measured` holds what cannot be told from target and prediction, by name: "nll" and "tokens" of the target under the
    model, "tests_pass" of a completion that was executed, or "schema_valid" of one held against a JSON Schema.
    """

    example_id_E: tuple[str, ...]
    cluster_E: tuple[str, ...]
    target_E: "np.ndarray"
    prediction_E: "np.ndarray"
    measured: "Mapping[str, np.ndarray]" = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the content, independent of file format."""
        content = [list(self.example_id_E), list(self.cluster_E), self.target_E.tolist(), self.prediction_E.tolist()]
        columns = {name: values.tolist() for name, values in self.measured.items()}
        return digest([*content, columns] if columns else content)


@dataclass(frozen=True)
class Evidence:
    """All that analysis and report are given: the lock, the records, scores by (trial id, split), curves by trial id,
    and by (trial id, name) the tables of what was observed of finals besides their answers."""

    lock: Lock
    records: tuple[TrialRecord, ...]
    scores: Mapping[tuple[str, str], Scores]
    curves: Mapping[str, tuple[dict, ...]]
    tables: Mapping[tuple[str, str], Table] = field(default_factory=dict)

    def of(self, *, purpose: str, task: str | None = None, arm: str | None = None) -> tuple[TrialRecord, ...]:
        """The records of one purpose, in order of arm, rate and seed; a task in folds has those of all its folds."""
        chosen = (
            r
            for r in self.records
            if r.trial.purpose == purpose
            and (task is None or task in (r.trial.task, whole(r.trial.task)))
            and (arm is None or r.trial.arm.name == arm)
        )
        return tuple(
            sorted(chosen, key=lambda r: (r.trial.task, r.trial.arm.name, r.trial.learning_rate or 0.0, r.trial.seed))
        )

    def searching(self, *, task: str, arm: str) -> tuple[TrialRecord, ...]:
        """The records of the search for an arm's rate: of whole runs, or of their rungs where it is not exhaustive."""
        return self.of(purpose="tune" if self.lock.study.tuning.exhaustive else "rung", task=task, arm=arm)

    def settling(self, *, task: str, arm: str) -> tuple[TrialRecord, ...]:
        """The records that an arm's rate is chosen from: its confirmation's if it has one, else its search's."""
        return self.of(purpose="confirm", task=task, arm=arm) or self.searching(task=task, arm=arm)


class Confirmation(Record):
    """Of an arm that was tuned on another base: what its choice there was worth when it was run as the finals are.

    `searched` is the tried rate nearest to what the search chose, `best` the best of those confirmed, each a mean over
    `seeds` runs at each of `rates` rates. `regret` is what `searched` lost against `best` in units of the validation
    metric, 0 if they are one, None if every run at `searched` failed. It is a best of few means, so rather too high.
    """

    task: str
    arm: str
    searched: float
    best: float
    regret: float | None
    seeds: int
    rates: int


class ArmResult(Record):
    """What one arm did on one task's test split; `values` are the metric by final seed.

    `floor` is the best constant's value, `base` the untuned base's: what a trained arm must be shown to be better than,
    where the study has them. An arm in which nothing is random has one final, which stands for every seed.

    Of a task in folds each final is of a fold, and has the fold's seed; `floor` and `base` are means over folds. There
    is one `learning_rate` only if all finals have it.
    """

    task: str
    arm: str
    state: ArmState
    learning_rate: float | None = None
    at_edge: bool = False
    values: dict[int, float] = {}
    mean: float | None = None
    sd: float | None = None
    floor: float | None = None
    base: float | None = None
    failed: int = 0


class GainShare(Record):
    """The share of the reference's gain over the untuned base, arm `base`, that a candidate gains too.

    `low` and `high` are its interval at `level` (Fieller 1954). Without them the reference's gain is not shown to be
    above 0, so that no share of it is told, not even `share`, the ratio of the gains as measured.
    """

    base: str
    level: float
    share: float | None = None
    low: float | None = None
    high: float | None = None


class Comparison(Record):
    """Candidate minus reference on one task's test split, turned so that positive is better.

    The interval holds at `level` (adjusted for looks and family). `mde` is the smallest effect that this many seeds
    and examples would show with 80 % power. `needs` says in words what would settle an open verdict. With `folding` the
    rows are all of the task's, each a test row once a repeat, and a replicate is a fold.

    `margin` is in units of the metric. Where the study asks for a share of the reference's gain to be kept, that is
    `kept_share`, and `margin` what may be lost of the gain as estimated: the verdict is on the share, not on it; None
    while the gain has no estimate.
    """

    task: str
    candidate: str
    reference: str
    metric: str
    margin: float | None
    kept_share: float | None = None
    words: Words
    direction: Literal["better", "worse", "unresolved"] | None = None
    size: Literal["within", "beyond", "unresolved"] | None = None
    reason: str | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    mde: float | None = None
    n_replicates: int = 0
    n_examples: int = 0
    n_clusters: int = 0
    folding: Folding | None = None
    bound_by: Literal["seeds", "examples"] | None = None
    needs: str | None = None
    procedure: str | None = None
    gain: GainShare | None = None


class Need(Record):
    """Whether anything need be trained at all, by the margin of the task that decides.

    "no": `arm`, which is not trained, is shown to be not worse than every arm that was. "yes": every arm without
    training is shown to be worse than a trained one. `reason` says it with its numbers.
    """

    answer: Literal["no", "yes", "open"]
    arm: str
    reason: str


class Check(Record):
    """One line of the fairness ledger: what was compared, whether it holds, and what was found."""

    what: str
    holds: bool
    found: str


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


class Scored(Record):
    """What the plan said before the first run, as a range, beside what was measured; of one arm or of the whole study.

    `likely` is the plan's single best number, where it had one. `measured` is absent where nothing was.
    """

    what: str
    arm: str | None = None
    unit: str
    low: float
    high: float
    likely: float | None = None
    measured: float | None

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies within the range; None without one."""
        return None if self.measured is None else self.low <= self.measured <= self.high

    @property
    def error(self) -> float | None:
        """The plan's number over the measured one, minus 1; None without either."""
        if self.likely is None or not self.measured:
            return None
        return self.likely / self.measured - 1


class Held(Record):
    """What an arm holds in a device's memory at its peak, in bytes: `parts` as counted, and `most_bytes` with what lies
    beside tensors, at the high end.

    `room_bytes` is what the device has free before anything is on it, `verdict` whether that suffices, where that was
    asked (`plan.fit`), and `measured_bytes` what runs took, absent where none was measured.
    """

    label: str
    parts: dict[Part, int]
    most_bytes: float
    room_bytes: float | None = None
    verdict: str | None = None
    measured_bytes: float | None = None


class Decision(Record):
    """The outcome of a study: verdicts, then a recommendation or an abstention, with reasons and flip points.

    `confirmations` are of arms whose rates were searched for on another base than they were trained on. `test_openings`
    counts by task the openings of the test rows by any study of this user, this one included; empty where nobody
    counted. `need` is absent where no arm goes without training. `spent` is what all runs took, by the budget's fields;
    `predictions` and `memory` what the plan said. `searches` stopped runs at a rung. `repeats` to `outlook`, `moved`,
    `updated`, what raters found, finals as `deployed`, arms as `owned` and shipments `proven` decide nothing.
    """

    verdicts: tuple[Comparison, ...]
    arms: tuple[ArmResult, ...]
    costs: dict[str, dict[str, Measurement]]
    recommendation: str | None
    abstention: Abstention | None
    because: tuple[str, ...]
    flips: tuple[Flip, ...]
    pareto: tuple[str, ...]
    excluded: dict[str, str]
    fairness: tuple[Check, ...]
    post_hoc: tuple[str, ...]
    confirmations: tuple[Confirmation, ...] = ()
    test_openings: dict[str, int] = {}
    need: Need | None = None
    spent: dict[str, Measurement] = {}
    predictions: tuple[Scored, ...] = ()
    memory: tuple[Held, ...] = ()
    repeats: tuple[Repeats, ...] = ()
    wordings: tuple[Wordings, ...] = added(())
    rated: tuple[Rated, ...] = added(())
    concord: tuple[Concord, ...] = added(())
    graded: tuple[Graded, ...] = added(())
    forgotten: tuple[Forgotten, ...] = added(())
    frontiers: tuple[Frontier, ...] = added(())
    explained: tuple[Explained, ...] = added(())
    searches: tuple[SearchCost, ...] = added(())
    moved: tuple[Moved, ...] = added(())
    updated: tuple[Updated, ...] = added(())
    learned: tuple[Learned, ...] = ()
    outlook: Outlook | None = added()
    deployed: Deployment | None = added()
    owned: Ownership | None = added()
    proven: tuple[Proof, ...] = added(())
    study_digest: str
    record_digests: dict[str, str]
    synthetic: bool
