"""Similarity of representations: golden values, invariances, one pass against all rows at once, and controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.analysis import similarity as measures
from tunetrial.analysis.similarity import Divergence, Pairing, rsa, shuffled, similarity
from tunetrial.core.errors import EvidenceError

MEASURES = ("cka", "cka_biased", "cosine", "change", "angle")
SMALL = np.array([[1, 0], [0, 1], [2, 1], [1, 3], [0, 2]]), np.array([[1, 1], [0, 2], [3, 1], [1, 2], [0, 0]])
WAVES = np.sin(1 + np.arange(20)[:, None] + 2 * np.arange(5)), np.cos(0.5 * np.arange(20)[:, None] + np.arange(5) ** 2)
SEEDS = st.integers(0, 10_000)
SIZES = st.sampled_from([(12, 5), (6, 9), (7, 7), (40, 3)])


def drawn(seed, size, *, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size) @ rng.normal(size=(size[1], size[1])) + 3 * rng.normal(size=size[1])
    return x, x + noise * rng.normal(size=size)


def rotation(seed, dimensions):
    return np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(dimensions, dimensions)))[0]


def by_definition(x, y):
    """Debiased CKA as HSIC by the average over all sets of four distinct rows would be: through doubly centred kernels
    without diagonal (Szekely & Rizzo 2014), written otherwise than in the package."""

    def centred(side):
        k = side @ side.T
        np.fill_diagonal(k, 0)
        n = len(k)
        rows = k.sum(1) / (n - 2)
        u = k - rows[:, None] - rows[None, :] + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(u, 0)
        return u

    k, l = centred(x), centred(y)  # noqa: E741
    return (k * l).sum() / ((k * k).sum() * (l * l).sum()) ** 0.5


def seed_formula(x, y):
    """What document 002 called CKA: ||X^T Y||^2 / (||X||^2 ||Y||^2)."""
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x) ** 2 * np.linalg.norm(y) ** 2)


def test_golden_values_of_five_rows():
    found = similarity(*SMALL)
    assert found.cka == pytest.approx(0.2946278255, abs=1e-10)
    assert found.cka_biased == pytest.approx(0.4404422540, abs=1e-10)
    parts = measures._of_rows(*(side.astype(float) for side in SMALL))
    assert parts.unbiased == pytest.approx((1 / 3, 1.6, 0.8))


def test_golden_values_of_twenty_rows():
    found = similarity(*WAVES)
    assert found.cka == pytest.approx(-0.0477023979, abs=1e-10)
    assert found.cka_biased == pytest.approx(0.0461381056, abs=1e-10)
    assert found.angle == pytest.approx(1.3592445711, abs=1e-10)
    assert 2 - 2 * np.cos(found.angle) == pytest.approx(1.5800453734, abs=1e-10)
    assert rsa(*WAVES) == pytest.approx(0.0618851, abs=1e-7)


def test_the_seed_formula_fails_where_every_measure_here_holds():
    """Of a matrix with itself it gives 1 / participation ratio; the truth is 1."""
    x = WAVES[0] - WAVES[0].mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(x.T @ x)
    assert seed_formula(x, x) == pytest.approx((eigenvalues**2).sum() / eigenvalues.sum() ** 2)
    assert seed_formula(x, x) < 0.7
    found = similarity(x, x)
    assert (found.cka, found.cka_biased, found.cosine) == pytest.approx((1, 1, 1), abs=1e-12)
    assert found.change == 0


@settings(max_examples=20)
@given(SEEDS, SIZES)
def test_debiased_cka_is_its_other_definition(seed, size):
    x, y = drawn(seed, size)
    assert similarity(x, y).cka == pytest.approx(by_definition(x, y), abs=1e-9)


@settings(max_examples=20)
@given(SEEDS, SIZES)
def test_of_itself_nothing_changed(seed, size):
    x, _ = drawn(seed, size)
    found = similarity(x, x.copy())
    assert (found.cka, found.cka_biased, found.cosine) == pytest.approx((1, 1, 1), abs=1e-10)
    assert found.change == 0
    assert found.angle < 1e-6
    assert rsa(x, x) == pytest.approx(1)


@settings(max_examples=20)
@given(SEEDS, SIZES, st.floats(0.1, 10))
def test_turned_scaled_and_shifted_rows_are_alike_to_cka_and_angle_alone(seed, size, scale):
    x, _ = drawn(seed, size)
    found = similarity(x, scale * x @ rotation(seed, size[1]) + 7)
    assert (found.cka, found.cka_biased) == pytest.approx((1, 1), abs=1e-9)
    assert found.angle < 1e-5
    assert found.change > 0.01


@settings(max_examples=20)
@given(SEEDS, SIZES, st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter_as_long_as_pairs_stay(seed, size, order):
    x, y = (side[:6] for side in drawn(seed, size))
    one, other = similarity(x, y), similarity(x[order], y[order])
    assert [getattr(one, name) for name in MEASURES] == pytest.approx([getattr(other, name) for name in MEASURES])
    assert rsa(x, y) == pytest.approx(rsa(x[order], y[order]))


@settings(max_examples=20)
@given(SEEDS)
def test_a_general_invertible_map_changes_cka(seed):
    x, _ = drawn(seed, (60, 5))
    assert similarity(x, x * np.array([30, 1, 1, 1, 0.03])).cka < 0.999


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([(40, 3), (40, 39), (12, 11)]), st.integers(1, 13))
def test_one_pass_in_batches_is_all_rows_at_once(seed, size, batch):
    """More rows than dimensions go by sums over D x D; the same rows by N x N must say the same."""
    x, y = drawn(seed, size)
    pairing = Pairing()
    for first in range(0, len(x), batch):
        pairing.add(x[first : first + batch], y[first : first + batch])
    assert pairing._sums is not None
    found, whole = pairing.value(), measures._of_rows(x, y).similarity()
    assert [getattr(found, name) for name in MEASURES] == pytest.approx(
        [getattr(whole, name) for name in MEASURES], rel=1e-9, abs=1e-9
    )
    assert found.rows == size[0]


def test_batches_far_from_zero_and_from_each_other_lose_no_digits():
    """Rows sorted by length come in batches that are unlike; a common mean of 1e4 must not show."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=(200, 8)), axis=0)
    y = x + 0.1 * rng.normal(size=x.shape)
    pairing = Pairing()
    for first in range(0, 200, 10):
        pairing.add(x[first : first + 10] + 1e4, y[first : first + 10] - 1e4)
    assert pairing.value().cka == pytest.approx(similarity(x, y).cka, abs=1e-9)


