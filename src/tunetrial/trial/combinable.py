"""What of a study can be combined: an arm's adapters on every task, at the seeds that all tasks have; and what they
and other ways to serve the same tasks take."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial import methods
from tunetrial.analysis import arms, costs
from tunetrial.core.combination import HOWS, Recipe, Stored
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.study import Lock, Trial
from tunetrial.spec.faults import nearest, show
from tunetrial.store import StudyFolder

LEAST_SEEDS, LEAST_TASKS = 2, 2


@dataclass(frozen=True)
class Finals:
    """An arm's finals on all tasks of a study, by task and seed, with the folders of their adapters."""

    arm: str
    seeds: tuple[int, ...]
    records: Mapping[tuple[str, int], TrialRecord]
    artifacts: Mapping[tuple[str, int], Path]

    def record(self, task: str, seed: int) -> TrialRecord:
        return self.records[task, seed]

    def trial(self, task: str, seed: int) -> Trial:
        return self.records[task, seed].trial

    def rate(self, task: str) -> float:
        """The learning rate that was found for a task."""
        return self.trial(task, self.seeds[0]).learning_rate

    def validation(self, task: str, metric: str) -> list[float]:
        """The metric on validation rows, by seed."""
        return [self.record(task, seed).measurements[f"validation.{metric}"].value for seed in self.seeds]


def check(evidence: Evidence, store: StudyFolder, arm: str, recipes: Sequence[Recipe]) -> Finals:
    """Find the adapters, and refuse what cannot be combined before anything is read or opened.

    Raises:
        ConfigError: No way is named or one twice; there is no such arm, it has no adapter that is added, or a task is
            not read as text.
        EvidenceError: The study is synthetic, a final of the arm diverged, or it lacks finals that are kept.
    """
    lock, hows = evidence.lock, [recipe.how for recipe in recipes]
    if not hows or len(set(hows)) < len(hows):
        got = ", ".join(hows) or "none"
        raise ConfigError(f"combine: needs ways to combine, each once, got {got}; name some of {', '.join(HOWS)}")
    _check_arm(lock, arm)
    _check_tasks(lock, recipes)
    if lock.engine == "sim":
        raise EvidenceError(f"combine: a synthetic study has no weights, got engine {lock.engine}; use one that trains")
    records, seeds = {}, []
    for spec in lock.study.tasks:
        name = f"validation.{spec.metric}"
        finals = evidence.of(purpose="final", task=spec.name, arm=arm)
        if lost := sum(r.status == "diverged" for r in finals):
            what = f"{arm} diverged on {spec.name}, and the seeds that came through would flatter what is made of them"
            raise EvidenceError(f"combine: {what}, got {lost} of {len(finals)} finals; lower the rate and run it again")
        sound = [
            r for r in finals if r.status == "ok" and name in r.measurements and store.trial(r.trial).artifact.is_dir()
        ]
        records |= {(spec.name, record.trial.seed): record for record in sound}
        seeds.append({record.trial.seed for record in sound})
    shared = tuple(sorted(set.intersection(*seeds)))
    if len(shared) < LEAST_SEEDS:
        got = ", ".join(f"{spec.name} {len(own)}" for spec, own in zip(lock.study.tasks, seeds, strict=True))
        what = f"needs {LEAST_SEEDS} or more seeds that have a kept final of {arm} on every task"
        raise EvidenceError(f"combine: {what}, got {len(shared)} ({got}); run the study first")
    artifacts = {key: store.trial(record.trial).artifact for key, record in records.items() if key[1] in shared}
    return Finals(arm, shared, {key: records[key] for key in artifacts}, artifacts)


def _check_arm(lock: Lock, arm: str) -> None:
    names = [one.name for one in lock.study.arms]
    if arm not in names:
        raise ConfigError(f"combine: no such arm, got {show(arm)}; {nearest(arm, names)}")
    found = lock.study.arm(arm)
    if found.method not in ("lora", "qlora"):
        raise ConfigError(f"combine: {arm} has no low-rank updates to add, got method {found.method}; name a LoRA arm")
    if methods.find(found).dora:
        what = "DoRA scales what it is added to, so it is no update to add"
        raise ConfigError(f"combine: {arm}: {what}, got dora; name an arm without it")


def _check_tasks(lock: Lock, recipes: Sequence[Recipe]) -> None:
    study = lock.study
    if len(study.tasks) < LEAST_TASKS:
        raise ConfigError(
            f"combine: needs {LEAST_TASKS} or more tasks, got {len(study.tasks)}; name a study of several"
        )
    for spec in study.tasks:
        if study.readout_of(spec.name) == "head":
            do = "write readout: labels" if spec.kind == "classify" else "ask for the number as text (kind: generate)"
            what = "a head is trained beside one adapter, and would answer for no other"
            raise ConfigError(f"combine: {spec.name}: {what}, got readout head; {do} and run the study again")
        if lock.folding(spec.name):
            what = "folds share no validation rows to choose on"
            raise ConfigError(f"combine: {spec.name}: {what}, got {lock.folding(spec.name)}; name a test file")
        if spec.kept_share is not None:
            what = "the margin is a share of one arm's gain"
            raise ConfigError(f"combine: {spec.name}: {what}, got {spec.margin}; state it in units of {spec.metric}")
    epochs = {spec.name: spec.epochs or study.epochs for spec in study.tasks}
    if any(recipe.how == "joint" for recipe in recipes) and len(set(epochs.values())) > 1:
        got = ", ".join(f"{name} {count}" for name, count in epochs.items())
        raise ConfigError(
            f"combine: joint: rows of all tasks are seen equally often, got epochs {got}; make them equal"
        )


def stored(evidence: Evidence, arm: str) -> Iterator[Stored]:
    """What serving every task takes with an artifact for each, by each arm that was trained on all: bytes of the
    finals' artifacts, medians over seeds, and seconds of training by the probe, sums over tasks."""
    for one in (one for one in evidence.lock.study.arms if not one.untrained):
        sizes, seconds = [], []
        for spec in evidence.lock.study.tasks:
            finals = evidence.of(purpose="final", task=spec.name, arm=one.name)
            sizes.append([r.measurements["artifact_bytes"].value for r in finals if r.status == "ok"])
            taken = costs.of_arm(evidence, arms.outcome(evidence, spec.name, one.name).result).get("train_s")
            seconds.append(taken and taken.value)
        if all(sizes):
            yield Stored(
                name=f"{one.name} of each task" if one.name == arm else one.name,
                artifacts=len(sizes),
                artifact_bytes=sum(round(statistics.median(own)) for own in sizes),
                train_s=None if None in seconds else sum(seconds),
            )
