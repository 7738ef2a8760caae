"""What an escalation saves, and what it costs, against the study that runs every arm: planted truth, whole studies.

    python benchmarks/escalation.py            # 1,000 studies over all kinds; writes results/escalation/studies.json
    python benchmarks/escalation.py --studies 20 --kind "full gains"

Every case is one world: LoRA at ranks 16, 32 and 64 and full fine-tuning (twice as long a step), best rates drawn up to
half a decade from where a search begins. Both studies see the same runs: the exhaustive one runs all arms, the other
escalates. There is one look at 5 seeds. Prices are those of the probes, and a kind says what a margin is worth.

Regret is what the recommended arm (the safe one where a study abstains) and the runs came to, exhaustive less
escalated, in dollars: what the gain in true quality is worth, less the price of all runs. Below 0 the escalation was
worth more. A stop is wrong if the step passed over was truly worth more than its price over the arm before it; it is
sure if the whole interval said so, and those are what the interval's level bounds: 2.5 % a step.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import binom

from tunetrial import methods
from tunetrial.analysis import decide
from tunetrial.analysis.escalation import SCOUTS, escalated
from tunetrial.core.evidence import Decision, Evidence, Scores, TaskData, TrialRecord
from tunetrial.core.prices import Hardware
from tunetrial.core.strategy import Escalation
from tunetrial.core.study import Arm, Lock, Rule, Study, TaskSpec, Trial
from tunetrial.engine.sim import Costs, SimEngine, SimSession, Truth, World
from tunetrial.plan import next_wave
from tunetrial.trial.simulated import PARAMETERS, lock, run_trial, task_data

LOG = Path(__file__).resolve().parent / "results" / "escalation" / "studies.json"
MARGIN, RUN_USD, STEP_S = 0.02, 1.0, 0.05
ROWS = {"train": 16, "validation": 300, "test": 300}
ARMS = (
    *(Arm(name=f"r{r}", method="lora", settings={"rank": r, "alpha": 2.0 * r}) for r in (16, 32, 64)),
    Arm(name="full", method="full"),
)
STEPS_OF_A_RUN = 3
SLOWER = {"full": 2.0}


@dataclass(frozen=True)
class Kind:
    """A kind of case: what each arm gains over the first, by name, and what a gain of one margin is worth, in runs."""

    gains: dict[str, float] = field(default_factory=dict)
    margin_runs: float = 30.0


KINDS = {
    "equal arms, margin of little worth": Kind(margin_runs=5),
    "equal arms": Kind(),
    "equal arms, margin of much worth": Kind(margin_runs=300),
    "rank gains": Kind(gains={"r32": 0.03, "r64": 0.045, "full": 0.045}),
    "rank gains, margin of little worth": Kind(gains={"r32": 0.03, "r64": 0.045, "full": 0.045}, margin_runs=5),
    "full gains a margin": Kind(gains={"full": 0.02}),
    "full gains two margins": Kind(gains={"full": 0.04}),
    "full gains much": Kind(gains={"full": 0.08}),
    "full gains much, margin of little worth": Kind(gains={"full": 0.08}, margin_runs=5),
    "later steps lose": Kind(gains={"r32": -0.02, "r64": -0.03, "full": -0.02}),
}


def world(kind: Kind, number: int) -> World:
    rng, arms = np.random.default_rng([20_261_124, number]), {}
    for arm in ARMS:
        centre = methods.find(arm).learning_rate_centre(PARAMETERS)
        if arm.method == "full" or arm is ARMS[0]:  # ranks share their best rate
            away = 10 ** rng.uniform(-0.5, 0.5)
        costs = Costs(step_s=STEP_S * SLOWER.get(arm.name, 1.0))
        quality = 0.8 + kind.gains.get(arm.name, 0.0)
        arms[arm.name] = Truth(quality=quality, best_rate=centre * away, costs=costs)
    return World(seed=number, arms=arms)


def locks(kind: Kind, data: TaskData) -> tuple[Lock, Lock]:
    """The exhaustive study and the one that escalates; a run of LoRA's costs a dollar."""
    task = TaskSpec(name="t", kind="classify", metric="accuracy", margin=MARGIN, input="{{ x }}", target="y")
    asked = Study(
        question="How far is it worth going?",
        base_model="embedded",
        tasks=(task,),
        arms=ARMS,
        reference=ARMS[0].name,
        looks=(5,),
        rule=Rule(primary="t"),
        hardware=Hardware(usd_per_hour=RUN_USD * 3600 / (STEP_S * STEPS_OF_A_RUN)),
    )
    strategy = Escalation(steps=tuple(arm.name for arm in ARMS), margin_usd=kind.margin_runs * RUN_USD)
    return lock(asked, data), lock(asked.model_copy(update={"strategy": strategy}), data)


@dataclass
class Runs:
    """Runs of one world, each made once whichever study asks for it."""

    session: SimSession
    data: TaskData
    made: dict[str, tuple[TrialRecord, dict[str, Scores]]] = field(default_factory=dict)

    def of(self, trial: Trial) -> tuple[TrialRecord, dict[str, Scores]]:
        if trial.id not in self.made:
            self.made[trial.id] = run_trial(trial, self.data, self.session)
        return self.made[trial.id]

    def study(self, locked: Lock) -> Evidence:
        records: list[TrialRecord] = []
        scores: dict = {}
        while wave := next_wave(found := Evidence(locked, tuple(records), dict(scores), {})):
            for trial in wave.trials:
                record, own = self.of(trial)
                records.append(record)
                scores |= {(trial.id, split): one for split, one in own.items()}
        return found


