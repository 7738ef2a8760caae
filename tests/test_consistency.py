"""Agreement with oneself: counts by hand, edges without spread, and coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from tunetrial.analysis import consistency, intervals, ratings, texts
from tunetrial.core.errors import EvidenceError


def answers(rng, *, seeds, examples, sure=0.0, labels=3):
    """Labels of seeds that agree with chance: each example has its own distribution of answers."""
    weight_EL = rng.dirichlet(np.ones(labels), size=examples)
    weight_EL = np.where((rng.random(examples) < sure)[:, None], np.eye(labels)[0], weight_EL)
    draw_RE = rng.random((seeds, examples, 1))
    return (draw_RE > np.cumsum(weight_EL, axis=1)[None, :, :-1]).sum(axis=2), (weight_EL**2).sum(axis=1)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(3, 6), st.integers(1, 9))
def test_parts_average_to_the_agreement_and_the_variance_counted_over_pairs(seed, seeds, examples):
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=(seeds, examples))
    pairs = list(itertools.combinations(range(seeds), 2))
    agreed = np.mean([label[r, e] == label[s, e] for r, s in pairs for e in range(examples)])
    assert consistency.agreement_parts(label).mean() == pytest.approx(agreed)
    number = rng.normal(size=(seeds, examples))
    assert consistency.variance_parts(number).mean() == pytest.approx(number.var(axis=0, ddof=1).mean())


def test_measures_over_variants_are_counted_by_hand():
    label = np.array([[["a", "b", "a"], ["a", "b", "b"], ["b", "b", "b"]]])  # one seed, three variants, three examples
    assert consistency.variant_agreement_parts(label).tolist() == [[1 / 3, 1.0, 1 / 3]]
    right = label == np.array(["a", "b", "b"])
    assert consistency.right_everywhere_parts(right).tolist() == [[0.0, 1.0, 0.0]]
    assert consistency.variant_variance_parts(np.array([[[1.0], [3.0]]])).tolist() == [[2.0]]
    assert consistency.churn_parts(label[:, 0], label[:, 2]).tolist() == [[1.0, 0.0, 1.0]]
    worst = consistency.worst_variant(right, ["plain", "case", "typos"])
    assert worst.variant == "plain" and worst.score.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "same", "other"),
    [
        ("exact_match", (" Lyon\n", "Lyon"), ("lyon",)),
        ("numeric_match", ("it is 1,000.0", "1000", "so 1e3"), ("1001", "none", "nothing")),
        ("token_f1", ("The cat, sat!", "sat a cat"), ("cat",)),
        ("field_accuracy", ('{"a": 1.0, "b": [2]}', '{"b": [2.0], "a": 1}'), ('{"a": true, "b": [2]}', "{", "}")),
    ],
)
def test_texts_that_a_metric_takes_for_one_answer_have_one_form(metric, same, other):
    assert len({texts.canonical(metric, text) for text in same}) == 1
    assert len({texts.canonical(metric, text) for text in (same[0], *other)}) == 1 + len(other)


def test_alpha_over_seeds_is_that_of_raters():
    label = np.random.default_rng(0).integers(3, size=(4, 30))
    found = consistency.alpha(label)
    assert found.value == pytest.approx(ratings.alpha(label, "nominal").value)
    assert found.low < ratings.alpha(label, "nominal").low  # new seeds too, not new items alone
    assert consistency.alpha(np.zeros((3, 5))) is None
    same = consistency.alpha(np.tile([0, 1, 1], (3, 1)))
    assert same.value == 1 and same.low is None


def test_full_agreement_is_no_certainty():
    same = np.tile(np.arange(60) % 3, (5, 1))
    share = intervals.of_share(consistency.agreement_parts(same))
    assert share.value == share.high == 1
    assert share.low == pytest.approx(0.025 ** (1 / 60))  # Clopper and Pearson's end for 60 of 60
    clustered = intervals.of_share(consistency.agreement_parts(same), [str(e // 6) for e in range(60)])
    assert clustered.low == pytest.approx(0.025 ** (1 / 10))
    still = intervals.of_root(consistency.variance_parts(same))
    assert still.value == 0 and still.high is None


def test_binomial_ends_equal_scipys_where_one_seed_scores_examples_alone():
    right = np.zeros((1, 50))
    right[0, :40] = 1
    share, exact = intervals.of_share(right), binomtest(40, 50).proportion_ci(0.95, method="exact")
    # The measured error has 49 in place of 50: the ends differ in the third digit.
    assert share.low == pytest.approx(exact.low, abs=0.003) and share.high == pytest.approx(exact.high, abs=0.003)


@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_order_of_seeds_and_examples_and_names_of_labels_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    label, _ = answers(rng, seeds=4, examples=12)
    moved = np.array(["x", "y", "z"])[label][rng.permutation(4)][:, rng.permutation(12)]
    both = [intervals.of_share(consistency.agreement_parts(side)) for side in (label, moved)]
    assert both[0].low == pytest.approx(both[1].low) and both[0].high == pytest.approx(both[1].high)


def test_sources_of_variation_are_found_where_they_were_planted():
    rng, planted = np.random.default_rng(2), {"seed": 0.5, "variant": 1.0, "example": 2.0, "seed_variant": 0.3,
                                              "seed_example": 0.6, "variant_example": 0.9, "rest": 0.4}  # fmt: skip
    shapes = [(8, 1, 1), (1, 6, 1), (1, 1, 40), (8, 6, 1), (8, 1, 40), (1, 6, 40), (8, 6, 40)]
    found = []
    for _ in range(300):
        parts = [sd**0.5 * rng.normal(size=shape) for sd, shape in zip(planted.values(), shapes, strict=True)]
        found.append(list(consistency.sources(sum(parts)).model_dump().values()))
    error = np.std(found, axis=0) / 300**0.5
    assert (np.abs(np.mean(found, axis=0) - list(planted.values())) < 4 * error).all()
    two = consistency.sources(np.arange(24).reshape(2, 3, 4) % 4)  # the examples alone differ
    assert two.example == pytest.approx(5 / 3) and two.seed == two.variant == two.rest == 0


def coverage(cover, runs, seed=1):
    rng = np.random.default_rng(seed)
    return sum(cover(rng) for _ in range(runs)) / runs


def inside(interval, truth):
    return interval.low <= truth <= interval.high


def agreement_covers(rng, *, seeds=5, examples=150, sure=0.5):
    """Examples are drawn anew, so the truth is the mean over all of them: sum of squares of a flat Dirichlet of 3."""
    label, _ = answers(rng, seeds=seeds, examples=examples, sure=sure)
    return inside(intervals.of_share(consistency.agreement_parts(label)), sure + (1 - sure) / 2)


def sd_covers(rng, *, seeds=5, examples=80):
    scale_E = rng.gamma(4, 0.25, size=examples)  # mean square 1.25
    number = rng.normal(size=examples) + scale_E * rng.normal(size=(seeds, examples))
    return inside(intervals.of_root(consistency.variance_parts(number)), 1.25**0.5)


def worst_covers(rng, *, seeds=4, examples=150):
    base_E, hard = rng.normal(size=examples), 2**0.5 * norm.ppf([0.70, 0.70, 0.75])
    score = (base_E + rng.normal(size=(seeds, 3, examples)) < hard[None, :, None]).astype(float)
    return inside(consistency.worst_variant(score, ["plain", "case", "typos"]).score, 0.70)


def right_everywhere_covers(rng, *, seeds=5, examples=150):
    """Seeds differ in skill, examples much in difficulty: the truth is the mean over both, by simulation."""
    seed_R, example_E = 0.2 * rng.normal(size=(seeds, 1, 1)), 2 * rng.normal(size=examples)
    right = seed_R + example_E + rng.normal(size=(seeds, 3, examples)) < 1.1773  # 70 % a variant
    return inside(intervals.of_share(consistency.right_everywhere_parts(right)), 0.5698)


def compared_agreements_cover(rng, *, seeds=5, examples=150):
    one, two = (answers(rng, seeds=seeds, examples=examples, sure=sure)[0] for sure in (0.6, 0.4))
    found = consistency.compare(*(consistency.agreement_parts(side) for side in (one, two)))
    return inside(found, 0.1)


def alpha_covers(rng, *, seeds=5, examples=100):
    label, _ = answers(rng, seeds=seeds, examples=examples, sure=0.0)
    return inside(consistency.alpha(label), 1 - (1 - 1 / 2) / (1 - 1 / 3))


CASES = (agreement_covers, sd_covers, worst_covers, right_everywhere_covers, compared_agreements_cover, alpha_covers)


@pytest.mark.parametrize("covers", CASES)
def test_intervals_cover_in_a_small_simulation(covers):
    assert coverage(covers, 100) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 100)


@pytest.mark.slow
@pytest.mark.parametrize("covers", CASES)
@pytest.mark.parametrize("size", [{"seeds": 3}, {"seeds": 5}, {"seeds": 10, "examples": 400}])
def test_intervals_cover_at_least_their_level(covers, size):
    assert coverage(lambda rng: covers(rng, **size), 2000) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_too_little_evidence_is_refused_in_one_line():
    two = np.zeros((2, 5))
    for call in (
        lambda: consistency.agreement_parts(two),
        lambda: consistency.alpha(two),
        lambda: consistency.churn_parts(two, np.zeros((3, 5))),
        lambda: consistency.compare(two, two),
        lambda: consistency.variant_agreement_parts(np.zeros((2, 1, 5))),
        lambda: consistency.right_everywhere_parts(np.full((2, 2, 5), 0.5)),
        lambda: consistency.worst_variant(np.zeros((2, 2, 5)), ["plain"]),
        lambda: consistency.compare_worst(np.zeros((2, 2, 5)), np.zeros((2, 2, 4)), ["plain", "case"]),
        lambda: consistency.sources(np.zeros((1, 2, 5))),
        lambda: consistency.variance_parts(np.full((3, 5), np.nan)),
        lambda: intervals.of_share(np.full((3, 5), 2.0)),
    ):
        with pytest.raises(EvidenceError) as caught:
            call()
        assert "\n" not in str(caught.value) and ";" in str(caught.value)
