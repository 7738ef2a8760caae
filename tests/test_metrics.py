"""Metrics against scikit-learn and scipy, contributions against leaving out one example at a time."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics as oracle

from tunetrial.analysis import metrics, stats
from tunetrial.core.errors import EvidenceError

CLASSIFY = {
    "accuracy": oracle.accuracy_score,
    "macro_f1": lambda t, p: oracle.f1_score(t, p, average="macro", zero_division=0),
    "mcc": oracle.matthews_corrcoef,
}
REGRESS = {
    "mae": oracle.mean_absolute_error,
    "rmse": oracle.root_mean_squared_error,
    "pearson": lambda t, p: scipy_stats.pearsonr(t, p).statistic,
    "spearman": lambda t, p: scipy_stats.spearmanr(t, p).statistic,
    "range_used": lambda t, p: (max(p) - min(p)) / (max(t) - min(t)),
}
TRUTH = ["a", "a", "a", "b", "b", "c"]
SAID = ["a", "a", "b", "b", "c", "c"]


def labels(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions that agree in about half of the rows."""
    rng = np.random.default_rng(seed)
    target = rng.integers(classes, size=n)
    said = np.where(rng.random(n) < 0.5, target, rng.integers(classes, size=n))
    return target.astype(str).astype(object), said.astype(str).astype(object)


