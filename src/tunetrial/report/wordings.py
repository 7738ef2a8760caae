"""How arms answer inputs that are worded otherwise, and how they answer with another seed: a sentence, and tables."""

from collections.abc import Callable
from dataclasses import dataclass

from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.findings import Ends, Wordings
from tunetrial.core.study import TaskSpec
from tunetrial.core.variants import PLAIN
from tunetrial.report import words

SOURCES = {
    "seed": "seeds",
    "variant": "wordings",
    "example": "rows",
    "seed_variant": "seeds × wordings",
    "seed_example": "seeds × rows",
    "variant_example": "wordings × rows",
    "rest": "the rest",
}


HEADS = (
    ("Same answer, or SD", "in other words"),
    ("Same answer, or SD", "with another seed"),
    ("Right", "as the rows are"),
    ("Right", "under every wording"),
    ("Worst wording", "whichever it is in truth"),
    ("Worst, against the reference", "+ is better"),
    ("Right everywhere, against it", "points of 100"),
)


@dataclass(frozen=True)
class Row:
    """One arm on one task; each cell is a value and the note below it: its interval."""

    task: str
    arm: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """What the report says of wordings: first one sentence, then rows; scores under each variant; where scores vary."""

    sentence: str
    rows: tuple[Row, ...]
    scores: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]
    sources: tuple[tuple[str, str, tuple[str, ...]], ...]


def section(evidence: Evidence, decision: Decision) -> Section | None:
    """None where no variant was asked for, or nothing came of it."""
    if not decision.wordings:
        return None
    study = evidence.lock.study
    return Section(
        sentence=_first(evidence, decision),
        rows=tuple(_row(study.task(one.task), one, decision) for one in decision.wordings),
        scores=tuple(_scores(study.task(one.task), one) for one in decision.wordings),
        sources=tuple(_sources(one) for one in decision.wordings if one.sources),
    )


def _first(evidence: Evidence, decision: Decision) -> str:
    """Of the arm that the reader is told to use, on the task that decides."""
    study = evidence.lock.study
    told = (decision.recommendation, decision.abstention and decision.abstention.safe_choice, study.reference)
    order = {(study.rule.primary, arm): place for place, arm in reversed(list(enumerate(told)))}
    one = min(decision.wordings, key=lambda one: order.get((one.task, one.arm), len(told)))
    who = f"Worded otherwise, {words.name(one.arm)} on {words.name(one.task)}"
    return f"{who} {_changes(one)}{_holds(one)}; {_at_worst(study.task(one.task), one)}."


def _changes(one: Wordings) -> str:
    if one.measure != "agreement":
        return f"moves an answer by {words.figure(one.same[0])}"
    return f"gives two wordings of one input different answers {_percent(1 - one.same[0])} of the time"


def _holds(one: Wordings) -> str:
    if one.right is None or one.right_everywhere is None:
        return ""
    right = f"right on {_percent(one.right)} of the rows as they are"
    return f", and is {right} and under every wording on {_percent(one.right_everywhere[0])}"


def _at_worst(task: TaskSpec, one: Wordings) -> str:
    metric, places = words.metric(task.metric), _places(task)
    score = f"{metric} {words.number(one.worst_score[0], places)}"
    if one.worst == PLAIN:
        return f"no wording is worse for it than the rows as they are, {score}"
    plain = words.number(one.scores[PLAIN], places)
    return f"at worst, under the variant {words.clean(one.worst, 40)}, {score} in place of {plain}"


def _row(task: TaskSpec, one: Wordings, decision: Decision) -> Row:
    seeded = next((r for r in decision.repeats if (r.task, r.arm) == (one.task, one.arm)), None)
    places = _places(task)
    share, figure = (lambda part: words.percent(round(part, 3))), words.figure
    number, gap = (lambda part: words.number(part, places)), (lambda part: words.signed(part, places))
    points = lambda part: words.signed(100 * part, 1)  # noqa: E731
    value, note = _cell(one.worst_score, number)
    compared = one.against is not None
    return Row(
        task=words.name(one.task),
        arm=words.name(one.arm),
        cells=(
            _cell(one.same, share if one.measure == "agreement" else figure),
            ("", "") if seeded is None else _cell(seeded.same, share if seeded.measure == "agreement" else figure),
            ("" if one.right is None else share(one.right), ""),
            ("", "") if one.right_everywhere is None else _cell(one.right_everywhere, share),
            (f"{words.clean(one.worst, 40)}: {value}", note),
            _cell(one.worst_gap, gap) if compared else ("", ""),
            _cell(one.right_gap, points) if compared and one.right_everywhere is not None else ("", ""),
        ),
    )


def _cell(found: Ends | None, write: Callable[[float], str]) -> tuple[str, str]:
    """A value and its interval; without one the arms answer alike, or the data bound nothing."""
    if found is None:
        return "no difference", ""
    value, *ends = (None if part is None else write(part) for part in found)
    return value, "" if None in ends else f"{ends[0]} to {ends[1]}"


def _scores(task: TaskSpec, one: Wordings) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    places = _places(task)
    cells = tuple((words.clean(name, 40), words.number(score, places)) for name, score in one.scores.items())
    return words.name(one.task), words.name(one.arm), cells


def _sources(one: Wordings) -> tuple[str, str, tuple[str, ...]]:
    """Shares of all variance; chance may make one negative."""
    total = sum(one.sources.values())
    cells = tuple(_percent(one.sources[name] / total) if total > 0 else "none" for name in SOURCES)
    return words.name(one.task), words.name(one.arm), cells


def _percent(share: float) -> str:
    return words.percent(round(share, 2) + 0.0).replace("-", words.MINUS)


def _places(task: TaskSpec) -> int:
    return words.decimals_for(task.margin if task.kept_share is None else None)
