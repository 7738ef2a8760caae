"""What one of several GPUs would hold if a model's states were sharded over all of them, and what they would exchange.

For information: tunetrial trains on one GPU. What is meant is PyTorch's `fully_shard` (FSDP2) called on every block and
then on the model, each tensor cut along its first dimension into as many shards as there are GPUs, the last ones padded
(torch/distributed/fsdp/_fully_shard/_fsdp_param.py, _init_sharded_param); gradients are reduced in fp32; every GPU
computes its own examples. It is stage 3 of Rajbhandari et al. (2020, arXiv:1910.02054, section 5). Counted are, a GPU:

- shards of frozen weights as stored and of moments (the trace's bytes by the share), of fp32 masters and gradients;
- what is in no block (embedding, last norm, head), gathered throughout: the outermost call does not shard it again
  after the forward pass (fully_shard's `reshard_after_forward`); its gradients;
- in the forward pass two blocks gathered, one as a buffer; in the backward pass the block, the buffer of the next, the
  block's gradients in the compute dtype, and the fp32 gradients of the block before on their way
  (_fsdp_param_group.py: wait_for_unshard, post_backward);
- all else as one GPU alone has it for its examples, at its most.

These are taken to fall together: too much by a few blocks' gradients at most. Left out are the buffers of NCCL itself
and what kernels are prepared by. A base in 4 or 8 bits is taken to be sharded and gathered as it is stored.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tunetrial import methods
from tunetrial.core.errors import ConfigError
from tunetrial.core.speed import Range
from tunetrial.core.study import Arm
from tunetrial.core.work import Part, Phase, Traced
from tunetrial.methods import AdapterSpec
from tunetrial.methods.storage import matrix_bytes
from tunetrial.models import ModelShape
from tunetrial.plan.catalogue import Device

MASTER_BYTES = GRADIENT_BYTES = 4
# GPUs of one machine: eight at most in those that clouds let (`prices.json`). What joins machines is not known here.
IN_ONE_MACHINE = 8
# The share of a link's rate, one way, that NCCL's collectives reach in one machine: 230 to 250 of 300 GB/s on eight
# A100, 35 to 45 of 63 on eight H100 by PCIe (docs.alayanew.com, "NCCL-tests in practice", 2026-05-06); less where GPUs
# reach each other through the host alone.
LINK_REACHED = (0.4, 0.85)


@dataclass(frozen=True)
class Weights:
    """A tensor, or vectors of one length together: `rows` are cut. `stored` and `gathered` are bytes of one weight;
    what is trained is stored as an fp32 master."""

    rows: int
    columns: int
    stored: float
    gathered: float
    trained: bool

    def shard(self, devices: int) -> int:
        """Weights that each of so many GPUs holds, padding included."""
        return math.ceil(self.rows / devices) * self.columns


@dataclass(frozen=True)
class Unit:
    """What is gathered at once."""

    weights: tuple[Weights, ...]

    def sharded(self, devices: int, *, trained: bool) -> float:
        """Bytes of what is trained (its masters), or of what is frozen, on each of so many GPUs."""
        return sum(w.stored * w.shard(devices) for w in self.weights if w.trained == trained)

    def gathered_bytes(self, devices: int) -> float:
        return sum(w.gathered * devices * w.shard(devices) for w in self.weights)

    def trained_bytes(self, devices: int, each: float | None = None) -> float:
        """Of gradients of all that is trained, in the compute dtype or in so many bytes each."""
        kept = (w for w in self.weights if w.trained)
        return sum((w.gathered if each is None else each) * devices * w.shard(devices) for w in kept)


@dataclass(frozen=True)
class Sharding:
    """A model's blocks, all alike, and what is in none, under a method."""

    layers: int
    block: Unit
    rest: Unit

    @classmethod
    def of(cls, arm: Arm, shape: ModelShape, *, compute_bytes: int, outputs: int | None = None) -> "Sharding":
        """How an arm's weights are cut.

        Args:
            outputs: Of a head that classifies; None where text is written and the language model's head is used.
        Raises:
            ConfigError: The arm is of a method whose trained tensors are not known one by one.
        """
        method = methods.find(arm)
        adapter = method.adapter(shape)
        if not (method.trains_base or isinstance(adapter, AdapterSpec)):
            raise ConfigError(f"{arm.name}: cannot be sharded here, got method {arm.method}; use full, lora or qlora")

        def plain(rows: int, columns: int = 1, trained: bool = method.trains_base) -> Weights:
            return Weights(rows, columns, MASTER_BYTES if trained else compute_bytes, compute_bytes, trained)

        block = [plain(shape.norms), *(plain(shape.projections[name][1]) for name in shape.biased)]
        for name, (inputs, outs) in shape.projections.items():
            rows, columns = (inputs, outs) if shape.transposed else (outs, inputs)
            if method.storage == "plain":
                block.append(plain(rows, columns))
            else:
                each = matrix_bytes(inputs, outs, method.storage, compute_bytes=compute_bytes) / (inputs * outs)
                block.append(Weights(rows, columns, each, each, False))
            if isinstance(adapter, AdapterSpec) and name in adapter.targets:
                block += [plain(adapter.rank, inputs, True), plain(outs, adapter.rank, True)]
                block += [plain(outs, 1, True)] if adapter.dora else []
        rest = [plain(shape.vocabulary, shape.hidden), plain(shape.outside)]
        if outputs is None and not shape.tied:
            rest.append(plain(shape.vocabulary, shape.hidden))
        elif outputs is not None:
            rest.append(plain(shape.readout_parameters(outputs), 1, True))
        return cls(shape.layers, Unit(tuple(block)), Unit(tuple(rest)))

    @property
    def units(self) -> Iterator[tuple[int, Unit]]:
        yield from ((self.layers, self.block), (1, self.rest))

    def share(self, devices: int, *, trained: bool) -> float:
        """Of the bytes of what is trained, or of what is frozen, those on each GPU: 1 / devices and the padding."""
        whole = sum(times * unit.sharded(1, trained=trained) for times, unit in self.units)
        return sum(times * unit.sharded(devices, trained=trained) for times, unit in self.units) / whole if whole else 0

    def gathered_bytes(self, devices: int) -> float:
        """Of whole weights, gradients and buffers that each GPU holds at most besides its shards."""
        forward = 2 * self.block.gathered_bytes(devices)
        backward = forward + self.block.trained_bytes(devices) + self.block.trained_bytes(devices, GRADIENT_BYTES)
        rest = self.rest.gathered_bytes(devices) + self.rest.trained_bytes(devices)
        return rest + max(backward, self.rest.trained_bytes(devices, GRADIENT_BYTES))

    def exchanged_bytes(self, devices: int) -> float:
        """That each GPU receives in one forward and backward pass: blocks gathered twice, the rest once, gradients of
        all that is trained once. A ring passes on all but a GPU's own share (Patarasuk & Yuan 2009,
        doi:10.1016/j.jpdc.2008.09.002)."""
        gathered = 2 * self.layers * self.block.gathered_bytes(devices) + self.rest.gathered_bytes(devices)
        reduced = sum(times * unit.trained_bytes(devices, GRADIENT_BYTES) for times, unit in self.units)
        return (gathered + reduced) * (devices - 1) / devices


