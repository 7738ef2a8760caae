"""What a study can find out: against golden values, an independent integral, and verdicts of simulated studies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from planted import evidence, lock
from tunetrial.analysis import rates, stats, verdict
from tunetrial.analysis.compare import review
from tunetrial.core.errors import EvidenceError
from tunetrial.engine.sim import SimEngine
from tunetrial.plan import chances
from tunetrial.plan.chances import Levels
from tunetrial.plan.noise import observed, pilot
from tunetrial.plan.power import Power, Prior, power, power_of, prior_of, rows_needed
from tunetrial.trial import simulated

USUAL = prior_of("accuracy")


# Golden values and independent counts


@pytest.mark.parametrize(("arms", "rows"), [(1, 33.36713), (2, 63.76561)])
def test_the_detectable_effect_has_the_sizes_that_statsmodels_has(arms, rows):
    """Half a standard deviation, 80 % power: pairs (one difference each), and rows an arm of two unpaired ones."""

    def shortfall(n):
        return stats.detectable_effect((arms / n) ** 0.5, arms * (n - 1)) - 0.5

    assert optimize.brentq(shortfall, 5, 200) == pytest.approx(rows, abs=2e-5)


@pytest.mark.parametrize(
    ("sd", "difference", "same", "not_worse"),
    [(0.3, 3, 3, 3), (0.5, 4 + 1, 4, 4), (0.75, 7, 7, 6), (1, 10, 11, 8), (2, 34, 36, 27), (4, 128, 139, 101)],
)
def test_seeds_for_one_point_golden(sd, difference, same, not_worse):
    """Where seeds alone vary the crossed test is Student's; SCIENCE's table is of its exact power."""
    found = power_of("mae", 1.0, 100, 5, Prior(seed_sd=sd / 2**0.5, example_sd=0.0))
    seeds = {(takes.claim, takes.effect): takes.seeds for takes in found.takes}
    assert (seeds["direction", 1.0], seeds["within", 0.0], seeds["not_worse", 0.0]) == (difference, same, not_worse)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("effect", [0.0, -0.5, 1.0])
def test_one_look_is_the_integral_over_the_chi_square(seeds, effect):
    """Seeds alone: the noncentral t for direction, Owen's Q (Phillips 1990) for two one-sided tests."""
    margin, sd = 1.0, 0.6
    found = chances.chance(
        chances.crossed(Prior(seed_sd=sd / 2**0.5, example_sd=0.0), seeds, 50), effect, margin, Levels(0.05, 0.05)
    )
    df, se = seeds - 1, sd / seeds**0.5
    two, one = scipy_stats.t.ppf([0.975, 0.95], df)
    direction = sum(scipy_stats.nct.sf(two, df, sign * effect / se) for sign in (1, -1))
    assert found.direction == pytest.approx(direction, abs=2e-4)
    assert found.not_worse == pytest.approx(scipy_stats.nct.sf(one, df, (margin + effect) / se), abs=2e-4)

    def density(s):
        half = max(margin - one * se * s, 0.0)
        inside = scipy_stats.norm.cdf((half - effect) / se) - scipy_stats.norm.cdf((-half - effect) / se)
        return inside * scipy_stats.chi.pdf(s * df**0.5, df) * df**0.5

    top = margin / (one * se)
    assert found.within == pytest.approx(integrate.quad(density, 0, top, limit=200)[0], abs=5e-4)


def test_detectable_is_the_smallest_effect_found():
    made = chances.crossed(USUAL, 5, 300)
    effect = chances.detectable(made, 0.05, 0.8)
    assert chances.chance(made, effect, 0.01, Levels(0.05, 0.05)).direction == pytest.approx(0.8, abs=1e-6)
    alone = chances.detectable(chances.crossed(Prior(seed_sd=0.01, example_sd=0.0), 5, 300), 0.05, 0.8)
    assert alone == pytest.approx(stats.detectable_effect(0.01 * (2 / 5) ** 0.5, 4), rel=1e-3)


def test_rows_needed_knows_that_a_difference_is_a_discordance():
    """Half of the rows differ at least if one arm is ahead on half of them: a test of signs finds that in no 2 rows."""
    assert rows_needed(0.5, 0.1) == rows_needed(0.5, 0.5) > 10
    assert round(rows_needed(0.01, 0.10)) == 7847


# Verdicts of simulated studies, by the code that gives them


