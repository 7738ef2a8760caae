"""Deployments of a study's finals, or of adapters drawn at random over any base, timed in processes of their own."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunetrial import methods, models
from tunetrial.core.deployment import Asked, Bench, Contender, Offer, Session, Work
from tunetrial.core.errors import ConfigError, DoesNotFitError, EvidenceError, IntegrityError
from tunetrial.core.evidence import Evidence, TrialRecord
from tunetrial.core.study import Precision, Setting
from tunetrial.models import PinnedModel
from tunetrial.store import StudyFolder, first_look, median_replicate
from tunetrial.trial.pinning import Survey

MOST_ADAPTERS = 8
PROMPT_TOKENS, NEW_TOKENS = 64, 32
SCRATCH = ".bench."
DEPLOYED = ("full", "lora", "qlora")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Terms:
    """What is asked of a benchmark: rows at once; tokens of prompts and answers, None for what suits; process starts
    and about how many seconds each of them times."""

    batches: tuple[int, ...] = (1, 8)
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    sessions: int = 5
    seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        asked = {"batches": min(self.batches, default=0), "prompt": self.prompt_tokens, "tokens": self.new_tokens}
        for name, value in (asked | {"sessions": self.sessions}).items():
            if value is not None and value < 1:
                raise ConfigError(f"bench: --{name}: must be 1 or more, got {value}; leave it out for what is usual")

    def works(self, prompt_tokens: int, *, writes: bool) -> tuple[Work, ...]:
        """The kinds of requests: each batch with a prompt alone and, of models that write, with an answer."""
        made = (self.new_tokens or NEW_TOKENS) if writes else 1
        tokens = dict.fromkeys((1, made))
        prompt = self.prompt_tokens or prompt_tokens
        return tuple(
            Work(batch=batch, prompt_tokens=prompt, new_tokens=count)
            for batch in dict.fromkeys(self.batches)
            for count in tokens
        )


def numbers(option: str, said: str) -> tuple[int, ...]:
    """Whole numbers of an option, as "1,8".

    Raises:
        ConfigError: They are no whole numbers above 0.
    """
    found = [part.strip() for part in said.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in found):
        raise ConfigError(f"bench: {option}: must be whole numbers above 0, got {said!r}; say 1,8")
    return tuple(map(int, found))


def of_base(base_model: str, settings: Mapping[str, Setting], terms: Terms, *, tell: Tell = lambda said: None) -> Bench:
    """Time LoRA adapters with these settings and random weights over a base, separate and merged: how fast they are
    does not depend on their values.

    Raises:
        TunetrialError: The base cannot be used, the settings do not suit it, or there is no room.
    """
    base = models.resolve(base_model)
    with tempfile.TemporaryDirectory(prefix="tunetrial-bench-") as scratch:
        drawn = {"settings": dict(settings), "count": MOST_ADAPTERS, "seed": terms.seed}
        offers, precision = _offers(base, {}, Path(scratch), **drawn)
        works = terms.works(PROMPT_TOKENS, writes=True)
        return _time(base, offers, works, terms, precision, Path(scratch) / "worker.log", tell)


def of_study(
    path: Path, root: Path, terms: Terms, *, arms: Sequence[str] = (), tell: Tell = lambda said: None
) -> Bench:
    """Time what a study kept of its finals, on its primary task, and keep what was found in its folder.

    An adapter arm is timed separate, merged, and with up to 8 of its finals over one base; an adapter that was trained
    over weights in few bits is put over the base as it came.

    Args:
        path: The folder of results.
        root: What a relative base starts from.
        arms: By name; all that can be deployed if none is named.
    Raises:
        EvidenceError: No such arm, its weights were not kept, or the study is synthetic.
        StoreError: Another process holds the study, or the disk is full.
        TunetrialError: An artifact or the base cannot be used, or there is no room.
    """
    store = StudyFolder(path)
    with store.hold(), _scratch(path) as scratch:
        evidence = store.evidence()
        study, lock = evidence.lock.study, evidence.lock
        if lock.engine == "sim":
            raise EvidenceError(f"{path}: a synthetic study has no weights, got engine sim; name a study that trains")
        finals = {arm: _finals(store, evidence, arm) for arm in _arms(evidence, arms)}
        artifacts = {arm: [str(store.trial(r.trial).artifact) for r in found] for arm, found in finals.items()}
        base = models.resolve(study.base_model, root)
        if base.fingerprint != lock.base_fingerprint:
            got = f"got {base.fingerprint[:12]}"
            raise IntegrityError(
                f"{study.base_model}: the study's base is {lock.base_fingerprint[:12]}, {got}; restore it"
            )
        task = study.rule.primary
        writes = lock.controls(task).readout == "text"
        if not writes and terms.new_tokens not in (None, 1):
            raise ConfigError(f"bench: --tokens: {task} writes no text, got {terms.new_tokens}; leave it out")
        offers, _ = _offers(base, artifacts, scratch)
        works = terms.works(_row_tokens(evidence, task), writes=writes)
        bench = _time(base, offers, works, terms, lock.precision, path / "worker.log", tell)
        trials = {arm: tuple(record.trial.id for record in found) for arm, found in finals.items()}
        bench = bench.model_copy(update={"trials": trials})
        store.write_bench(bench)
        return bench


def _arms(evidence: Evidence, named: Sequence[str]) -> list[str]:
    """The arms to be timed, in the study's order."""
    study = evidence.lock.study
    known = [arm.name for arm in study.arms]
    if unknown := [name for name in named if name not in known]:
        raise EvidenceError(f"bench: --arms: no such arm, got {unknown[0]!r}; use some of {', '.join(known)}")
    found, why = [], {}
    for arm in study.arms:
        if study.base_of(arm.name) != study.base_model:
            why[arm.name] = f"is on another base, {study.base_of(arm.name)}"
        elif arm.method not in DEPLOYED:
            why[arm.name] = f"is of method {arm.method}, which is not deployed here"
        else:
            found.append(arm.name)
    if bad := [name for name in named if name in why]:
        raise EvidenceError(f"bench: --arms: {bad[0]} {why[bad[0]]}; leave it out")
    if not found:
        raise EvidenceError(f"bench: no arm to deploy, got none of {', '.join(DEPLOYED)}; name another study")
    return [name for name in found if not named or name in named]


