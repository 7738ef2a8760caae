"""Few rows: how they are cut into folds, the variance over folds, and whole studies of them."""

import csv
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from trial_study import content, differences, load
from tunetrial import plan, spec, tasks
from tunetrial.analysis import compare, decide, folds, metrics, stats, verdict
from tunetrial.core.errors import DataError, EvidenceError
from tunetrial.core.evidence import Evidence, Measurement, Scores, TrialRecord
from tunetrial.core.study import Arm, DataPin, Lock, TaskSpec
from tunetrial.spec import oneline

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def a_spec(**more) -> TaskSpec:
    given = {"kind": "classify", "metric": "accuracy", "margin": 0.05, "input": "{{ text }}", "target": "y"}
    return TaskSpec(name="mail", data="rows.csv", **given | more)


def write_rows(folder, rows) -> None:
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def some_rows(count=81, labels="abc"):
    return [
        {"text": f"mail {n} {n * 7919 % 104729}", "y": labels[n % len(labels)], "who": n // 3} for n in range(count)
    ]


def cut(folder, rows, *, repeats=3, **more):
    write_rows(folder, rows)
    asked = a_spec(**more)
    return tasks.fold(tasks.load(asked, folder, folds=5), asked, repeats)


# How rows are cut


def test_every_row_is_tested_once_a_repeat_and_is_never_trained_on_there(tmp_path):
    found = cut(tmp_path, some_rows())
    assert list(found) == [f"mail#{r}.{k}" for r in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    for repeat in ("1", "2", "3"):
        own = [data for name, data in found.items() if name.startswith(f"mail#{repeat}.")]
        tested = Counter(e.id for data in own for e in data.splits["test"])
        assert len(tested) == 81 and set(tested.values()) == {1}
    for data in found.values():
        ids = [e.id for split in ("train", "validation", "test") for e in data.splits[split]]
        assert len(ids) == len(set(ids)) == 81
        assert 16 <= len(data.splits["test"]) <= 17 and 12 <= len(data.splits["validation"]) <= 14
        assert set(Counter(e.target for e in data.splits["test"]).values()) <= {5, 6}


def test_repeats_cut_differently_and_validation_rows_change_from_fold_to_fold(tmp_path):
    found = cut(tmp_path, some_rows())
    assert len({data.digest("test") for data in found.values()}) == 15
    validated = Counter(e.id for data in found.values() for e in data.splits["validation"])
    assert len(validated) > 70 and max(validated.values()) <= 9


def test_folds_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = some_rows()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = cut(tmp_path / "a", rows), cut(tmp_path / "b", rows[::-1])
    for name in one:
        prompts = [{e.prompt for e in found[name].splits["test"]} for found in (one, other)]
        assert prompts[0] == prompts[1]


def test_clusters_and_equal_prompts_stay_together(tmp_path):
    found = cut(tmp_path, some_rows(), cluster="who")
    for data in found.values():
        clusters = [{e.cluster for e in data.splits[split]} for split in ("train", "validation", "test")]
        assert not clusters[0] & clusters[1] and not clusters[0] & clusters[2] and not clusters[1] & clusters[2]
    rows = some_rows(40)
    several = [row | {"y": f"{row['y']} {n}"} for row in rows for n in range(2)]
    found = cut(tmp_path, several, kind="generate", metric="chrf")
    for data in found.values():
        prompts = [{e.prompt for e in data.splits[split]} for split in ("train", "validation", "test")]
        assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12)), min_size=20, max_size=60))
def test_whatever_the_rows_are_folds_are_disjoint_and_test_what_can_be_learned(tmp_path_factory, drawn):
    rows = [{"text": f"mail {n}", "y": label, "who": who} for n, (label, who) in enumerate(drawn)]
    try:
        found = cut(tmp_path_factory.mktemp("rows"), rows, repeats=1, cluster="who")
    except DataError as error:
        assert "add rows" in str(error)
        return
    for data in found.values():
        clusters = [{e.cluster for e in data.splits[split]} for split in ("train", "validation", "test")]
        assert not (clusters[0] & clusters[1] or clusters[0] & clusters[2] or clusters[1] & clusters[2])


