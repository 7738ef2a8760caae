"""Carrying out trials that train together: train, evaluate, record. The one place where steps become records."""

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tunetrial.analysis import metrics, texts
from tunetrial.core.engine import Pack, Session, Step
from tunetrial.core.errors import DivergedError, DoesNotFitError, ModelError
from tunetrial.core.evidence import Example, Fact, Measurement, Scores, Table, TaskData, TrialRecord
from tunetrial.core.pins import TEXT, given
from tunetrial.core.study import Observed, Trial
from tunetrial.store import TrialFolder, begin_together
from tunetrial.store.speeds import processor
from tunetrial.tasks import sandbox

LIBRARIES = ("numpy", "safetensors", "torch", "transformers", "tunetrial")
LAST_SHARE = 0.1
ORPHAN_S = 60.0


class Interrupted(Exception):
    """The trial was asked to stop between two steps. What is on disk is kept, and the next attempt goes on from it."""


@dataclass(frozen=True)
class Terms:
    """On what terms a trial is carried out: the task's metric, whose contributions are kept with the scores; whether
    the engine is a simulator; how many examples of how many members of a pack may be computed at once, if less than the
    engine would; the JSON of the schema that completions are held against; the seed whose runs are kept at a rung, to
    go on from there; what is observed of the model besides its answers, and the seed whose finals show the floors of
    drift, which are the base's."""

    metric: str
    synthetic: bool
    micro_batch: int | None = None
    at_once: int | None = None
    json_schema: str | None = None
    kept_seed: int | None = None
    observe: tuple[Observed, ...] = ()
    floor_seed: int | None = None


def scored(splits: Iterable[str]) -> tuple[str, ...]:
    """The splits whose rows are answered."""
    return tuple(split for split in splits if split != "train" and not split.startswith(TEXT))


class Watch(Protocol):
    """Hears how a trial goes; may raise Interrupted from `stepped`."""

    def started(self, facts: Mapping[str, Fact]) -> None: ...

    def stepped(self, step: Step) -> None: ...


def carry_out(
    pack: Sequence[Trial],
    data: TaskData,
    session: Session,
    folders: Sequence[TrialFolder],
    *,
    terms: Terms,
    watch: Watch,
) -> list[TrialRecord]:
    """Carry out trials that train together, or what an earlier attempt left of them, and record each.

    A member that has its record already (the pack was killed between two of them) trains along and is recorded no
    second time; such an attempt begins afresh and saves no checkpoints. The engine is given only the splits that the
    trials may see: the test split goes to finals alone. Diverging is a result and is recorded; any error leaves all
    members that have no record yet without one.

    Raises:
        Interrupted: `watch` said so; nothing is recorded.
        DoesNotFitError: It did not fit. That is a result only if it was alone: whoever knows says `record_infeasible`.
        StoreError: Another process still has a trial in hand after a minute, or the disk is full.
    """
    final = pack[0].purpose == "final"
    seen = {name: data.splits[name] for name in given(data.splits, final=final, texts=bool(terms.observe))}
    with ExitStack() as held:
        due = {number: folder for number, folder in enumerate(folders) if not folder.done}
        for folder in due.values():
            held.enter_context(folder.hold(wait_s=ORPHAN_S))
        due = {number: folder for number, folder in due.items() if not folder.done}
        if due:
            for number, folder in due.items():
                folder.take_up(pack[number].course)
            begin_together(list(due.values()), [trial.id for trial in pack], afresh=len(due) < len(pack))
            ended = _attempt(pack, replace(data, splits=seen), session, due, terms, watch)
            for number, (record, scores, tables) in ended.items():
                record = record.model_copy(update={"synthetic": terms.synthetic, "provenance": provenance()})
                if record.status == "ok" and pack[number].share and pack[number].seed == terms.kept_seed:
                    due[number].pause(pack[number].course)
                due[number].finish(record, scores, _contributions(metrics.find(terms.metric), scores), tables)
    return [folder.record() for folder in folders]


class Ended(NamedTuple):
    """How a trial ended: its record, scores by split, and tables of what was observed besides."""

    record: TrialRecord
    scores: dict[str, Scores] = {}
    tables: dict[str, Table] = {}


def _attempt(
    pack: Sequence[Trial],
    data: TaskData,
    session: Session,
    due: Mapping[int, TrialFolder],
    terms: Terms,
    watch: Watch,
) -> dict[int, Ended]:
    """Go through the trials and note how long that took, to each its share, however it ends."""
    started_s = time.monotonic()
    try:
        if pack[0].purpose == "probe":
            return {0: Ended(_probe(pack[0], data, session, due[0]))}
        return _train(pack, data, session, due, watch=watch, terms=terms)
    finally:
        for folder in due.values():
            folder.leg((time.monotonic() - started_s) / len(pack))


def record_infeasible(trial: Trial, folder: TrialFolder, *, synthetic: bool, reason: str) -> None:
    """Record that a trial does not fit in memory although it was alone on the machine."""
    with folder.hold(wait_s=ORPHAN_S):
        folder.begin()
        record = TrialRecord(trial=trial, status="infeasible", reason=reason, synthetic=synthetic)
        folder.finish(record.model_copy(update={"provenance": provenance()}), {})


