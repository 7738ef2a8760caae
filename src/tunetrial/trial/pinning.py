"""Locking a study: its base, its rows and its precision are looked up, checked and pinned before the first trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

from tunetrial import methods, models, tasks
from tunetrial.core.errors import DataError, IntegrityError, ModelError, SpecError, TunetrialError
from tunetrial.core.evidence import Example, TaskData, example_row
from tunetrial.core.ladder import grounded
from tunetrial.core.pins import TEXT
from tunetrial.core.study import BasePin, DataPin, Lock, Readout, Study, Trial
from tunetrial.core.work import Counted
from tunetrial.plan import Gauge, Known, Sizes, first_packs
from tunetrial.plan.escalation import refuse_folds
from tunetrial.plan.ladder import rung_rows
from tunetrial.plan.tuning import tuning_seeds
from tunetrial.store import home
from tunetrial.trial import rows
from tunetrial.trial.calibration import gauge
from tunetrial.trial.execution import Terms
from tunetrial.trial.pool import Worker, cores
from tunetrial.trial.preflight import attempts


@dataclass(frozen=True)
class Pinned:
    """A locked study, with what its trials need: rows, base and engine, the device's kind and its free memory.

    `data` has the rows of every task, or of each of its folds, and of a ladder's parts of them; `counted` are the
    tokens of each task's training rows.
    Of arms on another base than the study's, `folders` has the base and `others` its sizes, by arm. `traced` is the
    memory and work of an arm's trial on each task, solo and as many together as its tuning begins with, where it could
    be counted, and `gauge` how fast the device is.
    """

    lock: Lock
    data: dict[str, TaskData]
    base: Path
    engine: str
    device: str
    free_bytes: int
    counted: dict[str, tuple[int, ...]]
    folders: dict[str, Path] = field(default_factory=dict)
    others: dict[str, Sizes] = field(default_factory=dict)
    traced: dict[str, dict[str, Counted]] = field(default_factory=dict)
    gauge: Gauge | None = None

    @property
    def known(self) -> Known:
        """What plans go by."""
        return Known(self.data, self.counted, self.others, self.traced, self.gauge)

    def rows(self, trial: Trial) -> TaskData:
        """The rows of a trial's task; a rung of ranks has those of the task that it is of."""
        name = trial.task
        return replace(self.data.get(name) or self.data[grounded(name)], name=name)

    def folder(self, arm: str) -> Path:
        """The folder of an arm's base."""
        return self.folders.get(arm, self.base)

    def terms(self, trial: Trial, *, micro_batch: int | None, at_once: int | None) -> Terms:
        """On what terms a trial of this study is carried out."""
        spec, synthetic = self.lock.study.task(trial.task), self.lock.engine == "sim"
        return Terms(
            spec.metric,
            synthetic,
            micro_batch=micro_batch,
            at_once=at_once,
            json_schema=spec.json_schema,
            kept_seed=tuning_seeds(self.lock)[0],
            observe=self.lock.study.observed(trial.purpose),
            floor_seed=self.lock.final_seeds(1)[0],
        )


