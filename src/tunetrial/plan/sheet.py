"""Time of counted work by a device's data sheet, for machines that one does not have: a wide range.

The limit is a roofline (Williams, Waterman & Patterson 2009, doi:10.1145/1498765.1498785): each kernel takes at least
its operations at the sheet's dense rate, or its bytes at the sheet's bandwidth. What steps really took on the one GPU
that was measured, an H200: 1.6 to 2.0 times the limit for LoRA, QLoRA and full fine-tuning at 1.1B and 7B over rows of
Alpaca's lengths, 1.6 to 2.6 for packs (benchmarks/README.md, B3, B10, B2), and where a step has little to compute some
5 microseconds a kernel more (1.1B, 512 tokens: 4.1 times). Others are taken to be alike; older GPUs, whose rows are
padded, and CPUs to be further off.
"""

from collections.abc import Sequence

from tunetrial.core.speed import Range
from tunetrial.core.work import Kernel
from tunetrial.plan.catalogue import Device

TIMES_LIMIT = {"cuda": Range(low=1.4, high=2.6), "cpu": Range(low=1.4, high=10.0), "xpu": Range(low=1.4, high=10.0)}
TIMES_LIMIT_OLD = Range(low=1.4, high=5.0)
KERNEL_S = {"cuda": Range(low=0.0, high=10e-6), "cpu": Range(low=5e-6, high=50e-6), "xpu": Range(low=5e-6, high=50e-6)}
NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
AS_THEY_LIE = (8, 0)  # from this compute capability on rows are not padded, and passes recorded


def by_sheet(work: Sequence[Kernel], device: Device) -> Range | None:
    """Seconds of work on a device, kernel after kernel; None where its sheet has no rate for a dtype that is used."""
    limit_s = launches = 0.0
    for kernel in work:
        rate = _rate(kernel, device)
        if rate is None:
            return None
        limit_s += kernel.count * max(kernel.operations / rate, kernel.bytes / device.bandwidth_bytes_per_s)
        launches += kernel.count
    times, each = TIMES_LIMIT[device.kind], KERNEL_S[device.kind]
    if device.kind == "cuda" and capability(device) < AS_THEY_LIE:
        times = TIMES_LIMIT_OLD
    return Range(low=limit_s * times.low + launches * each.low, high=limit_s * times.high + launches * each.high)


def capability(device: Device) -> tuple[int, int]:
    """A CUDA device's; the oldest there is where none is known."""
    if device.compute_capability is None:
        return (0, 0)
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def _rate(kernel: Kernel, device: Device) -> float | None:
    """Operations a second; those of fp32 for what is not multiplied in matrices, where bytes decide anyway."""
    rates, name = device.operations_per_s, NAMES.get(kernel.dtype, kernel.dtype)
    if kernel.kind not in ("product", "attention"):
        return rates.get("fp32") or next((rate for rate in rates.values() if rate), None)
    return rates.get(name)