@dataclass(frozen=True)
class Setting:
    prior: Prior
    rows: int
    looks: tuple[int, ...]
    margin: float
    share: float = 0.0
    signs: bool = False

    @property
    def effect(self) -> float:
        return self.share * self.margin


def draw(setting: Setting, rng, seeds: int) -> np.ndarray:
    """Differences, (seeds, rows); `signs` draws right and wrong answers, a discordance of the prior's size."""
    seed, example, rest = (variance**0.5 for variance in setting.prior.variances)
    if setting.signs:
        ahead = (example**2 + setting.effect) / 2
        own_E = rng.choice([1.0, -1.0, 0.0], p=[ahead, example**2 - ahead, 1 - example**2], size=setting.rows)
    else:
        own_E = rng.normal(setting.effect, example, setting.rows)
    diff_RE = rng.normal(0, seed, (seeds, 1)) + own_E[None]
    return diff_RE + rng.normal(0, rest, (seeds, setting.rows)) if rest else diff_RE


def study(setting: Setting, rng) -> list[tuple[verdict.Verdict, bool]]:
    """The verdict at each look, and whether the study would end there."""
    diff_RE, found = draw(setting, rng, setting.looks[-1]), []
    for look in setting.looks:
        at = diff_RE[:look]
        allowed = {"below": setting.prior.below, "above": setting.prior.above}
        contrasts = verdict.by_margin(stats.crossed(at).model_copy(update=allowed), setting.margin)
        (judged,) = verdict.judge([contrasts], alpha=0.05, looks=[setting.looks])
        goes_on = judged.words in verdict.OPEN and verdict.bound_by(stats.components(at)) == "seeds"
        found.append((judged, not goes_on or look == setting.looks[-1]))
    return found


def claims(judged: verdict.Verdict, margin: float) -> tuple[bool, ...]:
    not_worse = judged.bound > -margin
    return judged.direction != "unresolved", judged.size == "within", not_worse, judged.words == "CAN'T TELL YET"


def compare_with_simulation(setting: Setting, studies: int, *, sigmas: float) -> None:
    rng, count = np.random.default_rng(studies), len(setting.looks)
    drawn = [study(setting, rng) for _ in range(studies)]
    at_looks = np.array([[claims(judged, setting.margin) for judged, _ in one] for one in drawn]).mean(axis=0)
    ends = [next(judged for judged, end in one if end) for one in drawn]
    overall = np.mean([claims(judged, setting.margin) for judged in ends], axis=0)
    level = chances.levels(0.05, setting.looks)
    made = [chances.crossed(setting.prior, look, setting.rows) for look in setting.looks]
    expected = [chances.chance(one, setting.effect, setting.margin, level) for one in made]
    both = chances.studies(setting.prior, setting.rows, setting.looks, level)
    predicted = np.array(
        [list(c.model_dump().values()) for c in (*expected, chances.overall(both, setting.effect, setting.margin))]
    )
    observed_share = np.vstack([at_looks, overall])
    error = sigmas * (predicted * (1 - predicted) / studies) ** 0.5 + 0.004
    assert predicted.shape == (count + 1, 4)
    assert np.all(np.abs(observed_share - predicted) <= error), (setting, observed_share - predicted, error)


SETTINGS = [
    Setting(prior=Prior(seed_sd=0.01, example_sd=0.1), rows=200, looks=(5, 10), margin=0.02, share=-0.5),
    Setting(prior=Prior(seed_sd=0.01, example_sd=0.1, rest_sd=0.2), rows=200, looks=(3, 6, 9), margin=0.03),
    Setting(prior=Prior(seed_sd=0.005, example_sd=0.3), rows=277, looks=(5,), margin=0.05, share=-1.0),
    Setting(prior=Prior(seed_sd=0.01, example_sd=0.1, below=0.004, above=0.008), rows=300, looks=(5, 10), margin=0.03),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_chances_are_those_of_simulated_verdicts(setting):
    compare_with_simulation(setting, 500, sigmas=3.5)


def test_one_look_drawn_is_one_look_integrated():
    prior, level = Prior(seed_sd=0.01, example_sd=0.2, rest_sd=0.2, below=0.002, above=0.001), Levels(0.05, 0.05)
    drawn, made = chances.studies(prior, 250, (4,), level), chances.crossed(prior, 4, 250)
    for effect in (0.0, -0.02, 0.04):
        of_draws = chances.overall(drawn, effect, 0.04).model_dump()
        assert of_draws == pytest.approx(chances.chance(made, effect, 0.04, level).model_dump(), abs=0.004)


def test_draws_are_the_same_every_time_and_agree_with_more_of_them():
    prior, level = Prior(seed_sd=0.01, example_sd=0.1, rest_sd=0.2), chances.levels(0.05, (5, 10))
    once, again = (chances.studies(prior, 300, (5, 10), level) for _ in range(2))
    more = chances.studies(prior, 300, (5, 10), level, draws=2**16)
    assert np.array_equal(once.error_KN, again.error_KN)
    few, many = (chances.overall(one, -0.01, 0.02).model_dump() for one in (once, more))
    assert few == pytest.approx(many, abs=0.003)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, -0.5, -1.0, 1.0])
