"""Train with a real limit on the process's memory; run by test_torch_engine.py in a process of its own."""

import json
import resource
import sys
from pathlib import Path

import torch

from tiny import make_trial
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine.torch_engine import TorchEngine

MIB = 2**20


def main(base: str, room_mib: int) -> None:
    torch.set_num_threads(1)
    rows = tuple(Example(id=f"r{n}", cluster=f"r{n}", prompt="bread " * 20, target="ab"[n % 2]) for n in range(32))
    data = TaskData(name="tiny", kind="classify", labels=("a", "b"), splits={"train": rows, "validation": rows[:2]})
    session = TorchEngine(device="cpu").open(Path(base), "fp32")
    run = session.start(make_trial("lora", epochs=2), data)
    run.loop.step([[0]], [0.0])  # libraries take their own memory at first use
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room_mib * MIB, resource.RLIM_INFINITY))
    try:
        losses = [step.loss for step in run.steps(None)]
        result = {"status": "ok", "losses": losses, "micro_batch": run.facts()["micro_batch"]}
    except DoesNotFitError as error:
        result = {"status": "infeasible", "reason": str(error)}
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
