"""What a study says was forgotten: numbers counted by hand, intervals that hold, limits, and what was not observed."""

from dataclasses import replace

import numpy as np
import pytest

import bases
import planted
import trial_study
from tunetrial import report, spec
from tunetrial.analysis import decide
from tunetrial.analysis.retention import forgotten
from tunetrial.core.errors import DataError, SpecError
from tunetrial.core.folding import fold_name
from tunetrial.core.study import Rule
from tunetrial.trial.pinning import pin

QUALITY = {"full": 0.8, "lora": 0.8}
LOST = {"full": 0.30, "lora": 0.10}
TEXTS = {"wiki": "wiki.jsonl", "news": "news.jsonl"}


def with_tables(found, lost, *, files=("wiki", "news"), texts=8, per_source=2, seed_sd=0.02, text_sd=0.05, luck=0):
    """Every final that came through saw so many texts a file; an arm loses so many nats a token on average."""
    rng = np.random.default_rng(luck)
    count = texts * len(files)
    tokens_E = rng.integers(20, 60, count)
    base_E = tokens_E * rng.normal(3, 0.3, count)
    own_E = np.repeat(rng.normal(0, text_sd, count // per_source), per_source)
    names = {
        "text": np.repeat(np.array(files, dtype=object), texts),
        "id": np.array([str(n % texts) for n in range(count)], dtype=object),
        "cluster": np.array([str(n % texts // per_source) for n in range(count)], dtype=object),
    }
    tables = {}
    for record in found.of(purpose="final"):
        arm = record.trial.arm.name
        if record.status == "ok" and arm in lost:
            a_token_E = lost[arm] + own_E + rng.normal(0, seed_sd) + rng.normal(0, 0.01, count)
            numbers = {"tokens": tokens_E, "bytes": 4 * tokens_E, "base_nats": base_E}
            numbers |= {"tuned_nats": base_E + tokens_E * a_token_E, "kl": tokens_E * 0.2, "reverse_kl": tokens_E * 0.2}
            tables[record.trial.id, "forgetting"] = {**names, **numbers, "agreed": tokens_E - rng.integers(0, 9, count)}
    return replace(found, tables=tables)


def observed(*, study=None, lost=LOST, tables=None, **evidence):
    found = planted.evidence(
        planted.lock(tuple(QUALITY), retention=TEXTS, **(study or {})), QUALITY, rows=60, **evidence
    )
    return with_tables(found, lost, **(tables or {}))


def said(found):
    return {one.arm: one for one in decide(found).forgotten}


def test_losses_are_sums_over_tokens_counted_by_hand():
    found = observed()
    tables = {arm: [found.tables[r.trial.id, "forgetting"] for r in found.of(purpose="final", arm=arm)] for arm in LOST}
    lost = {arm: [(t["tuned_nats"] - t["base_nats"]).sum() / t["tokens"].sum() for t in tables[arm]] for arm in LOST}
    for arm, one in said(found).items():
        whole, wiki, news = one.losses
        assert (whole.text, wiki.text, news.text) == (None, "wiki", "news") and one.overall == whole
        assert (whole.texts, whole.clusters, wiki.texts, wiki.clusters, one.runs) == (16, 8, 8, 4, 5)
        assert whole.nats[0] == pytest.approx(np.mean(lost[arm]))
        assert whole.bits[0] == pytest.approx(np.mean(lost[arm]) / np.log(2) / 4)
        assert whole.kl[0] == pytest.approx(0.2)
        agreed = [t["agreed"][:8].sum() / t["tokens"][:8].sum() for t in tables[arm]]
        assert wiki.agreed[0] == pytest.approx(np.mean(agreed)) and wiki.agreed[2] <= 1
        assert whole.nats[1] < whole.nats[0] < whole.nats[2]
    beyond = said(found)["lora"].overall.beyond
    assert beyond[0] == pytest.approx(np.mean(lost["lora"]) - np.mean(lost["full"])) and beyond[2] < 0
    # Texts are hard or easy for both arms alike: the pairs know, the single intervals do not.
    one = said(found)["lora"].overall.nats
    assert beyond[2] - beyond[1] < one[2] - one[1]
    assert said(found)["full"].overall.beyond is None


def test_intervals_cover_what_was_planted():
    found = planted.evidence(planted.lock(tuple(QUALITY), retention=TEXTS), QUALITY, rows=20)
    inside = []
    for luck in range(150):
        one = said_alone(with_tables(found, LOST, luck=luck, texts=24, files=("wiki",)))
        inside.append([one.nats[1] <= 0.10 <= one.nats[2], one.beyond[1] <= -0.20 <= one.beyond[2]])
    assert (np.mean(inside, axis=0) > 0.9).all() and (np.mean(inside, axis=0) < 1).all()


def said_alone(found):
    return next(one for one in forgotten(found) if one.arm == "lora").overall


def test_the_level_is_the_study_s():
    wide, narrow = (said(observed(study={"rule": Rule(primary="mail", level=level)}))["lora"] for level in (0.99, 0.8))
    assert (wide.level, narrow.level) == (0.99, 0.8)
    assert wide.overall.nats[1] < narrow.overall.nats[1] < narrow.overall.nats[2] < wide.overall.nats[2]


def test_what_was_not_observed_or_diverged_is_counted_and_in_no_mean():
    found = observed(diverged={"lora": 1})
    gone, wild = (planted.one(found, "lora", seed).trial.id for seed in (2, 3))
    tables = dict(found.tables)
    del tables[gone, "forgetting"]
    table = tables[wild, "forgetting"]
    tables[wild, "forgetting"] = {**table, "kl": table["kl"] * np.inf}
    one = said(replace(found, tables=tables))["lora"]
    assert (one.runs, one.diverged, one.unobserved) == (2, 1, 2)
    other = {k: t for k, t in tables.items() if k[0] in {r.trial.id for r in found.of(purpose="final", arm="full")}}
    nothing = said(replace(found, tables=other))["lora"]
    assert nothing.losses == () and nothing.overall is None and nothing.unobserved == 4
    page = report.html(found, decide(replace(found, tables=other)))
    assert "1 diverged, 4 not observed" in page


def test_no_end_of_kl_lies_below_0():
    found = observed()
    factors = {planted.one(found, "lora", seed).trial.id: 10.0**-seed for seed in range(1, 6)}
    tables = {k: {**t, "kl": t["kl"] * factors.get(k[0], 1)} for k, t in found.tables.items()}
    value, low, high = said(replace(found, tables=tables))["lora"].overall.kl
    assert low == 0 < value < high


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ({"files": ("wiki",), "texts": 1, "per_source": 1}, "texts of one source alone"),
        ({"files": ("wiki",), "texts": 4, "per_source": 4}, "texts of one source alone"),
    ],
)
def test_texts_of_one_source_have_no_interval_and_say_so(tables, why):
    found = observed(tables=tables)
    loss = said(found)["lora"].overall
    assert loss.why_bare == why and loss.nats[1:] == loss.kl[1:] == loss.agreed[1:] == loss.beyond[1:] == (None, None)
    assert why in report.markdown(found, decide(found))


def test_one_run_has_no_interval():
    found = observed()
    kept = {k: t for k, t in found.tables.items() if k[0] in {planted.one(found, arm, 1).trial.id for arm in LOST}}
    loss = said(replace(found, tables=kept))["lora"].overall
    assert loss.why_bare == "one run" and loss.nats[1:] == (None, None) and loss.beyond[0] < 0


def test_arms_whose_tokens_differ_are_not_set_side_by_side():
    found = observed()
    own = {r.trial.id for r in found.of(purpose="final", arm="lora")}
    tables = {k: {**t, "tokens": t["tokens"] + 1} if k[0] in own else t for k, t in found.tables.items()}
    found = replace(found, tables=tables)
    assert said(found)["lora"].overall.beyond is None
    assert "not comparable" in report.markdown(found, decide(found))


def test_a_limit_goes_by_what_was_measured_and_spares_what_was_not_trained():
    quality = {"full": 0.8, "lora": 0.8, "base": 0.6}
    held = planted.lock(tuple(quality), limits={"forgetting_nats": 0.2}, readout="labels", retention=TEXTS, margin=0.1)
    found = with_tables(planted.evidence(held, quality, rows=300), LOST)
    decision = decide(found)
    assert list(decision.excluded) == ["full"] and "is above the limit of 0.2" in decision.excluded["full"]
    assert decision.recommendation == "lora" and "base" not in {one.arm for one in decision.forgotten}
    assert decision.costs["lora"]["forgetting_nats"].value == pytest.approx(0.1, abs=0.05)
    assert "forgetting_nats" not in decision.costs["base"]
    bare = decide(replace(found, tables={})).excluded
    assert bare["lora"] == "forgetting_nats is limited to 0.2 and was not measured" and "base" not in bare
    near = decide(with_tables(planted.evidence(held, quality, rows=300), {"full": 0.5, "lora": 0.19}, seed_sd=0.05))
    low, high = near.forgotten[1].overall.nats[1:]
    assert low < 0.2 < high
    if near.forgotten[1].overall.nats[0] <= 0.2:
        assert "within the limit of 0.2 though its interval reaches beyond" in report.markdown(found, near)


def test_a_limit_without_texts_names_what_to_add():
    text = "base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\nlimits: {forgetting_nats: 0.05}\n"
    with pytest.raises(SpecError, match=r"limits.forgetting_nats: needs held-out texts, .* add retention: \{wiki: "):
        spec.parse(text)
    study = spec.parse(text + "retention: {wiki: texts.jsonl}\n")
    assert study.limits == {"forgetting_nats": 0.05} and spec.parse(spec.write(study)) == study


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("frontier: true", r"frontier: needs held-out texts, got no retention; add retention: \{wiki: "),
        (
            "frontier: true\ntuning: {exhaustive: false}\nretention: {a: a.txt}",
            "frontier: needs a search by whole",
        ),
        (
            "frontier: true\ntuning: {on: nf4}\nretention: {a: a.txt}",
            "needs a search on the base that is trained",
        ),
    ],
)
def test_a_frontier_that_cannot_be_had_is_refused(more, message):
    with pytest.raises(SpecError, match=message):
        spec.parse(f"base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\n{more}\n")


def test_studies_without_held_out_texts_say_nothing_of_it():
    found = planted.evidence(planted.lock(tuple(QUALITY)), QUALITY, rows=60)
    decision = decide(found)
    assert decision.forgotten == () and "forgotten" not in decision.model_dump(mode="json")
    assert not any("orgetting" in text for text in (report.html(found, decision), report.markdown(found, decision)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"notes.txt: cannot be read, got .*; name a file"),
        ("", r"notes.txt: has no text, got 0 bytes"),
        ("\n<|endoftext|>\n", r"notes.txt: has no text, got 15 bytes"),
    ],
)
def test_a_file_that_holds_no_texts_is_one_line(content, message, tmp_path):
    path = trial_study.write_study(tmp_path, more="retention: {wiki: notes.txt}")
    if content is not None:
        (tmp_path / "notes.txt").write_text(content)
    with pytest.raises(DataError, match=rf"retention\.wiki: {message}"):
        pin(trial_study.load(path, "Hook").asked, tmp_path, engine="trial_engines:Hook", log=tmp_path / "log")


