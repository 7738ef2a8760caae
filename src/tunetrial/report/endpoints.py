"""How long endpoints take under load: a table and sentences; computes no statistics."""

from collections.abc import Iterator

from tunetrial.core.endpoints import EndpointFindings, LoadTiming, Quantiles, Target
from tunetrial.report import words

BUSY = 0.5


def text(found: EndpointFindings) -> str:
    """A table a target, what failed, and how targets compare."""
    parts = ["\n".join(_heading(found))]
    for target in found.asked.targets:
        timings = [one for one in found.timings if one.target == target]
        parts.append("\n".join([_name(target), *(line for one in timings for line in _rows(one))]))
    if lines := [*_faults(found), *_ratios(found), *_busy(found)]:
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _heading(found: EndpointFindings) -> Iterator[str]:
    asked = found.asked
    yield (
        f"{asked.sessions} sessions of {asked.requests} requests, up to {asked.tokens} tokens each, "
        f"{asked.prompts} prompts, order by seed {asked.seed}"
    )
    yield "Milliseconds as seen by whoever asks. The interval is of a session's median, over sessions of this server."
    if asked.sessions == 1:
        yield "One session has no interval: nothing can be told from it; ask for more with --sessions."


def _rows(one: LoadTiming) -> Iterator[str]:
    rate = "tokens/s not counted" if one.tokens_per_s is None else f"{one.tokens_per_s:.4g} tokens/s"
    answered = f"{one.answered} of {one.requests} answered, {one.answers_per_s:.4g} a second"
    yield f"  {one.concurrency} at once: {answered}, {rate}"
    yield f"    {'':<12} {'p50':>8} {'p95':>8} {'p99':>8}  interval"
    for name, times in (("first token", one.first), ("token", one.token), ("answer", one.answer)):
        if times is not None:
            yield f"    {name:<12} {_row(times)}".rstrip()


def _row(times: Quantiles) -> str:
    ends = "" if times.low_s is None else f"  {_ms(times.low_s)} to {_ms(times.high_s)}"
    return " ".join(f"{_ms(one):>8}" for one in (times.p50_s, times.p95_s, times.p99_s)) + ends


def _faults(found: EndpointFindings) -> Iterator[str]:
    for one in found.timings:
        if one.faults:
            said = ", ".join(f"{many} × {words.clean(fault, 60)}" for fault, many in one.faults.items())
            share = f"{sum(one.faults.values())} of {one.requests} requests failed"
            yield f"{_name(one.target)}, {one.concurrency} at once: {share} ({said}); times are of the others"


def _ratios(found: EndpointFindings) -> Iterator[str]:
    for one in found.ratios:
        ends = "" if one.low is None else f" ({one.low:.2f} to {one.high:.2f})"
        what = f"{_name(one.target)} takes {one.ratio:.2f} ×{ends} {_name(one.against)}"
        yield f"{one.of}, {one.concurrency} at once: {what}: {one.pace}"


def _busy(found: EndpointFindings) -> Iterator[str]:
    most = max(one.client_share for one in found.timings)
    if most > BUSY:
        yield f"Whoever asked was busy on {most:.0%} of a core: the times may be its own; ask from another machine."


def _name(target: Target) -> str:
    return words.clean(f"{target.model} at {target.url}", 120)


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.4g}"
