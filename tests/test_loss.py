"""Chunked cross-entropy against torch's own on all logits, and what it holds at once."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunetrial.engine.loss import token_losses, tokens_at_once
from tunetrial.engine.place import Place, assumed

chunks = pytest.mark.parametrize("chunk", [1, 4, 7, 100])
caps = pytest.mark.parametrize("cap", [None, 2.0])


def drawn(tokens=7, hidden=5, vocabulary=11, dtype=torch.float64, *, trained=True):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    states, weight = make(tokens, hidden).requires_grad_(True), make(vocabulary, hidden).requires_grad_(trained)
    return states, weight, torch.randint(vocabulary, (tokens,), generator=generator)


def plainly(states, weight, targets, cap):
    logits = (states @ weight.T).to(torch.promote_types(states.dtype, torch.float32))
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def with_gradients(nats, states, weight):
    upstream = torch.linspace(0.1, 2, len(nats), dtype=nats.dtype)
    wanted = [x for x in (states, weight) if x.requires_grad]
    return nats.detach(), *torch.autograd.grad(nats, wanted, upstream)


@chunks
@caps
@pytest.mark.parametrize("trained", [True, False])
def test_losses_and_gradients_are_those_of_all_logits_at_once(chunk, cap, trained):
    inputs = drawn(dtype=torch.float32, trained=trained)
    found = with_gradients(token_losses(*inputs, chunk=chunk, cap=cap), *inputs[:2])
    expected = with_gradients(plainly(*inputs, cap), *inputs[:2])
    assert found[0].dtype == torch.float32 and len(found) == 2 + trained
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@caps
@pytest.mark.parametrize("trained", [True, False])
def test_gradients_are_those_of_the_formula(cap, trained):
    states, weight, targets = drawn(trained=trained)
    losses = lambda states, weight: token_losses(states, weight, targets, chunk=3, cap=cap)  # noqa: E731
    assert torch.autograd.gradcheck(losses, (states, weight))


@pytest.mark.parametrize("trained", [True, False])
def test_bf16_is_no_further_from_fp32_than_torch(trained):
    inputs = drawn(64, 32, 211, torch.bfloat16, trained=trained)
    wide = [inputs[0].detach().float().requires_grad_(True), inputs[1].detach().float().requires_grad_(trained)]
    right = with_gradients(plainly(*wide, inputs[2], None), *wide)
    ours = with_gradients(token_losses(*inputs, chunk=16), *inputs[:2])
    theirs = with_gradients(plainly(*inputs, None), *inputs[:2])
    assert ours[0].dtype == torch.float32 and all(x.dtype == torch.bfloat16 for x in ours[1:])
    for found, other, exact in zip(ours, theirs, right, strict=True):
        assert 0 < (found.float() - exact).norm() <= 1.25 * (other.float() - exact).norm()


def test_an_answer_of_no_tokens_has_no_losses():
    states, weight, targets = drawn(tokens=0)
    nats = token_losses(states, weight, targets, chunk=4)
    nats.sum().backward()
    assert nats.shape == (0,) and states.grad.shape == (0, 5) and not weight.grad.any()


def test_large_logits_stay_finite():
    states, weight, targets = drawn(dtype=torch.float32)
    assert token_losses(states * 1e4, weight, targets, chunk=4).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lost_number_stays_with_its_token(dtype):
    states, weight, targets = drawn(200, 64, 257, dtype, trained=False)
    poisoned = states.detach().clone()
    poisoned[100:120] = torch.nan
    poisoned.requires_grad_(True)
    lost = token_losses(poisoned, weight, targets, chunk=64)
    (gradient,) = torch.autograd.grad(lost.sum(), poisoned)
    (sound,) = torch.autograd.grad(token_losses(states, weight, targets, chunk=64).sum(), states)
    others = (torch.arange(200) < 100) | (torch.arange(200) >= 120)
    assert lost[~others].isnan().all() and gradient[~others].isnan().all()
    assert torch.equal(gradient[others], sound[others])


class Largest(TorchDispatchMode):
    """The most numbers that any one operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("trained", [True, False])
def test_no_more_than_a_chunk_of_logits_is_held(trained):
    tokens, hidden, vocabulary, chunk = 64, 4, 500, 8
    states, weight, targets = drawn(tokens, hidden, vocabulary, torch.float32, trained=trained)
    with Largest() as seen:
        token_losses(states, weight, targets, chunk=chunk).sum().backward()
    assert seen.numbers == chunk * vocabulary
    with Largest() as seen:
        plainly(states, weight, targets, None).sum().backward()
    assert seen.numbers == tokens * vocabulary


def test_a_chunk_has_so_many_logits_whatever_the_vocabulary():
    for vocabulary in (1, 97, 32000, 128256, 2**27):
        weight = torch.empty(vocabulary, 1, device="meta")
        with assumed(Place("cuda")):
            tokens = tokens_at_once(weight)
            assert tokens == 1 or tokens * vocabulary <= 2**26 < (tokens + 1) * vocabulary
            assert tokens_at_once(weight, side_by_side=8) == max(1, 2**23 // vocabulary)
        with assumed(Place("cpu")):
            assert tokens_at_once(weight) == max(128, 2**21 // vocabulary)
