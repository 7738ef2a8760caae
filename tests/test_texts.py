"""Metrics of texts: scored by hand, against their libraries and against other counts of the same formula."""

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis import metrics, stats, texts
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Scores

WORDS = st.lists(st.sampled_from(["a", "lamp", "Lamp,", "the", "7", "stove"]), max_size=8).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
RNG = np.random.default_rng(3)


def scores(target: list[str], said: list[str], **measured: list[float]) -> Scores:
    ids = tuple(map(str, range(len(target))))
    columns = {name: np.array(values, dtype=float) for name, values in measured.items()}
    return Scores(ids, ids, np.array(target, dtype=object), np.array(said, dtype=object), columns)


@pytest.mark.parametrize(
    ("metric", "target", "completion", "score"),
    [
        ("exact_match", "Yes", " Yes\n", 1),
        ("exact_match", "Yes", "yes", 0),
        ("exact_match", "", " ", 1),
        ("exact_match", "é", "e\N{COMBINING ACUTE ACCENT}", 0),
        ("exact_match", "Yes", "Yes.", 0),
        ("numeric_match", "#### 1,000", "so it costs $1000.00.", 1),
        ("numeric_match", "#### 18", "18 ducks, of which 7", 0),
        ("numeric_match", "-5", "the answer is \N{MINUS SIGN}5", 1),
        ("numeric_match", "5", "10-5", 1),
        ("numeric_match", "50", "0.5", 0),
        ("numeric_match", "50", "50%", 1),
        ("numeric_match", "0.001", "1e-3", 1),
        ("numeric_match", "18", "eighteen", 0),
        ("numeric_match", "18", "", 0),
        ("numeric_match", "2", "v2", 0),
        ("numeric_match", ".5", "0.50", 1),
        ("numeric_match", "12000", "1,2000", 0),
        ("token_f1", "The lamp is broken.", "a Lamp, broken", 2 * 2 / 5),
        ("token_f1", "the", "a", 1),
        ("token_f1", "lamp", "", 0),
        ("token_f1", "lamp lamp stove", "lamp stove stove", 2 * 2 / 6),
        ("token_f1", "日本", "日本 語", 2 * 1 / 3),
        ("field_accuracy", '{"a": 1, "b": "x"}', '{"b": "x", "a": 1.0, "c": 3}', 1),
        ("field_accuracy", '{"a": 1, "b": "x"}', '{"a": true, "b": "x"}', 0.5),
        ("field_accuracy", '{"a": {"b": [1, 2]}}', '{"a": {"b": [2, 1]}}', 0),
        ("field_accuracy", '{"a": null}', "{}", 0),
        ("field_accuracy", '{"a": 1}', 'Sure: {"a": 1}', 0),
        ("field_accuracy", '{"a": 1}', "[" * 100_000, 0),
        ("valid_json", "{}", " [1, 2.5e3, null]\n", 1),
        ("valid_json", "{}", "NaN", 0),
        ("valid_json", "{}", '{"a": 1} {"a": 2}', 0),
        ("valid_json", "{}", "", 0),
        ("valid_json", "{}", "{'a': 1}", 0),
    ],
)
def test_scores_by_hand(metric, target, completion, score):
    assert getattr(texts, metric)(target, completion) == pytest.approx(score)
    assert metrics.value(metrics.find(metric), scores([target], [completion])) == pytest.approx(score)


def test_library_metrics_have_their_published_values():
    """sacrebleu's and rouge-score's own numbers, from their packages' documentation and by hand."""
    assert texts.chrf("The dog bit the man.", "The dog bit the man.") == 1
    assert texts.bleu("the cat sat on a mat", "the cat sat on") == pytest.approx(math.exp(1 - 6 / 4))
    assert texts.bleu("yes", "yes") == 1, "effective order: no four words are asked of one"
    # The longest common subsequence of "police killed the gunman" and "police kill the gunman" has three words.
    assert texts.rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(3 / 4)
    assert texts.rouge_l("police killed the gunman", "the gunman kill police") == pytest.approx(2 / 4)
    refs, said = ["The dog bit the man.", "It was not unexpected."], ["The dog bit the man.", "It was unexpected."]
    from sacrebleu.metrics import BLEU

    assert texts.corpus_bleu(refs, said) == pytest.approx(BLEU().corpus_score(said, [refs]).score / 100)
    assert texts.corpus_bleu(refs, said) != pytest.approx(np.mean(list(map(texts.bleu, refs, said))))


