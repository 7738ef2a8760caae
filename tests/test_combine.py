"""Combining low-rank updates: by hand, against PEFT where it does the same, and what must not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.merge_utils import ties
from transformers import AutoModelForCausalLM

import tiny
from tunetrial import models
from tunetrial.core.combination import Recipe, scales_to_try, shares_to_try
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.engine import combine
from tunetrial.engine.combine import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def drawn(seed: int, *, rank: int = 2, layers: int = 2, shape=(5, 7)) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *sizes: torch.randn(*sizes, generator=generator, dtype=torch.float64)  # noqa: E731
    return {f"layer.{n}": LowRank(draw(rank, shape[1]), draw(shape[0], rank)) for n in range(layers)}


def made(adapters, shares, seed=0, **recipe):
    return combine.combine(adapters, shares, Recipe(**recipe), seed=seed)


def dense(adapter) -> torch.Tensor:
    return torch.stack([adapter[path].dense for path in sorted(adapter)])


def test_trimmed_keeps_the_largest_entries_by_magnitude():
    update = torch.tensor([[1.0, -4.0], [3.0, -2.0]])
    assert combine.trimmed(update, 0.5).tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert combine.trimmed(update, 0.1).tolist() == [[0.0, -4.0], [0.0, 0.0]]  # one at least
    assert combine.trimmed(update, 1.0).tolist() == update.tolist()


def test_elected_is_the_weighted_mean_over_those_with_the_elected_sign():
    one, other = torch.tensor([[2.0, -1.0, 3.0, 1.0]]), torch.tensor([[4.0, 3.0, 0.0, -1.0]])
    assert combine.elected([one, other], [0.5, 0.5]).tolist() == [[3.0, 3.0, 3.0, 0.0]]
    # By weights 3:1 the second place is -3 + 3 = 0, which elects nothing, and the last 3 - 1 > 0, which elects `one`.
    assert combine.elected([one, other], [0.75, 0.25]).tolist() == [[2.5, 0.0, 3.0, 1.0]]


def test_dropped_keeps_the_share_that_it_is_told_and_divides_by_it():
    update = torch.arange(1.0, 10_001).view(100, 100)
    found = combine.dropped(update, 0.25, seed=3)
    kept = found != 0
    assert torch.equal(found[kept], 4 * update[kept]) and abs(kept.float().mean() - 0.25) < 4 * (0.1875 / 10_000) ** 0.5
    assert torch.equal(found, combine.dropped(update, 0.25, seed=3))
    assert not torch.equal(found, combine.dropped(update, 0.25, seed=4))


def test_weighted_is_the_exact_sum_at_the_sum_of_ranks():
    own = {"a": drawn(1), "b": drawn(2, rank=1)}
    found, left_out = made(own, {"a": 0.75, "b": 0.25}, how="weighted")
    wanted = 0.75 * dense(own["a"]) + 0.25 * dense(own["b"])
    torch.testing.assert_close(dense(found), wanted, **EXACT)
    assert left_out == 0 and {len(one.a) for one in found.values()} == {3}


def test_a_lower_rank_is_the_best_there_is_and_says_what_it_leaves_out():
    own, shares = {"a": drawn(1), "b": drawn(2)}, {"a": 0.5, "b": 0.5}
    whole = (dense(own["a"]) + dense(own["b"])).numpy() / 2
    for how in ("weighted", "ties", "dare"):
        found, left_out = made(own, shares, how=how, rank=2, density=1.0)
        target = whole if how != "ties" else dense(made(own, shares, how=how, rank=5, density=1.0)[0]).numpy()
        rest = np.linalg.svd(target, compute_uv=False)[:, 2:]
        assert left_out == pytest.approx(np.sqrt((rest**2).sum() / (target**2).sum()), rel=1e-9)
        assert np.linalg.norm(dense(found).numpy() - target) == pytest.approx(np.sqrt((rest**2).sum()), rel=1e-9)
        assert {one.a.shape for one in found.values()} == {(2, 7)}


@pytest.mark.parametrize("how", ["weighted", "ties", "dare"])
def test_one_adapter_with_all_of_the_share_is_itself(how):
    own = drawn(1)
    found, left_out = made({"a": own}, {"a": 1.0}, how=how, density=1.0, rank=2)
    torch.testing.assert_close(dense(found), dense(own), rtol=1e-9, atol=1e-9)
    assert left_out < 1e-7


@pytest.mark.parametrize("how", ["weighted", "ties", "dare"])
def test_the_order_of_adapters_has_no_effect(how):
    own, shares = {"a": drawn(1), "b": drawn(2), "c": drawn(3)}, {"a": 0.5, "b": 0.3, "c": 0.2}
    back = {name: own[name] for name in reversed(own)}
    first, second = made(own, shares, how=how)[0], made(back, shares, how=how)[0]
    assert torch.equal(dense(first), dense(second))


def test_an_adapter_of_zeros_takes_nothing_from_the_others():
    own = drawn(1)
    both, shares = {"a": own, "z": combine.zero(own)}, {"a": 0.5, "z": 0.5}
    by_ties = dense(made(both, shares, how="ties", density=0.4, rank=5)[0])
    torch.testing.assert_close(by_ties, dense(made({"a": own}, {"a": 1.0}, how="ties", density=0.4, rank=5)[0]))
    torch.testing.assert_close(dense(made(both, shares, how="weighted")[0]), dense(own) / 2, **EXACT)


def test_ties_of_negated_adapters_is_negated():
    own = {"a": drawn(1), "b": drawn(2)}
    shares, turned = {"a": 0.5, "b": 0.5}, {name: combine.scaled(one, -1.0) for name, one in own.items()}
    found = [dense(made(given, shares, how="ties", density=0.6, rank=5)[0]) for given in (own, turned)]
    torch.testing.assert_close(found[0], -found[1])


def test_the_expectation_of_dare_over_seeds_is_the_sum():
    own, shares = {"a": drawn(1), "b": drawn(2)}, {"a": 0.6, "b": 0.4}
    wanted, count, density = dense(made(own, shares, how="weighted")[0]), 800, 0.5
    found = [dense(made(own, shares, seed, how="dare", density=density, rank=5)[0]) for seed in range(count)]
    mean, sd = torch.stack(found).mean(0), torch.stack(found).std(0)
    # Entries vary by (1 - p)/p times their squares, summed over the adapters.
    counted = ((1 - density) / density * ((0.6 * dense(own["a"])) ** 2 + (0.4 * dense(own["b"])) ** 2)).sqrt()
    torch.testing.assert_close(sd, counted, rtol=0.15, atol=1e-3)
    assert ((mean - wanted).abs() < 4.5 * counted / count**0.5 + 1e-9).all()


def test_dare_draws_by_seed_name_and_layer():
    own, shares = {"a": drawn(1), "b": drawn(1)}, {"a": 0.5, "b": 0.5}
    first, again, other = (dense(made(own, shares, seed, how="dare", rank=5)[0]) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.6 < (first.abs() > 1e-9).double().mean() < 0.9  # of two masks 3 in 4 entries, of one mask for both 1 in 2


def test_ties_is_peft_s_on_whole_updates():
    own = {name: drawn(seed) for seed, name in enumerate("abc")}
    updates, third = [dense(one)[0] for one in own.values()], dict.fromkeys("abc", 1 / 3)
    wanted = ties(updates, torch.ones(3, dtype=torch.float64), density=0.4)
    torch.testing.assert_close(dense(made(own, third, how="ties", density=0.4, rank=5)[0])[0], wanted)


def test_refuses_adapters_of_other_layers_and_what_cancels_out():
    with pytest.raises(ModelError, match=r"adapters of a and b differ at layer\.\d; combine adapters of one arm"):
        made({"a": drawn(1), "b": drawn(2, shape=(6, 7))}, {"a": 0.5, "b": 0.5}, how="weighted")
    own = drawn(1)
    with pytest.raises(ModelError, match="updates cancel out"):
        made({"a": own, "b": combine.scaled(own, -1.0)}, {"a": 0.5, "b": 0.5}, how="ties", density=1.0)


@settings(max_examples=20)
@given(count=st.integers(2, 9))
def test_the_grid_grows_with_the_tasks_and_its_shares_sum_to_one(count):
    names = tuple(f"t{n}" for n in range(count))
    found, scales = shares_to_try(names), scales_to_try(count)
    assert len(found) == len(set(map(str, found))) == count + 1 and len(set(found[0].values())) == 1
    assert all(sum(shares.values()) == pytest.approx(1) and shares.keys() == set(names) for shares in found)
    assert scales == (1, (1 + count) / 2, count)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tiny.make_model(tmp_path_factory.mktemp("base"))
    return models.resolve(str(folder))


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """Two adapters as PEFT itself saves them."""
    folders = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.data.normal_(0, 0.05)
        folders[name] = tmp_path_factory.mktemp("saved") / name
        model.save_pretrained(folders[name])
    return folders


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(1, 41).view(2, 20)).logits


def test_what_is_written_peft_loads_to_what_peft_s_exact_combination_computes(base, saved, tmp_path):
    own, shares = {name: combine.read(folder, base) for name, folder in saved.items()}, {"a": 0.75, "b": 0.25}
    found, _ = made(own, shares, how="weighted")
    combine.write(combine.scaled(found, 2.0), saved["a"], tmp_path, base=base, place=str(base.folder))
    ours = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), tmp_path).eval())
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), saved["a"], adapter_name="a")
    theirs.load_adapter(saved["b"], adapter_name="b")
    for kind, same in (("cat", True), ("linear", False)):  # "linear" adds A and B apart: another update
        theirs.add_weighted_adapter(["a", "b"], [1.5, 0.5], kind, combination_type=kind)
        theirs.set_adapter(kind)
        assert torch.allclose(logits(theirs.eval()), ours, atol=1e-5) == same
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(base.folder)), ours, atol=1e-3)


def test_ties_of_a_lower_rank_is_peft_s_with_singular_values(base, saved):
    own = {name: combine.read(folder, base) for name, folder in saved.items()}
    found, _ = made(own, {"a": 0.5, "b": 0.5}, how="ties", density=0.3, rank=4)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), saved["a"], adapter_name="a")
    theirs.load_adapter(saved["b"], adapter_name="b")
    how = {"combination_type": "ties_svd", "density": 0.3, "svd_rank": 4}
    theirs.add_weighted_adapter(["a", "b"], [1.0, 1.0], "ties", **how)
    for path, one in found.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        torch.testing.assert_close(one.dense, layer.get_delta_weight("ties").detach(), rtol=1e-4, atol=1e-6)


def test_reading_refuses_dora_and_another_base(base, saved, tmp_path):
    config = LoraConfig(r=3, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).save_pretrained(tmp_path / "dora")
    with pytest.raises(ModelError, match="no update to add, got dora"):
        combine.read(tmp_path / "dora", base)
    (tmp_path / "ours").mkdir()
    combine.write(combine.read(saved["a"], base), saved["a"], tmp_path / "ours", base=base, place="base")
    other = models.resolve(str(tiny.make_model(tmp_path / "other", hidden=32)))
    with pytest.raises(IntegrityError, match="made for base weights"):
        combine.read(tmp_path / "ours", other)
