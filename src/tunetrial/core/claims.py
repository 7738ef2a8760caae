"""Claims of a document, each with the terms that it is recomputed from, and what came of it.

A claim file is these records as YAML (`spec.claims`); docs/audit-format.md says how to write one.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field
from pydantic.json_schema import SkipJsonSchema

from tunetrial.core import expressions, quantities
from tunetrial.core.records import Record

Outcome = Literal[
    "HOLDS",
    "HOLDS WITHIN ROUNDING",
    "SUPPORTED HERE",
    "WRONG",
    "INCONSISTENT",
    "NOT SUPPORTED",
    "CONTRADICTED HERE",
    "UNTESTABLE HERE",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MOST = 500  # claims of a file
MATRIX_FUNCTIONS = ("norm", "center", "trace", "mean", "sqrt", "rows")
Absent = SkipJsonSchema[None]


def _written(value: str | int | float) -> str | int | float:
    quantities.read(value)
    return value


def _arithmetic(value: str) -> str:
    expressions.tree(value, expressions.FUNCTIONS)
    return value


def _comparison(value: str) -> str:
    expressions.tree(value, expressions.FUNCTIONS, compares=True)
    return value


def _matrices(value: str) -> str:
    expressions.tree(value, dict.fromkeys(MATRIX_FUNCTIONS, Callable), matrices=True)
    return value


Text = Annotated[str, Field(pattern=r"\S", max_length=1000)]
Quote = Annotated[str, Field(pattern=r"\S", max_length=200)]
Name = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Id = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
Place = Annotated[str, Field(pattern=r"^\S[^\n]{0,118}\S$")]
Line = Annotated[str, Field(pattern=r"^[^\s:]{1,80}:[0-9]{1,7}$")]
Written = Annotated[str | int | float, BeforeValidator(quantities.as_written), AfterValidator(_written)]
Expression = Annotated[str, AfterValidator(_arithmetic)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_SAYS = Field(description="number as the document writes it", examples=["3x"])
_OF = Field(description="expression that it is recomputed by", examples=["a + b"])
_GIVEN = Field({}, description="numbers of the document by the names in `of`", examples=[{"a": "30 min"}])


class Claim(Record):
    """What every claim has: where it stands and its words."""

    id: Id = Field(description="name of the claim, once in the file", examples=["total-cycle"])
    at: Line = Field(description="document and line", examples=["000:128"])
    quote: Quote = Field(description="words of the document, short", examples=["33 min"])
    note: Text | Absent = Field(None, description="sentence for readers", examples=["the rows above are its parts"])


class Arithmetic(Claim):
    """A number that follows from others."""

    kind: Literal["arithmetic"]
    says: Written = _SAYS
    of: Expression = _OF
    given: dict[Name, Written] = _GIVEN


class Ratio(Claim):
    """So many times: `of` over `to`."""

    kind: Literal["ratio"]
    says: Written = _SAYS
    of: Written = Field(description="number above the line", examples=["90 min"])
    to: Written = Field(description="number below the line", examples=["30 min"])


class Share(Claim):
    """A part of a whole, or by how much the one is less or more than the other."""

    kind: Literal["share"]
    says: Written = _SAYS
    part: Written = Field(description="number that is compared", examples=["65,536"])
    whole: Written = Field(description="number that it is compared with", examples=["16,777,216"])
    compared: Literal["share", "fewer", "more"] = Field("share", description="sense of the share", examples=["fewer"])


class Item(Record):
    """One line of a bill; without a price the amount is in dollars itself."""

    amount: Written = Field(description="amount with its unit", examples=["65 GB-month"])
    price: Written | Absent = Field(None, description="price of a unit", examples=["0.10 USD/GB-month"])


class Money(Claim):
    """A bill: amounts times prices, in units that must go together."""

    kind: Literal["money"]
    says: Written = _SAYS
    bill: dict[Name, Item] = Field(description="lines of the bill by name", examples=[{"disk": {"amount": "65 GB"}}])


class Matrix(Claim):
    """A weighted matrix: its totals are recomputed from its rows, its weights must be 100 %."""

    kind: Literal["matrix"]
    says: dict[Name, Written] = Field(description="total of each option", examples=[{"lora": "9.2"}])
    weights: dict[Name, Written] = Field(description="weight of each criterion", examples=[{"cost": "15%"}])
    scores: dict[Name, dict[Name, Number]] = Field(
        description="scores of each option by criterion", examples=[{"lora": {"cost": 10}}]
    )


class Weighing(Claim):
    """What a matrix is read for: that one option wins."""

    kind: Literal["weighing"]
    says: Name = Field(description="option that is said to win", examples=["lora"])
    matrix: Id = Field(description="id of the claim that has the matrix", examples=["totals"])
    scored: Literal["opinions", "measured"] = Field(description="origin of the scores", examples=["opinions"])
    restates: tuple[Name, ...] = Field((), description="criteria that say one thing again", examples=[["cost"]])


class Size(Claim):
    """What a model or an adapter of it counts, by the methods' formulas."""

    kind: Literal["size"]
    says: Written = _SAYS
    of: Literal["trained", "trained share", "fewer trained", "artifact", "weights", "moments", "layers"] = Field(
        description="what is counted", examples=["trained"]
    )
    model: Text = Field(description="model by its id or sizes", examples=["meta-llama/Llama-2-7b-hf"])
    method: Literal["full", "lora", "qlora"] = Field("lora", description="method", examples=["lora"])
    settings: dict[str, str | int | float | bool | tuple[str, ...]] = Field(
        {}, description="settings of the method", examples=[{"rank": 8}]
    )
    outputs: Annotated[int, Field(ge=0, le=10**6)] = Field(0, description="outputs of a new head", examples=[2])
    bits: Literal[32, 16, 8, 4] | Absent = Field(None, description="bits of a saved weight", examples=[16])


