"""B3: one run at a time over rows of Alpaca's lengths: LoRA, QLoRA and full fine-tuning.

python benchmarks/b3_solo.py --device cuda --cases 1.1B
python benchmarks/b3_solo.py --small
"""

import sys
from contextlib import suppress

if {"--only", "Unsloth"} <= set(sys.argv):  # it asks to be imported first; where it cannot be, its contender says so
    with suppress(Exception):
        import unsloth  # noqa: F401

import lengths
import ours
import peers
import shapes
from contest import OURS, Benchmark, Case, Measured, Options, Target
from laps import Laps

HF, TRL, LIGER, UNSLOTH = "HF Trainer + PEFT", "TRL SFTTrainer", "TRL + Liger", "Unsloth"
PEERS = (HF, TRL, LIGER, UNSLOTH)
RANK = 16


def case(shape: str, method: str, batch: int, targets: tuple[Target, ...], **more: int) -> Case:
    work = {"shape": shape, "method": method, "batch": batch, "rank": RANK, "rows": "alpaca"} | more
    return Case(f"{shape} {method}, batch {batch}", work, (OURS, *PEERS), targets)


def speed_up(over: tuple[str, ...], reach: float, predicted: float) -> Target:
    against = "the fastest peer" if over == PEERS else over[0]
    return Target(f"step against {against}", "speed-up", reach, predicted=predicted, against=over)


NEVER_SLOWER = (PEERS, 1.0)
GPU = (
    case("1.1B", "lora", 16, (speed_up((TRL,), 5, 3.0), speed_up(*NEVER_SLOWER, 2.5))),
    case("1.1B", "full", 16, (speed_up((TRL,), 2, 1.8), speed_up(*NEVER_SLOWER, 1.6))),
    case("1.1B", "qlora", 16, (speed_up(*NEVER_SLOWER, 2.0),)),
    case("7B", "lora", 8, (speed_up((TRL,), 3, 2.2), speed_up(*NEVER_SLOWER, 1.8)), blocks=4),
    case("7B", "qlora", 8, (speed_up(*NEVER_SLOWER, 1.2),), blocks=4),
    case("7B", "full", 8, (speed_up((TRL,), 2, 1.5), speed_up(*NEVER_SLOWER, 1.4)), blocks=4),
)
SMALL = tuple(case("tiny", method, 4, (), warm=2, blocks=2, block=2) for method in ("lora", "full"))


def prepared(case: Case, options: Options):
    """The laps to take and rows for them."""
    work = case.work
    laps = Laps(options.device, warm=work.get("warm", 64), blocks=work.get("blocks", 3), block=work.get("block", 8))
    folder = shapes.base(work["shape"], options.folder, options.device)
    tokenizer = peers.AutoTokenizer.from_pretrained(folder)
    sizes = lengths.drawn("alpaca", laps.steps * work["batch"])
    return laps, folder, lengths.task("alpaca", lengths.examples(tokenizer, sizes), kind="generate")


def settings(method: str) -> dict[str, object]:
    return {} if method == "full" else {"rank": RANK}


def by_tunetrial(case: Case, options: Options) -> Measured:
    work = case.work
    laps, _, data = prepared(case, options)
    held = ours.session(work["shape"], options)
    made = ours.trial(
        work["method"],
        settings(work["method"]),
        precision=held.precision,
        readout="text",
        batch=work["batch"],
        longest=1,
    )
    pack = ours.train(held, [made], data, laps)
    return ours.measured(pack, laps, work=work, method=work["method"], device=options.device)


def by_hf(case: Case, options: Options) -> Measured:
    work = case.work
    laps, folder, data = prepared(case, options)
    rows = peers.token_rows(folder, data, batch=work["batch"])
    config = peers.lora_config(data, rank=RANK, targets=peers.ALL_LINEAR)
    loaded = peers.adapted(peers.model(folder, work["method"], data, options.device), work["method"], config)
    peers.hf_trainer(loaded, rows, laps, batch=work["batch"], device=options.device)
    return told(laps, loaded, work, options)


def by_trl(case: Case, options: Options, *, liger: bool = False) -> Measured:
    work = case.work
    laps, folder, data = prepared(case, options)
    rows = peers.token_rows(folder, data, batch=work["batch"])
    config = None if work["method"] == "full" else peers.lora_config(data, rank=RANK, targets=peers.ALL_LINEAR)
    loaded = peers.model(folder, work["method"], data, options.device)
    tokenizer = peers.AutoTokenizer.from_pretrained(folder)
    made = peers.trl_trainer(
        loaded,
        rows,
        laps,
        batch=work["batch"],
        device=options.device,
        config=config,
        liger=liger,
        tokenizer=tokenizer,
    )
    return told(laps, made.model, work, options, liger=liger)


def by_unsloth(case: Case, options: Options) -> Measured:
    work = case.work
    laps, folder, data = prepared(case, options)
    rows = peers.token_rows(folder, data, batch=work["batch"])
    longest = max(len(row["input_ids"]) for row in rows)
    loaded, tokenizer = peers.unsloth_model(folder, work["method"], rank=RANK, longest=longest, device=options.device)
    made = peers.trl_trainer(
        loaded, rows, laps, batch=work["batch"], device=options.device, config=None, liger=False, tokenizer=tokenizer
    )
    return told(laps, made.model, work, options)


def told(laps: Laps, loaded, work: dict, options: Options, **more: object) -> Measured:
    made = peers.described(loaded) | {"gradient_checkpointing": False, "optim": "adamw_torch_fused"} | more
    return peers.measured(laps, made, work=work, method=work["method"], device=options.device)


BENCHMARK = Benchmark(
    "B3",
    "One run at a time, Alpaca's lengths: LoRA, QLoRA, full fine-tuning",
    {"cuda": GPU, "cpu": (), "small": SMALL},
    {
        OURS: by_tunetrial,
        TRL: by_trl,
        LIGER: lambda case, options: by_trl(case, options, liger=True),
        HF: by_hf,
        UNSLOTH: by_unsloth,
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
