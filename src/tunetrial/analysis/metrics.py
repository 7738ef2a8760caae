"""Metrics of one trial on one split: targets and predictions in, a number and each example's part in it out.

`value` is the metric as published. `contributions` is turned so that higher is better, and additive: its mean is the
turned metric, for metrics that are no mean of examples up to the jackknife's bias. Differences of contributions are
what `stats.crossed` takes. To add a metric, write its two functions and one entry of `METRICS`.

Axis letter: E example. Targets and predictions are labels (text) for classify, finite numbers for regress, texts for
generate. A metric of what cannot be told from these, such as the likelihood of a target, names the columns of
`Scores.measured` that it takes. `value` and `contributions` ask any metric of a trial's scores.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import scipy  # its statistics load at first use: seconds that workers need not wait for

from tunetrial.analysis import stats, texts
from tunetrial.analysis.columns import Values, both_texts, codes, measured, numbers
from tunetrial.analysis.likelihood import bits_per_byte, bits_per_byte_parts, nll, nll_parts
from tunetrial.analysis.stats import Codes, Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Scores
from tunetrial.core.study import Kind


@dataclass(frozen=True)
class Metric:
    """A measure of predictions against targets.

    `title` is the name as text spells it. `value` is None where the metric is not defined, never 0 in its stead.
    `contributions` (shape (E,), higher is better) raises EvidenceError there and is defined wherever `value` is: where
    leaving one example out makes a correlation undefined, that one counts as the 0 of a constant. `higher_is_better`
    is None for a metric that only describes: it decides nothing, and asking for its contributions is an error. Both
    raise EvidenceError on unequal lengths, on no examples, on labels that are no text and on numbers that are not
    finite. Both take `columns` of `Scores.measured` after targets and predictions. `constant` is the answer that a
    trained arm must beat: the best constant one, an empty one (worth 0) where the target is not looked at, or none.
    `is_mean` says whether the metric is a mean over examples (or over their tokens or bytes), and so means the same on
    however few of them.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    unit: str
    higher_is_better: bool | None
    value: Callable[..., float | None]
    contributions: Callable[..., Floats]
    columns: tuple[str, ...] = ()
    constant: Literal["best", "empty"] | None = "best"
    is_mean: bool = True


def find(name: str) -> Metric:
    """Return the metric of this name; EvidenceError with the nearest names if there is none."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS) or METRICS
        raise EvidenceError(f"metric: unknown, got {name!r}; use {' or '.join(near)}")
    return METRICS[name]


def value(metric: Metric, scores: Scores) -> float | None:
    """The metric of a trial's scores; None where it is not defined or was not measured.

    Raises:
        EvidenceError: As `Metric.value`.
    """
    columns = [scores.measured.get(name) for name in metric.columns]
    if any(column is None for column in columns):
        return None
    return metric.value(scores.target_E, scores.prediction_E, *columns)


def contributions(metric: Metric, scores: Scores) -> Floats:
    """Each example's part in the metric, shape (E,), higher is better.

    Raises:
        EvidenceError: As `Metric.contributions`, or it was not measured.
    """
    missing = [name for name in metric.columns if name not in scores.measured]
    if missing:
        raise EvidenceError(f"{metric.name}: not measured, got scores without {missing[0]!r}; run the trial again")
    return metric.contributions(
        scores.target_E, scores.prediction_E, *(scores.measured[name] for name in metric.columns)
    )


def of_kind(kind: Kind) -> tuple[Metric, ...]:
    """All metrics that a kind of task is measured by; those that only describe come last."""
    return tuple(metric for metric in METRICS.values() if kind in metric.kinds)


def accuracy(target_E: Values, prediction_E: Values) -> float:
    """Share of examples whose label is right."""
    return float(_hits(target_E, prediction_E).mean())


def _hits(target_E: Values, prediction_E: Values) -> Floats:
    target_E, prediction_E, _ = codes(target_E, prediction_E)
    return (target_E == prediction_E).astype(np.float64)


def macro_f1(target_E: Values, prediction_E: Values) -> float:
    """Mean F1 over the labels that occur among targets or predictions, as scikit-learn's `average="macro"`."""
    target_E, prediction_E, classes = codes(target_E, prediction_E)
    return stats.macro_f1(prediction_E, target_E, classes)


def _macro_f1_parts(target_E: Values, prediction_E: Values) -> Floats:
    """Pseudo-values; the labels averaged over stay those of the whole split when an example is left out."""
    target_E, prediction_E, classes = codes(target_E, prediction_E)
    return stats.macro_f1_pseudo_values(prediction_E, target_E, classes)


