"""The fidelity chain through real llama.cpp, on a tiny model: what is faithful passes, what is not is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from test_merge import peft_adapter
from tiny import make_data, make_model
from tunetrial.core.errors import ConfigError, ModelError, StoreError
from tunetrial.core.evidence import Example
from tunetrial.engine.merge import merge
from tunetrial.ship import chain, gguf_files, gguf_vocabulary, hops
from tunetrial.ship.chain import EXACT, ROUNDED, Asked, Chain, Score

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
ASKED = Asked(longest=12, kind="f16", metric="chrf", margin=0.1, threads=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny", tied=False, merges=(("e", "r"), ("a", "t")))


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    whole = make_data("classify", rows=5, validation=0).splits["train"]
    return [replace(row, target="the answer is " + row.target) for row in whole]


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return peft_adapter(base, tmp_path / "adapter", use_rslora=True, lora_alpha=6)


def test_all_forms_of_an_adapter_compute_the_same_and_are_left_there(base, adapter, rows, tmp_path):
    found = chain.prove(adapter, str(base), rows, tmp_path / "out", asked=ASKED)
    assert found.passed and found.first_break is None and not found.left_out, str(found)
    names = ["trained", "adapter", "adapter.gguf", "merged", "merged.f32.gguf", "merged.f16.gguf"]
    assert [(hop.before, hop.after) for hop in found.hops] == [
        ("trained", "adapter"),
        ("adapter", "adapter.gguf"),
        ("adapter", "merged"),
        ("merged", "merged.f32.gguf"),
        ("merged.f32.gguf", "merged.f16.gguf"),
    ]
    assert all(hop.measures.probes == 5 and hop.measures.places == 20 for hop in found.hops)
    assert all(hop.measures.identical + hop.measures.ties == 5 for hop in found.hops[:4])
    assert found.hops[0].measures.largest_difference < 1e-4 and found.hops[1].measures.tokens_compared == 259
    assert set(found.files) == {*names[2:], "base.f32.gguf"} and all(Path(p).exists() for p in found.files.values())
    assert Chain.model_validate_json(found.model_dump_json()) == found
    assert str(found).splitlines()[-1] == "PASS" and "5 of 5 texts the same" in str(found)


def test_a_scale_that_is_not_the_trained_one_is_named(base, adapter, rows, tmp_path, monkeypatch):
    """As in converters that read alpha alone."""
    monkeypatch.setattr(gguf_files, "rescaled", lambda weights, scales: (6.0, dict.fromkeys(scales, 1.0)))
    found = chain.prove(adapter, str(base), rows, tmp_path / "out", asked=ASKED.model_copy(update={"kind": "f32"}))
    assert not found.passed and found.first_break == "adapter → adapter.gguf"
    assert [bool(hop.faults) for hop in found.hops] == [False, True, False, False]
    assert "FAIL: first broken at adapter → adapter.gguf" in str(found)


def test_a_template_or_beginning_that_is_not_that_of_training_is_named(base, adapter, rows, tmp_path, monkeypatch):
    messages = '[{"content":"bread","role":"user"},{"content":"oven","role":"assistant"}]'
    talk = [Example("m", "m", "", "oven", messages=messages), *rows[:1]]
    asked = ASKED.model_copy(update={"kind": "f32"})
    assert chain.prove(adapter, str(base), talk, tmp_path / "right", asked=asked).passed
    monkeypatch.setattr(gguf_vocabulary, "_template", lambda *_: "{{ messages[0].content }}")
    found = chain.prove(adapter, str(base), talk, tmp_path / "template", asked=asked)
    assert "adapter.gguf: template: row m is written otherwise from character 0, got 'bread'" in found.faults[0]
    assert found.first_break == found.faults[0][:200] and not any(hop.faults for hop in found.hops)
    monkeypatch.setattr(gguf_vocabulary, "begins_by_itself", lambda *_: True)
    found = chain.prove(adapter, str(base), rows[:2], tmp_path / "begin", asked=asked)
    assert "tokens: row r0 is read otherwise from token 0, got [0, " in found.faults[0]


def test_what_no_gguf_of_an_adapter_holds_goes_on_merged(base, rows, tmp_path):
    dora = peft_adapter(base, tmp_path / "dora", use_dora=True)
    found = chain.prove(dora, str(base), rows, tmp_path / "out", asked=ASKED)
    assert found.passed and [hop.after for hop in found.hops][:2] == ["adapter", "merged"], str(found)
    assert "use_dora: llama.cpp has no magnitudes" in found.left_out[0] and "adapter.gguf" not in found.files


def test_a_model_folder_is_taken_through_its_own_forms(base, adapter, rows, tmp_path):
    merge(adapter, tmp_path / "model", base_model=str(base))
    found = chain.prove(tmp_path / "model", str(base), rows, tmp_path / "out", asked=ASKED)
    assert found.passed and [hop.before for hop in found.hops] == ["trained", "trained.f32.gguf"], str(found)


def test_what_cannot_be_asked_is_refused(base, adapter, rows, tmp_path):
    with pytest.raises(ConfigError, match="metric: not counted from completions, got 'nll'; name another, or none"):
        chain.prove(adapter, str(base), rows, tmp_path / "out", asked=ASKED.model_copy(update={"metric": "nll"}))
    with pytest.raises(ConfigError, match="probes: rows with a prompt, of less than 128 tokens; got 0"):
        chain.prove(adapter, str(base), [], tmp_path / "out", asked=ASKED)
    with pytest.raises(ConfigError, match="got 1, the longest of 2.. tokens; choose others"):
        chain.prove(adapter, str(base), [replace(rows[0], prompt="a" * 200)], tmp_path / "out", asked=ASKED)
    shutil.copytree(base, tmp_path / "out" / "merged")
    with pytest.raises((ModelError, StoreError), match="merged: is there already; name a new folder"):
        chain.prove(adapter, str(base), rows, tmp_path / "out", asked=ASKED)


def measures(**changed) -> hops.Measures:
    same = {"probes": 9, "places": 36, "identical": 9, "ties": 0, "different": 0, "first_different": None}
    same |= {"same_next_token": 1.0, "largest_difference": 0.0, "kl_mean": 0.0, "kl_largest": 0.0, "tokens_compared": 5}
    return hops.Measures(**same | changed)


def test_limits_are_held_from_both_sides():
    assert chain.beyond(measures(), EXACT) == [] == chain.beyond(measures(different=9, kl_mean=0.01), ROUNDED)
    assert chain.beyond(measures(different=1), EXACT) == ["different: at most 0 is allowed, got 1"]
    assert chain.beyond(measures(largest_difference=2.0), EXACT)[0].startswith("largest_difference: at most 0.01")
    told = chain.beyond(measures(kl_mean=None, same_next_token=0.9), ROUNDED)
    assert told == [
        "kl_mean: at most 0.01 is allowed, got nothing",
        "same_next_token: at least 0.95 is allowed, got 0.9",
    ]


def test_a_metric_must_be_shown_to_be_within_its_margin():
    score = Score(metric="chrf", before=0.5, after=0.48, effect=-0.02, low=-0.06, high=0.02, level=0.95)
    assert chain.worse(score, None) == chain.worse(score, 0.06) == chain.worse(None, 0.01) == []
    assert chain.worse(score, 0.05) == ["chrf: may be worse by more than 0.05, got -0.06 at the least; use more probes"]
    unchanged = Score(metric="chrf", before=0.5, after=0.5, effect=0.0, low=None, high=None, level=0.95)
    assert chain.worse(unchanged, 0.01) == []
