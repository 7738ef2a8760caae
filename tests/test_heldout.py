"""Likelihoods of held-out text against transformers' own, windows, divergences, and the three known faults of others.

PEFT's comparison of methods once counted pads, foretold a token from itself, and took a model with its fresh adapter
for the base (github.com/huggingface/peft, #2986 and #3419): each has a test here that ours does not.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import make_data, make_model, make_trial
from tunetrial import models
from tunetrial.core.errors import DataError, IntegrityError, ModelError
from tunetrial.engine import attention
from tunetrial.engine.heldout import _rows, contrast, cut_texts, divergences, likelihoods
from tunetrial.engine.pairs import open_pair
from tunetrial.engine.states import View, plain, tuned
from tunetrial.engine.torch_engine import TorchEngine

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests

TEXTS = [
    "The courier came late.",
    "A gold watch, repaired; a clock that was not.",
    "x",
    "Bread and then more bread, from an oven that is broken, is what the queue was for.",
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> models.PinnedModel:
    return models.resolve(str(make_model(tmp_path_factory.mktemp("base") / "tiny", hidden=32)))


@pytest.fixture(scope="module")
def causal(base):
    return View(attention.load(base.folder, AutoModelForCausalLM, torch.float32, CPU))


@pytest.fixture(scope="module")
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base.folder)


def by_transformers(model, tokenizer, text: str) -> float:
    """Nats of a text after the begin-of-text token, alone, by transformers' own loss."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = torch.tensor([[first, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        return float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)


@torch.no_grad()
def by_hand(model, tokens: list[int]) -> torch.Tensor:
    """Log-distributions (tokens - 1, vocabulary) of the tokens after the first, in fp64."""
    return model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)


def test_the_embedded_base_scores_as_in_transformers_and_as_it_always_did():
    folder = models.EMBEDDED
    ours = attention.load(folder, AutoModelForCausalLM, torch.float32, CPU)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = likelihoods(View(ours), tokenizer, TEXTS)
    assert found.nats_E == pytest.approx([by_transformers(plain, tokenizer, text) for text in TEXTS], rel=1e-5)
    assert found.tokens_E.tolist() == [len(tokenizer(text).input_ids) for text in TEXTS]
    assert found.bytes_E.tolist() == [len(text.encode()) for text in TEXTS]
    assert found.nats_per_token == pytest.approx(5.4547, rel=1e-3)
    assert found.bits_per_byte == pytest.approx(found.nats_E.sum() / math.log(2) / sum(len(t.encode()) for t in TEXTS))


def test_pads_are_not_scored_and_an_end_of_text_token_in_a_text_is(causal, tokenizer):
    """Each text of a batch scores as it does alone, though the tokenizer pads with the end-of-text token."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    texts = [*TEXTS, f"one{tokenizer.eos_token}two", "\u00fc\u20ac\U0001f642"]
    together = likelihoods(causal, tokenizer, texts)
    alone = [likelihoods(causal, tokenizer, [text]) for text in texts]
    assert together.nats_E == pytest.approx([one.nats_E[0] for one in alone], rel=1e-5)
    assert together.tokens_E.tolist() == [int(one.tokens_E[0]) for one in alone]
    assert together.tokens_E[4] == 7 and together.bytes_E[5] == 2 + 3 + 4
    assert together.nats_E == pytest.approx([by_transformers(causal_of(causal), tokenizer, t) for t in texts], rel=1e-5)


def causal_of(view):
    """A copy with transformers' own attention."""
    return AutoModelForCausalLM.from_pretrained(view.model.config._name_or_path, dtype=torch.float32)


def test_a_token_is_foretold_from_those_before_it_and_not_from_itself(causal, tokenizer):
    """Written out: the distribution at place t scores the token at t + 1. Of the same place it would be another sum."""
    text = TEXTS[1]
    ids = [tokenizer.bos_token_id or tokenizer.eos_token_id, *tokenizer(text).input_ids]
    log_p = by_hand(causal_of(causal), ids)
    shifted = -sum(float(log_p[t, ids[t + 1]]) for t in range(len(ids) - 1))
    unshifted = -sum(float(log_p[t, ids[t]]) for t in range(len(ids) - 1))
    found = float(likelihoods(causal, tokenizer, [text]).nats_E[0])
    assert found == pytest.approx(shifted, rel=1e-5)
    assert abs(found - unshifted) > 1


