"""How alike two models' representations of the same rows are, in one pass over the rows.

    pairing = Pairing()
    for x_ND, y_ND in batches:          # the base's states of some rows, and the tuned model's of the same
        pairing.add(x_ND, y_ND)
    pairing.value().cka

Both models share a basis, since one was trained from the other, so plain distances mean something beside measures that
ignore rotations. No measure is read alone: debiased CKA ignores rotation and scale and says little of small changes, an
outlier can move it with the function unchanged (Davari et al. 2023, arXiv:2210.16156), and representations may turn
while outputs stay. Nothing here says whether a change is good or bad, nor what a model outputs: `Divergence` does the
latter. Rows are taken as drawn independently; of several tokens of a sequence, which are not, the debiasing is
approximate.

Axis letters: N row, D dimension, T token, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # its statistics load at first use

from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.records import Record

FEWEST_ROWS = 4
NO_SPREAD = 1e-20


class Similarity(Record):
    """Of N rows x before and y after, None where a side has no spread (all its rows are alike).

    `cka`: linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414) by the unbiased estimator of HSIC
    (Song et al. 2012; Nguyen et al. 2021, arXiv:2010.15327): 1 where y is x turned, scaled and shifted, about 0 where
    they share nothing; may be below 0. `cka_biased`: by the biased estimator, which is far above 0 where N is not much
    above D though nothing is shared. `cosine`: of the two centred matrices, which is the mean of rows' cosines weighted
    by their lengths. `change`: ||y - x|| / ||x - mean x||, Frobenius norms: 0 only where nothing changed. `angle`:
    arccos(||x^T y||_* / (||x|| ||y||)) of the centred matrices in radians, what no rotation can undo (Williams et al.
    2021, arXiv:2110.14739); rounding leaves about 1e-7 of it where nothing changed.
    """

    rows: int
    cka: float | None
    cka_biased: float | None
    cosine: float | None
    change: float | None
    angle: float | None


class Pairing:
    """What two models made of the same rows: memory is that of D x D matrices however many rows are added.

    Rows are held while they are no more than dimensions, since N x N products are then the smaller ones; from there on
    sums are, in fp64. Both give the same numbers.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._held: list[tuple[Floats, Floats]] = []
        self._sums: _Sums | None = None

    def add(self, x_ND: Floats, y_ND: Floats) -> None:
        """Add rows: [n] of both are of the same row.

        Raises:
            EvidenceError: The shapes differ, among each other or from before, or a value is not finite.
        """
        x_ND, y_ND = _checked(x_ND, y_ND)
        held = self._held[0][0].shape[1] if self._held else self._sums and len(self._sums.x_shift_D)
        if held and held != x_ND.shape[1]:
            raise EvidenceError(f"rows: other rows had {held} dimensions, got {x_ND.shape[1]}; compare one layer")
        if len(x_ND) == 0:
            return
        self.rows += len(x_ND)
        if self._sums is not None:
            self._sums.add(x_ND, y_ND)
            return
        self._held.append((x_ND, y_ND))
        if self.rows > x_ND.shape[1]:
            x_ND, y_ND = self._all_held()
            self._sums, self._held = _Sums(x_ND.mean(axis=0), y_ND.mean(axis=0)), []
            self._sums.add(x_ND, y_ND)

    def value(self) -> Similarity:
        """Every measure of the rows so far.

        Raises:
            EvidenceError: There are fewer than 4 rows.
        """
        if self.rows < FEWEST_ROWS:
            raise EvidenceError(f"rows: need {FEWEST_ROWS} or more to debias, got {self.rows}; add rows")
        return (_of_rows(*self._all_held()) if self._sums is None else self._sums.parts(self.rows)).similarity()

    def _all_held(self) -> tuple[Floats, Floats]:
        xs, ys = zip(*self._held, strict=True)
        return np.concatenate(xs), np.concatenate(ys)


def similarity(x_ND: Floats, y_ND: Floats) -> Similarity:
    """Every measure of rows that are all at hand."""
    pairing = Pairing()
    pairing.add(x_ND, y_ND)
    return pairing.value()


