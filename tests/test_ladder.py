"""A study's ladders on the simulator: which trials they ask for, what is read off them, what is advised."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planted import RATES, evidence, lock
from tunetrial import models
from tunetrial.analysis import ladder, prospects
from tunetrial.core.errors import ConfigError, DataError, EvidenceError
from tunetrial.core.evidence import Evidence, Example, Scores, TaskData, TrialRecord
from tunetrial.core.ladder import Ladder
from tunetrial.core.study import DataPin, Tuning
from tunetrial.engine.sim import SimEngine, Truth, World
from tunetrial.plan.ladder import ladder_trials
from tunetrial.tasks.portions import portion

ASKED = Ladder(arm="lora", rows=(0.25, 0.5, 1), ranks=(8, 16, 32, 64), label_usd=0.01, margin_usd=20)
RUN_USD = {"lora": 0.5, "full": 1.0}


def rows(split, count, per_cluster=1):
    return tuple(Example(f"{split}{n}", f"{split}{n // per_cluster}", f"text {n}", "abc"[n % 3]) for n in range(count))


DATA = TaskData("mail", "classify", ("a", "b", "c"), {"train": rows("t", 80), "validation": rows("v", 200)})


def begun(asked=ASKED, **settings) -> Evidence:
    """A study whose rates are known (1e-3), with rows pinned for each rung and no finals."""
    held = lock(tuning=Tuning(learning_rate=RATES), ladder=asked, **settings)
    arms = [
        a.model_copy(update={"settings": {"rank": 16, "alpha": 32.0}}) if a.name == "lora" else a
        for a in held.study.arms
    ]
    pins = {
        name: DataPin(digests={"train": f"{name}-train", "test": "test"}, counts={"train": count})
        for name, count in (("mail", 80), ("mail@rows=0.25", 20), ("mail@rows=0.5", 40))
    }
    held = held.model_copy(update={"study": held.study.model_copy(update={"arms": tuple(arms)}), "data": pins})
    found = evidence(held, {"full": 0.8, "lora": 0.8}, rows=40)
    records = tuple(r for r in found.records if r.trial.purpose == "tune")
    return Evidence(lock=held, records=records, scores={}, curves={})


def finals(found):
    for arm in ("full", "lora"):
        for seed in found.lock.final_seeds(5):
            yield found.lock.trial(arm, "mail", learning_rate=1e-3, seed=seed, purpose="final")


def carry_out(found, trials, quality) -> Evidence:
    """Run trials on the simulator, in a world where arms are as good at a trial as `quality` says."""
    records, scores = list(found.records), dict(found.scores)
    for trial in trials:
        truth = Truth(quality=quality(trial), best_rate=1e-3, seed_sd=0.005)
        share = float(trial.task.partition("rows=")[2] or 1)
        run = SimEngine(World(arms={trial.arm.name: truth})).open(models.EMBEDDED, "fp32")
        run = run.start(trial, portion(DATA, share))
        assert len(list(run.steps(None))) == 3 * -(-80 * share // 16)
        examples = DATA.splits["validation"]
        columns = zip(*((e.id, e.cluster, e.target) for e in examples), strict=True)
        ids, clusters, targets = columns
        scores[trial.id, "validation"] = Scores(ids, clusters, np.array(targets), np.array(run.predict(examples)))
        records.append(TrialRecord(trial=trial, status="ok", synthetic=True))
    return replace(found, records=tuple(records), scores=scores)


def learns(trial):
    """0.5, 0.65, 0.75 by rows; nothing by rank; full fine-tuning is worth 0.05."""
    by_rows = {"mail@rows=0.25": 0.5, "mail@rows=0.5": 0.65}.get(trial.task, 0.75)
    return by_rows + (0.05 if trial.arm.name == "full" else 0)


def whole_study(quality=learns, asked=ASKED, **settings):
    found = begun(asked, **settings)
    return carry_out(found, [*finals(found), *ladder_trials(found)], quality)


def test_rungs_are_asked_for_once_the_rate_is_known_and_until_they_are_there():
    found = begun()
    assert ladder_trials(replace(found, records=())) == ()
    trials = ladder_trials(found)
    names = [f"mail@{name}" for name in ("rows=0.25", "rows=0.5", "rank=8", "rank=32", "rank=64")]
    assert [t.task for t in trials] == [name for name in names for _ in range(5)]
    assert {t.seed for t in trials} == set(found.lock.final_seeds(5)) and {t.learning_rate for t in trials} == {1e-3}
    assert {t.purpose for t in trials} == {"confirm"} and len({t.id for t in trials}) == len(trials)
    after = carry_out(found, trials[:7], learns)
    assert ladder_trials(after) == trials[7:]
    assert ladder_trials(carry_out(found, trials, learns)) == ()


def test_alpha_goes_with_the_rank():
    found = begun()
    scales = {t.arm.settings["rank"]: t.arm.settings["alpha"] for t in ladder_trials(found)}
    assert scales == {8: 16.0, 16: 32.0, 32: 64.0, 64: 128.0}


def test_a_rung_that_does_not_fit_is_left():
    found = begun()
    first = next(t for t in ladder_trials(found) if t.task == "mail@rank=64")
    record = TrialRecord(trial=first, status="infeasible", reason="out of memory")
    after = ladder_trials(replace(found, records=(*found.records, record)))
    assert "mail@rank=64" not in {t.task for t in after} and len(after) == 20


def test_rungs_are_nothing_to_the_rest_of_the_study():
    without = carry_out(begun(), finals(begun()), learns)
    with_rungs = whole_study()
    for purpose in ("tune", "final", "confirm"):
        assert with_rungs.of(purpose=purpose, task="mail") == without.of(purpose=purpose, task="mail")


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(EvidenceError, match="no such arm"):
        ladder_trials(begun(Ladder(arm="dora", rows=(0.25, 0.5, 1))))
    with pytest.raises(EvidenceError, match="not pinned"):
        ladder_trials(begun(Ladder(arm="lora", rows=(0.1, 0.5, 1))))
    with pytest.raises(EvidenceError, match="rank of lora, 16"):
        ladder_trials(begun(Ladder(arm="lora", ranks=(8, 32, 64))))
    folded = begun()
    folded = replace(folded, lock=folded.lock.model_copy(update={"folds": {"mail": 5}}))
    with pytest.raises(ConfigError, match="folds"):
        ladder_trials(folded)
    for asked in ({"rows": (0.5, 0.25, 1)}, {"rows": (0.5, 1)}, {"rows": (0.2, 0.4, 0.8)}, {"ranks": (0, 8, 16)}):
        with pytest.raises(ValidationError):
            Ladder(arm="lora", **asked)


def test_gains_are_read_off_the_rungs_and_priced():
    labels, rank, full = ladder.outlook(whole_study(), run_usd=RUN_USD).prospects
    assert (labels.what, rank.what, full.what) == ("more labels", "more rank", "full fine-tuning")
    assert labels.low < 0.1 * 2 / 3 < labels.high and 0.03 < labels.gain < 0.11 and labels.chance > 0.9
    assert labels.usd == pytest.approx(80 * 0.01 + 2 * 0.5) and (rank.usd, full.usd) == (0.5, 1.0)
    assert rank.low < 0 < rank.high and full.low < 0.05 < full.high
    worth = 20 / 0.05
    assert labels.net_usd == pytest.approx(worth * labels.gain - labels.usd)
    assert labels.gain_per_usd == pytest.approx(labels.gain / labels.usd)
    assert prospects.best([labels, rank, full]).what in ("more labels", "full fine-tuning")


def test_more_rank_is_measured_where_the_next_rung_is_there_and_else_forecast():
    """The mean difference of the two rungs, counted by hand; at the last rung the forecast of all."""
    found = whole_study()
    by_rank = {r.trial.arm.settings["rank"]: [] for r in found.of(purpose="confirm") if "rank" in r.trial.task}
    for record in found.of(purpose="confirm"):
        if "rank" in record.trial.task:
            scores = found.scores[record.trial.id, "validation"]
            by_rank[record.trial.arm.settings["rank"]].append(np.mean(scores.target_E == scores.prediction_E))
    own = [found.scores[r.trial.id, "validation"] for r in found.of(purpose="final", arm="lora")]
    own = np.mean([np.mean(s.target_E == s.prediction_E) for s in own])
    measured = ladder.outlook(found, run_usd=RUN_USD).prospects[1]
    assert measured.gain == pytest.approx(np.mean(by_rank[32]) - own)
    top = Ladder(arm="lora", ranks=(4, 8, 16))
    forecast = ladder.outlook(whole_study(asked=top), run_usd=RUN_USD).prospects[0]
    assert forecast.low <= 0 <= forecast.high and forecast.net_usd is None and "worth" in forecast.why


def test_an_ascent_counts_every_rung_from_the_arm_as_it_is():
    found = whole_study()
    by_rank = ladder.ascent(found, "ranks", ladder.rank_rungs(found.lock))
    assert [gain is None for gain in by_rank.gains] == [False, True, False, False]
    assert by_rank.gains[2].expected == pytest.approx(ladder.outlook(found, run_usd=RUN_USD).prospects[1].gain)
    assert by_rank.beyond.high - by_rank.beyond.low > by_rank.gains[3].high - by_rank.gains[3].low
    by_rows = ladder.ascent(found, "rows", ladder.row_rungs(found.lock))
    assert by_rows.gains[0].expected < by_rows.gains[1].expected < by_rows.gains[1].high < 0
    assert by_rows.gains[2] is None
    both = ladder.outlook(found, run_usd=RUN_USD)
    assert both.ascents == (by_rows, by_rank) and both.unread == {}
    assert "0 of 5 runs" in ladder.outlook(begun(), run_usd=RUN_USD).unread["rows"]


def test_what_is_missing_is_said():
    found, none = whole_study(), whole_study()
    lost = next(r for r in found.records if r.trial.task == "mail@rows=0.5")
    diverged = TrialRecord(trial=lost.trial, status="diverged", reason="loss nan")
    found = replace(found, records=tuple(diverged if r is lost else r for r in found.records))
    labels, rank, _ = ladder.outlook(found, run_usd=RUN_USD).prospects
    assert labels.gain is None and "diverged" in labels.why and rank.gain is not None
    none = replace(none, records=tuple(r for r in none.records if r.trial.task != "mail@rank=32"))
    assert "0 of 5 runs" in ladder.outlook(none, run_usd=RUN_USD).prospects[1].why
    unpriced = ladder.outlook(whole_study(), run_usd={}).prospects
    assert all(p.gain is not None and p.usd is None and p.net_usd is None for p in unpriced)
    assert prospects.best(unpriced) is None


def test_an_arm_that_is_out_is_nothing_to_spend_on():
    found = ladder.outlook(whole_study(), run_usd=RUN_USD, excluded={"full": "peak_gib 30 is above the limit of 24"})
    full = next(prospect for prospect in found.prospects if prospect.what == "full fine-tuning")
    assert full.gain is None and full.net_usd is None
    assert full.why == "full is out: peak_gib 30 is above the limit of 24"
    assert found.best != "full fine-tuning"


def test_nothing_to_gain_means_stop():
    asked = ASKED.model_copy(update={"margin_usd": 0.1})
    found = ladder.outlook(whole_study(lambda trial: 0.7, asked), run_usd=RUN_USD)
    assert found.best == "stop" and ladder.outlook(begun(None), run_usd=RUN_USD) is None


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.integers(1, 5))
def test_portions_are_nested_whole_and_at_least_the_share(one, other, per_cluster):
    data = replace(DATA, splits={"train": rows("t", 60, per_cluster), "validation": ()})
    small, large = (portion(data, share).splits["train"] for share in sorted((one, other)))
    assert set(small) <= set(large) and 60 * max(one, other) <= len(large) < 60 * max(one, other) + per_cluster + 1
    assert not {e.cluster for e in large} & {e.cluster for e in data.splits["train"] if e not in large}
    mixed = replace(data, splits={"train": data.splits["train"][::-1], "validation": ()})
    assert set(portion(mixed, other).splits["train"]) == set(portion(data, other).splits["train"])


def test_a_portion_of_one_target_is_refused():
    with pytest.raises(DataError, match="one target"):
        portion(DATA, 0.005)
    with pytest.raises(DataError, match="share"):
        portion(DATA, 0.0)