def test_a_label_of_one_group_is_never_tested_and_said(tmp_path):
    rows = [*some_rows(), {"text": "the only one", "y": "rare", "who": 99}]
    write_rows(tmp_path, rows)
    whole = tasks.load(a_spec(), tmp_path, folds="auto")
    assert whole.remarks == ("labels: 'rare' stand in one group each, which is never tested",)
    for data in tasks.fold(whole, a_spec(), 2).values():
        assert "rare" in {e.target for e in data.splits["train"]}
        assert "rare" not in {e.target for e in data.splits["test"]}


@pytest.mark.parametrize(
    "rows, folds_asked, more, cut_into",
    [
        (81, "auto", {}, 5),
        (299, "auto", {}, 5),
        (300, "auto", {}, None),
        (81, "none", {}, None),
        (400, 3, {}, 3),
        (81, "auto", {"test": "test.csv"}, None),
        (81, 5, {"validation": "test.csv"}, None),
    ],
)
def test_one_file_of_few_rows_is_cut_unless_it_is_said_otherwise(tmp_path, rows, folds_asked, more, cut_into):
    write_rows(tmp_path, some_rows(60))
    (tmp_path / "rows.csv").rename(tmp_path / "test.csv")
    write_rows(tmp_path, some_rows(rows))
    found = tasks.load(a_spec(**more), tmp_path, folds=folds_asked)
    assert found.folds == cut_into and ("all" in found.splits) == (cut_into is not None)


def test_a_built_in_task_is_never_cut(tmp_path):
    assert tasks.load(tasks.built_in("newsletter"), tmp_path, folds="auto").folds is None


def test_a_metric_that_is_no_mean_is_refused_with_others(tmp_path):
    write_rows(tmp_path, some_rows())
    with pytest.raises(DataError, match="81 rows are cut into 5 folds.*got macro_f1; use accuracy, name a test file"):
        tasks.load(a_spec(metric="macro_f1"), tmp_path, folds="auto")
    with pytest.raises(DataError, match="a share of a gain is not judged over folds, got margin '95% of gain'"):
        tasks.load(a_spec(margin="95% of gain"), tmp_path, folds=5)
    assert tasks.load(a_spec(metric="macro_f1"), tmp_path, folds="none").folds is None
    means = {m.name for m in metrics.METRICS.values() if m.is_mean and m.higher_is_better is not None}
    assert not means & {"macro_f1", "mcc", "rmse", "pearson", "spearman"}
    assert {"accuracy", "mae", "chrf", "exact_match", "nll"} <= means


def test_too_few_groups_are_refused(tmp_path):
    with pytest.raises(DataError, match="5 folds need as many different prompts of labels that recur, got 4"):
        cut(tmp_path, some_rows(4, "ab"))
    with pytest.raises(DataError, match="fold 1.1 is too small"):
        cut(tmp_path, some_rows(6, "ab"))


# The variance


def test_the_corrected_t_has_baycomps_values():
    """baycomp's two_on_single of one 5-fold cross-validation: P(difference > 0.01), < -0.01, and between."""
    x, y = np.array([0.80, 0.81, 0.79, 0.82, 0.80]), np.array([0.81, 0.83, 0.80, 0.82, 0.82])
    found = stats.resampled(y - x, test_to_train=1 / 4)
    above, below = found.p_not_below(-0.01), 1 - found.p_not_below(0.01)
    assert below == pytest.approx(0.630209, abs=1e-6) and above == pytest.approx(0.008625, abs=1e-6)
    assert below + above + 0.361166 == pytest.approx(1, abs=1e-5)


