"""What runs next and what it takes, asked through `plan` alone: made-up records in, waves, rates and previews out."""

import dataclasses
import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from tunetrial import models, plan
from tunetrial.core.evidence import Evidence, Measurement, Scores, TaskData, TrialRecord
from tunetrial.core.evidence import Example as Row
from tunetrial.core.study import Arm, Criterion, DataPin, Hardware, Lock, Rule, Study, TaskSpec, Trial, Tuning
from tunetrial.plan.power import Prior, power, rows_needed

SHAPE = models.shape(models.EMBEDDED)
Answer = Callable[[Trial], float | str]


def a_lock(*, arms=("full", "lora"), tasks=("mail",), metric="accuracy", margin=0.02, test=400, **study) -> Lock:
    kind = "regress" if metric in ("mae", "rmse", "pearson") else "classify"
    asked = Study(
        question="?",
        base_model="embedded",
        tasks=tuple(
            TaskSpec(name=t, kind=kind, metric=metric, margin=margin, input="{{ x }}", target="y") for t in tasks
        ),
        arms=tuple(Arm(name=a, method="full" if a == "full" else "lora") for a in arms),
        reference=arms[0],
        rule=Rule(primary=tasks[0]),
        **study,
    )
    pin = DataPin(digests={"test": "t"}, counts={"train": 320, "validation": 120, "test": test}, labels=("a", "b"))
    return Lock(
        study=asked,
        base_fingerprint="f",
        parameters=SHAPE.parameters,
        precision="fp32",
        data={t: pin for t in tasks},
        engine="sim",
    )


def empty(lock: Lock) -> Evidence:
    return Evidence(lock=lock, records=(), scores={}, curves={})


def record(trial: Trial, answer: Answer, metric: str = "accuracy") -> TrialRecord:
    """A record with this validation score; "diverged", "infeasible" and "undefined" are what they say."""
    said = answer(trial)
    if said in ("diverged", "infeasible"):
        return TrialRecord(trial=trial, status=said, reason="said so", synthetic=True)
    value = {} if said == "undefined" else {f"validation.{metric}": Measurement(value=said, unit="share")}
    return TrialRecord(trial=trial, status="ok", measurements=value, token_digest=f"{trial.seed}", synthetic=True)


def add(evidence: Evidence, trials, answer: Answer, metric: str = "accuracy") -> Evidence:
    """The evidence after these trials; finals are scored on the test split with the share that is right."""
    made, scores = list(evidence.records), dict(evidence.scores)
    for trial in trials:
        made.append(record(trial, answer, metric))
        if made[-1].status == "ok" and trial.purpose == "final":
            found = test_scores(trial, answer(trial))
            value = float(np.mean(found.target_E == found.prediction_E))
            measured = {f"{split}.accuracy": Measurement(value=value, unit="share") for split in ("validation", "test")}
            made[-1] = made[-1].model_copy(update={"measurements": measured})
            scores[trial.id, "test"] = scores[trial.id, "validation"] = found
    return Evidence(lock=evidence.lock, records=tuple(made), scores=scores, curves={})