def rsa(x_ND: Floats, y_ND: Floats) -> float | None:
    """Representational similarity: Spearman's correlation of the Euclidean distances between all pairs of rows.

    It takes all rows at once and N**2 memory: ask it of a sample. None where all distances of a side are equal.
    Source: Kriegeskorte et al. (2008).
    """
    distances = [scipy.spatial.distance.pdist(side) for side in _checked(x_ND, y_ND)]
    if min(map(len, distances)) < 2 or any(np.ptp(side) == 0 for side in distances):
        return None
    return float(np.corrcoef([scipy.stats.rankdata(side) for side in distances])[0, 1])


def shuffled(x_ND: Floats, y_ND: Floats, *, draws: int, rng: np.random.Generator) -> Floats | None:
    """Debiased CKA of x and y with the rows of y in another order, (draws,): what it shows where nothing is shared.

    Its mean is about 0 if rows were drawn independently, its spread what chance alone makes at this number of rows.
    None where in their own order they have no debiased CKA.

    Raises:
        EvidenceError: There are fewer than 4 rows.
    """
    x_ND, y_ND = _checked(x_ND, y_ND)
    if len(x_ND) < FEWEST_ROWS:
        raise EvidenceError(f"rows: need {FEWEST_ROWS} or more to debias, got {len(x_ND)}; add rows")
    centred = [side - side.mean(axis=0) for side in (x_ND, y_ND)]
    k_NN, l_NN = (_hollow(side @ side.T) for side in centred)
    own = _hsic_of_grams(k_NN, k_NN), _hsic_of_grams(l_NN, l_NN)
    spread = [_spread((c**2).sum(), (side**2).sum()) for c, side in zip(centred, (x_ND, y_ND), strict=True)]
    if min(own) <= 0 or not all(spread):
        return None
    scale = (own[0] * own[1]) ** 0.5
    orders = (rng.permutation(len(x_ND)) for _ in range(draws))
    return np.array([_hsic_of_grams(k_NN, l_NN[np.ix_(order, order)]) / scale for order in orders])


class Divergence:
    """How far the tuned model's distributions of the next token are from the base's, over tokens added in chunks."""

    def __init__(self) -> None:
        self.tokens, self._forward, self._reverse, self._same = 0, 0.0, 0.0, 0

    def add(self, base_TV: Floats, tuned_TV: Floats) -> None:
        """Add tokens' log-probabilities in nats.

        Raises:
            EvidenceError: The shapes differ, or a row's probabilities do not sum to 1 within 1e-3.
        """
        base_TV, tuned_TV = (np.asarray(side, dtype=np.float64) for side in (base_TV, tuned_TV))
        if base_TV.shape != tuned_TV.shape or base_TV.ndim != 2:
            raise EvidenceError(f"tokens: shapes differ, got {base_TV.shape} and {tuned_TV.shape}; compare one text")
        for side in (base_TV, tuned_TV):
            if not np.allclose(np.exp(side).sum(axis=1), 1, atol=1e-3):
                raise EvidenceError("tokens: probabilities do not sum to 1; give log-probabilities, not logits")
        self.tokens += len(base_TV)
        self._forward += _relative_entropy(base_TV, tuned_TV)
        self._reverse += _relative_entropy(tuned_TV, base_TV)
        self._same += int((base_TV.argmax(axis=1) == tuned_TV.argmax(axis=1)).sum())

    @property
    def kl(self) -> float:
        """KL(base || tuned): mean over tokens of the sum over v of p0 log(p0 / p), in nats; infinite where the tuned
        model rules out what the base does not."""
        return self._forward / self._counted()

    @property
    def reverse_kl(self) -> float:
        """KL(tuned || base), nats a token."""
        return self._reverse / self._counted()

    @property
    def same_top(self) -> float:
        """Share of tokens at which both find the same next token likeliest."""
        return self._same / self._counted()

    def _counted(self) -> int:
        if self.tokens == 0:
            raise EvidenceError("tokens: none were added, got 0; add log-probabilities first")
        return self.tokens


