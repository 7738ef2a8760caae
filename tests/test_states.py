"""States under base and tuned model: the base under an adapter, poolings, and drift that is 0 where nothing changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from bases import make
from tiny import make_data, make_model, make_trial
from tunetrial import methods, models
from tunetrial.analysis.similarity import similarity
from tunetrial.core.errors import DataError
from tunetrial.core.study import Arm
from tunetrial.engine import adapters, attention, blocks, states
from tunetrial.engine.states import Passage, View, compare, floors, passages, plain, shared_ends, tuned
from tunetrial.engine.streams import stream
from tunetrial.engine.torch_engine import DTYPES, TorchEngine

CPU = torch.device("cpu")
ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17]]


@pytest.mark.parametrize(
    ("family", "method", "settings"),
    [
        ("llama", "lora", {"dora": True}),
        ("llama-biased", "lora", {}),
        ("gpt2", "lora", {}),
        ("bert", "lora", {"base": "int8"}),
    ],
)
def test_at_the_start_a_model_switched_off_is_the_adapted_one_bit_for_bit(family, method, settings, tmp_path):
    make(family, tmp_path)
    shape, arm = models.shape(tmp_path), Arm(name=method, method=method, settings=methods.settle(method, settings))
    layout, found = attention.lay_out(ROWS, CPU), methods.find(arm)
    for precision in ("fp32", "bf16"):
        model = attention.load(tmp_path, AutoModel, DTYPES[precision], CPU)
        adapters.quantise(model, found.storage, tuple(shape.projections), device=CPU)
        adapters.attach(model, [found.adapter(shape)], seeds=[1])
        with torch.no_grad():
            adapted = blocks.states(model, layout)
            with adapters.switched_off():
                assert torch.equal(blocks.states(model, layout), adapted)
            for name, weight in model.named_parameters():
                if name.endswith("lora_B"):
                    weight.fill_(0.1)
            assert not torch.equal(blocks.states(model, layout), adapted)
            with adapters.switched_off():
                assert torch.equal(blocks.states(model, layout), adapted)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


DATA = make_data("classify", rows=24, validation=4)


def started(base, *trials, precision="fp32", **settings):
    session = TorchEngine(device="cpu").open(base, precision)
    trials = trials or (make_trial(precision=precision, **settings),)
    return session.start_pack(trials, DATA)


def trained(pack):
    for _ in pack.steps(None, most=2):
        pass
    return pack


@pytest.fixture(scope="module")
def lora(base):
    """A pack that is trained and not changed by who looks at it."""
    return trained(started(base))


def rows_of(pack):
    return passages(pack.session.texts.prompts(DATA.splits["train"]), special=pack.session.tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("method", "settings", "precision"),
    [
        ("lora", {}, "bf16"),
        ("qlora", {}, "fp32"),
        ("full", {}, "bf16"),
        ("peft", {"peft_type": "LORA"}, "fp32"),
    ],
)
def test_before_training_drift_is_exactly_0_in_every_layer_and_afterwards_it_is_not(base, method, settings, precision):
    pack = started(base, method=method, settings=settings, precision=precision)
    view = plain(pack)
    before, same = compare([(view, tuned(pack)), (view, view)], rows_of(pack), seed=1)
    assert {one.layer for one in before} == {0, 1, 2}
    assert [one.similarity.change for one in before] == [0] * 9 == [one.similarity.change for one in same]
    assert [one.similarity.cka for one in before] == pytest.approx([1] * 9)
    assert [one.rsa for one in before] == pytest.approx([1] * 9)
    after = compare([(view, tuned(trained(pack)))], rows_of(pack), seed=1)[0]
    embedded = [one.similarity.change for one in after if one.layer == 0]
    assert (embedded == [0, 0, 0]) == (method != "full")
    assert all(one.similarity.change > 0 for one in after if one.layer)


def test_states_are_those_of_transformers_for_each_row_alone_and_pooled_by_hand(base):
    """Transformers' own hidden states of one row at a time, of the base as it is on disk and of the tuned weights."""
    pack = trained(started(base, method="full"))
    rows = rows_of(pack)
    found = {(one.pooling, one.layer): one.similarity for one in compare([(plain(pack), tuned(pack))], rows, seed=1)[0]}
    before, after = (AutoModel.from_pretrained(base, attn_implementation="eager") for _ in range(2))
    after.load_state_dict(pack.session.model.state_dict())
    rng = np.random.default_rng(stream(1, "states"))
    drawn = [rng.permutation(row.content)[:8] for row in rows]
    for layer in (0, 1):
        sides = {"mean": ([], []), "last": ([], []), "tokens": ([], [])}
        for number, model in enumerate((before, after)):
            for row, some in zip(rows, drawn, strict=True):
                with torch.no_grad():
                    made = model(input_ids=torch.tensor([row.tokens]), output_hidden_states=True).hidden_states
                hidden = made[layer][0].double().numpy()
                sides["mean"][number].append(hidden[1:].mean(0, keepdims=True))
                sides["last"][number].append(hidden[-1:])
                sides["tokens"][number].append(hidden[some])
        for pooling, arrays in sides.items():
            expected = similarity(*(np.concatenate(side) for side in arrays)).model_dump()
            assert found[pooling, layer].model_dump() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_views_of_a_pack_are_those_of_each_member_alone(base):
    trials = [make_trial(seed=seed, rate=rate) for seed, rate in ((1, 1e-3), (2, 3e-3))]
    pack = trained(started(base, *trials))
    rows, view = rows_of(pack), plain(pack)
    pairs = [(view, tuned(pack, 0)), (view, tuned(pack, 1)), (tuned(pack, 0), tuned(pack, 1))]
    first, second, between = compare(pairs, rows, seed=1)
    alone = trained(started(base, trials[1]))
    (expected,) = compare([(plain(alone), tuned(alone))], rows, seed=1)
    assert [one.similarity.change for one in second] == pytest.approx(
        [one.similarity.change for one in expected], rel=1e-3
    )
    changes = [[one.similarity.change for one in own if one.layer == 2] for own in (first, second, between)]
    assert all(0 < a < b for a, b in zip(changes[0], changes[1], strict=True))
    assert all(change > 0 for change in changes[2])


