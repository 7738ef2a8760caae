"""What stands between a study and its use, as a gate for CI: each question asked, with its answer and its numbers.

Five questions, each PASS, FAIL, CAN'T TELL or not asked: what the study decided of the arm, the floors and limits of
its file, whether the files that ship still compute what was trained, and whether it is not worse than the version that
serves now. The whole fails if one fails, and cannot be told if one cannot. What is missing never passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tunetrial.analysis import bars
from tunetrial.analysis.bars import Bar
from tunetrial.analysis.verdict import SAFE
from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, EvidenceError, IntegrityError
from tunetrial.core.evidence import Comparison, Decision, Evidence
from tunetrial.core.records import Record
from tunetrial.core.study import whole
from tunetrial.ship import replicate, scores, versus
from tunetrial.ship.artifacts import describe
from tunetrial.ship.registry import Registry, check_sealed
from tunetrial.ship.shipped import Shipped, read_shipped
from tunetrial.ship.versions import CHAMPION, Version, split_reference
from tunetrial.spec.faults import nearest, show
from tunetrial.store import StudyFolder, first_look, median_replicate

Answer = Literal["PASS", "FAIL", "CAN'T TELL", "not asked"]
OUT = ("diverged", "does not fit", "did not train")
SHOWN, WIDTH = 3, 200


class Gate(Record):
    """One question and its answer; `said` are its reasons, with their numbers."""

    name: Literal["verdict", "floors", "limits", "fidelity", "champion"]
    answer: Answer
    said: tuple[str, ...]


class Gated(Record):
    """All gates of an arm, and their sum. `arm` is None where the study recommends none and none was named.

    `trial` is the run that ships, `comparison` it against the champion, where that was asked and could be made.
    `notes` change no answer: choices changed after results, simulated runs, how often the rows were opened.
    """

    arm: str | None
    task: str
    answer: Answer
    gates: tuple[Gate, ...]
    trial: str | None = None
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    study_digest: str

    def __str__(self) -> str:
        lines = [f"gate: {self.answer}: {self.arm or 'no arm'} on {self.task}"]
        for gate in self.gates:
            more = [f"and {len(gate.said) - SHOWN} more"] if len(gate.said) > SHOWN else []
            first, *rest = [_line(said) for said in (*gate.said[:SHOWN], *more)]
            lines += [f"  {gate.name:<9} {gate.answer:<11} {first}", *(f"{'':24}{said}" for said in rest)]
        return "\n".join([*lines, *(f"note: {_line(note)}" for note in self.notes[:SHOWN])])


@dataclass(frozen=True)
class Asked:
    """What is to pass: an arm (the recommended one), a shipped folder, and the version that it must not be worse than.

    `against` is NAME@VERSION or NAME@ALIAS, a bare NAME its champion; `scores` the table of that version if it has none
    within; `margin` the smallest difference that matters, if the study's own is not to be taken.
    """

    arm: str | None = None
    shipped: Path | None = None
    against: str | None = None
    scores: Path | None = None
    margin: float | None = None
    registry: Path | None = None


@dataclass(frozen=True)
class Candidate:
    """What is gated: an arm on a task, and the run that stands for it."""

    arm: str | None
    task: str
    trial: str | None


def judge(evidence: Evidence, decision: Decision, asked: Asked, *, study: Path) -> Gated:
    """Answer every gate for one arm, on the task that decides or that was shipped.

    Args:
        study: The folder of results, whose files `evidence` was read from and checked.
    Raises:
        ConfigError: There is no such arm, version or alias, or the shipped folder is of another study or arm.
        ModelError: There is no such folder, or it does not say what it is.
    """
    shipped = None if asked.shipped is None else read_shipped(asked.shipped)
    champion = None if asked.against is None else _find(asked)
    arm, task = _arm(decision, asked, shipped), _task(evidence, shipped)
    trial = None if arm is None else _trial(evidence, arm, task, shipped)
    against, comparison, count = _champion(evidence, Candidate(arm, task, trial), champion, asked, study)
    gates = (
        _verdict(decision, arm, task),
        _bars("floors", arm, evidence.lock.study.require, _floors(evidence, decision, arm) if arm else ()),
        _bars("limits", arm, evidence.lock.study.limits, _limits(evidence, decision, arm) if arm else ()),
        _fidelity(asked.shipped, shipped),
        against,
    )
    answers = {gate.answer for gate in gates}
    whole = next((answer for answer in ("FAIL", "CAN'T TELL") if answer in answers), "PASS")
    notes = [*(f"changed after results: {one}" for one in decision.post_hoc)]
    notes += ["runs are simulated: nothing was measured on a model"] if decision.synthetic else []
    notes += [f"openings of these test rows so far: {count}"] if count else []
    about = {"arm": arm, "task": task, "answer": whole, "trial": trial, "study_digest": decision.study_digest}
    return Gated(**about, gates=gates, comparison=comparison, notes=tuple(notes))


def _find(asked: Asked) -> Version:
    name, which = split_reference(asked.against)
    return Registry.at(asked.registry).find(name, which or CHAMPION)


def _arm(decision: Decision, asked: Asked, shipped: Shipped | None) -> str | None:
    arms = [result.arm for result in decision.arms]
    if asked.arm is not None and asked.arm not in arms:
        raise ConfigError(f"gate: no such arm, got {show(asked.arm)}; {nearest(asked.arm, arms)}")
    if shipped is None:
        return asked.arm or decision.recommendation
    if shipped.trial not in decision.record_digests or shipped.arm not in arms:
        got, remedy = f"got trial {shipped.trial} of {shipped.arm}", "ship one of its runs"
        raise ConfigError(f"{asked.shipped}: was shipped from other runs than this study's, {got}; {remedy}")
    if asked.arm not in (None, shipped.arm):
        raise ConfigError(f"{asked.shipped}: is of arm {shipped.arm}, got --arm {asked.arm}; leave --arm out")
    return shipped.arm


def _task(evidence: Evidence, shipped: Shipped | None) -> str:
    trials = (record.trial for record in evidence.records if shipped and record.trial.id == shipped.trial)
    return next((whole(trial.task) for trial in trials), evidence.lock.study.rule.primary)


def _trial(evidence: Evidence, arm: str, task: str, shipped: Shipped | None) -> str | None:
    """The run whose scores stand for the arm: the one that was shipped, else the one that would be."""
    if shipped is not None:
        return shipped.trial
    finals = [] if evidence.lock.folding(task) else evidence.of(purpose="final", task=task, arm=arm)
    chosen = median_replicate(first_look(evidence.lock, finals), evidence.lock.study.task(task).metric)
    return chosen and chosen.trial.id


def _verdict(decision: Decision, arm: str | None, task: str) -> Gate:
    """What the study decided of the arm against its reference, or why there is no arm."""
    if arm is None:
        if {result.arm for result in decision.arms} <= decision.excluded.keys():
            reasons = (f"{out} is out: {reason}" for out, reason in decision.excluded.items())
            return Gate(name="verdict", answer="FAIL", said=tuple(reasons))
        found = decision.abstention
        said = (f"no arm is recommended: {found.reason}", f"next: {found.next_spend}; or name an arm with --arm")
        return Gate(name="verdict", answer="CAN'T TELL", said=said)
    state = next(one.state for one in decision.arms if (one.arm, one.task) == (arm, task))
    if state in OUT:
        return Gate(name="verdict", answer="FAIL", said=(f"{state} on {task}",))
    found = replicate.comparison(decision, arm, task)
    if state == "trained" and replicate.verdict(decision, arm, task) == "reference":
        return Gate(name="verdict", answer="PASS", said=("the reference that the others are compared with",))
    if found is None or state == "pending":
        return Gate(name="verdict", answer="CAN'T TELL", said=(f"{arm} has no verdict on {task}; run the study",))
    return Gate(name="verdict", answer=_answer(found), said=(_told(found),))


def _limits(evidence: Evidence, decision: Decision, arm: str) -> tuple[Bar, ...]:
    return bars.limits_of(evidence.lock.study, arm, decision.costs.get(arm, {}))


def _floors(evidence: Evidence, decision: Decision, arm: str) -> tuple[Bar, ...]:
    """Each floor; not told on a task where finals are still to come, whatever those that are there show."""
    due = {result.task for result in decision.arms if (result.arm, result.state) == (arm, "pending")}
    return tuple(
        replace(bar, holds=None, said=f"{bar.name}: {arm} has not all its finals; run the study")
        if bar.name.partition(".")[0] in due
        else bar
        for bar in bars.floors(evidence, decision.arms, arm)
    )


def _bars(name: str, arm: str | None, asked: object, held: Sequence[Bar]) -> Gate:
    if not asked:
        field = {"floors": "require", "limits": "limits"}[name]
        return Gate(name=name, answer="not asked", said=(f"the study file states no {field}",))
    if arm is None:
        return Gate(name=name, answer="CAN'T TELL", said=("no arm",))
    if not held:
        return Gate(name=name, answer="PASS", said=("none applies to an arm that is not trained",))
    order = sorted(held, key=lambda bar: (bar.holds is not False, bar.holds is True))
    missed = {bar.holds for bar in held}
    answer = "FAIL" if False in missed else "CAN'T TELL" if None in missed else "PASS"
    return Gate(name=name, answer=answer, said=tuple(bar.said for bar in order))


def _fidelity(folder: Path | None, shipped: Shipped | None) -> Gate:
    """Whether the chain of this very folder passed, and its files are those that it was run on."""
    if shipped is None:
        return Gate(name="fidelity", answer="not asked", said=("name a folder with --shipped",))
    try:
        listed = describe(folder)
        check_sealed(folder, listed)
    except IntegrityError as error:
        return Gate(name="fidelity", answer="FAIL", said=(str(error),))
    if manifest.NAME not in {one.path for one in listed}:
        return Gate(name="fidelity", answer="CAN'T TELL", said=("no manifest says what the chain was run on",))
    if shipped.chain.passed is None:
        return Gate(name="fidelity", answer="CAN'T TELL", said=("the chain was not tried; ship it with --prove",))
    if shipped.chain.passed:
        return Gate(name="fidelity", answer="PASS", said=(f"the chain passed, {len(listed)} files are intact",))
    broken = shipped.chain.first_break or "a hop that is not named"
    return Gate(name="fidelity", answer="FAIL", said=(f"the chain breaks at {broken}",))


def _champion(
    evidence: Evidence, own: Candidate, champion: Version | None, asked: Asked, study: Path
) -> tuple[Gate, Comparison | None, int | None]:
    """The run that ships against the version that serves, on the items of the study's test split."""

    def gate(answer: Answer, said: str) -> Gate:
        return Gate(name="champion", answer=answer, said=(said,))

    if champion is None:
        return gate("not asked", "name a version with --against"), None, None
    name = f"{champion.name}@{champion.version}"
    if own.trial is None:
        return gate("CAN'T TELL", f"no run stands for {own.arm or 'no arm'} against {name}"), None, None
    if champion.shipped.trial == own.trial:
        return gate("PASS", f"{name} is this very run"), None, None
    tables = {record.trial.id: StudyFolder(study).trial(record.trial).path / scores.NAME for record in evidence.records}
    try:
        margin = asked.margin or _margin(evidence, own.task)
        theirs = asked.scores or tables.get(champion.shipped.trial) or versus.own_scores(champion)
        names = name, f"{own.arm} (run {own.trial[:8]})"
        rows = evidence.lock.data[own.task].digests["test"]
        known = asked.scores is None and (champion.shipped.trial in tables or champion.shipped.test_rows == rows)
        about = {"task": champion.name, "study": evidence.lock.digest, "margin": margin}
        about["items"] = rows if known else None
        found, _, count = versus.compare_tables((theirs, tables[own.trial]), names, **about)
    except EvidenceError as error:
        return gate("CAN'T TELL", f"{name}: {error}"), None, None
    return gate(_answer(found), f"against {name}: {_told(found)}"), found, count


def _margin(evidence: Evidence, task: str) -> float:
    spec = evidence.lock.study.task(task)
    if spec.kept_share is not None:
        got = f"got {spec.margin!r}"
        raise EvidenceError(f"margin: the study's is a share of a gain, {got}; give one in the metric's unit: --margin")
    return float(spec.margin)


def _answer(found: Comparison) -> Answer:
    return "PASS" if found.words in SAFE else "FAIL" if found.words == "WORSE" else "CAN'T TELL"


def _told(found: Comparison) -> str:
    """The verdict with its interval, and what would settle it."""
    if found.effect is None:
        return f"{found.words}: {found.reason or 'no estimate'}"
    ends = "" if found.low is None else f" [{found.low:+.4g}, {found.high:+.4g}] at {100 * found.level:g} %"
    margin = "" if found.margin is None else f", margin {found.margin:g}"
    needs = f"; {found.needs}" if found.needs else ""
    return f"{found.words}: {found.effect:+.4g}{ends}{margin}{needs}"


def _line(text: str) -> str:
    """One printable line that fits a screen."""
    shown = "".join(one if one.isprintable() else "\ufffd" for one in " ".join(text.split()))
    return shown if len(shown) <= WIDTH else f"{shown[: WIDTH - 1]}…"
