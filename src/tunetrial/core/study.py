"""What is asked: a study, its arms and tasks, and the trials that come of it."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunetrial.core.folding import Folding, fold_name, whole
from tunetrial.core.ladder import Ladder, grounded, on_rung, rungs
from tunetrial.core.pins import BasePin, DataPin, Reduction, given
from tunetrial.core.prices import Budget, Costs, Hardware
from tunetrial.core.records import Record, added, digest
from tunetrial.core.variants import Variant

Setting = bool | int | float | str | tuple[str, ...]
Kind = Literal["classify", "regress", "generate"]
Readout = Literal["head", "labels", "text"]
Precision = Literal["bf16", "fp16", "fp32", "fp64"]
Purpose = Literal["tune", "rung", "confirm", "final", "probe", "anchor"]
Observed = Literal["forgetting", "states", "grams", "floors", "weights"]
GainMargin = Annotated[str, Field(pattern=r"^([5-9][0-9](\.[0-9]{1,3})?)% of gain$")]
Margin = Annotated[float, Field(gt=0)] | GainMargin


class Arm(Record):
    """One thing compared: a method and its settings, defaults filled in.

    `base_model` is None for an arm on the study's own base. The arm of a trial never has one: which base a trial is of
    is said by the fingerprint in its controls, whatever the base is called.
    """

    name: str
    method: str
    settings: dict[str, Setting] = {}
    base_model: str | None = added()

    @property
    def untrained(self) -> bool:
        """Whether it takes no optimiser step: the base as it is, or a linear model of words."""
        return self.method in ("none", "tfidf")

    @property
    def fixed(self) -> bool:
        """Whether nothing in it is random, so that one final stands for every seed."""
        return self.untrained and not self.settings.get("shots")


class TaskSpec(Record):
    """One task of a study: where its rows are, how they are rendered, what is measured by which margin.

    `data` is None for a built-in task, else the path of a JSONL, CSV or Parquet file, as are `validation` and `test`;
    a split without a file of its own is drawn from `data`. `id` and `cluster` are fields; without them a row is
    known by its number and stands alone. `margin` is in units of `metric`, or "95% of gain": that much of what the
    reference gains over the untuned base is to be kept. `epochs` overrides the controls'.

    `generate` asks for text: `input` is the prompt and `target` the field of the completion, or `messages` is the field
    of a conversation whose last assistant turn is the target. `max_new_tokens` bounds a completion; `json_schema` is
    the JSON of a schema that completions are held against, `tests` the field of Python code that they are executed
    against. Finals answer `variants` of the test rows' inputs besides; raters prefer texts by the `criterion`.
    """

    name: str
    kind: Kind
    metric: str
    margin: Margin
    data: str | None = None
    validation: str | None = None
    test: str | None = None
    input: str = ""
    target: str = ""
    messages: str | None = None
    max_new_tokens: int = Field(default=128, ge=1)
    json_schema: str | None = None
    tests: str | None = None
    id: str | None = None
    cluster: str | None = None
    epochs: int | None = Field(default=None, ge=1)
    variants: tuple[Variant, ...] = added(())
    criterion: str | None = added()

    @property
    def kept_share(self) -> float | None:
        """The share of the reference's gain that the margin asks to be kept; None for one in units of the metric."""
        return float(self.margin.partition("%")[0]) / 100 if isinstance(self.margin, str) else None


class Controls(Record):
    """All that is held equal between the arms of one task.

    The optimiser is AdamW (0.9, 0.999, 1e-8), the schedule a linear warm-up over `warmup_share` of the steps and then
    linear to 0. `base_fingerprint` names the base's weights. Rows longer than `max_tokens` are dropped in every arm.

    `readout` says how an answer is read: from a trained "head", by scoring the "labels"' texts, or as generated "text"
    of at most `max_new_tokens`, decoded greedily. `template_digest` is that of the chat template, where one is used,
    `schema_digest` that of the schema which completions are held against, where there is one.
    """

    base_fingerprint: str
    epochs: int = Field(default=3, ge=1)
    batch_examples: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    precision: Precision
    readout: Readout = "head"
    max_new_tokens: int | None = None
    template_digest: str | None = None
    schema_digest: str | None = added()


class Tuning(Record):
    """How each arm finds its learning rate: the same budget for every arm.

    `points` half-decade steps around the method's centre ("auto") or the rates given; at most `max_points` after
    extensions at an edge; `seeds` runs at the best point and its neighbours. `centres` are the centres of arms that do
    not take their method's, such as the rate of a recipe.

    `on` "nf4" searches for the rates of arms with a frozen base while it is stored in NF4; each is then chosen from a
    confirmation: runs as the finals are, with all seeds, at the rate found and its neighbours (`Study.tuned_as`).

    Unless it is `exhaustive`, runs stop at a rung of their schedule, and those at the best rate and its neighbours
    alone go on to the end (`plan.halving`).
    """

    learning_rate: Literal["auto"] | tuple[float, ...] = "auto"
    points: int = Field(default=5, ge=3)
    max_points: int = Field(default=9, ge=3)
    seeds: int = Field(default=3, ge=1)
    centres: dict[str, float] = {}
    on: Literal["nf4"] | None = added()
    exhaustive: bool = added(True)