def attached(model):
    """A model with an adapter that does not begin as nothing, the same in every copy."""
    torch.manual_seed(3)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return peft.eval()


def test_the_base_is_scored_without_the_adapter_whatever_that_began_as(base, causal, tokenizer):
    model = attention.load(base.folder, AutoModelForCausalLM, torch.float32, CPU)
    found = contrast(View(model, within=attached(model).disable_adapter), View(model), tokenizer, TEXTS)
    plain = likelihoods(causal, tokenizer, TEXTS)
    assert found.base.nats_E == pytest.approx(plain.nats_E, rel=1e-5)
    assert np.abs(found.tuned.nats_E - found.base.nats_E)[[0, 1, 3]].min() > 1e-3
    assert found.tuned.nats_E == pytest.approx(likelihoods(View(model), tokenizer, TEXTS).nats_E, rel=1e-5)


def test_divergences_equal_a_count_by_hand(base, causal, tokenizer):
    model = attention.load(base.folder, AutoModelForCausalLM, torch.float32, CPU)
    found = contrast(View(model, within=attached(model).disable_adapter), View(model), tokenizer, TEXTS)
    before, after = causal_of(causal), attached(causal_of(causal))
    for number, text in enumerate(TEXTS):
        ids = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
        p, q = by_hand(before, ids), by_hand(after, ids)
        assert found.kl_E[number] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
        assert found.reverse_kl_E[number] == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-3)
        assert found.agreed_E[number] == int((p.argmax(-1) == q.argmax(-1)).sum())


def test_divergences_give_the_golden_value():
    base, tuned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    nats, tuned_nats, kl, reverse, same = divergences(base, tuned, torch.tensor([1]))[:, 0].tolist()
    assert round(kl, 6) == 0.510826
    assert reverse == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert (nats, tuned_nats) == pytest.approx((math.log(2), math.log(10)))
    assert same == 1.0


def test_divergences_of_the_impossible():
    """What both hold for impossible counts nothing; what the tuned one alone does makes the divergence infinite."""
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[1.0, 0.0, 0.0]]).log()
    _, _, kl, reverse, _ = divergences(p, q, torch.tensor([0]))[:, 0].tolist()
    assert kl == math.inf and reverse == pytest.approx(math.log(2))


