"""The safeguards that every verdict rests on, each shown the fault that it is there for.

Small real trainings of the embedded base by a worker process, as studies have them: the same seed twice, another seed,
one whose numbers run away, one whose saved weights are then damaged. And a simulated study whose records are made
unfair. Nothing is left on the disk.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Literal

from tunetrial import methods, models, tasks
from tunetrial.analysis import compare
from tunetrial.core.errors import IntegrityError, TunetrialError
from tunetrial.core.evidence import Evidence, Scores, TaskData, TrialRecord
from tunetrial.core.study import Arm, Lock, Rule, Study
from tunetrial.engine.sim import SimEngine
from tunetrial.store import StudyFolder, TrialFolder
from tunetrial.trial import simulated
from tunetrial.trial.execution import Terms
from tunetrial.trial.pool import Worker

ANSWER_S = 300.0
TASK, ROWS, BATCH = "tickets", {"train": 24, "validation": 12, "test": 12}, 8
RATE, RUNAWAY_RATE = 1e-3, 1e30
ARMS = ("full", "lora")


@dataclass(frozen=True)
class Shown:
    """What a safeguard did, beside what it is there for."""

    part: Literal["training", "ledger", "storage"]
    what: str
    found: str
    wanted: str
    holds: bool


def trained(seed: int) -> tuple[Shown, ...]:
    """Show faults to what trains and keeps weights. What goes wrong in that is found and told, not raised."""
    with TemporaryDirectory(prefix="tunetrial-selfcheck-") as name:
        trainings = _Trainings(Path(name), seed)
        try:
            return tuple(_of_trainings(trainings))
        except (_NoAnswer, TunetrialError) as error:
            return (Shown("training", "small real trainings", str(error), "done", False),)
        finally:
            trainings.close()


class _NoAnswer(Exception):
    """The worker did not do what it was asked to; says why."""


class _Trainings:
    """A worker that trains the embedded base on a few rows, into folders that are gone afterwards."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root, self._seed = root, seed
        self._inbox: SimpleQueue = SimpleQueue()
        self._worker = Worker(self._inbox, threads=1, log=root / "worker.log")
        self._data = _few_rows()
        self._lock: Lock | None = None

    def train(self, folder: str, arm: str, *, seed: int = 1, rate: float = RATE) -> TrialFolder:
        """Carry out a final, or with a rate of its own a tune trial."""
        lock = self._lock = self._lock or self._open()
        purpose = "final" if rate == RATE else "tune"
        trial = lock.trial(arm, TASK, learning_rate=rate, seed=10 * self._seed + seed, purpose=purpose)
        self._worker.send_data(self._data, tuple(self._data.splits))
        terms = Terms(lock.study.task(TASK).metric, synthetic=False)
        asked = {"trials": [trial.model_dump(mode="json")], "study": str(self._root / folder), "terms": asdict(terms)}
        self._worker.send({"do": "trials", **asked})
        self._answer("recorded")
        return StudyFolder(self._root / folder).trial(trial)

    def close(self) -> None:
        self._worker.kill()

    def _open(self) -> Lock:
        """Open the embedded base, in the precision that studies have here, and pin what is trained."""
        base = models.resolve("embedded")
        self._worker.open(base.folder, engine="torch", precision="auto")
        return _lock(self._data, base, self._answer("ready")["precision"])

    def _answer(self, wanted: str) -> dict:
        """The report that is waited for."""
        while True:
            try:
                _, message = self._inbox.get(timeout=ANSWER_S)
            except Empty:
                raise _NoAnswer(f"no answer in {ANSWER_S:.0f} s") from None
            if message is None:
                raise _NoAnswer(f"the worker ended: {self._worker.exit_in_words()}")
            if message["event"] == wanted:
                return message
            if message["event"] in ("broken", "failed", "unfit"):
                raise _NoAnswer(message.get("error") or message["reason"])


def _few_rows() -> TaskData:
    loaded = tasks.load(tasks.built_in(TASK), Path())
    return replace(loaded, splits={split: loaded.splits[split][:count] for split, count in ROWS.items()})


