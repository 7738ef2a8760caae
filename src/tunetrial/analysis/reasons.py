"""The sentences of a decision, with their numbers, for a person to paste into a chat."""

from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10

from tunetrial.analysis import metrics
from tunetrial.analysis.board import Board
from tunetrial.analysis.verdict import NO_SEEDS
from tunetrial.core.evidence import Abstention, Comparison, Need

PROBE = "a probe of every arm on one machine, to measure what it costs"
COSTS = {"train_s": "one training run", "peak_gib": "peak memory", "storage_mib": "saved artifact"}


def whether_to_tune(need: Need | None) -> Iterator[str]:
    """The answer to the question that comes before all others."""
    if need is not None:
        answer = {"no": "No", "yes": "Yes", "open": "Can't tell yet"}[need.answer]
        yield f"Do you need to tune at all? {answer}: {need.reason}."


def opening(board: Board) -> Iterator[str]:
    """Who is out, and every verdict of the primary task."""
    asked = board.evidence.lock.study.reference
    if board.reference != asked:
        yield f"{asked} does not fit on this machine, so the others are compared with {board.reference}."
    for arm, reason in board.excluded.items():
        yield f"{arm} is out: {reason}."
    for c in board.verdicts.values():
        of = f"{c.folding} of" if c.folding else f"{c.n_replicates} paired seeds and"
        rows = "rows" if c.folding else "test rows"
        basis = f", from {of} {c.n_examples} {rows}" if c.effect is not None else ""
        yield f"{c.candidate} on {c.task}: {c.words}: {finding(c)}{basis}."
    yield from _bases(board)


def _bases(board: Board) -> Iterator[str]:
    """Which arms are on another base than the one they are compared with."""
    lock = board.evidence.lock
    for arm in board.verdicts:
        if lock.base(arm).fingerprint != lock.base(board.reference).fingerprint:
            bases = f"{lock.study.base_of(arm)}, {board.reference} on {lock.study.base_of(board.reference)}"
            yield f"{arm} is on another base ({bases}): what they differ by is of base and method together."


def closing(
    board: Board, others: Sequence[Comparison], test_openings: Mapping[str, int], post_hoc: Sequence[str]
) -> Iterator[str]:
    """Verdicts of the other tasks, and what weakens the evidence."""
    for c in others:
        yield f"{c.candidate} on {c.task}, which does not decide: {c.words}: {finding(c)}."
    if board.costs_obstacle:
        yield f"Costs are not compared: {board.costs_obstacle}."
    for task, times in test_openings.items():
        if times > 1:
            yield f"The test rows of {task} have been opened {times} times: each time makes a false finding likelier."
    for change in post_hoc:
        yield f"Changed after results were known: {change}."
    if board.evidence.lock.engine == "sim":
        yield "All of this is simulated: it says nothing about any method."


def cheapest_of(board: Board, pick: str, pool: Sequence[str]) -> Iterator[str]:
    """Why this one of several, and what it costs."""
    better = pick != board.reference and board.verdicts[pick].words == "BETTER"
    kind = f"{'better' if better else 'not worse'} than {board.reference}"
    if len(pool) > 1:
        order = "training time, then peak memory, then saved artifact; within 10 % counts as equal"
        yield f"Of the arms that are {kind} ({', '.join(pool)}), {pick} is the cheapest ({order})."
    else:
        yield f"{pick} is the only arm that is shown to be {kind if pick != board.reference else 'safe'}."
    yield from costs(board, pick)


def costs(board: Board, pick: str) -> Iterator[str]:
    """The costs of the pick beside the reference's, or beside the next arm's where it is the reference."""
    other = board.reference if pick != board.reference else next((a for a in board.candidates if a != pick), pick)
    own, theirs = board.costs.get(pick, {}), board.costs.get(other, {}) if other != pick else {}
    parts = []
    for name, text in COSTS.items():
        if name in own:
            beside = f" ({other}: {theirs[name].value:.3g})" if name in theirs else ""
            parts.append(f"{text} {own[name].value:.3g} {own[name].unit}{beside}")
    if parts:
        yield f"{pick}: {', '.join(parts)}."