def sharded(traced: Traced, sharding: Sharding, devices: int) -> Traced:
    """The step of one GPU's examples with all states, as each of so many GPUs would have it. Work stays as it is.

    Raises:
        ConfigError: The count does not tell states from the rest.
    """
    step = traced.phases["step"]
    if step.passing_bytes is None:
        raise ConfigError("shards: states are not told from the rest in this count, got none; trace the model again")
    frozen, trained = (sharding.share(devices, trained=which) for which in (False, True))
    masters = sum(times * unit.sharded(devices, trained=True) for times, unit in sharding.units)
    weights: Mapping[Part, float] = {
        "base": step.parts.get("base", 0) * frozen,
        "trained": masters,
        "gradients": masters / MASTER_BYTES * GRADIENT_BYTES,
        "moments": step.parts.get("moments", 0) * trained,
        "activations": step.passing_bytes,
        "workspace": sharding.gathered_bytes(devices),
    }
    parts = {part: math.ceil(size) for part, size in weights.items()}
    phase = Phase(peak_bytes=sum(parts.values()), parts=parts, passing_bytes=step.passing_bytes, work=step.work)
    return traced.model_copy(update={"phases": {"step": phase}})


def seconds(computed: Range, sharding: Sharding, devices: int, place: Device, *, passes: int) -> Range:
    """How long a step takes whose computing takes so long on each GPU: as long as the longer of computing and exchange
    where they overlap, at most one after the other.

    Raises:
        ConfigError: How such GPUs are joined is not known, or there are more than one machine has.
    """
    link = place.link_bytes_per_s
    if link is None or devices > IN_ONE_MACHINE:
        what = "what joins GPUs of several machines" if link else "what joins them"
        raise ConfigError(f"{devices} {place.title}: {what} is not known; time at most {IN_ONE_MACHINE} in one machine")
    exchanged = passes * sharding.exchanged_bytes(devices) / link
    low, high = LINK_REACHED
    return Range(low=max(computed.low, exchanged / high), high=computed.high + exchanged / low)