def test_scores(trial: Trial, share: float, rows: int = 300) -> Scores:
    target = np.array(["a", "b"] * (rows // 2), dtype=object)
    rng = np.random.default_rng(trial.seed + (7 if trial.arm.name == "full" else 0))
    wrong = rng.random(rows) > share
    prediction = np.where(wrong, np.where(target == "a", "b", "a"), target)
    ids = tuple(f"r{row}" for row in range(rows))
    return Scores(example_id_E=ids, cluster_E=ids, target_E=target, prediction_E=prediction)


test_scores.__test__ = False


def follow(lock: Lock, answer: Answer, metric: str = "accuracy") -> tuple[Evidence, list[plan.Wave]]:
    """Carry a study out to its end."""
    evidence, waves = empty(lock), []
    while wave := plan.next_wave(evidence):
        waves.append(wave)
        evidence = add(evidence, wave.trials, answer, metric)
        assert len(waves) < 100
    return evidence, waves


def bell(top: Mapping[str, float], *, width: float = 0.1, level: float = 0.8, noise: float = 0.0) -> Answer:
    """Scores that fall from `level` with the squared distance from each arm's best rate, in decades."""

    def answer(trial: Trial) -> float:
        of_trial = f"{trial.task}:{trial.arm.name}:{trial.learning_rate}:{trial.seed}"
        luck = random.Random(of_trial).gauss(0, noise)
        return level - width * np.log10(trial.learning_rate / top[trial.arm.name]) ** 2 + luck

    return answer


TOP = {"full": 3e-4, "lora": 3e-3}


def of(evidence: Evidence, purpose: str, arm: str) -> dict[float, list[int]]:
    found: dict[float, list[int]] = {}
    for one in evidence.of(purpose=purpose, arm=arm):
        found.setdefault(one.trial.learning_rate, []).append(one.trial.seed)
    return found


def test_first_wave_is_the_grid_of_every_arm_with_one_seed():
    wave = plan.next_wave(empty(a_lock()))
    rates = {arm: [t.learning_rate for t in wave.trials if t.arm.name == arm] for arm in ("full", "lora")}
    centre = 2e-5 * (1e9 / SHAPE.parameters) ** 0.7
    for arm, middle in (("full", centre), ("lora", min(10 * centre, 2e-3))):
        assert rates[arm] == pytest.approx([middle * 10 ** (k / 2) for k in (-2, -1, 0, 1, 2)], rel=5e-3)
    assert {(t.seed, t.purpose) for t in wave.trials} == {(901, "tune")}
    assert wave.why == "learning-rate search"


def test_seeds_of_tuning_and_finals_come_from_the_studys_and_never_meet():
    evidence, _ = follow(a_lock(seed=3), bell(TOP))
    assert {r.trial.seed for r in evidence.of(purpose="tune")} == {3901, 3902, 3903}
    assert {r.trial.seed for r in evidence.of(purpose="final")} <= set(range(3001, 3011))


def test_rates_given_by_the_study_are_those_tried():
    given = Tuning(learning_rate=(1e-3, 1e-4, 3e-4, 1e-3))
    wave = plan.next_wave(empty(a_lock(tuning=given)))
    assert [t.learning_rate for t in wave.trials if t.arm.name == "full"] == [1e-4, 3e-4, 1e-3]


def test_best_point_and_neighbours_get_all_seeds_and_no_other():
    evidence, _ = follow(a_lock(), bell({"full": 4.3e-4, "lora": 2e-3}))
    tried = of(evidence, "tune", "full")
    counts = [len(seeds) for _, seeds in sorted(tried.items())]
    assert counts == [1, 3, 3, 3, 1]


def test_search_follows_the_best_point_when_more_seeds_move_it():
    """The first seed flatters the lowest rate; two more take it back."""
    lucky = min(t.learning_rate for t in plan.next_wave(empty(a_lock())).trials)
    honest = bell({"full": 4.3e-4, "lora": 2e-3})
    evidence, _ = follow(a_lock(), lambda t: 0.9 if (t.learning_rate, t.seed) == (lucky, 901) else honest(t))
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert not rate.at_edge
    assert rate.value == pytest.approx(4.3e-4, rel=0.8)
    assert [len(seeds) for _, seeds in sorted(of(evidence, "tune", "full").items())] == [3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize("top", [1e-9, 1e3])
def test_search_goes_beyond_an_edge_up_to_the_same_limit_for_every_arm(top):
    evidence, _ = follow(a_lock(), bell({"full": top, "lora": top}))
    for arm in ("full", "lora"):
        rates = sorted(of(evidence, "tune", arm))
        assert len(rates) == 9
        assert np.diff(np.log10(rates)) == pytest.approx([0.5] * 8, abs=5e-3)
        rate = plan.chosen_rate(evidence, arm, "mail")
        assert rate.at_edge
        assert rate.value == (rates[0] if top < 1e-4 else rates[-1])


def test_search_stops_beyond_an_edge_once_the_best_is_inside():
    evidence, _ = follow(a_lock(), bell({"full": 1.4e-5, "lora": 2e-3}))
    assert len(of(evidence, "tune", "full")) == 7
    assert not plan.chosen_rate(evidence, "full", "mail").at_edge


def test_search_goes_where_a_parabola_points_beyond_the_last_rate():
    """The best point is the last but one, yet the curve rises to the last: one more rate is tried."""
    lock = a_lock()
    rates = [t.learning_rate for t in plan.next_wave(empty(lock)).trials if t.arm.name == "full"]
    level = dict(zip(rates, (0.70, 0.70, 0.70, 0.801, 0.80), strict=True))

    def rising(trial: Trial) -> float:
        return level.get(trial.learning_rate, 0.70) + (0.0, 0.05, -0.05)[trial.seed % 901 % 3]

    evidence, _ = follow(lock, lambda t: rising(t) if t.arm.name == "full" else bell(TOP)(t))
    assert sorted(of(evidence, "tune", "full"))[:5] == rates
    assert len(of(evidence, "tune", "full")) == 6
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert rates[3] < rate.value < max(of(evidence, "tune", "full")) and not rate.at_edge


@pytest.mark.parametrize("top", [2.2e-4, 4.3e-4, 7e-4])
def test_rate_is_the_top_of_the_parabola_not_the_best_point(top):
    noisy = bell({"full": top, "lora": 2e-3}, width=0.02, noise=0.002)
    evidence, _ = follow(a_lock(), noisy)
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert rate.how == "parabola"
    assert abs(np.log10(rate.value / top)) < 0.12


@pytest.mark.parametrize("top", [1.5e-4, 2.5e-4, 3.3e-4, 6e-4, 9e-4])
def test_rate_equals_an_independent_weighted_fit(top):
    """Written out anew: drops below the best, capped at 2.5 pooled deviations, by normal equations."""
    evidence, _ = follow(a_lock(), bell({"full": top, "lora": 5 * top}, width=0.05, noise=0.02))
    for arm in ("full", "lora"):
        rate = plan.chosen_rate(evidence, arm, "mail")
        tried: dict[float, list[float]] = {}
        for one in evidence.of(purpose="tune", arm=arm):
            tried.setdefault(one.trial.learning_rate, []).append(one.measurements["validation.accuracy"].value)
        rates = sorted(tried)
        mean = [sum(tried[r]) / len(tried[r]) for r in rates]
        best = mean.index(max(mean))
        squares = sum((v - sum(vs) / len(vs)) ** 2 for vs in tried.values() for v in vs)
        reach = 2.5 * (squares / sum(len(vs) - 1 for vs in tried.values())) ** 0.5
        near = [i for i in range(len(rates)) if abs(i - best) <= 2]
        x = np.array([np.log10(rates[i]) for i in near])
        y = np.array([max(mean[i] - mean[best], -reach) for i in near])
        w = np.diag([float(len(tried[rates[i]])) for i in near])
        basis = np.stack([np.ones_like(x), x, x**2], axis=1)
        _, slope, bend = np.linalg.solve(basis.T @ w @ basis, basis.T @ w @ y)
        expected = np.clip(-slope / 2 / bend, np.log10(rates[best - 1]), np.log10(rates[best + 1]))
        assert rate.value == pytest.approx(10**expected, rel=6e-3)


def test_rate_falls_back_to_the_best_point_where_the_curve_has_no_top():
    flat = {rate: 0.5 for rate in (1e-4, 3e-4, 1e-3)}
    given = Tuning(learning_rate=tuple(flat), max_points=3, seeds=1)
    evidence, _ = follow(a_lock(tuning=given), lambda t: 0.8)
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert (rate.how, rate.value) == ("best point", 1e-4)


def test_rate_is_the_best_point_where_the_parabola_opens_upwards():
    rates = [t.learning_rate for t in plan.next_wave(empty(a_lock())).trials if t.arm.name == "full"]
    score = dict(zip(rates, (0.79, 0.5, 0.8, 0.5, 0.79), strict=True))
    evidence, _ = follow(a_lock(), lambda t: score.get(t.learning_rate, bell(TOP)(t)))
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert (rate.how, rate.value, rate.at_edge) == ("best point", rates[2], False)


def test_a_cliff_does_not_push_the_rate_away_from_the_top():
    """Beyond the cliff everything collapses; how deep must not matter."""
    smooth, chosen = bell({"full": 4.3e-4, "lora": 2e-3}, width=0.02, noise=0.002), []
    for depth in (0.7, 0.5, 0.1):
        evidence, _ = follow(a_lock(), lambda t, d=depth: d if t.learning_rate > 1e-3 else smooth(t))
        chosen.append(plan.chosen_rate(evidence, "full", "mail").value)
    assert len(set(chosen)) == 1
    assert abs(np.log10(chosen[0] / 4.3e-4)) < 0.25


@pytest.mark.parametrize("failure", ["diverged", "undefined"])
def test_failed_runs_count_as_the_worst_score(failure):
    evidence, _ = follow(
        a_lock(), lambda t: failure if t.learning_rate > 1e-3 and t.arm.name == "full" else bell(TOP)(t)
    )
    rate = plan.chosen_rate(evidence, "full", "mail")
    assert rate.value < 1e-3
    assert [p.learning_rate > 1e-3 for p in rate.curve] == [p.mean is None for p in rate.curve]
    assert all(p.failed and not p.scores for p in rate.curve if p.learning_rate > 1e-3)


def test_one_failed_seed_lowers_the_mean_of_its_point_to_the_worst_seen():
    evidence, _ = follow(a_lock(), lambda t: "diverged" if t.seed == 902 else bell(TOP, noise=0.01)(t))
    rate = plan.chosen_rate(evidence, "full", "mail")
    worst = min(score for point in rate.curve for score in point.scores.values())
    for point in rate.curve:
        expected = [*point.scores.values(), *(worst for _ in point.failed)]
        assert point.mean == pytest.approx(np.mean(expected))
        assert point.failed in ((), (902,))


def test_lower_error_is_better():
    answer = bell({"full": 4.3e-4, "lora": 2e-3}, level=0)
    evidence = empty(a_lock(metric="mae"))
    for _ in range(3):
        wave = plan.next_wave(evidence)
        tunes = [t for t in wave.trials if t.purpose == "tune"]
        evidence = add(evidence, tunes, lambda t: 2.0 - answer(t), "mae")
    assert plan.chosen_rate(evidence, "full", "mail").value == pytest.approx(4.3e-4, rel=0.1)


def test_an_arm_that_diverges_at_every_rate_looks_lower_and_then_leaves_the_study():
    evidence, waves = follow(a_lock(), lambda t: "diverged" if t.arm.name == "full" else bell(TOP)(t))
    assert len(of(evidence, "tune", "full")) == 9
    assert plan.chosen_rate(evidence, "full", "mail") is None
    assert not of(evidence, "final", "full") and not of(evidence, "probe", "full")
    assert len(evidence.of(purpose="final", arm="lora")) >= 5


@pytest.mark.parametrize("purpose", ["tune", "probe", "final"])
def test_an_arm_that_does_not_fit_is_given_nothing_more(purpose):
    lock, stopped = a_lock(), None
    evidence = empty(lock)
    while wave := plan.next_wave(evidence):
        trials = [wave.trials[0]]
        evidence = add(
            evidence, trials, lambda t: "infeasible" if (t.arm.name, t.purpose) == ("lora", purpose) else bell(TOP)(t)
        )
        stopped = stopped or next((len(evidence.records) for r in evidence.records if r.status == "infeasible"), None)
    assert not [r for r in evidence.records[stopped:] if r.trial.arm.name == "lora"]
    assert len(evidence.of(purpose="final", arm="full")) >= 5


def test_finals_wait_for_every_arm_of_their_task_and_probes_for_all_tasks():
    lock, answer = a_lock(tasks=("mail", "news")), bell(TOP)
    evidence = empty(lock)
    wave = plan.next_wave(evidence)
    while "final" not in {t.purpose for t in wave.trials}:
        evidence = add(evidence, [t for t in wave.trials if (t.task, t.arm.name) != ("news", "lora")], answer)
        wave = plan.next_wave(evidence)
    assert {t.task for t in wave.trials if t.purpose != "tune"} == {"mail"}
    assert {(t.task, t.arm.name) for t in wave.trials if t.purpose == "tune"} == {("news", "lora")}
    finals = [t for t in wave.trials if t.purpose == "final"]
    assert [(t.seed, t.arm.name) for t in finals] == [(s, a) for s in range(1, 6) for a in ("full", "lora")]
    while "probe" not in {t.purpose for t in wave.trials}:
        evidence = add(evidence, wave.trials, answer)
        wave = plan.next_wave(evidence)
    assert "tune" not in {t.purpose for t in wave.trials}
    probes = [t for t in wave.trials if t.purpose == "probe"]
    assert [(t.seed, t.task, t.arm.name) for t in probes] == [
        (1, task, arm) for task in ("mail", "news") for arm in ("full", "lora")
    ]
    for trial in (*finals, *probes):
        assert trial.learning_rate == plan.chosen_rate(evidence, trial.arm.name, trial.task).value


def test_a_settled_study_ends_at_the_first_look():
    lock = a_lock(margin=0.05)
    evidence, waves = follow(lock, lambda t: 0.9 if t.arm.name == "full" else 0.6 + bell(TOP, level=0)(t) / 10)
    assert {r.trial.seed for r in evidence.of(purpose="final")} == {1, 2, 3, 4, 5}
    assert plan.next_wave(evidence) is None


def test_an_open_study_bound_by_seeds_goes_to_the_next_look():
    def unsteady(trial: Trial) -> float:
        return bell(TOP)(trial) + 0.15 * random.Random(f"{trial.arm.name}{trial.seed}").uniform(-1, 1)

    evidence, waves = follow(a_lock(), unsteady)
    assert waves[-1].why == "finals of the look at 10 seeds"
    assert [(t.seed, t.arm.name) for t in waves[-1].trials] == [(s, a) for s in range(6, 11) for a in ("full", "lora")]
    assert len(evidence.of(purpose="probe")) == 2


def test_no_task_goes_to_the_next_look_before_every_task_had_its_first():
    """Mail is open after its first look, bound by seeds; news is still being tuned."""

    def unsteady(trial: Trial) -> float:
        return bell(TOP)(trial) + 0.15 * random.Random(f"{trial.arm.name}{trial.seed}").uniform(-1, 1)

    evidence, asked = empty(a_lock(tasks=("mail", "news"))), []
    for _ in range(30):
        wave = plan.next_wave(evidence)
        asked += [t for t in wave.trials if t.task == "mail"]
        evidence = add(evidence, [t for t in wave.trials if t.task == "mail"], unsteady)
    assert {t.seed for t in asked if t.purpose == "final"} == {1, 2, 3, 4, 5}
    assert {t.task for t in plan.next_wave(evidence).trials} == {"news"}


def test_the_next_look_is_completed_once_begun():
    """Mail calls for a second look of all and then has its own: news, settled before, must still complete it."""

    def answer(trial: Trial) -> float:
        steady = 0.9 if trial.arm.name == "full" else 0.6
        luck = 0.15 * random.Random(f"{trial.arm.name}{trial.seed}").uniform(-1, 1)
        return bell(TOP, level=steady)(trial) if trial.task == "news" else bell(TOP)(trial) + luck

    whole, waves = follow(a_lock(tasks=("mail", "news")), answer)
    assert {(t.task, t.seed > 5) for t in waves[-1].trials} == {("mail", True), ("news", True)}
    late = {t.id for t in waves[-1].trials if t.task == "news"}
    part = dataclasses.replace(whole, records=tuple(r for r in whole.records if r.trial.id not in late))
    assert {t.id for t in plan.next_wave(part).trials} == late


def test_no_trial_is_asked_for_twice_and_the_study_ends_in_trials_within_the_preview():
    lock = a_lock(tasks=("mail", "news"))
    evidence, waves = follow(lock, bell(TOP, noise=0.02))
    ids = [trial.id for wave in waves for trial in wave.trials]
    assert len(ids) == len(set(ids))
    bounds = plan.preview(lock, SHAPE).trials
    assert bounds.low <= len(ids) <= bounds.high


@pytest.mark.parametrize("luck", range(8))
def test_an_interrupted_study_asks_for_the_same_trials(luck):
    """Whatever part of a wave ended, in whatever order: the study goes on to the very same trials."""
    lock, rng = a_lock(tasks=("mail", "news")), random.Random(luck)
    answer = bell(TOP, noise=0.03)
    whole, _ = follow(lock, answer)
    evidence = empty(lock)
    while wave := plan.next_wave(evidence):
        part = rng.sample(wave.trials, rng.randint(1, len(wave.trials)))
        evidence = add(evidence, part, answer)
        shuffled = tuple(rng.sample(evidence.records, len(evidence.records)))
        evidence = dataclasses.replace(evidence, records=shuffled)
    assert {r.trial.id for r in evidence.records} == {r.trial.id for r in whole.records}


def test_test_scores_never_touch_the_search():
    evidence, waves = follow(a_lock(), bell(TOP, noise=0.02))
    scrambled = dataclasses.replace(
        evidence, records=evidence.of(purpose="tune"), scores={k: v for k, v in evidence.scores.items() if 0}
    )
    for arm in ("full", "lora"):
        assert plan.chosen_rate(scrambled, arm, "mail") == plan.chosen_rate(evidence, arm, "mail")


@pytest.mark.parametrize(
    ("effect", "discordance", "rows"),
    [(0.01, 0.05, 3922), (0.01, 0.10, 7847), (0.01, 0.20, 15695), (0.02, 0.10, 1960)],
)
def test_rows_needed_golden(effect, discordance, rows):
    assert round(rows_needed(effect, discordance)) == rows


def test_rows_needed_has_the_power_it_claims():
    """Counted: two arms that differ on a tenth of the rows, one ahead by 0.02; a two-sided test of the difference."""
    rows = round(rows_needed(0.02, 0.10))
    rng = np.random.default_rng(0)
    wins = rng.multinomial(rows, [0.06, 0.04, 0.9], size=20_000)
    better, worse = wins[:, 0], wins[:, 1]
    found = np.abs(better - worse) / np.sqrt(better + worse) > 1.959964
    assert found.mean() == pytest.approx(0.8, abs=0.015)


def test_detectable_effect_is_found_as_often_as_it_says():
    """Counted: five pairs whose seeds and examples vary as the prior says, judged by the crossed interval."""
    from tunetrial.analysis import stats

    lock = a_lock(looks=(5,), test=200)
    prior = Prior(seed_sd=0.02, example_sd=0.3)
    effect = power(lock, lock.study.tasks[0], prior).detectable[5]
    rng, found = np.random.default_rng(1), 0
    for _ in range(1500):
        seed_R = rng.normal(0, 0.02 * 2**0.5, 5)
        diff_RE = effect + seed_R[:, None] + rng.normal(0, 0.3, 200)[None, :]
        low, high = stats.crossed(diff_RE).interval(0.95)
        found += low > 0 or high < 0
    assert found / 1500 == pytest.approx(0.8, abs=0.04)


def test_preview_says_when_no_number_of_seeds_can_settle_it():
    few = plan.preview(a_lock(test=277, margin=0.01), SHAPE)
    assert few.power[0].rows_needed > 277
    assert "with 277 test items no number of seeds can resolve 1 point: about " in str(few)
    many = plan.preview(a_lock(test=20_000, margin=0.02), SHAPE)
    assert many.power[0].rows_needed < 20_000 and "no number of seeds" not in str(many)
    assert many.power[0].detectable[10] < many.power[0].detectable[5]


def test_preview_knows_nothing_of_an_error_whose_unit_it_does_not_know():
    lock = a_lock(metric="mae", margin=0.2)
    assert plan.preview(lock, SHAPE).power[0].detectable == {}
    assert "power unknown" in str(plan.preview(lock, SHAPE))
    rows = tuple(Row(id=str(n), cluster=str(n), prompt="ten bytes.", target=float(n % 10)) for n in range(50))
    data = TaskData(name="mail", kind="regress", labels=(), splits={"train": rows, "validation": rows, "test": rows})
    known = plan.preview(lock, SHAPE, {"mail": data})
    assert known.power[0].detectable_at_best > 0
    assert known.trained_tokens.high < plan.preview(lock, SHAPE).trained_tokens.high


def test_preview_counts_trials_tokens_and_money():
    lock = a_lock(hardware=Hardware(gpu="NVIDIA L4", usd_per_hour=0.8))
    made = plan.preview(lock, SHAPE)
    assert made.first_wave == plan.next_wave(empty(lock)).trials
    # An arm: 5 points, 2 more seeds at three of them, 5 finals, a probe; or 9 points of 3 seeds, 10 finals, a probe.
    assert (made.trials.low, made.trials.high) == (2 * (5 + 6 + 5 + 1), 2 * (27 + 10 + 1))
    assert made.trained_tokens.high == 2 * 37 * 3 * 320 * 512
    assert made.usd.high == pytest.approx(made.time.wall_s.high * 0.8 / 3600)
    assert 0 < made.seconds.low < made.seconds.high
    assert "first: 10 trials" in str(made)


def test_preview_without_price_or_with_an_unknown_device_leaves_out_what_it_cannot_know():
    assert plan.preview(a_lock(), SHAPE).usd is None
    made = plan.preview(a_lock(hardware=Hardware(gpu="abacus", usd_per_hour=1.0)), SHAPE)
    assert made.seconds is None and made.usd is None
    assert "no time without the speed of 'abacus'" in str(made)


def test_preview_of_memory_lies_around_the_count_by_hand():
    """Full fine-tuning in fp32: weights, gradients and two moments, 16 bytes a weight, and room for activations."""
    made = plan.preview(a_lock(), SHAPE).memory_bytes
    weights = SHAPE.backbone_parameters
    assert 16 * weights < made["full"].low < 17 * weights
    assert 4 * weights < made["lora"].low < made["full"].low
    assert all(one.low < one.high for one in made.values())


def test_preview_refuses_what_cannot_fit():
    giant = SHAPE.model_copy(update={"layers": 100 * SHAPE.layers, "projections": SHAPE.projections})
    made = plan.preview(a_lock(hardware=Hardware(gpu="t4")), giant.model_copy(update={"vocabulary": 2_000_000}))
    assert set(made.refused) == {"full"}
    assert "a t4 has" in made.refused["full"].lower()
    limited = plan.preview(a_lock(limits={"peak_gib": 0.1}, criteria={"quality": Criterion(weight=1)}), SHAPE)
    assert "limits.peak_gib allows 0.1" in limited.refused["full"]
    assert "does not fit: full" in str(limited)
