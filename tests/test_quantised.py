"""Adapters over stored weights: NF4, 8-bit rows and DoRA, against dequantised weights and against PEFT."""

import copy
import math
import warnings

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2Model
from transformers.pytorch_utils import Conv1D

from tiny import make_data, make_model, make_trial
from tunetrial import methods, models
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.study import Arm
from tunetrial.engine import adapters, attention
from tunetrial.engine.quantised import QuantisedLinear, matrix, resident_bytes
from tunetrial.engine.torch_engine import TorchEngine

CPU = torch.device("cpu")
IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


def load(base, dtype=torch.float32) -> nn.Module:
    return AutoModel.from_pretrained(base, dtype=dtype).eval().requires_grad_(False)


def attached(base, method: str, dtype=torch.float32, /, **settings) -> nn.Module:
    """The backbone of a trial of this method, its B no longer zero."""
    found, shape, model = find(method, **settings), models.shape(base), load(base, dtype)
    adapters.quantise(model, found.storage, tuple(shape.projections), device=CPU)
    adapters.attach(model, [found.adapter(shape)], seeds=[1])
    return disturbed(model)


def find(method: str, **settings) -> methods.Method:
    return methods.find(Arm(name="x", method=method, settings=methods.settle(method, settings)))


def disturbed(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = trained(model)
    loss = model(input_ids=IDS).last_hidden_state.square().mean() + model(input_ids=IDS).last_hidden_state.sum() / 100
    return dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "settings"), [("qlora", {}), ("lora", {"base": "int8"}), ("qlora", {"dora": True})])
def test_gradient_after_an_evaluation_equals_the_gradient_before(base, method, settings, dtype):
    model = attached(base, method, dtype, rank=4, **settings)
    before = gradients(model)
    with torch.no_grad():
        for _ in range(3):
            model.eval()(input_ids=IDS)
    after = gradients(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(gradient.abs().max() > 0 for gradient in before.values())


@pytest.mark.parametrize(("method", "settings"), [("qlora", {}), ("lora", {"base": "int8"}), ("qlora", {"dora": True})])
def test_it_is_lora_over_the_dequantised_weights(base, method, settings):
    """All layers are stored, those without an adapter of their own too."""
    settings = {"rank": 4, "targets": "q_proj,down_proj", **settings}
    stored, shape = attached(base, method, **settings), models.shape(base)
    assert sum(isinstance(m, QuantisedLinear) for m in stored.modules()) == shape.layers * len(shape.projections)
    plain = load(base)
    for name, module in stored.named_modules():
        if isinstance(module, QuantisedLinear):
            plain.get_submodule(name.removesuffix(".base")).weight.copy_(matrix(module))
    spec = find(method, **settings).adapter(shape)
    adapters.attach(plain, [spec], seeds=[1])
    disturbed(plain)
    assert torch.allclose(stored(input_ids=IDS).last_hidden_state, plain(input_ids=IDS).last_hidden_state, atol=1e-6)
    ours, theirs = gradients(stored), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_detached_layers_stay_as_they_are_stored(base):
    model = attached(base, "qlora")
    adapters.detach(model)
    assert not any("lora_" in name for name, _ in model.named_parameters())
    assert isinstance(model.layers[0].mlp.up_proj, QuantisedLinear)


@pytest.mark.parametrize(
    ("method", "settings"), [("qlora", {}), ("lora", {"base": "int8"}), ("lora", {}), ("full", {})]
)
@pytest.mark.parametrize(("dtype", "compute_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("hidden", [32, 40])
def test_bytes_of_the_base_are_those_of_its_tensors(tmp_path, method, settings, dtype, compute_bytes, hidden):
    base = make_model(tmp_path, hidden=hidden)
    shape, model, found = models.shape(base), load(base, dtype), find(method, **settings)
    positions = resident_bytes(model) - sum(p.numel() * p.element_size() for p in model.parameters())
    adapters.quantise(model, found.storage, tuple(shape.projections), device=CPU)
    assert resident_bytes(model) - positions == found.base_bytes(shape, compute_bytes)


def test_nf4_takes_4_127_bits_a_weight():
    from tunetrial.methods.storage import matrix_bytes

    assert 8 * matrix_bytes(4096, 4096, "nf4", compute_bytes=2) / 4096**2 == pytest.approx(
        4 + 8 / 64 + 32 / 64 / 256, 1e-5
    )


def test_nf4_loses_as_much_as_published_and_int8_at_most_half_a_step():
    """Normal weights in NF4 blocks of 64 differ by 9 % in norm."""
    layer = nn.Linear(512, 256, bias=False)
    nn.init.normal_(layer.weight)
    nf4, int8 = (matrix(QuantisedLinear(layer, storage, CPU)) for storage in ("nf4", "int8"))
    assert float((nf4 - layer.weight.detach()).norm() / layer.weight.detach().norm()) == pytest.approx(0.092, abs=0.004)
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((int8 - layer.weight).abs() <= 0.5001 * step).all()


@pytest.mark.parametrize("sizes", [(64, 96), (70, 33), (512, 4096)])
def test_without_storage_a_matrix_has_the_buffers_that_it_has_with_it_and_others_are_quantised_after_it(sizes):
    layer = nn.Linear(*sizes, bias=False)
    counted = QuantisedLinear(nn.Linear(*sizes, bias=False, device="meta"), "nf4", torch.device("meta"))
    stored = QuantisedLinear(layer, "nf4", CPU)
    told = [{n: (b.shape, b.dtype) for n, b in made.stored.named_buffers()} for made in (counted, stored)]
    assert told[0] == told[1]


def test_a_row_of_zeros_is_stored_as_zeros():
    layer = nn.Linear(64, 2)
    layer.weight.data[1] = 0
    for storage in ("nf4", "int8"):
        assert torch.equal(matrix(QuantisedLinear(layer, storage, CPU))[1], torch.zeros(64))


def test_fp64_is_stored_from_fp32_and_computed_in_fp64():
    layer = nn.Linear(64, 8).double()
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    stored = QuantisedLinear(layer, "nf4", CPU)
    assert torch.autograd.gradcheck(stored, (x,)) and stored(x).dtype == torch.float64


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_and_gradients_are_those_of_peft(base, dora, family):
    """GPT-2 keeps its weights transposed and has biases."""
    if family == "llama":
        plain, targets = load(base), ("q_proj", "down_proj")
    else:
        torch.manual_seed(0)
        plain = GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100)).eval().requires_grad_(False)
        targets = ("c_attn", "c_proj")
        for module in plain.modules():
            if isinstance(module, Conv1D):
                nn.init.normal_(module.bias)
    ours, theirs = copy.deepcopy(plain), plain
    spec = methods.AdapterSpec(rank=4, scaling=2.0, targets=targets, dora=dora)
    adapters.attach(ours, [spec], seeds=[1])
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), use_dora=dora, fan_in_fan_out=family == "gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = inject_adapter_in_model(config, theirs)
    disturbed(ours)
    own = trained(ours)
    names = {name: name.replace(".default", "").removesuffix(".weight") for name in trained(theirs)}
    assert set(names.values()) == set(own)
    for name, plain_name in names.items():
        theirs.get_parameter(name).data.copy_(own[plain_name][0].detach())
    difference = ours(input_ids=IDS).last_hidden_state - theirs(input_ids=IDS).last_hidden_state
    assert difference.abs().max() < 5e-6
    mine, other = gradients(ours), gradients(theirs)
    for name, plain_name in names.items():
        assert torch.allclose(mine[plain_name][0], other[name], atol=1e-6, rtol=1e-5), name


