"""Spectra of updates, from factors and from whole weights, against weights merged by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from tiny import make_data, make_model, make_trial
from tunetrial.analysis import spectra
from tunetrial.core.errors import ModelError
from tunetrial.engine import adapters
from tunetrial.engine.quantised import matrix
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.engine.updates import updates

DATA = make_data("classify", rows=24, validation=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32, layers=1)


def trained(base, *trials, steps=2):
    pack = TorchEngine(device="cpu").open(base, "fp32").start_pack(trials, DATA)
    for _ in pack.steps(None, most=steps):
        pass
    return pack


def by_hand(before, after, count):
    """Largest |cosine| of the first singular vectors after with any before, and the singular values of the change."""
    before, after = (side.detach().double().numpy() for side in (before, after))
    u0, _, v0 = np.linalg.svd(before, full_matrices=False)
    u, _, v = np.linalg.svd(after, full_matrices=False)
    change = np.linalg.svd(after - before, compute_uv=False)
    return np.abs(u0.T @ u[:, :count]).max(0), np.abs(v0 @ v[:count].T).max(0), change


def check(found, before, after, *, rank=None):
    left, right, change = by_hand(before, after, 20)
    assert found.left_K == pytest.approx(left, abs=1e-3)
    assert found.right_K == pytest.approx(right, abs=1e-3)
    assert found.update_K == pytest.approx(change[: len(found.update_K)], rel=1e-3, abs=1e-5)
    assert change[len(found.update_K) :].max(initial=0) < 1e-5
    assert len(found.update_K) == (rank or min(before.shape))
    assert found.base_K == pytest.approx(np.linalg.svd(before.double().numpy(), compute_uv=False), abs=1e-6)


def original(base):
    return dict(AutoModel.from_pretrained(base).requires_grad_(False).named_modules())


def test_of_adapters_each_member_has_its_own_rank_exactly(base):
    trials = [make_trial(seed=seed, settings={"rank": rank}) for seed, rank in ((1, 4), (2, 2))]
    found, plain = list(updates(trained(base, *trials))), original(base)
    assert len(found) == 2 * 7
    for member, rank in ((0, 4), (1, 2)):
        alone = trained(base, trials[member])
        adapters.merge(alone.model, alone.trainables.member(0))
        merged = dict(alone.session.model.named_modules())
        own = [one for one in found if one.member == member]
        assert {one.name for one in own} == {name for name in merged if name.endswith("_proj")}
        for one in own:
            check(one, plain[one.name].weight, merged[one.name].weight, rank=rank)
            assert spectra.ranks(one.update_K).stable <= spectra.ranks(one.update_K).effective <= rank + 1e-9
            assert one.rounding is None


def test_before_training_an_update_is_nothing(base):
    found = list(updates(trained(base, make_trial(), steps=0)))
    assert all((one.update_K == 0).all() for one in found)
    assert all(spectra.ranks(one.update_K) is None for one in found)
    assert all(one.left_K == pytest.approx(np.ones(len(one.left_K)), abs=1e-3) for one in found)


def test_of_a_full_model_all_linear_layers_are_held_against_the_base_on_disk(base):
    pack, plain = trained(base, make_trial("full")), original(base)
    found, tuned = list(updates(pack)), dict(pack.session.model.named_modules())
    assert len(found) == 7
    for one in found:
        check(one, plain[one.name].weight, tuned[one.name].weight)
    assert spectra.ranks(found[0].update_K).effective > 10


def test_a_base_in_few_bits_is_held_against_as_it_is_stored_and_what_that_cost_is_told_apart(tmp_path):
    base = make_model(tmp_path, hidden=64, layers=1)
    pack, plain = trained(base, make_trial("qlora", settings={"rank": 4})), original(base)
    modules, masters = dict(pack.session.model.named_modules()), pack.trainables.member(0)
    for one in updates(pack):
        stored, exact = matrix(modules[one.name].base), plain[one.name].weight.detach()
        low = masters[f"model.{one.name}.lora_B"] @ masters[f"model.{one.name}.lora_A"]
        check(one, stored, stored + modules[one.name].scaling[0] * low, rank=4)
        assert one.rounding == pytest.approx(float((stored - exact).norm() / exact.norm()), rel=1e-4)
        assert 0.05 < one.rounding < 0.15


def test_dora_changes_lengths_of_rows_too(base):
    pack, plain = trained(base, make_trial(settings={"rank": 4, "dora": True})), original(base)
    modules, masters = dict(pack.session.model.named_modules()), pack.trainables.member(0)
    for one in updates(pack):
        weight, path = plain[one.name].weight.detach(), f"model.{one.name}"
        grown = weight + modules[one.name].scaling[0] * masters[f"{path}.lora_B"] @ masters[f"{path}.lora_A"]
        after = grown * (masters[f"{path}.lora_magnitude_vector"] / grown.norm(dim=1))[:, None]
        check(one, weight, after)


@pytest.mark.parametrize("settings", [{"peft_type": "LORA", "r": 2}, {"peft_type": "IA3"}])
def test_adapters_of_pefts_are_folded_by_peft_and_the_model_is_left_as_it_was(base, settings):
    pack = trained(base, make_trial("peft", settings=settings))
    before = {name: weight.clone() for name, weight in pack.session.model.state_dict().items()}
    found, plain = list(updates(pack)), original(base)
    assert all(torch.equal(weight, before[name]) for name, weight in pack.session.model.state_dict().items())
    folded = dict(pack.peft.peft.merge_and_unload().named_modules())
    assert found
    for one in found:
        check(one, plain[one.name].weight, folded[one.name].weight)
        if settings["peft_type"] == "LORA":
            assert one.update_K[2:].max() < 1e-6


def test_a_type_that_has_no_weight_to_be_folded_into_is_refused(base, monkeypatch):
    from peft.tuners.lora import Linear

    def refuse(self, safe_merge=False, adapter_names=None):
        raise NotImplementedError("no merge")

    pack = trained(base, make_trial("peft", settings={"peft_type": "LORA", "r": 2}))
    monkeypatch.setattr(Linear, "merge", refuse)
    with pytest.raises(ModelError, match="peft_type LORA: PEFT cannot fold it into a weight, got no merge"):
        list(updates(pack))


def test_an_intruder_is_found_where_one_was_planted(base):
    """A direction that the base lacks, larger than all that it has, in one layer of an adapter."""
    pack = trained(base, make_trial(settings={"rank": 4}), steps=0)
    master = pack.trainables.member(0)
    path = next(name for name in master if name.endswith("layers.0.mlp.up_proj.lora_B")).removesuffix(".lora_B")
    master[f"{path}.lora_B"][:, 0] = 1.0
    master[f"{path}.lora_A"][0] = 100.0 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    counts = {one.name: spectra.intruders(one.left_K, tops=[10], epsilons=[0.7])[0, 0] for one in updates(pack)}
    assert counts.pop("layers.0.mlp.up_proj") >= 1
    assert set(counts.values()) == {0}