def pin(
    study: Study, root: Path, *, engine: str = "torch", log: Path, preflight: bool = False, counting: bool = True
) -> Pinned:
    """Resolve and check all that a study names. Paths in it are relative to `root`.

    With `preflight` every arm takes two steps on every task, and its artifact is saved and read. Without `counting`
    nothing is counted of their training on this machine.

    The rows are read once, here, and every trial is given these very rows. Rows whose prompt has more tokens than
    the controls allow, or than the base's own context, are left out, alike in every arm, and the remarks say how many;
    where arms are on several bases, rows are left out that are too long for any.

    Raises:
        ModelError, IntegrityError, DataError, SpecError, ConfigError: Base, rows, ladder or engine cannot be used as
            named; or more than 10 % of the rows of a split are too long.
    """
    bases = resolve_bases(study, root)
    shapes = {name: models.shape(base.folder) for name, base in bases.items()}
    _check_arms(study, shapes)
    loaded = rows.load(study, root)
    texts = _held_out(study, root, shapes)
    survey = Survey(log, engine=engine, precision=study.precision)
    try:
        machines, lengths = {}, {}
        for name, base in bases.items():
            machines[name] = survey.open(base.folder)
            lengths[name] = {task: survey.lengths(own, study.readout_of(task)) for task, own in loaded.items()}
        machine = machines[study.base_model]
        limits = {name: min(study.max_tokens, shape.context) for name, shape in shapes.items()}
        fitting = {
            task: rows.fitting(own, {name: counts[task] for name, counts in lengths.items()}, limits, study.max_tokens)
            for task, own in loaded.items()
        }
        whole = {task: own for task, (own, _) in fitting.items()}
        data = {part: own for task in whole for part, own in _parts(study, whole[task]).items()}
        data = {part: replace(own, splits={**own.splits, **texts}) for part, own in data.items()}
        whole = {task: own if own.folds else data[task] for task, own in whole.items()}
        pins = {name: _base_pin(base, shapes[name], machines[name]) for name, base in bases.items()}
        lock = _lock(study, pins, whole | data, machine)
        counted = {name: {task: tokens[name] for task, (_, tokens) in fitting.items()} for name in bases}
        traced = _traced(survey, lock, bases, counted, machine["device"]) if counting else {}
        if preflight:
            tries = ((bases[study.base_of(trial.arm.name)].folder, trial, few) for trial, few in attempts(lock, data))
            all(survey.attempt(*one) for one in tries)
    finally:
        survey.close()
    elsewhere = _elsewhere(study)
    return Pinned(
        lock=lock,
        data=data,
        base=bases[study.base_model].folder,
        engine=engine,
        device=machine["device"],
        free_bytes=machine["free_bytes"],
        counted=counted[study.base_model],
        folders={arm: bases[name].folder for arm, name in elsewhere.items()},
        others={arm: Sizes(shapes[name], counted[name]) for arm, name in elsewhere.items()},
        traced=traced,
        gauge=None if machine["synthetic"] else gauge(home(), study.hardware, machine["device"]),
    )


def _traced(
    survey: "Survey",
    lock: Lock,
    bases: Mapping[str, models.PinnedModel],
    counted: Mapping[str, Mapping[str, Sequence[int]]],
    device: str,
) -> dict[str, dict[str, Counted]]:
    """What can be counted of each arm on each task, with the rows in the order of its solo probe."""
    members = first_packs(lock, device)
    found: dict[str, dict[str, Counted]] = {}
    for arm, spec in ((arm, spec) for arm in lock.study.arms for spec in lock.study.tasks):
        base = lock.study.base_of(arm.name)
        survey.open(bases[base].folder)
        order = {
            "do": "count",
            "arm": arm.model_dump(mode="json"),
            "controls": lock.controls(spec.name).model_dump(mode="json"),
            "kind": spec.kind,
            "outputs": len(lock.data[spec.name].labels) or 1,
            "lengths": list(counted[base][spec.name]),
            "seed": lock.final_seeds(1)[0],
            "members": members.get((spec.name, arm.name), 1),
        }
        if (answer := survey.ask(order)["found"]) is not None:
            found.setdefault(arm.name, {})[spec.name] = Counted.model_validate(answer)
    return found


def _lock(study: Study, pins: Mapping[str, BasePin], data: Mapping[str, TaskData], machine: dict) -> Lock:
    own = pins[study.base_model]
    return Lock(
        study=study,
        base_fingerprint=own.fingerprint,
        parameters=own.parameters,
        precision=machine["precision"],
        template_digest=own.template_digest,
        data={name: _data_pin(own) for name, own in data.items()},
        engine="sim" if machine["synthetic"] else "torch",
        revision=own.revision,
        others={arm: pins[name] for arm, name in _elsewhere(study).items()},
        folds={name: own.folds for name, own in data.items() if own.folds},
    )


def _held_out(study: Study, root: Path, shapes: Mapping[str, models.ModelShape]) -> dict[str, tuple[Example, ...]]:
    """The texts that are to stay likely, as splits that finals alone are given."""
    encoder = next((name for name, shape in shapes.items() if not shape.decoder), None)
    if study.retention and encoder is not None:
        what = f"held-out text is for language models, got a {shapes[encoder].model_type} base"
        raise SpecError(f"retention: {what}; use a decoder, or remove this")
    read = {}
    for name, path in study.retention.items():
        try:
            read[name] = tasks.read_texts(root / path)
        except DataError as error:
            raise DataError(f"retention.{name}: {error}") from None
    return {f"{TEXT}{n}": tuple(Example(t.id, t.cluster, t.text, "") for t in texts) for n, texts in read.items()}


def _parts(study: Study, data: TaskData) -> dict[str, TaskData]:
    """A task by its name, or its folds by theirs; and, by their rungs, the parts of its rows that a ladder asks for."""
    refuse_folds(study, data.folds)
    rungs = rung_rows(study, data) if data.name == study.rule.primary else {}
    return rungs | (tasks.fold(data, study.task(data.name), study.repeats) if data.folds else {data.name: data})


