"""Cross-entropy of a language model's tokens, without all logits at once.

Logits are (tokens, vocabulary), in fp32 the largest tensor of a step by far. Here they are made a chunk of tokens at a
time, and are gone before the next: what is kept is a number a token and, while the output weight is frozen, the
gradient in the hidden states, which a token's own upstream gradient only scales. Where the weight is trained, chunks
are made anew in the backward pass, since its gradient sums over tokens that are scaled differently.

    nats = token_losses(states, head.weight, targets, chunk=tokens_at_once(head.weight))
"""

import torch

from tunetrial.engine.fusion import fused
from tunetrial.engine.place import is_cuda

CHUNK_LOGITS, FEWEST_TOKENS = {"cpu": 2**21, "cuda": 2**26}, 128


def tokens_at_once(weight: torch.Tensor, *, side_by_side: int = 1) -> int:
    """A chunk whose logits take some 256 MiB in fp32 on a GPU. On a CPU some 8 MiB, so that what is made of them is
    still in its caches, but 128 tokens at least, for which the weight is read once.

    `side_by_side` is how many tensors of that size are held.
    """
    if is_cuda(weight):
        return max(1, CHUNK_LOGITS["cuda"] // len(weight) // side_by_side)
    return max(FEWEST_TOKENS, CHUNK_LOGITS["cpu"] // len(weight) // side_by_side)


def token_losses(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, chunk: int, cap: float | None = None
) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, (tokens,) in fp32 (fp64 of fp64).

    What `cross_entropy((hidden @ weight.T).float(), targets, reduction="none")` gives, with gradients in hidden and, if
    it is trained, in weight. No target is left out: hand over labelled tokens alone.

    Args:
        hidden: (tokens, hidden), in the compute dtype; logits are rounded to it, as those of a linear layer are.
        weight: (vocabulary, hidden), of the same dtype.
        targets: (tokens,), int64.
        chunk: How many tokens' logits are held at once. Results do not depend on it but for rounding.
        cap: Logits x are bounded to cap * tanh(x / cap) first (Gemma 2, arXiv:2408.00118).
    """
    return TokenLosses.apply(hidden, weight, targets, chunk, cap)


class TokenLosses(torch.autograd.Function):
    """With x the logits, z = logsumexp(x) and t the target: z - x_t, whose gradient in x is softmax(x) - onehot(t)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk, cap):
        trained, asked = ctx.needs_input_grad[1], ctx.needs_input_grad[0]
        nats = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        dhidden = torch.empty_like(hidden) if asked and not trained else None
        for at in _chunks(len(hidden), chunk):
            logits = hidden[at] @ weight.T
            if dhidden is None:
                nats[at] = negative_log_likelihood(logits, targets[at], cap)
            else:
                nats[at], dlogits = with_gradient(logits, targets[at], None, cap)
                _token_products(dlogits, weight, nats[at], out=dhidden[at])
        ctx.save_for_backward(*((hidden, weight, targets) if trained else (dhidden,)))
        ctx.trained, ctx.chunk, ctx.cap = trained, chunk, cap
        return nats

    @staticmethod
    def backward(ctx, dnats):
        if not ctx.trained:
            (dhidden,) = ctx.saved_tensors
            return (dhidden * dnats[:, None]).to(dhidden.dtype), None, None, None, None
        hidden, weight, targets = ctx.saved_tensors
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight, dtype=dnats.dtype)
        for at in _chunks(len(hidden), ctx.chunk):
            _, dlogits = with_gradient(hidden[at] @ weight.T, targets[at], dnats[at], ctx.cap)
            torch.mm(dlogits, weight, out=dhidden[at])
            dweight += _product(dlogits.T, hidden[at], dweight.dtype)
        return dhidden, dweight.to(weight.dtype), None, None, None


def _token_products(dlogits: torch.Tensor, weight: torch.Tensor, nats: torch.Tensor, *, out: torch.Tensor) -> None:
    """dlogits weight, a token's row from its own alone.

    On a CPU's matrix units a product in bf16 multiplies, where rows are no multiple of their width, what stands behind
    a row by 0: a token that is not a number would take the one before it along.
    """
    lost = None if dlogits.is_meta or is_cuda(dlogits) or not nats.isnan().any() else nats.isnan()
    torch.mm(dlogits if lost is None else dlogits.masked_fill(lost[:, None], 0), weight, out=out)
    if lost is not None:
        out[lost] = torch.nan


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a b, on CUDA without rounding to the inputs' dtype."""
    return torch.mm(a, b, out_dtype=dtype) if is_cuda(a) and a.dtype != dtype else a @ b


def _chunks(tokens: int, chunk: int) -> list[slice]:
    return [slice(first, first + chunk) for first in range(0, tokens, chunk)]


@fused(0, 0, None)
def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor, cap: float | None) -> torch.Tensor:
    """logsumexp(x) - x_t of logits (tokens, vocabulary), in fp32 or wider."""
    return -_wide(logits, cap).log_softmax(1).gather(1, targets[:, None])[:, 0]


@fused(0, 0, 0, None)
def with_gradient(
    logits: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor | None, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """That, and its gradient in the logits: softmax(x) - onehot(t), times tanh's derivative where there is a cap, times
    a token's upstream gradient; made in fp32 or wider and rounded to the logits' dtype."""
    wide = _wide(logits, cap)
    likelihoods = wide.log_softmax(1)
    nats = -likelihoods.gather(1, targets[:, None])
    columns = torch.arange(wide.shape[1], device=wide.device)
    gradient = torch.where(columns == targets[:, None], torch.expm1(-nats), likelihoods.exp())
    if cap is not None:
        gradient = gradient * (1 - (wide / cap).square())
    if upstream is not None:
        gradient = gradient * upstream[:, None]
    return nats[:, 0], gradient.to(logits.dtype)


def _wide(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if cap is None else torch.tanh(wide / cap) * cap