@pytest.mark.parametrize("looks", [(3,), (5,), (5, 10), (3, 5, 8)])
@pytest.mark.parametrize(
    ("seed_sd", "example_sd", "rest_sd", "rows", "margin"),
    [
        (0.01, 0.05, 0.0, 300, 0.02),
        (0.01, 0.3, 0.0, 1000, 0.04),
        (0.01, 0.1, 0.3, 300, 0.03),
        (0.0, 0.2, 0.2, 60, 0.1),
        (0.02, 0.1, 0.1, 12, 0.1),
    ],
)
def test_chances_are_those_of_2000_simulated_studies(seed_sd, example_sd, rest_sd, rows, margin, looks, share):
    prior = Prior(seed_sd=seed_sd, example_sd=example_sd, rest_sd=rest_sd)
    compare_with_simulation(Setting(prior, rows, looks, margin, share), 2000, sigmas=4)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, -0.5, -1.0])
@pytest.mark.parametrize("rows", [277, 2000])
def test_chances_hold_for_right_and_wrong_answers(rows, share):
    """A tenth of the answers differ: differences are -1, 0 and 1, whose variance is the discordance less effect²."""
    setting = Setting(USUAL, rows, (5, 10), 0.04, share, signs=True)
    compare_with_simulation(setting, 2000, sigmas=4)


@pytest.mark.slow
@pytest.mark.parametrize(("full", "margin"), [(0.8, 0.02), (0.82, 0.04)])
def test_chances_are_those_of_whole_studies(full, margin):
    """150 studies on the simulator, tuning included: what they end with, against their own mean spreads and regrets."""
    kind = simulated.Planted(full={"quality": full}, margin=margin)
    data = simulated.task_data("classify")
    locked = simulated.lock(simulated.study(kind), data)
    ended, seen = [], []
    for number in range(150):
        session = SimEngine(simulated.world(kind, number)).open(Path(), "fp32")
        found = simulated.carry_out(locked, data, session)
        (case,) = review(found)[1]
        if case.not_comparable:  # a rate at the edge of what was tried
            continue
        parts, estimate = case.difference.parts, case.difference.estimate
        seen.append((parts.var_replicate / 2, parts.var_example, parts.ms_residual, estimate.below, estimate.above))
        ended.append(claims(case.verdict, margin))
    *variances, below, above = np.mean(seen, axis=0)
    spreads = dict(zip(("seed_sd", "example_sd", "rest_sd"), np.sqrt(variances), strict=True))
    mean = Prior(**spreads, rows_per_example=simulated.ROWS_PER_CLUSTER, below=below, above=above)
    drawn = chances.studies(mean, 1000, (5, 10), chances.levels(0.05, (5, 10)))
    predicted = np.array(list(chances.overall(drawn, kind.effect, margin).model_dump().values()))
    error = 3.5 * (predicted * (1 - predicted) / len(ended)) ** 0.5 + 0.03  # what tuning really lost differs by study
    assert len(ended) > 140 and np.all(np.abs(np.mean(ended, axis=0) - predicted) <= error), (
        np.mean(ended, axis=0),
        predicted,
    )


# What is said


def test_277_items_resolve_no_point():
    said = str(power_of("accuracy", 0.01, 277, 5, USUAL))
    assert "with 277 test items no number of seeds can resolve 1 point: about 7847 rows would" in said
    assert all(takes.seeds is None for takes in power_of("accuracy", 0.01, 277, 5, USUAL).takes)
    assert "no number of seeds" not in str(power_of("accuracy", 0.02, 20_000, 10, USUAL))


