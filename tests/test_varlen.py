"""Attention over rows as they lie: what is told to the kernel, on the CPU with a reference in the kernel's place."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import bases
from tunetrial.engine import attention, blocks, varlen

CPU = torch.device("cpu")
LENGTHS = (7, 1, 12, 9)


def plainly(q, k, v, bounds, longest, scaling, window):
    """Attention of each row by itself; a token in no row is poison, as is a row longer than was said."""
    groups, made = q.shape[1] // k.shape[1], []
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert 0 <= end - first <= longest
        queries, keys, values = (x[first:end].transpose(0, 1) for x in (q, k, v))
        keys, values = (x.repeat_interleave(groups, 0) for x in (keys, values))
        ones = torch.ones(end - first, end - first, dtype=torch.bool)
        hidden = ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)
        scores = (queries @ keys.transpose(1, 2) * scaling).masked_fill(hidden, -torch.inf)
        made.append((scores.softmax(-1) @ values).transpose(0, 1))
    made.append(torch.full_like(q[bounds[-1] :], torch.nan))
    return torch.cat(made)


@pytest.fixture
def reference(monkeypatch):
    return flash_by_reference(monkeypatch)


def flash_by_reference(monkeypatch):
    """The kernel's place taken; what it was told is kept."""
    told = []

    def forward(q, k, v, bounds, *how):
        told.append((bounds, *how))
        return plainly(q, k, v, bounds, *how), *(q.new_zeros(1) for _ in range(3))

    def backward(dmixed, q, k, v, bounds, mixed, sums, seed, offset, *how):
        assert torch.are_deterministic_algorithms_enabled()
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(True) for x in (q, k, v)]
            return torch.autograd.grad(plainly(*inputs, bounds, *how), inputs, dmixed)

    monkeypatch.setattr(varlen, "takes", lambda like, head_dim: True)
    monkeypatch.setattr(varlen, "_forward", forward)
    monkeypatch.setattr(varlen, "_backward", backward)
    return told


def drawn(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return attention.lay_out([torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths], CPU)


def gradients(model, layout, way):
    model.requires_grad_(True).zero_grad()
    states = way(model.base_model, layout)
    assert states.isfinite().all()
    states = states[: len(layout.cells)]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", [blocks.states, attention.states], ids=["blocks", "transformers"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_states_and_gradients_are_those_of_the_grid(name, way, tmp_path, reference, monkeypatch):
    bases.make(name, tmp_path)
    model, layout = attention.load(tmp_path, AutoModelForCausalLM, torch.float32, CPU), drawn((64, 30, 90))
    states, found = gradients(model, layout, way)
    windows = {"mistral": [5, 5], "qwen2": [None, 5]}.get(name, [None, None])
    assert [window for *_, window in reference[-2:]] == windows
    monkeypatch.setattr(varlen, "takes", lambda like, head_dim: False)
    expected_states, expected = gradients(model, layout, way)
    torch.testing.assert_close(states, expected_states, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert (found[weight] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, weight


@pytest.mark.parametrize("name", ["gemma2", "bert"])
def test_what_the_kernel_cannot_is_laid_in_the_grid(name, tmp_path, reference):
    """Scores bounded by tanh, and rows seen whole."""
    bases.make(name, tmp_path)
    loader = AutoModelForCausalLM if name == "gemma2" else attention.AutoModel
    model = attention.load(tmp_path, loader, torch.float32, CPU)
    assert model.config._attn_implementation == attention.UNPADDED
    attention.states(model, drawn())
    assert not reference


@pytest.mark.parametrize("wide", [None, 256])
def test_every_token_is_in_a_row_and_shapes_are_few(wide, monkeypatch):
    if wide is not None:
        monkeypatch.setitem(attention.WIDE_BUCKET, "cpu", wide)
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 16, 17, 40, 100):
        for longest in (1, 3, 70, 600):
            lengths = torch.randint(1, longest + 1, (rows,), generator=generator).tolist()
            layout = attention.lay_out([[5] * n for n in lengths], CPU)
            bounds, tokens = layout.bounds, layout.ids.shape[1]
            assert bounds.dtype == torch.int32 and len(bounds) == rows + 1 + -(-rows // 16)
            assert bounds[: rows + 1].tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
            assert bounds[-1] == tokens and 0 <= bounds.diff().min() and bounds.diff().max() <= layout.most
            assert layout.most >= 1024 and layout.most.bit_count() == 1
            if wide is not None and sum(lengths) >= 4096:
                assert tokens - sum(lengths) < sum(lengths) / attention.IDLE_SHARE


def test_buckets_widen_on_cuda_alone():
    assert {attention._rounded(n, "cuda") for n in range(1, 4097)} == set(range(256, 4097, 256))
    assert len({attention._rounded(n, "cuda") for n in range(4097, 16385)}) == 2 * 16
    assert {attention._rounded(n, "cpu") - n for n in range(1, 200)} == set(range(64))


def test_heads_are_turned_by_their_positions():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(3, 1, 2, dtype=torch.float64)
    cos, sin = torch.cat([angle.cos()] * 2, 2), torch.cat([-angle.sin(), angle.sin()], 2)
    turned = torch.view_as_complex(torch.stack(x.chunk(2, 2), 3).contiguous()) * torch.polar(angle * 0 + 1, angle)
    torch.testing.assert_close(blocks.Turn.apply(x, cos, sin), torch.cat([turned.real, turned.imag], 2))
    assert torch.autograd.gradcheck(lambda x: blocks.Turn.apply(x, cos, sin), (x,))


@pytest.mark.parametrize("window", [None, 3])
def test_the_operators_of_torch_take_what_they_are_told(window):
    """By their shapes alone; keys have fewer heads than queries."""
    meta = {"device": "meta", "dtype": torch.bfloat16}
    q, k, v = (torch.empty(64, heads, 16, **meta) for heads in (4, 2, 2))
    bounds = torch.empty(4, dtype=torch.int32, device="meta")
    made = varlen._forward(q, k, v, bounds, 512, 0.25, window)
    assert made[0].shape == q.shape and made[1].dtype == torch.float32
    found = varlen._backward(torch.empty_like(q), q, k, v, bounds, *made, 512, 0.25, window)
    assert [x.shape for x in found] == [x.shape for x in (q, k, v)]
    assert varlen._seen(window) == (
        (True, {}) if window is None else (False, {"window_size_left": 2} | {"window_size_right": 0})
    )


@pytest.mark.parametrize("warn_only", [None, False, True])
def test_determinism_ends_with_the_kernel(warn_only):
    if warn_only is not None:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        with pytest.raises(KeyError), varlen.repeatable():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
            raise KeyError
        assert torch.are_deterministic_algorithms_enabled() == (warn_only is not None)
        assert torch.is_deterministic_algorithms_warn_only_enabled() == bool(warn_only)
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_cpu_has_no_such_kernel():
    assert not varlen.takes(torch.zeros(1, dtype=torch.bfloat16), 64)


def test_batches_of_one_objective_have_their_longest_in_common():
    short, long = [[5] * 3], [[5] * 1500]
    assert attention.lay_out(short, CPU).most == 1024 and attention.lay_out(long, CPU).most == 2048
    assert attention.lay_out(short, CPU, longest=1500).most == attention.lay_out(long, CPU, longest=3).most == 2048
