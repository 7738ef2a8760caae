"""Where a step's time goes: what first steps cost, and what the device does in later ones.

    python benchmarks/steps.py --cases "1.1B lora"          # cases of b3_solo.py, on CUDA
    python benchmarks/steps.py --small                      # on a CPU: does the script run?

For each case: seconds of the steps in which a shape was met for the first time and of the others; then, of some later
steps, how long the device was busy and idle, after which kernels it waited longest, and what it was busy with. It
compares nothing; `README.md` quotes it where a target was missed.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import b3_solo
import ours
from contest import Options

PROFILED = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a step's time goes")
    parser.add_argument("--cases", default="1.1B lora")
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tunetrial-benchmarks")
    asked = parser.parse_args()
    cases, device = (b3_solo.SMALL, "cpu") if asked.small else (b3_solo.GPU, "cuda")
    for case in cases:
        if asked.small or any(part in case.name for part in asked.cases.split("|")):
            look(case, Options(device, asked.folder), steps=12 if asked.small else asked.steps)


def look(case, options: Options, *, steps: int) -> None:
    work = case.work | {"warm": steps - 1, "blocks": 1, "block": 1}
    _, _, data = b3_solo.prepared(type(case)(case.name, work, case.contenders), options)
    held = ours.session(work["shape"], options)
    trial = ours.trial(
        work["method"],
        b3_solo.settings(work["method"]),
        precision=held.precision,
        readout="text",
        batch=work["batch"],
        longest=1,
    )
    pack, spent, shapes = held.start_pack([trial], data), [], []
    taken = pack.steps(None)
    for _ in range(steps - PROFILED):
        began = now(options.device)
        next(taken)
        spent.append(now(options.device) - began)
        shapes.append(0 if pack.loop.replay is None else len(pack.loop.replay.recorded))
    new = [after > before for before, after in pairwise([0, *shapes])]
    met = [seconds for seconds, first in zip(spent, new, strict=True) if first]
    known = [seconds for seconds, first in zip(spent, new, strict=True) if not first]
    print(f"\n{case.name}: {len(spent)} steps in {sum(spent):.2f} s")
    print(f"  {len(met)} met a new shape: {sum(met):.2f} s, at steps {[n + 1 for n, first in enumerate(new) if first]}")
    print(f"  the others: median {statistics.median(known) * 1e3:.1f} ms, fastest {min(known) * 1e3:.1f} ms")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with profile(activities=activities) as seen:
        began = now(options.device)
        for _ in range(PROFILED):
            next(taken)
        spent_ms = (now(options.device) - began) * 1e3 / PROFILED
    if options.device == "cuda":
        tell([e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA], spent_ms)
    else:
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def tell(kernels: list, step_ms: float) -> None:
    """What the device did in the profiled steps; microseconds in, milliseconds a step out."""
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in kernels)
    busy, waits, end, before = 0.0, Counter(), None, ""
    for start, stop, name in spans:
        if end is not None and start > end:
            waits[f"{before[:48]} -> {name[:48]}"] += start - end
        busy += max(0.0, stop - max(start, end or start))
        if end is None or stop > end:
            end, before = stop, name
    each = 1e3 * PROFILED
    print(f"  profiled: {step_ms:.1f} ms a step, the device busy for {busy / each:.1f} ms")
    print(f"  waits, {sum(waits.values()) / each:.1f} ms a step:")
    for name, micros in waits.most_common(10):
        print(f"    {micros / each:6.2f} ms  {name}")
    kinds, counts = Counter(), Counter()
    for start, stop, name in spans:
        kinds[name[:80]] += stop - start
        counts[name[:80]] += 1
    print(f"  kernels, {len(spans) / PROFILED:.0f} a step:")
    for name, micros in kinds.most_common(16):
        print(f"    {micros / each:6.2f} ms  {counts[name] / PROFILED:5.0f} x  {name}")


if __name__ == "__main__":
    main()