def _elsewhere(study: Study) -> dict[str, str]:
    """The base of each arm that is not on the study's own."""
    return {arm.name: arm.base_model for arm in study.arms if arm.base_model is not None}


def resolve_bases(study: Study, root: Path) -> dict[str, models.PinnedModel]:
    """Every base that the study names, by its name in the study: its own first, each once.

    Raises:
        ModelError, IntegrityError: One cannot be used; the message names the arm, if it is an arm's.
    """
    bases = {study.base_model: models.resolve(study.base_model, root)}
    for arm in study.arms:
        name = study.base_of(arm.name)
        try:
            bases[name] = bases.get(name) or models.resolve(name, root)
        except (ModelError, IntegrityError) as error:
            raise type(error)(f"arms.{arm.name}: {error}") from None
    return bases


def _base_pin(base: models.PinnedModel, shape: models.ModelShape, machine: dict) -> BasePin:
    return BasePin(
        fingerprint=base.fingerprint,
        parameters=shape.parameters,
        template_digest=machine["template_digest"],
        revision=base.revision,
    )


def _check_arms(study: Study, shapes: Mapping[str, models.ModelShape]) -> None:
    for shape in shapes.values():
        for task in () if shape.decoder else study.tasks:
            if study.readout_of(task.name) != "head":
                what = f"an encoder writes no text, got a {shape.model_type} base"
                raise SpecError(f"{task.name}: {what}; use a decoder, or readout: head with labels or numbers")
    for arm in study.arms:
        try:
            methods.find(arm).adapter(shapes[study.base_of(arm.name)])
        except SpecError as error:
            raise SpecError(f"arms.{arm.name}.{error}") from None


class Survey:
    """A worker that is asked about machine and tokenizer, and tries arms; no trial of the study runs in it, so it may
    see every prompt."""

    def __init__(self, log: Path, *, engine: str, precision: str) -> None:
        self._inbox: SimpleQueue = SimpleQueue()
        self._log, self._engine, self._precision = log, engine, precision
        self._machine: dict = {}
        self._attempted = 0
        self._ended = False
        self._worker = Worker(self._inbox, threads=cores(), log=log)

    def open(self, base: Path) -> dict:
        """Hold this base, alone; what machine and base are like."""
        if self._worker.open(base, engine=self._engine, precision=self._precision):
            self._machine = self._answer()
        return self._machine

    def lengths(self, data: TaskData, readout: Readout) -> dict[str, list[int]]:
        """Tokens of each row by split, under the tokenizer of the base that is open."""
        return {
            split: self.ask({"do": "lengths", "rows": [example_row(e) for e in rows], "readout": readout})["tokens"]
            for split, rows in data.splits.items()
        }

    def ask(self, order: dict) -> dict:
        self._worker.send(order)
        return self._answer()

    def _answer(self) -> dict:
        _, answer = self._inbox.get()
        if answer is None:
            self._ended = True
            raise TunetrialError(f"engine: its process ended, got {self._worker.exit_in_words()}; see {self._log}")
        if "error" in answer:
            raise TunetrialError(answer["error"])
        return answer

    def attempt(self, base: Path, trial: Trial, data: TaskData) -> bool:
        """Try an arm on a few rows, on its base; not to fit is a result that its trials will record.

        False if the kernel killed the worker for memory: that too is for the trials to find, and no arm can be tried
        after it.

        Raises:
            TunetrialError: It cannot come through; the message names arm and task.
        """
        self._attempted += 1
        name = f"{trial.task}-{self._attempted}"
        self._worker.send_data(replace(data, name=name), ("train", "validation"))
        folder = self._log.parent / ".preflight.tmp"
        order = {"do": "preflight", "task": name, "trial": trial.model_dump(mode="json"), "folder": str(folder)}
        try:
            self.open(base)
            self.ask(order)
        except TunetrialError as error:
            if self._ended and self._worker.died_of_memory():
                return False
            raise TunetrialError(f"preflight: {trial.arm.name} on {trial.task}: {error}") from None
        return True

    def close(self) -> None:
        self._worker.close()

    def kill(self) -> None:
        """End it now, whatever it is doing."""
        self._worker.kill()


def _data_pin(data: TaskData) -> DataPin:
    return DataPin(
        digests={split: data.digest(split) for split in data.splits},
        counts={split: len(rows) for split, rows in data.splits.items()},
        labels=data.labels,
        remarks=data.remarks,
    )
