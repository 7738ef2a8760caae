"""The facts: for each which runs it needs, what is expected, and what they show.

Every method has its own rate: the best of a grid in half decades by three seeds, by the parabola that studies use. What
methods are compared by are runs of five further seeds at that rate.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from benchmarks.acceptance.runs import Outcome, Recipe, Runs

from tunetrial.analysis.frontier import Points, common_reach, equal_learning
from tunetrial.analysis.rates import HALF_DECADE, Point, Rate, choose
from tunetrial.analysis.stats import Estimate, paired
from tunetrial.core.records import Record
from tunetrial.engine import adapters, attention
from tunetrial.engine.attention import lay_out
from tunetrial.engine.merge import merge
from tunetrial.engine.updates import updates
from tunetrial.trial.selfcheck import selfcheck

State = Literal["pass", "fail", "can't tell"]
TUNING, FINALS, LEVEL = (1, 2, 3), (11, 12, 13, 14, 15), 0.95
FULL_RATES, LORA_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LOW_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)

FULL = partial(Recipe, arm="full", method="full")
ATTENTION, MLP = ("k_proj", "o_proj", "q_proj", "v_proj"), ("down_proj", "gate_proj", "up_proj")


class Row(Record):
    """A fact: what is expected, by which source, and what we found."""

    number: int
    fact: str
    expected: str
    ours: str
    state: State


def lora(rank: int = 16, **settings: object) -> partial:
    """Recipes of LoRA at alpha = 2 rank, on all linear layers unless targets are given."""
    named = "".join(f" {name}" for name, value in settings.items() if value is True)
    where = " attention" if settings.get("targets") == ATTENTION else " MLP" if settings.get("targets") == MLP else ""
    own = {"rank": rank, "alpha": 2.0 * rank, **settings}
    return partial(Recipe, arm=f"lora r{rank}{named}{where}", method="lora", settings=own)


def tune(runs: Runs, arm: partial, **how: int) -> Rate:
    """The arm's best rate, from three seeds at each rate of its grid."""
    return choose(_curve(runs, arm, **how))


def _curve(runs: Runs, arm: partial, **how: int) -> tuple[Point, ...]:
    rates = FULL_RATES if arm is FULL else LORA_RATES
    found = runs.of([arm(rate=rate, seed=seed, **how) for rate in rates for seed in TUNING])
    worst = min(-one.nll for one in found if one.nll is not None)
    points = []
    for rate in rates:
        here = [one for one in found if one.recipe.rate == rate]
        scores = {one.recipe.seed: -one.nll for one in here if one.nll is not None}
        failed = tuple(one.recipe.seed for one in here if one.nll is None)
        mean = float(np.mean([*scores.values(), *[worst] * len(failed)])) if scores else None
        points.append(Point(learning_rate=rate, scores=scores, failed=failed, mean=mean))
    return tuple(points)


def finals(runs: Runs, arm: partial, rate: float, **how: object) -> list[Outcome]:
    return runs.of([arm(rate=rate, seed=seed, **how) for seed in FINALS])


def apart(one: Sequence[Outcome], other: Sequence[Outcome], measure: str) -> Estimate:
    """The difference over seeds, one minus other."""
    values = [[getattr(outcome, measure) for outcome in side] for side in (one, other)]
    return paired(np.subtract(*np.array(values, dtype=np.float64)))


def said(estimate: Estimate, unit: str, digits: int = 3) -> str:
    low, high = estimate.interval(LEVEL)
    return f"{estimate.effect:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}) {unit}"


def within(estimate: Estimate, low: float, high: float) -> State:
    """Whether the interval lies in a range, beside it, or has both."""
    ends = estimate.interval(LEVEL)
    if low <= ends[0] and ends[1] <= high:
        return "pass"
    return "fail" if ends[1] < low or ends[0] > high else "can't tell"


def merged_is_unmerged(runs: Runs) -> Row:
    pack, _ = runs.start([lora()(rate=3e-3, seed=1)])
    list(pack.steps(None))
    with tempfile.TemporaryDirectory() as folder:
        pack.save(0, Path(folder) / "adapter")
        found = merge(Path(folder) / "adapter", Path(folder) / "merged", base_model="embedded")
    return Row(
        number=1,
        fact="a merged adapter computes what base plus adapter does",
        expected="fp32 logits within 1e-4 (PEFT's own CI)",
        ours=f"largest difference {found.merge_difference:.1e} of the largest logit",
        state="pass" if found.merge_difference <= 1e-4 else "fail",
    )


