"""The energy that steps take, by the GPU's own counter (NVML, with the extra `gpu`); nothing is guessed elsewhere.

It is that of the whole board, whoever computes on it, without the host: measure where nothing else runs.
"""

import time
from collections.abc import Callable

import torch

LEAST_S = 1.0  # the counter moves some ten times a second


def counter(device: torch.device) -> Callable[[], float] | None:
    """What reads a GPU's joules since its driver was loaded; None for other devices, and where nothing counts them."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def a_step(take: Callable[[int], object], read: Callable[[], float], *, least_s: float = LEAST_S) -> tuple[float, int]:
    """Joules of a step, the mean over as many as take `least_s`, and how many these are.

    Args:
        take: Takes the step of this number, and returns once the device has done it.
    """
    before, began_s, taken = read(), time.perf_counter(), 0
    while taken == 0 or time.perf_counter() - began_s < least_s:
        take(taken)
        taken += 1
    return (read() - before) / taken, taken
