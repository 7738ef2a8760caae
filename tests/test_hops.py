"""Measures of a hop against counts of their own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tunetrial.core.errors import EvidenceError
from tunetrial.ship import hops
from tunetrial.ship.hops import Answers


def normal(logits_LV: np.ndarray) -> np.ndarray:
    """Logits as log-probabilities, a row at a time."""
    return np.array([[x - math.log(sum(math.exp(y) for y in row)) for x in row] for row in logits_LV])


def answers(logits_LV, completions=None, leads=None, ids=None) -> Answers:
    count = len(logits_LV)
    completions = completions or [(1, 2, 3)] * count
    leads = leads or [np.ones(len(one) + 1) for one in completions]
    return Answers(normal(np.asarray(logits_LV, float)), tuple(completions), tuple(leads), ids)


LOGITS = arrays(float, (2, 5), elements=st.floats(-20, 20))


@given(LOGITS, LOGITS)
def test_divergence_and_largest_difference_are_those_counted_by_hand(p, q):
    found = hops.compare(answers(p), answers(q))
    by_hand = []
    for a, b in zip(normal(p).tolist(), normal(q).tolist(), strict=True):
        by_hand.append(math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True)))
    assert found.kl_mean == pytest.approx(sum(by_hand) / 2, abs=1e-9)
    assert found.kl_largest == pytest.approx(max(by_hand), abs=1e-9)
    assert found.largest_difference == pytest.approx(np.abs(normal(p) - normal(q)).max(), abs=1e-9)
    best = sum(np.argmax(a) == np.argmax(b) for a, b in zip(normal(p), normal(q), strict=True))
    assert found.same_next_token == best / 2 and found.tokens_compared == 5


def test_a_shift_of_all_logits_is_no_difference():
    logits = [[1.0, 2.0, 0.5]]
    found = hops.compare(answers(logits), answers(np.array(logits) + 7))
    assert found.largest_difference == pytest.approx(0, abs=1e-12) and found.kl_largest == pytest.approx(0, abs=1e-12)


def test_a_golden_divergence():
    """Of (1/2, 1/2) from (1/4, 3/4): half the logarithm of 4/3."""
    kl = hops.divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]))
    assert kl[0] == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)


@pytest.mark.parametrize(
    ("before", "after", "leads", "outcome"),
    [
        ((1, 2, 3), (1, 2, 3), [1, 1, 1, 1], "identical"),
        ((), (), [1], "identical"),
        ((1, 2, 3), (1, 9, 3), [1, 9e-5, 1, 1], "tie"),
        ((1, 2, 3), (1, 9, 3), [9e-5, 1e-4, 9e-5, 9e-5], "different"),
        ((1, 2, 3), (1, 2), [1, 1, 5e-5, 1], "tie"),
        ((1, 2), (1, 2, 3), [1, 1, 5e-5], "tie"),
        ((1, 2), (1, 2, 3), [1, 1, 1], "different"),
        ((1, 2), (1, 2, 3), [1e-5, 1e-5], "different"),
    ],
)
def test_completions_part_at_a_tie_or_differ(before, after, leads, outcome):
    assert hops.completion_outcome(before, after, np.array(leads, float)) == outcome


def test_completions_are_counted_and_the_first_that_differs_is_named():
    logits = np.eye(4)
    before = answers(logits, [(1,), (2,), (3,), (4,)], [np.array([1e-5, 1.0])] + [np.ones(2)] * 3)
    after = answers(logits, [(2,), (2,), (5,), (6,)])
    found = hops.compare(before, after)
    assert (found.identical, found.ties, found.different, found.first_different) == (1, 1, 2, 2)
    assert hops.compare(before, before).first_different is None and found.probes == 4


def test_of_the_likeliest_tokens_alone_those_in_common_are_compared():
    whole = answers([[3.0, 2.0, 1.0, 0.0]])
    log_probs = np.array([[whole.log_probs_LN[0, 1] + 0.25, -9.0]])
    top = Answers(log_probs, whole.completions, whole.leads, np.array([[1, 2]]))
    found = hops.compare(whole, top)
    assert found.tokens_compared == 2 and found.kl_mean is None and found.kl_largest is None
    assert found.largest_difference == pytest.approx(abs(-9.0 - whole.log_probs_LN[0, 2]))
    assert found.same_next_token == 0.0 and hops.compare(top, top).same_next_token == 1.0
    apart = Answers(log_probs, whole.completions, whole.leads, np.array([[5, 6]]))
    with pytest.raises(EvidenceError, match="place 0: no likely token in common, got none; ask for more of them"):
        hops.compare(top, apart)


def test_answers_that_cannot_be_compared_are_refused():
    one, two = answers([[1.0, 2.0]]), answers([[1.0, 2.0]] * 2)
    with pytest.raises(EvidenceError, match=r"answer the same probes, got \(1, 1\) and \(2, 2\); ask both again"):
        hops.compare(one, two)
    with pytest.raises(EvidenceError, match="have one vocabulary, got 2 and 3 tokens"):
        hops.compare(one, answers([[1.0, 2.0, 3.0]]))
    with pytest.raises(EvidenceError, match="places by tokens, and leads of each completion are wanted"):
        Answers(np.zeros((0, 3)), (), ())
    with pytest.raises(EvidenceError, match="places by tokens, and leads of each completion are wanted"):
        Answers(np.zeros((1, 3)), ((1,), (2,)), (np.ones(2),))
    for number in (np.nan, -np.inf):
        with pytest.raises(EvidenceError, match=f"finite log-probabilities are wanted, got {number}; ask again"):
            Answers(np.array([[number, 0.0]]), ((1,),), (np.ones(2),))
    with pytest.raises(EvidenceError, match="one id a log-probability is wanted"):
        Answers(np.zeros((1, 2)), ((1,),), (np.ones(2),), np.zeros((1, 3), int))
