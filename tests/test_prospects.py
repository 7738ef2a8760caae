"""What a further spend is expected to gain: golden values, invariances, simulated coverage whatever the ratio is."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import t as student

from tunetrial.analysis import prospects, stats
from tunetrial.analysis.contrasts import means
from tunetrial.analysis.stats import Estimate
from tunetrial.core.errors import EvidenceError


def ladder(rng, *, ratio, gained, rungs=3, seeds=5, rows=300, seed_sd=0.01, growing=1.0):
    """Right answers of a ladder in which each doubling gains `ratio` of the one before, and what the next would gain.

    The seeds of a smaller rung vary more by the factor `growing`; rows are as hard in every run.
    """
    below = np.arange(rungs - 1, -1, -1.0)
    lack = below if ratio == 1 else (ratio**-below - 1) / (1 / ratio - 1)
    last = gained / lack[0]
    ease = rng.standard_normal(rows)
    share = 0.8 - last * lack[:, None] + seed_sd * growing ** below[:, None] * rng.standard_normal((rungs, seeds))
    luck = 0.6**0.5 * ease + 0.4**0.5 * rng.standard_normal((rungs, seeds, rows))
    return (luck < ndtri(np.clip(share, 0.01, 0.99))[:, :, None]).astype(float), last * ratio


def test_a_contrast_is_what_the_crossed_layout_estimates_of_it():
    rng = np.random.default_rng(0)
    score = rng.standard_normal((4, 3, 20))
    weight = np.array([0.5, -1.0, 0.25, 0.25])
    found, direct = means(score).contrast(weight), stats.crossed(np.einsum("k,kre->re", weight, score))
    assert (found.effect, found.se, found.df) == pytest.approx((direct.effect, direct.se, direct.df))
    for bad in (score[:, :1], score[:, :, :1], score[0], np.where(score > 2, np.nan, score)):
        with pytest.raises(EvidenceError, match="scores"):
            means(bad)
    with pytest.raises(EvidenceError, match="no spread"):
        means(score).contrast(np.zeros(4))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_without_noise_the_next_gain_is_that_of_the_power_law(ratio):
    """n**-c with c = -log2(ratio), or the logarithm: gains of the two doublings and of the next."""
    sizes = np.array([250.0, 500, 1000, 2000])
    score = np.log(sizes) if ratio == 1 else -(sizes ** math.log2(ratio))
    noise = 1e-9 * np.random.default_rng(0).standard_normal((3, 4, 30))
    found = prospects.doubled(means(score[:3, None, None] + noise), sizes[:3])
    assert found.expected == pytest.approx(score[3] - score[2], rel=1e-3)
    assert found.low <= score[3] - score[2] <= found.high and found.chance_above(0) == pytest.approx(1)


def test_a_gain_over_a_lower_rung_has_what_lies_between_as_measured():
    score, _ = ladder(np.random.default_rng(6), ratio=0.6, gained=0.2, rungs=4)
    rungs = means(score)
    last, lower = (prospects.doubled(rungs, (8, 16, 32, 64), over=over) for over in (3, 1))
    assert lower.expected == pytest.approx(last.expected + rungs.mean_K[3] - rungs.mean_K[1])
    assert last == prospects.doubled(rungs, (8, 16, 32, 64)) and lower.weights == last.weights


def test_growing_returns_refute_the_forecast():
    noise = 1e-3 * np.random.default_rng(0).standard_normal((3, 5, 50))
    rungs = means(np.array([0.5, 0.55, 0.8])[:, None, None] + noise)
    assert prospects.doubled(rungs, (1, 2, 4)) is None


def test_fewer_than_three_rungs_or_sizes_that_do_not_rise_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(EvidenceError, match="3 or more"):
        prospects.doubled(means(rng.standard_normal((2, 3, 9))), (1, 2))
    with pytest.raises(EvidenceError, match="rise"):
        prospects.doubled(means(rng.standard_normal((3, 3, 9))), (1, 4, 2))


@settings(max_examples=12)
@given(st.floats(0.01, 100), st.floats(-5, 5), st.integers(1, 1000))
def test_units_of_scores_and_sizes_do_not_matter(scale, shift, unit):
    score, _ = ladder(np.random.default_rng(5), ratio=0.5, gained=0.1, rows=60)
    found = prospects.doubled(means(score), (1, 2, 4))
    other = prospects.doubled(means(shift + scale * score), (unit, 2 * unit, 4 * unit))
    assert (other.low, other.high, other.expected) == pytest.approx(
        (scale * found.low, scale * found.high, scale * found.expected), rel=1e-6, abs=1e-9
    )
    assert other.chance_above(0) == pytest.approx(found.chance_above(0))


def coverage(studies, **truth):
    rng, held = np.random.default_rng(3), []
    for _ in range(studies):
        score, gain = ladder(rng, **truth)
        found = prospects.doubled(means(score), [2.0**k for k in range(len(score))])
        held.append(found is not None and found.low <= gain <= found.high)
    return np.mean(held)


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_the_interval_holds_its_coverage(ratio):
    assert coverage(40, ratio=ratio, gained=0.1) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7, 1.0])
@pytest.mark.parametrize(
    "truth",
    [
        {"gained": 0.1, "seeds": 3, "growing": 1.5},
        {"gained": 0.2, "seeds": 10, "rows": 1000},
        {"gained": 0.0, "seeds": 5},
        {"gained": -0.1, "seeds": 5, "rungs": 4},
    ],
)
def test_the_interval_holds_its_coverage_whatever_the_ratio(truth, ratio):
    assert coverage(300, ratio=ratio, **truth) >= 0.95 - 2.6 * (0.95 * 0.05 / 300) ** 0.5


@pytest.mark.slow
def test_chances_come_true_where_the_ratio_is_as_assumed():
    """Of forecasts that give a gain above a bound a chance of p, a share p have it; true gains are large beside noise,
    as a flat prior takes them to be."""
    rng, said, came = np.random.default_rng(4), [], []
    for _ in range(800):
        score, gain = ladder(rng, ratio=rng.uniform(0, 1), gained=0.15 * rng.standard_normal(), rows=200)
        found = prospects.doubled(means(score), (1, 2, 4))
        if found is not None:
            said.append(found.chance_above(0.02))
            came.append(gain > 0.02)
    said, came = np.array(said), np.array(came)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        chosen = (said >= low) & (said < high)
        assert came[chosen].mean() == pytest.approx(said[chosen].mean(), abs=0.12)


def test_a_measured_gain_has_its_t_interval_and_chance():
    found = prospects.measured(Estimate(effect=0.02, se=0.01, df=8.0))
    half = student.ppf(0.975, 8) * 0.01
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half))
    assert found.expected == 0.02 and found.chance_above(0.01) == pytest.approx(student.cdf(1, 8))


def test_a_prospect_is_reckoned_by_hand():
    gain = prospects.measured(Estimate(effect=0.02, se=0.01, df=8.0))
    found = prospects.prospect("full fine-tuning", gain, usd=4.0, usd_per_unit=500.0)
    assert found.gain_per_usd == pytest.approx(0.005) and found.net_usd == pytest.approx(6.0)
    assert found.chance == pytest.approx(student.cdf(2, 8))
    assert found.chance_pays == pytest.approx(student.cdf((0.02 - 4 / 500) / 0.01, 8)) and found.why is None


def test_what_is_not_known_is_missing_and_said():
    gain = prospects.measured(Estimate(effect=0.02, se=0.01, df=8.0))
    free = prospects.prospect("more rank", gain, usd=0.0, usd_per_unit=500.0)
    unpriced = prospects.prospect("more labels", gain, usd=None, usd_per_unit=500.0)
    unworthy = prospects.prospect("more labels", gain, usd=3.0, usd_per_unit=None)
    unforeseen = prospects.prospect("more labels", None, usd=3.0, usd_per_unit=500.0)
    assert free.gain_per_usd is None and free.net_usd == pytest.approx(10.0)
    assert unpriced.gain_per_usd is None and unpriced.net_usd is None and "price" in unpriced.why
    assert unworthy.gain_per_usd == pytest.approx(0.02 / 3) and unworthy.net_usd is None and "worth" in unworthy.why
    assert unforeseen.gain is None and unforeseen.chance is None and "diminishing" in unforeseen.why
    assert prospects.best([unpriced, unworthy, unforeseen]) is None


@pytest.mark.parametrize(("worth", "what"), [(500.0, "full fine-tuning"), (150.0, "stop"), (200.0, "stop")])
def test_stopping_is_best_where_no_gain_is_worth_more_than_its_price(worth, what):
    gains = {"more labels": (0.03, 12.0), "full fine-tuning": (0.02, 4.0)}
    found = [
        prospects.prospect(name, prospects.measured(Estimate(effect=g, se=0.01, df=8.0)), usd=usd, usd_per_unit=worth)
        for name, (g, usd) in gains.items()
    ]
    assert prospects.best(found).what == what