def numbers(seed: int, n: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """Correlated targets and predictions; with ties both are rounded to halves."""
    rng = np.random.default_rng(seed)
    target = rng.normal(5, 2, size=n)
    said = 0.6 * target + rng.normal(1, 1, size=n)
    return (np.round(target * 2) / 2, np.round(said * 2) / 2) if ties else (target, said)


def pseudo_values_by_deletion(value, target, said) -> list[float]:
    n = len(target)
    without = [value(np.delete(target, e), np.delete(said, e)) for e in range(n)]
    return [n * value(target, said) - (n - 1) * w for w in without]


def test_hand_counted_values():
    value = {name: metrics.find(name).value(TRUTH, SAID) for name in CLASSIFY}
    assert value["accuracy"] == pytest.approx(4 / 6)
    assert value["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    # Six rows, four hits, label counts (3, 2, 1) and (2, 2, 2): (4 * 6 - 12) / sqrt((36 - 14) (36 - 12)).
    assert value["mcc"] == pytest.approx(12 / (22 * 24) ** 0.5)
    target, said = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 3.0, 6.0]
    value = {name: metrics.find(name).value(target, said) for name in REGRESS}
    assert value["mae"] == 1 and value["rmse"] == pytest.approx(1.5**0.5)
    assert value["pearson"] == pytest.approx(7 / (5 * 14) ** 0.5)
    assert value["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15)) and value["range_used"] == pytest.approx(5 / 3)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 6))
def test_classify_values_equal_scikit_learn(seed, n, classes):
    target, said = labels(seed, n, classes)
    for name, count in CLASSIFY.items():
        if len({*target, *said}) > 1:
            assert metrics.find(name).value(target, said) == pytest.approx(count(target, said), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(3, 40), st.booleans())
def test_regress_values_equal_scipy(seed, n, ties):
    target, said = numbers(seed, n, ties=ties)
    for name, count in REGRESS.items():
        if np.ptp(target) and np.ptp(said):
            assert metrics.find(name).value(target, said) == pytest.approx(count(target, said), abs=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(3, 14), st.integers(2, 5))
def test_classify_contributions_equal_deletion(seed, n, classes):
    target, said = labels(seed, n, classes)
    every = sorted({*target, *said})
    by_deletion = {
        "accuracy": oracle.accuracy_score,
        "macro_f1": lambda t, p: oracle.f1_score(t, p, average="macro", labels=every, zero_division=0),
        "mcc": metrics.mcc,
    }
    for name, value in by_deletion.items():
        expected = pseudo_values_by_deletion(value, target, said)
        assert metrics.find(name).contributions(target, said) == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(5, 14), st.booleans())
def test_regress_contributions_equal_deletion(seed, n, ties):
    target, said = numbers(seed, n, ties=ties)
    for name in ("mae", "rmse", "pearson", "spearman"):
        sign = 1 if metrics.find(name).higher_is_better else -1
        if any(min(np.ptp(np.delete(x, e)) for e in range(n)) == 0 for x in (target, said)):
            continue
        expected = [sign * value for value in pseudo_values_by_deletion(REGRESS[name], target, said)]
        assert metrics.find(name).contributions(target, said) == pytest.approx(expected, abs=1e-8), name


@pytest.mark.parametrize("far", [(1e5, 3e5), (1e7, 5), (5, 1e7), (1e9, 1e9)])
@pytest.mark.parametrize("name", ["rmse", "pearson"])
def test_one_far_example_does_not_drown_the_others(name, far):
    target, said = numbers(3, 12, ties=False)
    target[4], said[4] = far
    rest = [np.delete(x, 4) for x in (target, said)]
    sign = 1 if metrics.find(name).higher_is_better else -1
    without = (sign * 12 * REGRESS[name](target, said) - metrics.find(name).contributions(target, said)[4]) / 11
    assert without == pytest.approx(sign * REGRESS[name](*rest), abs=1e-9 + 1e-15 * max(far))


@pytest.mark.parametrize("name", [*CLASSIFY, "mae", "rmse", "pearson", "spearman"])
def test_contributions_average_to_the_turned_metric(name):
    metric = metrics.find(name)
    rows = labels(1, 400, 4) if name in CLASSIFY else numbers(1, 400, ties=True)
    sign = 1 if metric.higher_is_better else -1
    assert metric.contributions(*rows).mean() == pytest.approx(sign * metric.value(*rows), abs=0.01)


@pytest.mark.parametrize("name", ["macro_f1", "mcc", "rmse", "pearson", "spearman"])
def test_contributions_give_the_spread_over_new_examples(name):
    """The standard error of the pseudo-values is that of the metric over fresh splits, within a tenth."""
    metric, n = metrics.find(name), 200
    draw = (lambda s: labels(s, n, 3)) if name in CLASSIFY else (lambda s: numbers(s, n, ties=True))
    values = [metric.value(*draw(seed)) for seed in range(1000)]
    claimed = np.mean([metric.contributions(*draw(seed)).var(ddof=1) / n for seed in range(40)]) ** 0.5
    assert claimed == pytest.approx(np.std(values, ddof=1), rel=0.1)


def test_better_predictions_contribute_more_whatever_the_direction():
    target, said = numbers(2, 200, ties=False)
    for name in ("mae", "rmse", "pearson", "spearman"):
        metric = metrics.find(name)
        gain = metric.contributions(target, (said + 3 * target) / 4) - metric.contributions(target, said)
        assert stats.paired(gain).effect > 0, name


def test_undefined_is_none_and_never_zero():
    flat, varied = [2.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]
    for name in ("pearson", "spearman"):
        assert metrics.find(name).value(varied, flat) is None and metrics.find(name).value(flat, varied) is None
        with pytest.raises(EvidenceError, match=f"{name}: not defined"):
            metrics.find(name).contributions(varied, flat)
        with pytest.raises(EvidenceError, match=f"{name}: not defined"):
            metrics.find(name).contributions([1.0], [2.0])
    assert metrics.range_used(flat, varied) is None and metrics.range_used(varied, flat) == 0


def test_mcc_of_one_label_is_zero_by_its_convention():
    assert metrics.mcc(["a", "b", "b"], ["b", "b", "b"]) == 0 == oracle.matthews_corrcoef([0, 1, 1], [1, 1, 1])


def test_metrics_of_many_rows_do_not_overflow():
    target, said = labels(0, 200_000, 2)
    assert metrics.mcc(target, said) == pytest.approx(oracle.matthews_corrcoef(target, said), abs=1e-12)


def test_range_used_describes_and_decides_nothing():
    assert metrics.find("range_used").higher_is_better is None
    with pytest.raises(EvidenceError, match="range_used: describes and decides nothing"):
        metrics.find("range_used").contributions([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "target", "said", "message"),
    [
        ("accuracy", [], [], r"need one each for every example, got shapes \(0,\) and \(0,\)"),
        ("mae", [1.0, 2.0], [1.0], r"got shapes \(2,\) and \(1,\)"),
        ("mae", [1.0], [float("nan")], "predictions: must be finite, got 1 that are not"),
        ("rmse", [float("inf")], [1.0], "targets: must be finite"),
        ("accuracy", ["a", None], ["a", "a"], "labels: must be text, got None"),
        ("accuracy", ["1"], [1], "labels: must be text, got 1"),
        ("mae", ["a"], ["b"], "values: must be numbers"),
        ("mae", [None], [1.0], "targets: must be finite"),
    ],
)
def test_unusable_scores_are_refused(name, target, said, message):
    for compute in (metrics.find(name).value, metrics.find(name).contributions):
        with pytest.raises(EvidenceError, match=message):
            compute(target, said)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_that_hangs_on_one_example_is_all_its_own(name):
    """Without the one prediction that differs the rest is a constant, whose correlation counts as 0."""
    target, said = [1.0, 2.0, 3.0, 5.0, 4.0], [1.0, 1.0, 1.0, 9.0, 1.0]
    part_E, whole = metrics.find(name).contributions(target, said), metrics.find(name).value(target, said)
    assert part_E[3] == pytest.approx(5 * whole) and (part_E[[0, 1, 2, 4]] < 5 * whole).all()


@pytest.mark.parametrize("name", [*CLASSIFY, "mae", "rmse"])
def test_one_example_contributes_the_whole(name):
    rows = (["a"], ["a"]) if name in CLASSIFY else ([1.0], [3.0])
    metric = metrics.find(name)
    turn = 1 if metric.higher_is_better else -1
    assert metric.contributions(*rows).tolist() == [turn * metric.value(*rows)]


def test_names_and_kinds():
    assert [m.name for m in metrics.of_kind("classify")] == ["accuracy", "macro_f1", "mcc"]
    assert [m.name for m in metrics.of_kind("regress")] == ["mae", "rmse", "pearson", "spearman", "range_used"]
    assert not any(m.higher_is_better for m in map(metrics.find, ("mae", "rmse")))
    with pytest.raises(EvidenceError, match="metric: unknown, got 'macro-f1'; use macro_f1"):
        metrics.find("macro-f1")


def test_contributions_of_5000_examples_take_no_longer_than_a_breath():
    target, said = numbers(0, 5000, ties=True)
    start = time.process_time()
    for metric in metrics.of_kind("regress")[:-1]:
        assert np.isfinite(metric.contributions(target, said)).all()
    assert time.process_time() - start < 5