def test_a_model_beside_itself_has_not_moved(causal, tokenizer):
    found = contrast(causal, causal, tokenizer, TEXTS)
    assert found.kl_E.tolist() == found.reverse_kl_E.tolist() == [0.0] * 4
    assert (found.agreed_E == found.base.tokens_E).all()
    assert (found.tuned.nats_E == found.base.nats_E).all()


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_score_every_token_once_with_enough_before_it(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    tokens = list(range(length))
    scored = []
    for row in _rows(tokens, window, stride):
        assert len(row.tokens) <= window
        assert row.prompt == row.answers_T.index(True) >= 1
        for place, token in enumerate(row.tokens):
            if row.answers_T[place]:
                scored.append(token)
                assert place >= min(token, window - stride)
    assert scored == tokens[1:]


def test_a_long_text_is_scored_in_windows_as_each_window_alone(causal, tokenizer):
    text = " ".join(TEXTS)
    ids = [tokenizer.eos_token_id, *tokenizer(text).input_ids]
    plain, expected, start, scored = causal_of(causal), 0.0, 0, 1
    while scored < len(ids):
        own = ids[start : start + 40]
        log_p = by_hand(plain, own)
        expected -= sum(float(log_p[t - 1, own[t]]) for t in range(scored - start, len(own)))
        start, scored = start + 25, start + len(own)
    found = likelihoods(causal, tokenizer, [text, TEXTS[0]], window=40, stride=25)
    assert found.nats_E[0] == pytest.approx(expected, rel=1e-5)
    assert found.tokens_E[0] == len(ids) - 1
    longer = likelihoods(causal, tokenizer, [text * 2])  # than the 128 tokens that the model takes
    assert longer.tokens_E[0] == 2 * len(ids) - 2


@pytest.mark.parametrize("readout", ["labels", "head"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_a_trial_saved_is_opened_beside_its_base(base, causal, tokenizer, method, readout, tmp_path):
    data = make_data("classify", rows=32, validation=8)
    trial = make_trial(method, rate=5e-3, base_fingerprint=base.fingerprint, epochs=2, readout=readout)
    session = TorchEngine(device="cpu").open(base.folder, "fp32")
    run = session.start(trial, data)
    list(run.steps(None))
    run.save(tmp_path / "made")
    found = contrast(*open_pair(base, tmp_path / "made", torch.float32, CPU), tokenizer, TEXTS)
    assert found.base.nats_E == pytest.approx(likelihoods(causal, tokenizer, TEXTS).nats_E, rel=1e-5)
    assert (found.kl_E[[0, 1, 3]] > 1e-6).all()
    if readout == "labels":
        live = contrast(plain(run.pack), tuned(run.pack), tokenizer, TEXTS)
        assert live.tuned.nats_E == pytest.approx(found.tuned.nats_E, rel=1e-5)
        assert live.base.nats_E == pytest.approx(found.base.nats_E, rel=1e-5)
        assert live.kl_E == pytest.approx(found.kl_E, rel=0.01, abs=1e-6)
    else:
        with pytest.raises(ModelError, match="needs a language model"):
            likelihoods(tuned(run.pack), tokenizer, TEXTS)


def test_members_of_a_pack_are_told_apart(base, tokenizer, tmp_path):
    data = make_data("classify", rows=32, validation=8)
    of = {"base_fingerprint": base.fingerprint, "epochs": 1, "readout": "labels"}
    session = TorchEngine(device="cpu").open(base.folder, "fp32")
    pack = session.start_pack([make_trial("lora", rate=5e-3, seed=seed, **of) for seed in (1, 2)], data)
    list(pack.steps(None))
    for member in (0, 1):
        pack.save(member, tmp_path / str(member))
        _, saved = open_pair(base, tmp_path / str(member), torch.float32, CPU)
        live = likelihoods(tuned(pack, member), tokenizer, TEXTS)
        assert live.nats_E == pytest.approx(likelihoods(saved, tokenizer, TEXTS).nats_E, rel=1e-5)


def test_what_cannot_be_scored_is_refused(base, causal, tokenizer, tmp_path):
    for texts, fault in (([], "no texts"), (["a", ""], "text 2: has no token")):
        with pytest.raises(DataError, match=fault):
            likelihoods(causal, tokenizer, texts)
    for stride in (0, 64):
        with pytest.raises(ModelError, match="stride"):
            likelihoods(causal, tokenizer, TEXTS, window=64, stride=stride)
    bare = AutoTokenizer.from_pretrained(base.folder)
    bare.eos_token = bare.bos_token = None
    with pytest.raises(ModelError, match="neither"):
        cut_texts(bare, TEXTS, window=8, stride=None)


def test_artifacts_of_something_else_are_refused(base, tmp_path):
    other = make_model(tmp_path / "wide", hidden=64)
    with pytest.raises(ModelError, match="does not fit"):
        open_pair(base, other, torch.float32, CPU)
    with pytest.raises(ModelError, match="no weights"):
        open_pair(base, tmp_path, torch.float32, CPU)
    deeper = make_model(tmp_path / "deep", hidden=32, layers=3)
    with pytest.raises(ModelError, match="does not fit.*layers.2"):
        open_pair(base, deeper, torch.float32, CPU)
    (tmp_path / "torn").mkdir()
    whole = (Path(base.folder) / "model.safetensors").read_bytes()
    (tmp_path / "torn/model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(IntegrityError, match="torn"):
        open_pair(base, tmp_path / "torn", torch.float32, CPU)