def at_worst(board: Board, safe: str, rival: str | None) -> str | None:
    """The losing ends of the intervals, in the metric's unit: of the safe choice, and of the arm it is chosen over."""
    parts = []
    own, other = board.verdicts.get(safe), board.verdicts.get(rival) if rival else None
    if own is not None and own.low is not None:
        parts.append(f"{safe} may be worse than {own.reference} by {_loss(own, -own.low)}")
    if other is not None and other.low is not None and rival != safe:
        parts.append(f"choosing {other.reference} forgoes at most {_loss(other, other.high)} against {rival}")
        parts.append(f"choosing {rival} may lose {_loss(other, -other.low)}")
    return "; ".join(parts) or None


def abstention(
    board: Board, reason: str, spend: str | None = None, *, safe: str | None = None, rival: str | None = None
) -> Abstention:
    """Name the cheapest safe choice unless it is given, what it may cost at worst, and the best next spend: what would
    settle the rival's verdict, if that is not given either."""
    safe = safe or board.cheapest(board.safe) or next(iter(board.safe), None)
    spend = spend or (next_spend(board.verdicts[rival]) if rival else PROBE)
    worst = at_worst(board, safe, rival) if safe else None
    return Abstention(reason=reason, safe_choice=safe, at_worst=worst, next_spend=spend)


def next_spend(verdict: Comparison) -> str:
    """What would settle one verdict."""
    if verdict.words == "NOT COMPARABLE":
        return f"make {verdict.candidate} and {verdict.reference} comparable: {verdict.reason}"
    if verdict.needs is None:
        return "no more trials: the verdicts are settled and the criteria are close"
    spend = verdict.needs.removeprefix(NO_SEEDS)
    return spend + ("" if "more seed" in spend or verdict.bound_by != "examples" else ", not more seeds")


def finding(c: Comparison) -> str:
    """Effect, interval and margin of a comparison; or why there is none."""
    if c.effect is None:
        return measured(c)
    return f"{measured(c).removesuffix(')')}; your margin is {margin(c)}){kept(c)}"


def measured(c: Comparison) -> str:
    """Effect and interval of a comparison; or why there is none."""
    if c.effect is None:
        return c.reason or "no interval"
    effect, low, high = (f"{x:+.{_places(c)}f}" for x in (c.effect, c.low, c.high))
    held = f"{100 * c.level:.1f} %: {low} to {high}"
    return f"{metrics.find(c.metric).title} {effect} against {c.reference} ({held})"


def margin(c: Comparison) -> str:
    """The margin of a comparison with an effect, as it was asked for."""
    if c.kept_share is None:
        return f"{c.margin:g}"
    return f"{100 * c.kept_share:g} % of gain, here {c.margin:.2g} as estimated"


def kept(c: Comparison) -> str:
    """The share of the reference's gain that the candidate gains too; empty where that was not asked."""
    if c.gain is None:
        return ""
    gain = f"{c.reference}'s gain over the untuned base"
    if c.gain.share is None:
        return f"; {gain} is not shown at {100 * c.gain.level:.1f} %, so no share of it is"
    share, low, high = (f"{100 * x:.0f}" for x in (c.gain.share, c.gain.low, c.gain.high))
    return f"; keeps {share} % ({low} to {high} %) of {gain}"


def sentences(clauses: Sequence[str]) -> tuple[str, ...]:
    """Clauses with a full stop each."""
    return tuple(f"{text}." for text in clauses)


def _loss(c: Comparison, value: float) -> str:
    return f"{max(0.0, value):.{_places(c)}f} {metrics.find(c.metric).title}"


def _places(c: Comparison) -> int:
    """Decimals: one more than the margin's leading digit needs."""
    return max(0, 1 - floor(log10(c.margin)))