def test_the_floor_of_another_batch_and_dtype_lies_far_below_drift(base):
    pack = started(base, rate=3e-3)
    view, rows = plain(pack), rows_of(pack)
    views = floors(pack, view)
    pairs = [(view, views["batch"]), (view, views["dtype"]), (view, tuned(trained(pack)))]
    batch, dtype, drift = (
        [one.similarity.change for one in found if one.pooling == "mean" and one.layer]
        for found in compare(pairs, rows, seed=1)
    )
    assert all(change < 1e-6 for change in batch)
    assert all(1e-5 < change < 0.05 for change in dtype)
    assert all(change > 10 * floor for change, floor in zip(drift, batch, strict=True))


def test_same_seed_same_tokens_and_other_seed_others(lora):
    pair, rows = (plain(lora), tuned(lora)), rows_of(lora)
    few = {"poolings": ("tokens",), "tokens_a_row": 2}
    one, again, other = (compare([pair], rows, seed=seed, **few)[0] for seed in (1, 1, 2))
    assert one == again != other
    assert one[0].similarity.rows == 2 * len(rows)
    assert one[0].pooling == "tokens"


def test_rows_that_are_alike_at_the_last_token_have_no_similarity_there(lora):
    """All prompts of a template end by one token: its embedding is the same in every row."""
    rows = passages([[5, *row.tokens[1:], 7] for row in rows_of(lora)], special=[0])
    found = {(one.pooling, one.layer): one for one in compare([(plain(lora), tuned(lora))], rows, seed=1)[0]}
    embedded = found["last", 0]
    assert (embedded.similarity.cka, embedded.similarity.change, embedded.rsa, embedded.shuffled) == (None,) * 4
    assert found["last", 1].similarity.cka > 0.9
    assert found["mean", 0].similarity.cka == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
def test_every_family_hands_over_its_layers_unpadded_or_padded(family, tmp_path):
    make(family, tmp_path)
    model = attention.load(tmp_path, AutoModel, torch.float32, CPU)
    other = attention.load(tmp_path, AutoModel, torch.float32, CPU, attention="eager")
    rows = [Passage(row, np.arange(1, len(row))) for row in [*ROWS, [3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]]
    found = compare([(View(model), View(other)), (View(model), View(model, rows_at_once=2))], rows, seed=1)
    for own in found:
        assert {one.layer for one in own} == {0, 1, 2}
        assert all(one.similarity.change < 1e-5 for one in own)
    assert blocks.fits(model) == (family == "llama")


def test_content_is_neither_first_nor_special_nor_of_the_template():
    rows = [[1, 8, 9, 5, 6, 2, 7], [1, 8, 9, 4, 7], [1, 8, 9, 4, 3, 2, 7]]
    assert shared_ends(rows) == (3, 1)
    assert shared_ends([[1, 2], [1, 2]]) == (2, 0)
    found = passages(rows, special=[2], template=shared_ends(rows))
    assert [row.content.tolist() for row in found] == [[3, 4], [3], [3, 4]]
    assert passages([[5, 6]], special=[])[0].content.tolist() == [1]
    with pytest.raises(DataError, match="row 1: no token but the first"):
        passages([[5, 6], [5]], special=[])


def test_a_view_is_computed_once_however_many_pairs_it_is_in(lora, monkeypatch):
    view, rows, calls = plain(lora), rows_of(lora)[:4], []
    monkeypatch.setattr(states, "_of_batch", lambda *own, old=states._of_batch: calls.append(own[0]) or old(*own))
    compare([(view, tuned(lora)), (view, view), (view, replace(view, member=0))], rows, seed=1)
    assert len(calls) == 2
