"""Carrying out one trial: train, evaluate, record. The one place where an engine's steps become a record."""

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tunetrial.analysis import metrics, texts
from tunetrial.core.engine import Run, Session, Step
from tunetrial.core.errors import DivergedError
from tunetrial.core.evidence import Example, Fact, Measurement, Scores, TaskData, TrialRecord
from tunetrial.core.study import Trial
from tunetrial.store import TrialFolder
from tunetrial.tasks import sandbox

SPLITS = {**dict.fromkeys(("tune", "confirm", "probe"), ("validation",)), "final": ("validation", "test")}
LIBRARIES = ("numpy", "safetensors", "torch", "transformers", "tunetrial")
LAST_SHARE = 0.1
ORPHAN_S = 60.0


class Interrupted(Exception):
    """The trial was asked to stop between two steps. What is on disk is kept, and the next attempt goes on from it."""


@dataclass(frozen=True)
class Terms:
    """On what terms a trial is carried out: the task's metric, whose contributions are kept with the scores; whether
    the engine is a simulator; how many examples may be computed at once, if less than the engine would; the JSON of
    the schema that completions are held against."""

    metric: str
    synthetic: bool
    micro_batch: int | None = None
    json_schema: str | None = None


class Watch(Protocol):
    """Hears how a trial goes; may raise Interrupted from `stepped`."""

    def started(self, facts: Mapping[str, Fact]) -> None: ...

    def stepped(self, step: Step) -> None: ...


def carry_out(
    trial: Trial,
    data: TaskData,
    session: Session,
    folder: TrialFolder,
    *,
    terms: Terms,
    watch: Watch,
) -> TrialRecord:
    """Carry out a trial, or what an earlier attempt left of it, and record it.

    The engine is given only the splits that the trial may see: the test split goes to final trials alone. Diverging
    is a result and is recorded; any error leaves the trial without a record.

    Raises:
        Interrupted: `watch` said so; nothing is recorded.
        DoesNotFitError: It did not fit. That is a result only if it was alone: whoever knows says `record_infeasible`.
        StoreError: Another process still has the trial in hand after a minute, or the disk is full.
    """
    seen = replace(data, splits={name: data.splits[name] for name in ("train", *SPLITS[trial.purpose])})
    with folder.hold(wait_s=ORPHAN_S):
        if folder.done:
            return folder.record()
        folder.begin()
        record, scores = _attempt(trial, seen, session, folder, terms, watch)
        record = record.model_copy(update={"synthetic": terms.synthetic, "provenance": provenance()})
        return folder.finish(record, scores, _contributions(metrics.find(terms.metric), scores))


def _attempt(
    trial: Trial, data: TaskData, session: Session, folder: TrialFolder, terms: Terms, watch: Watch
) -> tuple[TrialRecord, dict[str, Scores]]:
    """Go through the trial and note how long that took, however it ends."""
    started_s = time.monotonic()
    try:
        if trial.purpose == "probe":
            return _probe(trial, data, session, folder), {}
        return _train(trial, data, session, folder, watch=watch, terms=terms)
    except DivergedError as error:
        return TrialRecord(trial=trial, status="diverged", reason=str(error)), {}
    finally:
        folder.leg(time.monotonic() - started_s)


def record_infeasible(trial: Trial, folder: TrialFolder, *, synthetic: bool, reason: str) -> None:
    """Record that a trial does not fit in memory although it was alone on the machine."""
    with folder.hold(wait_s=ORPHAN_S):
        folder.begin()
        record = TrialRecord(trial=trial, status="infeasible", reason=reason, synthetic=synthetic)
        folder.finish(record.model_copy(update={"provenance": provenance()}), {})


def record_killed(trial: Trial, folder: TrialFolder, *, terms: Terms) -> None:
    """Record a trial whose process was killed for memory twice, the second time alone on the machine."""
    folder.begin()
    reason = f"killed for memory by the kernel twice, at last alone and with a micro-batch of {terms.micro_batch}"
    record = TrialRecord(trial=trial, status="infeasible", reason=reason, synthetic=terms.synthetic)
    folder.finish(record.model_copy(update={"provenance": provenance()}), {})