class Rule(Record):
    """The decision rule, fixed before the first trial: family-wise level and the task that decides."""

    level: float = Field(default=0.95, gt=0.5, lt=1)
    primary: str


class Criterion(Record):
    """A criterion of the decision: its weight, and the anchors in natural units that mean 0 and 1."""

    weight: float = Field(gt=0)
    worst: float | None = None
    best: float | None = None


class Study(Record):
    """One question, resolved: every default filled in, nothing yet looked up on disk.

    A task of one file is cut into `folds`, `repeats` times, if they are a number; "auto" does so where rows are few,
    "none" never. `retention` are files of texts, by name, whose likelihood under a tuned model is held against that
    under its base; with `frontier` that of every run of the search for a rate, too. `drift` says what else of finals
    is: the "states" of their layers, their "weights". A `ladder` asks what more rows or rank would gain. As many trials
    of the LoRA family as `pack` says, where they may (`plan.packs`), train together.
    """

    question: str
    base_model: str
    tasks: tuple[TaskSpec, ...]
    arms: tuple[Arm, ...]
    reference: str
    epochs: int = Field(default=3, ge=1)
    batch_examples: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=512, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    precision: Literal["auto"] | Precision = "auto"
    readout: Literal["head", "labels"] = "head"
    looks: tuple[int, ...] = (5, 10)
    folds: Literal["auto", "none"] | int = added("auto")
    repeats: int = added(2)
    tuning: Tuning = Tuning()
    rule: Rule
    limits: dict[str, float] = {}
    require: dict[str, str] = {}
    criteria: dict[str, Criterion] = {}
    hardware: Hardware = Hardware()
    budget: Budget = Budget()
    costs: Costs = added(Costs())
    retention: dict[str, str] = added({})
    frontier: bool = added(False)
    drift: tuple[Literal["states", "weights"], ...] = added(())
    ladder: Ladder | None = added()
    keep: Literal["median", "all"] = "median"
    pack: Literal["auto"] | int = added("auto")
    seed: int = Field(default=0, ge=0)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def base_of(self, arm: str) -> str:
        """The name of an arm's base: its own, or the study's."""
        return self.arm(arm).base_model or self.base_model

    def tuned_as(self, name: str) -> Arm:
        """An arm as its rate is searched for: on a base in NF4, if so declared and its own is frozen and plain."""
        arm = self.arm(name)
        if self.tuning.on is None or arm.method != "lora" or arm.settings.get("base") == "int8":
            return arm
        return arm.model_copy(update={"method": "qlora", "settings": {**arm.settings, "base": "nf4"}})

    def exhaustively(self) -> "Study":
        """The same study with rates searched for by whole runs."""
        return self.model_copy(update={"tuning": self.tuning.model_copy(update={"exhaustive": True})})

    def task(self, name: str) -> TaskSpec:
        """The task of this name, or that a fold or rung of this name belongs to."""
        return next(task for task in self.tasks if task.name == grounded(whole(name)))

    def observed(self, purpose: Purpose) -> tuple[Observed, ...]:
        """What of a trial's model is observed besides its answers: of a final's states how they differ from the base's,
        their products, by which finals are held against each other, and how far the base differs from itself."""
        asked = purpose == "final" or (purpose == "tune" and self.frontier)
        drift = self.drift if purpose == "final" else ()
        of_states = ("states", "grams", "floors") if "states" in drift else ()
        of_weights = ("weights",) if "weights" in drift else ()
        return (*(("forgetting",) if self.retention and asked else ()), *of_states, *of_weights)

    def untuned(self, arm: str) -> str | None:
        """The untuned base that an arm's gain is counted from: the first `none` arm on its base; None without one."""
        bases = (other.name for other in self.arms if other.method == "none")
        return next((name for name in bases if self.base_of(name) == self.base_of(arm)), None)

    def readout_of(self, task: str) -> Readout:
        """How the answers to a task are read: text is generated, labels read as the study says, numbers by a head."""
        return {"generate": "text", "classify": self.readout, "regress": "head"}[self.task(task).kind]


