"""Break-even volumes: at how many requests, or variants, one way to deploy costs less than another.

A month of N variants costs storage × its price + N × requests × seconds a request × the price of the machine's time.
Machines are paid for while they answer and no longer: what idle ones, transfers, memory that variants hold and the
training of a variant cost is not in it.
"""

import statistics
from collections.abc import Iterator

from tunetrial.analysis.latency import ratio_over_sessions
from tunetrial.core.deployment import Bench, BreakEven, ComputePath, Contender, Volumes, Work

Medians = dict[tuple[Contender, Work], list[float]]


def volumes(
    bench: Bench,
    *,
    variants: int,
    requests: float | None,
    usd_per_byte_month: float | None,
    usd_per_s: float | None,
    prices: tuple[str, ...],
) -> Volumes:
    """Hold separate, merged and full models of a bench against each other, each kind of request on the path on which
    merged models answer soonest.

    Args:
        requests: A month and variant; None is not stated, and the number of variants is reckoned without any.
        prices: Both in words, with where they come from.
    """
    wanted = {
        "hardware.usd_per_hour in the study file, the price of the machine that was timed": usd_per_s is None,
        "a price of storage: costs.usd_per_gb_month in the study file": usd_per_byte_month is None,
        "times of 2 or more sessions: one has no interval": len(bench.sessions) < 2,
    }
    missing, pairs = tuple(what for what, lacks in wanted.items() if lacks), ()
    if not missing:
        rates = {"usd_per_byte": usd_per_byte_month, "usd_per_s": usd_per_s}
        pairs = tuple(_pairs(bench, variants=variants, requests=requests or 0.0, **rates))
    return Volumes(variants=variants, requests=requests, prices=prices, missing=missing, pairs=pairs)


def _pairs(
    bench: Bench, *, variants: int, requests: float, usd_per_byte: float, usd_per_s: float
) -> Iterator[BreakEven]:
    medians: Medians = {}
    for session in bench.sessions:
        for one in session.laps:
            medians.setdefault((one.contender, one.work), []).append(statistics.median(one.laps_s))
    for work in bench.asked.works:
        path = _soonest(medians, work)
        there = [c for c, w in medians if w == work and c.path == path and c.name in bench.artifact_bytes]
        for own, other in _held_against(there):
            shared = bench.artifact_bytes.get("base") if own.setup == "separate" else 0
            if shared is None:
                continue
            each = bench.artifact_bytes[other.name] - bench.artifact_bytes[own.name]
            ratio, low, high, _ = ratio_over_sessions(medians[own, work], medians[other, work])
            request_usd = statistics.median(medians[other, work]) / work.batch * usd_per_s
            extra = [request_usd * (one - 1) for one in (ratio, low, high)]
            yield BreakEven(
                own=own,
                against=other,
                work=work,
                saved_usd=(each - shared / variants) * usd_per_byte,
                extra_usd=extra[0],
                extra_low=extra[1],
                extra_high=extra[2],
                **_in_requests(own, other, (each - shared / variants) * usd_per_byte, *extra[1:]),
                **_in_variants(shared * usd_per_byte, each * usd_per_byte, [requests * one for one in extra[1:]]),
            )


def _soonest(medians: Medians, work: Work) -> ComputePath | None:
    """The path on which a merged model answers soonest."""
    merged = {c.path: statistics.median(of) for (c, w), of in medians.items() if w == work and c.setup == "merged"}
    return min(merged, key=merged.get, default=None)


def _held_against(there: list[Contender]) -> Iterator[tuple[Contender, Contender]]:
    """Separate against its merged model, and both against full ones."""
    merged = [one for one in there if one.setup == "merged"]
    full = [one for one in there if one.setup == "full"]
    for own in (one for one in there if one.setup == "separate"):
        yield from ((own, other) for other in merged if other.arm == own.arm)
        yield from ((own, other) for other in full)
    yield from ((own, other) for own in merged for other in full)


def _in_requests(own: Contender, other: Contender, saved: float, low: float, high: float) -> dict[str, object]:
    """Who costs less at few requests, and between which numbers of them it changes: where extra × requests = saved."""
    if saved == 0:
        first = own if high < 0 else other if low > 0 else None
        return {"first": first, "low": None, "high": None}
    first, ends = (own, (low, high)) if saved > 0 else (other, (-high, -low))
    if ends[1] <= 0:
        return {"first": first, "low": None, "high": None}
    return {"first": first, "low": abs(saved) / ends[1], "high": abs(saved) / ends[0] if ends[0] > 0 else None}


def _in_variants(shared: float, each: float, extra: list[float]) -> dict[str, float | None]:
    """From how many variants on `own` costs less: where what each saves makes up for what they share."""
    saved = [each - one for one in extra]  # a variant, the most first
    if not shared or saved[0] <= 0:
        return {"variants_low": None, "variants_high": None}
    return {"variants_low": shared / saved[0], "variants_high": shared / saved[1] if saved[1] > 0 else None}
