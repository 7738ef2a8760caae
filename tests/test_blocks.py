"""The walked backbone against transformers' modules: states, gradients, whole trainings, and what it leaves alone."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama import modeling_llama

import bases
from tiny import make_data, make_model, make_trial
from tunetrial.engine import attention, blocks
from tunetrial.engine.torch_engine import TorchEngine

CPU = torch.device("cpu")
LENGTHS = (7, 1, 12, 9)
known = pytest.mark.parametrize("name", ["llama", "llama-biased", "mistral", "qwen2", "qwen3"])


def load(name, folder, dtype=torch.float32):
    bases.make(name, folder)
    return attention.load(folder, AutoModelForCausalLM, dtype, CPU)


def drawn(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return attention.lay_out([torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths], CPU)


def gradients(model, layout, way):
    """The states of real tokens, and every weight's gradient of a drawn function of them."""
    model.requires_grad_(True).zero_grad()
    states = way(model.base_model, layout)[: len(layout.cells)]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (states * weights.to(states.dtype)).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@known
@pytest.mark.parametrize("lengths", [LENGTHS, (64,), (5, 5)])
def test_states_and_gradients_are_those_of_transformers(name, lengths, tmp_path):
    model, layout = load(name, tmp_path), drawn(lengths)
    assert blocks.fits(model.base_model)
    states, found = gradients(model, layout, blocks.states)
    expected_states, expected = gradients(model, layout, attention.states)
    torch.testing.assert_close(states, expected_states, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert (found[weight] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, weight


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bert"])
def test_a_wider_grid_computes_the_same(name, tmp_path, monkeypatch):
    bases.make(name, tmp_path)
    model = attention.load(tmp_path, AutoModelForCausalLM if name != "bert" else AutoModel, torch.float32, CPU)
    assert model.config._attn_implementation == attention.UNPADDED
    found = {}
    for columns in (1, 32):
        monkeypatch.setattr(attention, "COLUMN_BUCKET", {"cpu": columns})
        layout = drawn()
        assert layout.longest == (32 if columns == 32 else max(LENGTHS))
        way = blocks.states if blocks.fits(model.base_model) else attention.states
        found[columns] = gradients(model, layout, way)
    torch.testing.assert_close(found[32], found[1], rtol=1e-5, atol=1e-5)


@known
def test_bf16_is_no_further_from_fp32_than_transformers(name, tmp_path):
    narrow, layout = load(name, tmp_path, torch.bfloat16), drawn((24, 31, 17, 30, 29, 12))
    exact = load(name, tmp_path / "again").requires_grad_(True)
    exact.load_state_dict(narrow.state_dict())
    states, right = gradients(exact, layout, attention.states)
    far = {}
    for way in (blocks.states, attention.states):
        made, found = gradients(narrow, layout, way)
        errors = [float((found[n].float() - right[n]).norm() / right[n].norm()) for n in right if right[n].norm() > 0]
        far[way] = float((made.float() - states).norm()), sum(errors) / len(errors)
    for ours, theirs in zip(far[blocks.states], far[attention.states], strict=True):
        assert 0 < ours <= 1.25 * theirs


def wide(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_norm_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    x, y, weight, eps = wide(1, 5, 6), wide(1, 5, 6), wide(6), 1e-5
    assert torch.autograd.gradcheck(lambda x, w: blocks.Norm.apply(x, w, eps), (x, weight))
    both = lambda x, y, w: torch.cat(blocks.SumAndNorm.apply(x, y, w, eps))  # noqa: E731
    assert torch.autograd.gradcheck(both, (x, y, weight))
    rms = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(blocks.Norm.apply(x, weight, eps), weight * x / rms, rtol=1e-12, atol=1e-12)


def test_a_norm_that_overflows_has_no_gradient():
    x = torch.full((1, 2, 4), 1e20)
    x[0, 0] = 1.0
    x.requires_grad_(True)
    blocks.Norm.apply(x, torch.ones(4), 1e-5).sum().backward()
    assert x.grad[0, 0].isfinite().all() and x.grad[0, 1].isnan().all()


def test_grid_and_attention_have_the_gradients_of_their_formulas(tmp_path):
    torch.manual_seed(0)
    layout, heads, size = drawn((3, 1, 2)), 2, 4
    tokens, real = layout.ids.shape[1], len(layout.cells)
    model = load("llama", tmp_path, torch.float64)
    grid = blocks.Grid(model.base_model, layout, tokens, torch.zeros(1, dtype=torch.float64))
    cos, sin = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    angles = torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)
    places, shape = grid.places(heads), (layout.rows, heads, layout.longest, size)

    def there_and_back(flat):
        padded = torch.cat([flat, flat.new_zeros(1, tokens - real, heads * size)], 1)
        laid = blocks.IntoGrid.apply(padded, places, size, *angles).view(shape)
        return blocks.OutOfGrid.apply(laid * laid, places)[:, :real]

    flat = wide(1, real, heads * size)
    assert torch.autograd.gradcheck(there_and_back, (flat,))
    first, second = flat.detach()[0, 2].view(heads, size).split(2, dim=1)  # the third token is in column 2
    turned = torch.cat([first * cos[2] - second * sin[2], second * cos[2] + first * sin[2]], 1)
    torch.testing.assert_close(there_and_back(flat)[0, 2], turned.square().flatten())

    q, k, v = wide(3, 4, 3, size), wide(3, 2, 3, size), wide(3, 2, 3, size)
    bias = grid.bias(2, groups=2)
    assert torch.autograd.gradcheck(lambda q, k, v: blocks.Softmax.apply(q, k, v, bias), (q, k, v))
    hidden = layout.hidden(causal=True, window=2)
    expected = attention._plain(q, k, v, 1.0, hidden=hidden, softcap=None)
    torch.testing.assert_close(blocks.Softmax.apply(q, k, v, bias), expected, rtol=1e-6, atol=1e-6)


def test_what_is_not_known_is_left_to_transformers(tmp_path):
    model, layout = load("llama", tmp_path / "llama"), drawn()
    backbone = model.base_model
    assert blocks.fits(backbone)
    hook = backbone.layers[1].self_attn.register_forward_hook(lambda *_: None)
    assert not blocks.fits(backbone)
    hook.remove()
    assert blocks.fits(backbone)
    backbone.layers[0].input_layernorm = torch.nn.LayerNorm(32)
    assert not blocks.fits(backbone)
    assert torch.equal(blocks.states(model, layout), attention.states(model, layout))
    assert not blocks.fits(load("gemma2", tmp_path / "gemma").base_model)
    assert not blocks.fits(load("llama", tmp_path / "wide", torch.float64).base_model)


def test_a_deep_model_is_proven_by_its_first_layers():
    """In bf16 rounding alone carries two right ways through its 32 layers to states that are further apart."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 97}
    config = LlamaConfig(hidden_size=64, intermediate_size=128, max_position_embeddings=64, **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.4)
    model.set_attn_implementation(attention.UNPADDED)
    attention.prove(model)
    assert model.config._attn_implementation == attention.UNPADDED and blocks.fits(model.base_model)
    assert len(model.base_model.layers) == 32
    layout = drawn()
    ours, theirs = (way(model, layout)[: sum(LENGTHS)].float() for way in (blocks.states, attention.states))
    assert (ours - theirs).norm() > attention.TOLERANCE[torch.bfloat16] * theirs.norm()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3_text", "gpt2", "bert", "distilbert"])
def test_the_first_layers_hold_every_kind(name, tmp_path):
    bases.make(name, tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path)
    kinds = set(getattr(backbone.config, "layer_types", None) or [])
    whole = [len(module) for module in backbone.modules() if isinstance(module, torch.nn.ModuleList)]
    with pytest.raises(KeyError), attention.shallow(backbone):
        few = max(len(module) for module in backbone.modules() if isinstance(module, torch.nn.ModuleList))
        assert 2 <= few <= max(whole) and kinds == set((getattr(backbone.config, "layer_types", None) or [])[:few])
        raise KeyError
    assert [len(module) for module in backbone.modules() if isinstance(module, torch.nn.ModuleList)] == whole


def test_a_known_class_that_computes_something_else_is_found_out(tmp_path, monkeypatch):
    """As a later transformers might."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
    assert not blocks.fits(load("llama", tmp_path).base_model)


@pytest.mark.parametrize(
    "settings",
    [("full", {}), pytest.param(("lora", {}), marks=pytest.mark.slow), ("lora", {"dora": True})],
    ids=["full", "lora", "dora"],
)
def test_training_is_that_of_transformers_modules(settings, tmp_path, monkeypatch):
    """Three micro-batches a step, whole trainings: losses, predictions and the names of weights."""
    base, data = make_model(tmp_path, hidden=32), make_data("regress", rows=48)
    method, settings = settings
    trial = make_trial(method, settings=settings, epochs=4)
    made = {}
    for way in (True, True, False):
        if not way:
            monkeypatch.setattr(blocks, "fits", lambda backbone: False)
        run = TorchEngine(device="cpu").open(base, "fp32").start(trial, data, micro_batch=6)
        losses = [step.loss for step in run.steps(None)]
        assert run.facts()["blocks"] == ("tunetrial" if way else "transformers")
        found = losses, run.predict(data.splits["validation"]), list(run.trainables.member(0))
        assert found == made.setdefault(way, found)
    assert made[True][2] == made[False][2]
    assert made[True][0] == pytest.approx(made[False][0], rel=1e-5)
    assert made[True][1] == pytest.approx(made[False][1], rel=1e-4)


@known
def test_long_rows_that_train_nothing_take_the_fused_kernel_and_have_the_same_states(name, tmp_path, monkeypatch):
    model, layout = load(name, tmp_path), drawn((40, 7, 33))
    with torch.no_grad():
        expected = blocks.states(model, layout)
        monkeypatch.setattr(blocks, "FUSED_FROM", 40)
        asked = []
        fused = attention._fused
        monkeypatch.setattr(attention, "_fused", lambda *a, **k: asked.append(a) or fused(*a, **k))
        found = blocks.states(model, layout)
    assert asked
    torch.testing.assert_close(found[: len(layout.cells)], expected[: len(layout.cells)], rtol=1e-5, atol=1e-5)
    asked.clear()
    blocks.states(model, layout)
    assert not asked, "where gradients are wanted the plain one's backward is quicker"
