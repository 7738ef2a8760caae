"""B1, the engine's part: a study of LoRA and full fine-tuning on three tasks, by a slice of each run.

    python benchmarks/b1_study.py --device cuda
    python benchmarks/b1_study.py --small

The study: LoRA of rank 8 on q and v, and full fine-tuning; five learning rates and three final seeds an arm and task,
three epochs, 16 examples a step, an evaluation after each epoch. Lengths and rows are those of MRPC, SST-2 (a draw of
6,000 rows, since all 67,349 would be nine tenths of the work) and STS-B. Of each arm and task, one run's steps and one
evaluation are timed, of LoRA by tunetrial one pack's of all eight; `study_s` is derived from them: runs × (steps ×
time of a step + epochs × time of an evaluation). Loading, drift and deployment are not in it.
"""

import lengths
import ours
import peers
import shapes
from contest import OURS, Benchmark, Case, Measured, Options, Target
from laps import Laps, peak_bytes

HF = "HF Trainer + PEFT"
RANK, BATCH, EPOCHS, RATES, SEEDS = 8, 16, 3, 5, 3
RUNS = RATES + SEEDS
TARGETS = ("q_proj", "v_proj")
TASKS = {"mrpc": (3668, 408), "sst2": (6000, 872), "stsb": (5749, 1500)}


def case(shape: str, *targets: Target, tasks: dict = TASKS, **laps: int) -> Case:
    work = {"shape": shape, "rank": RANK, "batch": BATCH, "epochs": EPOCHS, "runs": RUNS, "tasks": tasks} | laps
    return Case(f"{shape}, three tasks, LoRA and full", work, (OURS, HF), targets)


def speed_up(reach: float | None, aim: float | None, predicted: float) -> Target:
    return Target("same work against HF Trainer", "speed-up", reach, aim, predicted, measure="study_s", against=(HF,))


GPU = (
    case(
        "1.1B",
        speed_up(4, 7, 3.5),
        Target("the study's training and evaluation", "time", 900, 600, 1500, measure="study_s"),
    ),
)
CPU = (
    case(
        "embedded",
        speed_up(None, None, 1.8),
        tasks={n: (r, 96) for n, (r, _) in TASKS.items()},
        warm=2,
        blocks=3,
        block=2,
    ),
)
SMALL = (
    case("tiny", speed_up(None, None, 1.0), tasks={"mrpc": (64, 16), "stsb": (64, 16)}, warm=1, blocks=1, block=2),
)


def prepared(case: Case, options: Options, task: str):
    work = case.work
    laps = Laps(options.device, warm=work.get("warm", 20), blocks=work.get("blocks", 5), block=work.get("block", 10))
    folder = shapes.base(work["shape"], options.folder, options.device)
    labels = () if task == "stsb" else ("no", "yes")
    train, validation = laps.steps * BATCH, work["tasks"][task][1]
    sizes = lengths.drawn(task, train + validation)
    rows = lengths.examples(peers.AutoTokenizer.from_pretrained(folder), sizes, labels=labels)
    kind = "classify" if labels else "regress"
    return laps, folder, lengths.task(task, rows[:train], rows[train:], kind=kind, labels=labels)


def study(case: Case, options: Options, part, members: dict[str, int]) -> Measured:
    """Time every part and add up the study; `members` are how many runs a part's step and evaluation are of."""
    found: Measured = {"study_s": 0.0}
    for method in ("lora", "full"):
        for task, (rows, _) in case.work["tasks"].items():
            laps, evaluate_s, settings = part(case, options, method, task)
            step_s = laps.measured()["step_s"] / members[method]
            run_s = EPOCHS * (-(-rows // BATCH) * step_s + evaluate_s / members[method])
            found |= {f"{method}_{task}_step_s": step_s, f"{method}_{task}_evaluate_s": evaluate_s / members[method]}
            found["study_s"] += RUNS * run_s
            found[f"settings_{method}"] = settings
    made = {method: found.pop(f"settings_{method}") for method in ("lora", "full")}
    return found | {"derived": "study_s", "peak_bytes": peak_bytes(options.device), "settings": made}


def by_tunetrial(case: Case, options: Options) -> Measured:
    """LoRA's runs as one pack, full fine-tuning's one by one."""

    def part(case: Case, options: Options, method: str, task: str):
        laps, _, data = prepared(case, options, task)
        held = ours.session(case.work["shape"], options)
        settings = {} if method == "full" else {"rank": RANK, "targets": TARGETS}
        count = 1 if method == "full" else RUNS
        trials = [
            ours.trial(method, settings, precision=held.precision, batch=BATCH, seed=1 + k, rate=1e-5 * (1 + k))
            for k in range(count)
        ]
        pack = ours.train(held, trials, data, laps)
        examples = data.splits["validation"]
        pack.predict(examples[:32])
        return laps, peers.timed(lambda: pack.predict(examples), options.device), pack.facts(0)

    return study(case, options, part, {"lora": RUNS, "full": 1})


def by_hf(case: Case, options: Options) -> Measured:
    def part(case: Case, options: Options, method: str, task: str):
        laps, folder, data = prepared(case, options, task)
        rows = peers.token_rows(folder, data, batch=BATCH)
        config = peers.lora_config(data, rank=RANK, targets=TARGETS)
        loaded = peers.adapted(peers.model(folder, method, data, options.device), method, config)
        trainer = peers.hf_trainer(loaded, rows, laps, batch=BATCH, device=options.device)
        examples = peers.token_rows(folder, data, batch=BATCH, split="validation")
        trainer.predict(examples[:32])
        return laps, peers.timed(lambda: trainer.predict(examples), options.device), peers.described(loaded)

    return study(case, options, part, {"lora": 1, "full": 1})


BENCHMARK = Benchmark(
    "B1",
    "A study of three tasks: LoRA and full fine-tuning (the engine's part)",
    {"cuda": GPU, "cpu": CPU, "small": SMALL},
    {OURS: by_tunetrial, HF: by_hf},
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
