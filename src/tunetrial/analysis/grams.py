"""Products of rows, kept so that any two models' representations of the same rows can be compared without either model.

Debiased linear CKA needs no more of a layer than the inner products of different rows: of 128 rows 8,128 numbers,
however many dimensions there are.

Axis letters: N row, D dimension, P pair of different rows, R run.
"""

import numpy as np

from tunetrial.analysis.similarity import FEWEST_ROWS, NO_SPREAD
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError


def products(x_ND: Floats) -> Floats:
    """Inner products of rows about their mean, (P,): of row 1 with 0, of 2 with 0 and 1, and so on. All 0 where rows
    differ by no more than rounding.

    Raises:
        EvidenceError: There are fewer than 4 rows.
    """
    x_ND = np.asarray(x_ND, dtype=np.float64)
    if x_ND.ndim != 2 or len(x_ND) < FEWEST_ROWS:
        raise EvidenceError(f"rows: need {FEWEST_ROWS} or more to debias, got shape {x_ND.shape}; add rows")
    centred = x_ND - x_ND.mean(axis=0)
    lower = np.tril_indices(len(x_ND), -1)
    if (centred**2).sum() <= NO_SPREAD * (x_ND**2).sum():
        return np.zeros(len(lower[0]))
    return (centred @ centred.T)[lower]


def alignments(product_RP: Floats) -> Floats:
    """Debiased linear CKA of each run with each, (R, R), as `similarity` has it; nan with a run that has none.

    Raises:
        EvidenceError: P is no number of pairs of 4 or more rows.
    Source: Szekely & Rizzo (2014), arXiv:1310.2926, definition 2: the unbiased estimate of HSIC is the mean product of
    two matrices that are centred without their diagonals.
    """
    product_RP = np.asarray(product_RP, dtype=np.float64)
    rows = round((1 + (1 + 8 * product_RP.shape[1]) ** 0.5) / 2)
    if rows * (rows - 1) // 2 != product_RP.shape[1] or rows < FEWEST_ROWS:
        raise EvidenceError(
            f"products: of no number of rows, got {product_RP.shape[1]} pairs; give all pairs of 4 rows"
        )
    lower = np.tril_indices(rows, -1)
    centred_RP = np.stack([_centred(product_P, lower, rows) for product_P in product_RP])
    shared_RR = centred_RP @ centred_RP.T
    own_R = np.diag(shared_RR)
    length_R = np.sqrt(np.where(own_R > 0, own_R, np.nan))
    return shared_RR / np.outer(length_R, length_R)


def _centred(product_P: Floats, lower: tuple, rows: int) -> Floats:
    """U-centred: each row and column without its diagonal sums to 0."""
    matrix_NN = np.zeros((rows, rows))
    matrix_NN[lower] = product_P
    matrix_NN += matrix_NN.T
    sums_N = matrix_NN.sum(axis=0)
    matrix_NN -= (sums_N[:, None] + sums_N) / (rows - 2)
    return matrix_NN[lower] + sums_N.sum() / ((rows - 1) * (rows - 2))