def _finals(store: StudyFolder, evidence: Evidence, arm: str) -> list[TrialRecord]:
    """An arm's finals on the primary task whose weights are there: the median first, of adapters others too."""
    study, task = evidence.lock.study, evidence.lock.study.rule.primary
    finals = [r for r in evidence.of(purpose="final", task=task, arm=arm) if r.status == "ok"]
    median = median_replicate(first_look(evidence.lock, finals), study.task(task).metric)
    kept = [r for r in finals if r.artifacts and store.trial(r.trial).artifact.is_dir()]
    first = next((r for r in kept if median is not None and r.trial.id == median.trial.id), None)
    if first is None:
        raise EvidenceError(
            f"bench: {arm}: the weights of its median final on {task} are not there, got {len(kept)} of "
            f"{len(finals)} finals with weights; run the study to its end first"
        )
    if methods.find(first.trial.arm).trains_base:
        return [first]
    return [first, *(r for r in kept if r is not first)][:MOST_ADAPTERS]


def _row_tokens(evidence: Evidence, task: str) -> int:
    """Tokens of a training row of a task, their mean."""
    found: list[TrialRecord] = [r for r in evidence.of(purpose="final", task=task) if "tokens" in r.measurements]
    if not found:
        return PROMPT_TOKENS
    tokens, steps = (found[0].measurements[name].value for name in ("tokens", "steps"))
    return max(1, round(tokens / (steps * found[0].trial.controls.batch_examples)))


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the results for what is made of artifacts; what a killed process left of one goes."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as made:
        yield Path(made)


def _offers(
    base: PinnedModel, artifacts: Mapping[str, Sequence[str]], scratch: Path, **drawn: object
) -> tuple[list[Offer], Precision]:
    order = {"do": "offers", "base": base.model_dump(mode="json"), "artifacts": dict(artifacts), **drawn}
    answer = _ask({**order, "scratch": str(scratch)}, scratch / "worker.log")
    return [Offer.model_validate(offer) for offer in answer["offers"]], answer["precision"]


def _time(
    base: PinnedModel,
    offers: Sequence[Offer],
    works: tuple[Work, ...],
    terms: Terms,
    precision: Precision,
    log: Path,
    tell: Tell,
) -> Bench:
    asked = Asked(
        base=base.name,
        base_fingerprint=base.fingerprint,
        precision=precision,
        works=works,
        sessions=terms.sessions,
        seconds=terms.seconds,
        seed=terms.seed,
    )
    order = {"do": "bench", "asked": asked.model_dump(mode="json"), "base": base.model_dump(mode="json")}
    order["offers"] = [offer.model_dump(mode="json") for offer in offers]
    sessions = []
    for number in range(terms.sessions):
        tell(f"session {number + 1} of {terms.sessions}, about {terms.seconds:g} s and loading")
        sessions.append(Session.model_validate(_ask({**order, "number": number}, log)["session"]))
    return Bench(asked=asked, artifact_bytes=_artifact_bytes(base, offers), sessions=tuple(sessions))


def _artifact_bytes(base: PinnedModel, offers: Sequence[Offer]) -> dict[str, int]:
    """Bytes of weight files, by contender's name; adapters that are swapped or mixed are counted with all of them."""
    size = lambda *folders: sum(f.stat().st_size for one in folders for f in Path(one).glob("*.safetensors"))  # noqa: E731
    found = {"base": size(base.folder)}
    for offer in offers:
        if offer.full is not None:
            found[_name("full", offer)] = size(offer.full)
        if offer.merged is not None:
            found[_name("merged", offer)] = size(offer.merged)
            found[_name("separate", offer)] = size(offer.adapters[0])
            found |= {_name(setup, offer): size(*offer.adapters) for setup in ("swapped", "mixed")}
    return found


def _name(setup: str, offer: Offer) -> str:
    return Contender(setup=setup, path="engine", arm=offer.arm).name


def _ask(order: dict, log: Path) -> dict:
    """What a process of its own answers.

    Raises:
        DoesNotFitError: There is no room on the device.
        TunetrialError: It failed or died.
    """
    process = Survey(log, engine="torch", precision="auto")
    try:
        answer = process.ask(order)
    finally:
        process.kill()
    if answer["event"] == "unfit":
        raise DoesNotFitError(answer["reason"])
    return answer
