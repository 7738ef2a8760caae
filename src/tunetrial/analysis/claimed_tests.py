"""Statistics, formulas and updates that a document claims, worked out again from what it gives.

p values are two-sided. Means and deviations stand for all that is written so, which makes a p a range.
"""

from ast import unparse
from collections.abc import Callable
from itertools import product
from math import inf
from statistics import median
from typing import TYPE_CHECKING

from tunetrial.analysis.claims import FITS, finding, judged
from tunetrial.core import expressions
from tunetrial.core.claims import (
    Finding,
    Formula,
    Outcome,
    Paired,
    Resolution,
    Sessions,
    Shapes,
    Spread,
    Statistic,
    Student,
    Update,
    Welch,
)
from tunetrial.core.quantities import NONE, Quantity, Said, figure, read

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05
DRAWN, WIDE = 12, 5  # rows and features of the matrices on which formulas are tried
WEIGHTS = 2**16


def statistic(claim: Statistic) -> Finding:
    return _TESTS[type(claim.test)](claim, claim.test)


def _welch(claim: Statistic, test: Welch) -> Finding:
    """Welch (1947), over every corner of what means and deviations may have been rounded from."""
    from scipy.stats import ttest_ind_from_stats

    groups = (test.a, test.b)
    if few := _few(claim, [group.n for group in groups]):
        return few
    if any(group.mean is None for group in groups):
        return finding(claim, "NOT SUPPORTED", "a mean of a group is not given")
    ends = [_ends(read(value)) for group in groups for value in (group.mean, group.sd)]
    ps = [
        ttest_ind_from_stats(a, max(b, 0), test.a.n, c, max(d, 0), test.b.n, equal_var=False).pvalue
        for a, b, c, d in product(*ends)
        if b > 0 or d > 0
    ]
    a, b = ends[0], ends[2]
    crosses = a[0] <= b[1] and b[0] <= a[1]
    shown = f"Welch's t of {test.a.mean} ± {test.a.sd} (n = {test.a.n}) and {test.b.mean} ± {test.b.sd}"
    return _of_p(claim, min(ps), 1.0 if crosses else max(ps), f"{shown} (n = {test.b.n})")


def _t(claim: Statistic, test: Student) -> Finding:
    from scipy.stats import t

    if few := _few(claim, [test.n]):
        return few
    p = 2 * t.sf(abs(test.t), test.n - 1)
    return _of_p(claim, p, p, f"t = {test.t:g} on {test.n - 1} degrees of freedom")


def _paired(claim: Statistic, test: Paired) -> Finding:
    from scipy.stats import ttest_1samp

    if few := _few(claim, [len(test.values)]):
        return few
    if len(set(test.values)) == 1:
        return finding(claim, "NOT SUPPORTED", "all differences are the same number, which has no spread to test by")
    p = ttest_1samp(test.values, 0).pvalue
    mean, middle = sum(test.values) / len(test.values), median(test.values)
    shown = f"differences {', '.join(f'{value:g}' for value in test.values)}: mean {mean:.3g}, median {middle:.3g}"
    return _of_p(claim, p, p, f"{shown}; paired t")


def _of_p(claim: Statistic, low: float, high: float, shown: str) -> Finding:
    """A claimed p, or that there is a difference, beside the p that comes out."""
    p = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g} by rounding"
    if claim.says == "differs":
        outcome: Outcome = "NOT SUPPORTED" if high >= LEVEL else "HOLDS"
    else:
        outcome = judged(read(claim.says), Quantity.of(low, high), Quantity.of(low, high))
    return finding(claim, outcome, f"{shown}: p = {p}", f"p = {p}")


def _spread(claim: Statistic, test: Spread) -> Finding:
    """The F test of two variances, and the ratio that so few runs would need."""
    from scipy.stats import f

    if few := _few(claim, [test.a.n, test.b.n]):
        return few
    free = test.a.n - 1, test.b.n - 1
    a, b = _known(read(test.a.sd)), _known(read(test.b.sd))
    exact = a.value / b.value
    ratio = exact.low
    p = 2 * min(f.sf(ratio**2, *free), f.cdf(ratio**2, *free))
    needed = f.isf(LEVEL / 2, *free) ** 0.5
    shown = f"SD {test.a.sd} over {test.b.sd} = {figure(ratio)}, n = {test.a.n} and {test.b.n}: p = {p:.2g}"
    wide = a.rounded / b.rounded if b.rounded.low > 0 else Quantity(-inf, inf)
    stated: Outcome = "HOLDS" if claim.says == "differs" else judged(read(claim.says), exact, wide)
    if stated not in FITS:
        return finding(claim, stated, shown, f"{figure(ratio)}x")
    outcome: Outcome = "HOLDS" if p < LEVEL else "NOT SUPPORTED"
    return finding(claim, outcome, f"{shown}; p < {LEVEL} would take a ratio above {needed:.3g}", f"p = {p:.2g}")


