"""The short ways that a CUDA device takes, each against the long one: rows as they lie, compiled chains, replayed
passes."""

import statistics
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import bases
from test_packs import text_data, trials
from test_varlen import plainly
from tiny import make_data, make_model
from tunetrial.engine import attention, blocks, fusion, varlen
from tunetrial.engine.graphs import CudaGraphs, Replay
from tunetrial.engine.loss import token_losses
from tunetrial.engine.torch_engine import TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: these tests measure one"),
]

NO_FURTHER = 1.25  # times the error of the padded path, both against the same in fp64
LENGTHS = (190, 64, 1, 333, 17, 128)
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def needs_flash():
    if torch.cuda.get_device_capability() < varlen.CAPABILITY:
        pytest.skip("rows are laid in a grid on this device")


def drawn(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]
    return attention.lay_out(rows, torch.device("cuda"))


def error(found, exact):
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def with_gradients(out, inputs, upstream):
    return out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))


@HALF
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "of_keys", "size"), [(32, 4, 64), (8, 8, 128), (4, 2, 8)])
def test_rows_as_they_lie_are_attended_as_in_the_grid(heads, of_keys, size, window, dtype):
    torch.manual_seed(0)
    layout = drawn()
    tokens, real = layout.ids.shape[1], len(layout.cells)
    inputs = [torch.randn(tokens, n, size, device="cuda").to(dtype) for n in (heads, of_keys, of_keys)]
    upstream = torch.randn(tokens, heads, size, device="cuda").to(dtype)
    upstream[real:] = 0
    torch.full((32 * tokens * heads * size,), torch.nan, device="cuda")  # what new memory may hold

    def flat():
        fresh = [x.clone().requires_grad_(True) for x in inputs]
        how = {"scaling": size**-0.5, "window": window}
        return with_gradients(varlen.attend(*fresh, layout.bounds, layout.most, **how), fresh, upstream)

    def gridded():
        fresh = [x.clone().requires_grad_(True) for x in inputs]
        q, k, v = (layout.grid(x).transpose(1, 2) for x in fresh)
        hidden = layout.hidden(causal=True, window=window)
        out = layout.flat(attention._fused(q, k, v, size**-0.5, hidden=hidden).transpose(1, 2))
        return with_gradients(out, fresh, upstream)

    exact = [x.double().cpu().requires_grad_(True) for x in inputs]
    right = plainly(*exact, layout.bounds.cpu(), layout.most, size**-0.5, window)
    expected = with_gradients(right, exact, upstream.cpu())
    once, again, padded = flat(), flat(), gridded()
    for ours, twice, theirs, truth in zip(once, again, padded, expected, strict=True):
        assert ours.isfinite().all() and torch.equal(ours, twice)
        assert error(ours[:real].cpu(), truth[:real]) <= NO_FURTHER * error(theirs[:real].cpu(), truth[:real])


