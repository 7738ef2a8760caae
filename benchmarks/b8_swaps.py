"""B8: from one adapter to another: resident beside it, in the host's memory, or on disk (its file in the cache).

    python benchmarks/b8_swaps.py --device cuda
    python benchmarks/b8_swaps.py --small

Rank 16 on all linear layers. Of ours a resident adapter is one that rows name; PEFT's is set active, and from elsewhere
swapped in by its own `hotswap`.
"""

import statistics
import tempfile
from pathlib import Path

import torch

import shapes
from contest import OURS, Benchmark, Case, Measured, Options, Target
from tunetrial import models
from tunetrial.core.deployment import Offer
from tunetrial.engine import offers
from tunetrial.engine.line_up import LineUp
from tunetrial.engine.probe import Clock

PEFT = "PEFT hotswap"
PATHS = {OURS: "engine", PEFT: "eager"}
WHERE = {"resident": (1e-4, 5e-5), "host": (2e-3, 1.2e-3), "disk": (2e-2, 1.5e-2)}


def case(shape: str, *, goals: bool) -> Case:
    targets = []
    for where, (reach, predicted) in WHERE.items():
        measure = f"{where}_s"
        targets.append(Target(f"swap, {where}", "time", reach if goals else None, None, predicted, measure))
        if where != "resident":  # ours is named by the rows of a request, whose time it is part of
            peer = Target(f"swap, {where}, against PEFT", "speed-up", None, None, 3.0, measure, against=(PEFT,))
            targets.append(peer)
    return Case(f"{shape}, all-linear r16", {"shape": shape, "rank": 16}, (OURS, PEFT), tuple(targets))


MADE: dict[str, dict[str, Measured]] = {}


def swaps(case: Case, options: Options, name: str) -> Measured:
    """Both sides are resident in one process, each timed on its own copy of the adapters."""
    if case.name not in MADE:
        device = torch.device(options.device)
        base = models.resolve(str(shapes.base(case.work["shape"], options.folder, options.device)))
        scratch = Path(tempfile.mkdtemp(prefix="swaps-"))
        folders = offers.drawn(base, {"rank": case.work["rank"]}, 2, scratch, seed=0)
        offer = Offer(arm="lora", adapters=tuple(map(str, folders)))
        line_up = LineUp(base, [offer], torch.bfloat16, Clock(device), device)
        MADE[case.name] = {}
        for found in line_up.swaps():
            own = MADE[case.name].setdefault(found.path, {})
            own[f"{found.where}_s"] = statistics.median(found.swaps_s)
            own[f"slowest_{found.where}_s"] = max(found.swaps_s)
    return MADE[case.name][PATHS[name]]


BENCHMARK = Benchmark(
    "B8",
    "From one adapter to another",
    {
        "cuda": (case("1.1B", goals=True),),
        "cpu": (case("embedded", goals=True),),
        "small": (case("tiny", goals=False),),
    },
    {name: (lambda case, options, name=name: swaps(case, options, name)) for name in PATHS},
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
