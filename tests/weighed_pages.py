"""Reports with scenarios, on planted arms: what a page is given to weigh again, and the page."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planted import evidence, lock
from tunetrial import analysis, report
from tunetrial.analysis.board import Board, lay_out
from tunetrial.analysis.compare import review
from tunetrial.analysis.owning import own
from tunetrial.analysis.taken import take
from tunetrial.analysis.weighing import weigh
from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.owning import Figure, Ownership, Terms
from tunetrial.core.scenario import Criterion, Inputs, Opinion, Scenario
from tunetrial.store import StudyFolder
from tunetrial.trial import scenarios

__all__ = ["MANY", "RUNS", "SURE", "TENANTS", "report", "weigh", "weighable"]

ARMS = ("full", "lora", "mine")
COSTS = {"load_s": 1.0, "save_s": 0.1, "evaluate_examples_per_s": 100.0, "base_bytes": 50 * 2**20}
COSTS = {
    "full": {**COSTS, "step_s": 0.6, "peak_bytes": 4 * 2**30, "artifact_bytes": 48 * 2**20, "latency_s": 0.010},
    "lora": {**COSTS, "step_s": 0.3, "peak_bytes": 2 * 2**30, "artifact_bytes": 3 * 2**20, "latency_s": 0.012},
    "mine": {**COSTS, "step_s": 0.2, "peak_bytes": 1 * 2**30, "artifact_bytes": 1 * 2**20, "latency_s": 0.015},
}
INPUTS = Inputs(
    tenants=20,
    requests_per_month=4e6,
    retrainings_per_month=2,
    usd_per_hour=1.5,
    usd_per_gb_month=0.1,
    engineer_hours=10,
    usd_per_engineer_hour=90,
    room_gib=0.5,
)
MANY = Scenario(
    name="many",
    title="Many tenants",
    criteria={
        "quality": Criterion(weight=0.5, worst=0.5, best=1),
        "latency_ms": Criterion(weight=0.1, worst=100, best=1, log=True),
        "year_usd": Criterion(weight=0.3, worst=1e6, best=1e3, log=True),
    },
    opinions={"fit": Opinion(weight=0.1, scores={"full": 6, "lora": 7, "mine": 3})},
    limits={"year_usd": 60_000},
    inputs=INPUTS,
)
RUNS = Scenario(
    name="runs",
    title="Many runs",
    criteria={
        "quality": Criterion(weight=0.6, worst=0.5, best=1),
        "cost_usd": Criterion(weight=0.4, worst=0.1, best=0),
    },
    inputs=Inputs(usd_per_hour=1.0),
)
SURE = Scenario(name="sure", title="Quality alone", criteria={"quality": Criterion(weight=1, worst=0.5, best=1)})

TENANTS = Scenario(
    name="tenants",
    title="A tenant each",
    criteria={
        "quality": Criterion(weight=0.55, worst=0.5, best=1),
        "year_usd": Criterion(weight=0.45, worst=1e5, best=1e4),
    },
    inputs=INPUTS.model_copy(update={"tenants": 2, "requests_per_month": 1e6}),
)


@dataclass(frozen=True)
class Weighable:
    board: Board
    owned: Ownership
    evidence: Evidence
    decision: Decision
    sheet: dict[str, Any]

    def page(self) -> str:
        return report.html(self.evidence, self.decision, self.sheet)


def weighable(folder: Path, *asked: Scenario) -> Weighable:
    """Three arms, of which the second is a little worse and cheaper, weighed for these scenarios."""
    found = evidence(lock(ARMS), {"full": 0.86, "lora": 0.84, "mine": 0.8}, costs=COSTS, seed_sd=0.02)
    taken = [_served(one, k) for k, one in enumerate(take(found, whole={"full"}))]
    owned = own("mail", taken, Terms(variants=(1,)))
    store = StudyFolder(folder)
    weighed = scenarios.weigh(store, found, owned, asked or (MANY, RUNS, SURE, TENANTS), {})
    decision = analysis.decide(found).model_copy(update={"weighed": weighed})
    sheet = json.loads((folder / scenarios.FILE).read_text())
    return Weighable(lay_out(found, *review(found)), owned, found, decision, sheet)


def _served(one, k):
    """With what was timed of it as it is deployed, and the length of each final."""
    figures = {
        "resident_bytes": (200e6, 3e6, 1e6)[k],
        "alone_per_s": (40.0, 30.0, 20.0)[k],
        "together_per_s": (35.0, 25.0, 20.0)[k],
    }
    if one.shares_base:
        figures["resident_base_bytes"] = 150e6
    known = {name: Figure(value=x, unit="?", basis="measured", of="planted") for name, x in figures.items()}
    return one.model_copy(update={**known, "run_s": {s: 60 + 7 * ((s + k) % 4) for s in range(1, 6)}})