def _sessions(claim: Statistic, test: Sessions) -> Finding:
    """Student's interval over sessions, beside a number that is given as if one session were all."""
    from scipy.stats import t

    if few := _few(claim, [len(test.values)]):
        return few
    count = len(test.values)
    mean = sum(test.values) / count
    half = t.isf(0.025, count - 1) * (sum((value - mean) ** 2 for value in test.values) / (count - 1) / count) ** 0.5
    shown = f"{count} sessions {', '.join(f'{v:g}' for v in test.values)}: mean {mean:.3g}, 95 % interval"
    shown += f" {mean - half:.3g} to {mean + half:.3g}"
    said = None if claim.says == "differs" else read(claim.says)
    if said is None:
        return finding(claim, "HOLDS" if abs(mean) > half else "NOT SUPPORTED", shown)
    stated = said.value.low / said.scale
    given = (said.spread.low if said.spread else max(said.slack)) / said.scale
    if not mean - half <= stated <= mean + half:
        return finding(claim, "WRONG", shown, f"{mean:.3g}")
    outcome: Outcome = "HOLDS" if half <= given else "NOT SUPPORTED"
    return finding(claim, outcome, f"{shown}; it is stated to {given:.2g}", f"{mean:.3g} ± {half:.2g}")


def _resolution(claim: Statistic, test: Resolution) -> Finding:
    """The binomial standard error of a share, and how much too good the best of several equal settings looks."""
    error = (test.share * (1 - test.share) / test.rows) ** 0.5
    luck = expected_best(test.tried)
    shown = f"standard error of {test.rows} rows: {100 * error:.2g} points"
    if test.tried > 1:
        shown += f"; the best of {test.tried} equal settings looks up to {100 * luck * error:.3g} points too good"
    said = None if claim.says == "differs" else read(claim.says).value.low
    told = said is not None and 1.96 * error <= abs(said)
    return finding(claim, "HOLDS" if told else "NOT SUPPORTED", shown, f"± {196 * error:.3g} points")


def expected_best(tried: int) -> float:
    """Mean of the largest of so many independent standard normal numbers."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return quad(lambda x: tried * x * norm.pdf(x) * norm.cdf(x) ** (tried - 1), -8, 8)[0]


def _few(claim: Statistic, counts: list[int]) -> Finding | None:
    if min(counts) >= 2:
        return None
    return finding(claim, "NOT SUPPORTED", f"n = {min(counts)}: one run has no spread, so that nothing can be tested")


def _known(said: Said) -> Said:
    """Refuse a bound, from which no statistic follows."""
    if said.relation != "=":
        raise ValueError(f"must be a number and no bound, got {said.text!r}; give the number itself")
    return said


def _ends(said: Said) -> tuple[float, ...]:
    _known(said)
    return tuple(dict.fromkeys((said.rounded.low, said.value.low, said.rounded.high)))


_TESTS: dict[type, Callable[[Statistic, object], Finding]] = {
    Welch: _welch,
    Student: _t,
    Paired: _paired,
    Spread: _spread,
    Sessions: _sessions,
    Resolution: _resolution,
}


def formula(claim: Formula) -> Finding:
    """A formula on matrices drawn from a seed, beside what the law asks of it.

    Raises:
        ValueError: It cannot be computed.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    x, y, pads = (rng.normal(size=(rows, WIDE)) for rows in (DRAWN, DRAWN, DRAWN))
    turn = np.linalg.qr(rng.normal(size=(WIDE, WIDE)))[0]
    changed = {
        "identity": (x, x),
        "symmetry": (y, x),
        "scale": (x, 3 * y),
        "rotation": (x, y @ turn),
        "shift": (x, y + 1),
        "padding": (np.vstack([x, pads]), np.vstack([y, pads])),
    }[claim.law]
    found = _matrix_value(claim.of, *changed)
    wanted = np.ones(()) if claim.law == "identity" else _matrix_value(claim.of, x, y)
    holds = found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-9, atol=1e-9))
    told = {"identity": "of X with itself it has to be 1"}.get(claim.law, f"{claim.law} must not change it")
    came = f"{float(found):.4g}" if found.ndim == 0 else f"{found.ravel()[0]:.4g}, ..."
    was = f"{float(wanted):.4g}" if wanted.ndim == 0 else f"{wanted.ravel()[0]:.4g}, ..."
    shown = f"{claim.of} on {DRAWN} × {WIDE} normal numbers: {came}; {told}"
    shown += "" if claim.law == "identity" else f" from {was}"
    return finding(claim, "HOLDS" if holds else "WRONG", shown, came)


