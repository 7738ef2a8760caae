"""The learning-rate curve: what the rate chosen from it is expected to lose, against counts and simulation."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planted import change, evidence, lock
from tunetrial.analysis import rates
from tunetrial.core.evidence import Measurement

SEEDS = (1, 3, 3, 3, 1)


def curve(means, *, spread=0.0, seeds=SEEDS, step=0.5):
    """Points `step` decades apart around 1e-3; the scores of one rate lie `spread` below, at and above its mean."""
    found = []
    for place, (mean, n) in enumerate(zip(means, seeds, strict=True)):
        scores = {901: mean} if n == 1 else {901 + s: mean + spread * (s - 1) for s in range(3)}
        rate = 1e-3 * 10 ** (step * (place - len(means) // 2))
        found.append(rates.Point(learning_rate=rate, scores=scores, mean=statistics.fmean(scores.values())))
    return found


def parabola(bend, step=0.5):
    return [0.8 - bend * (step * (place - 2)) ** 2 for place in range(5)]


@pytest.mark.parametrize(("bend", "spread"), [(0.04, 0.02), (0.12, 0.02), (0.3, 0.01)])
def test_the_loss_expected_is_that_of_the_formula_counted_by_hand(bend, spread):
    chosen = rates.choose(curve(parabola(bend), spread=spread))
    # Capped at 2.5 sd, outer points lie lower than the parabola says; weights 1 and 3 at distances 1 and 1/2 decade.
    drop = [min(bend * x**2, 2.5 * spread) for x in (0.5, 1.0)]
    square, fourth, n = 2 * (3 / 4 + 1), 2 * (3 / 16 + 1), sum(SEEDS)
    down = 2 * (3 / 4 * drop[0] + drop[1]), 2 * (3 * drop[0] + drop[1])
    fitted = (down[0] - square * down[1] / n) / (fourth - square**2 / n)
    assert chosen.value == 1e-3 and chosen.how == "parabola"
    assert chosen.expected_regret == pytest.approx(spread**2 / square / (4 * fitted))


def test_the_loss_expected_is_the_mean_loss_of_simulated_searches():
    """Searches of one arm at a truth that lies off the grid; the variance is as unknown as it is in a study."""
    rng, bend, sd = np.random.default_rng(0), 0.05, 0.015
    lost, expected = [], []
    for _ in range(600):
        best = rng.uniform(-0.25, 0.25)
        found = []
        for x, n in zip(np.arange(-1, 1.1, 0.5), SEEDS, strict=True):
            scores = dict(enumerate(0.8 - bend * (x - best) ** 2 + sd * rng.standard_normal(n)))
            rate = 1e-3 * 10**x
            found.append(rates.Point(learning_rate=rate, scores=scores, mean=statistics.fmean(scores.values())))
        chosen = rates.choose(found)
        if chosen.expected_regret is not None:
            lost.append(bend * (math.log10(chosen.value / 1e-3) - best) ** 2)
            expected.append(chosen.expected_regret)
    assert len(lost) > 550
    assert np.mean(expected) == pytest.approx(np.mean(lost), rel=0.25)


@given(st.floats(1e-3, 1), st.floats(1e-3, 0.5), st.sampled_from((0.3, 0.5)))
def test_no_bend_makes_the_loss_larger_than_slope_and_neighbours_allow(bend, spread, step):
    """The variance of what is confined between the neighbours is at most a quarter of their squared distance."""
    found = rates.choose(curve(parabola(bend, step), spread=spread, step=step))
    slope_sd = spread / (2 * (3 * step**2 + (2 * step) ** 2)) ** 0.5
    assert 0 < found.expected_regret <= slope_sd * 2 * step / 4 * (1 + 1e-9)


def test_a_curve_without_a_top_may_lose_most():
    means = [0.79, 0.70, 0.80, 0.70, 0.79]
    found = rates.choose(curve(means, spread=0.05, seeds=(3, 1, 3, 1, 3)))
    assert found.how == "best point" and found.value == 1e-3
    slope_sd = 0.05 / (2 * (1 / 4 + 3)) ** 0.5
    assert found.expected_regret == pytest.approx(slope_sd / 4)


def test_the_loss_is_missing_where_the_curve_cannot_tell():
    edge = rates.choose(curve([0.80, 0.79, 0.78, 0.77, 0.76], spread=0.01))
    single = rates.choose(curve(parabola(0.04), seeds=(1,) * 5))
    assert edge.at_edge and edge.expected_regret is None
    assert single.how == "parabola" and single.expected_regret is None


def test_the_tuning_trials_of_an_arm_lead_to_its_rate():
    found = evidence(lock(), {"full": 0.8, "lora": 0.7})
    assert rates.tuned(found, "lora", "mail").value == 1e-3
    assert rates.tuned(change(found, lambda r: r if r.trial.purpose != "tune" else None), "lora", "mail") is None


def test_errors_are_turned_before_they_are_chosen_from():
    found = evidence(lock(metric="mae", margin=0.1), {"full": 1.5, "lora": 1.5})

    def spread(record):
        if record.trial.purpose != "tune":
            return record
        value = record.measurements["validation.mae"].value + 0.01 * (record.trial.seed - 902)
        return record.model_copy(update={"measurements": {"validation.mae": Measurement(value=value, unit="1")}})

    chosen = rates.tuned(change(found, spread), "full", "mail")
    assert chosen.value == pytest.approx(1e-3, rel=0.05) and chosen.expected_regret > 0