@pytest.mark.parametrize(("metric", "piloted"), [("accuracy", False), ("accuracy", True), ("pearson", False)])
def test_every_line_fits_a_terminal_and_is_kept(metric, piloted):
    rng = np.random.default_rng(2)
    diff_RE = rng.normal(0, 0.02, (3, 1)) + rng.choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=(3, 300))
    found = power_of(metric, 0.025, 1500, 10, observed(diff_RE) if piloted else prior_of(metric), looks=(5, 10))
    assert max(map(len, str(found).splitlines())) <= 100
    assert Power.model_validate_json(found.model_dump_json()) == found


def test_the_page_shows_what_is_said():
    page = (Path(__file__).parent.parent / "docs/power.md").read_text(encoding="utf-8")
    assert str(power_of("accuracy", 0.02, 2000, 10, USUAL, looks=(5, 10))) in page


def test_what_tuning_may_lose_is_counted_and_may_be_too_much():
    plain, lossy = (power_of("accuracy", 0.05, 1000, 5, USUAL.model_copy(update={"below": b})) for b in (0.0, 0.01))
    assert lossy.detectable[5] == pytest.approx(plain.detectable[5] + 0.01, abs=5e-4)
    assert lossy.rows_needed > plain.rows_needed
    assert lossy.outlook[0].overall.inconclusive > plain.outlook[0].overall.inconclusive
    hopeless = power_of("accuracy", 0.01, 1000, 5, USUAL.model_copy(update={"above": 0.01}))
    assert hopeless.rows_needed is None and hopeless.takes[0].seeds is None
    assert "more seeds of tuning: no number of finals or test rows" in str(hopeless).replace("\n    ", " ")


def of_study(**asked) -> Power:
    """Of the first task of a study with 300 test rows."""
    held = lock(**asked)
    pins = {name: pin.model_copy(update={"counts": {"train": 100, "test": 300}}) for name, pin in held.data.items()}
    return power(held.model_copy(update={"data": pins}), held.study.tasks[0], USUAL)


def test_a_study_has_the_levels_of_its_family_and_looks():
    found = of_study(arms=("full", "lora", "base"), tasks=("mail", "other"))
    alone = power_of("accuracy", 0.05, 300, 10, USUAL, level=1 - 0.05 / 4, looks=(5, 10))
    assert found.detectable == pytest.approx(alone.detectable) and found.takes == alone.takes
    assert str(of_study(arms=("full",))) == "mail: margin 0.05 accuracy on 300 test rows"


def test_a_margin_that_is_a_share_of_a_gain_has_no_chances_yet():
    found = of_study(margin="95% of gain", arms=("full", "lora", "base"))
    assert found.detectable.keys() == {5, 10} and not (found.outlook or found.takes or found.rows_needed)
    assert "known in accuracy once the base is scored" in str(found) and "tuning" not in str(found)


def test_plans_of_before_are_still_read():
    old = {"task": "mail", "metric": "accuracy", "margin": 0.01, "test_rows": 277, "rows_needed": 7847}
    old |= {"prior": {"seed_sd": 0.01, "example_sd": 0.3}, "detectable": {"5": 0.06}, "detectable_at_best": 0.05}
    assert "with 277 test items no number of seeds can resolve 1 point" in str(Power.model_validate(old))


def test_no_prior_is_said_and_nothing_is_made_up():
    found = power_of("nll", 0.01, 300, 5, prior_of("nll"))
    assert "power unknown: the spread of NLL is not known" in str(found)
    assert found.detectable == {} and found.rows_needed is None and found.outlook == () and found.takes == ()
    assert prior_of("mae") is None and prior_of("mae", [1.0, 3.0]).seed_sd == pytest.approx(0.02 * 2**0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"margin": 0}, "margin: must be above 0, got 0"),
        ({"rows": 1}, "test rows: must be 2 or more, got 1"),
        ({"seeds": 1}, "seeds: must be 2 or more, got 1"),
        ({"level": 1.0}, "level: must lie between 0.5 and 1, got 1.0"),
        ({"looks": (5, 10)}, "looks: must rise from 2 or more and end with 5 seeds, got [5, 10]"),
        ({"metric": "acuracy"}, "metric: unknown, got 'acuracy'"),
    ],
)
def test_what_cannot_be_is_refused(change, said):
    asked = {"metric": "accuracy", "margin": 0.01, "rows": 277, "seeds": 5, "prior": USUAL} | change
    with pytest.raises(EvidenceError) as error:
        power_of(**asked)
    assert said in str(error.value)
    with pytest.raises(ValidationError, match="nothing varies"):
        Prior(seed_sd=0, example_sd=0)