def _relative_entropy(p_TV: Floats, q_TV: Floats) -> float:
    possible = np.isfinite(p_TV)
    terms = np.exp(p_TV, where=possible, out=np.zeros_like(p_TV))
    return float((terms[possible] * (p_TV[possible] - q_TV[possible])).sum())


def _checked(x_ND: Floats, y_ND: Floats) -> tuple[Floats, Floats]:
    x_ND, y_ND = (np.asarray(side, dtype=np.float64) for side in (x_ND, y_ND))
    if x_ND.ndim != 2 or x_ND.shape != y_ND.shape:
        raise EvidenceError(f"rows: shapes differ or are no matrices, got {x_ND.shape} and {y_ND.shape}; pair the rows")
    if not (np.isfinite(x_ND).all() and np.isfinite(y_ND).all()):
        raise EvidenceError("rows: some values are not finite; leave out runs that diverged")
    return x_ND, y_ND


@dataclass(frozen=True)
class _Parts:
    """What all measures are made of: HSIC by both estimators (up to one factor each) of x with y, x with x, y with y;
    of the centred matrices the inner product, squared norms and the nuclear norm of x^T y; the squared norm of y - x;
    and those of the matrices as they came."""

    rows: int
    unbiased: tuple[float, float, float]
    biased: tuple[float, float, float]
    inner: float
    squares: tuple[float, float]
    nuclear: float
    moved: float
    raw: tuple[float, float]

    def similarity(self) -> Similarity:
        spread = [_spread(centred, raw) for centred, raw in zip(self.squares, self.raw, strict=True)]
        length = (self.squares[0] * self.squares[1]) ** 0.5 if all(spread) else None
        return Similarity(
            rows=self.rows,
            cka=_alignment(*self.unbiased) if length else None,
            cka_biased=_alignment(*self.biased) if length else None,
            cosine=self.inner / length if length else None,
            change=(self.moved / self.squares[0]) ** 0.5 if spread[0] else None,
            angle=float(np.arccos(np.clip(self.nuclear / length, -1, 1))) if length else None,
        )


def _spread(centred: float, raw: float) -> bool:
    """Whether rows differ by more than rounding, from their squared norm about their mean and about 0."""
    return bool(centred > NO_SPREAD * raw)


def _alignment(xy: float, xx: float, yy: float) -> float | None:
    """Of HSIC of x and y, x and x, y and y; the unbiased estimate of the last two may fail to be above 0."""
    return xy / (xx * yy) ** 0.5 if min(xx, yy) > 0 else None


def _of_rows(x_ND: Floats, y_ND: Floats) -> _Parts:
    """By products of N x N."""
    x, y = x_ND - x_ND.mean(axis=0), y_ND - y_ND.mean(axis=0)
    k_NN, l_NN = x @ x.T, y @ y.T
    hollow = _hollow(k_NN), _hollow(l_NN)
    left, right = (np.linalg.qr(side.T, mode="r") for side in (x, y))  # x^T y = Q_x (left right^T) Q_y^T
    return _Parts(
        rows=len(x),
        unbiased=tuple(_hsic_of_grams(hollow[a], hollow[b]) for a, b in ((0, 1), (0, 0), (1, 1))),
        biased=(float((k_NN * l_NN).sum()), float((k_NN**2).sum()), float((l_NN**2).sum())),
        inner=float((x * y).sum()),
        squares=(float((x**2).sum()), float((y**2).sum())),
        nuclear=float(np.linalg.svd(left @ right.T, compute_uv=False).sum()),
        moved=float(((y_ND - x_ND) ** 2).sum()),
        raw=(float((x_ND**2).sum()), float((y_ND**2).sum())),
    )


def _hollow(k_NN: Floats) -> Floats:
    """The same with a diagonal of zeros."""
    return k_NN - np.diag(np.diag(k_NN))


def _hsic_of_grams(k_NN: Floats, l_NN: Floats) -> float:
    """The unbiased estimate of HSIC, of kernels without their diagonals (Song et al. 2012, equation 5)."""
    of_k_N, of_l_N = k_NN.sum(axis=0), l_NN.sum(axis=0)
    return _hsic(len(k_NN), float((k_NN * l_NN).sum()), of_k_N.sum() * of_l_N.sum(), float(of_k_N @ of_l_N))


