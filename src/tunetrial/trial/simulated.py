"""Whole studies on planted truth: planned, run on the simulator, extended and judged by the very functions that a real
study uses. Only the disk is left out.

The truth is that of the arms at their best rates: what bad tuning loses counts as error. A false direction is a better
or worse that the truth does not have; a false size, or NOT WORSE, one that contradicts it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tunetrial import methods
from tunetrial.analysis import decide, metrics
from tunetrial.core.errors import DivergedError, DoesNotFitError
from tunetrial.core.evidence import Comparison, Evidence, Example, Measurement, Scores, TaskData, TrialRecord
from tunetrial.core.study import Arm, DataPin, Kind, Lock, Rule, Study, TaskSpec, Trial
from tunetrial.engine.sim import SimEngine, SimSession, Truth, World
from tunetrial.plan import chosen_rate, next_wave

PARAMETERS = 12_000_000
METRIC: dict[Kind, str] = {"classify": "accuracy", "regress": "mae"}
LABELS = ("no", "yes")
SPLITS = {"train": 64, "validation": 120, "test": 1000}
ROWS_PER_CLUSTER = 4
ARMS = {"full": Arm(name="full", method="full"), "lora": Arm(name="lora", method="lora")}


@dataclass(frozen=True)
class Planted:
    """A kind of study: settings of the world and of each arm's truth, whose best rate is drawn anew a study.

    In an arm's settings a `cliff` is how many decades above its best rate every run collapses, a `brink` how many above
    it every run diverges.
    """

    world: dict = field(default_factory=dict)
    full: dict = field(default_factory=dict)
    lora: dict = field(default_factory=dict)
    task: Kind = "classify"
    margin: float = 0.02

    def truth(self, arm: str, best_rate: float) -> Truth:
        settings = dict(getattr(self, arm))
        for decades, setting in (("cliff", "collapses_above"), ("brink", "diverges_above")):
            if decades in settings:
                settings[setting] = best_rate * 10 ** settings.pop(decades)
        return Truth(best_rate=best_rate, **settings)

    @property
    def effect(self) -> float:
        """LoRA minus full at their best rates, turned so that positive is better."""
        gain = self._mean(self.truth("lora", 1.0)) - self._mean(self.truth("full", 1.0))
        return round(gain if self.task == "classify" else -gain, 9) + 0.0

    def _mean(self, truth: Truth) -> float:
        """Expected score of a run; one that collapses or fails counts as the best constant prediction."""
        lost = truth.collapse + (1 - truth.collapse) * truth.failure
        return (1 - lost) * truth.quality + lost * (0.5 if self.task == "classify" else 2.5)


def both(**settings: float) -> dict[str, dict]:
    """The same truth for both arms."""
    return {"full": settings, "lora": settings}


def study(planted: Planted) -> Study:
    """Two arms, one task, every default."""
    metric = METRIC[planted.task]
    task = TaskSpec(name="t", kind=planted.task, metric=metric, margin=planted.margin, input="{{ x }}", target="y")
    return Study(
        question="Does the protocol find what was planted?",
        base_model="embedded",
        tasks=(task,),
        arms=tuple(ARMS.values()),
        reference="full",
        rule=Rule(primary="t"),
    )


def task_data(kind: Kind, rows_of: Mapping[str, int] = SPLITS) -> TaskData:
    """Rows without content, so many a split: balanced labels, or numbers spread evenly over 0 to 10."""
    splits = {}
    for split, rows in rows_of.items():
        target = [LABELS[row % 2] if kind == "classify" else 10 * (row + 0.5) / rows for row in range(rows)]
        splits[split] = tuple(
            Example(f"{split}-{row}", f"{split}-{row // ROWS_PER_CLUSTER}", f"row {row}", target[row])
            for row in range(rows)
        )
    return TaskData(name="t", kind=kind, labels=LABELS if kind == "classify" else (), splits=splits)


def lock(asked: Study, data: TaskData) -> Lock:
    """Pin a study whose rows exist nowhere."""
    pin = DataPin(
        digests={split: data.digest(split) for split in data.splits},
        counts={split: len(rows) for split, rows in data.splits.items()},
        labels=data.labels,
    )
    return Lock(
        study=asked,
        base_fingerprint="none",
        parameters=PARAMETERS,
        precision="fp32",
        data={data.name: pin},
        engine="sim",
    )


def world(planted: Planted, number: int) -> World:
    """The world of one study: luck of its own, and best rates up to half a decade from where the search begins."""
    rng = np.random.default_rng([20_250_101, number])
    arms = {}
    for name, arm in ARMS.items():
        centre = methods.find(arm).learning_rate_centre(PARAMETERS)
        arms[name] = planted.truth(name, centre * 10 ** rng.uniform(-0.5, 0.5))
    return World(seed=number, arms=arms, **planted.world)


def carry_out(locked: Lock, data: TaskData, session: SimSession) -> Evidence:
    """Run a study to its end, wave by wave, in memory."""
    evidence = Evidence(lock=locked, records=(), scores={}, curves={})
    while wave := next_wave(evidence):
        records, scores = list(evidence.records), dict(evidence.scores)
        for trial in wave.trials:
            record, found = run_trial(trial, data, session)
            records.append(record)
            scores |= {(trial.id, split): one for split, one in found.items()}
        evidence = Evidence(lock=locked, records=tuple(records), scores=scores, curves={})
    return evidence


def run_trial(trial: Trial, data: TaskData, session: SimSession) -> tuple[TrialRecord, dict[str, Scores]]:
    """Carry out one trial as `tunetrial.trial` does, without a disk."""
    try:
        if trial.purpose == "probe":
            measured = session.probe(trial, data, Path())
            return TrialRecord(trial=trial, status="ok", measurements=measured, synthetic=True), {}
        run = session.start(trial, data)
        for _ in run.steps(None):
            pass
    except DivergedError as error:
        return TrialRecord(trial=trial, status="diverged", reason=str(error), synthetic=True), {}
    except DoesNotFitError as error:
        return TrialRecord(trial=trial, status="infeasible", reason=str(error), synthetic=True), {}
    scores, measured = {}, run.measurements()
    for split in ("validation", "test") if trial.purpose == "final" else ("validation",):
        scores[split] = one = _scores(data.splits[split], run.predict(data.splits[split]))
        metric = metrics.find(METRIC[data.kind])
        value = metric.value(one.target_E, one.prediction_E)
        measured[f"{split}.{metric.name}"] = Measurement(value=value, unit=metric.unit)
    record = TrialRecord(
        trial=trial,
        status="ok",
        measurements=measured,
        token_digest=run.token_digest,
        resolved=run.facts(),
        synthetic=True,
    )
    return record, scores


def _scores(examples: tuple[Example, ...], predictions: list) -> Scores:
    dtype = object if isinstance(predictions[0], str) else float
    return Scores(
        example_id_E=tuple(e.id for e in examples),
        cluster_E=tuple(e.cluster for e in examples),
        target_E=np.array([e.target for e in examples], dtype=dtype),
        prediction_E=np.array(predictions, dtype=dtype),
    )


@dataclass(frozen=True)
class Outcome:
    """What one study said, and what tuning lost: true score at the chosen rate less that at the best, by arm.

    `missed` says whether the verdict's interval leaves the true effect out; None where it has no interval.
    """

    verdict: Comparison
    regret: dict[str, float]
    trials: int
    false_direction: bool
    false_size: bool
    missed: bool | None


def judge(planted: Planted, number: int, data: TaskData, locked: Lock) -> Outcome:
    """Carry out one study and hold its verdict against the truth."""
    made = world(planted, number)
    evidence = carry_out(locked, data, SimEngine(made).open(Path(), "fp32"))
    verdict, effect, margin = decide(evidence).verdicts[0], planted.effect, planted.margin
    rates = {name: chosen_rate(evidence, name, "t") for name in ARMS}
    direction, size = verdict.direction, verdict.size
    not_worse = verdict.words == "NOT WORSE" and effect <= -margin
    wrong_size = (size == "within" and abs(effect) >= margin) or (size == "beyond" and abs(effect) <= margin)
    return Outcome(
        verdict=verdict,
        regret={name: made.arms[name].regret(rate.value) for name, rate in rates.items() if rate},
        trials=len(evidence.records),
        false_direction=(direction == "better" and effect <= 0) or (direction == "worse" and effect >= 0),
        false_size=not_worse or wrong_size,
        missed=None if verdict.low is None else not verdict.low <= effect <= verdict.high,
    )