def mcc(target_E: Values, prediction_E: Values) -> float:
    """Matthews correlation, for any number of labels R_K (Gorodkin 2004).

    0 where it would be 0/0, that is when either side names one label only: the limit of its definition (Chicco &
    Jurman 2020) and scikit-learn's value.
    """
    target_E, prediction_E, classes = codes(target_E, prediction_E)
    true_C, said_C = (np.bincount(codes, minlength=classes) for codes in (target_E, prediction_E))
    hits = np.count_nonzero(target_E == prediction_E)
    return float(_r_k(len(target_E), hits, true_C @ said_C, true_C @ true_C, said_C @ said_C))


def _mcc_parts(target_E: Values, prediction_E: Values) -> Floats:
    """Pseudo-values, exact by removing one example from the counts of R_K: O(E)."""
    whole = mcc(target_E, prediction_E)
    target_E, prediction_E, classes = codes(target_E, prediction_E)
    true_C, said_C = (np.bincount(codes, minlength=classes) for codes in (target_E, prediction_E))
    hit_E = (target_E == prediction_E).astype(np.int64)
    without_E = _r_k(
        len(target_E) - 1,
        hit_E.sum() - hit_E,
        true_C @ said_C - said_C[target_E] - true_C[prediction_E] + hit_E,
        true_C @ true_C - 2 * true_C[target_E] + 1,
        said_C @ said_C - 2 * said_C[prediction_E] + 1,
    )
    return _pseudo_values(whole, without_E)


def _r_k(n: int, hits: Codes, true_said: Codes, true_true: Codes, said_said: Codes) -> Floats:
    """R_K from hits and the inner products of the label counts of both sides."""
    square = np.asarray(n * n - true_true, dtype=np.float64) * np.asarray(n * n - said_said, dtype=np.float64)
    return np.divide(hits * n - true_said, np.sqrt(square), out=np.zeros(square.shape), where=square > 0)


def mae(target_E: Values, prediction_E: Values) -> float:
    """Mean absolute error, in the unit of the target."""
    return float(-_turned_errors(target_E, prediction_E).mean())


def _turned_errors(target_E: Values, prediction_E: Values) -> Floats:
    target_E, prediction_E = numbers(target_E, prediction_E)
    return -np.abs(prediction_E - target_E)


def rmse(target_E: Values, prediction_E: Values) -> float:
    """Root of the mean squared error, in the unit of the target."""
    return float((_turned_errors(target_E, prediction_E) ** 2).mean() ** 0.5)


def _rmse_parts(target_E: Values, prediction_E: Values) -> Floats:
    """Minus the pseudo-values. O(E); sums before and after an example, for a difference would lose small errors."""
    square_E = _turned_errors(target_E, prediction_E) ** 2
    before_E, after_E = (np.concatenate(([0.0], np.cumsum(s)[:-1])) for s in (square_E, square_E[::-1]))
    without_E = ((before_E + after_E[::-1]) / max(len(square_E) - 1, 1)) ** 0.5
    return -_pseudo_values(square_E.mean() ** 0.5, without_E)


def pearson(target_E: Values, prediction_E: Values) -> float | None:
    """Pearson correlation; None when either side is all equal."""
    return _correlation(*numbers(target_E, prediction_E))


def _pearson_parts(target_E: Values, prediction_E: Values) -> Floats:
    """Pseudo-values by taking one example out of the centred sums: O(E).

    Where one example carries all but a millionth of a sum the difference is rounding, so it is counted afresh.
    """
    target_E, prediction_E = numbers(target_E, prediction_E)
    whole, n = _defined("pearson", _correlation(target_E, prediction_E)), len(target_E)
    x_E, y_E = _centred(target_E), _centred(prediction_E)
    share = n / (n - 1)
    xx_E, yy_E = x_E @ x_E - share * x_E**2, y_E @ y_E - share * y_E**2
    lost_E = (xx_E < 1e-6 * (x_E @ x_E)) | (yy_E < 1e-6 * (y_E @ y_E))
    square_E = np.where(lost_E, 1.0, xx_E * yy_E)
    without_E = (x_E @ y_E - share * x_E * y_E) / square_E**0.5
    for e in np.flatnonzero(lost_E):
        without_E[e] = _correlation(np.delete(target_E, e), np.delete(prediction_E, e)) or 0.0
    return _pseudo_values(whole, without_E)


def spearman(target_E: Values, prediction_E: Values) -> float | None:
    """Spearman correlation, ties at their mean rank; None when either side is all equal."""
    return _correlation(*(scipy.stats.rankdata(values) for values in numbers(target_E, prediction_E)))


