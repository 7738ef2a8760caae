"""Arms that take no optimiser step: the base as it is, asked with or without examples, and a linear model of words."""

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tunetrial import methods
from tunetrial.core.engine import Step
from tunetrial.core.errors import DataError, IntegrityError, SpecError
from tunetrial.core.evidence import Example, Fact, Measurement, TaskData
from tunetrial.core.study import Observed, Trial
from tunetrial.engine.probe import SINGLE, Clock, Peak
from tunetrial.engine.streams import stream

BETWEEN_SHOTS = "\n\n"
STRENGTHS = tuple(10.0**power for power in range(-2, 4))


def start(session, trial: Trial, data: TaskData) -> "UntunedRun | TfidfRun":
    """The run of a method that is not `tuned`."""
    if methods.find(trial.arm).uses_base:
        return UntunedRun(session, trial, data)
    return TfidfRun(data)


class UntunedRun:
    """The base as it is. Its shots are drawn from the training rows by the trial's stream "shots"."""

    first_step = 0
    token_digest = None
    examples_digest = None

    def __init__(self, session, trial: Trial, data: TaskData):
        """
        Raises:
            SpecError: There are fewer training rows than shots.
        """
        self.session, self.reader = session, session.reader([trial], data)
        train, wanted = data.splits["train"], methods.find(trial.arm).shots
        if wanted > len(train):
            raise SpecError(f"arms.{trial.arm.name}.shots: more than there are training rows, got {wanted}; use fewer")
        drawn = np.random.default_rng(stream(trial.seed, "shots")).permutation(len(train))[:wanted]
        self.shots = tuple(train[row] for row in drawn)

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """There is none."""
        yield from ()

    def predict(self, examples: Sequence[Example]) -> list[str]:
        return self.reader.predict(self._asked(examples))[0]

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        return self.reader.likelihoods(self._asked(examples))[0]

    def _asked(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the shots before them.

        Raises:
            SpecError: One is then longer than the base's context.
        """
        if not self.shots:
            return list(examples)
        asked = [with_shots(example, self.shots) for example in examples]
        longest, context = max(len(row.tokens) for row in self.session.texts.rows(asked)), self.session.shape.context
        if longest > context:
            raise SpecError(
                f"shots: {len(self.shots)} make a prompt of {longest} tokens, the base takes {context}; use fewer shots"
            )
        return asked

    def observe(self, data: TaskData, what: Observed) -> None:
        """Nothing was tuned."""

    def save(self, folder: Path) -> None:
        """Write which training rows were shown; there are no weights."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"base": str(self.session.base), "shots": [example.id for example in self.shots]}
        (folder / "shots.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def verify(self, folder: Path) -> None:
        """Nothing was trained."""

    def facts(self) -> dict[str, Fact]:
        return self.session.facts()

    def measurements(self) -> dict[str, Measurement]:
        return {
            "trainable_parameters": Measurement(value=0, unit="weights"),
            "steps": Measurement(value=0, unit="steps"),
        }


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """Put answered examples before a prompt: as text with a blank line between, or as turns after the system's."""
    if example.messages is None:
        shown = "".join(f"{shot.prompt}{shot.target}{BETWEEN_SHOTS}" for shot in shots)
        return replace(example, prompt=shown + example.prompt)
    own = json.loads(example.messages)
    first = next((n for n, message in enumerate(own) if message["role"] != "system"), len(own))
    turns = [m for shot in shots for m in json.loads(shot.messages) if m["role"] != "system"]
    return replace(example, messages=json.dumps([*own[:first], *turns, *own[first:]], sort_keys=True))


class TfidfRun:
    """TF-IDF weights of words and pairs of words, and a linear model over them.

    Logistic regression for labels, ridge regression for numbers; of six strengths of regularisation the one with the
    least log loss or squared error on the validation rows.
    """

    first_step = 0
    token_digest = None
    examples_digest = None

    def __init__(self, data: TaskData):
        self.data = data

    def steps(self, checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
        """Fit; there is no optimiser step of ours.

        Raises:
            DataError: The training rows have no words, or one label alone.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer

        started = time.perf_counter()
        train, validation = self.data.splits["train"], self.data.splits["validation"]
        if self.data.kind == "classify" and len({example.target for example in train}) < 2:
            raise DataError(f"{self.data.name}: tfidf: all training rows have one label; remove the arm")
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        try:
            features = self.words.fit_transform([_text(example) for example in train])
        except ValueError as error:
            raise DataError(f"{self.data.name}: tfidf: no words in the training rows, got {error}; remove it") from None
        targets, wanted = (self._targets(rows) for rows in (train, validation))
        held = self.words.transform([_text(example) for example in validation])
        models = [self._model(strength).fit(features, targets) for strength in STRENGTHS]
        self.model = min(models, key=lambda model: self._loss(model, held, wanted))
        self.seconds = time.perf_counter() - started
        yield from ()

    def _targets(self, examples: Sequence[Example]) -> np.ndarray:
        return np.array([e.target for e in examples], dtype=float if self.data.kind == "regress" else object)

    def _model(self, strength: float):
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.data.kind == "regress":
            return Ridge(alpha=strength)
        return LogisticRegression(C=1 / strength, max_iter=10_000)

    def _loss(self, model, features, targets: np.ndarray) -> float:
        if self.data.kind == "regress":
            return float(np.mean((model.predict(features) - targets) ** 2))
        place = {label: number for number, label in enumerate(model.classes_)}
        probability_EL = np.column_stack([model.predict_proba(features), np.zeros(len(targets))])
        right_E = probability_EL[np.arange(len(targets)), [place.get(target, -1) for target in targets]]
        return float(-np.log(np.maximum(right_E, 1e-12)).mean())

    def predict(self, examples: Sequence[Example]) -> list[str] | list[float]:
        return self.model.predict(self.words.transform([_text(example) for example in examples])).tolist()

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        raise SpecError("tfidf: it writes no text, so it has no likelihood; use it for labels and numbers")

    def observe(self, data: TaskData, what: Observed) -> None:
        """Nothing was tuned."""

    def save(self, folder: Path) -> None:
        """Write the words in `tfidf.json` and the numbers in `model.safetensors`; no pickle."""
        folder.mkdir(parents=True, exist_ok=True)
        labels = [str(label) for label in getattr(self.model, "classes_", ())]
        content = {"words": self.words.get_feature_names_out().tolist(), "labels": labels, **self.facts()}
        (folder / "tfidf.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        numbers = {"idf": self.words.idf_, "weights": self.model.coef_, "offsets": np.atleast_1d(self.model.intercept_)}
        save_file({name: np.ascontiguousarray(array) for name, array in numbers.items()}, folder / "model.safetensors")

    def verify(self, folder: Path) -> None:
        if not np.array_equal(load_file(folder / "model.safetensors")["weights"], self.model.coef_):
            raise IntegrityError(f"{folder}: not the model that was fitted; report this, and do not use the artifact")

    def facts(self) -> dict[str, Fact]:
        return {"scikit_learn": version("scikit-learn")}

    def measurements(self) -> dict[str, Measurement]:
        count = self.model.coef_.size + np.size(self.model.intercept_)
        return {
            "trainable_parameters": Measurement(value=count, unit="weights"),
            "steps": Measurement(value=0, unit="steps"),
            "train_s": Measurement(value=self.seconds, unit="s"),
        }


def _text(example: Example) -> str:
    """What a row asks, as plain text."""
    if example.messages is None:
        return example.prompt
    return "\n".join(str(message.get("content") or "") for message in json.loads(example.messages)[:-1])


def measure(session, trial: Trial, data: TaskData, folder: Path) -> dict[str, Measurement]:
    """What such an arm costs: as `probe.measure`, without steps.

    `train_s` is the time to fit, of the base as it is that of nothing. The peak of a model without a base is the
    growth of the process, and absent where costs are of a GPU's memory.
    """
    clock = Clock(session.device)
    session.prepare(trial)
    memory, own = Peak(session), not methods.find(trial.arm).uses_base
    run = start(session, trial, data)
    train_s = clock.time(lambda: list(run.steps(None)))
    examples = data.splits["validation"]
    run.predict(examples[:1])
    evaluate_s = clock.time(lambda: run.predict(examples))
    peak = memory.read()
    single_s = [clock.time(lambda e=e: run.predict([e])) for e in (examples * SINGLE)[:SINGLE]]
    save_s = clock.time(lambda: run.save(folder))
    artifact_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    found = {
        "train_s": Measurement(value=train_s, unit="s"),
        "evaluate_examples_per_s": Measurement(value=len(examples) / evaluate_s, unit="examples/s", n=len(examples)),
        "latency_s": Measurement(value=statistics.median(single_s), unit="s", n=len(single_s)),
        "save_s": Measurement(value=save_s, unit="s"),
        "artifact_bytes": Measurement(value=artifact_bytes, unit="bytes"),
        "trainable_parameters": run.measurements()["trainable_parameters"],
    }
    if peak is not None and not (own and session.device.type == "cuda"):
        found["peak_bytes"] = Measurement(value=peak - (memory.base_bytes if own else 0), unit="bytes")
    return found