def spent(evidence: Evidence) -> float:
    """Dollars of all runs, at what their arm truly takes."""
    runs = (r for r in evidence.records if r.trial.purpose != "probe")
    return RUN_USD * sum(SLOWER.get(r.trial.arm.name, 1.0) for r in runs)


def gained(decision: Decision, kind: Kind) -> float:
    chosen = decision.recommendation or decision.abstention.safe_choice
    return kind.gains.get(chosen, 0.0)


def case(kind: Kind, number: int, data: TaskData, both: tuple[Lock, Lock]) -> dict:
    """One world, carried out both ways."""
    runs = Runs(SimEngine(world(kind, number)).open(Path(), "fp32"), data)
    all_of_it, escalating = (runs.study(locked) for locked in both)
    said, worth = [decide(one) for one in (all_of_it, escalating)], kind.margin_runs * RUN_USD / MARGIN
    usd, quality = [spent(one) for one in (all_of_it, escalating)], [gained(one, kind) for one in said]
    steps = escalated(escalating).steps
    effects = [{c.candidate: kind.gains.get(c.candidate, 0.0) for c in one.verdicts} for one in said]
    return {
        "saved": 1 - usd[1] / usd[0],
        "lost": quality[0] - quality[1],
        "regret_usd": (quality[0] * worth - usd[0]) - (quality[1] * worth - usd[1]),
        "last": [step.arm for step in steps if step.state == "run"][-1],
        "stops": [_stop(step, kind, worth) for step in steps if step.state == "passed over" and step.prospect],
        "false_directions": [
            any(
                (c.direction == "better" and e[c.candidate] <= 0) or (c.direction == "worse" and e[c.candidate] >= 0)
                for c in one.verdicts
            )
            for one, e in zip(said, effects, strict=True)
        ],
    }


def _stop(step, kind: Kind, worth: float) -> dict:
    truth = kind.gains.get(step.arm, 0.0) - kind.gains.get(step.over, 0.0)
    missed = truth * worth - step.prospect.usd
    sure = step.prospect.high * worth <= step.prospect.usd
    return {"wrong": missed > 0, "sure": sure, "missed_usd": max(missed, 0.0)}


def count(kind: Kind, numbers: range) -> dict:
    data = task_data("classify", ROWS)
    both = locks(kind, data)
    rows = [case(kind, number, data, both) for number in numbers]
    stops = [stop for row in rows for stop in row["stops"]]
    sure = [stop for stop in stops if stop["sure"]]
    mean = lambda name: round(float(np.mean([row[name] for row in rows])), 4)  # noqa: E731
    return {
        "studies": len(rows),
        "margin_runs": kind.margin_runs,
        "saved": mean("saved"),
        "lost_quality": mean("lost"),
        "regret_usd": round(mean("regret_usd"), 2),
        "regret_usd_95th": round(float(np.quantile([row["regret_usd"] for row in rows], 0.95)), 2),
        "last": {arm.name: sum(row["last"] == arm.name for row in rows) for arm in ARMS},
        "stops": len(stops),
        "wrong_stops": sum(stop["wrong"] for stop in stops),
        "missed_usd_a_wrong_stop": round(
            float(np.mean([stop["missed_usd"] for stop in stops if stop["wrong"]] or [0.0])), 2
        ),
        "sure_stops": len(sure),
        "wrong_sure_stops": sum(stop["wrong"] for stop in sure),
        "false_direction_exhaustive": sum(row["false_directions"][0] for row in rows),
        "false_direction": sum(row["false_directions"][1] for row in rows),
    }


def show(log: dict[str, dict]) -> None:
    print("| kind | a margin is worth, runs | studies | compute saved | quality lost | regret, USD (95th) |")
    print("|---|---|---|---|---|---|")
    for name, one in log.items():
        print(
            f"| {name} | {one['margin_runs']:g} | {one['studies']} | {one['saved']:.0%} | {one['lost_quality']:+.4f} | "
            f"{one['regret_usd']:+.1f} ({one['regret_usd_95th']:+.1f}) |"
        )
    total = {
        key: sum(one[key] for one in log.values())
        for key in ("studies", "stops", "wrong_stops", "sure_stops", "wrong_sure_stops", "false_direction")
    }
    total |= {"false_direction_exhaustive": sum(one["false_direction_exhaustive"] for one in log.values())}
    bound = int(binom.ppf(0.95, total["sure_stops"], 0.025))
    print(f"{SCOUTS} seeds first; {total}; wrong sure stops at 2.5 %: at most {bound} in 95 of 100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="of each kind")
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--show", action="store_true", help="the table of what is on record, no studies")
    arguments = parser.parse_args()
    log = json.loads(arguments.log.read_text()) if arguments.log.exists() else {}
    for name in () if arguments.show else arguments.kind:
        started_s = time.process_time()
        log[name] = count(KINDS[name], range(arguments.studies))
        print(name, log[name], f"{(time.process_time() - started_s) / arguments.studies:.2f} CPU s each", flush=True)
        arguments.log.write_text(json.dumps({k: log[k] for k in KINDS if k in log}, indent=1) + "\n")
    show(log)


if __name__ == "__main__":
    main()
