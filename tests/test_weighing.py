"""Scenarios on planted studies: recommendations, abstentions, limits, opinions, and flips that are re-decided."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm

from planted import evidence, lock
from tunetrial.analysis import scoring, weighing, yearly
from tunetrial.analysis.board import lay_out
from tunetrial.analysis.compare import review
from tunetrial.analysis.draws import Draws
from tunetrial.analysis.information import more_seeds
from tunetrial.analysis.owning import own
from tunetrial.analysis.taken import take
from tunetrial.analysis.weighing import weigh
from tunetrial.core.errors import ConfigError
from tunetrial.core.owning import Terms
from tunetrial.core.scenario import Criterion, Inputs, Opinion, Scenario
from tunetrial.core.study import Hardware

CHEAP = {"step_s": 0.3, "load_s": 1.0, "save_s": 0.1, "evaluate_examples_per_s": 100.0, "peak_bytes": 2 * 2**30}
CHEAP |= {"artifact_bytes": 3 * 2**20, "base_bytes": 50 * 2**20, "latency_s": 0.012}
DEAR = CHEAP | {"step_s": 0.6, "peak_bytes": 4 * 2**30, "artifact_bytes": 48 * 2**20, "latency_s": 0.010}
BOTH = {"full": DEAR, "lora": CHEAP}
QUALITY = Criterion(weight=1, worst=0.5, best=1.0)


def board(quality, *, arms=("full", "lora"), costs=BOTH, study=None, **planted):
    found = evidence(lock(arms, **(study or {})), quality, costs=costs, **planted)
    return lay_out(found, *review(found))


def owned(laid):
    return own("mail", take(laid.evidence, whole={"full"}), Terms(variants=(1,)))


def scenario(**said):
    return Scenario(name="s", title="s", **said)


def decided(quality, said, *, seed=0, **planted):
    laid = board(quality, **planted)
    return weigh(laid, said, owned=owned(laid), seed=seed)


def test_the_argument_adds_up_and_names_what_it_rests_on():
    said = scenario(
        criteria={"quality": QUALITY, "latency_ms": Criterion(weight=1, worst=100, best=1, log=True)},
        opinions={"fit": Opinion(weight=2, scores={"full": 4, "lora": 9})},
    )
    found = decided({"full": 0.8, "lora": 0.8}, said)
    one, other = found.standings["lora"], found.standings["full"]
    assert found.recommendation == "lora" and list(found.standings) == ["lora", "full"]
    assert sum(found.carried.values()) == pytest.approx(one.score - other.score)
    latency = np.log(12 / 100) / np.log(1 / 100)
    assert one.values["latency_ms"] == pytest.approx(latency) and one.values["fit"] == 0.9
    assert [(w.name, w.share, w.basis) for w in found.weights] == [
        ("quality", 0.25, "measured"),
        ("latency_ms", 0.25, "measured"),
        ("fit", 0.5, "opinion"),
    ]
    text = " ".join(found.because)
    assert "fit +0.250 (opinion)" in text and "fit 9 vs 4 (your opinion)" in text and "measured, 5 finals" in text
    assert "Without the opinions full would be first." in found.because
    assert found.warnings == ("50 % of the weight is on opinions, which nothing here has measured: fit.",)


def test_the_same_seed_gives_the_same_bytes_and_another_others():
    said = scenario(criteria={"quality": QUALITY})
    one, again, other = (decided({"full": 0.8, "lora": 0.8}, said, seed=s).digest for s in (0, 0, 1))
    assert one == again != other


def test_opinions_go_by_arm_before_method_and_an_arm_without_one_is_not_weighed():
    said = scenario(opinions={"fit": Opinion(weight=1, scores={"full": 4, "lora": 9, "mine": 2})})
    found = decided(dict.fromkeys(("full", "lora", "mine"), 0.8), said, arms=("full", "lora", "mine"))
    assert {arm: s.amounts["fit"][0] for arm, s in found.standings.items()} == {"lora": 9, "full": 4, "mine": 2}
    bare = scenario(opinions={"fit": Opinion(weight=1, scores={"full": 4})})
    found = decided({"full": 0.8, "lora": 0.8}, bare)
    assert found.left_out == {"lora": "fit was not measured"} or "lora" in found.left_out


def test_a_limit_rules_out_before_anything_is_weighed():
    said = scenario(criteria={"quality": QUALITY}, limits={"peak_gib": 3})
    found = decided({"full": 0.9, "lora": 0.7}, said)
    assert found.excluded == {"full": "peak_gib 4 is above the limit of 3"} and found.recommendation == "lora"


def test_a_doubtful_first_place_abstains_with_simulated_seeds():
    noisy = {"seed_sd": 0.08, "rows": 400, "item_sd": 0.2, "luck": 3}
    found = decided({"full": 0.8, "lora": 0.8}, scenario(criteria={"quality": QUALITY}), **noisy)
    assert found.recommendation is None and "80 % is asked for" in found.abstention.reason
    assert [one.seeds for one in found.more_seeds] == [5, 10, 20]
    assert all(0 <= one.settles <= 1 and one.gain >= 0 for one in found.more_seeds)
    assert found.more_seeds[-1].gain >= found.more_seeds[0].gain
    assert found.knowing["quality"] == pytest.approx(found.knowing_all) and found.knowing_all > 0
    assert found.more_seeds[-1].gain <= found.knowing_all + 0.002


def test_a_first_place_that_hangs_on_weights_abstains():
    said = scenario(
        criteria={
            "quality": Criterion(weight=0.61, worst=0.5, best=1),
            "train_s": Criterion(weight=0.39, worst=100, best=0),
        }
    )
    found = decided({"full": 0.9, "lora": 0.78}, said)
    assert "changes by a quarter" in found.abstention.reason and "settle how much" in found.abstention.next_spend


def test_cost_that_is_told_twice_is_warned_of():
    both = {"train_s": Criterion(weight=3, worst=100, best=0), "cost_usd": Criterion(weight=3, worst=1, best=0)}
    said = scenario(criteria={"quality": Criterion(weight=4), **both}, inputs=Inputs(usd_per_hour=3.6))
    found = decided({"full": 0.8, "lora": 0.8}, said)
    assert "60 % of the weight is on cost, told 2 times: train_s, cost_usd." in found.warnings
    assert {w.name: w.restates for w in found.weights} == {"quality": None, "train_s": "cost", "cost_usd": "cost"}
    alone = scenario(criteria={"train_s": both["train_s"], "storage_mib": Criterion(weight=1, worst=50, best=0)})
    assert decided({"full": 0.8, "lora": 0.8}, alone).warnings == ()


USE = scenario(
    criteria={"quality": QUALITY, "year_usd": Criterion(weight=1.5, worst=1e7, best=10, log=True)},
    inputs=Inputs(
        tenants=10, retrainings_per_month=2, requests_per_month=1e6, usd_per_hour=2, usd_per_gb_month=0.1, room_gib=1
    ),
)


def test_flips_of_prices_and_volumes_flip_when_decided_again():
    found = decided({"full": 0.86, "lora": 0.8}, USE)
    moved = {"number of tenants": "tenants", "retrainings a month": "retrainings_per_month"}
    moved |= {"price of an hour in USD": "usd_per_hour", "requests a month": "requests_per_month"}
    flips = [f for f in found.flips if f.what in moved]
    assert flips
    for flip in flips:
        away, whole = (1 if flip.at > flip.now else -1), flip.what == "number of tenants"
        step = 1 if whole else 1e-6 * flip.at
        for at, first in ((flip.at if whole else flip.at + away * step, True), (flip.at - away * step, False)):
            inputs = USE.inputs.model_copy(update={moved[flip.what]: int(at) if whole else at})
            now = decided({"full": 0.86, "lora": 0.8}, USE.model_copy(update={"inputs": inputs}))
            assert (next(iter(now.standings)) == flip.to) is first


def test_weight_flips_flip_when_decided_again():
    found = decided({"full": 0.86, "lora": 0.8}, USE)
    flip = next(f for f in found.flips if f.what == "weight of quality")
    for factor, first in ((1 + 1e-6, True), (1 - 1e-6, False)):
        w = flip.at * (factor if flip.at > flip.now else 2 - factor)
        criteria = {
            "quality": QUALITY.model_copy(update={"weight": w}),
            "year_usd": USE.criteria["year_usd"].model_copy(update={"weight": 1 - w}),
        }
        again = decided({"full": 0.86, "lora": 0.8}, USE.model_copy(update={"criteria": criteria}))
        assert (next(iter(again.standings)) == flip.to) is first


def test_without_a_price_a_year_has_no_cost_and_says_so():
    said = scenario(criteria={"quality": QUALITY, "year_usd": Criterion(weight=1, worst=10, best=1)})
    found = decided({"full": 0.8, "lora": 0.8}, said)
    assert found.recommendation is None and set(found.left_out) == {"full", "lora"}
    priced = decided({"full": 0.8, "lora": 0.8}, said, study={"hardware": Hardware(usd_per_hour=1.0)})
    assert priced.inputs.usd_per_hour == 1.0 and priced.asked == said


def test_the_study_s_own_opinions_are_weighed_by_its_own_decision():
    from tunetrial.analysis import decide

    held = lock(
        ("full", "lora"),
        criteria={"quality": QUALITY},
        opinions={"fit": Opinion(weight=4, scores={"full": 1, "lora": 9})},
    )
    found = decide(evidence(held, {"full": 0.8, "lora": 0.8}, costs=BOTH))
    assert found.recommendation == "lora"
    assert any("which nothing here has measured: fit" in line for line in found.because)


def test_a_scale_without_anchors_or_logarithm_is_left_out_and_said():
    said = scenario(
        criteria={
            "quality": QUALITY,
            "train_s": Criterion(weight=1),
            "peak_gib": Criterion(weight=1, worst=5, best=0, log=True),
        }
    )
    found = decided({"full": 0.8, "lora": 0.8}, said)
    assert found.left_out["train_s"] == "it has no anchor `worst` and no limit"
    assert found.left_out["peak_gib"] == "a logarithm needs anchors above 0, got 5 and 0"
    assert scoring.scales(said, lock().study, floor=0.5)[0][0].weight == 1.0


def test_agreement_is_counted_over_pairs_of_seeds_and_varies_with_them():
    found = evidence(lock(("full", "lora", "base")), {"full": 0.8, "lora": 0.8, "base": 0.5}, costs=BOTH)
    said = {
        arm: [found.scores[r.trial.id, "test"].prediction_E for r in found.of(purpose="final", arm=arm)]
        for arm in ("full", "lora")
    }
    by_hand = {arm: np.mean([np.mean(a == b) for a, b in combinations(own, 2)]) for arm, own in said.items()}
    laid = lay_out(found, *review(found), criteria={"agreement"})
    assert {arm: own["agreement"].value for arm, own in laid.costs.items()} == pytest.approx(by_hand | {"base": 1.0})
    assert "agreement" not in lay_out(found, *review(found)).costs["lora"], "told where nobody asked"
    weighed = weigh(laid, scenario(criteria={"agreement": Criterion(weight=1)}))
    own = weighed.standings["lora"].amounts["agreement"]
    assert own[0] == pytest.approx(by_hand["lora"]) and own[1] < own[0] < own[2], "it does not vary with the seeds"
    weight = weighed.weights[0]
    assert (weight.worst, weight.best, weight.basis) == (0.0, 1.0, "measured")


def test_energy_is_that_of_one_runs_steps_where_a_gpu_counts_it():
    counted = {arm: own | {"step_j": joules} for (arm, own), joules in zip(BOTH.items(), (72.0, 36.0), strict=True)}
    said = scenario(criteria={"energy_wh": Criterion(weight=1, worst=4, best=0)})
    found = decided({"full": 0.8, "lora": 0.8}, said, costs=counted)
    assert {arm: one.amounts["energy_wh"][0] for arm, one in found.standings.items()} == {"lora": 1.0, "full": 2.0}
    assert "counted by the GPU in one probe" in " ".join(found.because)
    uncounted = decided({"full": 0.8, "lora": 0.8}, said)
    assert uncounted.left_out["lora"] == "energy_wh was not measured" and not uncounted.standings


def test_quality_the_wrong_way_round_is_refused():
    said = scenario(criteria={"quality": Criterion(weight=1, worst=1.0, best=0.5)})
    with pytest.raises(
        ConfigError, match="scenario s: criteria.quality: more accuracy is better, got worst 1 and best"
    ):
        decided({"full": 0.8, "lora": 0.8}, said)


def test_a_limit_of_the_study_s_is_asked_again_at_another_price():
    """A run of 60 s costs 0.017 USD at the study's dollar an hour, and ten times as much at the scenario's price."""
    study = {"limits": {"cost_usd": 0.1}, "hardware": Hardware(usd_per_hour=1)}
    said = scenario(criteria={"quality": QUALITY}, limits={"cost_usd": 0.1}, inputs=Inputs(usd_per_hour=10))
    found = decided({"full": 0.8, "lora": 0.8}, said, study=study)
    assert {arm: reason[:15] for arm, reason in found.excluded.items()} == {"full": "cost_usd 0.1667"}


def test_a_baseline_with_one_timed_final_takes_no_seed_from_the_others():
    laid = board({"full": 0.8, "lora": 0.8})
    taken = owned(laid).taken
    timed = [one.model_copy(update={"run_s": {1: 9.0, 2: 10.0, 3: 11.0}}) for one in taken]
    single = timed[0].model_copy(update={"arm": "tfidf", "run_s": {1: 0.1}})
    for known in (timed, [*timed, single]):
        found = own("mail", known, Terms(variants=(1,)))
        assert yearly.lengths(found)["lora"] == pytest.approx({1: 0.9, 2: 1.0, 3: 1.1})


def test_more_seeds_bring_what_normal_theory_says():
    """One criterion, one arm that varies by 0.02: with the lead d and t^2 = 0.02^2 k / (5 + k), k more seeds are worth
    E max(d + t z, 0) - max(d, 0), and settle it where the lead that they show is 0.84 of what is then left."""
    laid = board({"full": 0.8, "lora": 0.8})
    table = weighing.lay_out(laid, scenario(criteria={"quality": Criterion(weight=1, worst=0.0, best=1.0)}))
    first, second = table.centre("quality")
    lead, sd = first - second, 0.02
    z_F = norm.ppf((np.arange(100) + 0.5) / 100)
    moved_BA = np.zeros((4000, 2))
    moved_BA[:, 0] = sd * np.tile(z_F, 40)
    for one in more_seeds(table, Draws({"quality": moved_BA}, {}, 5)):
        share = one.seeds / (5 + one.seeds)
        t, left = sd * share**0.5, sd * (1 - share) ** 0.5
        gain = lead * norm.cdf(lead / t) + t * norm.pdf(lead / t) - max(lead, 0.0)
        assert one.gain == pytest.approx(gain, rel=0.02, abs=2e-5)
        assert one.settles == pytest.approx(np.mean(np.abs(lead + t * z_F) > norm.ppf(0.8) * left), abs=0.021)
