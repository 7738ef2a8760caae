"""The door to raters: a finished study's completions on test rows, held against each other by a judge or by people.

Rows are drawn by the study's seed, the same for every rater; seeds are the first that all arms' finals have. Whoever
sees completions sees the test split: that is noted in the test ledger before the first is shown.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunetrial import tasks
from tunetrial.analysis import arms
from tunetrial.analysis.rounds import Round
from tunetrial.core.errors import ConfigError, EvidenceError, IntegrityError
from tunetrial.core.evidence import Evidence, Example, Scores, example_row
from tunetrial.core.records import digest
from tunetrial.core.study import Lock, Study, TaskSpec
from tunetrial.rating import Client, Endpoint, Item, compare, sheets
from tunetrial.rating.items import pairs
from tunetrial.rating.sitting import answer_of, round_of
from tunetrial.store import StudyFolder
from tunetrial.store.ratings import RatingFolder
from tunetrial.trial.openings import note_use

ROWS, SEEDS = 40, 3
CRITERION = "which answer serves the request better"


@dataclass(frozen=True)
class Asked:
    """What raters are asked: items with every arm's answer, by what criterion, and the records that the answers are
    of, digests by trial id."""

    lock: Lock
    task: str
    criterion: str
    items: tuple[Item, ...]
    trials: dict[str, str]

    @property
    def questions(self) -> int:
        """How many times two answers that differ are shown, both orders counted."""
        return sum(not pair.same for pair in pairs(self.items, self.lock.study.seed))

    @property
    def trials_digest(self) -> str:
        return digest(self.trials)

    def about(self) -> dict:
        """All but the texts."""
        return {"task": self.task, "criterion": self.criterion, "trials": self.trials}


def gather(study: Study, root: Path, folder: Path, *, rows: int = ROWS) -> Asked:
    """Take completions of every arm to so many test rows, at up to three seeds, on the task that decides if it asks for
    text, else on the first that does.

    Raises:
        ConfigError: No task asks for text, or it is in folds.
        EvidenceError: Fewer than two arms have finals on a shared seed.
        IntegrityError: The task's test rows are no longer those that were answered.
    """
    spec = _written(study)
    evidence = StudyFolder(folder).evidence()
    if evidence.lock.folding(spec.name):
        raise ConfigError(f"rate: finals of folds share no test rows, got task {spec.name!r}; name a test file")
    told = {arm.name: _finals(evidence, spec.name, arm.name) for arm in study.arms}
    told = {arm: finals for arm, finals in told.items() if finals}
    fixed = {arm for arm in told if study.arm(arm).fixed}
    shared = sorted(set.intersection(*(set(told[arm]) for arm in told.keys() - fixed or told)) if told else ())[:SEEDS]
    if len(told) < 2 or not shared:
        got = ", ".join(f"{arm} {sorted(finals)}" for arm, finals in told.items()) or "none"
        raise EvidenceError(f"rate: needs finals of two arms on a shared seed, got {got}; run the study first")
    chosen = {
        arm: {seed: finals[min(finals) if arm in fixed else seed] for seed in shared} for arm, finals in told.items()
    }
    examples = answered(evidence, spec, root)
    drawn = sorted(examples, key=lambda name: digest([study.seed, spec.name, name]))[:rows]
    items = [
        Item(name, _request(examples[name]), {arm: _said(chosen[arm][seed][1], name) for arm in told}, seed)
        for seed in shared
        for name in drawn
    ]
    trials = {trial: record for finals in chosen.values() for (trial, record), _ in finals.values()}
    return Asked(evidence.lock, spec.name, spec.criterion or CRITERION, tuple(items), trials)


def ask(asked: Asked, folder: Path, endpoint: Endpoint) -> Round:
    """Have a judge compare the answers, and keep what it says; what it was asked before it is not asked again.

    Raises:
        ConfigError, EndpointError, IntegrityError: As `rating.Client`.
    """
    kept = RatingFolder(folder / "ratings")
    with Client(endpoint, kept.asked) as client:
        note_use(asked.lock, asked.task, f"rated by {endpoint.model}")
        judged = compare(client, asked.items, criterion=asked.criterion, seed=asked.lock.study.seed)
    alike = [(p.item.id, p.item.seed, p.first, p.second) for p in pairs(asked.items, seed=0) if p.same]
    counts = {"alike": alike, "refused": len(judged.refused)}
    return _keep(kept, Round(**asked.about(), rater=endpoint.model, judge=True, votes=judged.votes, **counts))


def hand_out(asked: Asked, folder: Path, sheet: Path) -> int:
    """Write a sheet for people, and keep its key; returns how many rows there are to fill in.

    Raises:
        ConfigError: There is a file of this name, or its name ends in neither .csv nor .jsonl.
        DataError: All answers are alike.
    """
    kept = RatingFolder(folder / "ratings")
    if sheet.exists() or kept.key(sheet).exists():
        raise ConfigError(f"{sheet}: a sheet of this name was handed out already; write to another name")
    note_use(asked.lock, asked.task, f"handed out as {sheet.stem}")
    count = sheets.write_pairs(asked.items, sheet, kept.key(sheet), seed=asked.lock.study.seed)
    kept.keep_sheet(sheet, asked.about())
    return count


def take_in(folder: Path, sheet: Path, rater: str) -> Round:
    """Read back what a person filled in, and keep it.

    Raises:
        StoreError: No such sheet was handed out.
        ConfigError: A judge goes by the rater's name.
        DataError: Rows are missing, altered, or filled in with anything else.
        EvidenceError: Nothing is filled in.
    """
    kept = RatingFolder(folder / "ratings")
    about = kept.read_sheet(sheet)
    if any(one.judge and one.rater == rater for one in rounds(folder)):
        raise ConfigError(f"rate: a judge goes by this name, got --rater {rater!r}; give the person another")
    on_page = (journal.read()[0] for journal in kept.journals())
    if any(
        all(one[name] == about[name] for name in ("task", "criterion")) and one["rater"] == rater for one in on_page
    ):
        raise ConfigError(f"rate: {rater!r} has answered on the page, got --rater {rater!r}; give another name")
    filled = sheets.read(sheet, kept.key(sheet), rater=rater)
    entries = [json.loads(line) for line in kept.key(sheet).read_text(encoding="utf-8").splitlines()]
    alike = [tuple(e[name] for name in ("item", "seed", "first", "second")) for e in entries if e["number"] is None]
    if filled.blank == len(entries) - len(alike):
        raise EvidenceError(f"{sheet}: no pair is filled in for both its orders, got {filled.blank} blank; fill it in")
    counts = {"alike": alike, "blank": filled.blank}
    return _keep(kept, Round(**about, rater=rater, judge=False, votes=filled.votes, **counts))


def rounds(folder: Path) -> tuple[Round, ...]:
    """What every rater said of a study's answers, on sheets, asked as a judge or on the page, those included that it no
    longer has; who said nothing whole on the page yet is left out."""
    kept = RatingFolder(folder / "ratings")
    journals = ((about, map(answer_of, said)) for about, said in (one.read() for one in kept.journals()))
    on_page = (round_of(about, said) for about, said in journals)
    return (*map(Round.model_validate, kept.rounds()), *(one for one in on_page if one.votes or one.ratings))


def has_spoken(folder: Path, task: str, criterion: str, rater: str) -> bool:
    """Whether a judge goes by this name, or a sheet on the same question was read back under it."""
    kept = map(Round.model_validate, RatingFolder(folder / "ratings").rounds())
    return any(one.rater == rater and (one.judge or (one.task, one.criterion) == (task, criterion)) for one in kept)


def _keep(kept: RatingFolder, made: Round) -> Round:
    kept.keep((made.task, made.criterion, made.rater), made.model_dump(mode="json"))
    return made


def _written(study: Study) -> TaskSpec:
    texts = [task for task in study.tasks if task.kind == "generate"]
    if not texts:
        got = ", ".join(f"{task.name} ({task.kind})" for task in study.tasks)
        raise ConfigError(f"rate: raters compare texts, got no task that generates: {got}; rate a study of such a task")
    return next((task for task in texts if task.name == study.rule.primary), texts[0])


def _finals(evidence: Evidence, task: str, arm: str) -> dict[int, tuple[tuple[str, str], Scores]]:
    """By seed the trial's id with its record's digest, and the test scores, of finals that came through."""
    rows, found = arms.scored_rows(evidence, task), {}
    for record in evidence.of(purpose="final", task=task, arm=arm):
        scores = evidence.scores.get((record.trial.id, "test"))
        if record.status == "ok" and arms.sound(scores) and arms.same_rows(scores, rows):
            found[record.trial.seed] = (record.trial.id, record.digest), scores
    return found


def answered(evidence: Evidence, spec: TaskSpec, root: Path) -> dict[str, Example]:
    """The test rows that were answered, by id, as they are read again.

    Raises:
        IntegrityError: They are others now.
    """
    read = {example.id: example for example in tasks.load(spec, root).splits["test"]}
    names: Sequence[str] = arms.scored_rows(evidence, spec.name).example_id_E
    answered = [read[name] for name in names if name in read]
    if digest([example_row(example) for example in answered]) != evidence.lock.data[spec.name].digests["test"]:
        raise IntegrityError(f"{spec.name}: test rows are not those that were answered; restore the rows")
    return {example.id: example for example in answered}


def _request(example: Example) -> str:
    """What was asked: the prompt, or the turns before the answer."""
    if example.messages is None:
        return example.prompt
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in json.loads(example.messages)[:-1])


def _said(scores: Scores, name: str) -> str:
    return str(scores.prediction_E[scores.example_id_E.index(name)])