def test_the_corrected_t_by_hand():
    """Four differences 1, 2, 3, 4 (s2 = 5/3), one test row to three others: (1/4 + 1/3) * 5/3 = 35/36."""
    found = stats.resampled(np.array([1.0, 2, 3, 4]), test_to_train=1 / 3)
    assert (found.effect, found.df) == (2.5, 3) and found.se == pytest.approx((35 / 36) ** 0.5)
    low, high = found.interval(0.95)
    assert (high - low) / 2 == pytest.approx(3.182446 * (35 / 36) ** 0.5, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.01, 1))
def test_the_corrected_variance_is_that_of_a_plain_count(values, ratio):
    if len(set(values)) == 1:
        with pytest.raises(EvidenceError):
            stats.resampled(np.array(values), test_to_train=ratio)
        return
    mean = math.fsum(values) / len(values)
    square = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    if square < 1e-12:
        return
    found = stats.resampled(np.array(values), test_to_train=ratio)
    assert found.se**2 == pytest.approx((1 / len(values) + ratio) * square, rel=1e-6)


# A learner in numpy: does the interval hold?


def _ridge(x, y, penalty):
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def _tuned(rng, x, y):
    """Ridge with the penalty that a fifth of the rows chooses; learned from the others."""
    order = rng.permutation(len(y))
    chosen, learned = order[: len(y) // 5], order[len(y) // 5 :]
    fits = [_ridge(x[learned], y[learned], penalty) for penalty in (1, 10, 100)]
    return min(fits, key=lambda w: np.abs(x[chosen] @ w - y[chosen]).mean())


def _draw(rng, rows, weight):
    x = rng.normal(size=(rows, 20))
    return x, x @ weight + 2 * rng.normal(size=rows)


def _difference(rng, learn, test, half):
    """Error of ridge on the first columns alone, minus on all."""
    errors = []
    for columns in (half, 20):
        w = _tuned(rng, learn[0][:, :columns], learn[1])
        errors.append(np.abs(test[0][:, :columns] @ w - test[1]).mean())
    return errors[0] - errors[1]


def misses(*, studies, truths, half, tail, repeats, seed=0) -> tuple[float, float, int]:
    """Shares of intervals at a nominal 95 % that miss the expected difference over fresh training sets of n - n/K rows
    and endless test rows: the corrected t's and the naive one's."""
    rng = np.random.default_rng(seed)
    weight = np.r_[np.full(half, 0.5), np.full(20 - half, tail)]
    truth = np.mean([_difference(rng, _draw(rng, 65, weight), _draw(rng, 200, weight), half) for _ in range(truths)])
    missed = np.zeros(2)
    for _ in range(studies):
        x, y = _draw(rng, 81, weight)
        diffs = []
        for _ in range(repeats):
            for fold in np.array_split(rng.permutation(81), 5):
                rest = np.setdiff1d(np.arange(81), fold)
                diffs.append(_difference(rng, (x[rest], y[rest]), (x[fold], y[fold]), half))
        for place, ratio in enumerate((1 / 4, 0.0)):
            low, high = stats.resampled(np.array(diffs), test_to_train=ratio).interval(0.95)
            missed[place] += not low <= truth <= high
    return float(missed[0]) / studies, float(missed[1]) / studies, studies


def test_corrected_intervals_of_a_real_learner_hold():
    corrected, naive, studies = misses(studies=60, truths=600, half=10, tail=0.25, repeats=3)
    assert corrected * studies <= scipy_stats.binom.ppf(0.99, studies, 0.05) and naive > corrected


@pytest.mark.slow
@pytest.mark.parametrize("half, tail", [(19, 0.0), (15, 0.0), (10, 0.25)])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_corrected_intervals_hold_for_three_learners(half, tail, repeats):
    corrected, naive, studies = misses(studies=2000, truths=10_000, half=half, tail=tail, repeats=repeats)
    print(f"half {half}, repeats {repeats}: corrected {100 * corrected:.2f} %, naive {100 * naive:.2f} %")
    assert corrected * studies <= scipy_stats.binom.ppf(0.95, studies, 0.05)


# Verdicts


def a_lock(*, repeats=2):
    text = f"""
base_model: embedded
tasks:
  - {{name: mail, data: rows.csv, kind: classify, input: "{{{{ text }}}}", target: y, metric: accuracy, margin: 0.05}}
arms: [full, lora]
replicates: {{folds: 5, repeats: {repeats}}}
"""
    study = spec.parse(text)
    names = [f"mail#{r}.{k}" for r in range(1, repeats + 1) for k in range(1, 6)]
    counts = {"train": 52, "validation": 12, "test": 16}
    pins = {n: DataPin(digests={s: f"{n} {s}" for s in counts}, counts=counts, labels=("a", "b")) for n in names}
    pins["mail"] = DataPin(digests={"all": "all"}, counts={"all": 80}, labels=("a", "b"))
    return Lock(
        study=study, base_fingerprint="f", parameters=12_000_000, precision="fp32", data=pins, folds={"mail": 5}
    )


def an_evidence(lock, right, *, best=None, diverged=(), lost=()) -> Evidence:
    """Every fold of every arm: `right` gives by (arm, place of the fold) how many of the 16 test rows are right.

    Of the folds in `diverged` an arm's final fails, of those in `lost` every run of its search; `best` says which rate
    is best in a fold, 1e-3 unless said.
    """
    records, scores = [], {}
    for place, name in enumerate(lock.parts("mail"), start=1):
        for arm in ("full", "lora"):
            for rate in RATES:
                for seed in (901, 902, 903):
                    trial = lock.trial(arm, name, learning_rate=rate, seed=seed, purpose="tune")
                    away = abs(math.log10(rate / (best or {}).get((arm, place), 1e-3)))
                    value = {"validation.accuracy": Measurement(value=0.8 - 0.1 * away, unit="share")}
                    failed = (arm, place) in lost
                    status, found = ("diverged", {}) if failed else ("ok", value)
                    records.append(
                        TrialRecord(trial=trial, status=status, measurements=found, resolved={"device": "cpu"})
                    )
            if (arm, place) in lost:
                continue
            final = lock.trial(arm, name, learning_rate=1e-3, seed=place, purpose="final")
            if (arm, place) in diverged:
                records.append(TrialRecord(trial=final, status="diverged"))
                continue
            for split, rows in (("validation", 12), ("test", 16)):
                target = np.array(["a"] * (rows - 6) + ["b"] * 6, dtype=object)
                said, wrong = target.copy(), rows - right[arm, place] if split == "test" else 2
                said[:wrong] = np.where(target[:wrong] == "a", "b", "a")
                ids = tuple(f"{split} {n}" for n in range(rows))
                scores[final.id, split] = Scores(ids, ids, target, said)
            records.append(TrialRecord(trial=final, status="ok", token_digest=name, resolved={"device": "cpu"}))
    return Evidence(lock, tuple(records), scores, {})


RIGHT = {("full", place): 12 + place % 3 for place in range(1, 11)}
RIGHT |= {("lora", place): 11 + place % 2 for place in range(1, 11)}


def test_a_verdict_over_folds_is_that_of_a_plain_count():
    lock = a_lock()
    (full, lora), (found,) = compare(an_evidence(lock, RIGHT))
    diff = [(RIGHT["lora", place] - RIGHT["full", place]) / 16 for place in range(1, 11)]
    mean, spread = np.mean(diff), np.var(diff, ddof=1)
    half = scipy_stats.t.ppf(0.975, 9) * (spread * (1 / 10 + 16 / 64)) ** 0.5
    assert (found.effect, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert found.level == pytest.approx(0.95) and (found.n_replicates, found.n_examples) == (10, 80)
    assert str(found.folding) == "5 folds × 2 repeats" and found.bound_by is None
    assert "variance (1/10 + 0.25) s2, df 9" in found.procedure and "one look" in found.procedure
    assert full.state == lora.state == "trained" and len(full.values) == 10
    assert full.mean == pytest.approx(np.mean([RIGHT["full", place] for place in range(1, 11)]) / 16)


def test_whether_to_tune_is_answered_over_folds_too():
    """tfidf in lora's place has one final a fold; it is not worse than full by a margin of 0.3."""
    lock = a_lock()
    tfidf = Arm(name="lora", method="tfidf")
    tasks_ = (lock.study.tasks[0].model_copy(update={"margin": 0.3}),)
    study = lock.study.model_copy(update={"arms": (lock.study.arm("full"), tfidf), "tasks": tasks_})
    plain = an_evidence(lock.model_copy(update={"study": study}), RIGHT)
    kept = [r for r in plain.records if r.trial.arm.name == "full" or r.trial.purpose == "final"]
    decision = decide(replace(plain, records=tuple(kept)))
    assert decision.need.answer == "no" and "lora is not worse than full by your margin" in decision.need.reason
    assert decision.verdicts[0].words == "NOT WORSE" or decision.verdicts[0].size == "within"


def test_the_order_of_folds_pairs_them():
    """The same folds in another pairing have another spread."""
    swapped = RIGHT | {("lora", place): RIGHT["lora", 11 - place] for place in range(1, 11)}
    one, other = (compare(an_evidence(a_lock(), right))[1][0] for right in (RIGHT, swapped))
    assert one.effect == pytest.approx(other.effect) and one.high - one.low != pytest.approx(other.high - other.low)


def test_a_failed_final_counts_as_the_constant_and_so_does_a_failed_search():
    for failing in ({"diverged": {("lora", 3)}}, {"lost": {("lora", 3)}}):
        (_, lora), (found,) = compare(an_evidence(a_lock(), RIGHT, **failing))
        worth = [10 if place == 3 else RIGHT["lora", place] for place in range(1, 11)]
        assert lora.failed == 1 and lora.mean == pytest.approx(np.mean(worth) / 16)
        assert found.effect == pytest.approx(np.mean([w - RIGHT["full", p] for p, w in enumerate(worth, 1)]) / 16)


def test_an_arm_that_fails_in_most_folds_has_diverged():
    lost = {("lora", place) for place in range(1, 7)}
    (_, lora), (found,) = compare(an_evidence(a_lock(), RIGHT, lost=lost))
    assert lora.state == "diverged" and found.words == "NOT COMPARABLE" and "6 of 10 folds" in found.reason


def test_an_arm_that_is_no_better_than_the_constant_did_not_train():
    idle = RIGHT | {("lora", place): 10 + (-1) ** place for place in range(1, 11)}
    (_, lora), (found,) = compare(an_evidence(a_lock(), idle))
    assert lora.state == "did not train" and found.words == "NOT COMPARABLE"
    both = idle | {("full", place): idle["lora", place] for place in range(1, 11)}
    assert decide(an_evidence(a_lock(), both)).abstention.next_spend.startswith("more rows: so few may not show")


def test_a_comparison_waits_for_all_folds():
    whole = an_evidence(a_lock(), RIGHT)
    left = [
        r for r in whole.records if (r.trial.arm.name, r.trial.task, r.trial.purpose) != ("lora", "mail#2.5", "final")
    ]
    (_, lora), (found,) = compare(replace(whole, records=tuple(left)))
    assert lora.state == "pending" and found.reason == "lora has 9 of 10 finals"


def test_one_fold_in_five_may_have_its_best_rate_at_an_edge():
    for count, holds in ((2, True), (3, False)):
        best = {("lora", place): 1e-2 for place in range(1, count + 1)}
        found = compare(an_evidence(a_lock(), RIGHT, best=best))[1][0]
        assert (found.words != "NOT COMPARABLE") == holds
    assert "in 3 of 10 folds, such as fold 1.1: lora is best at the edge" in found.reason


def test_other_tokens_in_one_fold_void_the_comparison():
    whole = an_evidence(a_lock(), RIGHT)

    def other(r):
        mine = (r.trial.arm.name, r.trial.task, r.trial.purpose) == ("lora", "mail#1.2", "final")
        return r.model_copy(update={"token_digest": "other"}) if mine else r

    found = compare(replace(whole, records=tuple(map(other, whole.records))))[1][0]
    assert found.words == "NOT COMPARABLE" and "in 1 of 10 folds" in found.reason


def test_the_test_to_train_ratio_counts_what_chose_the_rates():
    assert folds.test_to_train(a_lock(), "mail") == pytest.approx(16 / 64)


@pytest.mark.parametrize(("seed_sd", "example_sd"), [(0.01, 0.3), (0.05, 0.1)])
def test_power_of_folds_is_that_of_the_verdict(seed_sd, example_sd):
    """Counted: rows cut anew in each repeat, runs that differ by seed, judged by the corrected resampled t."""
    found = plan.power.power(
        a_lock(), a_lock().study.tasks[0], plan.power.Prior(seed_sd=seed_sd, example_sd=example_sd)
    )
    rng, studies = np.random.default_rng(3), 1000
    drawn = [drawn_folds(rng, seed_sd, example_sd) for _ in range(studies)]
    for effect, chance in [(found.detectable[10], 0.8), *((o.effect, o.overall.direction) for o in found.outlook)]:
        ends = [one.model_copy(update={"effect": one.effect + effect}).interval(0.95) for one in drawn]
        assert np.mean([low > 0 or high < 0 for low, high in ends]) == pytest.approx(chance, abs=0.045)
    judged = [verdict.judge([verdict.by_margin(one, 0.05)], alpha=0.05, looks=[(1,)])[0].words for one in drawn]
    assert np.mean([words == "CAN'T TELL YET" for words in judged]) == pytest.approx(
        found.outlook[0].overall.inconclusive, abs=0.045
    )
    assert found.detectable_at_best < found.detectable[10]
    assert "5 folds × 2 repeats of 80 rows" in str(found)


def drawn_folds(rng, seed_sd, example_sd):
    """The estimate of one study of 5 folds × 2 repeats of 80 rows without a difference."""
    own_E, diff_J = rng.normal(0, example_sd, 80), []
    for _ in range(2):
        parts = np.array_split(rng.permutation(80), 5)
        diff_J += [own_E[part].mean() + rng.normal(0, seed_sd * 2**0.5) for part in parts]
    return stats.resampled(np.array(diff_J), test_to_train=16 / 64)


def test_rows_that_folds_need_are_a_number_or_none_for_every_margin():
    def needed(margin, **prior):
        spec = a_lock().study.tasks[0].model_copy(update={"margin": margin})
        return plan.power.power(a_lock(), spec, plan.power.Prior(**prior))

    assert 80 < needed(0.05, seed_sd=0.01, example_sd=0.3).rows_needed < 2000
    assert needed(2.0, seed_sd=0.01, example_sd=0.3).rows_needed == 5
    never = needed(0.01, seed_sd=0.05, example_sd=0.3)
    assert never.rows_needed is None and "no number of rows" in str(never)


# Whole studies on the simulator


YAML = """
base_model: embedded
tasks:
  - {name: mail, data: rows.csv, kind: classify, input: "{{ text }}", target: y, metric: accuracy, margin: 0.05}
arms: [full, lora]
batch_examples: 16
epochs: 1
tuning: {points: 3, max_points: 3}
replicates: {folds: 2, repeats: 1}
"""


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    return write_few(tmp_path)


def write_few(folder):
    folder.mkdir(exist_ok=True)
    write_rows(folder, some_rows())
    path = folder / "study.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study in folds, carried out to its end by an engine that fails if a seal is broken."""
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        yield load(write_few(folder), "Sealed").run()


def test_a_study_of_few_rows_is_carried_out_in_folds(done):
    planned = json.loads((done.folder / "plan.json").read_text())
    assert planned["trials"]["low"] == 2 * 2 * (3 + 3 * 2 + 1) + 2
    assert planned["folds"]["mail"].startswith("81 rows in 2 folds × 1 repeat: every row is tested once")
    records = done.outcome.evidence.records
    finals = [r.trial for r in records if r.trial.purpose == "final"]
    assert done.outcome.status == "done"
    assert sorted((t.task, t.seed) for t in finals) == [("mail#1.1", 1)] * 2 + [("mail#1.2", 2)] * 2
    assert [r.trial.task for r in records if r.trial.purpose == "probe"] == ["mail#1.1"] * 2
    decision = done.decide()
    assert [len(arm.values) for arm in decision.arms] == [2, 2] and decision.test_openings == {"mail": 1}
    assert {"quality", "train_s"} <= set(decision.costs["lora"])
    text = (done.report().parent / "report.md").read_text()
    assert "folds: 2 folds × 1 repeat; the first has" in text and "in 2 of 2 folds" in text and "2 folds)" in text


@pytest.mark.slow
def test_a_study_of_few_rows_ends_in_a_verdict_over_its_folds(few):
    few.write_text(YAML.replace("points: 3, max_points: 3", "points: 5").replace("folds: 2, repeats: 1", "repeats: 3"))
    (found,) = load(few, "Sealed").run().decide().verdicts
    assert str(found.folding) == "5 folds × 3 repeats" and (found.n_replicates, found.n_examples) == (15, 81)


@pytest.mark.slow
def test_a_study_in_folds_that_was_stopped_goes_on_to_the_same_end(done, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    study = load(write_few(tmp_path), "Sealed")

    def stop(progress):
        if progress.done >= 20:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError):
        study.run(tell=stop)
    assert 0 < len(list(study.folder.glob("trials/*/record.json"))) < len(content(done))
    study.run()
    assert differences(content(study), content(done)) == []


def test_studies_and_trials_without_folds_keep_their_digests(few):
    """Records of before have none of the fields; ids are of arm, controls, rows, rate and seed alone."""
    lock = a_lock()
    plain = lock.model_copy(update={"study": lock.study.model_copy(update={"folds": "auto"}), "folds": {}})
    assert not {"folds", "repeats"} & (set(plain.model_dump()) | set(plain.model_dump()["study"]))
    trial = lock.trial("full", "mail#1.1", learning_rate=1e-3, seed=1, purpose="final")
    other = lock.model_copy(update={"study": lock.study.model_copy(update={"looks": (7,), "repeats": 1})})
    assert other.trial("full", "mail#1.1", learning_rate=1e-3, seed=1, purpose="final").id == trial.id
    assert not {"folds", "repeats"} & set(trial.model_dump()) and not {"folds"} & set(trial.controls.model_dump())


def test_study_files_say_folds(few):
    study = spec.parse(few.read_text())
    assert (study.folds, study.repeats) == (2, 1) and spec.parse(spec.write(study)) == study
    with pytest.raises(spec.SpecError, match="replicates.folds: must be 'auto' or 'none' or"):
        spec.parse(few.read_text().replace("folds: 2", "folds: some"))
    text = "base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\nreplicates: {folds: 5}\n"
    with pytest.raises(spec.SpecError, match="no task has a single file of rows to cut, got 5; name data alone"):
        spec.parse(text)


def test_the_one_liner_takes_a_metric_that_folds_allow(few):
    rows = [{"text": f"mail {n}", "label": "ab"[n % 2]} for n in range(400)]
    for count, metric in ((81, "accuracy"), (400, "macro_f1")):
        write_rows(few.parent, rows[:count])
        assert oneline.guess(str(few.parent / "rows.csv")).fields["metric"] == metric


def test_a_budget_takes_repeats_last(few):
    study = spec.parse(few.read_text().replace("repeats: 1", "repeats: 3"))
    steps = list(plan.budget.smaller(study, folds=True))
    assert [str(r) for r in steps[-1]][-1] == "repeats: 3 asked, 1 within the budget"
    assert not any(r.field == "repeats" for step in plan.budget.smaller(study) for r in step)
