"""Scenarios weighed on what a study has, without training; kept in `scenarios.json`, with all that a page needs.

What was once asked for is kept there as it was asked, and weighed again whenever the study is decided again, so that
the file never says what its study does not. Its fields are told in docs/decide.md.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tunetrial.analysis import board, draws, weighing, yearly
from tunetrial.analysis.compare import review
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError, IntegrityError
from tunetrial.core.evidence import Evidence, Measurement
from tunetrial.core.owning import Ownership
from tunetrial.core.scenario import Scenario
from tunetrial.core.weighed import Weighed
from tunetrial.store import StudyFolder

FILE = "scenarios.json"
VARYING = ("quality", "forgetting_nats", "agreement", "run_length")
FORMULAS = {
    "share": "share_j = weight_j / sum of weights",
    "value": "v = clip((x - worst) / (best - worst), 0, 1); log: clip(ln(max(x, min(worst, best)) / worst) / "
    "ln(best / worst), 0, 1)",
    "score": "sum over j of share_j * v_j; the highest is first",
    "first": "share of draws in which an arm's score is the highest, ties shared; recommended from 0.8 on",
    "shaken": "survives if for every rival sum_j d_j > 0.25 * sum_j |d_j|, with d_j = share_j * (v_j of the first - "
    "v_j of the rival)",
    "cost_usd": "train_s / 3600 * usd_per_hour",
    "year_usd": "once + 12 * monthly",
    "once": "(tuning_s + finals_s + evaluation_s + (tenants - 1) * iteration_s) / 3600 * usd_per_hour + "
    "engineer_hours * usd_per_engineer_hour",
    "monthly": "storage + serving + tenants * retrainings_per_month * iteration_s / 3600 * usd_per_hour",
    "iteration_s": "cycle_s.train + cycle_s.export + cycle_s.test",
    "storage": "(base_bytes + tenants * artifact_bytes) / 1e9 * usd_per_gb_month; base_bytes is 0 where it is null",
    "serving": "machines * 730 * usd_per_hour",
    "machines": "max(1, ceil(requests_per_month / (rate * 730 * 3600)), ceil(tenants / floor((room_gib * 2**30 - "
    "resident_base_bytes) / resident_bytes))); rate is together_per_s, alone_per_s for one tenant; resident_base_bytes "
    "is 0 and the last term is left out where they are null; absent where not even one fits",
    "absent": "a term whose figure, volume or price is null is in no arm's total; see left_out of the bills",
}


def asked(store: StudyFolder, further: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """The scenarios that were asked for before, as they were, and further ones, in place of those of the same name.

    Raises:
        IntegrityError: The file is not what was written.
    """
    with _refusing(store):
        before = [Scenario.model_validate(one) for one in (kept(store) or {"asked": []})["asked"]]
    return tuple({one.name: one for one in (*before, *further)}.values())


def kept(store: StudyFolder) -> dict[str, Any] | None:
    """All that a page needs to weigh again; None where nothing was asked for.

    Raises:
        IntegrityError: The file is not JSON.
    """
    path = store.path / FILE
    with _refusing(store):
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@contextmanager
def _refusing(store: StudyFolder) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:  # of pydantic's faults too
        said = f"not scenarios of this version, got {str(error).splitlines()[0]}; remove it and decide again"
        raise IntegrityError(f"{store.path / FILE}: {said}") from None


def weigh(
    store: StudyFolder,
    evidence: Evidence,
    owned: Ownership,
    scenarios: Sequence[Scenario],
    preferred: Mapping[str, Measurement],
) -> tuple[Weighed, ...]:
    """Weigh each of these on the study's primary task, what people prefer too, and keep what was asked and found."""
    asked = {name for one in scenarios for name in one.criteria}
    laid = board.lay_out(evidence, *review(evidence), preferred, asked | {"preference"})
    weighed = tuple(weighing.weigh(laid, one, owned=owned) for one in scenarios)
    sheet = _sheet(laid, owned, weighed)
    store.write_report(FILE, json.dumps(sheet, indent=1, allow_nan=False) + "\n")
    return weighed


def _sheet(laid: board.Board, owned: Ownership, weighed: Sequence[Weighed]) -> dict[str, Any]:
    """All that a page needs to weigh again by itself."""
    evidence, study = laid.evidence, laid.evidence.lock.study
    return {
        "schema_version": 1,
        "study": evidence.lock.digest,
        "synthetic": evidence.lock.engine == "sim" or any(r.synthetic for r in evidence.records),
        "task": laid.primary,
        "metric": laid.metric.name,
        "higher_is_better": laid.metric.higher_is_better,
        "reference": laid.reference,
        "limits": study.limits,
        "asked": [one.asked.model_dump(mode="json") for one in weighed],
        "arms": {
            arm.name: {
                "method": arm.method,
                "state": laid.state(arm.name),
                "verdict": laid.verdicts[arm.name].words if arm.name in laid.verdicts else None,
                "untrained": arm.untrained,
                "weighed": _weighed_when(laid, arm.name),
                "measured": {name: m.model_dump(mode="json") for name, m in laid.costs.get(arm.name, {}).items()},
            }
            for arm in study.arms
        },
        "draws": _draws(laid, owned),
        "taken": [one.model_dump(mode="json") for one in owned.taken],
        "formulas": FORMULAS,
        "weighed": [one.model_dump(mode="json") for one in weighed],
    }


def _weighed_when(laid: board.Board, arm: str) -> str | None:
    """By which scenarios an arm may be weighed, where no limit of theirs rules it out; None for an arm that is out."""
    if arm not in laid.candidates:
        return None
    if arm in laid.safe:
        return "always"
    return "with quality" if laid.verdicts[arm].effect is not None else None


def _draws(laid: board.Board, owned: Ownership) -> dict[str, Any] | None:
    """The joint draws of what varies, by criterion and arm; [b] of all belong together. Base64 of little-endian
    floats of 32 bits: amounts, and of `run_length` shares of its mean, by which a year's cost of training varies.
    None where finals are not complete."""
    names = [arm for arm in laid.candidates if _weighed_when(laid, arm)]
    lengths = yearly.lengths(owned)
    try:
        found = draws.jointly(laid, names, VARYING, per_seed={"run_length": lengths}) if names else None
    except EvidenceError:
        found = None
    if found is None:
        return None
    drawn = {}
    for name in (n for n in VARYING if n in found.by_seeds or n in found.by_rows):
        measured = {arm: 1.0 for arm in lengths} if name == "run_length" else _measured(laid, name)
        amount_BA = found.amounts(name, np.array([measured.get(arm, np.nan) for arm in names]))
        drawn[name] = {arm: _packed(amount_BA[:, k]) for k, arm in enumerate(names) if arm in measured}
    return drawn


def _measured(laid: board.Board, name: str) -> dict[str, float]:
    return {arm: own[name].value for arm, own in laid.costs.items() if name in own}


def _packed(amount_B: Floats) -> str:
    return base64.b64encode(amount_B.astype("<f4").tobytes()).decode()