def _train(
    pack: Sequence[Trial],
    data: TaskData,
    session: Session,
    due: Mapping[int, TrialFolder],
    *,
    watch: Watch,
    terms: Terms,
) -> dict[int, Ended]:
    """Train to the last step, keep the artifacts of finals, predict every split they may see, observe the models."""
    run = session.start_pack(pack, data, micro_batch=terms.micro_batch, at_once=terms.at_once)
    watch.started(run.facts(0))
    checkpoints = [due[number].checkpoint for number in due] if len(due) == len(pack) else None
    for steps in run.steps(checkpoints):
        for number, folder in due.items():
            folder.append(steps[number])
        watch.stepped(next(step for number, step in enumerate(steps) if number not in run.diverged))
    live = [number for number in due if number not in run.diverged]
    for number in live if pack[0].purpose == "final" else ():
        due[number].save_artifact(lambda into, number=number: run.save(number, into))
    started_s = time.monotonic()
    answers = {split: _answers(run, data, split) for split in scored(data.splits)} if live else {}
    evaluate_s = (time.monotonic() - started_s) / len(pack)
    ended = {
        number: _concluded(run, number, pack[number], folder, data, answers, evaluate_s, terms)
        for number, folder in due.items()
    }
    if not terms.observe:
        return ended
    return {n: _observed(run, n, data, one, terms) if one.record.status == "ok" else one for n, one in ended.items()}


def _observed(run: Pack, number: int, data: TaskData, ended: Ended, terms: Terms) -> Ended:
    """Look at what was tuned, one thing after the other. What finds no room in memory, or cannot be told of such an
    adapter, is absent, and the record says so: it is no fault of the arm, which was trained and scored."""
    tables, found, said = {}, {}, {}
    for what in terms.observe:
        if what == "floors" and ended.record.trial.seed != terms.floor_seed:
            continue
        started_s = time.monotonic()
        try:
            table = run.observe(number, data, what)
        except (DoesNotFitError, ModelError) as error:
            said[f"{what}.not_observed"] = str(error)
            continue
        if table is not None:
            tables[what] = table
            found[f"{what}.observe_s"] = Measurement(value=time.monotonic() - started_s, unit="s")
    record = ended.record
    news = {"measurements": record.measurements | found, "resolved": record.resolved | said}
    return ended._replace(record=record.model_copy(update=news), tables=tables)


@dataclass(frozen=True)
class Answers:
    """What all members of a pack answered to one split, and, of texts, how likely its targets are to them."""

    predictions: list[list[str] | list[float]]
    likelihoods: list[list[tuple[float, int]]] | None


def _answers(run: Pack, data: TaskData, split: str) -> Answers:
    examples = data.splits[split]
    return Answers(run.predict(examples), run.likelihoods(examples) if data.kind == "generate" else None)


def _concluded(
    run: Pack,
    number: int,
    trial: Trial,
    folder: TrialFolder,
    data: TaskData,
    answers: Mapping[str, Answers],
    evaluate_s: float,
    terms: Terms,
) -> Ended:
    """The record of one member, and its scores; none of one that has diverged, in training or in what it answers."""
    try:
        if number in run.diverged:
            raise DivergedError(run.diverged[number])
        scores = {
            split: score(one, number, data.splits[split], data.kind, trial, terms) for split, one in answers.items()
        }
    except DivergedError as error:
        return Ended(TrialRecord(trial=trial, status="diverged", reason=str(error)))
    found = {
        **run.measurements(number),
        **_training(folder.curve()),
        **({"taken_up": Measurement(value=folder.taken_up, unit="steps")} if folder.taken_up else {}),
        "evaluate_s": Measurement(value=evaluate_s, unit="s"),
        **_quality(data, scores),
    }
    if trial.purpose == "final":
        found["artifact_bytes"] = Measurement(value=_size_bytes(folder.artifact), unit="bytes")
    token_digest, examples_digest = run.digests(number)
    record = TrialRecord(
        trial=trial,
        status="ok",
        measurements=found,
        token_digest=token_digest,
        examples_digest=examples_digest,
        resolved={**run.facts(number), **_walls(data)},
    )
    return Ended(record, scores)


def _probe(trial: Trial, data: TaskData, session: Session, folder: TrialFolder) -> TrialRecord:
    """Measure cost; what it saves for that is not kept. Figures of different processors must not be compared."""
    found = session.probe(trial, data, folder.path / ".probe.tmp")
    resolved = {"processor": processor(), "cores": os.cpu_count()}
    return TrialRecord(trial=trial, status="ok", measurements=found, resolved=resolved)


def score(answers: Answers, number: int, examples: Sequence[Example], kind: str, trial: Trial, terms: Terms) -> Scores:
    """What one member answered to a split, beside what was right.

    Raises:
        DivergedError: A number is not finite.
    """
    predictions = answers.predictions[number]
    _check_finite([p for p in predictions if not isinstance(p, str)], "prediction", trial)
    numeric = float if kind == "regress" else object
    measured = {}
    if answers.likelihoods is not None:
        measured = _measure(answers.likelihoods[number], examples, predictions, trial, terms)
    return Scores(
        example_id_E=tuple(e.id for e in examples),
        cluster_E=tuple(e.cluster for e in examples),
        target_E=np.array([e.target for e in examples], dtype=numeric),
        prediction_E=np.array(predictions, dtype=numeric),
        measured=measured,
    )


def _measure(
    likelihoods: Sequence[tuple[float, int]],
    examples: Sequence[Example],
    completions: Sequence[str],
    trial: Trial,
    terms: Terms,
) -> dict[str, np.ndarray]:
    """What target and completion alone do not tell, in columns of numbers, shape (E,)."""
    nll_E, tokens_E = zip(*likelihoods, strict=True)
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


def provenance() -> dict[str, Fact]:
    """Under what a trial was executed: versions and kind of machine, and nothing that names it or its user."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine(), **versions}
