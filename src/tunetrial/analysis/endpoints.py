"""From requests to words: how long endpoints take under load, what failed, and how they compare, over sessions."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tunetrial.analysis.latency import LEVEL, MARGIN, over_sessions, quantile, ratio_over_sessions
from tunetrial.core.endpoints import (
    EndpointBench,
    EndpointFindings,
    LoadRatio,
    LoadTiming,
    Quantiles,
    Quantity,
    Request,
    Target,
    Turn,
)
from tunetrial.core.errors import EvidenceError

TIMES: dict[Quantity, Callable[[Request], float | None]] = {
    "first token": lambda request: request.first_s,
    "token": lambda request: request.token_s,
    "answer": lambda request: request.total_s,
}


def summarise(bench: EndpointBench, *, margin: float = MARGIN, level: float = LEVEL) -> EndpointFindings:
    """Say what a bench of endpoints has shown.

    Targets are held against the first one. Every ratio has its own interval: none is adjusted for there being several.

    Raises:
        EvidenceError: No session, sessions of different turns, or a turn of which no answer is whole.
    """
    by_session = [{(one.target, one.concurrency): one for one in session} for session in bench.sessions]
    if not by_session or any(found.keys() != by_session[0].keys() for found in by_session):
        raise EvidenceError(f"bench: need sessions that timed the same, got {len(by_session)}; measure again")
    asked = bench.asked
    keys = [(target, many) for many in asked.concurrency for target in asked.targets]
    turns = {key: [found[key] for found in by_session] for key in keys}
    return EndpointFindings(
        asked=asked,
        margin=margin,
        level=level,
        timings=tuple(_timing(turns[key], level) for key in keys),
        ratios=tuple(_ratios(turns, asked.targets[0], margin=margin, level=level)),
    )


def _timing(turns: Sequence[Turn], level: float) -> LoadTiming:
    requests = [request for turn in turns for request in turn.requests]
    whole = [request for request in requests if request.fault is None]
    wall_s = sum(turn.wall_s for turn in turns)
    counted = [request.tokens for request in whole if request.tokens is not None]
    known = len(counted) == len(whole)
    first, answer = _quantiles(turns, "first token", level), _quantiles(turns, "answer", level)
    if first is None or answer is None:
        where = f"{turns[0].target.model} at {turns[0].target.url}"
        raise EvidenceError(f"bench: {where}: a session without a whole answer, got faults alone; measure again")
    return LoadTiming(
        target=turns[0].target,
        concurrency=turns[0].concurrency,
        requests=len(requests),
        answered=len(whole),
        faults=dict(sorted(Counter(request.fault for request in requests if request.fault is not None).items())),
        first=first,
        token=_quantiles(turns, "token", level),
        answer=answer,
        answers_per_s=len(whole) / wall_s,
        tokens_per_s=sum(counted) / wall_s if known else None,
        tokens_made=statistics.mean(counted) if known else None,
        client_share=max(turn.client_share for turn in turns),
    )


def _times(turn: Turn, of: Quantity) -> list[float]:
    found = (TIMES[of](request) for request in turn.requests if request.fault is None)
    return [seconds for seconds in found if seconds is not None]


def _medians(turns: Sequence[Turn], of: Quantity) -> list[float] | None:
    """One time a session; None where a session has none."""
    times = [_times(turn, of) for turn in turns]
    return [statistics.median(one) for one in times] if all(times) else None


def _quantiles(turns: Sequence[Turn], of: Quantity, level: float) -> Quantiles | None:
    medians = _medians(turns, of)
    if medians is None:
        return None
    every = [seconds for turn in turns for seconds in _times(turn, of)]
    middle, low, high = over_sessions(medians, level=level)
    tails = {"p95_s": quantile(every, 0.95), "p99_s": quantile(every, 0.99)}
    return Quantiles(p50_s=statistics.median(every), **tails, middle_s=middle, low_s=low, high_s=high)


def _ratios(
    turns: dict[tuple[Target, int], list[Turn]], first: Target, *, margin: float, level: float
) -> Iterable[LoadRatio]:
    for (target, concurrency), own in turns.items():
        if target == first:
            continue
        for of in TIMES:
            sides = _medians(own, of), _medians(turns[first, concurrency], of)
            if None not in sides:
                ratio, low, high, pace = ratio_over_sessions(*sides, margin=margin, level=level)
                ends = {"ratio": ratio, "low": low, "high": high, "pace": pace}
                yield LoadRatio(target=target, against=first, concurrency=concurrency, of=of, **ends)
