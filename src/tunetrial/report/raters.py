"""What raters prefer, in a sentence and a table, for the report and for whoever has just rated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tunetrial.analysis.rounds import Standing
from tunetrial.core.evidence import Decision
from tunetrial.core.findings import Ends
from tunetrial.core.rated import Concord, Graded, Rated
from tunetrial.report import words

FIRM, TENTATIVE = 0.8, 0.667  # what Krippendorff asks of alpha, and what allows tentative conclusions


@dataclass(frozen=True)
class Row:
    """One rater on one arm; each cell is a value and the note below it."""

    rater: str
    arm: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """First one sentence, then what was asked, a row for each rater and arm, how far raters agree, and what ratings of
    1 to 10 say."""

    sentence: str
    asked: tuple[str, ...]
    rows: tuple[Row, ...]
    agreement: tuple[str, ...]
    points: tuple[str, ...] = ()


HEADS = (
    ("Preferred to the reference", "a tie is half"),
    ("Strength", "log odds"),
    ("First place", "log odds"),
    ("Same verdict", "in both orders"),
    ("Rows × seeds", "of which alike"),
    ("Not answered", "replies, or rows"),
)


def section(decision: Decision) -> Section | None:
    """None where nobody rated."""
    if not decision.rated and not decision.graded:
        return None
    every = (*decision.rated, *decision.graded)
    asked = (f"{words.name(one.task)}: {words.clean(one.criterion, 200)}" for one in every)
    points = [line for one in decision.graded for line in _points(one)]
    if any("preference" in own for own in decision.costs.values()):
        points.append("How often people prefer an arm is weighed as a criterion of the decision.")
    if not decision.rated:
        return Section(points[0], tuple(dict.fromkeys(asked)), (), (), tuple(points[1:]))
    return Section(
        sentence=_sentence(decision.rated[0]),
        asked=tuple(dict.fromkeys(asked)),
        rows=tuple(_row(one, arm) for one in decision.rated for arm in one.preferred),
        agreement=tuple(map(_agreement, decision.concord)) or (_alone(decision.rated),),
        points=tuple(points),
    )


def text(decision: Decision) -> str:
    """The same as plain lines."""
    found = section(decision)
    if found is None:
        return "Nobody has rated answers that this study has.\n"
    lines = [found.sentence, *(_line(row) for row in found.rows), *found.agreement, *found.points]
    return "\n".join(lines) + "\n"


def standing(found: Standing) -> list[str]:
    """For a rater, how far raters agree; no arm is named."""
    lines = []
    if found.consistent:
        lines.append(f"You gave one verdict in both orders on {_shares(found.consistent)} of pairs.")
    if found.raters < 2:
        return [*lines, "Nobody else has answered yet, so how far raters agree is not known."]
    for what, alpha in (("of pairs", found.of_pairs), ("of single answers", found.of_points)):
        if alpha:
            lines.append(f"Raters agree to alpha {words.ends(alpha)}, {_enough(alpha[0])}, {what}.")
    if found.icc:
        lines.append(_icc(found.icc, found.icc_of_mean))
    return lines or ["How far raters agree is not known: they share too few questions, or all say one thing."]


def _points(one: Graded) -> Iterator[str]:
    """What ratings of 1 to 10 say of each arm, and how far raters agree."""
    who, reference = ", ".join(map(words.name, one.raters)), words.name(one.reference)
    for arm, found in one.higher.items():
        means = f"mean {words.figure(one.mean[arm], 2)} against {words.figure(one.mean[one.reference], 2)}"
        higher = f"{words.name(arm)}'s answer is higher than {reference}'s on {_shares(found)}, a tie half"
        yield f"Rated 1 to 10 by {who} on {one.rows} rows of {words.name(one.task)}: {higher}; {means}."
    if not one.higher:
        yield f"Rated 1 to 10 by {who}: on no row were {reference}'s answer and another rated by all."
    if one.alpha:
        yield f"On single answers {who} agree to alpha {words.ends(one.alpha)}, {_enough(one.alpha[0])}."
    if one.icc:
        yield _icc(one.icc, one.icc_of_mean)


def _icc(single: Ends, of_mean: Ends) -> str:
    return f"ICC(2,1) of one rating is {words.ends(single)}, of their mean {words.ends(of_mean)}."


def _shares(found: Ends) -> str:
    value, low, high = (None if part is None else words.percent(round(part, 2)) for part in found)
    return value if low is None or high is None else f"{value} ({low} to {high})"


def _line(row: Row) -> str:
    pairs = zip(HEADS, row.cells, strict=True)
    cells = (f"{head.lower()} {value}{f' ({note})' if note else ''}" for (head, _), (value, note) in pairs if value)
    return f"{row.rater}, {row.arm}: {'; '.join(cells)}"


def _sentence(one: Rated) -> str:
    """Of each arm whether the rater prefers it to the reference, and whether that is shown."""
    who = words.name(one.rater)
    said = []
    for arm, (value, low, high) in one.preferred.items():
        against = f"{words.name(arm)}'s answers to {words.name(one.reference)}'s"
        share = words.percent(round(value, 2))
        if low is not None and low > 0.5:
            said.append(f"prefers {against}: they win {share} of pairs")
        elif high is not None and high < 0.5:
            said.append(
                f"prefers {words.name(one.reference)}'s answers to {words.name(arm)}'s, which win {share} of pairs"
            )
        else:
            between = f"{words.name(arm)} and {words.name(one.reference)}"
            said.append(f"shows no preference between {between}: the first wins {share} of pairs")
    return f"{'The judge ' if one.judge else ''}{who} {' and '.join(said)}."


def _row(one: Rated, arm: str) -> Row:
    share = lambda part: words.percent(round(part, 2))  # noqa: E731
    odds = lambda part: words.signed(part, 2)  # noqa: E731
    strength = _cell(one.strengths.get(arm), odds) if not one.separated else ("no maximum", "")
    return Row(
        rater=f"{words.name(one.rater)}{' (judge)' if one.judge else ''}",
        arm=words.name(arm),
        cells=(
            _cell(one.preferred[arm], share),
            strength,
            _cell(one.position, odds),
            _cell(one.consistent, share),
            (f"{one.rows} × {one.seeds}", f"{one.same} pairs of one text"),
            (str(one.refused if one.judge else one.blank), ""),
        ),
    )


def _cell(found: Ends | None, write: Callable[[float], str]) -> tuple[str, str]:
    if found is None:
        return "", ""
    value, *ends = (None if part is None else write(part) for part in found)
    if ends == [None, None]:
        return value, ""
    return value, " to ".join("unbounded" if end is None else end for end in ends)


def _agreement(one: Concord) -> str:
    who = ", ".join(words.name(rater) for rater in one.raters)
    arms = f"{words.name(one.arm)} against {words.name(one.reference)}"
    about = f"{arms} on {one.rows} shared rows of {words.name(one.task)}"
    if one.alpha is None:
        return f"{who} say one thing of every answer, {about}: alpha is not defined."
    value, low, high = one.alpha
    ends = "" if low is None or high is None else f" ({words.figure(low, 2)} to {words.figure(high, 2)})"
    return f"{who} agree to alpha {words.figure(value, 2)}{ends}, {_enough(value)}, {about}."


def _enough(alpha: float) -> str:
    return (
        "firm" if alpha >= FIRM else "enough for tentative conclusions" if alpha >= TENTATIVE else "too little to go by"
    )


def _alone(rated: tuple[Rated, ...]) -> str:
    """One rater's word, or several on rows of their own."""
    if all(one.judge for one in rated):
        return "No person rated the same rows: a judge's word counts once it agrees with people's."
    return "No two raters judged the same rows, so how far they agree is not known."
