"""One arm of a study into a folder: which run, in which format, with its card, written whole or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tunetrial import models
from tunetrial.core import files, manifest
from tunetrial.core.errors import ConfigError, IntegrityError
from tunetrial.core.evidence import Decision, Evidence, Example, TrialRecord
from tunetrial.core.fidelity import Chain, Proof
from tunetrial.core.records import Record
from tunetrial.core.study import Lock
from tunetrial.ship import card, hub, replicate
from tunetrial.ship.formats import Made, variants, write
from tunetrial.ship.order import Format, Order, Source
from tunetrial.ship.proving import check, fidelity, prove_shipped
from tunetrial.ship.scores import keep as keep_scores
from tunetrial.ship.shipped import Shipped
from tunetrial.store import StudyFolder, TestLedger, TrialFolder, home

Rescore = Callable[[TrialRecord, Path], float]
Retrain = Callable[[TrialRecord], tuple[TrialRecord, TrialFolder]]
RETRAINED = "Trained on training and validation rows together, once: its test score is of this run alone."
ON_TRAINED_ROWS = "The rows that its chain was proven on are among those it was trained on."


class Shipment(Record):
    """What was shipped, and where. `files` are sizes in bytes; `scores` are of the metric on the test rows."""

    folder: str
    format: Format
    arm: str
    task: str
    seed: int
    trial: str
    why: str
    verdict: str
    base_fingerprint: str
    files: dict[str, int]
    metric: str
    scores: dict[str, float] = {}
    remarks: tuple[str, ...] = ()
    command: str | None = None
    pushed: str | None = None
    chain: Chain | None = None

    @property
    def broken(self) -> bool:
        """Whether its fidelity was tried and some hop changes what it computes."""
        return self.chain is not None and not self.chain.passed

    def __str__(self) -> str:
        total = sum(self.files.values()) / 2**20
        lines = [
            f"{self.arm} on {self.task}, seed {self.seed}: {self.why}; verdict: {self.verdict}",
            *(f"{self.metric} on the test rows, {name}: {value:.4f}" for name, value in self.scores.items()),
            *self.remarks,
            f"{len(self.files)} files, {total:.1f} MiB",
            *([self.command] if self.command else []),
            *([f"pushed to {self.pushed}"] if self.pushed else []),
            *([str(self.chain)] if self.chain else []),
        ]
        return "\n".join(lines)


def ship(
    evidence: Evidence,
    decision: Decision,
    order: Order,
    *,
    study: Path,
    root: Path,
    to: Path,
    rescore: Rescore | None = None,
    retrain: Retrain | None = None,
    probes: Sequence[Example] | None = None,
) -> Shipment:
    """Write an arm's shipped run into the folder `to`.

    Args:
        study: The folder of results, whose files `evidence` was read from and checked.
        root: The folder that a relative base starts from.
        rescore: Scores a merged model on the test rows; for arms with a base in few bits both ways to merge are scored.
        retrain: Trains a final once more on training and validation rows; wanted where the order says so.
        probes: Rows by which every hop to the files that ship is proven; a chain that fails is not pushed anywhere.
    Raises:
        SpecError, ConfigError, EvidenceError: There is no such arm, run or combination, or its weights are not kept.
        ModelError, IntegrityError: The weights cannot have this format, are damaged, or are of another base.
        StoreError: `to` holds something already, or cannot be written; nothing is left there then.
    """
    files.check_new(to)
    source, why = _find(evidence, order, study, root, to, scored=rescore is not None, proven=probes is not None)
    repository = hub.check(order.push_to) if order.push_to else None
    notes = ()
    if order.retrain:
        source, why = _anew(source, why, retrain)
        notes = (RETRAINED, *([] if probes is None else [ON_TRAINED_ROWS]))
    record = source.record
    said = replicate.verdict(decision, order.arm, source.task.name)
    with files.new_folder(to.absolute()) as folder:
        made = write(source, folder)
        made = replace(made, remarks=(*made.remarks, *notes))
        scores = {} if rescore is None else variants(source, folder, partial(rescore, record))
        told = {"licence": card.licence(source.base.folder), "remarks": made.remarks, "scores": scores, "use": made.use}
        about = card.Subject(made.format, made.library, source, why, **told)
        text = card.card(evidence, _recounted(decision, source), about)
        (folder / "README.md").write_text(text, encoding="utf-8")
        fields = {"study": decision.study_digest, "arm": order.arm, "trial": record.trial.id, "verdict": said}
        fields |= {"test_rows": _keep_scores(source, folder), "base_bytes": _base_bytes(source, folder)}
        chain = None if probes is None else prove_shipped(source, folder, probes)
        stated = {"base_fingerprint": source.base.fingerprint, "chain": fidelity(chain), **fields}
        Shipped(format=made.format, **stated).write(folder)
        manifest.seal(folder)
    if chain is not None:
        StudyFolder(study).write_proof(_proof(source, chain))
    failed = chain is not None and not chain.passed
    pushed = None if repository is None or failed else hub.push(to, repository, public=order.public)
    found = {"scores": scores, "pushed": pushed, "chain": chain}
    return _shipment(source, made, to, why=why, verdict=said, **found)


def _shipment(source: Source, made: Made, to: Path, **found: object) -> Shipment:
    trial = source.record.trial
    return Shipment(
        folder=str(to),
        format=source.order.format,
        arm=trial.arm.name,
        task=trial.task,
        seed=trial.seed,
        trial=trial.id,
        base_fingerprint=source.base.fingerprint,
        files=_sizes(to),
        metric=source.task.metric,
        remarks=made.remarks,
        command=made.command,
        **found,
    )


def _proof(source: Source, chain: Chain) -> Proof:
    trial = source.record.trial
    of = {"trial": trial.id, "arm": trial.arm.name, "task": trial.task, "seed": trial.seed}
    return Proof(**of, format=source.order.format, chain=chain)


def _keep_scores(source: Source, folder: Path) -> str | None:
    """Put the run's scores of the test rows beside it, and say by which digest the ledger counts these rows. What goes
    to the Hub takes no rows along."""
    if source.order.format == "hub" or not keep_scores(source.artifact.parent, folder):
        return None
    return source.lock.tested(source.record.trial.task)


def _base_bytes(source: Source, folder: Path) -> int | None:
    """Bytes of the base's weights, where they are needed and not in the folder."""
    if source.whole or any(folder.glob("*.gguf")):
        return None
    return sum(path.stat().st_size for path in source.base.folder.glob("*.safetensors"))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of all files of a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def _find(
    evidence: Evidence, order: Order, study: Path, root: Path, to: Path, *, scored: bool, proven: bool
) -> tuple[Source, str]:
    """The run that ships, and why it."""
    lock = evidence.lock
    task = replicate.find_arm(lock, order.arm, order.task)
    order.check(lock.study.arm(order.arm), scored=scored)
    trials = {record.trial.id: StudyFolder(study).trial(record.trial) for record in evidence.records}
    chosen = replicate.choose(evidence, order.arm, task, trials, order.seed, with_weights=not order.retrain)
    if chosen.record.synthetic:
        raise ConfigError(f"ship: runs of this study are simulated, got engine {lock.engine}; there are no weights")
    base = _base(lock, order.arm, root)
    source = Source(order, chosen.record, chosen.folder.artifact, base, lock, str(to.absolute()))
    if proven:
        check(source)
    return source, chosen.why