def nothing_at_first(runs: Runs) -> Row:
    pack, data = runs.start([lora()(rate=3e-3, seed=1)])
    before = pack.observe(0, data, "forgetting")
    moved = float(np.abs(before["tuned_nats"] - before["base_nats"]).max())
    list(pack.steps(None))
    most = max(int((one.update_K > 1e-6 * one.update_K[0]).sum()) for one in updates(pack))
    return Row(
        number=2,
        fact="LoRA before its first step is the base, and its update has no more than its rank",
        expected="difference exactly 0; rank at most 16",
        ours=f"difference {moved:g} nats; largest rank {most}",
        state="pass" if moved == 0 and most <= 16 else "fail",
    )


def ratio_of_rates(runs: Runs) -> Row:
    full, low = tune(runs, FULL), tune(runs, lora())
    ratio = low.value / full.value
    edges = " (at an edge of its grid)" if full.at_edge or low.at_edge else ""
    return Row(
        number=3,
        fact="LoRA's best rate is about ten times that of full fine-tuning",
        expected="3 to 20",
        ours=f"{low.value:.2g} / {full.value:.2g} = {ratio:.1f}{edges}",
        state="pass" if 3 <= ratio <= 20 else "fail",
    )


def rank_independent(runs: Runs) -> Row:
    rates = {rank: tune(runs, lora(rank)).value for rank in (4, 16, 64)}
    widest = max(rates.values()) / min(rates.values())
    return Row(
        number=4,
        fact="at alpha = 2 rank the best rate hardly depends on the rank",
        expected="ranks 4 to 64 within one step of the grid (half a decade)",
        ours=", ".join(f"r{rank}: {rate:.2g}" for rank, rate in rates.items()),
        state="pass" if widest <= HALF_DECADE * 1.001 else "fail",
    )


def large_rank_is_full(runs: Runs) -> Row:
    full, low = finals(runs, FULL, tune(runs, FULL).value), finals(runs, lora(64), tune(runs, lora(64)).value)
    level = float(np.mean([one.nll for one in full]))
    estimate = apart(low, full, "nll")
    return Row(
        number=5,
        fact="LoRA of a large rank on all linear layers equals full fine-tuning on little data",
        expected="nats a token within 1 %",
        ours=f"{said(estimate, 'nats a token', 4)} at {level:.3f}",
        state=within(estimate, -0.01 * level, 0.01 * level),
    )


def not_attention_alone(runs: Runs) -> Row:
    # Width 256, MLP 768: rank 10 on the MLP has 30,720 weights a layer, and so has rank 15 on attention.
    wide, narrow = lora(10, targets=MLP), lora(15, targets=ATTENTION)
    estimate = apart(*(finals(runs, arm, tune(runs, arm).value) for arm in (narrow, wide)), "nll")
    low, high = estimate.interval(LEVEL)
    return Row(
        number=7,
        fact="LoRA on the MLP is not worse than on attention alone at as many weights",
        expected="attention alone loses 0 or more nats a token",
        ours=said(estimate, "nats a token, attention minus MLP", 4),
        state="pass" if low >= 0 else "fail" if high < 0 else "can't tell",
    )


def batch_hurts(runs: Runs) -> Row:
    gaps = {}
    for batch in (4, 64):
        sides = [finals(runs, arm, tune(runs, arm, batch=batch).value, batch=batch) for arm in (lora(), FULL)]
        gaps[batch] = np.subtract(*np.array([[one.nll for one in side] for side in sides]))
    estimate = paired(gaps[64] - gaps[4])
    low, high = estimate.interval(LEVEL)
    return Row(
        number=8,
        fact="large batches hurt LoRA more than full fine-tuning",
        expected="the gap of LoRA to full grows from batch 4 to 64",
        ours=said(estimate, "nats a token of gap", 4),
        state="pass" if low > 0 else "fail" if high < 0 else "can't tell",
    )


