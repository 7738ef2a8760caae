"""SMAA-2, dominance, flips and the value of information against counts and an oracle of their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymcdm import methods as oracle
from pymcdm import normalizations

from tunetrial.analysis import smaa
from tunetrial.analysis.scoring import Scale

AB = np.array([[1.0, 0.4], [0.5, 1.0]])


def drawn(seed, draws=500, arms=3, criteria=4):
    rng = np.random.default_rng(seed)
    return rng.random((draws, arms, criteria)), rng.dirichlet(np.ones(criteria))


def test_the_published_two_arm_shares_of_first_places():
    """A = (1, .4), B = (.5, 1): A is first for 5/11 of all weights."""
    weight = smaa.flat_weights(np.random.default_rng(0), 200_000, 2)
    score = smaa.scores(np.broadcast_to(AB, (len(weight), 2, 2)), weight)
    found = smaa.acceptability(score)
    assert found[0, 0] == pytest.approx(5 / 11, abs=0.004) and found[1, 0] == pytest.approx(6 / 11, abs=0.004)
    # First from weight 6/11 of the first criterion on, so its central weight is half way from there to 1.
    assert smaa.central_weights(weight, score)[0] == pytest.approx([17 / 22, 5 / 22], abs=0.002)
    (flip,) = smaa.weight_flips(AB, np.array([0.5, 0.5]))[:1]
    assert (flip.criterion, flip.to) == (0, 0) and flip.at == pytest.approx(6 / 11)


@given(st.integers(0, 10_000))
def test_weighted_values_and_ranks_are_those_of_an_independent_library(seed):
    """With anchors at the extremes of what is there, and costs among the criteria, pymcdm's weighted sum is ours."""
    rng = np.random.default_rng(seed)
    amount, weight, types = rng.random((4, 3)) * [1, 100, 9], rng.dirichlet(np.ones(3)), np.array([1, -1, -1])
    ends = [(x.min(), x.max())[:: int(t)] for x, t in zip(amount.T, types, strict=True)]
    scales = [Scale(str(j), w, *end) for j, (w, end) in enumerate(zip(weight, ends, strict=True))]
    value = np.stack([scale.value(amount[:, j]) for j, scale in enumerate(scales)], axis=1)
    wsm = oracle.WSM(normalization_function=normalizations.minmax_normalization)
    theirs = wsm(amount, weight, types, validation=False)
    ours = smaa.scores(value[None], weight)[0]
    assert ours == pytest.approx(theirs)
    assert (smaa.acceptability(ours[None]).argmax(axis=1) + 1).tolist() == wsm.rank(theirs).astype(int).tolist()


def test_values_between_anchors_are_min_max_where_the_anchors_are_the_extremes():
    cost = np.array([3.0, 12.0, 7.0, 20.0])
    theirs = normalizations.minmax_normalization(cost, cost=True)
    assert Scale("cost_usd", 1.0, 20.0, 3.0).value(cost) == pytest.approx(theirs)


def test_a_logarithmic_value_gives_each_halving_the_same():
    scale = Scale("latency_ms", 1.0, 1000.0, 10.0, log=True)
    assert scale.value(np.array([1000.0, 100.0, 10.0, 5000.0, 1.0, 0.0])) == pytest.approx([0, 0.5, 1, 0, 1, 1])
    steps = np.diff(scale.value(10.0 * 2.0 ** np.arange(7)))
    assert steps == pytest.approx(np.full(6, -np.log(2) / np.log(100)))
    rising = Scale("tokens", 1.0, 10.0, 1000.0, log=True)
    assert rising.value(np.array([0.0, 10.0, 100.0])) == pytest.approx([0, 0, 0.5])


@given(st.integers(0, 10_000))
def test_shares_sum_to_one_and_agree_with_each_other(seed):
    value, weight = drawn(seed)
    score = smaa.scores(value, weight)
    ranks, first, wins = smaa.acceptability(score), smaa.first(score), smaa.wins(score)
    assert ranks.sum(axis=0) == pytest.approx(np.ones(3)) and ranks.sum(axis=1) == pytest.approx(np.ones(3))
    assert first.mean(axis=0) == pytest.approx(ranks[:, 0])
    assert wins + wins.T == pytest.approx(np.ones((3, 3)))
    by_hand = [sum(max(row) == row[k] for row in score.tolist()) / len(score) for k in range(3)]
    assert ranks[:, 0] == pytest.approx(by_hand)


def test_ties_are_shared():
    score = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.5]])
    assert smaa.first(score).tolist() == [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert smaa.acceptability(score)[0] == pytest.approx([(1 / 2 + 1 / 3) / 2, (1 / 2 + 1 / 3) / 2, 1 / 6])
    assert smaa.wins(score)[0, 1] == 0.5


def test_an_arm_that_is_never_first_has_no_central_weights():
    value = np.broadcast_to(np.array([[0.9, 0.9], [0.1, 0.1]]), (50, 2, 2))
    weight = smaa.flat_weights(np.random.default_rng(1), 50, 2)
    central = smaa.central_weights(weight, smaa.scores(value, weight))
    assert np.isfinite(central[0]).all() and np.isnan(central[1]).all()
    found = smaa.confidence(value, central)
    assert found[0] == 1.0 and np.isnan(found[1])


@given(st.integers(0, 10_000))
def test_dominance_is_counted_draw_by_draw(seed):
    good = np.random.default_rng(seed).integers(0, 3, (40, 3, 2)).astype(float)
    over, front = smaa.dominance(good)
    for a in range(3):
        for b in range(3):
            both = [(row[a] >= row[b]).all() and (row[a] > row[b]).any() for row in good]
            assert over[a, b] == pytest.approx(np.mean(both))
        alone = [not any((r[b] >= r[a]).all() and (r[b] > r[a]).any() for b in range(3)) for r in good]
        assert front[a] == pytest.approx(np.mean(alone))


@given(st.integers(0, 10_000), st.floats(0.05, 0.5))
def test_a_first_place_survives_exactly_when_no_weights_in_the_box_take_it(seed, by):
    value, weight = drawn(seed, draws=1)
    found, top = smaa.shaken(value[0], weight, by=by), int((value[0] @ weight).argmax())
    corners = np.array(np.meshgrid(*[(1 - by, 1 + by)] * 4)).reshape(4, -1).T
    scored = [value[0] @ (weight * corner) for corner in corners]
    lost = {int(k) for score in scored for k in np.flatnonzero(score > score[top] + 1e-9)}
    assert found[0] in lost if lost else found is None


def test_knowing_is_worth_what_it_changes():
    """Two arms, one criterion that is a coin: B is 0 or 1, A is sure of .5. To know B first is worth .25."""
    rng = np.random.default_rng(2)
    coin = rng.integers(0, 2, 100_000).astype(float)
    value = np.stack([np.full((len(coin), 1), 0.5), coin[:, None]], axis=1)
    everything, each = smaa.perfect_knowledge(value, np.array([1.0]))
    assert everything == pytest.approx(0.25, abs=0.005) and each[0] == pytest.approx(everything)
    sure = np.broadcast_to(AB, (10, 2, 2))
    assert smaa.perfect_knowledge(sure, np.array([0.5, 0.5])) == (0.0, pytest.approx([0.0, 0.0]))


def test_a_tie_at_no_weight_or_all_of_it_is_no_flip():
    """The rival equals the first by one criterion and is behind by the other: it is never first."""
    assert smaa.weight_flips(np.array([[0.8, 1.0], [0.6, 1.0]]), np.array([0.5, 0.5])) == ()