@given(WORDS, WORDS)
def test_rouge_l_equals_a_table_of_subsequences(target, completion):
    a, b = ([w.strip(",").lower() for w in text.split()] for text in (target, completion))
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    longest = table[-1, -1]
    assert texts.rouge_l(target, completion) == pytest.approx(2 * longest / (len(a) + len(b)) if longest else 0)


@given(WORDS, WORDS)
def test_token_f1_equals_precision_and_recall(target, completion):
    a, b = (
        Counter(w for w in text.lower().replace(",", "").split() if w not in ("a", "the"))
        for text in (target, completion)
    )
    shared = (a & b).total()
    harmonic = 2 / (b.total() / shared + a.total() / shared) if shared else float(a == b)
    assert texts.token_f1(target, completion) == pytest.approx(harmonic)
    assert texts.token_f1(completion, target) == pytest.approx(harmonic)


@given(JSON)
def test_json_is_equal_to_itself_however_written(value):
    target, said = json.dumps({"x": value}), json.dumps({"y": 0, "x": value}, indent=2)
    assert texts.field_accuracy(target, said) == texts.field_accuracy(target, target) == 1
    assert texts.valid_json(target, said) == 1


@given(st.text())
def test_any_completion_scores_in_0_to_1(completion):
    target = '{"a": 1}'
    for metric in metrics.of_kind("generate"):
        if not metric.columns and metric.higher_is_better:
            assert 0 <= metrics.value(metric, scores([target], [completion])) <= 1, metric.name
    assert texts.fits_schema(completion, '{"type": "object"}') in (0, 1)


@given(st.text(alphabet="0123456789.,+-eE$% x", max_size=12))
def test_any_text_has_a_number_or_none(text):
    number = texts.last_number(text)
    assert number is None or texts.numeric_match(str(number), text) == 1
    assert (number is None) <= (texts.numeric_match("1", text) == 0)


def test_contributions_have_the_metric_as_their_mean():
    target = [f'{{"a": {i}, "n": "{i % 3}"}}' for i in range(40)]
    said = [t if i % 4 else t.replace("1", "2") for i, t in enumerate(target)]
    tokens, coin = RNG.integers(2, 30, 40), RNG.integers(0, 2, 40)
    found = scores(
        target, said, nll=tokens * RNG.uniform(0.5, 2, 40), tokens=tokens, tests_pass=coin, schema_valid=coin
    )
    for metric in metrics.of_kind("generate"):
        value, turn = metrics.value(metric, found), 1 if metric.higher_is_better else -1
        assert value is not None, metric.name
        if metric.higher_is_better is not None:
            part_E = metrics.contributions(metric, found)
            assert part_E.shape == (40,) and part_E.mean() == pytest.approx(turn * value), metric.name


def test_likelihoods_are_ratios_of_sums():
    found = scores(["ab", "é"], ["", ""], nll=[2.0, 4.0], tokens=[2, 1])
    assert metrics.value(metrics.find("nll"), found) == pytest.approx(6 / 3)
    assert metrics.value(metrics.find("bits_per_byte"), found) == pytest.approx(6 / math.log(2) / 4)
    # Linearised by hand: R + (nll - R tokens) / mean tokens, turned.
    assert metrics.contributions(metrics.find("nll"), found) == pytest.approx([-(2 - 2 / 1.5), -(2 + 2 / 1.5)])