class Memory(Claim):
    """Memory of training on a device, counted operation by operation at several sizes of a step."""

    kind: Literal["memory"]
    says: Written = _SAYS
    model: Text = Field(description="model by its id or sizes", examples=["meta-llama/Llama-2-7b-hf"])
    method: Literal["full", "lora", "qlora"] = Field(description="method", examples=["lora"])
    rank: Count = Field(16, description="rank of the adapter", examples=[16])
    device: Text = Field(description="device of the catalogue", examples=["t4"])


class Group(Record):
    """What is said of one group of runs."""

    mean: Written | Absent = Field(None, description="mean", examples=["26.01 ms"])
    sd: Written = Field(description="standard deviation", examples=["0.18 ms"])
    n: Count = Field(description="number of independent runs", examples=[9])


class Welch(Record):
    """Two groups of runs, unequal variances."""

    name: Literal["welch"]
    a: Group = Field(description="one group", examples=[{"mean": "1.0", "sd": "0.1", "n": 3}])
    b: Group = Field(description="other group", examples=[{"mean": "1.0", "sd": "0.1", "n": 3}])


class Spread(Record):
    """Whether two standard deviations differ: `a` over `b`."""

    name: Literal["spread"]
    a: Group = Field(description="group said to vary more", examples=[{"sd": "0.018", "n": 3}])
    b: Group = Field(description="other group", examples=[{"sd": "0.009", "n": 3}])


class Student(Record):
    """A t of paired differences."""

    name: Literal["t"]
    t: Number = Field(description="value of t", examples=[148.68])
    n: Count = Field(description="number of pairs", examples=[9])


class Paired(Record):
    """Differences of pairs, each given: is their mean 0?"""

    name: Literal["paired"]
    values: tuple[Number, ...] = Field(min_length=1, max_length=200, description="differences", examples=[[0.4, 1.4]])


class Sessions(Record):
    """One number a session, or a run: how well is the mean known?"""

    name: Literal["sessions"]
    values: tuple[Number, ...] = Field(min_length=1, max_length=200, description="one a session", examples=[[32.9]])


class Resolution(Record):
    """What so many test rows can tell apart."""

    name: Literal["resolution"]
    rows: Count = Field(description="number of rows", examples=[50])
    share: Annotated[float, Field(gt=0, lt=1)] = Field(description="share right, about", examples=[0.6])
    tried: Count = Field(1, description="number of settings that the best was taken of", examples=[10])


Test = Annotated[Welch | Spread | Student | Paired | Sessions | Resolution, Discriminator("name")]


class Statistic(Claim):
    """A p, a spread or a difference, held against the runs that it rests on.

    `says` is of a p for `welch`, `t` and `paired`, of a ratio for `spread`, of a mean with its spread for `sessions`,
    of a difference for `resolution`. `differs` says that a difference is claimed, whatever its p.
    """

    kind: Literal["statistic"]
    says: Written | Literal["differs"] = _SAYS
    test: Test = Field(description="test and its numbers", examples=[{"name": "paired", "values": [0.4]}])


class Stated(Record):
    """A number of some place: of the document, of its repository, of a page."""

    at: Place = Field(description="place", examples=["000:72"])
    value: Written = Field(description="number there", examples=["85-95%"])


class Consistency(Claim):
    """Numbers that cannot all be true unless `must` holds; they must be equal if it says nothing."""

    kind: Literal["consistency"]
    values: dict[Name, Stated] = Field(
        min_length=2, description="numbers with their places", examples=[{"a": {"at": "000:72", "value": "85-95%"}}]
    )
    must: Annotated[str, AfterValidator(_comparison)] | Absent = Field(
        None, description="comparison that has to hold", examples=["needed <= there"]
    )


