"""Passes of a training step recorded as CUDA graphs: a thousand launches become one.

A pass is forward, backward and the adding of gradients to buffers that stay where they are. The first of all is
computed, which prepares kernels, and then recorded; one of another shape is recorded when it is first met. Recordings
are replayed with the numbers of their batch: the same kernels on the same shapes, so the same bytes as without.
Whatever cannot be recorded is computed as before, for good, and `why_not` says so.

    compute = Replay(compute, CudaGraphs(), abandon=trainables.drop) if device.type == "cuda" else compute
    losses = compute(batch, factors, first)
"""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Protocol

import torch
from transformers import PreTrainedModel

from tunetrial.engine import adapters, attention, blocks

MOST_GRAPHS = 64

Pass = Callable[[], torch.Tensor]


class Batch(Protocol):
    """What a pass reads beside weights. Its tensors are its own: later batches of its key are copied into them.

    `key` fixes all shapes, and every number of Python's that the pass depends on; None for a pass that is not to be
    recorded.
    """

    tensors: tuple[torch.Tensor, ...]
    key: Hashable | None


def recordable(model: PreTrainedModel) -> bool:
    """Whether a pass over batches of one shape is the same whatever their rows: attention is told of rows on the
    device, as low-rank layers are of members, and no module is another library's."""
    if attention.way(model) != "varlen" or not blocks.fits(model.base_model):
        return False
    return adapters.told_on_device(model) and not any(type(m).__module__.startswith("peft.") for m in model.modules())


class Recorder(Protocol):
    """Runs passes, and records them."""

    def run(self, pass_: Pass) -> torch.Tensor: ...

    def record(self, pass_: Pass) -> Pass:
        """What gives the same as the pass, called again and again.

        Raises:
            RuntimeError: It cannot be recorded.
        """


class CudaGraphs:
    """Records into graphs that share one pool of memory: they run one after the other, and keep nothing but results.

    Passes run beside the default stream even when they are not recorded: a gradient is added on the stream that its
    leaf was first used on, which must be the recorded one, and memory is then cached for one stream alone.
    """

    def __init__(self) -> None:
        self.stream, self.pool = _beside(torch.cuda.current_device()), torch.cuda.graph_pool_handle()

    def run(self, pass_: Pass) -> torch.Tensor:
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            made = pass_()
        outside.wait_stream(self.stream)
        return made

    def record(self, pass_: Pass) -> Pass:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # back to it even when a recording breaks off
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    made = pass_()
        except RuntimeError:
            # One that breaks off while it is ended leaves the generator in it, which then refuses to draw.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise

        def again() -> torch.Tensor:
            graph.replay()
            return made.clone()

        return again


@cache
def _beside(device: int) -> torch.cuda.Stream:
    """The stream that a device's passes run on, one for all: cuBLAS keeps a workspace for every stream it has seen, as
    long as the process lives."""
    return torch.cuda.Stream(device)


class Replay:
    """`compute(batch, factors, *how) -> losses`, recorded by `batch.key` and how it is asked for.

    What `compute` does to the world must be done by the device alone and in place: a pass that is replayed runs no
    Python. It keeps no tensor that it made.

    `outright` tells whether a new shape is recorded without being computed first: until that fails.

    Args:
        abandon: Called when a recording broke off, to drop what was left of it (gradients of parameters that were not
            yet added to their buffers).
    """

    def __init__(
        self,
        compute: Callable[..., torch.Tensor],
        recorder: Recorder,
        *,
        abandon: Callable[[], None],
    ):
        self.compute, self.recorder, self.abandon = compute, recorder, abandon
        self.recorded: dict[Hashable, tuple[Batch, torch.Tensor, Pass]] = {}
        self.replayed, self.outright = 0, True
        self.why_not: str | None = None

    def __call__(self, batch: Batch, factors: torch.Tensor, *how: Hashable) -> torch.Tensor:
        """The losses of a batch, as `compute` gives them; gradients are added as it adds them."""
        key = batch.key, *how
        if key in self.recorded:
            return self._again(key, batch, factors)
        wanted = batch.key is not None and self.why_not is None and len(self.recorded) < MOST_GRAPHS
        if wanted and self.recorded and self.outright:
            self.outright = self._record(key, batch, factors) is None
            if self.outright:
                return self._again(key, batch, factors)
        losses = self.recorder.run(lambda: self.compute(batch, factors, *how))
        fault = self._record(key, batch, factors) if wanted else None
        if fault is not None:
            self.forget(f"recording failed: {fault}")
        return losses

    def forget(self, reason: str | None = None) -> bool:
        """Let all recordings go, with the memory that they hold, and for a reason make no more; whether there were
        any."""
        held = bool(self.recorded)
        self.recorded.clear()
        self.why_not = self.why_not or reason
        return held

    def _again(self, key: tuple, batch: Batch, factors: torch.Tensor) -> torch.Tensor:
        kept, kept_factors, again = self.recorded[key]
        for target, tensor in zip((*kept.tensors, kept_factors), (*batch.tensors, factors), strict=True):
            target.copy_(tensor, non_blocking=True)
        self.replayed += 1
        return again()

    def _record(self, key: tuple, batch: Batch, factors: torch.Tensor) -> str | None:
        """Record a pass; what went wrong, if it did."""
        factors, how = factors.clone(), key[1:]
        try:
            again = self.recorder.record(lambda: self.compute(batch, factors, *how))
        except RuntimeError as error:
            self.abandon()
            return str(error).partition("\n")[0]
        self.recorded[key] = batch, factors, again
        return None
