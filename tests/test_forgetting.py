"""What was lost: golden values, counts by hand, invariances, and coverage by simulation with runs and texts crossed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar

from tunetrial.analysis import stats
from tunetrial.analysis.forgetting import backward_of_one, flips, kept, per_unit, retention, transfer
from tunetrial.core.errors import EvidenceError


def answers(lost, gained, both, neither):
    """Right and wrong of base and tuned model, in a table's counts."""
    base = np.repeat([1, 0, 1, 0], [lost, gained, both, neither])
    return base, np.repeat([0, 1, 1, 0], [lost, gained, both, neither])


def test_nats_a_token_by_hand():
    """Two runs, three texts of 10, 20 and 70 tokens: 4 and 6 nats lost in all, over 100 tokens."""
    lost_RE = np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 3.0]])
    found = per_unit(lost_RE, np.array([10, 20, 70]))
    assert found.effect == pytest.approx(0.05)
    deviation = lost_RE - 0.05 * np.array([10, 20, 70])
    own = stats.crossed(0.05 + deviation / (100 / 3))
    assert (found.se, found.df) == pytest.approx((own.se, own.df))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_units_scale_and_the_order_of_texts_is_nothing(seed, factor):
    rng = np.random.default_rng(seed)
    lost_RE, tokens_E = rng.normal(1, 2, (3, 20)), rng.integers(5, 300, 20)
    found, order = per_unit(lost_RE, tokens_E), rng.permutation(20)
    again = per_unit(lost_RE[::-1, order], tokens_E[order])
    assert again.interval(0.95) == pytest.approx(found.interval(0.95))
    bits = per_unit(factor * lost_RE, tokens_E)
    assert bits.interval(0.95) == pytest.approx([factor * end for end in found.interval(0.95)])
    alone = per_unit(lost_RE, tokens_E, cluster_E=[str(n) for n in range(20)])
    assert alone.interval(0.95) == pytest.approx(found.interval(0.95))
    equal = per_unit(lost_RE, np.full(20, 7))
    assert equal.interval(0.95) == pytest.approx(stats.crossed(lost_RE / 7).interval(0.95))


def lost_by_simulation(rng, *, runs, texts, clusters):
    """Nats lost a text: a rate of its own, of its document and of the run, times its tokens; true mean rate 0.05."""
    tokens_E = rng.lognormal(4, 0.8, texts).astype(int) + 5
    document_E = rng.integers(0, clusters, texts)
    rate_RE = (
        0.05
        + rng.normal(0, 0.02, (runs, 1))
        + rng.normal(0, 0.04, clusters)[document_E]
        + rng.normal(0, 0.06, texts)
        + rng.normal(0, 0.03, (runs, texts))
    )
    return rate_RE * tokens_E, tokens_E, document_E.astype(str)


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_the_interval_covers_new_runs_and_texts_in_clusters(runs):
    """Nominal 95 %; at few runs crossed-t is known to be cautious. Without clusters it would not cover."""
    rng, count, hit, naive = np.random.default_rng(7), 200, 0, 0
    for _ in range(count):
        lost_RE, tokens_E, cluster_E = lost_by_simulation(rng, runs=runs, texts=300, clusters=60)
        low, high = per_unit(lost_RE, tokens_E, cluster_E=cluster_E).interval(0.95)
        hit += low <= 0.05 <= high
        low, high = stats.paired(lost_RE.mean(axis=0) / tokens_E).interval(0.95)  # texts alone, unclustered
        naive += low <= 0.05 <= high
    assert binom.ppf(0.001, count, 0.95) <= hit
    assert naive < binom.ppf(0.001, count, 0.95)


def test_held_out_text_that_cannot_be_judged_is_refused():
    for lost_RE, size_E, fault in (
        (np.ones(3), np.ones(3), "needs a total"),
        (np.ones((2, 3)), np.ones(2), "needs a total"),
        (np.ones((2, 3)), np.array([1, 0, 2]), "above 0"),
        (np.array([[1.0, 2, np.nan], [1, 2, 3]]), np.ones(3), "not finite"),
        (np.ones((1, 3)), np.ones(3), "2 or more"),
        (np.zeros((2, 3)), np.ones(3), "all equal"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            per_unit(lost_RE, size_E)


def test_flips_give_the_golden_values_of_mcnemar():
    assert round(flips(*answers(6, 16, 0, 0)).p, 7) == 0.0524788
    found = flips(*answers(86, 150, 794, 570))
    assert (found.lost, found.gained, found.both_right, found.both_wrong) == (86, 150, 794, 570)
    assert found.net == pytest.approx(-64 / 1600)
    assert flips(*answers(0, 0, 5, 2)).p == 1.0


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9), st.integers(1, 9))
def test_flips_equal_the_exact_test_of_statsmodels(lost, gained, both, neither):
    found = flips(*answers(lost, gained, both, neither))
    if lost + gained:
        assert found.p == pytest.approx(mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)
    turned = flips(*answers(gained, lost, both, neither))
    assert (turned.p, turned.net) == pytest.approx((found.p, -found.net))


def test_the_test_of_flips_keeps_its_level():
    rng, count = np.random.default_rng(5), 500
    falsely = sum(flips(*(rng.random((2, 120)) < 0.6)).p <= 0.05 for _ in range(count))
    assert falsely <= binom.ppf(0.999, count, 0.05)