def test_dora_computes_what_the_base_does_at_the_start(base):
    for dtype in (torch.float32, torch.bfloat16):
        plain, tuned = load(base, dtype), load(base, dtype)
        adapters.attach(tuned, [find("lora", dora=True).adapter(models.shape(base))], seeds=[1])
        assert torch.equal(plain(input_ids=IDS).last_hidden_state, tuned(input_ids=IDS).last_hidden_state)


@pytest.mark.parametrize("settings", [{"dora": True}, {"dora": True, "rank": 3, "targets": "k_proj,up_proj"}])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_counts_are_those_of_the_formulas(base, method, settings):
    model, shape, found = attached(base, method, **settings), models.shape(base), find(method, **settings)
    count = sum(math.prod(parameter.shape) for parameter in trained(model).values())
    assert count + 3 * shape.hidden == found.trainable_parameters(shape, 3)
    assert found.state_bytes(shape, 3) == 8 * (count + 3 * shape.hidden)


def test_a_base_that_does_not_fit_as_it_is_may_fit_as_a_trial_stores_it(tmp_path, monkeypatch):
    """Memory runs out as the base is opened: rows are counted all the same, and the trial finds out for itself."""
    whole, left = attention.load, [torch.OutOfMemoryError("CUDA out of memory")]

    def scarce(*args, **kwargs):
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return whole(*args, **kwargs)

    monkeypatch.setattr(attention, "load", scarce)
    session = TorchEngine(device="cpu").open(make_model(tmp_path), "fp32")
    data = make_data("classify")
    assert len(session.lengths(data.splits["train"])) == len(data.splits["train"])
    run = session.start(make_trial("qlora"), data)
    assert all(step.loss > 0 for step in run.steps(None, most=2))
    for _ in range(2):
        left[:] = [torch.OutOfMemoryError("again")]
        with pytest.raises(DoesNotFitError, match="lora: weights and optimiser states: out of memory, got again"):
            session.start(make_trial("lora"), data)
