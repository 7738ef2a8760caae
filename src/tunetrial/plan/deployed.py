"""Memory after training: merging an adapter on the host, and serving. By stated arithmetic, for no code of ours is
traced there: an inference server lays its memory out by itself."""

from tunetrial import methods
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Precision
from tunetrial.core.work import Traced
from tunetrial.models import ModelShape
from tunetrial.plan.estimate import COMPUTE_BYTES

# What `engine.merge` proves a merge by: logits in fp32 of so many tokens, three times.
PROOF_TOKENS, PROOFS = 8 * 32, 3


def cache_bytes(shape: ModelShape, tokens: int, *, precision: str) -> int:
    """Keys and values of so many tokens in all layers (Kwon et al. 2023, arXiv:2309.06180, section 3).

    Layers that attend through a window are taken to keep all tokens; a server's unused room in its blocks is left out.
    """
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * COMPUTE_BYTES[precision] * tokens


def serve_bytes(arm: Arm, shape: ModelShape, *, rows: int, tokens: int, outputs: int, precision: str) -> int | None:
    """Serving an arm unmerged: its base as it was trained on, one adapter, and the cache of rows of so many tokens.

    Left out are activations of the batch, which servers bound by themselves, and the device's context. None where it
    is not known how much an arm trains.

    Args:
        outputs: Of a head that was trained besides; 0 without one.
    """
    method, compute = methods.find(arm), COMPUTE_BYTES[precision]
    trained = 0 if method.trains_base else method.trainable_parameters(shape, outputs)
    if trained is None:
        return None
    head = shape.readout_parameters(outputs) if outputs and method.trains_base else 0
    language_head = 0 if outputs else shape.parameters - shape.backbone_parameters
    base = method.base_bytes(shape, compute) + compute * language_head
    cache = cache_bytes(shape, rows * tokens, precision=precision) if shape.decoder and not outputs else 0
    return base + compute * (trained + head) + cache


def merge_bytes(arm: Arm, shape: ModelShape) -> Range | None:
    """Host memory at the peak of `tunetrial merge`: the merged weights as the base stores them beside those read back
    in fp32, the adapter, and the logits that prove it. None for an arm whose adapter it does not merge.

    The high end has the fp32 weights once more, which C's allocator may keep of matrices below 32 MiB (M_MMAP_THRESHOLD
    in mallopt(3)): 0.22 billion weights took 1.90 GiB where this says 1.33 to 2.15.
    """
    if arm.method not in ("lora", "qlora") or not shape.decoder:
        return None
    adapter = methods.find(arm).trainable_parameters(shape, 0)
    proof = PROOFS * PROOF_TOKENS * shape.vocabulary
    least = (shape.bytes_per_weight + 4) * shape.parameters + 4 * (adapter + proof)
    return Range(low=least, high=least + 4 * shape.parameters)


def phases_of(
    traced: Traced, arm: Arm, shape: ModelShape, *, rows: int, tokens: int, outputs: int, precision: Precision
) -> dict[str, Range]:
    """Bytes at the peak of all phases: as counted on the device, then merged on the host, and served.

    Args:
        rows, tokens: That are served at once.
        outputs: Of a head that was trained; 0 without one.
    """
    found = {name: exactly(phase.peak_bytes) for name, phase in traced.phases.items()}
    merged = merge_bytes(arm, shape)
    served = serve_bytes(arm, shape, rows=rows, tokens=tokens, outputs=outputs, precision=precision)
    found |= {} if merged is None else {"merge": merged}
    return found | ({} if served is None else {"serve": exactly(served)})
