"""Memory and time of trials from sizes alone: ranges, never to be mixed with what was measured.

Memory: weights, masters, gradients and AdamW's moments are counted; activations follow from the shape. Time: 6
operations a weight and trained token where every weight is trained, 4 where the base is frozen (no gradients of its
weights), 2 to evaluate (Kaplan et al. 2020); divided by what a device reaches, which for small models is little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunetrial import methods
from tunetrial.core.evidence import Example
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Controls
from tunetrial.models import ModelShape
from tunetrial.plan import catalogue

GIB, MIB = 2**30, 2**20
COMPUTE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
CPU_OPERATIONS_PER_S = (2e10, 6e11)
REACHED_SHARE = {"bf16": (0.05, 0.5), "fp16": (0.05, 0.5), "fp32": (0.005, 0.1), "fp64": (0.001, 0.05)}
STEP_S = (0.005, 0.1)
SPARE = 1.25
# A worker's libraries, resident: 0.4 GiB were measured on a CPU; CUDA's context and kernels take 1 to 3 GiB more.
LIBRARIES_BYTES = {"cpu": (0.3 * GIB, 1.0 * GIB), "cuda": (1.0 * GIB, 4.0 * GIB)}


@dataclass(frozen=True)
class Sizes:
    """A base as plans know it: its shape, and by task the tokens of each training row, where they were counted."""

    shape: ModelShape
    counted: Mapping[str, Sequence[int]] = field(default_factory=dict)


def tokens_per_example(
    examples: Sequence[Example] | None, max_tokens: int, *, counted: Sequence[int] | None = None
) -> Range:
    """Mean tokens of a prompt: as counted, else 2.5 to 6 bytes each; without examples from 8 up to the limit."""
    if counted:
        return exactly(sum(counted) / len(counted))
    if not examples:
        return Range(low=min(8, max_tokens), high=max_tokens)
    size_bytes = sum(len(example.prompt.encode()) for example in examples) / len(examples)
    return Range(low=min(size_bytes / 6 + 1, max_tokens), high=min(size_bytes / 2.5 + 1, max_tokens))


def memory_bytes(
    arm: Arm, shape: ModelShape, controls: Controls, *, outputs: int, tokens: Range, longest: int | None = None
) -> Range:
    """Peak memory of training: from one example at a time without spare room to a whole batch of the longest.

    The longest example is taken for four times the mean where its tokens are not counted.
    """
    method = methods.find(arm)
    compute = COMPUTE_BYTES[controls.precision]
    master = max(compute, 4)
    weights = method.base_bytes(shape, compute)
    trained, states = _trained(method, shape, outputs=outputs, master=master)
    longest = longest or min(controls.max_tokens, 4 * tokens.high)
    # Trained weights need no copy of their own where masters have the compute dtype; else their gradients have one.
    shared = method.trains_base and master == compute
    least = states.low + (0 if shared else weights) + tokens.low * _activation_bytes(shape, compute, tokens.low)
    batch = controls.batch_examples * longest * _activation_bytes(shape, compute, longest)
    return Range(low=least, high=SPARE * (states.high + weights + compute * trained.high + batch))


def around(peak_bytes: int, device: str) -> Range:
    """What a probe will measure where tensors at the peak were counted.

    On CUDA that is what the allocator hands out: counts were within 1.4 % of it in 14 trainings (benchmarks/README.md,
    B2, B3, B10). On a CPU the process grows besides by its libraries' prepared kernels and the allocator's pieces: by
    129 to 154 MiB in the four probes of the demo, 139 in the mean.
    """
    if device != "cpu":
        return Range(low=0.97 * peak_bytes, high=1.03 * peak_bytes, likely=peak_bytes)
    more = Range(low=64 * MIB, high=256 * MIB, likely=139 * MIB)
    return exactly(peak_bytes) + more


def host_bytes(arm: Arm, shape: ModelShape, controls: Controls, *, device: str, memory: Range) -> Range:
    """Memory of the host for one worker: libraries, and on a CPU all that training takes (`memory`, see
    `memory_bytes`).

    With a GPU a base passes through the host as it is read: in the compute dtype, and for masters of full fine-tuning
    with more digits in fp32. Checkpoints and artifacts are written a tensor at a time.
    """
    low, high = LIBRARIES_BYTES["cpu" if device == "cpu" else "cuda"]
    if device == "cpu":
        return Range(low=low, high=high) + memory
    compute = COMPUTE_BYTES[controls.precision]
    read = shape.parameters * (max(compute, 4) if methods.find(arm).trains_base else compute)
    return Range(low=low + read, high=high + SPARE * read)


def _trained(method: methods.Method, shape: ModelShape, *, outputs: int, master: int) -> tuple[Range, Range]:
    """Weights that are trained, and bytes of their masters, gradients and moments; what has no formula, at most all."""
    count = method.trainable_parameters(shape, outputs)
    if count is None:
        most = shape.backbone_parameters
        return Range(low=0, high=most), Range(low=0, high=4 * master * most)
    return exactly(count), exactly(2 * master * count + method.state_bytes(shape, outputs) * master // 4)


def checkpoint_bytes(arm: Arm, shape: ModelShape, *, outputs: int) -> Range:
    """Masters and AdamW's moments of a trial in hand; of what has no formula at most those of all weights."""
    method = methods.find(arm)
    count = method.trainable_parameters(shape, outputs)
    if count is None:
        return Range(low=0, high=12 * shape.backbone_parameters)
    return exactly(4 * count + method.state_bytes(shape, outputs))


def artifact_bytes(arm: Arm, shape: ModelShape, *, outputs: int) -> Range:
    """What a final leaves on the disk; of an adapter without a formula at most as much as all weights."""
    saved = methods.find(arm).artifact_bytes(shape, outputs, shape.bytes_per_weight)
    return exactly(saved) if saved is not None else Range(low=0, high=4 * shape.backbone_parameters)


def train_operations(arm: Arm, shape: ModelShape) -> float:
    """Operations to train on one token."""
    weights, method = shape.layers * shape.block_parameters, methods.find(arm)
    if not method.tuned:
        return 0
    return (6 - 2 * method.frozen_share) * weights


def evaluate_operations(arm: Arm, shape: ModelShape) -> float:
    """Operations to predict from one token; without the base they are too few to count."""
    return 2 * shape.layers * shape.block_parameters if methods.find(arm).uses_base else 0


def operations_per_s(gpu: str | None, precision: str) -> Range | None:
    """What the device reaches; a CPU of 1 to 16 cores if none or a CPU is named, None for a name that is not known.

    The share is of the peak in bf16, or in fp16 where there is no bf16.
    """
    known = None if gpu is None else catalogue.find(gpu)
    if gpu is not None and known is None:
        return None
    if known is None or known.kind == "cpu":
        return Range(low=CPU_OPERATIONS_PER_S[0], high=CPU_OPERATIONS_PER_S[1])
    peak = known.operations_per_s["bf16"] or known.operations_per_s["fp16"]
    low, high = REACHED_SHARE[precision]
    return Range(low=low * peak, high=high * peak)


def _activation_bytes(shape: ModelShape, compute: int, length: float) -> float:
    """Bytes kept for the backward pass, a token: inputs of projections, norms and products, attention weights."""
    wide = sum(outputs for _, outputs in shape.projections.values()) + 6 * shape.hidden + shape.intermediate
    return shape.layers * compute * (wide + 2 * shape.heads * length)
