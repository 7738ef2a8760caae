"""Learning curves: counts by hand, an isotonic fit of another library's, invariances, simulated coverage."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from planted import evidence, lock
from tunetrial.analysis import learning
from tunetrial.core.errors import EvidenceError
from tunetrial.core.study import Hardware

STEPS = np.arange(1.0, 101.0)


def rising(scale, *, noise=0.0, rng=None, steps=STEPS):
    """1 - exp(-steps / scale), a curve that gains 1."""
    luck = 0.0 if rng is None else noise * rng.standard_normal(len(steps))
    return 1 - np.exp(-steps / scale) + luck


def line(step, *, loss=1.0, tokens=10, seconds=2.0):
    return {"step": step, "steps": 5, "loss": loss, "tokens": tokens, "seconds": seconds}


def test_what_each_step_had_taken_is_counted_with_the_short_step_of_an_epoch():
    found = learning.course([line(n) for n in range(1, 6)], rows=20, batch_examples=8, usd_per_hour=3.6)
    assert found.steps_S.tolist() == [1, 2, 3, 4, 5]
    assert found.examples_S.tolist() == [8, 16, 20, 28, 36]
    assert found.tokens_S.tolist() == [10, 20, 30, 40, 50]
    assert found.seconds_S.tolist() == [2, 4, 6, 8, 10]
    assert found.usd_S == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.010])


def test_what_was_not_measured_is_missing():
    found = learning.course([line(1), line(2, loss=None)], rows=8, batch_examples=8)
    assert found.usd_S is None and found.loss_S[0] == 1.0 and math.isnan(found.loss_S[1])
    with pytest.raises(EvidenceError, match="steps 1, 2"):
        learning.course([line(1), line(3)], rows=8, batch_examples=8)
    with pytest.raises(EvidenceError, match="steps 1, 2"):
        learning.course([], rows=8, batch_examples=8)


def test_a_level_is_first_reached_where_the_curve_has_it():
    x = np.array([1.0, 2, 4, 8, 16])
    assert learning.first_at(x, np.array([0.1, 0.4, 0.6, 0.8, 0.9]), 0.5) == 4
    assert learning.first_at(x, np.array([0.1, 0.4, 0.6, 0.8, 0.9]), 0.05) == 1
    assert learning.first_at(x, np.array([0.1, 0.4, 0.6, 0.8, 0.9]), 0.95) is None


@given(st.lists(st.integers(-40, 40), min_size=5, max_size=40), st.integers(-30, 30))
def test_a_level_is_reached_where_an_isotonic_fit_has_it(values, level):
    values, target = np.array(values) / 8, level / 8 + 0.0301
    x = np.arange(1.0, len(values) + 1)
    fitted = IsotonicRegression().fit_transform(x, values)
    expected = next((at for at, fit in zip(x, fitted, strict=True) if fit >= target), None)
    assert learning.first_at(x, values, target) == expected


@pytest.mark.parametrize("share", [0.9, 0.95])
def test_a_plateau_without_noise_is_reached_where_the_formula_says(share):
    values = rising(8)
    first, plateau = 1 - math.exp(-1 / 8), values[80:].mean()
    expected = math.ceil(-8 * math.log(1 - (first + share * (plateau - first))))
    assert learning.to_plateau(STEPS, values, share=share) == expected
    from_zero = math.ceil(-8 * math.log(1 - share * plateau))
    assert learning.to_plateau(STEPS, values, share=share, start=0.0) == from_zero


@given(st.floats(0.01, 100), st.floats(-50, 50), st.floats(0.01, 1000))
def test_units_of_values_and_x_do_not_matter(scale, shift, stretch):
    rng = np.random.default_rng(3)
    values = rising(9, noise=0.1, rng=rng)
    at = learning.to_plateau(STEPS, values, share=0.9)
    moved = learning.to_plateau(stretch * STEPS, shift + scale * values, share=0.9)
    assert moved == pytest.approx(stretch * at)


def test_runs_that_never_get_there_say_so():
    rng = np.random.default_rng(0)
    assert learning.to_plateau(STEPS, STEPS / 100, share=0.9) is None
    assert learning.to_plateau(STEPS, -rising(9), share=0.9) is None
    flat = [learning.to_plateau(STEPS, 0.2 * rng.standard_normal(100), share=0.9) for _ in range(200)]
    assert sum(at is not None for at in flat) <= 10
    diverged = np.where(STEPS > 70, np.nan, rising(5))
    assert learning.to_plateau(STEPS, diverged, share=0.9) is None


def test_a_gap_or_too_few_points_are_faults():
    gap = np.where(STEPS == 50, np.nan, rising(5))
    with pytest.raises(EvidenceError, match="finite"):
        learning.to_plateau(STEPS, gap, share=0.9)
    with pytest.raises(EvidenceError, match="5 or more"):
        learning.first_at(STEPS[:4], rising(5)[:4], 0.5)
    with pytest.raises(EvidenceError, match="share"):
        learning.to_plateau(STEPS, rising(5), share=0.5)


def test_the_interval_over_seeds_is_between_order_statistics():
    found = learning.over_seeds([30, 10, 50, 20, 40])
    assert (found.median, found.low, found.high) == (30, 10, 50)
    assert found.level == pytest.approx(1 - 2 / 32) and found.never == 0
    ten = learning.over_seeds(list(range(1, 11)))
    assert (ten.low, ten.high) == (2, 9) and ten.level == pytest.approx(1 - 2 * 11 / 1024)
    assert (learning.over_seeds([1, 2, 3], level=0.7)).level == 0.75


def test_runs_that_never_got_there_are_later_than_all_others():
    found = learning.over_seeds([30, None, 10, 20, None])
    assert (found.median, found.low, found.high, found.never) == (30, 10, None, 2)
    none = learning.over_seeds([None, None, None])
    assert (none.median, none.low, none.high, none.never, none.runs) == (None, None, None, 3, 3)
    with pytest.raises(EvidenceError, match="2 or more"):
        learning.over_seeds([10])


def covered(rng, studies, runs, *, noise, collapse):
    """How often the interval holds the median over seeds of where curves without noise have 90 % of their gain."""
    spread = np.exp(0.3 * np.random.default_rng(1).standard_normal(501))
    times = [learning.to_plateau(STEPS, rising(8 * s), share=0.9) for s in spread]
    truth = float(np.quantile([math.inf if t is None else t for t in times], 0.5 / (1 - collapse)))
    hits, level = 0, None
    for _ in range(studies):
        reached = []
        for _ in range(runs):
            gains = rng.random() >= collapse
            scale = 8 * math.exp(0.3 * rng.standard_normal())
            values = rising(scale, noise=noise, rng=rng) if gains else noise * rng.standard_normal(100)
            reached.append(learning.to_plateau(STEPS, values, share=0.9))
        found = learning.over_seeds(reached)
        low, high = (math.inf if end is None else end for end in (found.low, found.high))
        hits, level = hits + (low <= truth <= high), found.level
    return hits / studies, level


def test_the_interval_holds_its_coverage():
    share, level = covered(np.random.default_rng(2), 150, 5, noise=0.1, collapse=0.1)
    assert share >= level - 2.6 * (level * (1 - level) / 150) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "noise", "collapse"), [*itertools.product((5, 10), (0.05, 0.1, 0.2), (0.0, 0.2))])
def test_the_interval_holds_its_coverage_at_length(runs, noise, collapse):
    share, level = covered(np.random.default_rng(7), 2000, runs, noise=noise, collapse=collapse)
    assert share >= level - 0.025


def test_the_mean_height_is_the_area_counted_by_hand():
    x = np.array([0.0, 1, 3, 4, 8])
    rows = np.array([[0.0, 1, 1, 2, 2], [1.0, 2, 2, 3, 3]])
    area = (0.5 * 1 + 1 * 2 + 1.5 * 1 + 2 * 4) / 8
    found = learning.mean_height(x, rows)
    assert found.effect == pytest.approx(area + 0.5) and found.df == 1 and found.se == pytest.approx(0.5)


def test_the_best_to_expect_has_its_golden_values():
    assert learning.expected_best(np.array([0.7, 0.6, 0.8])) == pytest.approx([0.7, 0.7667, 0.8], abs=5e-5)
    assert learning.expected_best(np.array([0.6, 0.7, 0.8]), replace=True)[1] == pytest.approx(0.7444, abs=5e-5)
    with pytest.raises(EvidenceError, match="finite"):
        learning.expected_best(np.array([0.7, math.nan]))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_the_best_to_expect_is_the_mean_over_all_draws(values):
    unbiased, biased = (learning.expected_best(np.array(values, float), replace=flag) for flag in (False, True))
    for budget in range(1, len(values) + 1):
        draws = list(itertools.combinations(values, budget))
        assert unbiased[budget - 1] == pytest.approx(sum(map(max, draws)) / len(draws))
        if budget <= 4:
            draws = list(itertools.product(values, repeat=budget))
            assert biased[budget - 1] == pytest.approx(sum(map(max, draws)) / len(draws))
    assert (np.diff(unbiased) >= -1e-9).all() and (biased <= unbiased + 1e-9).all()


def curves_of(arms, *, steps=40, hours=None):
    """Finals of arms that learn at these paces, 3 seeds; the third of "lora" diverges at step 30."""
    found = evidence(lock(hardware=Hardware(usd_per_hour=hours)), dict.fromkeys(arms, 0.8), seeds=3)
    curves = {}
    for record in found.of(purpose="final"):
        falls = 1 + np.exp(-np.arange(1, steps + 1) / arms[record.trial.arm.name])
        lost = record.trial.arm.name == "lora" and record.trial.seed == 3 and steps > 30
        curves[record.trial.id] = tuple(
            line(n + 1, loss=None if lost and n == 29 else float(falls[n]), tokens=10 + n % 2) | {"steps": steps}
            for n in range(30 if lost else steps)
        )
    return replace(found, curves=curves)


def test_a_study_says_how_soon_each_arm_learns():
    found = curves_of({"full": 3, "lora": 6}, hours=3.6)
    full, lora = learning.learned(found)
    assert (full.task, full.arm, lora.arm) == ("mail", "full", "lora") and list(full.steps) == [0.9, 0.95]
    falls = np.exp(-np.arange(1, 41) / 3)
    share = (falls[0] - falls) / (falls[0] - falls[-8:].mean())
    for asked, reached in full.steps.items():
        assert reached.median == 1 + np.flatnonzero(share >= asked)[0] and reached.never == 0
    assert full.mean_loss is None, "three runs that are all equal have no interval"
    assert lora.steps[0.9].never == 1 and lora.steps[0.9].high is None and lora.mean_loss is None
    assert full.usd_per_step is None, "without a probe no step has a price"


def test_the_mean_loss_is_the_mean_height_over_seeds():
    found = curves_of({"full": 3, "lora": 6})
    higher = {
        r.trial.id: tuple(row | {"loss": row["loss"] + 0.1 * r.trial.seed} for row in found.curves[r.trial.id])
        for r in found.of(purpose="final", arm="full")
    }
    (full, *_) = learning.learned(replace(found, curves=higher))
    middle = 1.2 + np.trapezoid(np.exp(-np.arange(1, 41) / 3)) / 39
    assert full.mean_loss[0] == pytest.approx(middle)
    assert full.mean_loss[2] - middle == pytest.approx(0.1 * 4.302653 / 3**0.5, rel=1e-5)


def test_a_step_is_priced_by_the_probe():
    held = lock(hardware=Hardware(usd_per_hour=3.6))
    found = evidence(held, {"full": 0.8, "lora": 0.8}, seeds=3, costs={"full": {"step_s": 0.5}})
    found = replace(found, curves=curves_of({"full": 3, "lora": 6}, hours=3.6).curves)
    assert [one.usd_per_step for one in learning.learned(found)] == [pytest.approx(0.0005), None]


def test_runs_that_all_ended_early_never_got_there():
    """A run that diverges alone has no line of the step at which it did."""
    found = curves_of({"full": 3, "lora": 6})
    cut = replace(found, curves={name: curve[:20] for name, curve in found.curves.items()})
    assert [one.steps[0.9].never for one in learning.learned(cut)] == [3, 3]


def test_what_shows_no_curve_is_left_out():
    found = curves_of({"full": 3, "lora": 6})
    assert learning.learned(replace(found, curves={})) == ()
    assert learning.learned(curves_of({"full": 3, "lora": 6}, steps=4)) == ()
    assert learning.learned(replace(found, lock=found.lock.model_copy(update={"folds": {"mail": 5}}))) == ()
