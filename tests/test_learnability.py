"""The arithmetic behind the cards' tables, without training anything."""

import random
import statistics

import numpy as np
import pytest

import learnability as tool

TRUTH = [3.0, 5.0, 8.0, 2.0, 9.0, 4.0, 7.0, 6.0]
BASELINE = [5.0] * 8
RUNS = [[3.5, 5.5, 6.0, 4.0, 7.0, 4.0, 8.0, 5.0], [3.0, 6.0, 7.0, 3.0, 8.0, 5.0, 6.0, 7.0]]


def problem(senders: str) -> tool.Problem:
    rows = [{"sender": sender} for sender in senders]
    return tool.Problem("toy", "regress", [], [("", target) for target in TRUTH], rows, (), 1)


def gains() -> list[float]:
    mean_error = [statistics.mean(abs(run[i] - TRUTH[i]) for run in RUNS) for i in range(8)]
    return [abs(BASELINE[i] - TRUTH[i]) - mean_error[i] for i in range(8)]


@pytest.mark.parametrize("senders", ["abcdefgh", "aabbbcdd", "ddacbbba"])
def test_interval_equals_a_loop_that_draws_whole_senders(senders):
    effect, low, high = tool.margin_over(problem(senders), RUNS, BASELINE)
    groups = {s: [g for g, sender in zip(gains(), senders, strict=True) if sender == s] for s in senders}
    rng, means = random.Random(1), []
    for _ in range(10_000):
        drawn = [g for s in rng.choices(sorted(groups), k=len(groups)) for g in groups[s]]
        means.append(statistics.mean(drawn))
    assert effect == pytest.approx(statistics.mean(gains()), abs=1e-3)
    assert [low, high] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.06)


def test_measures_of_a_regression_by_hand():
    found = tool.measures(problem("abcdefgh"), RUNS[0])
    assert found["mae"] == pytest.approx((0.5 + 0.5 + 2 + 2 + 2 + 0 + 1 + 1) / 8)
    assert found["range_used"] == pytest.approx((8.0 - 3.5) / (9 - 2))
    assert tool.measures(problem("abcdefgh"), BASELINE)["spearman"] is None
    assert tool.own_measure(problem("abcdefgh"), TRUTH) == 0 > tool.own_measure(problem("abcdefgh"), BASELINE)


def test_a_card_without_markers_is_refused_and_one_with_them_is_filled(tmp_path):
    card = tmp_path / "card.md"
    card.write_text("before\n<!-- learnability a -->\nold\n<!-- end a -->\nafter\n")
    tool.insert(card, "a", "new")
    assert card.read_text() == "before\n<!-- learnability a -->\nnew\n<!-- end a -->\nafter\n"
    with pytest.raises(SystemExit, match="got 0; add them"):
        tool.insert(card, "b", "new")
