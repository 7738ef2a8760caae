"""Products of rows that are kept: the same numbers as the rows themselves give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.analysis.grams import alignments, products
from tunetrial.analysis.similarity import similarity
from tunetrial.core.errors import EvidenceError

RNG = np.random.default_rng(3)
ROWS = [RNG.normal(size=(40, 12)) + 5 for _ in range(2)]
RUNS = [ROWS[0], ROWS[0] + 0.3 * ROWS[1], ROWS[1]]


def test_alignments_are_the_debiased_cka_of_the_rows():
    found = alignments(np.stack([products(x) for x in RUNS]))
    for one in range(3):
        for other in range(3):
            assert found[one, other] == pytest.approx(similarity(RUNS[one], RUNS[other]).cka, abs=1e-12)


def test_golden_value_of_five_rows():
    x = np.array([[1, 0], [0, 1], [2, 1], [1, 3], [0, 2]])
    y = np.array([[1, 1], [0, 2], [3, 1], [1, 2], [0, 0]])
    assert alignments(np.stack([products(x), products(y)]))[0, 1] == pytest.approx(0.2946278255)


def test_in_single_precision_runs_close_by_are_still_told_apart():
    close = RUNS[0] + 1e-3 * ROWS[1]
    kept = [products(x).astype(np.float32) for x in (RUNS[0], close)]
    assert 1 - alignments(np.stack(kept))[0, 1] == pytest.approx(1 - similarity(RUNS[0], close).cka, rel=0.02)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_turned_scaled_and_shifted_rows_are_the_same(seed, scale, shift):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))[0]
    both = np.stack([products(ROWS[0]), products(scale * ROWS[0] @ turn + shift)])
    assert alignments(both)[0, 1] == pytest.approx(1, abs=1e-9)


def test_rows_that_are_all_alike_have_no_value_and_too_few_are_refused():
    found = alignments(np.stack([products(ROWS[0]), products(np.full((40, 12), 1e6 / 3))]))
    assert found[0, 0] == pytest.approx(1) and np.isnan(found[1]).all()
    with pytest.raises(EvidenceError, match="4 or more"):
        products(ROWS[0][:3])
    with pytest.raises(EvidenceError, match="no number of rows"):
        alignments(np.zeros((2, 7)))
