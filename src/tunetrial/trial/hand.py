"""An arm's adapters on all tasks of a study in hand: its base, its rows, and what any adapters answer to them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tunetrial import models
from tunetrial.analysis import combined, metrics
from tunetrial.core.errors import DivergedError, EvidenceError
from tunetrial.core.evidence import Evidence, Example, Scores, TaskData
from tunetrial.core.study import TaskSpec, Trial
from tunetrial.trial.combinable import Finals
from tunetrial.trial.execution import Answers, Terms, score
from tunetrial.trial.raters import answered

if TYPE_CHECKING:
    from tunetrial.engine.combine import Adapter


class Hand:
    """Adapters, rows and the base of one study. Test rows are read when they are first asked for."""

    def __init__(self, evidence: Evidence, root: Path, finals: Finals):
        self.evidence, self.root, self.finals = evidence, root, finals
        self.lock, self.arm, self.seeds = evidence.lock, finals.arm, finals.seeds
        self.tasks: tuple[TaskSpec, ...] = self.lock.study.tasks
        self.names = tuple(spec.name for spec in self.tasks)
        self.base = models.of_arm(evidence.lock, finals.arm, root)
        self._rows: dict[tuple[str, str], tuple[Example, ...]] = {}

    def rows(self, task: str, split: str) -> tuple[Example, ...]:
        """The rows of a split that finals answered; IntegrityError if they are others now."""
        if (task, split) not in self._rows:
            found = answered(self.evidence, self.lock.study.task(task), self.root, split)
            self._rows[task, split] = tuple(found.values())
        return self._rows[task, split]

    @cached_property
    def session(self):
        from tunetrial.engine.torch_engine import TorchEngine  # torch

        return TorchEngine().open(self.base.folder, self.lock.precision)

    @cached_property
    def singles(self) -> dict[tuple[str, int], "Adapter"]:
        """The arm's adapters, by task and seed."""
        from tunetrial.engine import combine as engine

        return {key: engine.read(folder, self.base) for key, folder in self.finals.artifacts.items()}

    @cached_property
    def untuned(self) -> dict[str, float]:
        """The untuned base's metric on each task's validation rows."""
        from tunetrial.engine import combine as engine

        nothing = engine.zero(next(iter(self.singles.values())))
        found = {}
        for name, (one,) in self.answers([nothing], "validation").items():
            value = self.value(name, one)
            if value is None:
                what = "no gain can be counted over the untuned base, whose metric is not defined"
                raise EvidenceError(f"{name}: {what}, got none; use another metric")
            found[name] = value
        return found

    def check_gains(self) -> None:
        """EvidenceError where a task's own adapters gain nothing on validation rows, or less than the margin, so that
        what is kept of it would be noise."""
        for spec in self.tasks:
            own = self.finals.validation(spec.name, spec.metric)
            gain = abs(sum(own) / len(own) - self.untuned[spec.name])
            if 0 < gain < spec.margin:
                what = f"adapters gain less than the margin of {spec.margin:g} over the untuned base"
                raise EvidenceError(f"{spec.name}: {what}, got {gain:.3g} {spec.metric}; leave the task out")
        single = {spec.name: self.finals.validation(spec.name, spec.metric) for spec in self.tasks}
        self.kept([{name: own[n] for name, own in single.items()} for n in range(len(self.seeds))])

    def answers(self, given: Sequence["Adapter"], split: str) -> dict[str, list[Scores | None]]:
        """What adapters answer to each task's rows; None of one whose answers are not finite."""
        from tunetrial.engine import several  # torch

        found: dict[str, list[Scores | None]] = {}
        for spec in self.tasks:
            trial, asked = self.finals.trial(spec.name, self.seeds[0]), self.rows(spec.name, split)
            splits = dict.fromkeys(("train", "validation", "test"), asked)
            data = TaskData(spec.name, spec.kind, self.lock.data[spec.name].labels, splits)
            with several.attached(self.session, trial, given) as pack:
                reader = pack.reader(trial, data)
                likelihoods = reader.likelihoods(asked) if spec.kind == "generate" else None
                answers = Answers(reader.predict(asked), likelihoods)
            terms = Terms(spec.metric, synthetic=False, json_schema=spec.json_schema)
            found[spec.name] = [_scored(answers, n, asked, spec, trial, terms) for n in range(len(given))]
        return found

    def value(self, task: str, one: Scores | None) -> float | None:
        """A task's metric; None where there are no sound answers, or it is not defined on them."""
        return None if one is None else metrics.value(metrics.find(self.lock.study.task(task).metric), one)

    def kept(self, by_seed: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
        """The share of each task's gain that is kept by combinations with these metrics."""
        combined_S, kept = list(by_seed), {}
        for spec in self.tasks:
            single_S = self.finals.validation(spec.name, spec.metric)
            about = {"task": spec.name, "metric": spec.metric}
            own_S = [values[spec.name] for values in combined_S]
            kept[spec.name] = combined.share_kept(own_S, single_S, self.untuned[spec.name], **about)
        return kept


def _scored(answers: Answers, number: int, asked: tuple, spec: TaskSpec, trial: Trial, terms: Terms) -> Scores | None:
    try:
        return score(answers, number, asked, spec.kind, trial, terms)
    except DivergedError:
        return None
