"""Drift measured by studies: what is kept of a final, what a decision makes of it, and what the report says."""

from dataclasses import replace

import numpy as np
import pytest

import planted
from tiny import make_data, make_model, make_trial
from tunetrial import models, report
from tunetrial.analysis import decide
from tunetrial.analysis.grams import alignments, products
from tunetrial.analysis.similarity import similarity
from tunetrial.core.evidence import Example
from tunetrial.engine.observed import sources
from tunetrial.engine.states import mean_states, plain, tuned
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.engine.updates import updates

TEXTS = [
    "The courier came late.",
    "A gold watch, repaired; a clock that was not.",
    "Bread, and then more bread.",
    "Open at nine?",
    "Nobody knew what the seventh parcel held",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return models.resolve(str(make_model(tmp_path_factory.mktemp("tiny"), hidden=32)))


def started(base, method="lora", *, rate=5e-3, precision="fp32", steps=None, seeds=(1,), texts=TEXTS, **settings):
    data = make_data("classify", rows=32, validation=8)
    held_out = tuple(Example(str(n), str(n), text, "") for n, text in enumerate(texts))
    data = replace(data, splits={**data.splits, "test": data.splits["validation"], "text~notes": held_out})
    trials = [
        make_trial(method, rate=rate, seed=seed, base_fingerprint=base.fingerprint, precision=precision, epochs=1)
        for seed in seeds
    ]
    pack = TorchEngine(device="cpu").open(base.folder, precision).start_pack(trials, data)
    list(pack.steps(None, most=steps))
    return pack, data


@pytest.mark.parametrize("method", ["lora", "full"])
def test_before_any_step_nothing_has_moved(base, method):
    pack, data = started(base, method, steps=0)
    table = pack.observe(0, data, "states")
    assert (table["change"] == 0).all() and (table["cka"] == 1).all() and (np.array(table["rsa"]) > 1 - 1e-12).all()
    assert len(table["layer"]) == 2 * 3 * 3
    assert dict.fromkeys(table["source"]) == {"test": None, "text~notes": None}
    weights = pack.observe(0, data, "weights")
    assert set(weights["size"]) == {0} and np.isnan(weights["effective"]).all()


def test_after_training_states_lie_above_the_floors(base):
    pack, data = started(base)
    table, floors = (pack.observe(0, data, what) for what in ("states", "floors"))
    assert dict.fromkeys(floors["pair"]) == {"batch": None, "dtype": None}
    moved = np.array(table["layer"]) > 0
    of = lambda pair: floors["change"][np.array(floors["pair"]) == pair]  # noqa: E731
    assert (table["change"][~moved] == 0).all()
    assert (of("batch") < 1e-5).all() and (of("dtype")[moved] < 0.05).all()
    assert (of("batch")[moved] < 0.1 * table["change"][moved]).all()


def test_products_hold_finals_against_each_other_as_their_states_do(base):
    pack, data = started(base, seeds=(1, 2))
    tables = [pack.observe(member, data, "grams") for member in (0, 1)]
    rows = sources(pack, data)["test"]
    one, other = (mean_states(tuned(pack, member), rows)[2] for member in (0, 1))
    kept = np.stack([table["test:2"][np.isfinite(table["test:2"])] for table in tables])
    assert alignments(kept)[0, 1] == pytest.approx(similarity(one, other).cka, abs=1e-6)
    assert len(tables[0]["text~notes:1"]) == len(tables[0]["test:1"]) == 8 * 7 // 2
    assert np.isfinite(tables[0]["text~notes:1"]).sum() == 5 * 4 // 2


def test_mean_states_are_in_the_order_of_rows(base):
    pack, data = started(base, steps=1)
    rows = sources(pack, data)["test"]
    together, view = mean_states(plain(pack), rows), plain(pack)
    for number, row in enumerate(rows):
        assert mean_states(view, [row])[1][0] == pytest.approx(together[1][number], rel=1e-4, abs=1e-6)


def test_rows_are_the_same_in_every_final_and_a_source_of_few_is_left_out(base):
    packs = [started(base, method, rate=rate, seeds=(seed,), steps=1) for method, rate, seed in ARMS]
    drawn = [[tuple(row.tokens) for row in sources(*one)["test"]] for one in packs]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 8
    pack, data = started(base, steps=1, texts=TEXTS[:3])
    assert list(sources(pack, data)) == ["test"]


ARMS = (("lora", 5e-3, 1), ("full", 1e-3, 2))


def test_a_weights_table_is_what_the_updates_show(base):
    pack, data = started(base, seeds=(1, 2))
    table = pack.observe(1, data, "weights")
    found = [one for one in updates(pack) if one.member == 1]
    assert list(table["matrix"]) == [one.name for one in found]
    size = [np.linalg.norm(one.update_K) / np.linalg.norm(one.base_K) for one in found]
    assert list(table["size"]) == pytest.approx(size)
    expected = [(one.left_K[:10] < 0.5).sum() for one in found]
    assert list(table["left_10_0.5"]) == expected and np.isnan(table["rounding"]).all()


LAYERS, ROWS, TIMES = 4, 24, {"full": 3.0, "lora": 1.0}


def drifting(quality, *, seeds=5, arms=("full", "lora"), luck=0, **how):
    """A study whose full fine-tuning moved three times as far as LoRA in every layer but the embeddings."""
    found = planted.evidence(planted.lock(arms=arms), quality, seeds=seeds, rows=120, luck=luck, **how)
    rng, tables = np.random.default_rng(luck), {}
    states_ND = rng.normal(size=(ROWS, 6))
    for record in (record for record in found.of(purpose="final") if record.status == "ok"):
        name, layer_L = record.trial.arm.name, np.arange(LAYERS)
        far_L = 0.1 * TIMES[name] * layer_L * (1 + 0.1 * rng.normal())
        poolings = ["mean"] * LAYERS + ["last"] * LAYERS
        far = np.concatenate([far_L, 2 * far_L])
        both = {
            "source": np.array(["test"] * 2 * LAYERS, dtype=object),
            "pooling": np.array(poolings, dtype=object),
            "layer": np.tile(layer_L, 2)[::1],
            "rows": np.full(2 * LAYERS, ROWS),
            **{n: 1 - 0.1 * far for n in ("cka", "cka_biased", "cosine", "rsa")},
            "change": far,
            "angle": far,
            "shuffled_mean": np.zeros(2 * LAYERS),
            "shuffled_sd": np.full(2 * LAYERS, 0.01),
        }
        tables[record.trial.id, "states"] = both
        noise = [rng.normal(size=states_ND.shape) for _ in layer_L]
        tables[record.trial.id, "grams"] = {
            f"test:{n}": products(states_ND + 0.1 * TIMES[name] * n * noise[n]) for n in layer_L
        }
        if record.trial.seed == 1:
            floor = {**both, "change": np.full(2 * LAYERS, 0.001), "cka": np.full(2 * LAYERS, 0.9999)}
            tables[record.trial.id, "floors"] = {"pair": np.array(["batch"] * 2 * LAYERS, dtype=object), **floor}
        tables[record.trial.id, "weights"] = of_weights(TIMES[name], rng)
    return replace(found, tables=tables)


def of_weights(times, rng):
    table = {"matrix": np.array(["a", "b"], dtype=object), "rounding": np.full(2, np.nan)}
    table |= {n: times * np.array([0.01, 0.03]) * (1 + 0.05 * rng.normal()) for n in ("size", "spectral")}
    table |= {n: np.full(2, 4.0 * times) for n in ("stable", "effective", "participation")}
    for side in ("left", "right"):
        table[f"{side}_chance"] = np.array([0.08, 0.16])
        for top in (1, 5, 10, 20):
            table |= {f"{side}_{top}_{e}": np.array([0.0, 1.0]) for e in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
    return table


def of(decision, arm, measure="change", pooling="mean"):
    return next(m for m in decision.moved if (m.arm, m.measure, m.pooling) == (arm, measure, pooling))


def test_a_decision_says_how_far_each_arm_moved_over_seeds():
    found = drifting({"full": 0.8, "lora": 0.8})
    decision = decide(found)
    full, lora = of(decision, "full"), of(decision, "lora")
    far = np.array(
        [found.tables[r.trial.id, "states"]["change"][:LAYERS] for r in found.of(purpose="final", arm="lora")]
    )
    assert [mean for mean, _, _ in lora.by_layer] == pytest.approx(far.mean(axis=0))
    assert lora.by_layer[0] == (0, None, None)
    assert lora.overall[0] == pytest.approx(far.mean()) and lora.overall[1] < lora.overall[0] < lora.overall[2]
    assert lora.difference[0] == pytest.approx(lora.overall[0] - full.overall[0]) and lora.difference[2] < 0
    assert lora.apart == (1, 2, 3) and full.difference is None
    assert (lora.seeds, lora.rows, lora.floors["batch"]) == (5, ROWS, (0.001,) * LAYERS)
    near = of(decision, "lora", "1 - CKA")
    assert near.chance == pytest.approx((1, 0.01)) and lora.chance is None and lora.between_seeds is None
    assert near.between_seeds[0] == pytest.approx(0, abs=1e-9) and near.between_seeds[1] < near.between_seeds[3]
    assert near.between_seeds[3] < of(decision, "full", "1 - CKA").between_seeds[3]
    assert near.between_arms[3] > near.between_seeds[3]
    assert of(decision, "lora", "1 - CKA", "last").between_seeds is None


def test_drift_at_equal_score_is_told_only_where_scores_overlap():
    for luck in range(3):
        lora = of(decide(drifting({"full": 0.8, "lora": 0.8}, luck=luck, seed_sd=0.03)), "lora")
        assert (lora.at_equal_score is None) == (lora.unequal is not None)
        if lora.at_equal_score:
            assert lora.at_equal_score[0] == pytest.approx(lora.difference[0], rel=0.6)
    assert of(decide(drifting({"full": 0.9, "lora": 0.6})), "lora").unequal == "scores apart"
    assert of(decide(drifting({"full": 0.8, "lora": 0.8}, seeds=3)), "lora").unequal == "few seeds"


def test_weights_are_means_over_matrices_and_then_over_seeds():
    found = drifting({"full": 0.8, "lora": 0.8})
    lora = next(one for one in decide(found).updated if one.arm == "lora")
    size = np.array([found.tables[r.trial.id, "weights"]["size"].mean() for r in found.of(purpose="final", arm="lora")])
    assert lora.size[0] == pytest.approx(size.mean()) and lora.size[1] < size.mean() < lora.size[2]
    assert lora.effective == (4.0, None, None) and lora.rounding is None and lora.matrices == 2
    assert lora.intruders["left"][2][2] == (0.5, None, None) and lora.chance == (0.08, 0.16)


def test_runs_that_diverged_and_arms_on_another_base_are_not_mixed_in():
    decision = decide(drifting({"full": 0.8, "lora": 0.8}, diverged={"lora": 2}))
    assert of(decision, "lora").seeds == 3 and of(decision, "full").seeds == 5
    found = drifting({"full": 0.8, "lora": 0.8})
    pin = found.lock.base().model_copy(update={"fingerprint": "other"})
    apart = replace(found, lock=found.lock.model_copy(update={"others": {"lora": pin}}))
    assert of(decide(apart), "lora").difference is None


def test_a_study_that_asks_for_nothing_has_nothing_of_it():
    found = planted.evidence(planted.lock(), {"full": 0.8, "lora": 0.8}, rows=60)
    decision = decide(found)
    assert decision.moved == () == decision.updated
    assert not {"moved", "updated"} & decision.model_dump().keys()
    assert "Drift" not in report.html(found, decision) and "Drift" not in report.markdown(found, decision)


def test_the_report_draws_each_arm_by_layer_and_says_what_it_means():
    found = drifting({"full": 0.9, "lora": 0.6})
    decision = decide(found)
    page, text = report.html(found, decision), report.markdown(found, decision)
    section = page[page.index('<section id="drift">') :].partition("</section>")[0]
    assert section.count('<polygon class="floor"') == 2 and section.count('<polygon class="spread arm-') == 4
    assert section.count('class="control arm-') == 2, "two seeds are held against each other by CKA alone"
    for said in (section, text):
        assert "lora moved less than full: " in said and "not told apart" in said
        assert "weight matrices changed with full by" in said
    assert "last token" in section and "scores do not overlap" in text
    assert "drift" not in report.html(found, decision.model_copy(update={"moved": (), "updated": ()})).lower()