def forgets_less(runs: Runs) -> Row:
    full, low = (finals(runs, arm, tune(runs, arm).value) for arm in (FULL, lora()))
    estimate = apart(low, full, "forgotten")
    bounds = estimate.interval(LEVEL)
    level = [float(np.mean([one.forgotten for one in side])) for side in (full, low)]
    return Row(
        number=9,
        fact="LoRA forgets less, each at its own rate",
        expected="fewer nats a token of held-out text lost",
        ours=f"{said(estimate, 'nats a token')}: full lost {level[0]:.3f}, LoRA {level[1]:.3f}",
        state="pass" if bounds[1] < 0 else "fail" if bounds[0] > 0 else "can't tell",
    )


def not_always(runs: Runs) -> Row:
    estimate, learning, more = _at_equal_learning(runs)
    return Row(
        number=10,
        fact="but not at any rate: who forgets more depends on the rates that are compared",
        expected="some LoRA rate forgets more than some full rate that learnt no less",
        ours=f"{more}; at equal learning ({learning:.2f} nats a token) LoRA {said(estimate, 'nats a token')}",
        state="pass" if more.startswith("yes") else "fail",
    )


def _at_equal_learning(runs: Runs) -> tuple[Estimate, float, str]:
    found, points = {}, []
    for arm, rates in ((lora(), LORA_RATES), (FULL, FULL_RATES)):
        outcomes = runs.of([arm(rate=rate, seed=seed) for seed in TUNING for rate in rates])
        usable = [r for r in rates if all(o.nll is not None for o in outcomes if o.recipe.rate == r)]
        grid = [[o for o in outcomes if o.recipe.seed == seed and o.recipe.rate in usable] for seed in TUNING]
        nll_RP, lost_RP = (np.array([[getattr(o, m) for o in own] for own in grid]) for m in ("nll", "forgotten"))
        points.append(Points(-nll_RP, lost_RP))
        found[arm] = (usable, nll_RP.mean(0), lost_RP.mean(0))
    (low_rates, low_nll, low_lost), (full_rates, full_nll, full_lost) = found.values()
    pairs = [(i, j) for i in range(len(low_rates)) for j in range(len(full_rates))]
    worse = [(i, j) for i, j in pairs if low_lost[i] > full_lost[j] and low_nll[i] >= full_nll[j]]
    more = "no such pair of rates"
    if worse:
        i, j = max(worse, key=lambda pair: low_lost[pair[0]] - full_lost[pair[1]])
        more = f"yes: LoRA at {low_rates[i]:g} lost {low_lost[i]:.3f}, full at {full_rates[j]:g} {full_lost[j]:.3f}"
    learning = common_reach(points)
    return equal_learning(*points, learning=learning), -learning, more


def rslora_is_a_rate(runs: Runs) -> Row:
    plain, root = lora(64), lora(64, rslora=True)
    rate = tune(runs, plain).value
    sides = [finals(runs, arm, rate) for arm in (root, plain)]
    learnt, lost = apart(*sides, "nll"), apart(*sides, "forgotten")
    ends = lost.interval(LEVEL)
    return Row(
        number=11,
        fact="rsLoRA of rank 64 at LoRA's rate forgets more: its scale is a larger rate",
        expected="more nats a token lost on held-out text",
        ours=f"{said(lost, 'nats a token')}; on the task {said(learnt, 'nats a token')}",
        state="pass" if ends[0] > 0 else "fail" if ends[1] < 0 else "can't tell",
    )


def variants_tie(runs: Runs) -> Row:
    plain = finals(runs, lora(), tune(runs, lora()).value)
    level, states, parts = float(np.mean([one.nll for one in plain])), [], []
    for name, arm in (("rsLoRA", lora(rslora=True)), ("DoRA", lora(dora=True))):
        estimate = apart(finals(runs, arm, tune(runs, arm).value), plain, "nll")
        states.append(within(estimate, -0.02 * level, 0.02 * level))
        parts.append(f"{name} {said(estimate, 'nats a token', 4)}")
    worst = next((state for state in ("fail", "can't tell") if state in states), "pass")
    return Row(
        number=12,
        fact="variants of LoRA tie once each has its own rate",
        expected="within 2 % of nats a token",
        ours=f"{'; '.join(parts)} at {level:.3f}",
        state=worst,
    )


