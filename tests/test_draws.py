"""Joint draws against the intervals that verdicts rest on, and against planted dependence between criteria."""

import numpy as np
import pytest

from planted import evidence, lock
from tunetrial.analysis import draws, stats
from tunetrial.analysis.board import lay_out
from tunetrial.analysis.compare import outcome, review
from tunetrial.core.errors import EvidenceError

ARMS = ("full", "lora", "other")


def board(quality=None, arms=ARMS, **planted):
    found = evidence(lock(arms), quality or dict.fromkeys(arms, 0.8), **planted)
    return lay_out(found, *review(found))


def test_differences_spread_as_far_as_the_verdicts_intervals():
    laid = board(seed_sd=0.04, rows=200)
    found = draws.jointly(laid, ARMS, ["quality"])
    amount = found.amounts("quality", np.array([laid.costs[a]["quality"].value for a in ARMS]))
    for k, arm in enumerate(ARMS[1:], start=1):
        scored = outcome(laid.evidence, "mail", arm), outcome(laid.evidence, "mail", "full")
        own = stats.crossed(scored[0].stack((1, 2, 3, 4, 5)) - scored[1].stack((1, 2, 3, 4, 5)))
        apart = amount[:, k] - amount[:, 0]
        low, high = np.quantile(apart, (0.025, 0.975))
        assert apart.mean() == pytest.approx(own.effect, abs=0.15 * own.se)
        ours, theirs = high - low, np.subtract(*reversed(own.interval(0.95)))
        assert 0.75 < ours / theirs < 1.35


def test_the_same_seed_gives_the_same_draws_and_another_does_not():
    laid = board(arms=("full", "lora"))
    one, again, other = (draws.jointly(laid, ("full", "lora"), ["quality"], seed=s) for s in (0, 0, 1))
    same, differs = (np.array_equal(one.by_seeds["quality"], x.by_seeds["quality"]) for x in (again, other))
    assert same and not differs
    assert np.array_equal(one.by_rows["quality"], again.by_rows["quality"])


def test_criteria_of_one_seed_move_together():
    """A cost that rises with a seed's quality moves with it; arms that share seeds keep what these do to both."""
    laid = board(arms=("full", "lora"), seed_sd=0.05, rows=300)
    values = {r.arm: r.values for r in laid.results}
    per_seed = {"year_usd": {arm: {s: 100 * v for s, v in own.items()} for arm, own in values.items()}}
    found = draws.jointly(laid, ("full", "lora"), ["quality", "year_usd"], per_seed=per_seed)
    for k in range(2):
        linked = np.corrcoef(found.by_seeds["quality"][:, k], found.by_seeds["year_usd"][:, k])[0, 1]
        assert linked == pytest.approx(1.0, abs=1e-6)
    expected = np.corrcoef(*(list(values[arm].values()) for arm in ("full", "lora")))[0, 1]
    got = np.corrcoef(found.by_seeds["quality"].T)[0, 1]
    assert got == pytest.approx(expected, abs=0.1)


def test_what_was_measured_once_does_not_vary():
    found = draws.jointly(board(arms=("full", "lora")), ("full", "lora"), ["quality", "train_s"])
    assert np.ptp(found.amounts("train_s", np.array([3.0, 4.0])), axis=0).tolist() == [0, 0]
    assert draws.jointly(board(arms=("full", "lora")), ("full", "lora"), ["train_s"]) == draws.Draws({}, {}, 0)


def test_arms_without_finals_in_common_cannot_be_drawn():
    with pytest.raises(EvidenceError, match="share 0 finals, 2 are needed"):
        draws.jointly(board({"full": 0.8, "lora": 0.8}), ARMS, ["quality"])


@pytest.mark.parametrize(("seed_sd", "item_sd"), [(0.03, 0.05), (0.002, 0.3)])
def test_equal_arms_are_rarely_called_first_surely(seed_sd, item_sd):
    """A/A studies, 300 of them: at 97.5 % of draws for either arm, 5 % of studies may say so (28 at most is the 99.9 %
    bound of that); seeds of the two arms share nothing, rows all but their own part."""
    rng, called, replicates, rows = np.random.default_rng(0), 0, 5, 80
    for _ in range(300):
        own = rng.normal(0, item_sd, (2, 1, rows)) + rng.normal(0, 0.1, (2, replicates, rows))
        score = rng.normal(0, 0.3, (1, 1, rows)) + rng.normal(0, seed_sd, (2, replicates, 1)) + own
        z = rng.standard_normal((draws.DRAWS, replicates))
        scale = np.sqrt((replicates - 1) / rng.chisquare(replicates - 1, draws.DRAWS))
        moved = draws._moved(score.mean(axis=2), z, scale, replicates**-0.5) + draws._by_rows(score, rng)
        lead = np.subtract(*(score.mean(axis=(1, 2)) + moved).T)
        called += max((lead > 0).mean(), (lead < 0).mean()) >= 0.975
    assert called <= 28
