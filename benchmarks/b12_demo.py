"""B12: the demo's whole study on 2 CPU threads, against a loop of Hugging Face trainings of the same trials.

    python benchmarks/b12_demo.py
    python benchmarks/b12_demo.py --small       # two minutes

tunetrial is timed from `tunetrial run` to its verdict: planning, tuning, finals, cost probes and report. The comparator
does the trials that tunetrial found necessary, cost probes left out: load, attach, train, and predict the rows that
were predicted, in one process that has imported everything, with two threads in bf16. Of every arm and task a warm-up
and two runs are timed; `study_s` is derived from the faster of them by the number of trials.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from contest import OURS, Benchmark, Case, Measured, Options, Target

HF = "HF Trainer + PEFT"
THREADS, RUNS = 2, 2
DEMO = Path(__file__).parent.parent / "src" / "tunetrial" / "embedded" / "demo.yaml"
SMALL_STUDY = """question: Does the script run?
base_model: embedded
tasks: [{name: newsletter, epochs: 1}]
arms: {full: {method: full}, lora: {method: lora, rank: 16}}
reference: full
rule: {primary: newsletter}
replicates: {looks: [2]}
tuning: {points: 3, max_points: 3, seeds: 3}
"""

FULL = Case(
    "the demo",
    {"study": "demo"},
    (OURS, HF),
    (
        Target("same work against HF Trainer", "speed-up", 1.5, 2.5, 1.8, measure="study_s", against=(HF,)),
        Target("the whole demo", "time", 240, None, 240, measure="study_s"),
    ),
)
SMALL = Case("a smaller demo", {"study": "small"}, (OURS, HF))


def folder_of(case: Case, options: Options) -> Path:
    return options.folder / f"b12-{case.work['study']}"


def by_tunetrial(case: Case, options: Options) -> Measured:
    folder = folder_of(case, options)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    study = folder / "study.yaml"
    study.write_text(
        DEMO.read_text(encoding="utf-8") if case.work["study"] == "demo" else SMALL_STUDY, encoding="utf-8"
    )
    command = [sys.executable, "-c", "from tunetrial.cli import main; main()", "run", str(study)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    study_s = time.perf_counter() - began
    records = read_records(folder)
    steps = sum(record["measurements"]["steps"]["value"] for record in records if "steps" in record["measurements"])
    facts = records[0]["resolved"]
    told = {
        key: facts[key]
        for key in ("compute_dtype", "attention", "blocks", "threads", "pack", "compiled")
        if key in facts
    }
    return {"study_s": study_s, "trials": len(records), "steps": int(steps), "settings": told}


def read_records(folder: Path) -> list[dict]:
    """Records of the trials whose purpose is another than measuring cost."""
    paths = sorted(folder.glob("*-results/trials/*/record.json"))
    records = [json.loads(path.read_text(encoding="utf-8"))["record"] for path in paths]
    return [record for record in records if record["trial"]["purpose"] != "probe"]


def by_hf(case: Case, options: Options) -> Measured:
    folder = folder_of(case, options)
    records = read_records(folder)
    if not records:
        raise FileNotFoundError(f"{folder}: no trials to repeat; let tunetrial take part in the same call")
    import torch

    torch.set_num_threads(THREADS)
    from tunetrial import spec
    from tunetrial.trial.pinning import pin

    pinned = pin(spec.read(folder / "study.yaml"), folder, log=folder / "pin.log")
    found: Measured = {"study_s": 0.0}
    kinds = Counter((r["trial"]["arm"]["name"], r["trial"]["task"], r["trial"]["purpose"] == "final") for r in records)
    for arm, task in sorted({kind[:2] for kind in kinds}):
        one_run(pinned, arm, task, final=False, most=3)
    for (arm, task, final), count in sorted(kinds.items()):
        run_s = min(one_run(pinned, arm, task, final=final) for _ in range(RUNS))
        found[f"{arm}_{task}_{'final' if final else 'tune'}_s"] = run_s
        found["study_s"] += count * run_s
    settings = {"threads": torch.get_num_threads(), "dtype": "bf16", "batch": 16, "runs timed a kind": RUNS}
    return found | {"derived": "study_s", "trials": len(records), "settings": settings}


def one_run(pinned, arm: str, task: str, *, final: bool, most: int | None = None) -> float:
    """Seconds of one training with its predictions; the first `most` steps of it, if given."""
    import peers
    from laps import Laps

    data, controls = pinned.data[task], pinned.lock.controls(task)
    settings = pinned.lock.study.arm(arm).settings
    began = time.perf_counter()
    rows = peers.token_rows(pinned.base, data, batch=controls.batch_examples)
    steps = -(-len(rows) // controls.batch_examples)
    rows = rows[: most and most * controls.batch_examples]
    config = None if arm == "full" else peers.lora_config(data, rank=settings["rank"], targets=peers.ALL_LINEAR)
    loaded = peers.adapted(peers.model(pinned.base, arm, data, "cpu"), arm, config)
    laps = Laps("cpu", warm=most or steps, blocks=0)
    epochs = 1 if most else controls.epochs
    trainer = peers.hf_trainer(loaded, rows, laps, batch=controls.batch_examples, device="cpu", epochs=epochs)
    for split in ("validation", "test") if final else ("validation",):
        trainer.predict(peers.token_rows(pinned.base, data, batch=controls.batch_examples, split=split))
    return time.perf_counter() - began


BENCHMARK = Benchmark(
    "B12",
    "The demo's whole study on 2 CPU threads",
    {"cpu": (FULL,), "cuda": (), "small": (SMALL,)},
    {OURS: by_tunetrial, HF: by_hf},
)

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the comparator's process; tunetrial's workers set their own
    BENCHMARK.main(__file__)