def _anew(source: Source, why: str, retrain: Retrain) -> tuple[Source, str]:
    """The same run with validation rows among those it is trained on, and why it."""
    record, folder = retrain(source.record)
    counts = source.lock.data[record.trial.task].counts
    rows = f"{counts['train']} training and {counts['validation']} validation rows"
    return replace(source, record=record, artifact=folder.artifact), f"{why}, trained once more on {rows}"


def _recounted(decision: Decision, source: Source) -> Decision:
    """With the openings of the test rows up to now: what ships may just have answered them."""
    task = source.task.name
    if task not in decision.test_openings:
        return decision
    count = TestLedger(home()).count(source.lock.tested(task))
    return decision.model_copy(update={"test_openings": decision.test_openings | {task: count}})


def _base(lock: Lock, arm: str, root: Path) -> models.PinnedModel:
    """The base that the arm was trained on, found again.

    Raises:
        IntegrityError: Its weights are others now.
    """
    pin, name = lock.base(arm), lock.study.base_of(arm)
    base = models.resolve(f"{name.partition('@')[0]}@{pin.revision}" if pin.revision else name, root)
    if base.fingerprint != pin.fingerprint:
        got = f"got fingerprint {base.fingerprint[:12]}, the runs have {pin.fingerprint[:12]}"
        raise IntegrityError(f"{base.folder}: not the base that {arm} was trained on, {got}; restore its weights")
    return base
