"""What an arm costs in the first year of a use, as terms that are products: a page can move each of their inputs.

The only place that knows how such a cost is made. Seconds are those of the study's machine, so the price of an hour is
to be that of a machine like it; a request takes as long as the probe's, one at a time, and only its own seconds are
paid. A whole model is kept once a tenant, adapters lie beside the one base that they share.
"""

from collections.abc import Iterator, Mapping

from tunetrial.analysis.board import Board
from tunetrial.core.scenario import Inputs
from tunetrial.core.weighed import Term

MONTHS = 12
GB_BYTES = 1e9
PRICED = {"usd_per_hour": "hour of the machine", "usd_per_gb_month": "GB-month", "usd_per_engineer_hour": "engineer"}


def terms(board: Board, arm: str) -> tuple[Term, ...]:
    """The terms of an arm's first year in US dollars; what was not measured has none."""
    return tuple(_terms(board, arm))


def _terms(board: Board, arm: str) -> Iterator[Term]:
    own, planned = board.costs.get(arm, {}), board.evidence.lock.study.arm(arm)
    retrained = ("retrainings_per_month", "tenants")
    if "train_s" in own and not planned.untrained:
        hours = own["train_s"].value / 3600 * MONTHS
        yield Term(what="retraining", coefficient=hours, inputs=(*retrained, "usd_per_hour"), basis="measured")
    if not planned.untrained:
        hourly = ("engineer_hours_per_retraining", "usd_per_engineer_hour")
        yield Term(what="engineers", coefficient=MONTHS, inputs=(*retrained, *hourly), basis="given")
    if "latency_ms" in own:
        hours = own["latency_ms"].value / 3.6e6 * MONTHS
        yield Term(what="serving", coefficient=hours, inputs=("requests_per_month", "usd_per_hour"), basis="measured")
    yield from _storage(board, arm)


def _storage(board: Board, arm: str) -> Iterator[Term]:
    lock = board.evidence.lock
    probes = board.evidence.of(purpose="probe", task=lock.parts(board.primary)[0], arm=arm)
    found = next((r.measurements for r in probes if r.status == "ok"), {})
    month = MONTHS / GB_BYTES
    if "artifact_bytes" in found and not lock.study.arm(arm).untrained:
        kept = found["artifact_bytes"].value * month
        yield Term(what="storage", coefficient=kept, inputs=("tenants", "usd_per_gb_month"), basis="measured")
    if "base_bytes" in found and lock.study.arm(arm).method != "full":
        shared = found["base_bytes"].value * month
        yield Term(what="storage of the base", coefficient=shared, inputs=("usd_per_gb_month",), basis="measured")


def usd(parts: tuple[Term, ...], inputs: Inputs, **changed: float) -> float | None:
    """Their sum at these inputs; None where there is no term, or a price that a term needs is not known."""
    known = inputs.model_dump() | changed
    if not parts or any(known[name] is None for part in parts for name in part.inputs if _counts(part, known)):
        return None
    return sum(_product(part, known) for part in parts)


def _counts(part: Term, known: Mapping[str, float | None]) -> bool:
    """Whether a term is more than nothing: without engineers' hours their price need not be known."""
    return all(known[name] != 0 for name in part.inputs)


def _product(part: Term, known: Mapping[str, float | None]) -> float:
    if not _counts(part, known):
        return 0.0
    found = part.coefficient
    for name in part.inputs:
        found *= known[name]
    return found
