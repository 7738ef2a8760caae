"""B9: peak memory of an optimiser step, predicted without weights and then measured.

    python benchmarks/b9_memory.py --predict                  # anywhere: what is predicted, by us and by comparators
    python benchmarks/b9_memory.py --budget-s 540             # on a GPU: predicted, then measured, a line a row

Rows are drawn by a seed from a declared grid: real shapes of 0.1B to 8B with random weights made on the device, four
kinds of method, lengths of 128 to 8,192 tokens, batches of 1 to 64, layers computed again or not. Each is predicted
before it is measured. A row's peak is that of a later step, its passes recorded anew: `max_memory_allocated`, matmul
workspaces included; `first` is that of the first step; `reserved` and `context` are what the allocator and the process
hold beside it; `within_margin` how steps come through that may not hold 5 % more than predicted. Rows that end
otherwise than asked (memory ran out, a pass was split) say so and have no peak.

Comparators: a plain formula, 2 bytes a weight, 16 a trained one, and 34 s b h bytes of activations a layer, 2 where
layers are computed again (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, attention's scores left out as a
fused kernel leaves them); accelerate's `estimate-memory` for training with Adam in bf16, its largest figure; and
LLaMA-Factory's README: 18 bytes a weight for full fine-tuning in bf16, 2 for LoRA, half a byte for 4-bit QLoRA.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tunetrial import methods
from tunetrial.core.study import Arm, Controls
from tunetrial.models.sizes import shape_of

SEED, ROWS, MOST_TOKENS, MOST_BYTES = 9, 72, 65536, 130 * 2**30
MARGIN = 0.05
RESULT = Path(__file__).parent / "results" / "b9" / "memory.jsonl"
GIB = 2**30


def config(family: str, layers: int, hidden: int, heads: int, kv: int, inner: int, vocabulary: int, **more) -> dict:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary}
    attention = {"num_attention_heads": heads, "num_key_value_heads": kv, "max_position_embeddings": 32768}
    return {"model_type": family, "dtype": "bfloat16", "tie_word_embeddings": False} | sizes | attention | more


TIED = {"tie_word_embeddings": True}
SHAPES = {
    "SmolLM2-135M": config("llama", 30, 576, 9, 3, 1536, 49152, **TIED),
    "Qwen2.5-0.5B": config("qwen2", 24, 896, 14, 2, 4864, 151936, **TIED),
    "Qwen3-0.6B": config("qwen3", 28, 1024, 16, 8, 3072, 151936, head_dim=128, **TIED),
    "TinyLlama-1.1B": config("llama", 22, 2048, 32, 4, 5632, 32000),
    "Llama-3.2-1B": config("llama", 16, 2048, 32, 8, 8192, 128256, head_dim=64, **TIED),
    "Llama-3.2-3B": config("llama", 28, 3072, 24, 8, 8192, 128256, head_dim=128, **TIED),
    "Qwen3-4B": config("qwen3", 36, 2560, 32, 8, 9728, 151936, head_dim=128, **TIED),
    "Mistral-7B": config("mistral", 32, 4096, 32, 8, 14336, 32768, head_dim=128, sliding_window=None),
    "Llama-3.1-8B": config("llama", 32, 4096, 32, 8, 14336, 128256),
}
METHODS = ("full", "lora", "qlora", "packed")
LENGTHS, BATCHES, PACKS = (128, 256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32, 64), (2, 4, 8)


def drawn(seed: int, rows: int) -> Iterator[dict]:
    """Rows of the grid that a large GPU may hold, by shape; lengths are all the same, or drawn from a quarter up."""
    rng, names = random.Random(seed), list(SHAPES)
    for number in range(rows):
        shape, method = names[number % len(names)], METHODS[number // len(names) % len(METHODS)]
        members = rng.choice(PACKS) if method == "packed" else 1
        while True:
            length, batch = rng.choice(LENGTHS), rng.choice(BATCHES)
            if length * batch * members <= MOST_TOKENS:
                break
        varied, recomputes, head = rng.random() < 0.5, rng.random() < 0.4, rng.random() < 0.4
        lengths = [rng.randint(length // 4, length) if varied else length for _ in range(batch)]
        answered = [max(1, n // rng.choice((2, 4, 8))) for n in lengths]
        yield {
            "shape": shape,
            "method": "lora" if method == "packed" else method,
            "members": members,
            "lengths": lengths,
            "answered": answered,
            "recomputes": recomputes,
            "readout": "head" if head else "text",
        }


def asked(row: dict) -> tuple[dict, Arm, Controls, dict]:
    """What `trace` and `Asked.of` are given."""
    arm = Arm(name=row["method"], method=row["method"], settings=methods.settle(row["method"], {}))
    text = row["readout"] == "text"
    given = {"precision": "bf16", "readout": row["readout"], "max_new_tokens": 1 if text else None}
    how = {"kind": "generate"} if text else {"kind": "classify", "outputs": 4}
    how |= {name: row[name] for name in ("lengths", "answered", "members", "recomputes")}
    return SHAPES[row["shape"]], arm, Controls(base_fingerprint="random", **given), how | {"at_once": row["members"]}


def predicted(row: dict) -> dict[str, float]:
    """Bytes that we and comparators predict, and the seconds that ours took."""
    from tunetrial.engine.trace import trace

    base, arm, controls, how = asked(row)
    began = time.perf_counter()
    phases = trace(base, arm, controls, **how).phases
    return {
        "predicted": phases["step"].peak_bytes,
        "predicted_first": phases["prepare"].peak_bytes,
        "predict_s": round(time.perf_counter() - began, 2),
        **comparators(row),
    }


def comparators(row: dict) -> dict[str, float]:
    """Bytes by the formulas above; accelerate and LLaMA-Factory know nothing of rows."""
    shape, method = shape_of(SHAPES[row["shape"]]), methods.find(asked(row)[1])
    weights, trained = shape.parameters, method.trainable_parameters(shape, 4) * row["members"]
    tokens = sum(row["lengths"]) * row["members"]
    kept = (2 if row["recomputes"] else 34) * tokens * shape.hidden * shape.layers
    rule = {"full": 18, "lora": 2, "qlora": 0.5}[row["method"]]
    stored = 0.5 if row["method"] == "qlora" else 2
    return {
        "formula": stored * weights + 16 * trained + kept,
        "accelerate": _accelerate(4 * weights),
        "llama_factory": rule * weights,
    }


def _accelerate(fp32_bytes: int) -> float:
    from accelerate.commands.estimate import estimate_training_usage

    return float(max(estimate_training_usage(fp32_bytes, "bfloat16").values()))


def begun(row: dict):
    """A loop over a fresh base on the device, what it is asked to do, and the bytes that were there before."""
    import torch

    from tunetrial.engine.unread import Asked, Session

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated()
    base, arm, controls, how = asked(row)
    work = Asked.of(base, arm, controls, **how)
    loop = work.pack(Session(work, torch.device("cuda"))).loop
    loop.recomputes = work.recomputes
    loop.replay = loop._replay()
    torch.cuda.reset_peak_memory_stats()
    return loop, work, left


def within(row: dict, room_bytes: float) -> dict[str, str]:
    """Three steps by an allocator that may hold no more than so many bytes: what it took to come through."""
    import torch

    try:
        loop, work, _ = begun(
            row
        )  # with room for all: the base here is not read piece by piece, as the engine reads it
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(room_bytes / torch.cuda.get_device_properties(0).total_memory)
        for _ in range(3):
            loop.step(work.step, [1e-5] * work.members)
        split = loop.micro_batch < len(row["lengths"]) or loop.at_once < row["members"]
        changed = split or loop.recomputes != row["recomputes"]
        return {"within_margin": "smaller passes" if changed else loop.replay.why_not or "as asked"}
    except Exception as error:  # that it does not come through is what is asked for
        return {"within_margin": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measured(row: dict) -> dict[str, float | str]:
    """Two steps on the device."""
    import torch

    loop, work, left = begun(row)
    loop.step(work.step, [1e-5] * work.members)
    first = torch.cuda.max_memory_allocated()
    loop.replay.forget()
    torch.cuda.reset_peak_memory_stats()
    loop.step(work.step, [1e-5] * work.members)
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.max_memory_reserved()
    held = {"first": first - left, "reserved": reserved, "context": total - free - torch.cuda.memory_reserved()}
    if loop.micro_batch < len(row["lengths"]) or loop.at_once < row["members"] or loop.recomputes != row["recomputes"]:
        return held | {"failed": f"split: micro-batch {loop.micro_batch}, {loop.at_once} at once, {loop.recomputes}"}
    if loop.diverged:
        return held | {"failed": f"numbers are not finite, got {loop.diverged}"}
    return held | {"allocated": torch.cuda.max_memory_allocated() - left}


def carried_out(rows: list[dict], budget_s: float, device: bool, workers: int) -> Iterator[dict]:
    """Rows with what was predicted, all of them before the first is measured, and those that time is left for with
    what was measured on a device."""
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        foretold = list(pool.map(predicted, rows))
    print(f"b9: {len(rows)} rows predicted in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    for number, (row, told) in enumerate(zip(rows, foretold, strict=True)):
        if time.perf_counter() - began > budget_s:
            print(f"b9: {len(rows) - number} rows left out, got {budget_s:.0f} s; give more", file=sys.stderr)
            return
        found = {"row": number} | row | told
        if device and found["predicted"] <= MOST_BYTES:
            start = time.perf_counter()
            try:
                found |= measured(row)
                found |= within(row, (1 + MARGIN) * max(found["predicted"], found["predicted_first"]))
            except Exception as error:  # one row's fault is a result, and the others go on
                found["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            found["measure_s"] = round(time.perf_counter() - start, 1)
        yield found


def summary(found: list[dict]) -> str:
    """Errors of everyone's predictions on the rows that were measured."""
    done = [row for row in found if "allocated" in row]
    lines = [f"{len(done)} rows measured of {len(found)}"]
    for name in ("predicted", "formula", "accelerate", "llama_factory") if len(done) > 1 else ():
        errors = sorted(abs(row[name] / row["allocated"] - 1) for row in done)
        late = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
        lines.append(f"{name}: median error {statistics.median(errors):.2%}, 95th percentile {late:.2%}")
    tried = [row["within_margin"] for row in done if "within_margin" in row]
    lines += [f"room for {MARGIN:.0%} more than predicted: {many} rows: {how}" for how, many in Counter(tried).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predict", action="store_true", help="predict alone")
    parser.add_argument("--seed", type=int, default=SEED, help="of the rows that are drawn")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--only", default="", help="rows of shapes whose names hold this")
    parser.add_argument("--budget-s", type=float, default=1e9, help="no row is begun after so many seconds")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=1, help="processes that predict")
    options = parser.parse_args()
    rows = [row for row in drawn(options.seed, options.rows) if options.only in row["shape"]]
    rows.sort(key=lambda row: list(SHAPES).index(row["shape"]))  # kernels of one shape are compiled once
    found = []
    with open(options.out, "w", encoding="utf-8") as file:
        for row in carried_out(rows, options.budget_s, not options.predict, options.workers):
            found.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            told = {
                k: f"{row[k] / GIB:.3f}" for k in ("predicted", "allocated", "predicted_first", "first") if k in row
            }
            print(
                row["row"],
                row["shape"],
                row["method"],
                row["members"],
                told,
                row.get("failed", ""),
                row.get("within_margin", ""),
                file=sys.stderr,
            )
    print(summary(found))


if __name__ == "__main__":
    main()
