"""From laps to words: how long deployments take, and how many times as long as one another.

Sessions are the replicates. Laps of one session share its process, its memory's layout and the machine's mood, so that
thousands of them know the session's own median very well and the next session's hardly better than a few do. A ratio is
therefore one number a session, of the medians of both sides' laps, and its interval is over sessions.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from tunetrial.analysis.stats import paired
from tunetrial.core.deployment import (
    Bench,
    ComputePath,
    Contender,
    Deployment,
    Footprint,
    Laps,
    Pace,
    Ratio,
    Setup,
    Swap,
    Timing,
    Work,
)
from tunetrial.core.errors import EvidenceError

MARGIN, LEVEL = 0.05, 0.95
FEWEST_BEYOND = 5  # laps beyond a quantile that is shown: 100 laps for p95, 500 for p99

Key = tuple[Contender, Work]


def summarise(bench: Bench, *, margin: float = MARGIN, level: float = LEVEL) -> Deployment:
    """Say what a bench has shown.

    Setups are held against the merged model of their arm on the same path, base and full against the first arm's; the
    engine's paths against eager. Every ratio has its own interval: none is adjusted for there being several.

    Raises:
        EvidenceError: No session, or sessions of different contenders.
    """
    by_session = [{(one.contender, one.work): one for one in session.laps} for session in bench.sessions]
    if not by_session or any(found.keys() != by_session[0].keys() for found in by_session):
        raise EvidenceError(f"bench: need sessions that timed the same, got {len(by_session)}; measure again")
    keys = sorted(by_session[0], key=lambda key: (bench.asked.works.index(key[1]), _place(key[0])))
    medians = {key: [statistics.median(found[key].laps_s) for found in by_session] for key in keys}
    said = {"margin": margin, "level": level}
    return Deployment(
        asked=bench.asked,
        timings=tuple(_timing([found[key] for found in by_session]) for key in keys),
        setup_ratios=tuple(_ratios(medians, _merged(keys), **said)),
        path_ratios=tuple(_ratios(medians, _eager(keys), **said)),
        footprints=tuple(_footprints(bench)),
        swaps=tuple(_swaps(bench)),
        facts=bench.sessions[0].facts | {"others": max(session.facts["others"] for session in bench.sessions)},
        **said,
    )


def ratio_over_sessions(
    own_S: Sequence[float], other_S: Sequence[float], *, margin: float = MARGIN, level: float = LEVEL
) -> tuple[float, float | None, float | None, Pace]:
    """The ratio of times, own over other, with its ends and the word for it.

    Args:
        own_S: One time a session; [s] of both sides are of the same session.
        margin: The smallest ratio that matters, less 1.
    Returns:
        The ratio, the ends of its interval (None from one session), and SAME (the interval lies within the margin: from
        1 / (1 + margin) to 1 + margin), SLOWER or FASTER (else, where it leaves out 1), or CAN'T TELL.
    Raises:
        EvidenceError: Not as many times on both sides, none, a time that is not above 0, or no spread.
    Source: the exponential of a t interval (Student 1908) of the log ratios, paired by session.
    """
    own, other = np.asarray(own_S, dtype=np.float64), np.asarray(other_S, dtype=np.float64)
    if own.shape != other.shape or not own.size or not (np.minimum(own, other) > 0).all():
        raise EvidenceError(f"laps: need one time above 0 a session and side, got {own.tolist()} and {other.tolist()}")
    middle, low, high = over_sessions(own / other, level=level)
    return middle, low, high, "CAN'T TELL" if low is None else _pace(low, high, margin)


def over_sessions(values_S: Sequence[float], *, level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """The geometric mean of one value above 0 a session, with the ends of its interval; none from one session.

    Raises:
        EvidenceError: The sessions do not differ.
    Source: the exponential of a t interval (Student 1908) of the logarithms.
    """
    log_S = np.log(np.asarray(values_S, dtype=np.float64))
    if len(log_S) == 1:
        return float(np.exp(log_S[0])), None, None
    low, high = (math.exp(end) for end in paired(log_S).interval(level))
    return math.exp(log_S.mean()), low, high


def quantile(times: Sequence[float], share: float) -> float | None:
    """A quantile of times; None where fewer than 5 of them are beyond it."""
    shown = len(times) * (1 - share) >= FEWEST_BEYOND * (1 - 1e-9)
    return float(np.quantile(times, share)) if shown else None


def _pace(low: float, high: float, margin: float) -> Pace:
    if 1 / (1 + margin) <= low and high <= 1 + margin:
        return "SAME"
    return "SLOWER" if low > 1 else "FASTER" if high < 1 else "CAN'T TELL"


def _place(contender: Contender) -> tuple[int, str, int]:
    """Where a contender stands in tables: paths, and in them the base, arms by name, setups as they are listed."""
    return get_args(ComputePath).index(contender.path), contender.arm or "", get_args(Setup).index(contender.setup)


def _timing(laps: Sequence[Laps]) -> Timing:
    every = np.concatenate([one.laps_s for one in laps])
    first = laps[0]

    return Timing(
        contender=first.contender,
        work=first.work,
        adapters=first.adapters,
        p50_s=float(np.median(every)),
        p95_s=quantile(every, 0.95),
        p99_s=quantile(every, 0.99),
        per_s=len(every) * first.work.batch * first.work.new_tokens / float(every.sum()),
        laps=len(every),
        sessions=len(laps),
    )


def _merged(keys: Sequence[Key]) -> Iterable[tuple[Key, Key]]:
    """Each contender beside the merged model of its arm, else of the first arm that has one."""
    merged = [key for key in keys if key[0].setup == "merged"]
    for contender, work in keys:
        there = [k for k in merged if (k[0].path, k[1]) == (contender.path, work)]
        own = next((k for k in there if k[0].arm == contender.arm), next(iter(there), None))
        if own is not None and contender.setup != "merged":
            yield (contender, work), own


def _eager(keys: Sequence[Key]) -> Iterable[tuple[Key, Key]]:
    """Each contender of the engine beside the eager one of the same weights."""
    for contender, work in keys:
        eager = contender.model_copy(update={"path": "eager"}), work
        if contender.path == "engine" and eager in keys:
            yield (contender, work), eager


def _ratios(
    medians: dict[Key, list[float]], pairs: Iterable[tuple[Key, Key]], *, margin: float, level: float
) -> Iterable[Ratio]:
    for own, other in pairs:
        ratio, low, high, pace = ratio_over_sessions(medians[own], medians[other], margin=margin, level=level)
        yield Ratio(
            contender=own[0],
            against=other[0],
            work=own[1],
            ratio=ratio,
            low=low,
            high=high,
            pace=pace,
            sessions=len(medians[own]),
        )


def _footprints(bench: Bench) -> Iterable[Footprint]:
    found = defaultdict(list)
    for session in bench.sessions:
        for one in session.opened:
            found[one.contender].append(one)
    for contender in sorted(found, key=_place):
        many = found[contender]
        peaks = [one.peak_bytes for one in many if one.peak_bytes is not None]
        yield Footprint(
            contender=contender,
            load_s=statistics.median(one.load_s for one in many),
            weights_bytes=many[0].weights_bytes,
            peak_bytes=round(statistics.median(peaks)) if peaks else None,
            artifact_bytes=bench.artifact_bytes.get(contender.name),
        )


def _swaps(bench: Bench) -> Iterable[Swap]:
    found = defaultdict(list)
    for session in bench.sessions:
        for one in session.swaps:
            found[one.arm, one.path, one.where].append(statistics.median(one.swaps_s))
    for (arm, path, where), many in found.items():
        yield Swap(arm=arm, path=path, where=where, swap_s=statistics.median(many))