def test_an_encoder_is_refused(tmp_path):
    bases.make("bert", tmp_path / "bert")
    path = trial_study.write_study(tmp_path, more="retention: {wiki: notes.txt}", base_model=str(tmp_path / "bert"))
    (tmp_path / "notes.txt").write_text("A text.")
    with pytest.raises(SpecError, match="retention: held-out text is for language models, got a bert base; use a dec"):
        pin(trial_study.load(path, "Hook").asked, tmp_path, engine="trial_engines:Hook", log=tmp_path / "log")


def test_folds_have_numbers_and_no_interval():
    held = planted.lock(tuple(QUALITY), looks=(2,), retention=TEXTS)
    found = observed(study={"looks": (2,)}, seeds=2)
    names = [fold_name("mail", 1, fold) for fold in (1, 2)]
    study = held.study.model_copy(update={"repeats": 1})
    pins = held.data | dict.fromkeys(names, held.data["mail"])
    cut = held.model_copy(update={"folds": {"mail": 2}, "data": pins, "study": study})
    as_fold = {
        r.trial.id: cut.trial(r.trial.arm.name, names[r.trial.seed - 1], learning_rate=1e-3, seed=1, purpose="final")
        for r in found.of(purpose="final")
    }
    records = tuple(r.model_copy(update={"trial": as_fold[r.trial.id]}) for r in found.of(purpose="final"))
    tables = {(as_fold[trial].id, name): table for (trial, name), table in found.tables.items()}
    one = forgotten(replace(found, lock=cut, records=records, tables=tables))[1]
    assert (one.arm, one.task, one.runs) == ("lora", "mail", 2)
    assert one.overall.why_bare == "folds share training rows" and one.overall.beyond[0] < 0
    assert one.overall.nats[1:] == one.overall.beyond[1:] == (None, None)
