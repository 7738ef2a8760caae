"""What was forgotten: a sentence for each task, a table of arms and texts, and runs beside what they learnt."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.findings import Ends, Explained, Forgotten, Frontier, Loss, Point
from tunetrial.core.pins import TEXT
from tunetrial.report import words
from tunetrial.report.plots import Frame, Line, Mark, Panel, Tick, padded, ticks, value_ticks


@dataclass(frozen=True)
class Row:
    """An arm on a task and a held-out text, each number with its interval as the report writes it."""

    task: str
    arm: str
    text: str
    nats: str
    beyond: str
    bits: str
    kl: str
    agreed: str
    basis: str


def rows(decision: Decision) -> tuple[Row, ...]:
    """Every arm with a final and every text, all texts together first."""
    return tuple(row for one in decision.forgotten for row in _rows(one))


def _rows(one: Forgotten) -> Iterator[Row]:
    task, arm = words.name(one.task), words.name(one.arm)
    if not one.losses:
        yield Row(task, arm, "all", *["not measured"] * 5, _basis(one, None))
    for loss in one.losses:
        text = "all" if loss.text is None else words.name(loss.text)
        beyond = "reference" if one.arm == one.reference else "not comparable"
        yield Row(
            task,
            arm,
            text,
            words.ends(loss.nats, sign=True),
            beyond if loss.beyond is None else words.ends(loss.beyond, sign=True),
            words.ends(loss.bits, sign=True),
            words.ends(loss.kl),
            _shares(loss.agreed),
            _basis(one, loss),
        )


def _basis(one: Forgotten, loss: Loss | None) -> str:
    """Of how much it is, what is missing, and why there is no interval."""
    parts = [_count(one.runs, "run")]
    if loss is not None:
        parts.append(
            _count(loss.texts, "text") + ("" if loss.texts == loss.clusters else f" of {loss.clusters} sources")
        )
        parts.append(f"{words.number(loss.tokens, 0)} tokens")
        parts += [f"no interval: {loss.why_bare}"] if loss.why_bare else []
    parts += [f"{one.diverged} diverged"] if one.diverged else []
    parts += [f"{one.unobserved} not observed"] if one.unobserved else []
    return ", ".join(parts)


def sentences(decision: Decision, limit: float | None, primary: str) -> tuple[str, ...]:
    """For each task what its arms lost on all texts; of the task that decides, what the limit says of it."""
    tasks = dict.fromkeys(one.task for one in decision.forgotten)
    found = []
    for task in tasks:
        told = [one for one in decision.forgotten if one.task == task and one.overall]
        if told:
            said = "; ".join(_said(one, limit if task == primary else None) for one in told)
            found.append(f"Tuned on {words.name(task)}, a token of the held-out texts costs {said}.")
    return tuple(found)


def _said(one: Forgotten, limit: float | None) -> str:
    loss = one.overall
    value, low, high = loss.nats
    said = f"with {words.name(one.arm)} {words.figure(abs(value), 2)} nats {'more' if value >= 0 else 'less'}"
    said += f" than under its base ({loss.why_bare or 'no interval'})" if low is None or high is None else ""
    if low is not None and high is not None:
        ends = " to ".join(words.signed(end, words.decimals_of(loss.nats)) for end in (low, high))
        said += f" than under its base ({words.percent(one.level)} interval {ends})"
    if loss.beyond is not None and None not in loss.beyond[1:]:
        sides = (", more than with {0}", ", less than with {0}", ", not shown to differ from {0}")
        side = 0 if loss.beyond[1] > 0 else 1 if loss.beyond[2] < 0 else 2
        said += sides[side].format(words.name(one.reference))
    if limit is not None and value <= limit and high is not None and high > limit:
        said += f", within the limit of {words.plain(limit)} though its interval reaches beyond"
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _shares(found: Ends) -> str:
    value, *ends = (None if part is None else words.percent(part) for part in found)
    return value if None in ends else f"{value} ({ends[0]} to {ends[1]})"


def panels(evidence: Evidence, decision: Decision) -> tuple[Panel, ...]:
    """What runs forgot against what they learnt, one panel a task; faint marks are runs of the search, lines frontiers.

    A run that forgot far more than the others lies at the frame's edge.
    """
    arms = [arm.name for arm in evidence.lock.study.arms]
    tasks = dict.fromkeys(one.task for one in decision.frontiers)
    return tuple(_panel(evidence, arms, [o for o in decision.frontiers if o.task == task]) for task in tasks)


def _panel(evidence: Evidence, arms: list[str], shown: list[Frontier]) -> Panel:
    points = [(one, point) for one in shown for point in one.points]
    drawn = [0.0, *(p.forgotten for one, p in points if p.final), *(y for one in shown for _, y in one.line)]
    frame = Frame(padded([0.0, *(p.learnt for _, p in points)]), padded(drawn))
    metric = words.metric(evidence.lock.study.task(shown[0].task).metric)
    return Panel(
        task=shown[0].task,
        x_label=f"learnt: validation {metric} above {shown[0].above}",
        y_label="forgotten, nats a token",
        frame=frame,
        x_ticks=tuple(Tick(frame.across(at), words.plain(at)) for at in ticks(*frame.x)),
        y_ticks=value_ticks(frame),
        lines=tuple(Line(frame.path(one.line), arms.index(one.arm), faint=False) for one in shown if one.line),
        alt=f"Forgetting against learning, {len(points)} runs of {len(shown)} arms; the untuned base lies at 0 and 0.",
        arms=tuple((arms.index(one.arm), one.arm) for one in shown),
        marks=tuple(_mark(frame, arms.index(one.arm), one.arm, point) for one, point in points),
        clamped=any(point.forgotten > frame.y[1] for _, point in points),
        base=(frame.across(0.0), frame.down(0.0)),
    )


def _mark(frame: Frame, index: int, arm: str, point: Point) -> Mark:
    text = f"{words.clean(arm, 40)}, {'final' if point.final else 'search'}, rate {words.rate(point.rate)}"
    text += f", seed {point.seed}: learnt {words.figure(point.learnt)}, forgot {words.figure(point.forgotten)}"
    return Mark(frame.across(point.learnt), frame.down(point.forgotten), index, text, faint=not point.final)


def frontier_sentences(evidence: Evidence, decision: Decision) -> tuple[str, ...]:
    """How much arms forget where they learnt the same as the reference."""
    metric = {task.name: words.metric(task.metric) for task in evidence.lock.study.tasks}
    return tuple(_at_equal_learning(one, metric[one.task]) for one in decision.frontiers if one.equal is not None)


def _at_equal_learning(one: Frontier, metric: str) -> str:
    arm, reference = words.name(one.arm), words.name(one.reference)
    value, low, high = one.equal
    how = f"{words.figure(abs(value), 2)} nats a token {'more' if value >= 0 else 'less'} than {reference}"
    ends = " to ".join(words.signed(end, words.decimals_of(one.equal)) for end in (low, high))
    shown = "" if low > 0 or high < 0 else "; a difference is not shown"
    where = f"On {words.name(one.task)}, where both learnt {words.figure(one.learning, 2)} {metric} above {one.above}"
    along = f"{words.ends(one.apart, sign=True)} on average up to there"
    return (
        f"{where}, {arm} forgets {how} ({words.percent(one.level)} interval {ends}, {one.seeds} seeds{shown}); {along}."
    )


def explanations(decision: Decision) -> tuple[str, ...]:
    """Whether runs that drifted further forgot more, over all runs and within arms."""
    return tuple(_explanation(one) for one in decision.explained)


def _explanation(one: Explained) -> str:
    shown = {name: _side(getattr(one, name)) for name in ("pooled", "within")}
    if shown["within"] == 1:
        meaning = "within arms, runs that drifted further forgot more"
    elif shown["within"] == -1:
        meaning = "within arms, runs that drifted further forgot less"
    elif shown["pooled"]:
        meaning = "arms differ in both, but within arms the one is not shown to go with the other"
    else:
        meaning = "drift is not shown to go with forgetting"
    rows = "test rows" if one.source == "test" else f"the text {words.name(one.source.removeprefix(TEXT))}"
    told = f"Spearman {words.ends(one.within, sign=True)} within arms, {words.ends(one.pooled, sign=True)} over all"
    return f"Drift on {rows}, tuned on {words.name(one.task)}: {meaning} ({told}; {one.runs} runs)."


def _side(found: Ends) -> int:
    """1 or -1 where an interval lies on one side of 0, else 0."""
    _, low, high = found
    return 0 if low is None or high is None else (low > 0) - (high < 0)
