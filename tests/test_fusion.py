"""Functions compiled as they are on CUDA, here by torch's tracer alone on the CPU: which variants there are."""

import warnings

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter

from tunetrial.engine import elementwise, fusion, loss
from tunetrial.engine.fusion import fused


@pytest.fixture
def compiled(monkeypatch):
    """Everything is compiled; counts how often."""
    counter, made = CompileCounter(), {}

    def once(function):
        return made.setdefault(function, torch.compile(function, fullgraph=True, backend=counter))

    torch._dynamo.reset()
    monkeypatch.setattr(fusion, "fuses", lambda like: True)
    monkeypatch.setattr(fusion, "_compiled", once)
    yield counter
    torch._dynamo.reset()


def drawn(*shape, trained=True):
    return torch.randn(*shape).requires_grad_(trained)


def block(tokens: int, hidden: int = 32) -> list[torch.Tensor]:
    """A pass over all functions of a block, and of the loss; its results and gradients."""
    torch.manual_seed(0)
    x, y, gate, up = (drawn(1, tokens, hidden) for _ in range(4))
    weight, heads, angles = nn.Parameter(torch.rand(hidden)), drawn(tokens, 4, 8), drawn(tokens, 1, 8, trained=False)
    output, targets = drawn(50, hidden, trained=False), torch.randint(50, (tokens,))
    made = [
        elementwise.Norm.apply(x, weight, 1e-5),
        *elementwise.SumAndNorm.apply(x, y, weight, 1e-5),
        elementwise.SwiGLU.apply(gate, up),
        elementwise.Turn.apply(heads, angles.cos(), angles.sin()),
        loss.token_losses(x[0], output, targets, chunk=2048),
    ]
    sum(one.square().sum() for one in made).backward()
    return [one.detach() for one in made] + [one.grad for one in (x, y, gate, up, weight, heads)]


def test_token_counts_that_change_compile_nothing_anew(compiled):
    """One variant a function: norm, its sum, two gradients of them, two of the unit, two turns, the loss."""
    block(64)
    first = compiled.frame_count
    assert first == 9
    for tokens in (128, 1024, 192, 3136, 64):
        block(tokens)
    assert compiled.frame_count == first
    with torch.no_grad():
        elementwise.Norm.apply(torch.randn(1, 320, 32), torch.ones(32), 1e-5)
    assert compiled.frame_count == first


def test_another_width_is_another_variant_and_dtypes_too(compiled):
    x, weight = torch.randn(5, 8), torch.ones(8)
    for tensors in (
        (x, weight),
        (x[:, :4], weight[:4]),
        (x.bfloat16(), weight.bfloat16()),
        (x.T.contiguous().T, weight),
    ):
        elementwise.norm(*tensors, 1e-5)
    assert compiled.frame_count == 3


def test_compiled_functions_compute_the_same(compiled, monkeypatch):
    found = block(70)
    monkeypatch.setattr(fusion, "fuses", lambda like: False)
    for ours, theirs in zip(found, block(70), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_compiled_does_not_depend_on_the_first_batch(compiled, monkeypatch):
    """It is compiled for the same number of tokens, whichever come."""
    calls, real = [], fusion._compiled
    monkeypatch.setattr(
        fusion, "_compiled", lambda function: lambda *args: calls.append(args[0].shape) or real(function)(*args)
    )

    @fused(0, None)
    def scaled(x, factor):
        return x * factor

    for tokens in (7, 9):
        scaled(torch.randn(tokens, 3), 2.0)
    assert calls == [(fusion.COMPILED_FOR, 3), (7, 3), (9, 3)]


def test_swiglu_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    gate, up = (torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(elementwise.SwiGLU.apply, (gate, up))
    torch.testing.assert_close(elementwise.SwiGLU.apply(gate, up), gate / (1 + (-gate).exp()) * up)


def test_on_a_cpu_nothing_is_compiled():
    assert not fusion.fuses(torch.zeros(1))


def test_a_machine_that_cannot_compile_says_why_and_computes_as_before(compiled, monkeypatch):
    def broken(*_):
        raise RuntimeError("\nCannot find a working triton installation\nmore")

    monkeypatch.setattr(fusion, "FOUND", [])
    monkeypatch.setattr(fusion, "_try", lambda: None)
    monkeypatch.setattr(fusion, "_compiled", lambda function: broken)
    monkeypatch.setattr(fusion, "fuses", lambda like: fusion.why_not() is None)
    doubled = fused(0)(lambda x: 2 * x)
    assert fusion.why_not() is None
    assert all(torch.equal(doubled(torch.ones(n)), 2 * torch.ones(n)) for n in (3, 4))
    assert fusion.FOUND == ["<lambda>: Cannot find a working triton installation"]
    assert fusion.why_not() == fusion.FOUND[0]


def test_running_out_of_memory_does_not_end_compiling(compiled, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fusion, "FOUND", [])
    monkeypatch.setattr(fusion, "_compiled", lambda function: full)
    with pytest.raises(torch.OutOfMemoryError):
        fused(0)(lambda x: 2 * x)(torch.ones(3))
    assert not fusion.FOUND


def test_a_remark_of_the_compiler_is_no_fault():
    """Warnings are errors here, as they are in many a user's tests."""

    def remarks(x):
        warnings.warn("TF32 is available but not enabled", stacklevel=1)

    assert fusion._runs(remarks, [torch.ones(1)], "remarks") and fusion.FOUND == []