def _spearman_parts(target_E: Values, prediction_E: Values) -> Floats:
    """Pseudo-values: Pearson's of the ranks as they are once an example is gone. O(E log E).

    Without example e the rank of j falls by a_ej: 1 if j lies above e, 1/2 if they are tied. All sums are exact.
    """
    x_E, y_E = numbers(target_E, prediction_E)
    whole = _defined("spearman", spearman(x_E, y_E))
    rank_E, rank2_E, n = scipy.stats.rankdata(x_E), scipy.stats.rankdata(y_E), len(x_E) - 1
    fallen_E = _sum_above(x_E, rank2_E) + _sum_above(y_E, rank_E)
    own_E = (rank_E - 0.5) * (rank2_E - 0.5)
    product_E = rank_E @ rank2_E - fallen_E + _both_above(x_E, y_E) - own_E - n * ((n + 1) / 2) ** 2
    square_E = _rank_squares_without(x_E) * _rank_squares_without(y_E)
    without_E = np.divide(product_E, square_E**0.5, out=np.zeros(len(square_E)), where=square_E > 0)
    return _pseudo_values(whole, without_E)


def _sum_above(x_E: Floats, weight_E: Floats) -> Floats:
    """For every example the sum of the weights of those above it, ties (itself too) by half."""
    _, code_E = np.unique(x_E, return_inverse=True)
    weight_C = np.bincount(code_E, weight_E)
    return (weight_C.sum() - np.cumsum(weight_C) + weight_C / 2)[code_E]


def _both_above(x_E: Floats, y_E: Floats) -> Floats:
    """For every example the number above it on both sides; a tie counts half on its side."""
    x_E, y_E = (np.unique(v, return_inverse=True)[1] for v in (x_E, y_E))
    falling_E = y_E[np.argsort(-x_E, kind="stable")]
    at_least_C = np.cumsum(np.bincount(x_E)[::-1])[::-1]  # examples that lie at x or above
    ends = (at_least_C[x_E], np.append(at_least_C, 0)[x_E + 1])
    return sum(end_E - _below(falling_E, end_E, bound_E) for end_E in ends for bound_E in (y_E, y_E + 1)) / 4


def _below(value_E: Codes, end_Q: Codes, bound_Q: Codes) -> Codes:
    """For every query how many of the first `end` values are less than `bound`, O((E + Q) log E).

    Source: the wavelet matrix (Claude, Navarro and Ordóñez 2015): values are parted by one bit after the other.
    """
    count_Q, begin_Q = np.zeros_like(end_Q), np.zeros_like(end_Q)
    for bit in reversed(range(int(bound_Q.max()).bit_length())):
        one_E = value_E >> bit & 1
        zeros_before = np.concatenate(([0], np.cumsum(1 - one_E)))
        first, last = zeros_before[begin_Q], zeros_before[end_Q]
        beyond_Q = (bound_Q >> bit & 1).astype(bool)
        count_Q += np.where(beyond_Q, last - first, 0)
        begin_Q = np.where(beyond_Q, zeros_before[-1] + begin_Q - first, first)
        end_Q = np.where(beyond_Q, zeros_before[-1] + end_Q - last, last)
        value_E = np.concatenate((value_E[one_E == 0], value_E[one_E == 1]))
    return count_Q


def _rank_squares_without(x_E: Floats) -> Floats:
    """Sum of squared deviations of the tied ranks of all others, for every example (Kendall 1945)."""
    _, code_E, size_C = np.unique(x_E, return_inverse=True, return_counts=True)
    n, tied_C = len(x_E) - 1, size_C.astype(np.float64) ** 3 - size_C
    left_E = size_C[code_E] - 1.0
    return (n**3 - n - (tied_C.sum() - tied_C[code_E] + left_E**3 - left_E)) / 12


def range_used(target_E: Values, prediction_E: Values) -> float | None:
    """Largest minus smallest prediction, as a share of the same of the targets; None when the targets are all equal.

    It describes and does not judge: 0 is a model that says one number, and more than 1 is not better than 1.
    """
    target_E, prediction_E = numbers(target_E, prediction_E)
    spread = np.ptp(target_E)
    return float(np.ptp(prediction_E) / spread) if spread > 0 else None


def _describes(name: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*_: Values) -> NoReturn:
        raise EvidenceError(f"{name}: describes and decides nothing, got a request for contributions; use {instead}")

    return refuse