def _lock(data: TaskData, base: models.PinnedModel, precision: str) -> Lock:
    asked = Study(
        question="Do the safeguards work here?",
        base_model="embedded",
        tasks=(tasks.built_in(TASK),),
        arms=tuple(Arm(name=arm, method=arm, settings=methods.settle(arm, {})) for arm in ARMS),
        reference="full",
        rule=Rule(primary=TASK),
        epochs=1,
        batch_examples=BATCH,
    )
    pinned = {"base_fingerprint": base.fingerprint, "parameters": models.shape(base.folder).parameters}
    return simulated.lock(asked, data).model_copy(update={**pinned, "precision": precision, "engine": "torch"})


def _of_trainings(trainings: _Trainings) -> Iterator[Shown]:
    """Train, and look at what became of it."""
    first, again = ({arm: trainings.train(folder, arm) for arm in ARMS} for folder in ("first", "again"))
    differ = [arm for arm in ARMS if _content(first[arm]) != _content(again[arm])]
    found = f"{' and '.join(differ)} differ" if differ else "the same"
    yield Shown("training", "trained twice with one seed: bytes", found, "the same", not differ)
    same = _content(trainings.train("first", "lora", seed=2)) == _content(first["lora"])
    yield Shown("training", "trained with another seed: bytes", "the same" if same else "others", "others", not same)
    digests = {folder.record().token_digest for folder in first.values()}
    same = len(digests) == 1 and None not in digests
    yield Shown("training", "what both arms were trained on", "the same" if same else "others", "the same", same)
    status = trainings.train("first", "lora", rate=RUNAWAY_RATE).record().status
    yield Shown("training", "a run whose numbers become NaN", status, "diverged", status == "diverged")
    yield _damaged(first["lora"])


def _content(folder: TrialFolder) -> tuple:
    """What a training left: digests of its weights and scores, and its losses."""
    record = folder.record()
    return record.artifacts, record.scores_digest, [step["loss"] for step in folder.curve()]


def _damaged(folder: TrialFolder) -> Shown:
    """Change one bit of the saved weights."""
    path = max(folder.artifact.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    try:
        folder.record()
        found = "accepted"
    except IntegrityError as error:
        found = "refused" if path.name in str(error) else f"refused without its name: {error}"
    return Shown("storage", "saved weights with one bit changed", found, "refused", found == "refused")


def compared(seed: int) -> Iterator[Shown]:
    """Two arms compared fairly, then with one final trained on other examples, then with one tested on others."""
    fair = _comparable_study(seed)
    if fair is None:
        yield Shown("ledger", "a fair comparison", "refused", "compared", False)
        return
    yield Shown("ledger", "a fair comparison", "compared", "compared", True)
    final = fair.of(purpose="final", arm="lora")[0]

    def retrained(record: TrialRecord) -> TrialRecord:
        return record.model_copy(update={"token_digest": "of other examples"}) if record == final else record

    def retested(scores: Scores) -> Scores:
        return replace(scores, example_id_E=("another", *scores.example_id_E[1:]))

    key = final.trial.id, "test"
    unfair = {
        "an arm trained on other examples": replace(fair, records=tuple(map(retrained, fair.records))),
        "an arm tested on other examples": replace(fair, scores={**fair.scores, key: retested(fair.scores[key])}),
    }
    for what, evidence in unfair.items():
        found = "compared" if _compared(evidence) else "refused"
        yield Shown("ledger", what, found, "refused", found == "refused")


def _comparable_study(seed: int, *, tries: int = 10) -> Evidence | None:
    """A simulated study whose arms can be compared, as nearly all can; None if there is none among so many."""
    asked = simulated.Planted()
    data = simulated.task_data(asked.task, {"train": 16, "validation": 60, "test": 240})
    locked = simulated.lock(simulated.study(asked), data)
    for number in range(tries):
        session = SimEngine(simulated.world(asked, tries * seed + number)).open(Path(), "fp32")
        evidence = simulated.carry_out(locked, data, session)
        if _compared(evidence):
            return evidence
    return None


def _compared(evidence: Evidence) -> bool:
    return compare(evidence)[1][0].words != "NOT COMPARABLE"
