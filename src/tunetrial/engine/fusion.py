"""Chains of elementwise operations as one kernel each, on CUDA: compiled by torch, from the formulas that a CPU runs.

A kernel serves any number of tokens, and is always compiled for the same number, so that it does not depend on which
batch came first. It rounds less often than the operations one by one. Where nothing can be compiled (no Triton, no C
compiler) the operations run one by one, and `why_not` says so.

    @fused(0, None)
    def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * weight
"""

import subprocess
import warnings
from collections.abc import Callable
from functools import cache, wraps

import torch

from tunetrial.engine import meter, place

COMPILED_FOR = 512  # from 1,024 up torch plans kernels of many inputs with blocks of half the size
MOST_VARIANTS = 64
OPTIONS = {"deterministic": True}
FAULTS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
FOUND: list[str] = []


def fused(*tokens: int | None) -> Callable[[Callable], Callable]:
    """Run a function of tensors and constants as one kernel where that can be.

    It must not write into its arguments, and has no gradient: it is a part of one written by hand.

    Args:
        tokens: For each argument the dimension of tokens, which takes any size, or None.
    """

    def decorate(function: Callable) -> Callable:
        known: set[tuple] = set()

        @wraps(function)
        def either(*args):
            if not fuses(args[0]):
                return function(*args)
            args = [_plain(arg) for arg in args]
            kind = tuple(_kind(arg, dim) for arg, dim in zip(args, tokens, strict=True))
            if args[0].is_meta:
                return meter.fused_kernel(function, args, tokens, (function.__name__, *kind), COMPILED_FOR)
            compiled = _compiled(function)
            if kind not in known:
                examples = [_example(arg, dim) for arg, dim in zip(args, tokens, strict=True)]
                if not _runs(compiled, examples, function.__name__):
                    return function(*args)
                known.add(kind)
            return compiled(*args)

        return either

    return decorate


def fuses(like: torch.Tensor) -> bool:
    """Whether functions of such tensors are compiled."""
    return place.is_cuda(like) and (like.is_meta or why_not() is None)


def why_not() -> str | None:
    """Why nothing is compiled for the CUDA device, if so: the first fault that was found ended it for this process."""
    _try()
    return FOUND[0] if FOUND else None


@cache
def _try() -> None:
    """Compile something."""
    if _runs(torch.compile(lambda x: -x, fullgraph=True, options=OPTIONS), [torch.ones(8, device="cuda")], "neg"):
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)


def _runs(compiled: Callable, examples: list, name: str) -> bool:
    """Whether it can be compiled; a fault is kept. Running out of memory is none, nor is what the compiler remarks (of
    TF32, of how it reduces), even where warnings are errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled(*examples)
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        FOUND.append(f"{name}: {first}")
        return False
    return True


@cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, options=OPTIONS)


def _plain(arg: object) -> object:
    """A tensor without history and without gaps: whether it had them would be another variant."""
    return arg.detach().contiguous() if isinstance(arg, torch.Tensor) else arg


def _kind(arg: object, dim: int | None) -> tuple:
    """What a compiled variant is for."""
    if not isinstance(arg, torch.Tensor):
        return (arg,)
    shape = list(arg.shape)
    if dim is not None:
        shape[dim] = None
    return arg.dtype, arg.device, *shape


def _example(arg: object, dim: int | None) -> object:
    """An argument of the same kind, of the number of tokens that is compiled for, and told to take others."""
    if not isinstance(arg, torch.Tensor) or dim is None:
        return arg
    shape = list(arg.shape)
    shape[dim] = COMPILED_FOR
    example = arg.new_zeros(shape)
    torch._dynamo.mark_dynamic(example, dim % arg.ndim)
    return example