def test_the_spread_of_a_likelihoods_contributions_is_that_of_fresh_splits():
    def draw(seed: int) -> Scores:
        rng = np.random.default_rng(seed)
        tokens = rng.integers(2, 40, 200)
        return scores(["x"] * 200, [""] * 200, nll=tokens * rng.gamma(2, 0.5, 200), tokens=tokens)

    metric = metrics.find("nll")
    values = [metrics.value(metric, draw(seed)) for seed in range(500)]
    claimed = np.mean([metrics.contributions(metric, draw(seed)).var(ddof=1) / 200 for seed in range(30)]) ** 0.5
    assert claimed == pytest.approx(np.std(values, ddof=1), rel=0.1)
    worse = draw(1).measured["nll"] * 1.5
    gain = metrics.contributions(metric, draw(1)) - metrics.contributions(
        metric, scores(["x"] * 200, [""] * 200, nll=worse, tokens=draw(1).measured["tokens"])
    )
    assert stats.paired(gain).effect > 0


def test_what_was_not_measured_is_none_and_asking_for_its_parts_an_error():
    found = scores(["a"], ["a"], nll=[1.0])
    for name in ("nll", "tests_pass", "schema_valid"):
        assert metrics.value(metrics.find(name), found) is None
        with pytest.raises(EvidenceError, match=f"{name}: not measured, got scores without"):
            metrics.contributions(metrics.find(name), found)
    assert metrics.value(metrics.find("bits_per_byte"), found) is not None


@pytest.mark.parametrize(
    ("metric", "target", "fault"),
    [
        ("numeric_match", "eighteen", "no number"),
        ("valid_json", "Yes", "not one JSON value"),
        ("field_accuracy", "[1]", "no JSON object with fields"),
        ("field_accuracy", "{}", "no JSON object with fields"),
    ],
)
def test_a_metric_is_not_defined_by_targets_that_it_cannot_read(metric, target, fault):
    found = scores([target], ["1"])
    assert texts.fault(metric, target) == fault and metrics.value(metrics.find(metric), found) is None
    with pytest.raises(EvidenceError, match=f"{metric}: not defined, got a target with {fault}"):
        metrics.contributions(metrics.find(metric), found)


def test_corpus_bleu_describes_and_decides_nothing():
    with pytest.raises(EvidenceError, match="corpus_bleu: describes and decides nothing, .* use bleu"):
        metrics.contributions(metrics.find("corpus_bleu"), scores(["a"], ["a"]))


def test_numbers_are_no_texts_and_lengths_must_agree():
    with pytest.raises(EvidenceError, match="texts: must be text, got 1.0"):
        metrics.find("chrf").value([1.0], ["a"])
    with pytest.raises(EvidenceError, match="need one each for every example"):
        metrics.find("exact_match").value(["a", "b"], ["a"])
    with pytest.raises(EvidenceError, match=r"need one each for every example"):
        metrics.find("tests_pass").value(["a", "b"], ["a", "b"], [1.0])


def test_a_library_that_is_not_installed_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    texts._rouge.cache_clear()
    texts.rouge_l.cache_clear()
    found = scores(["a b"], ["a c"])
    assert metrics.value(metrics.find("rouge_l"), found) is None
    with pytest.raises(EvidenceError, match=r"rouge_l: needs rouge-score, .* pip install 'tunetrial\[eval\]'"):
        metrics.contributions(metrics.find("rouge_l"), found)


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ('{"type": "object", "$defs": {"a": {}}, "properties": {"x": {"$ref": "#/$defs/a"}}}', None),
        ('{"type": "objekt"}', "no JSON Schema"),
        ('{"type": ', "not JSON"),
        ("[]", "no JSON Schema"),
        ('{"maximum": NaN}', "not JSON"),
        ('{"maximum": 1e999}', "not JSON"),
        ('{"$ref": "https://example.org/schema.json"}', "it refers to 'https://example.org/schema.json'"),
    ],
)
def test_schemas_are_checked_and_stand_alone(schema, fault):
    found = texts.schema_fault(schema)
    assert found is None if fault is None else fault in found


def test_a_schema_decides_what_fits():
    schema = '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}'
    said = ['{"a": 1}', '{"a": "1"}', "{}", '{"a": 1', '{"a": 2, "b": 3}']
    assert [texts.fits_schema(text, schema) for text in said] == [1, 0, 0, 0, 1]
