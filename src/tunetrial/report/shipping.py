"""What became of runs that shipped, hop by hop, and at which volumes ways to deploy them break even; counts nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tunetrial.core import fidelity
from tunetrial.core.deployment import BreakEven, Volumes
from tunetrial.core.evidence import Decision
from tunetrial.report import words

MILLION = 1e6


@dataclass(frozen=True)
class Step:
    """One hop: whether it passed, from which form to which, what was compared, and what went beyond its limits."""

    passed: bool
    name: str
    compared: str
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """A run on its way into one format. `outcome` is a sentence; `left_out` are forms that could not be."""

    title: str
    passed: bool
    outcome: str
    steps: tuple[Step, ...]
    left_out: tuple[str, ...]


def ways(decision: Decision) -> tuple[Way, ...]:
    """Of every run that shipped with a proof; none where none did."""
    return tuple(map(_way, decision.proven))


def _way(proof: fidelity.Proof) -> Way:
    found = proof.chain
    steps = [
        Step(not hop.faults, f"{hop.before} → {hop.after}", fidelity.said(hop), tuple(map(_clean, hop.faults)))
        for hop in found.hops
    ]
    steps += [Step(False, "files and texts", _clean(fault), ()) for fault in found.faults]
    counted = f"{sum(step.passed for step in steps)} of {len(steps)} pass"
    first = "" if found.first_break is None else f"; first broken: {_clean(found.first_break)}"
    title = f"{proof.arm} on {proof.task}, seed {proof.seed}, as {proof.format}"
    return Way(
        words.clean(title, 120), found.passed, f"{counted}{first}", tuple(steps), tuple(map(_clean, found.left_out))
    )


def _clean(text: str) -> str:
    return words.clean(text, 200)


@dataclass(frozen=True)
class Row:
    """Two ways to deploy, for one kind of request."""

    name: str
    work: str
    cells: tuple[str, ...]


VOLUME_HEADS = (
    ("Saves in storage", "a month and variant"),
    ("Costs more to answer", "a million requests"),
    ("Requests", "a month and variant"),
    ("Variants", "from how many it costs less"),
)


@dataclass(frozen=True)
class Table:
    """Break-even volumes: what they were reckoned with, what is missing, and a row for each pair and request."""

    reckoned: tuple[str, ...]
    rows: tuple[Row, ...]


def volumes(decision: Decision) -> Table | None:
    """None where nothing was timed."""
    found = decision.deployed and decision.deployed.volumes
    if not found:
        return None
    return Table(tuple(_reckoned(found)), tuple(map(_row, found.pairs)))


def _reckoned(found: Volumes) -> Iterator[str]:
    for what in found.missing:
        yield f"Not reckoned: needs {what}."
    if found.missing:
        return
    yield from (f"Price: {_clean(price)}." for price in found.prices)
    requests = "none stated" if found.requests is None else f"{found.requests:,.0f} a month each"
    yield f"Variants: {found.variants} (costs.variants); requests: {requests} (costs.requests_per_month)."
    yield "Times: medians of the bench, a row a request; ranges: its intervals over sessions; bytes: weight files."


def _row(one: BreakEven) -> Row:
    extra = f"{_usd(one.extra_usd * MILLION)} ({_usd(one.extra_low * MILLION)} to {_usd(one.extra_high * MILLION)})"
    name = f"{one.own.name} against {one.against.name}, {one.own.path}"
    cells = (_usd(one.saved_usd), extra, _requests(one), _variants(one))
    return Row(words.clean(name, 100), str(one.work), tuple(words.clean(cell, 200) for cell in cells))


def _usd(amount: float) -> str:
    sign = "−" if amount < 0 else ""
    return f"{sign}${abs(amount):.3g}" if abs(amount) < 1000 else f"{sign}${abs(amount):,.0f}"


def _requests(one: BreakEven) -> str:
    if one.first is None:
        return "CAN'T TELL"
    if one.low is None:
        return f"{one.first.setup} costs less at any number"
    then = one.against if one.first == one.own else one.own
    if one.high is None:
        return f"{one.first.setup} costs less up to {one.low:,.0f}; beyond: CAN'T TELL"
    return f"{one.first.setup} costs less up to {one.low:,.0f}, {then.setup} from {one.high:,.0f} on"


def _variants(one: BreakEven) -> str:
    if one.own.setup != "separate":
        return "–"
    if one.variants_low is None:
        return "never"
    least = math.floor(one.variants_low) + 1
    if one.variants_high is None:
        return f"{least:,} at the least"
    most = math.floor(one.variants_high) + 1
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