def intruders(runs: Runs) -> Row:
    arms = {"full": FULL, "LoRA r4": lora(4), "LoRA r64": lora(64)}
    found = {name: finals(runs, arm, tune(runs, arm).value, spectra=True) for name, arm in arms.items()}
    means = {name: float(np.mean([one.intruders for one in side])) for name, side in found.items()}
    estimate = apart(found["LoRA r4"], found["full"], "intruders")
    low, high = estimate.interval(LEVEL) if estimate.se else (estimate.effect, estimate.effect)
    return Row(
        number=14,
        fact="updates of a low rank bring intruder dimensions, full fine-tuning hardly any",
        expected="more a matrix in LoRA r4 than in full (k = 10, epsilon = 0.5)",
        ours=", ".join(f"{name} {mean:.2f}" for name, mean in means.items()) + " of 10 a matrix",
        state="pass" if low > 0 else "fail" if high < 0 else "can't tell",
    )


def pure_bf16(runs: Runs) -> Row:
    found = {
        pure: runs.of([FULL(rate=rate, seed=seed, pure_bf16=pure) for rate in LOW_RATES for seed in TUNING])
        for pure in (True, False)
    }
    lines, shown = [], False
    for number, rate in enumerate(LOW_RATES):
        at = slice(number * len(TUNING), (number + 1) * len(TUNING))
        estimate = apart(found[True][at], found[False][at], "nll")
        shown = shown or (rate <= 1e-5 and estimate.interval(LEVEL)[0] > 0)
        lines.append(f"{rate:g}: {said(estimate, '', 4).strip()}")
    return Row(
        number=15,
        fact="full fine-tuning in pure bf16 loses small updates that fp32 masters keep",
        expected="more nats a token at rates of 1e-5 and less",
        ours=f"{'; '.join(lines)} nats a token, pure minus masters",
        state="pass" if shown else "fail",
    )


def latency(runs: Runs) -> Row:
    pack, _ = runs.start([lora(8, targets=("q_proj", "v_proj"))(rate=3e-3, seed=1)])
    ratios = {}
    for rows, tokens in ((1, 32), (16, 256)):
        ids = torch.randint(5, 4000, (rows, tokens), generator=torch.Generator().manual_seed(0)).tolist()
        ratios[rows] = _unmerged(pack.session, lay_out(ids, pack.session.device, members=range(1)))
    return Row(
        number=16,
        fact="an unmerged adapter costs time at batch 1, less the larger the batch",
        expected="ratio above 1 at batch 1 and nearer to 1 at 16 rows of 256 tokens",
        ours=", ".join(f"{rows} rows: {ratio:.2f}" for rows, ratio in ratios.items()),
        state="pass" if ratios[1] > 1 and abs(ratios[16] - 1) < ratios[1] - 1 else "fail",
    )


@torch.no_grad()
def _unmerged(session: object, layout: object, *, laps: int = 30) -> float:
    """Median time with the adapter over that without, lap by lap in turn."""
    times: dict[bool, list[float]] = {True: [], False: []}

    def lap(adapted: bool) -> float:
        started_s = time.perf_counter()
        attention.states(session.model, layout)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started_s

    for _ in range(laps + 5):
        times[True].append(lap(True))
        with adapters.switched_off():
            times[False].append(lap(False))
    return math.exp(float(np.median(np.log(times[True][5:]) - np.log(times[False][5:]))))


def planted_truth(runs: Runs) -> Row:
    found = selfcheck()
    tested = [one for one in found.findings if one.holds is not None]
    broken = [one.what for one in tested if not one.holds]
    return Row(
        number=17,
        fact="verdicts on planted truth are false no more often than the level says",
        expected="every count within its binomial bound (tunetrial selfcheck)",
        ours=f"{found.studies} studies; {len(tested) - len(broken)} of {len(tested)} hold",
        state="fail" if broken else "pass",
    )


FACTS: dict[int, Callable[[Runs], Row]] = {
    1: merged_is_unmerged,
    2: nothing_at_first,
    3: ratio_of_rates,
    4: rank_independent,
    5: large_rank_is_full,
    7: not_attention_alone,
    8: batch_hurts,
    9: forgets_less,
    10: not_always,
    11: rslora_is_a_rate,
    12: variants_tie,
    14: intruders,
    15: pure_bf16,
    16: latency,
    17: planted_truth,
}
