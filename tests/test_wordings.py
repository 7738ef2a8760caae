"""What a decision and its report say of answers to inputs that are worded otherwise."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import planted
from tunetrial import report
from tunetrial.analysis import decide
from tunetrial.core.variants import USUAL

QUALITY = {"full": 0.9, "lora": 0.7}
NAMES = ("plain", "case", "typos", "whitespace")


def varied(found, *, changed, luck=0):
    """Evidence whose finals answered variants besides: under each a share of answers is another one of the arm's."""
    rng, scores = np.random.default_rng(luck), dict(found.scores)
    specs = tuple(task.model_copy(update={"variants": USUAL}) for task in found.lock.study.tasks)
    study = found.lock.study.model_copy(update={"tasks": specs})
    for record in found.of(purpose="final"):
        plain = found.scores.get((record.trial.id, "test"))
        for name, share in changed.items() if plain else ():
            moved = rng.permutation(plain.prediction_E)
            said = np.where(rng.random(len(moved)) < share, moved, plain.prediction_E)
            scores[record.trial.id, f"test~{name}"] = replace(plain, prediction_E=said)
    return replace(found, lock=found.lock.model_copy(update={"study": study}), scores=scores)


CHANGED = {"case": 0.05, "typos": 0.4, "whitespace": 0.0}


def test_shares_are_those_counted_by_hand_and_the_worst_wording_is_named():
    found = varied(planted.evidence(planted.lock(), QUALITY, rows=150, per_cluster=2), changed=CHANGED)
    said = {one.arm: one for one in decide(found).wordings}
    for arm in QUALITY:
        splits = ["test", *(f"test~{name}" for name in NAMES[1:])]
        finals = found.of(purpose="final", arm=arm)
        label = np.array([[found.scores[r.trial.id, split].prediction_E for split in splits] for r in finals])
        right = label == found.scores[finals[0].trial.id, "test"].target_E
        one, pairs = said[arm], list(itertools.combinations(range(4), 2))
        value, low, high = one.same
        assert value == pytest.approx(np.mean([label[:, u] == label[:, v] for u, v in pairs])) and low < value < high
        assert list(one.scores) == list(NAMES) and list(one.scores.values()) == pytest.approx(right.mean(axis=(0, 2)))
        assert one.worst == "typos" and one.worst_score[0] == pytest.approx(right[:, 2].mean())
        assert one.worst_score[1] < one.worst_score[0] <= one.worst_score[2]
        assert one.right == pytest.approx(right[:, 0].mean())
        assert one.right_everywhere[0] == pytest.approx(right.all(axis=1).mean())
        assert (one.seeds, one.examples) == (5, 150) and one.sources["variant"] > 0
    gap, own, other = said["lora"].worst_gap, *(said[arm].worst_score[0] for arm in ("lora", "full"))
    assert said["lora"].against == "full" and gap[0] == pytest.approx(own - other) and gap[1] < gap[0] < gap[2]
    assert said["lora"].right_gap[2] < 0 and said["full"].against is None and said["full"].worst_gap is None


def test_numbers_have_a_spread_between_wordings_and_no_right_answer():
    found = varied(planted.evidence(planted.lock(metric="mae"), {"full": 0.4, "lora": 0.6}, rows=80), changed=CHANGED)
    one = next(one for one in decide(found).wordings if one.arm == "lora")
    splits = ["test", *(f"test~{name}" for name in NAMES[1:])]
    own = [[found.scores[r.trial.id, s].prediction_E for s in splits] for r in found.of(purpose="final", arm="lora")]
    assert one.measure == "SD between variants" and one.right is None and one.right_everywhere is None
    assert one.same[0] == pytest.approx(np.sqrt(np.array(own, dtype=float).var(axis=1, ddof=1).mean()))
    assert one.worst == "typos" and one.scores["typos"] == max(one.scores.values())  # of errors the most is worst
    assert one.worst_score[1] < one.worst_score[0] < one.worst_score[2] and one.right_gap is None


def test_texts_are_right_at_the_full_score_and_a_likelihood_has_no_right_answer():
    exact = varied(planted.evidence(planted.lock(metric="exact_match"), QUALITY, rows=60), changed=CHANGED)
    one = next(one for one in decide(exact).wordings if one.arm == "full")
    assert one.right == pytest.approx(one.scores["plain"])
    nll = varied(planted.evidence(planted.lock(metric="nll"), {"full": 0.4, "lora": 0.6}, rows=60), changed=CHANGED)
    assert all(one.right is None and one.measure == "agreement" for one in decide(nll).wordings)


def test_what_is_fixed_stands_for_every_seed_and_one_that_diverged_is_left_out():
    lock = planted.lock(("full", "lora", "tfidf"))
    found = planted.evidence(lock, {**QUALITY, "tfidf": 0.6}, rows=60, diverged={"lora": 2})
    said = {one.arm: one for one in decide(varied(found, changed=CHANGED)).wordings}
    assert {arm: one.seeds for arm, one in said.items()} == {"full": 5, "lora": 3, "tfidf": 1}
    assert said["tfidf"].sources == {} and said["tfidf"].worst_gap[2] < 0
    most = planted.evidence(planted.lock(), QUALITY, rows=60, diverged={"lora": 4})
    assert {one.arm for one in decide(varied(most, changed=CHANGED)).wordings} == {"full"}


def test_a_final_without_all_variants_says_nothing_of_them():
    found = varied(planted.evidence(planted.lock(), QUALITY, rows=60), changed=CHANGED)
    lost = planted.one(found, "lora", 1).trial.id, "test~typos"
    less = replace(found, scores={key: scores for key, scores in found.scores.items() if key != lost})
    assert {one.arm: one.seeds for one in decide(less).wordings} == {"full": 5, "lora": 4}


def test_the_report_says_it_in_a_sentence_and_leaves_it_out_where_nothing_was_asked():
    bare = planted.evidence(planted.lock(), QUALITY, rows=120)
    found = varied(bare, changed=CHANGED)
    decision = decide(found)
    page, text = report.html(found, decision), report.markdown(found, decision)
    full = next(one for one in decision.wordings if one.arm == "full")
    share = f"different answers {100 * (1 - full.same[0]):.0f} % of the time"
    for said in (page.replace("\N{NARROW NO-BREAK SPACE}", " "), text):
        assert "Other words" in said and f"gives two wordings of one input {share}" in said
        assert "typos: 0." in said and "at worst, under the variant typos, " in said
    without = decide(bare)
    assert without.wordings == () and "wordings" not in without.model_dump()
    assert "Other words" not in report.html(bare, without) + report.markdown(bare, without)
