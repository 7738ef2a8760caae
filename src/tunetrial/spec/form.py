"""The file form of a study: what may stand in a study file, before defaults that depend on other fields.

These records are the one source of what is accepted: they parse, they give the remedies in messages
("give the <description>, such as <example>"), and they are exported as JSON Schema.
"""

import copy
import operator
from functools import cache, reduce
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, create_model
from pydantic.json_schema import SkipJsonSchema

from tunetrial.core.records import Record
from tunetrial.core.study import GainMargin, Kind, Precision
from tunetrial.core.variants import USUAL, Noise, Order, Paraphrase, Template
from tunetrial.methods import METHODS

Absent = SkipJsonSchema[None]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$")]
TaskName = Annotated[str, Field(pattern="^([a-z0-9][a-z0-9._-]{0,63}|glue/[a-z0-9]{1,16})$")]
Text = Annotated[str, Field(pattern=r"\S", max_length=4000)]
Schema = Annotated[str, Field(pattern=r"\S", max_length=65_536)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Positive = Annotated[float, Field(gt=0)]
Points = Annotated[int, Field(ge=3, le=99)]
PackSize = Annotated[int, Field(ge=1, le=64)]
Price = Annotated[float, Field(ge=0)]
Folds = Annotated[int, Field(ge=2, le=20)]
Look = Annotated[int, Field(ge=2, le=900)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _by_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _arms_by_method(value: object) -> object:
    """`[full, lora]` is short for `{full: {method: full}, lora: {method: lora}}`."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        return value
    twice = {item for item in value if value.count(item) > 1}
    if twice:
        raise ValueError(f"the same method twice, got {sorted(twice)[0]!r}; write a mapping of names to settings")
    return {item: {"method": item} for item in value}


def _usual_by_name(value: object) -> object:
    """`typos` is short for `{name: typos, kind: typos}`."""
    usual = [variant.name for variant in USUAL]
    if isinstance(value, str) and value not in usual:
        raise ValueError(f"no variant of its own, got {value!r}; use one of {', '.join(usual)}, or describe it")
    return {"name": value, "kind": value} if isinstance(value, str) else value


_RATE = Field(None, description="share of words that are altered", examples=[0.1])
_VARIANTS: list[type] = [
    create_model(
        f"{variant.__name__}Variant",
        __base__=variant,
        __doc__=variant.__doc__,
        name=(Name, Field(description="name of the variant", examples=["reworded"])),
        kind=(variant.model_fields["kind"].annotation, Field(description="kind of the variant", examples=[example])),
        **({"rate": (Rate | Absent, _RATE)} if variant is Noise else {}),
        **{key: (str | Absent, field) for key, field in variant.model_fields.items() if field.default is None},
    )
    for variant, example in ((Template, "template"), (Order, "order"), (Noise, "case"), (Paraphrase, "paraphrase"))
]
Varied = Annotated[reduce(operator.or_, _VARIANTS), Discriminator("kind")]
Usual = Literal[tuple(variant.name for variant in USUAL)]
Wording = Annotated[Varied, BeforeValidator(_usual_by_name, json_schema_input_type=Usual | Varied)]


class TaskForm(Record):
    """A built-in task with what differs, or a task of the user's own."""

    name: TaskName = Field(description="name of the task", examples=["tickets"])
    data: Text | Absent = Field(
        None, description="file of rows (JSONL, CSV, Parquet) or hub:org/name", examples=["data/rows.jsonl"]
    )
    validation: Text | Absent = Field(None, description="file of validation rows", examples=["data/validation.jsonl"])
    test: Text | Absent = Field(None, description="file of test rows", examples=["data/test.jsonl"])
    kind: Kind | Absent = Field(
        None, description="kind of the task: classify, regress or generate", examples=["classify"]
    )
    input: Text | Absent = Field(None, description="template of the prompt", examples=["{{ title }}: {{ text }}"])
    target: Text | Absent = Field(None, description="field to predict", examples=["label"])
    messages: Text | Absent = Field(
        None, description="field of conversations, or of Alpaca's instruction", examples=["messages"]
    )
    max_new_tokens: Count | Absent = Field(None, description="most tokens of a completion", examples=[128])
    json_schema: Schema | Absent = Field(
        None, description="file of the JSON Schema of completions, or its JSON", examples=["schema.json"]
    )
    tests: Text | Absent = Field(
        None, description="field of Python code that completions are tested by", examples=["tests"]
    )
    id: Text | Absent = Field(None, description="field that names a row", examples=["id"])
    cluster: Text | Absent = Field(None, description="field whose equal values keep rows together", examples=["sender"])
    metric: Text | Absent = Field(None, description="metric of the comparison", examples=["macro_f1"])
    margin: Positive | GainMargin | Absent = Field(
        None,
        description="smallest difference that matters, in units of the metric, or the share of the gain to be kept",
        examples=[0.02, "95% of gain"],
    )
    epochs: Count | Absent = Field(None, description="passes over the training rows of this task", examples=[3])
    variants: tuple[Wording, ...] = Field(
        (),
        max_length=16,
        description="other wordings of the test rows, by name or described",
        examples=[["case", "typos", "whitespace"]],
    )
    criterion: Text | Absent = Field(
        None, description="words for what makes an answer better", examples=["which reply answers what was asked"]
    )


class RuleForm(Record):
    level: float = Field(0.95, gt=0.5, lt=1, description="family-wise level of confidence", examples=[0.95])
    primary: Text | Absent = Field(None, description="task that decides", examples=["newsletter"])


class ReplicatesForm(Record):
    looks: tuple[Look, ...] = Field(
        (5, 10),
        min_length=1,
        max_length=10,
        description="numbers of seeds after which the results are looked at",
        examples=[[5, 10]],
    )
    folds: Literal["auto", "none"] | Folds = Field(
        "auto", description="number of folds of a file of rows, or auto, or none", examples=[5]
    )
    repeats: int = Field(2, ge=1, le=20, description="number of times that few rows are cut into folds", examples=[3])


class TuningForm(Record):
    learning_rate: Literal["auto"] | tuple[Rate, ...] = Field(
        "auto", description="word auto, or three or more growing rates", examples=[[1e-4, 3e-4, 1e-3]]
    )
    points: Points | Absent = Field(None, description="number of learning rates tried first", examples=[5])
    max_points: Points | Absent = Field(
        None, description="most learning rates tried when the best is at an edge", examples=[9]
    )
    seeds: int = Field(3, ge=3, le=99, description="number of seeds at the best learning rate", examples=[3])
    centres: dict[Text, Rate] = Field(
        {}, description="rates in the middle of the search, by arm", examples=[{"lora": 2e-4}]
    )
    on: Literal["nf4"] | Absent = Field(
        None, description="storage of frozen bases while rates are searched for", examples=["nf4"]
    )
    exhaustive: bool = Field(
        True,
        description="word true for a search by whole runs, false for one whose runs stop at a quarter",
        examples=[False],
    )


class LimitsForm(Record):
    """What no recommended arm may exceed."""

    cost_usd: Positive | Absent = Field(None, description="most US dollars for one training run", examples=[2])
    train_s: Positive | Absent = Field(None, description="most seconds for one training run", examples=[3600])
    peak_gib: Positive | Absent = Field(None, description="most memory in GiB", examples=[24])
    storage_mib: Positive | Absent = Field(None, description="most MiB for the saved artifact", examples=[500])
    latency_ms: Positive | Absent = Field(None, description="most milliseconds for one example", examples=[40])
    forgetting_nats: Positive | Absent = Field(
        None, description="most nats a token lost on the held-out texts", examples=[0.05]
    )


class CriterionForm(Record):
    weight: Positive = Field(description="weight of the step from worst to best", examples=[0.4])
    worst: float | Absent = Field(None, description="value that counts 0, in natural units", examples=[100])
    best: float | Absent = Field(None, description="value that counts 1, in natural units", examples=[10])
    log: bool = Field(False, description="word true where each halving counts alike", examples=[True])


class OpinionForm(Record):
    """What nothing measures: the user's own points for each arm."""

    weight: Positive = Field(description="weight of the step from worst to best", examples=[0.1])
    scores: dict[Text, float] = Field(
        min_length=1, description="points by arm or by method", examples=[{"full": 6, "lora": 9}]
    )
    worst: float = Field(0.0, description="points that count 0", examples=[0])
    best: float = Field(10.0, description="points that count 1", examples=[10])
    restates: Text | Absent = Field(None, description="word for what it tells again", examples=["cost"])


class CriteriaForm(Record):
    """What is weighed, each in its natural unit."""

    quality: CriterionForm | Absent = Field(None, description="weight of the primary metric", examples=[{"weight": 1}])
    cost_usd: CriterionForm | Absent = Field(None, description="weight of the US dollars of a run")
    train_s: CriterionForm | Absent = Field(None, description="weight of the seconds of a run")
    peak_gib: CriterionForm | Absent = Field(None, description="weight of the memory in GiB")
    storage_mib: CriterionForm | Absent = Field(None, description="weight of the MiB of the saved artifact")
    latency_ms: CriterionForm | Absent = Field(None, description="weight of the milliseconds for one example")
    forgetting_nats: CriterionForm | Absent = Field(None, description="weight of the nats a token lost")
    preference: CriterionForm | Absent = Field(None, description="weight of the share of pairs that people prefer")
    agreement: CriterionForm | Absent = Field(None, description="weight of the share of answers that seeds have alike")
    energy_wh: CriterionForm | Absent = Field(None, description="weight of the watt-hours of a run, as a GPU counts")


class BudgetForm(Record):
    """What the study may take in all; it is made smaller beforehand to fit, and stops when this is spent."""

    usd: Positive | Absent = Field(None, description="most US dollars for the whole study", examples=[20])
    gpu_hours: Positive | Absent = Field(None, description="most hours of the machine's time", examples=[8])


class HardwareForm(Record):
    gpu: Text | Absent = Field(None, description="name of the accelerator", examples=["l4"])
    usd_per_hour: Price | Absent = Field(None, description="price of the machine in US dollars", examples=[0.8])


class CostsForm(Record):
    """What plan and report reckon with beside the trials; without these they say nothing of them."""

    engineer_hours: Price | Absent = Field(None, description="hours of engineers for the study", examples=[6])
    usd_per_engineer_hour: Price | Absent = Field(None, description="price of such an hour", examples=[90])
    months: Price | Absent = Field(None, description="months that what is chosen is kept and used", examples=[12])
    variants: Count = Field(1, description="how many variants are kept (clients, languages)", examples=[4])
    usd_per_gb_month: Price | Absent = Field(None, description="price of a GB kept for a month", examples=[0.1])
    requests_per_month: Price | Absent = Field(None, description="requests that are answered", examples=[100000])
    usd_per_request: Price | Absent = Field(None, description="price of one request", examples=[0.0002])
    usd_per_gb_hour: Price | Absent = Field(None, description="price of a GB of memory for an hour", examples=[0.05])
    hours_per_month: Positive | Absent = Field(None, description="hours of a month that it serves", examples=[200])
    retrainings_per_month: Price | Absent = Field(None, description="how often each variant is retrained", examples=[2])
    other_usd: Price | Absent = Field(None, description="US dollars for anything else, once", examples=[500])


class LadderForm(Record):
    """What more rows, more rank or full fine-tuning would gain one arm, on the task that decides."""

    arm: Text = Field(description="arm that is run at several sizes", examples=["lora"])
    rows: tuple[Share, ...] = Field(
        (),
        max_length=8,
        description="growing shares of the training rows, three or more and the last 1",
        examples=[[0.25, 0.5, 1]],
    )
    ranks: tuple[Count, ...] = Field(
        (),
        max_length=8,
        description="growing ranks, three or more, the own one of the arm among them",
        examples=[[8, 16, 32]],
    )
    label_usd: Price | Absent = Field(None, description="price of one labelled row in US dollars", examples=[0.1])
    margin_usd: Positive | Absent = Field(
        None, description="worth of a gain of one margin in US dollars", examples=[500]
    )


class StrategyForm(Record):
    """In which order arms are run, each while the steps before it leave it worth its price."""

    name: Literal["escalate"] = Field(description="word escalate", examples=["escalate"])
    steps: tuple[Text, ...] = Field(
        (), max_length=32, description="arms in the order in which they are tried", examples=[["lora", "full"]]
    )
    margin_usd: Positive | Absent = Field(
        None, description="worth of a gain of one margin in US dollars", examples=[500]
    )


_OTHER_BASE = Field(None, description="folder or Hub id of another base for this arm alone", examples=["org/larger"])
_ARMS: list[type] = [
    create_model(
        f"{method.__name__}Arm",
        __base__=method,
        __doc__=method.__doc__,
        method=(Literal[name], ...),
        **({"base_model": (Text | Absent, _OTHER_BASE)} if method.uses_base else {}),
    )
    for name, method in METHODS.items()
]
Arm = Annotated[reduce(operator.or_, _ARMS), Discriminator("method")]
Arms = Annotated[dict[Name, Arm], Field(min_length=2)]
Methods = Annotated[list[Literal[tuple(METHODS)]], Field(min_length=2)]


class StudyForm(Record):
    """A study file."""

    question: Text | Absent = Field(None, description="question in words", examples=["Is LoRA as good as full?"])
    base_model: Text = Field(description="folder of the base model, its Hub id, or embedded", examples=["embedded"])
    tasks: tuple[Annotated[TaskForm, BeforeValidator(_by_name, json_schema_input_type=TaskName | TaskForm)], ...] = (
        Field(min_length=1, description="tasks, by name or described", examples=[["newsletter"]])
    )
    arms: Annotated[Arms, BeforeValidator(_arms_by_method, json_schema_input_type=Arms | Methods)] = Field(
        description="two or more arms to compare", examples=[["full", "lora"]]
    )
    reference: Text | Absent = Field(None, description="arm that the others are compared with", examples=["full"])
    rule: RuleForm = Field(default_factory=RuleForm, description="rule of decision", examples=[{"level": 0.95}])
    replicates: ReplicatesForm = Field(
        default_factory=ReplicatesForm, description="seeds of each arm", examples=[{"looks": [5, 10]}]
    )
    tuning: TuningForm = Field(
        default_factory=TuningForm, description="search for the learning rate", examples=[{"seeds": 3}]
    )
    limits: LimitsForm = Field(default_factory=LimitsForm, description="limits on cost", examples=[{"peak_gib": 24}])
    require: dict[str, Annotated[str, Field(max_length=100)]] = Field(
        {}, description="floors as task.metric and a condition", examples=[{"newsletter.mae": "<= 1.5"}]
    )
    criteria: CriteriaForm = Field(
        default_factory=CriteriaForm, description="criteria and their weights", examples=[{"quality": {"weight": 1}}]
    )
    opinions: dict[Text, OpinionForm] = Field(
        {},
        description="criteria that nothing measures, with your own points",
        examples=[{"strategic fit": {"weight": 0.1, "scores": {"full": 6, "lora": 9}}}],
    )
    hardware: HardwareForm = Field(
        default_factory=HardwareForm, description="machine and its price", examples=[{"usd_per_hour": 1}]
    )
    budget: BudgetForm = Field(
        default_factory=BudgetForm, description="budget of the whole study", examples=[{"gpu_hours": 8}]
    )
    costs: CostsForm = Field(
        default_factory=CostsForm, description="costs beside the trials", examples=[{"engineer_hours": 6}]
    )
    epochs: Count = Field(3, description="passes over the training rows", examples=[3])
    batch_examples: Count = Field(16, description="examples of one optimiser step", examples=[16])
    max_tokens: Count = Field(512, description="most tokens of an example", examples=[512])
    weight_decay: float = Field(0.0, ge=0, le=1, description="weight decay", examples=[0.01])
    precision: Literal["auto"] | Precision = Field("auto", description="compute dtype", examples=["auto"])
    readout: Literal["head", "labels"] = Field(
        "head", description="how labels are read: by a trained head, or by scoring their texts", examples=["head"]
    )
    retention: dict[Name, Text] = Field(
        {}, description="files of held-out texts that must stay likely, by name", examples=[{"wiki": "texts.jsonl"}]
    )
    frontier: bool = Field(
        False, description="word true to ask every run of the search what it forgot, too", examples=[True]
    )
    drift: tuple[Literal["states", "weights"], ...] = Field(
        (),
        max_length=2,
        description="parts of tuned models that are held against their base",
        examples=[["states", "weights"]],
    )
    ladder: LadderForm | Absent = Field(
        None,
        description="sizes at which one arm is run to tell what more would gain",
        examples=[{"arm": "lora", "rows": [0.25, 0.5, 1]}],
    )
    strategy: (
        Annotated[StrategyForm, BeforeValidator(_by_name, json_schema_input_type=Literal["escalate"] | StrategyForm)]
        | Absent
    ) = Field(
        None,
        description="order of the arms, each run only while it is worth its price",
        examples=[{"name": "escalate", "steps": ["lora", "full"], "margin_usd": 500}],
    )
    keep: Literal["median", "all"] = Field("median", description="full weights that are kept", examples=["median"])
    pack: Literal["auto"] | PackSize = Field(
        "auto", description="most trials of the LoRA family that train together, or word auto", examples=[8]
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the whole study", examples=[0])


def json_schema(form: type[Record] = StudyForm) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a study file, or of another form, for editors and for checks without tunetrial.

    It holds all that can be said of one field alone. It says nothing of relations between fields (that `reference`
    names an arm, that a metric fits a kind, that a margin is due), nor of duplicate keys or empty values.
    """
    return copy.deepcopy(_schema(form))


@cache
def _schema(form: type[Record]) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidy(form.model_json_schema())}


def _tidy(schema: Any) -> Any:
    """Absent is absent, so there is no null; and keys that fit no pattern are refused."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {key: _tidy(value) for key, value in schema.items() if not (key == "default" and value is None)}
    return {**tidied, "additionalProperties": False} if "patternProperties" in schema else tidied