class Lock(Record):
    """The pre-registration: the study with bases and data pinned. Its digest is printed in the report.

    `study` is what is carried out; where its budget called for less than was asked, `reductions` say so.

    `parameters` counts the base's weights, which set the centre of the learning-rate grid. `template_digest` is that of
    the base's chat template, `revision` the commit of a base from the Hub. `others` are the bases of arms that are not
    on the study's own, by arm. `engine` is "torch" or "sim"; records of the latter are synthetic and never mix with
    measured ones.

    `folds` says of each task with few rows into how many they are cut. Such a task has all of its rows pinned under its
    own name, as the split "all", and train, validation and test rows of every fold under the fold's.
    """

    study: Study
    base_fingerprint: str
    parameters: int
    precision: Precision
    template_digest: str | None = None
    data: dict[str, DataPin]
    engine: str = "torch"
    reductions: tuple[Reduction, ...] = ()
    revision: str | None = added()
    others: dict[str, BasePin] = added({})
    folds: dict[str, int] = added({})

    def folding(self, task: str) -> Folding | None:
        """How a task's rows are cut into folds; None for one with fixed splits. A fold goes by its task."""
        count = self.folds.get(whole(task))
        return None if count is None else Folding(folds=count, repeats=self.study.repeats)

    def parts(self, task: str) -> tuple[str, ...]:
        """The names under which a task is carried out: its folds, repeat by repeat, or the task itself."""
        cut = self.folding(task)
        if cut is None:
            return (task,)
        return tuple(fold_name(task, r, k) for r in range(1, cut.repeats + 1) for k in range(1, cut.folds + 1))

    @property
    def rungs(self) -> tuple[str, ...]:
        """The names of the ladder's rungs but the arm as it is; none without a ladder."""
        study, ladder = self.study, self.study.ladder
        return rungs(ladder, study.rule.primary, study.arm(ladder.arm).settings.get("rank")) if ladder else ()

    def looks(self, task: str) -> tuple[int, ...]:
        """Numbers of finals of an arm after which a task, or one fold, is looked at; of a fold there is one."""
        return self.study.looks if self.folding(task) is None else (1,)

    def tested(self, task: str) -> str:
        """The digest of a task's test rows, by which the test ledger counts: of all rows, for a task in folds."""
        return self.data[whole(task)].digests["all" if self.folding(task) else "test"]

    def base(self, arm: str | None = None) -> BasePin:
        """The base of an arm; without one, the study's own."""
        own = BasePin(
            fingerprint=self.base_fingerprint,
            parameters=self.parameters,
            template_digest=self.template_digest,
            revision=self.revision,
        )
        return self.others.get(arm, own)

    def controls(self, task: str, arm: str | None = None) -> Controls:
        """The controls of one task, on the base of an arm; without one, on the study's own."""
        study, spec, readout = self.study, self.study.task(task), self.study.readout_of(task)
        base = self.base(arm)
        return Controls(
            base_fingerprint=base.fingerprint,
            epochs=spec.epochs or study.epochs,
            batch_examples=study.batch_examples,
            max_tokens=study.max_tokens,
            weight_decay=study.weight_decay,
            precision=self.precision,
            readout=readout,
            max_new_tokens=spec.max_new_tokens if readout == "text" else None,
            template_digest=base.template_digest if spec.messages else None,
            schema_digest=digest(spec.json_schema) if spec.json_schema else None,
        )

    def final_seeds(self, look: int) -> tuple[int, ...]:
        """Seeds of the finals up to a look, the same for every arm and task."""
        first = 1000 * self.study.seed + 1
        return tuple(range(first, first + look))

    def trial(
        self,
        arm: str,
        task: str,
        *,
        learning_rate: float | None,
        seed: int,
        purpose: Purpose,
        share: float | None = None,
    ) -> "Trial":
        """The trial of one arm on one task, known by the splits that it is given: nothing but a final may depend on
        the test split."""
        digests = (self.data.get(task) or self.data[grounded(task)]).digests
        seen = given(digests, final=purpose == "final", texts=bool(self.study.observed(purpose)))
        digests = {split: digests[split] for split in seen}
        asked = self.study.tuned_as(arm) if purpose in ("tune", "rung") else self.study.arm(arm)
        return Trial(
            arm=asked.model_copy(update={"base_model": None, "settings": on_rung(asked.settings, task)}),
            controls=self.controls(task, arm),
            task=task,
            data_digest=digest(digests),
            learning_rate=learning_rate,
            seed=seed,
            purpose=purpose,
            share=share,
        )

    def like(self, trial: "Trial") -> "Trial":
        """What this lock asks of the same arm, task, rate, seed, purpose and share."""
        asked = {name: getattr(trial, name) for name in ("learning_rate", "seed", "purpose", "share")}
        return self.trial(trial.arm.name, trial.task, **asked)


class Trial(Record):
    """One arm, one task, one seed, one purpose: what is asked, and nothing of how it is executed.

    `learning_rate` is None for a method that takes no optimiser steps. A rung has a `share`: it stops after that much
    of its steps, in the schedule of the whole run, and the tune trial of its course goes on from there.
    """

    arm: Arm
    controls: Controls
    task: str
    data_digest: str
    learning_rate: float | None = Field(gt=0)
    seed: int = Field(ge=0)
    purpose: Purpose
    share: float | None = added()

    @model_validator(mode="after")
    def _rungs_have_a_share(self) -> "Trial":
        if (self.share is not None) != (self.purpose == "rung") or not 0 < (self.share or 0.5) < 1:
            raise ValueError(f"share: a rung has one between 0 and 1, and nothing else has, got {self.share}")
        return self

    def stop(self, steps: int) -> int:
        """After how many of a run's steps it ends."""
        return steps if self.share is None else math.ceil(self.share * steps)

    @property
    def course(self) -> str:
        """What a rung and the run that goes on from it have in common: the id of the trial to the end."""
        if self.purpose != "rung":
            return self.id
        return self.model_copy(update={"purpose": "tune", "share": None}).id

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the digest: the name of the trial's folder."""
        return self.digest[:16]
