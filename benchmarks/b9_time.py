"""B9, time: seconds of an optimiser step, predicted from counted work before any is taken, beside measured ones.

    python benchmarks/b9_time.py                            # on a CPU
    python benchmarks/b9_time.py --device cuda --budget-s 400
    python benchmarks/b9_time.py --small                    # a toy: does the script run?

The machine is calibrated first: kernels one by one for 10 s, then steps of one small random model, by which two
constants are fitted. The rows are other shapes, lengths, batches and readouts; nothing is fitted to them. Target: a
median error of at most 10 %. On a CPU the measured time is the process's own, so that others on the machine count
less. A row whose measured time falls into the predicted range is covered.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import lengths
import ours
from contest import Options
from tunetrial import methods
from tunetrial.core.study import Arm, Controls
from tunetrial.engine.calibration import calibrate
from tunetrial.engine.rehearsal import measure, rehearse
from tunetrial.plan.speed import fitted, seconds

TARGET = 0.10


@dataclass(frozen=True)
class Row:
    """A step over `batch` rows of about `tokens` tokens: half to one and a half times as many, drawn by seed 0."""

    shape: str
    method: str
    kind: str
    batch: int
    tokens: int


def grid(shapes: list[str], steps: list[tuple[int, int]], names: tuple[str, ...]) -> list[Row]:
    return [
        Row(shape, method, kind, batch, tokens)
        for shape in shapes
        for kind in ("classify", "generate")
        for batch, tokens in steps
        for method in names
    ]


ROWS = {
    "cpu": grid(["embedded"], [(2, 16), (8, 32), (16, 48), (4, 128)], ("full", "lora")),
    "cuda": grid(["1.1B"], [(4, 64), (16, 196), (4, 1024), (2, 4096)], ("full", "lora", "qlora"))
    + grid(["7B"], [(8, 196), (1, 4096)], ("lora",)),
    "small": grid(["tiny"], [(2, 8)], ("full", "lora")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="B9, time of a step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, help="a file of JSON for the speed and the rows")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tunetrial-benchmarks")
    asked = parser.parse_args()
    began, options = time.monotonic(), Options(asked.device, asked.folder)
    if asked.device == "cpu":
        torch.set_num_threads(1)
    speed = fitted(calibrate(asked.device, seconds=1 if asked.small else 10), list(rehearse(asked.device)))
    print(
        f"{speed.device}: {speed.in_pass:.2f} × in a pass, {speed.launch_s * 1e6:.1f} µs a launch, "
        f"{speed.recorded_launch_s * 1e6:.2f} µs replayed"
    )
    found = []
    for row in ROWS["small" if asked.small else asked.device]:
        if time.monotonic() - began > asked.budget_s:
            print(f"no time is left for {row}")
            continue
        found.append(compared(row, speed, options))
        tell(found[-1])
    print(concluded(found))
    if asked.out is not None:
        asked.out.write_text(json.dumps({"speed": speed.model_dump(mode="json"), "rows": found}, indent=1) + "\n")


def compared(row: Row, speed, options: Options) -> dict:
    """One row, predicted and measured."""
    session, text = ours.session(row.shape, options), row.kind == "generate"
    rng = random.Random(0)
    sizes = [rng.randint(max(4, row.tokens // 2), row.tokens * 3 // 2) for _ in range(row.batch)]
    drawn = [(size // 2, size - size // 2) if text else (size, 0) for size in sizes]
    labels = () if text else ("a", "b")
    examples = lengths.examples(session.tokenizer, drawn, labels=labels)
    controls = Controls(
        base_fingerprint="random",
        precision=session.precision,
        readout="text" if text else "head",
        max_tokens=8192,
        max_new_tokens=1 if text else None,
    )
    arm = Arm(name=row.method, method=row.method, settings=methods.settle(row.method, {}))
    step = measure(session, arm, controls, lengths.task("b9", examples, kind=row.kind, labels=labels))
    said = seconds(step.work, speed, recorded=step.recorded)
    return {
        **asdict(row),
        "recorded": step.recorded,
        "predicted_s": said.likely,
        "low_s": said.low,
        "high_s": said.high,
        "measured_s": step.step_s,
    }


def tell(one: dict) -> None:
    error = one["predicted_s"] / one["measured_s"] - 1
    what = f"{one['shape']} {one['kind']} {one['method']}, {one['batch']} × {one['tokens']} tokens"
    print(
        f"  {what:<42} predicted {one['predicted_s'] * 1e3:8.1f} ms, measured {one['measured_s'] * 1e3:8.1f} ms, "
        f"{error:+.0%}",
        flush=True,
    )


def concluded(found: list[dict]) -> str:
    """Errors relative to what was measured, and how many rows lie within their range.

    Raises:
        ValueError: Nothing was measured.
    """
    if not found:
        raise ValueError("b9_time: no row was measured; give it more time by --budget-s")
    errors = [abs(one["predicted_s"] / one["measured_s"] - 1) for one in found]
    covered = sum(one["low_s"] <= one["measured_s"] <= one["high_s"] for one in found)
    median = statistics.median(errors)
    outcome = "reached" if median <= TARGET else "missed"
    return (
        f"{len(found)} rows: median error {median:.0%} (target {TARGET:.0%}: {outcome}), worst {max(errors):.0%}; "
        f"{covered} within their range"
    )


if __name__ == "__main__":
    main()
