"""B11: what stopping runs of the search at a rung saves, and what it costs: searches and verdicts on planted curves.

    python benchmarks/b11_adaptive.py                   # 1,000 studies of every kind; writes results/b11/searches.json
    python benchmarks/b11_adaptive.py --studies 100 --kind "equal arms"

Every study is two arms with planted curves over the learning rate. Four searches see the same runs: `plan.tuning` as
it is (exhaustive), the same at rungs, a grid of 9 rates by 2 seeds whose best mean wins, and successive halving over
the same 18 runs (rungs at 1/9, 1/3 and the end, the best third goes on: ASHA with one worker). Finals are drawn at each
one's rates with the same luck, example by example, and judged by `analysis.verdict` at looks of 5 and 10 seeds.

The truth is that of the arms at their best rates: what a search loses counts as error. Curves here are planted, so
the counts say what the procedure does where these hold, and nothing of how far the best rate of real runs moves as
training goes on.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from tunetrial import methods
from tunetrial.analysis import stats, verdict
from tunetrial.core.evidence import Evidence, Measurement, TrialRecord
from tunetrial.core.study import Arm, DataPin, Lock, Rule, Study, TaskSpec, Trial, Tuning
from tunetrial.plan.tuning import grid, search

LOG = Path(__file__).resolve().parent / "results" / "b11" / "searches.json"
PARAMETERS, ROWS, LOOKS, MARGIN, ALPHA = 12_000_000, 1000, (5, 10), 0.02, 0.05
VALIDATION_SD, SAME_LUCK = 0.02, 0.5
SHARES = {"item": 0.6, "interaction": 0.1, "rest": 0.3}
HALF_DECADE = 10**0.5
ARMS = ("full", "lora")
SEARCHES = ("exhaustive", "rungs", "grid", "asha")


@dataclass(frozen=True)
class Curve:
    """What is true of an arm: accuracy at its best rate and its loss by squared decade away from there.

    At a share of its steps a run has its best rate `early_shift` decades times the missing share higher. `cliff` is how
    many decades above the best rate all runs collapse, `collapse` and `failure` the shares that do so or diverge at
    any rate; none of it shows in the first half of the steps.
    """

    quality: float = 0.8
    curvature: float = 0.04
    seed_sd: float = 0.01
    early_shift: float = 0.0
    cliff: float = math.inf
    collapse: float = 0.0
    failure: float = 0.0

    @property
    def mean(self) -> float:
        """Expected accuracy of a run at the best rate; one that collapses or diverges counts as the constant."""
        lost = self.collapse + (1 - self.collapse) * self.failure
        return (1 - lost) * self.quality + lost * 0.5

    def regret(self, away: float) -> float:
        """What a rate so many decades from the best one loses."""
        return self.quality - 0.5 if away > self.cliff else self.curvature * away**2


def both(**settings: float) -> dict[str, Curve]:
    return dict.fromkeys(ARMS, Curve(**settings))


KINDS: dict[str, dict[str, Curve]] = {
    "equal arms": both(),
    "equal, steep": both(curvature=0.12),
    "equal, flat": both(curvature=0.01),
    "equal, best rate falls by 0.3 decades": both(early_shift=0.3),
    "equal, best rate rises by 0.3 decades": both(early_shift=-0.3),
    "equal, LoRA's falls by 0.5": {"full": Curve(), "lora": Curve(early_shift=0.5)},
    "equal, steep, LoRA's falls by 0.5": {
        "full": Curve(curvature=0.12),
        "lora": Curve(curvature=0.12, early_shift=0.5),
    },
    "equal, late cliffs": {"full": Curve(cliff=0.4), "lora": Curve(cliff=0.6)},
    "equal, unequal spreads": {"full": Curve(seed_sd=0.04), "lora": Curve(seed_sd=0.004)},
    "equal, 15 % collapse late": both(collapse=0.15),
    "equal, 10 % diverge late": both(failure=0.1),
    "worse by the margin": {"full": Curve(quality=0.82), "lora": Curve()},
    "better by the margin": {"full": Curve(), "lora": Curve(quality=0.82)},
    "worse by 0.05": {"full": Curve(quality=0.85), "lora": Curve()},
    "better by 0.05": {"full": Curve(), "lora": Curve(quality=0.85)},
}


@dataclass
class World:
    """One study's luck. A run is an arm, a rate and a seed; its luck at the end is correlated with that at a rung."""

    curves: dict[str, Curve]
    number: int
    best: dict[str, float] = field(default_factory=dict)
    spent: dict[tuple, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([20_261_122, self.number])
        for arm in ARMS:
            centre = methods.find(Arm(name=arm, method=arm)).learning_rate_centre(PARAMETERS)
            self.best[arm] = centre * 10 ** rng.uniform(-0.5, 0.5)

    def luck(self, *run: object) -> np.random.Generator:
        parts = [crc32(part.encode()) if isinstance(part, str) else part for part in run]
        return np.random.default_rng([20_261_123, self.number, *parts])

    def score(self, arm: str, rate: float, seed: int, share: float = 1.0) -> float | None:
        """The validation score of a run at a share of its steps; None of one that has diverged."""
        curve, away = self.curves[arm], math.log10(rate / self.best[arm])
        rng = self.luck(ARMS.index(arm), round(1e9 * rate), seed)
        collapses, fails = rng.random() < curve.collapse, rng.random() < curve.failure
        shared, ends, early = rng.standard_normal(3)
        run = (arm, rate, seed)
        self.spent[run] = max(self.spent.get(run, 0.0), min(share, 0.5) if fails else share)
        if fails and share > 0.5:
            return None
        luck = SAME_LUCK**0.5 * shared + (1 - SAME_LUCK) ** 0.5 * (ends if share == 1 else early + share - 1)
        luck *= math.hypot(curve.seed_sd, VALIDATION_SD)
        if share > 0.5 and (collapses or away > curve.cliff):
            return 0.5 + luck
        lost = curve.curvature * (away - curve.early_shift * (1 - share)) ** 2
        return curve.quality - 0.1 * (1 - share) - lost + luck

    def finals(self, arm: str, rate: float, seeds: range) -> np.ndarray:
        """Which test rows a final gets right, shape (R, E), as numbers; the constant's where it collapsed or failed."""
        curve, away = self.curves[arm], math.log10(rate / self.best[arm])
        number = ARMS.index(arm)
        item_E = self.luck("item").standard_normal(ROWS) * SHARES["item"] ** 0.5
        item_E = item_E + self.luck("arm", number).standard_normal(ROWS) * SHARES["interaction"] ** 0.5
        right = []
        for seed in seeds:
            rng = self.luck("final", number, seed)
            lost = rng.random() < curve.collapse or rng.random() < curve.failure or away > curve.cliff
            level = curve.quality - curve.regret(away) + curve.seed_sd * rng.standard_normal()
            error_E = item_E + rng.standard_normal(ROWS) * SHARES["rest"] ** 0.5
            right.append(np.arange(ROWS) % 2 if lost else error_E < ndtri(min(max(level, 1e-6), 1 - 1e-6)))
        return np.array(right, dtype=float)


def lock(*, exhaustive: bool) -> Lock:
    """The lock of a study of two arms by every default."""
    task = TaskSpec(name="t", kind="classify", metric="accuracy", margin=MARGIN, input="{{ x }}", target="y")
    asked = Study(
        question="Is the rate found?",
        base_model="embedded",
        tasks=(task,),
        arms=tuple(Arm(name=arm, method=arm) for arm in ARMS),
        reference="full",
        rule=Rule(primary="t"),
        tuning=Tuning(exhaustive=exhaustive),
    )
    pin = DataPin(digests={"train": "t", "validation": "v", "test": "x"}, counts={"train": 64})
    return Lock(study=asked, base_fingerprint="none", parameters=PARAMETERS, precision="fp32", data={"t": pin})


@dataclass(frozen=True)
class Found:
    """What a search of one arm came to: the rate, what it is expected to lose, whole runs' worth of steps it took."""

    rate: float | None
    expected_regret: float
    runs: float


def planned(world: World, arm: str, locked: Lock) -> Found:
    """The search that studies make, at rungs or not."""
    world.spent.clear()
    records: list[TrialRecord] = []
    while True:
        found = search(Evidence(locked, tuple(records), {}, {}), arm, "t")
        if not found.pending:
            break
        records += [_record(world, trial) for trial in found.pending]
    rate = found.rate
    lost = 0.0 if rate is None else rate.expected_regret or 0.0
    return Found(rate and rate.value, lost, sum(world.spent.values()))


def _record(world: World, trial: Trial) -> TrialRecord:
    score = world.score(trial.arm.name, trial.learning_rate, trial.seed, trial.share or 1.0)
    if score is None:
        return TrialRecord(trial=trial, status="diverged", reason="planted")
    measured = {"validation.accuracy": Measurement(value=score, unit="share")}
    return TrialRecord(trial=trial, status="ok", measurements=measured)


def nine_rates(arm: str) -> list[float]:
    """The middle of the study's own grid, four half-decades up and down."""
    middle = grid(lock(exhaustive=True), arm)[2]
    return [middle * HALF_DECADE**place for place in range(-4, 5)]


def of_grid(world: World, arm: str) -> Found:
    """Nine rates, two seeds each, the best mean; a failed run counts as the worst score."""
    world.spent.clear()
    scores = {rate: [world.score(arm, rate, seed) for seed in (901, 902)] for rate in nine_rates(arm)}
    worst = min((s for one in scores.values() for s in one if s is not None), default=0.0)
    best = max(scores, key=lambda rate: sum(worst if s is None else s for s in scores[rate]))
    return Found(best, 0.0, sum(world.spent.values()))


def of_asha(world: World, arm: str) -> Found:
    """Successive halving of the grid's runs: the best third of each rung goes on."""
    world.spent.clear()
    left = [(rate, seed) for rate in nine_rates(arm) for seed in (901, 902)]
    for share in (1 / 9, 1 / 3, 1.0):
        scores = {run: world.score(arm, *run, share) for run in left}
        left = sorted(left, key=lambda run: -math.inf if scores[run] is None else scores[run], reverse=True)
        left = left[: max(1, len(left) // 3)]
    return Found(left[0][0], 0.0, sum(world.spent.values()))


@dataclass(frozen=True)
class Said:
    """What a study said, beside the truth."""

    words: str
    seeds: int
    false_direction: bool
    false_size: bool


def judged(world: World, found: dict[str, Found]) -> Said:
    """The verdict of LoRA against full at the rates found; finals go on to the last look where seeds bind it."""
    truth = round(world.curves["lora"].mean - world.curves["full"].mean, 9)
    if any(one.rate is None for one in found.values()):
        return Said("NOT COMPARABLE", 0, False, False)
    right = {arm: world.finals(arm, one.rate, range(1, LOOKS[-1] + 1)) for arm, one in found.items()}
    for look in LOOKS:
        diff_RE = right["lora"][:look] - right["full"][:look]
        if not diff_RE.any():
            return Said("CAN'T TELL YET", look, False, False)
        allowed = {"below": found["full"].expected_regret, "above": found["lora"].expected_regret}
        effect = stats.crossed(diff_RE).model_copy(update=allowed)
        [one] = verdict.judge([verdict.by_margin(effect, MARGIN)], alpha=ALPHA, looks=[LOOKS])
        if one.words not in verdict.OPEN or verdict.bound_by(stats.components(diff_RE)) != "seeds":
            break
    wrong_size = (one.size == "within" and abs(truth) >= MARGIN) or (one.size == "beyond" and abs(truth) <= MARGIN)
    return Said(
        words=one.words,
        seeds=look,
        false_direction=(one.direction == "better" and truth <= 0) or (one.direction == "worse" and truth >= 0),
        false_size=wrong_size or (one.words == "NOT WORSE" and truth <= -MARGIN),
    )


def count(kind: str, studies: int) -> dict[str, dict]:
    """Carry out studies of one kind; by search: compute, distance of the rate, ranking, verdicts."""
    curves, locks = KINDS[kind], {name: lock(exhaustive=name == "exhaustive") for name in SEARCHES[:2]}
    rows: dict[str, list[dict]] = {name: [] for name in SEARCHES}
    for number in range(studies):
        world = World(curves, number)
        for name in SEARCHES:
            found = {}
            for arm in ARMS:
                other = {"grid": of_grid, "asha": of_asha}.get(name)
                found[arm] = other(world, arm) if other else planned(world, arm, locks[name])
            rows[name].append(_row(world, found))
    return {name: _summary(one, curves) for name, one in rows.items()}


def _row(world: World, found: dict[str, Found]) -> dict:
    away = {arm: math.inf if f.rate is None else math.log10(f.rate / world.best[arm]) for arm, f in found.items()}
    at = {
        arm: world.curves[arm].quality - (1.0 if found[arm].rate is None else world.curves[arm].regret(away[arm]))
        for arm in ARMS
    }
    said = judged(world, found)
    return {
        "runs": sum(f.runs for f in found.values()),
        "near": [abs(a) <= 0.5 + 1e-9 for a in away.values()],
        "regret": [world.curves[arm].quality - at[arm] for arm in ARMS],
        "expected": [f.expected_regret for f in found.values()],
        "gap": at["lora"] - at["full"],
        "said": said,
    }


def _summary(rows: list[dict], curves: dict[str, Curve]) -> dict:
    truth, said = curves["lora"].quality - curves["full"].quality, [row["said"] for row in rows]
    return {
        "runs_an_arm": round(float(np.mean([row["runs"] for row in rows])) / 2, 2),
        "near": round(float(np.mean([near for row in rows for near in row["near"]])), 4),
        "regret": round(float(np.mean([r for row in rows for r in row["regret"]])), 5),
        "expected_regret": round(float(np.mean([r for row in rows for r in row["expected"]])), 5),
        "ranking": None if not truth else round(float(np.mean([row["gap"] * truth > 0 for row in rows])), 4),
        "false_direction": sum(one.false_direction for one in said),
        "false_size": sum(one.false_size for one in said),
        "settled": round(float(np.mean([one.words not in verdict.OPEN and one.seeds > 0 for one in said])), 3),
        "seeds": round(float(np.mean([one.seeds for one in said])), 2),
        "studies": len(rows),
    }


def show(log: dict[str, dict]) -> None:
    """Print the table, compute as a share of the grid's 18 runs."""
    print(f"{'kind':40s} {'search':11s} compute  near  regret (expected) ranking  false dir / size  settled seeds")
    for kind, found in log.items():
        for name, one in found.items():
            ranking = "" if one["ranking"] is None else f"{one['ranking']:.3f}"
            title = kind if name == "exhaustive" else ""
            print(
                f"{title:40s} {name:11s} {one['runs_an_arm'] / 18:6.0%}  {one['near']:.3f} "
                f"{one['regret']:.4f} ({one['expected_regret']:.4f}) {ranking:7s} {one['false_direction']:5d} / "
                f"{one['false_size']:<5d} {one['settled']:8.3f} {one['seeds']:5.2f}"
            )
    studies = max(one["studies"] for found in log.values() for one in found.values())
    print(
        f"bound on false verdicts at 5 %: {binom.ppf(0.95, studies, 0.05):.0f} of {studies} (95 %), "
        f"{binom.ppf(0.995, studies, 0.05):.0f} (99.5 %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--log", type=Path, default=LOG)
    arguments = parser.parse_args()
    log = json.loads(arguments.log.read_text()) if arguments.log.exists() else {}
    for kind in arguments.kind:
        started_s = time.process_time()
        log[kind] = count(kind, arguments.studies)
        show({kind: log[kind]})
        print(f"{(time.process_time() - started_s) / arguments.studies:.2f} CPU s a study", flush=True)
        arguments.log.write_text(json.dumps({k: log[k] for k in KINDS if k in log}, indent=1) + "\n")


if __name__ == "__main__":
    main()