def _mean_of(name: str, title: str, unit: str, score: Callable[[str, str], float], **settings) -> Metric:
    """A mean over examples of a score of target and completion; not defined where a target is none for it."""

    def part_E(target_E: Values, prediction_E: Values) -> Floats:
        target_E, prediction_E = both_texts(target_E, prediction_E)
        if _fault(name, target_E):
            raise EvidenceError(f"{name}: not defined, got a target with {_fault(name, target_E)}; use another metric")
        return np.array([score(*pair) for pair in zip(target_E, prediction_E, strict=True)])

    def value(target_E: Values, prediction_E: Values) -> float | None:
        target_E, prediction_E = both_texts(target_E, prediction_E)
        if _fault(name, target_E) or texts.missing_library(name):
            return None
        return float(part_E(target_E, prediction_E).mean())

    return Metric(name, title, ("generate",), unit, True, value, part_E, **settings)


def _fault(name: str, target_E: list[str]) -> str | None:
    return next((fault for target in target_E if (fault := texts.fault(name, target))), None)


def _corpus_bleu(target_E: Values, prediction_E: Values) -> float:
    return texts.corpus_bleu(*both_texts(target_E, prediction_E))


def _measured_share(name: str, title: str) -> Metric:
    """The share of examples of which a column says 1."""

    def part_E(target_E: Values, prediction_E: Values, column_E: Values) -> Floats:
        return measured(target_E, column_E)[0]

    def value(target_E: Values, prediction_E: Values, column_E: Values) -> float:
        return float(part_E(target_E, prediction_E, column_E).mean())

    return Metric(name, title, ("generate",), "share", True, value, part_E, columns=(name,), constant="empty")


def _centred(x_E: Floats) -> Floats:
    """Deviations from the mean, scaled to 1 at the largest so that no square is lost."""
    deviation_E = x_E - x_E.mean()
    return deviation_E / np.abs(deviation_E).max()


def _correlation(x_E: Floats, y_E: Floats) -> float | None:
    if np.ptp(x_E) == 0 or np.ptp(y_E) == 0:
        return None
    x_E, y_E = _centred(x_E), _centred(y_E)
    return float(np.clip(x_E @ y_E / (x_E @ x_E * (y_E @ y_E)) ** 0.5, -1, 1))


def _defined(name: str, value: float | None) -> float:
    if value is None:
        raise EvidenceError(f"{name}: not defined, targets or predictions are all equal; judge this trial by mae")
    return value


def _pseudo_values(whole: float, without_E: Floats) -> Floats:
    """n θ - (n - 1) θ₋ₑ (Tukey 1958)."""
    n = len(without_E)
    return n * whole - (n - 1) * without_E


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", ("classify",), "share", True, accuracy, _hits),
        Metric("macro_f1", "macro-F1", ("classify",), "F1", True, macro_f1, _macro_f1_parts, is_mean=False),
        Metric("mcc", "MCC", ("classify",), "correlation", True, mcc, _mcc_parts, is_mean=False),
        Metric("mae", "MAE", ("regress",), "target units", False, mae, _turned_errors),
        Metric("rmse", "RMSE", ("regress",), "target units", False, rmse, _rmse_parts, is_mean=False),
        Metric("pearson", "Pearson r", ("regress",), "correlation", True, pearson, _pearson_parts, is_mean=False),
        Metric("spearman", "Spearman ρ", ("regress",), "correlation", True, spearman, _spearman_parts, is_mean=False),
        Metric(
            *("range_used", "range used", ("regress",), "share of the targets' range", None, range_used),
            _describes("range_used", "mae"),
            is_mean=False,
        ),
        _mean_of("chrf", "chrF", "fraction", texts.chrf),
        _mean_of("exact_match", "exact match", "share", texts.exact_match),
        _mean_of("numeric_match", "numeric match", "share", texts.numeric_match),
        _mean_of("token_f1", "token F1", "F1", texts.token_f1),
        _mean_of("rouge_l", "ROUGE-L", "F1", texts.rouge_l),
        _mean_of("bleu", "sentence BLEU", "fraction", texts.bleu),
        _mean_of("field_accuracy", "field accuracy", "share", texts.field_accuracy),
        _mean_of("valid_json", "valid JSON", "share", texts.valid_json, constant="empty"),
        _measured_share("schema_valid", "schema validity"),
        _measured_share("tests_pass", "tests passed"),
        Metric(
            *("nll", "NLL", ("generate",), "nats a token", False, nll, nll_parts),
            columns=("nll", "tokens"),
            constant=None,
        ),
        Metric(
            *("bits_per_byte", "bits per byte", ("generate",), "bits a byte", False),
            *(bits_per_byte, bits_per_byte_parts),
            columns=("nll",),
            constant=None,
        ),
        Metric(
            *("corpus_bleu", "corpus BLEU", ("generate",), "fraction", None, _corpus_bleu),
            _describes("corpus_bleu", "bleu"),
            is_mean=False,
        ),
    )
}
