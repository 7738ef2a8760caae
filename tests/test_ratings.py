"""Raters' agreement at published values, invariances, and coverage by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.analysis import intervals, ratings
from tunetrial.core.errors import EvidenceError

# Krippendorff (2011): four raters, twelve units.
DOTS = "1 2 3 3 2 1 4 1 2 . . . / 1 2 3 3 2 2 4 1 2 5 . 3 / . 3 3 3 2 3 4 2 2 5 1 . / 1 2 3 3 2 4 4 1 2 5 1 ."
RATERS = np.array([[np.nan if said == "." else float(said) for said in row.split()] for row in DOTS.split("/")])
# Shrout & Fleiss (1979), table 2: six targets, four judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])


@pytest.mark.parametrize(
    ("scale", "golden"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_gives_krippendorffs_values(scale, golden):
    assert round(ratings.alpha(RATERS, scale).value, 3) == golden


def test_icc_gives_shrout_and_fleiss_values_and_the_published_ends():
    found = ratings.icc(JUDGES)
    assert (round(found.single.value, 3), round(found.average.value, 3)) == (0.290, 0.620)
    assert [round(end, 3) for end in (found.single.low, found.single.high)] == [0.019, 0.761]
    assert [round(end, 2) for end in (found.average.low, found.average.high)] == [0.07, 0.93]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(["nominal", "ordinal", "interval", "ratio"]))
def test_alpha_equals_a_count_over_all_pairs_and_leaves_one_out(seed, scale):
    rng = np.random.default_rng(seed)
    rating = np.where(rng.random((3, 8)) < 0.2, np.nan, rng.integers(1, 5, size=(3, 8)))
    if ((~np.isnan(rating)).sum(axis=0) >= 2).sum() < 3:
        return
    found, counted = ratings.alpha(rating, scale), by_pairs(rating, scale)
    assert (found and found.value) == (counted if counted is None else pytest.approx(counted))
    values = np.unique(rating[~np.isnan(rating)])
    count_EK = np.stack([(rating == value).sum(axis=0) for value in values], axis=1)
    without = ratings.alphas_without(count_EK, values, scale, np.arange(8))
    by_hand = [by_pairs(np.delete(rating, e, axis=1), scale) for e in range(8)]
    assert without == [value if value is None else pytest.approx(value) for value in by_hand]


def by_pairs(rating, scale):
    """Alpha as Krippendorff words it: mean distance within units over mean distance of all pairs of pairable values."""
    units = [column[~np.isnan(column)] for column in rating.T if (~np.isnan(column)).sum() >= 2]
    everything = np.concatenate(units)

    def distance(a, b):
        if scale == "ordinal":
            low, high = min(a, b), max(a, b)
            between = sum(low <= v <= high for v in everything)
            return 0 if a == b else (between - (sum(everything == a) + sum(everything == b)) / 2) ** 2
        return {"nominal": a != b, "interval": (a - b) ** 2, "ratio": ((a - b) / (a + b)) ** 2}[scale]

    within = sum(distance(a, b) / (len(unit) - 1) for unit in units for a in unit for b in unit) / len(everything)
    n = len(everything)
    overall = sum(distance(a, b) for a in everything for b in everything) / (n * (n - 1))
    return None if overall == 0 else 1 - within / overall


def test_what_is_the_same_under_another_numbering_is_so():
    moved = ratings.alpha(RATERS**3, "ordinal")
    assert moved.value == pytest.approx(ratings.alpha(RATERS, "ordinal").value)
    assert ratings.alpha(7 * RATERS + 3, "interval").low == pytest.approx(ratings.alpha(RATERS, "interval").low)
    assert ratings.icc(7 * JUDGES - 3).single.low == pytest.approx(ratings.icc(JUDGES).single.low)


def test_edges_are_said_and_not_made_up():
    assert ratings.alpha(np.ones((2, 3)), "nominal") is None
    assert ratings.icc(np.ones((3, 2))) is None
    full = ratings.icc(np.array([[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]]))
    assert full.single.value == 1 and full.single.low is None
    same = ratings.alpha(np.array([[1, 2, 3.0], [1, 2, 3.0]]), "interval")
    assert same.value == 1 and same.low is None
    for call in (
        lambda: ratings.alpha(np.array([[1.0, np.nan], [np.nan, 2.0]]), "nominal"),
        lambda: ratings.alpha(-RATERS, "ratio"),
        lambda: ratings.icc(RATERS.T),
        lambda: ratings.preferred_parts(RATERS, RATERS),
        lambda: ratings.preferred_parts(np.ones((2, 3)), np.ones((2, 4))),
    ):
        with pytest.raises(EvidenceError, match="got"):
            call()


def test_preferred_counts_ties_by_half():
    parts = ratings.preferred_parts(np.array([[7, 5, 3], [2, 9, 3]]), np.array([[6, 5, 9], [6, 1, 3]]))
    assert parts.tolist() == [[1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]
    assert intervals.of_share(parts).value == 0.5


def rated(rng, *, items, raters, whole=False):
    rating = rng.normal(size=(items, 1)) + 0.5 * rng.normal(size=raters) + 0.7 * rng.normal(size=(items, raters))
    return np.clip((5.5 + 2 * rating).round(), 1, 10) if whole else rating


def icc_covers(rng):
    found = ratings.icc(rated(rng, items=40, raters=5)).single
    return found.low <= 1 / (1 + 0.25 + 0.49) <= found.high


def alpha_covers(rng):
    """Of these two raters: one adds a little of his own to each item, and both use whole points."""
    item = rng.normal(size=60)
    found = ratings.alpha(np.stack([item + 0.6 * rng.normal(size=60) for _ in range(2)]), "interval")
    return found.low <= 1 / 1.36 <= found.high


@pytest.mark.parametrize("covers", [icc_covers, alpha_covers])
def test_intervals_cover_in_a_small_simulation(covers):
    rng = np.random.default_rng(3)
    assert np.mean([covers(rng) for _ in range(100)]) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 100)


@pytest.mark.slow
@pytest.mark.parametrize(("covers", "level"), [(icc_covers, 0.93), (alpha_covers, 0.95)])
def test_intervals_cover_what_they_state(covers, level):
    rng = np.random.default_rng(4)
    assert np.mean([covers(rng) for _ in range(2000)]) >= level - 3 * math.sqrt(0.95 * 0.05 / 2000)
