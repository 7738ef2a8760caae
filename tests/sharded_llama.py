"""One of two processes that train a tiny Llama with `fully_shard` on CPUs, whole and beside frozen weights, and say
what each holds and what its collectives make.

    python tests/sharded_llama.py <folder for the rendezvous> <rank: 0 or 1>
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(
    num_hidden_layers=3,
    hidden_size=60,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=14,
    intermediate_size=101,
    vocab_size=97,
)


class Received:
    """Gathers, or reduces and scatters, as is usual, and counts the bytes of what is whole."""

    def __init__(self, collective, whole):
        self.collective, self.whole, self.bytes = collective, whole, 0

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, async_op=False, **how):
        whole = output_tensor if self.whole == "output" else input_tensor
        self.bytes += whole.numel() * whole.element_size()
        return self.collective(output_tensor, input_tensor, group=group, async_op=async_op, **how)


def add_low_rank(layer: torch.nn.Linear, rank: int) -> None:
    """Train an update beside a layer's frozen weights."""
    layer.A = torch.nn.Parameter(torch.randn(rank, layer.in_features))
    layer.B = torch.nn.Parameter(torch.zeros(layer.out_features, rank))
    plain = layer.forward
    layer.forward = lambda x: plain(x) + x @ layer.A.T @ layer.B.T


def held(tensors) -> int:
    """Bytes of storages, each counted once."""
    storages = {local.untyped_storage().data_ptr(): local.untyped_storage().nbytes() for local in tensors}
    return sum(storages.values())


def step(rank: int | None) -> dict[str, int]:
    """Take an optimiser step, of updates of so low a rank if there is one."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False, use_cache=False))
    if rank is not None:
        model.requires_grad_(False).bfloat16()
        for linear in [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]:
            add_low_rank(linear, rank)
    gathered = Received(getattr(dist, "all_gather_single", dist.all_gather_into_tensor), "output")
    reduced = Received(getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor), "input")
    for unit in [*model.model.layers, model]:
        fully_shard(unit, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
        unit.set_custom_all_gather(gathered)
        unit.set_custom_reduce_scatter(reduced)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(16)[None]).logits.float().square().mean().backward()
    optimiser.step()
    moments = [t for state in optimiser.state.values() for t in state.values() if t.ndim]
    return {
        "frozen": held(p.to_local() for p in model.parameters() if not p.requires_grad),
        "trained": held(p.to_local() for p in trained),
        "gradients": held(p.grad.to_local() for p in trained),
        "moments": held(t.to_local() for t in moments),
        "gathered": gathered.bytes,
        "reduced": reduced.bytes,
    }


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=number, world_size=2)
    print(json.dumps([step(None), step(3)]))
    dist.destroy_process_group()