class Formula(Claim):
    """A measure as its document computes it, tried on a law that any such measure obeys.

    `of` is in matrices X and Y of the same shape (rows, features). The laws: of X with itself it is 1 (`identity`);
    symmetry; no change when Y is scaled, rotated or shifted; none when rows of padding are appended (`padding`).
    """

    kind: Literal["formula"]
    of: Annotated[str, AfterValidator(_matrices)] = Field(description="formula", examples=["norm(X.T @ Y)"])
    law: Literal["identity", "symmetry", "scale", "rotation", "shift", "padding"] = Field(
        description="law that it is tried on", examples=["identity"]
    )


class Shapes(Claim):
    """A product of matrices: the shape that it has, and the one that it must have."""

    kind: Literal["shapes"]
    of: Annotated[str, AfterValidator(_matrices)] = Field(description="product", examples=["B @ A"])
    shapes: dict[Name, tuple[Count, Count]] = Field(description="shapes by name", examples=[{"A": [4096, 8]}])
    gives: tuple[Count, Count] = Field(description="shape that it must have", examples=[[4096, 4096]])


class Update(Claim):
    """Whether a step of this size moves weights that are kept in this dtype: the share of weights that change."""

    kind: Literal["update"]
    says: Written = _SAYS
    dtype: Literal["bf16", "fp16"] = Field(description="dtype of the weights", examples=["bf16"])
    rate: Annotated[float, Field(gt=0, lt=1)] = Field(description="learning rate: a step of Adam's", examples=[3e-6])
    spread: Annotated[float, Field(gt=0, lt=10)] = Field(0.02, description="SD of the weights", examples=[0.02])


class Found(Record):
    """A measurement that is at hand, with its interval."""

    at: Place = Field(description="page or file of the measurement", examples=["docs/seed-study.md"])
    low: Written = Field(description="lower end", examples=["0.36"])
    high: Written = Field(description="upper end", examples=["0.49"])
    limits: Text = Field(description="limits of the measurement", examples=["another base"])


class Look(Record):
    """What to look up in a study: the arm, or the arm against its reference."""

    task: Text = Field(description="task of the study", examples=["sst2"])
    arm: Text = Field(description="arm of the study", examples=["lora"])
    what: Literal["score", "drift", "forgetting", "peak memory", "storage"] = Field(
        description="what was measured", examples=["drift"]
    )
    less_reference: bool = Field(True, description="false for the arm by itself", examples=[False])


class Measured(Claim):
    """A number or a direction that only a measurement can tell."""

    kind: Literal["measured"]
    says: Written = _SAYS
    found: Found | Absent = Field(None, description="measurement at hand", examples=[{"at": "docs/seed-study.md"}])
    look: Look | Absent = Field(None, description="measurement of the study", examples=[{"what": "drift"}])


class Unsupported(Claim):
    """What a reader found stated without that which would support it: judged, not computed."""

    kind: Literal["unsupported"]
    needs: Text = Field(description="what would support it", examples=["training times of both methods"])
    instead: Text = Field(description="what there is instead", examples=["an empty column"])


class Untestable(Claim):
    """What no computation and no study at hand can tell."""

    kind: Literal["untestable"]
    why: Text = Field(description="reason", examples=["who was asked is not said"])


AnyClaim = Annotated[
    Arithmetic
    | Ratio
    | Share
    | Money
    | Matrix
    | Weighing
    | Size
    | Memory
    | Statistic
    | Consistency
    | Formula
    | Shapes
    | Update
    | Measured
    | Unsupported
    | Untestable,
    Discriminator("kind"),
]


class ClaimFile(Record):
    """A document's claims; a `draft` was made by a program and nobody has read it."""

    document: Text = Field(description="title of the document", examples=["LoRA vs full fine-tuning"])
    about: Text | Absent = Field(None, description="remark for readers", examples=["a blog post"])
    draft: bool = Field(False, description="true until a person has read it", examples=[True])
    claims: tuple[AnyClaim, ...] = Field(min_length=1, max_length=MOST, description="claims", examples=[[{"id": "a"}]])


class Finding(Record):
    """What came of a claim: the outcome, what it comes to, and the working in words.

    `against` are the places that it contradicts or was held against, `limits` what that comparison leaves open.
    """

    claim: str
    at: str
    quote: str
    kind: str
    outcome: Outcome
    found: str | None = None
    working: str
    against: tuple[str, ...] = ()
    limits: str | None = None
    note: str | None = None


class Audit(Record):
    """All findings of one claim file."""

    document: str
    about: str | None = None
    draft: bool = False
    findings: tuple[Finding, ...]

    def counts(self) -> dict[Outcome, int]:
        """How many claims came out how; outcomes that did not occur are left out."""
        found: dict[Any, int] = {}
        for outcome in OUTCOMES:
            if number := sum(each.outcome == outcome for each in self.findings):
                found[outcome] = number
        return found