def random_model(family: str, dtype: torch.dtype):
    """Four layers 256 wide: rounding is then averaged over enough numbers to be compared."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 97, "head_dim": 32}
    window = {"mistral": {"sliding_window": 40}}.get(family, {})
    config = AutoConfig.for_model(family, num_attention_heads=8, num_key_value_heads=2, **shape, **window)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).eval()
    model.set_attn_implementation(attention.UNPADDED)
    attention.prove(model)
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("compiled", [True, False])
def test_states_and_gradients_are_no_further_from_the_truth_than_padded_ones(family, compiled, monkeypatch):
    """And the same bytes twice. The truth is fp32 by transformers' own modules and eager attention."""
    layout, torch_rng = drawn(), torch.Generator("cuda").manual_seed(1)
    model, exact = random_model(family, torch.bfloat16), random_model(family, torch.float32)
    exact.load_state_dict(model.state_dict())
    exact.set_attn_implementation("eager")
    assert fusion.why_not() is None, fusion.why_not()
    if not compiled:
        monkeypatch.setattr(fusion, "fuses", lambda like: False)
    real = len(layout.cells)
    weights = torch.randn(real, 256, device="cuda", generator=torch_rng)

    def run(model, way):
        model.requires_grad_(True).zero_grad(set_to_none=True)
        states = way(model.base_model, layout)[:real]
        (states.float() * weights).sum().backward()
        return {"states": states.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}

    truth = run(exact, attention.states)
    assert blocks.fits(model.base_model)
    found, again = run(model, blocks.states), run(model, blocks.states)
    model.set_attn_implementation("eager")
    padded = run(model, attention.states)
    assert [name for name in found if not torch.equal(found[name], again[name])] == []
    ours, theirs = ({n: error(made[n], truth[n]) for n in truth} for made in (found, padded))
    states, others = ours.pop("states"), theirs.pop("states")
    gradients = statistics.mean(ours.values()), statistics.mean(theirs.values())
    print(f"{family}: states {states:.2e} / {others:.2e}, gradients {gradients[0]:.2e} / {gradients[1]:.2e}")
    assert states <= NO_FURTHER * others and gradients[0] <= NO_FURTHER * gradients[1]


@pytest.mark.parametrize("trained", [True, False])
def test_chunked_losses_are_those_of_all_logits(trained):
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda").bfloat16().requires_grad_(True)
    weight = torch.randn(5000, 64, device="cuda").bfloat16().requires_grad_(trained)
    targets, upstream = torch.randint(5000, (300,), device="cuda"), torch.rand(300, device="cuda")

    def plain(hidden, weight):
        logits = hidden @ weight.T
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(wide, targets, reduction="none")

    def run(way, hidden, weight):
        return with_gradients(way(hidden, weight), [x for x in (hidden, weight) if x.requires_grad], upstream)

    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in (hidden, weight)]
    ours = run(lambda h, w: token_losses(h, w, targets, chunk=128), hidden, weight)
    for found, other, truth in zip(ours, run(plain, hidden, weight), run(plain, *exact), strict=True):
        assert error(found, truth) <= NO_FURTHER * error(other, truth)


@dataclass
class Batch:
    tensors: tuple[torch.Tensor, ...]
    key: object
    layout: attention.Layout | None = None


def rows(lengths, *, seed, key):
    layout = drawn(lengths, seed)
    return Batch((layout.ids, layout.positions, layout.bounds, layout.last), key, layout)


def trained(folder, *, replayed: bool):
    """Twelve steps of plain descent over batches of two shapes, the gradient added to buffers that stay."""
    model = attention.load(folder, AutoModelForCausalLM, torch.bfloat16, torch.device("cuda")).requires_grad_(True)
    parameters = [p for n, p in model.named_parameters() if "lm_head" not in n]
    gradients = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]

    def compute(batch, factors):
        losses = blocks.states(model, batch.layout)[batch.layout.last].float().square().mean(1)
        (losses * factors).sum().backward()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            gradient.add_(parameter.grad)
            parameter.grad = None
        return losses.detach()

    def drop():
        for parameter in parameters:
            parameter.grad = None

    step, curve = Replay(compute, CudaGraphs(), abandon=drop) if replayed else compute, []
    for number in range(12):
        lengths = ((40, 20, 3), (100, 90, 80))[number % 2]
        batch = rows([n - number // 2 for n in lengths[:2]] + [lengths[2]], seed=number, key=lengths)
        curve.append(step(batch, torch.full((3,), 0.5 + number, device="cuda")).tolist())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(1e-4 * gradient)
                gradient.zero_()
    return curve, [p.detach().cpu() for p in parameters], step


def test_replayed_passes_give_the_bytes_of_computed_ones(tmp_path):
    bases.make("llama", tmp_path)
    curve, weights, step = trained(tmp_path, replayed=True)
    assert step.why_not is None and step.replayed == 11 and step.outright
    expected_curve, expected, _ = trained(tmp_path, replayed=False)
    assert curve == expected_curve
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, expected, strict=True))