def _matrix_value(of: str, x: "np.ndarray", y: "np.ndarray") -> "np.ndarray":
    import numpy as np

    functions = {
        "norm": np.linalg.norm,
        "center": lambda m: m - m.mean(axis=0),
        "trace": np.trace,
        "mean": lambda m: m.mean(axis=0),
        "sqrt": np.sqrt,
        "rows": len,
    }
    try:
        with np.errstate(all="ignore"):
            body = expressions.tree(of, functions, matrices=True)
            found = np.asarray(expressions.value(body, {"X": x, "Y": y}, functions, float))
            if np.iscomplexobj(found):
                raise ValueError("a root of what is below 0")
            return found
    except (KeyError, TypeError, AttributeError, ValueError, np.linalg.LinAlgError) as error:
        what = " ".join(str(error).split())[:80]
        raise ValueError(f"of: cannot be computed of X and Y, got {what}; mend the formula") from None


class NoProduct(ValueError):
    """Matrices of shapes that do not go together."""


class _Shape:
    """The shape of a matrix, for products of any size."""

    def __init__(self, rows: int, columns: int) -> None:
        self.size = rows, columns

    @property
    def T(self) -> "_Shape":
        return _Shape(*reversed(self.size))

    def __matmul__(self, other: "_Shape") -> "_Shape":
        if self.size[1] != other.size[0]:
            raise NoProduct(f"{_cross(self.size)} times {_cross(other.size)} is no product")
        return _Shape(self.size[0], other.size[1])

    def __add__(self, other: "_Shape") -> "_Shape":
        if self.size != other.size:
            raise NoProduct(f"{_cross(self.size)} and {_cross(other.size)} cannot be added")
        return self


def _cross(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def shapes(claim: Shapes) -> Finding:
    """The shape of a product.

    Raises:
        ValueError: It names what has no shape, or is no product.
    """
    body = expressions.tree(claim.of, {}, matrices=True)
    given = {name: _Shape(*size) for name, size in claim.shapes.items()}
    if missing := sorted(expressions.names(body) - set(given)):
        raise ValueError(f"of: has no shape for {missing[0]}, got {claim.of[:40]!r}; give it under shapes")
    told = ", ".join(f"{name} {_cross(size)}" for name, size in claim.shapes.items())
    try:
        size = expressions.value(body, given, {}, float).size
    except NoProduct as error:
        return finding(claim, "WRONG", f"{told}: {error}")
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"of: must be a product of matrices, got {unparse(body)[:40]!r}; use @, + and .T") from None
    shown = f"{told}: {claim.of} is {_cross(size)}, {_cross(claim.gives)} is needed"
    return finding(claim, "HOLDS" if size == tuple(claim.gives) else "WRONG", shown, _cross(size))


def update(claim: Update) -> Finding:
    """The share of weights that a step moves, beside the share that is claimed."""
    said = read(claim.says)
    moved = Quantity.of(moved_share(claim.dtype, claim.rate, claim.spread), dimensions=NONE)
    shown = f"of weights with SD {claim.spread:g} kept in {claim.dtype} a step of {claim.rate:g} changes"
    share = f"{100 * moved.low:.2g} %"
    outcome = judged(said, moved, moved)
    return finding(claim, outcome if outcome in FITS else "NOT SUPPORTED", f"{shown} {share}", share)


def moved_share(dtype: str, rate: float, spread: float) -> float:
    """The share of normal weights that are another number of the dtype after a step of `rate` was added.

    It is of one step of Adam's size, as its first ones are; stochastic rounding and fp32 masters do not lose any.
    """
    import numpy as np
    from scipy.stats import norm

    weights = _rounded((spread * norm.ppf((np.arange(WEIGHTS) + 0.5) / WEIGHTS)).astype(np.float32), dtype)
    return float(np.mean(_rounded(weights + np.float32(rate), dtype) != weights))


def _rounded(values: "np.ndarray", dtype: str) -> "np.ndarray":
    """To the nearest number of the dtype, ties to even, as fp32."""
    import numpy as np

    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


CHECKS = {Statistic: statistic, Formula: formula, Shapes: shapes, Update: update}
