"""Locking a study: its base, its rows and its precision are looked up, checked and pinned before the first trial."""

from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from tunetrial import methods, models, tasks
from tunetrial.core.errors import DataError, SpecError, TunetrialError
from tunetrial.core.evidence import TaskData, example_row
from tunetrial.core.study import DataPin, Lock, Readout, Study, Trial
from tunetrial.trial.execution import Terms
from tunetrial.trial.pool import Worker, cores
from tunetrial.trial.preflight import attempts

OVER_LONG_SHARE = 0.1


@dataclass(frozen=True)
class Pinned:
    """A locked study, with what its trials need: rows, base and engine, the device's kind and its free memory.

    `counted` are the tokens of each task's training rows.
    """

    lock: Lock
    data: dict[str, TaskData]
    base: Path
    engine: str
    device: str
    free_bytes: int
    counted: dict[str, tuple[int, ...]]

    def terms(self, trial: Trial, *, micro_batch: int | None) -> Terms:
        """On what terms a trial of this study is carried out."""
        spec, synthetic = self.lock.study.task(trial.task), self.lock.engine == "sim"
        return Terms(spec.metric, synthetic, micro_batch=micro_batch, json_schema=spec.json_schema)


def pin(study: Study, root: Path, *, engine: str = "torch", log: Path, preflight: bool = False) -> Pinned:
    """Resolve and check all that a study names. Paths in it are relative to `root`.

    With `preflight` every arm takes two steps on every task, and its artifact is saved and read.

    The rows are read once, here, and every trial is given these very rows. Rows whose prompt has more tokens than
    the controls allow, or than the base's own context, are left out, alike in every arm, and the remarks say how many.

    Raises:
        ModelError, IntegrityError, DataError, SpecError: Base, rows or engine cannot be used as named; or more than
            10 % of the rows of a split are too long.
    """
    base = models.resolve(study.base_model, root)
    shape = models.shape(base.folder)
    _check_arms(study, shape)
    loaded = {spec.name: tasks.load(spec, root) for spec in study.tasks}
    survey = Survey(log)
    try:
        machine = survey.ask({"do": "open", "engine": engine, "base": str(base.folder), "precision": study.precision})
        fitting = {
            spec.name: _fitting(loaded[spec.name], study.readout_of(spec.name), study.max_tokens, shape.context, survey)
            for spec in study.tasks
        }
        data = {name: rows for name, (rows, _) in fitting.items()}
        lock = Lock(
            study=study,
            base_fingerprint=base.fingerprint,
            parameters=shape.parameters,
            precision=machine["precision"],
            template_digest=machine["template_digest"],
            data={name: _data_pin(rows) for name, rows in data.items()},
            engine="sim" if machine["synthetic"] else "torch",
        )
        if preflight:
            all(survey.attempt(trial, few) for trial, few in attempts(lock, data))
    finally:
        survey.close()
    return Pinned(
        lock=lock,
        data=data,
        base=base.folder,
        engine=engine,
        device=machine["device"],
        free_bytes=machine["free_bytes"],
        counted={name: tokens for name, (_, tokens) in fitting.items()},
    )


def _check_arms(study: Study, shape: models.ModelShape) -> None:
    for task in () if shape.decoder else study.tasks:
        if study.readout_of(task.name) != "head":
            what = f"an encoder writes no text, got a {shape.model_type} base"
            raise SpecError(f"{task.name}: {what}; use a decoder, or readout: head with labels or numbers")
    for arm in study.arms:
        try:
            methods.find(arm).adapter(shape)
        except SpecError as error:
            raise SpecError(f"arms.{arm.name}.{error}") from None


class Survey:
    """A worker that is asked about machine and tokenizer, and tries arms; no trial of the study runs in it, so it may
    see every prompt."""

    def __init__(self, log: Path) -> None:
        self._inbox: SimpleQueue = SimpleQueue()
        self._log = log
        self._attempted = 0
        self._ended = False
        self._worker = Worker(self._inbox, threads=cores(), log=log)

    def ask(self, order: dict) -> dict:
        self._worker.send(order)
        _, answer = self._inbox.get()
        if answer is None:
            self._ended = True
            raise TunetrialError(f"engine: its process ended, got {self._worker.exit_in_words()}; see {self._log}")
        if "error" in answer:
            raise TunetrialError(answer["error"])
        return answer

    def attempt(self, trial: Trial, data: TaskData) -> bool:
        """Try an arm on a few rows; not to fit is a result that its trials will record.

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
            self.ask(order)
        except TunetrialError as error:
            if self._ended and self._worker.died_of_memory():
                return False
            raise TunetrialError(f"preflight: {trial.arm.name} on {trial.task}: {error}") from None
        return True

    def close(self) -> None:
        self._worker.close()


def _fitting(
    data: TaskData, readout: Readout, max_tokens: int, context: int, survey: Survey
) -> tuple[TaskData, tuple[int, ...]]:
    """Leave out the rows that are too long: positions beyond its context are none that the base was made for.

    Returns the tokens of each training row besides.
    """
    limit, within = min(max_tokens, context), max_tokens <= context
    name, of_what = ("max_tokens", "") if within else ("the base's context", "the base's context of ")
    remedy = "raise max_tokens or shorten the input" if within else "shorten the input or use another base"
    splits, counted, remarks = {}, {}, list(data.remarks)
    for split, rows in data.splits.items():
        order = {"do": "lengths", "rows": [example_row(example) for example in rows], "readout": readout}
        tokens = survey.ask(order)["tokens"]
        kept = tuple(example for example, n in zip(rows, tokens, strict=True) if n <= limit)
        dropped = len(rows) - len(kept)
        if dropped > OVER_LONG_SHARE * len(rows):
            raise DataError(
                f"{data.name}: {split}: more than 10 % of the rows are longer than {name}, got {dropped} of "
                f"{len(rows)} above {limit} tokens (longest {max(tokens)}); {remedy}"
            )
        if dropped:
            remarks.append(f"{split}: {dropped} of {len(rows)} rows left out: longer than {of_what}{limit} tokens")
        splits[split], counted[split] = kept, tuple(n for n in tokens if n <= limit)
    return replace(data, splits=splits, remarks=tuple(remarks)), counted["train"]


def _data_pin(data: TaskData) -> DataPin:
    return DataPin(
        digests={split: data.digest(split) for split in data.splits},
        counts={split: len(rows) for split, rows in data.splits.items()},
        labels=data.labels,
        remarks=data.remarks,
    )