def ask(drawn):
    assert drawn.sum().item() >= 0


def exhaust(drawn):
    torch.empty(2**45, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("spoil", [ask, exhaust])
def test_a_pass_that_cannot_be_recorded_is_computed_and_leaves_the_device_as_it_was(spoil):
    weight, dropped = torch.ones(3, device="cuda", requires_grad=True), []

    def compute(batch, factors):
        drawn = torch.nn.functional.dropout(weight, 0.5)
        if torch.cuda.is_current_stream_capturing():
            spoil(drawn)
        return (drawn * batch.tensors[0] * factors).detach()

    step = Replay(compute, CudaGraphs(), abandon=lambda: dropped.append(1))
    for number in range(1, 5):
        batch = Batch((torch.full((3,), float(number), device="cuda"),), key=3)
        assert set(step(batch, torch.ones(3, device="cuda")).tolist()) <= {0.0, 2.0 * number}
    assert step.replayed == 0 and dropped == [1] and "recording failed" in step.why_not
    assert 0 < torch.rand(1000, device="cuda").mean().item() < 1
    assert CudaGraphs().record(lambda: weight.detach() + 1)().tolist() == [2, 2, 2]


THREE = ({"seed": 1, "rate": 1e-3}, {"seed": 2, "rate": 3e-4, "settings": {"rank": 3}}, {"seed": 3, "rate": 1e-3})
ANSWERS = pytest.mark.parametrize("kind", ["classify", "regress", "generate"])


def pack_of(base, kind, *asked, method="lora", replayed=True):
    controls = {"readout": "text", "max_new_tokens": 8} if kind == "generate" else {}
    each = trials(*asked, method=method, precision="bf16", epochs=12, **controls)
    session = TorchEngine(device="cuda").open(base, "bf16")
    pack = session.start_pack(each, text_data() if kind == "generate" else make_data(kind, rows=64))
    if not replayed:
        pack.loop.replay = None
    return pack


def curves(pack):
    """Losses and gradient norms of each member, and the masters that they led to."""
    found = [[(step.loss, step.grad_norm) for step in steps] for steps in zip(*pack.steps(None), strict=True)]
    return found, pack.trainables.masters.cpu().clone()


@ANSWERS
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("members", [1, 3])
def test_a_training_of_replayed_passes_gives_the_bytes_of_computed_ones(kind, method, members, tmp_path):
    if method == "full" and members > 1:
        pytest.skip("whole models do not pack")
    base, asked = make_model(tmp_path), THREE[:members]
    pack = pack_of(base, kind, *asked, method=method)
    found, masters = curves(pack)
    facts = pack.facts(0)
    assert facts["attention"] == "varlen" and facts["blocks"] == "tunetrial" and facts["compiled"]
    assert facts["cuda_graphs"], facts.get("not_recorded")
    expected, same = curves(pack_of(base, kind, *asked, method=method, replayed=False))
    assert found == expected and torch.equal(masters, same)
    assert curves(pack_of(base, kind, *asked, method=method))[0] == found


@ANSWERS
def test_numbers_lost_in_one_member_leave_the_others_bits(kind, tmp_path):
    base = make_model(tmp_path)
    sound = curves(pack_of(base, kind, *THREE))
    pack = pack_of(base, kind, *THREE)
    with torch.no_grad():
        pack.trainables.masters[1, :100] = torch.nan
    pack.trainables.publish()
    found = [list(steps) for steps in zip(*pack.steps(None), strict=True)]
    for member in (0, 2):
        assert [(step.loss, step.grad_norm) for step in found[member]] == sound[0][member]
        assert torch.equal(pack.trainables.masters[member].cpu(), sound[1][member])
    assert all(step.loss != step.loss for step in found[1]) and list(pack.loop.diverged) == [1]
