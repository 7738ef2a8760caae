"""Size and ranks of updates and intruder dimensions: golden values and invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis.spectra import drawn_similarity, intruders, ranks, relative_size
from tunetrial.core.errors import EvidenceError


def nearest(base, tuned, count=10):
    """The largest |cosine| of each of the first left singular vectors with any of the base's."""
    before, after = np.linalg.svd(base)[0], np.linalg.svd(tuned)[0]
    return np.abs(before.T @ after[:, :count]).max(axis=0)


def test_ranks_golden_values():
    found = ranks(np.array([4.0, 3.0]))
    assert (found.stable, found.effective, found.participation) == pytest.approx((1.5625, 1.9796263, 1.8545994))


@given(st.integers(1, 30), st.floats(1e-6, 1e6))
def test_ranks_of_equal_directions_are_their_number_at_any_scale(count, scale):
    found = ranks(np.concatenate([np.full(count, scale), np.zeros(5)]))
    assert (found.stable, found.effective, found.participation) == pytest.approx((count,) * 3)


def test_a_matrix_of_zeros_has_no_ranks_and_no_size_to_be_relative_to():
    assert ranks(np.zeros(3)) is None
    assert relative_size(np.zeros(3), np.array([4.0, 3.0])) == (0, 0)
    assert relative_size(np.array([4.0, 3.0]), np.array([8.0, 6.0])) == pytest.approx((0.5, 0.5))
    with pytest.raises(EvidenceError, match="nothing to be relative to"):
        relative_size(np.ones(3), np.zeros(3))
    with pytest.raises(EvidenceError, match="of 0 and more"):
        ranks(np.array([1.0, -1.0]))


BASE = np.diag(np.arange(16.0, 0, -1))
ONE = np.eye(16)


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        (BASE, 0),
        (2 * BASE, 0),
        (BASE + 1000 * np.outer(np.full(16, 0.25), ONE[0]), 1),
        (BASE + 1000 * np.outer(ONE[3], ONE[3]), 0),
    ],
)
def test_intruders_golden_values(tuned, expected):
    assert intruders(nearest(BASE, tuned), tops=[10], epsilons=[0.5]) == expected


def test_a_sweep_counts_more_with_more_vectors_and_a_larger_epsilon():
    similarity_K = np.random.default_rng(0).uniform(size=20)
    counts = intruders(similarity_K)
    assert counts.shape == (4, 7)
    assert (np.diff(counts, axis=0) >= 0).all() and (np.diff(counts, axis=1) >= 0).all()
    assert counts[3, 2] == (similarity_K < 0.5).sum()
    with pytest.raises(EvidenceError, match="need 20 vectors, got 8"):
        intruders(np.ones(8))


def test_a_vector_drawn_at_random_is_as_similar_as_it_is_said_to_be():
    assert drawn_similarity(2048) == pytest.approx(0.079, abs=5e-4)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 64))
    cosines = np.abs(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert np.median(cosines.max(axis=1)) == pytest.approx(drawn_similarity(64), rel=0.02)
    assert np.median(cosines[:, :20].max(axis=1)) == pytest.approx(drawn_similarity(64, vectors=20), rel=0.02)