def _train(
    trial: Trial, data: TaskData, session: Session, folder: TrialFolder, *, watch: Watch, terms: Terms
) -> tuple[TrialRecord, dict[str, Scores]]:
    """Train to the last step, keep the artifact of a final, predict every split it may see."""
    run = session.start(trial, data, micro_batch=terms.micro_batch)
    watch.started(run.facts())
    for step in run.steps(folder.checkpoint):
        folder.append(step)
        watch.stepped(step)
    if trial.purpose == "final":
        folder.save_artifact(run.save)
    started_s = time.monotonic()
    scores = {split: _score(run, data, split, trial, terms) for split in SPLITS[trial.purpose]}
    found = {
        **run.measurements(),
        **_training(folder.curve()),
        "evaluate_s": Measurement(value=time.monotonic() - started_s, unit="s"),
        **_quality(data, scores),
    }
    if trial.purpose == "final":
        found["artifact_bytes"] = Measurement(value=_size_bytes(folder.artifact), unit="bytes")
    record = TrialRecord(
        trial=trial,
        status="ok",
        measurements=found,
        token_digest=run.token_digest,
        examples_digest=run.examples_digest,
        resolved={**run.facts(), **_walls(data)},
    )
    return record, scores


def _probe(trial: Trial, data: TaskData, session: Session, folder: TrialFolder) -> TrialRecord:
    """Measure cost; what it saves for that is not kept. Figures of different processors must not be compared."""
    found = session.probe(trial, data, folder.path / ".probe.tmp")
    resolved = {"processor": processor(), "cores": os.cpu_count()}
    return TrialRecord(trial=trial, status="ok", measurements=found, resolved=resolved)


def _score(run: Run, data: TaskData, split: str, trial: Trial, terms: Terms) -> Scores:
    examples = data.splits[split]
    predictions = run.predict(examples)
    _check_finite([p for p in predictions if not isinstance(p, str)], "prediction", trial)
    kind = float if data.kind == "regress" else object
    return Scores(
        example_id_E=tuple(e.id for e in examples),
        cluster_E=tuple(e.cluster for e in examples),
        target_E=np.array([e.target for e in examples], dtype=kind),
        prediction_E=np.array(predictions, dtype=kind),
        measured=_measure(run, examples, predictions, trial, terms) if data.kind == "generate" else {},
    )


def _measure(
    run: Run, examples: Sequence[Example], completions: Sequence[str], trial: Trial, terms: Terms
) -> dict[str, np.ndarray]:
    """What target and completion alone do not tell, in columns of numbers, shape (E,)."""
    nll_E, tokens_E = zip(*run.likelihoods(examples), strict=True)
    _check_finite(nll_E, "likelihood", trial)
    measured = {"nll": nll_E, "tokens": tokens_E}
    if terms.json_schema is not None:
        measured["schema_valid"] = [texts.fits_schema(completion, terms.json_schema) for completion in completions]
    if _tested(examples):
        pairs = zip(completions, examples, strict=True)
        measured["tests_pass"] = [sandbox.passes(completion, example.tests) for completion, example in pairs]
    return {name: np.array(column, dtype=np.float64) for name, column in measured.items()}


def _check_finite(numbers: Sequence[float], what: str, trial: Trial) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise DivergedError(f"trial {trial.id}: a {what} is not finite; lower the learning rate")


def _tested(examples: Sequence[Example]) -> bool:
    return all(example.tests is not None for example in examples)


def _walls(data: TaskData) -> dict[str, Fact]:
    """What kept in the completions that were executed, if any were."""
    return {"sandbox": ", ".join(sandbox.walls()) or "limits alone"} if _tested(data.splits["validation"]) else {}


def _training(curve: tuple[dict, ...]) -> dict[str, Measurement]:
    """What the whole curve says, all attempts together, if there is one; `train.loss` is of the last tenth of steps."""
    if not curve:
        return {}
    last = curve[-max(1, math.ceil(LAST_SHARE * len(curve))) :]
    return {
        "train.loss": Measurement(value=math.fsum(s["loss"] for s in last) / len(last), unit="loss", n=len(last)),
        "train_s": Measurement(value=math.fsum(s["seconds"] for s in curve), unit="s"),
        "tokens": Measurement(value=sum(s["tokens"] for s in curve), unit="tokens"),
        "steps": Measurement(value=len(curve), unit="steps"),
    }


def _quality(data: TaskData, scores: Mapping[str, Scores]) -> dict[str, Measurement]:
    """Every metric of the kind on every split, where it is defined and its columns were measured."""
    found = {}
    for split, one in scores.items():
        for metric in metrics.of_kind(data.kind):
            value = metrics.value(metric, one)
            if value is not None:
                name = f"{split}.{metric.name}"
                found[name] = Measurement(value=value, unit=metric.unit, n=len(one.example_id_E))
    return found


def _contributions(metric: metrics.Metric, scores: Mapping[str, Scores]) -> dict[str, np.ndarray]:
    """Each example's part in the task's metric, for splits where the metric is defined."""
    return {
        split: metrics.contributions(metric, one)
        for split, one in scores.items()
        if metrics.value(metric, one) is not None
    }


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance() -> dict[str, Fact]:
    """Under what a trial was executed: versions and kind of machine, and nothing that names it or its user."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine(), **versions}