def test_the_bias_of_independent_rows_is_the_published_one_and_debiased_it_is_gone():
    """Independent normal rows give sqrt(p1 p2 / ((p1 + n) (p2 + n)))."""
    rng = np.random.default_rng(1)
    found = similarity(rng.normal(size=(300, 600)), rng.normal(size=(300, 600)))
    assert found.cka_biased == pytest.approx(600 / 900, abs=0.02)
    assert found.cka == pytest.approx(0, abs=4 * 2**0.5 / 300)


def test_a_shared_mean_does_not_pass_for_likeness():
    """Independent vectors of length 1 about a common mean of norm 10 have raw cosines of 0.99; centred they have 0."""
    rng = np.random.default_rng(2)
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in rng.normal(size=(2, 2000, 50)))
    mean = np.full(50, 10 / 50**0.5)
    raw = ((x + mean) * (y + mean)).sum() / (np.linalg.norm(x + mean) * np.linalg.norm(y + mean))
    assert raw == pytest.approx(0.990, abs=1e-3)
    assert similarity(x + mean, y + mean).cosine == pytest.approx(0, abs=0.01)


def test_shuffled_rows_share_nothing():
    x, y = drawn(3, (200, 10), noise=0.1)
    values = shuffled(x, y, draws=50, rng=np.random.default_rng(0))
    assert similarity(x, y).cka > 0.95
    assert abs(values.mean()) < 3 * values.std() / 50**0.5 + 0.005
    assert np.array_equal(values, shuffled(x, y, draws=50, rng=np.random.default_rng(0)))
    assert not np.array_equal(values, shuffled(x, y, draws=50, rng=np.random.default_rng(1)))
    order = np.random.default_rng(0).permutation(200)
    assert values[0] == pytest.approx(similarity(x, y[order]).cka)


@pytest.mark.parametrize("rows", [5, 30])
def test_rows_that_are_all_alike_have_no_similarity(rows):
    same, other = np.full((rows, 8), 0.1), np.random.default_rng(0).normal(size=(rows, 8))
    for found in (similarity(same, other), similarity(other, same)):
        assert (found.cka, found.cka_biased, found.cosine, found.angle) == (None,) * 4
    assert similarity(same, same).change is None
    assert similarity(other, same).change is not None
    assert rsa(same, other) is None
    assert shuffled(same, other, draws=1, rng=np.random.default_rng(0)) is None


def test_what_cannot_be_compared_is_refused():
    pairing = Pairing()
    with pytest.raises(EvidenceError, match="need 4 or more to debias, got 0"):
        pairing.value()
    pairing.add(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(EvidenceError, match="need 4 or more to debias, got 2"):
        pairing.value()
    with pytest.raises(EvidenceError, match="had 3 dimensions, got 4"):
        pairing.add(np.ones((2, 4)), np.ones((2, 4)))
    with pytest.raises(EvidenceError, match="shapes differ"):
        pairing.add(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(EvidenceError, match="not finite"):
        pairing.add(np.ones((1, 3)), np.array([[1, np.nan, 1]]))


def test_divergence_golden_values():
    found = Divergence()
    with np.errstate(divide="ignore"):
        found.add(np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]]))
    assert found.kl == pytest.approx(0.5108256, abs=1e-7)
    assert found.reverse_kl == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    with np.errstate(divide="ignore"):
        found.add(np.log([[0.0, 1.0]]), np.log([[0.5, 0.5]]))
    assert found.kl == pytest.approx((0.5108256 + np.log(2)) / 2, abs=1e-7)
    assert found.reverse_kl == np.inf


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 9))
def test_divergence_in_chunks_is_that_of_all_tokens(seed, chunk):
    from scipy.special import log_softmax, rel_entr

    base, tuned = (log_softmax(side, axis=1) for side in np.random.default_rng(seed).normal(size=(2, 17, 30)))
    found = Divergence()
    for first in range(0, 17, chunk):
        found.add(base[first : first + chunk], tuned[first : first + chunk])
    assert found.kl == pytest.approx(rel_entr(np.exp(base), np.exp(tuned)).sum(axis=1).mean())
    assert found.same_top == (base.argmax(1) == tuned.argmax(1)).mean()
    same = Divergence()
    same.add(base, base)
    assert (same.kl, same.reverse_kl, same.same_top) == (0, 0, 1)


def test_divergence_of_logits_or_of_nothing_is_refused():
    with pytest.raises(EvidenceError, match="not logits"):
        Divergence().add(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(EvidenceError, match="none were added"):
        _ = Divergence().kl