def test_retention_is_of_runs_one_by_one_and_of_all_by_the_crossed_interval():
    rng = np.random.default_rng(2)
    base_E = rng.random(200) < 0.7
    tuned_RE = np.where(rng.random((4, 200)) < 0.1, ~base_E, base_E)
    found = retention(base_E, tuned_RE)
    own = stats.crossed(base_E.astype(float) - tuned_RE)
    assert found.net.interval(0.95) == pytest.approx(own.interval(0.95))
    assert [run.net for run in found.runs] == pytest.approx((base_E.astype(float) - tuned_RE).mean(axis=1).tolist())
    assert found.net.effect == pytest.approx(found.lost.effect - found.gained.effect)
    assert found.lost.effect == pytest.approx(np.mean([run.lost for run in found.runs]) / 200)
    # Ten times the same run are no more evidence of the change than one: p-values stay each run's own.
    assert len({run.p for run in retention(base_E, np.tile(tuned_RE[0], (10, 1))).runs}) == 1


def test_retention_where_nothing_changed_has_no_interval():
    base_E = np.array([1, 0, 1, 1, 0, 1])
    found = retention(base_E, np.tile(base_E, (3, 1)))
    assert found.net is None and found.lost is None and found.gained is None
    assert [run.p for run in found.runs] == [1.0] * 3
    for base, tuned, fault in (
        (base_E, base_E[None], "2 or more runs"),
        (base_E, np.zeros((2, 5)), "not paired"),
        (base_E, np.full((2, 6), 0.5), "right .1. or wrong"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            retention(base, tuned)


@pytest.mark.parametrize(("runs", "examples"), [(5, 200), (10, 400)])
def test_the_interval_of_the_net_loss_covers(runs, examples):
    """Binary answers: an example's difficulty is shared by all runs, and each run loses and gains at its own rates."""
    rng, count, hit = np.random.default_rng(11), 150, 0
    for _ in range(count):
        base_E = rng.random(examples) < 0.7
        lose_R, gain_R = rng.normal(0.10, 0.02, (runs, 1)).clip(0), rng.normal(0.06, 0.02, (runs, 1)).clip(0)
        hard_E = rng.uniform(0, 2, examples)
        tuned_RE = np.where(
            base_E, rng.random((runs, examples)) >= lose_R * hard_E, rng.random((runs, examples)) < gain_R
        )
        low, high = per_unit(base_E.astype(float) - tuned_RE, np.ones(examples)).interval(0.95)
        hit += low <= 0.7 * 0.10 - 0.3 * 0.06 <= high
    assert binom.ppf(0.001, count, 0.95) <= hit


def test_what_is_kept_is_one_less_the_loss_over_what_is_above_chance():
    rng = np.random.default_rng(3)
    base_E = (rng.random(400) < 0.75).astype(float)
    tuned_RE = np.where(rng.random((5, 400)) < 0.1, 0.0, base_E)
    found = kept(base_E, tuned_RE, chance=0.25)
    lost = base_E.mean() - tuned_RE.mean()
    assert found.share == pytest.approx(1 - lost / (base_E.mean() - 0.25))
    low, high = found.limits(0.95)
    assert low < found.share < high < 1
    assert kept((rng.random(400) < 0.25).astype(float), tuned_RE, chance=0.25).limits(0.95) is None


def test_transfer_by_hand():
    """Three tasks in a row; every number of the definitions written out."""
    score_ST = np.array([[0.2, 0.3, 0.1], [0.8, 0.35, 0.1], [0.7, 0.9, 0.15], [0.5, 0.95, 0.6]])
    found = transfer(score_ST[None])
    assert found.backward_R == pytest.approx([((0.5 - 0.8) + (0.95 - 0.9)) / 2])
    assert found.forward_R == pytest.approx([((0.35 - 0.3) + (0.15 - 0.1)) / 2])
    assert found.forgotten_R == pytest.approx([((0.8 - 0.5) + (0.9 - 0.95)) / 2])


@given(st.integers(0, 10_000), st.integers(2, 5), st.floats(-3, 3))
def test_transfer_does_not_depend_on_where_scores_begin(seed, tasks, shift):
    score_RST = np.random.default_rng(seed).random((3, tasks + 1, tasks))
    found, moved = transfer(score_RST), transfer(score_RST + shift)
    for name in ("backward_R", "forward_R", "forgotten_R"):
        assert getattr(moved, name) == pytest.approx(getattr(found, name), abs=1e-9)
    assert (found.forgotten_R >= -found.backward_R - 1e-12).all()
    alone = [transfer(score_ST[None]).backward_R[0] for score_ST in score_RST]
    assert found.backward_R == pytest.approx(alone)


def test_transfer_of_one_task_and_what_is_refused():
    base_T, tuned_RT = np.array([0.5, 0.6]), np.array([[0.4, 0.6], [0.5, 0.5]])
    assert backward_of_one(base_T, tuned_RT) == pytest.approx([-0.05, -0.05])
    for score, fault in (
        (np.zeros((2, 2, 1)), "2 or more tasks"),
        (np.zeros((2, 3, 3)), "tasks . 1"),
        (np.full((1, 3, 2), np.nan), "not finite"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            transfer(score)
    with pytest.raises(EvidenceError, match="not paired"):
        backward_of_one(base_T, tuned_RT[:, :1])
    with pytest.raises(EvidenceError, match="not finite"):
        backward_of_one(base_T, np.full((2, 2), np.nan))