# Pilots


def test_three_values_know_their_spread_within_half_and_six_times():
    """SCIENCE's factors of 0.52 and 6.3."""
    low, high = stats.variance_interval(1.0, 2)
    assert (low**0.5, high**0.5) == (pytest.approx(0.5207, abs=1e-4), pytest.approx(6.285, abs=1e-3))
    with pytest.raises(EvidenceError, match="add seeds"):
        stats.variance_interval(1.0, 0)


@pytest.mark.parametrize("signs", [False, True])
def test_the_intervals_of_a_pilot_cover(signs):
    """400 pilots of 3 seeds: each spread lies in its interval as often as the level says, or more."""
    setting = Setting(Prior(seed_sd=0.02, example_sd=0.3, rest_sd=0.1), 300, (3,), 0.02, signs=signs)
    rng, truth = np.random.default_rng(5), setting.prior
    found = [observed(draw(setting, rng, 3)) for _ in range(400)]
    for field in ("seed_sd", "example_sd"):
        held = np.mean([getattr(p.low, field) <= getattr(truth, field) <= getattr(p.high, field) for p in found])
        assert 0.92 <= held <= 0.99, field
    assert np.mean([p.prior.seed_sd**2 for p in found]) == pytest.approx(0.02**2, rel=0.2)
    assert np.mean([p.prior.rest_sd for p in found]) == pytest.approx(0.1, rel=0.01)


def test_seeds_that_lie_close_by_chance_are_not_taken_for_sure():
    """No differences between seeds at all: the upper end is that of seeds that differ."""
    rng, rest_RE = np.random.default_rng(4), np.random.default_rng(6).normal(0, 0.3, (3, 200))
    found = observed(rng.normal(0, 0.3, 200) + rest_RE - 0.99 * rest_RE.mean(axis=1, keepdims=True))
    assert found.prior.seed_sd == found.low.seed_sd == 0 < found.high.seed_sd


def test_a_pilot_shows_its_range():
    diff_RE = draw(Setting(Prior(seed_sd=0.01, example_sd=0.2), 500, (3,), 0.02), np.random.default_rng(1), 3)
    found = power_of("accuracy", 0.02, 2000, 5, observed(diff_RE))
    low, high = found.ends
    assert low.detectable[5] < found.detectable[5] < high.detectable[5]
    assert low.rows_needed < found.rows_needed < high.rows_needed
    assert f"{found.detectable[5]:.2g} ({low.detectable[5]:.2g} to {high.detectable[5]:.2g}) with 5 seeds" in str(found)


def test_clusters_are_the_examples_of_a_pilot_and_rows_are_counted_by_them():
    rng = np.random.default_rng(3)
    own_C = rng.normal(0, 0.2, 100)
    diff_RE = np.repeat(own_C, 4)[None] + rng.normal(0, 0.01, (3, 1))
    found = observed(diff_RE, [f"c{n // 4}" for n in range(400)])
    assert found.examples == 100 and found.prior.rows_per_example == 4
    assert found.prior.example_sd == pytest.approx(np.std(own_C, ddof=1), rel=1e-3)
    one, four = (chances.crossed(found.prior, 5, rows).sd for rows in (400, 1600))
    assert four < 0.75 * one


@pytest.mark.parametrize("purpose", ["final", "tune"])
def test_a_pilot_is_read_from_finals_and_from_tune_trials(purpose):
    found = evidence(lock(), {"full": 0.8, "lora": 0.8}, seeds=5, per_cluster=3)
    made = pilot(found, "mail", "lora", purpose=purpose)
    assert made.replicates == (5 if purpose == "final" else 3) and made.examples == 100
    regrets = [rates.tuned(found, arm, "mail").expected_regret for arm in ("full", "lora")]
    assert [made.prior.below, made.high.above] == pytest.approx([regret or 0.0 for regret in regrets])
    assert pilot(found, "mail", "full", purpose=purpose) is None
    if purpose == "final":
        whole = next(c.difference.parts for c in review(found)[1])
        assert made.prior.example_sd == pytest.approx(max(whole.var_example, 0) ** 0.5)
        assert 2 * made.prior.seed_sd**2 == pytest.approx(max(whole.var_replicate, 0), abs=1e-12)
    assert pilot(evidence(lock(), {"full": 0.8}, seeds=5), "mail", "lora", purpose=purpose) is None