def _hsic(rows: int, trace: float, sums: float, chain: float) -> float:
    """Of K and L without diagonals: tr(K L), 1^T K 1 * 1^T L 1 and 1^T K L 1."""
    n = rows
    return float((trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * chain) / (n * (n - 3)))


class _Sums:
    """Sums over rows that were shifted by means of the first ones: no measure but lengths depends on a shift, and sums
    of numbers far from 0 would lose digits."""

    def __init__(self, x_shift_D: Floats, y_shift_D: Floats) -> None:
        self.x_shift_D, self.y_shift_D = x_shift_D, y_shift_D
        self.xy, self.xx, self.yy = (_Cross(len(x_shift_D)) for _ in range(3))
        self.moved = self.x_raw = self.y_raw = 0.0

    def add(self, x_ND: Floats, y_ND: Floats) -> None:
        self.moved += float(((y_ND - x_ND) ** 2).sum())
        self.x_raw += float((x_ND**2).sum())
        self.y_raw += float((y_ND**2).sum())
        x, y = x_ND - self.x_shift_D, y_ND - self.y_shift_D
        self.xy.add(x, y)
        self.xx.add(x, x)
        self.yy.add(y, y)

    def parts(self, rows: int) -> _Parts:
        crosses = self.xy, self.xx, self.yy
        centred_DD = [cross.centred(rows) for cross in crosses]
        return _Parts(
            rows=rows,
            unbiased=tuple(cross.hsic(rows) for cross in crosses),
            biased=tuple(float((product_DD**2).sum()) for product_DD in centred_DD),
            inner=float(np.trace(centred_DD[0])),
            squares=(float(np.trace(centred_DD[1])), float(np.trace(centred_DD[2]))),
            nuclear=float(np.linalg.svd(centred_DD[0], compute_uv=False).sum()),
            moved=self.moved,
            raw=(self.x_raw, self.y_raw),
        )


class _Cross:
    """Sums over rows a and b: of a^T b, a, b, and with the squared lengths of both: |a|^2, |b|^2, their product,
    |a|^2 b and |b|^2 a."""

    def __init__(self, dimensions: int) -> None:
        self.product_DD = np.zeros((dimensions, dimensions))
        self.a_D, self.b_D, self.weighted_a_D, self.weighted_b_D = np.zeros((4, dimensions))
        self.a_squares = self.b_squares = self.both_squares = 0.0

    def add(self, a_ND: Floats, b_ND: Floats) -> None:
        a_squares_N, b_squares_N = (np.einsum("nd,nd->n", side, side) for side in (a_ND, b_ND))
        self.product_DD += a_ND.T @ b_ND
        self.a_D += a_ND.sum(axis=0)
        self.b_D += b_ND.sum(axis=0)
        self.weighted_a_D += b_squares_N @ a_ND
        self.weighted_b_D += a_squares_N @ b_ND
        self.a_squares += float(a_squares_N.sum())
        self.b_squares += float(b_squares_N.sum())
        self.both_squares += float(a_squares_N @ b_squares_N)

    def centred(self, rows: int) -> Floats:
        return self.product_DD - np.outer(self.a_D, self.b_D) / rows

    def hsic(self, rows: int) -> float:
        """The unbiased estimate of linear HSIC without any matrix of rows by rows.

        With K = A A^T and L = B B^T less their diagonals: tr(K L) = ||A^T B||^2 - sum of |a|^2 |b|^2, 1^T K 1 =
        |sum a|^2 - sum of |a|^2, and 1^T K L 1 follows from the sums in the same way.
        """
        trace = float((self.product_DD**2).sum()) - self.both_squares
        sums = (self.a_D @ self.a_D - self.a_squares) * (self.b_D @ self.b_D - self.b_squares)
        chain = self.a_D @ self.product_DD @ self.b_D - self.b_D @ self.weighted_b_D - self.a_D @ self.weighted_a_D
        return _hsic(rows, trace, sums, chain + self.both_squares)
