"""What five documents say that fine-tuning takes, beside what tunetrial counts: docs/seed-tables.md.

python tools/seed_tables.py              # the page; some minutes on one core
python tools/seed_tables.py 004:28       # print the rows of these places and write nothing

The claims, each with its document and line, and what others measured are in `seed_tables.json`. Memory is counted by
`engine.trace`, times and prices by the forecast behind `tunetrial plan --model`, weights by the methods' formulas;
nothing is fitted to a claim.
"""

import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tunetrial import methods, models
from tunetrial.plan.estimate import Range
from tunetrial.plan.fit import Need
from tunetrial.trial import audit
from tunetrial.trial.forecast import forecast

DOCS = Path(__file__).parent.parent / "docs" / "seed-tables.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "b3-cuda.json"
SAID = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
STEPS = ("1x128", "1x512", "4x512", "16x512")
GB = 10**9


@cache
def described(model: str) -> models.Described:
    """From what is known offline: the page does not depend on a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return models.described(model)


@cache
def needed(model: str, method: str, settings: str, gpu: str, step: str, again: bool = False) -> Need:
    """Memory of rows all in one micro-batch, all of their tokens answered; `again` with layers computed again."""
    return audit.needed(described(model), method, json.loads(settings), gpu, *map(int, step.split("x")), again)


def gb(found: Range) -> str:
    low, high = (size / GB for size in (found.low, found.high))
    return f"{low:,.0f}–{high:,.0f}" if low >= 10 else f"{low:.1f}–{high:.1f}"


def memory(row: dict) -> str:
    settings = json.dumps({} if row["method"] == "full" else {"rank": 16})
    found = {step: needed(row["model"], row["method"], settings, row["gpu"], step).bytes for step in STEPS}
    cells = [row["at"], row["said"], row["gpu"], *map(gb, found.values()), right(row["gb"], found), row["note"]]
    return line(cells)


def right(said: list[float], found: dict[str, Range]) -> str:
    """At which of these settings a claim would be right, if at any."""
    low, high = (size * GB for size in said)
    at = [step.replace("x", " × ") for step, need in found.items() if need.low <= high and need.high >= low]
    if at:
        return "everywhere here" if len(at) == len(found) else " and ".join(dict.fromkeys((at[0], at[-1])))
    return "nowhere: too little" if found[STEPS[0]].low > high else "nowhere here: too much"


def time(row: dict) -> str:
    described(row["model"])  # offline from here on
    (cell,) = forecast(row["model"], (row["method"],), (row["gpu"],), step="16x512", rows=row["rows"]).cells
    run = usd = ""
    if cell.run_s is not None:
        size, unit = (60, "min") if cell.run_s.high < 2 * 3600 else (3600, "h")
        run = f"{cell.run_s.low / size:.2g}–{cell.run_s.high / size:.2g} {unit}"
    if cell.usd is not None:
        usd = f"{cell.usd.low:.2f}–{cell.usd.high:.2f}" if cell.usd.high else "0"
    return line([row["at"], row["said"], row["gpu"], cell.fit.verdict, run, usd, cell.price or "", row["note"]])


def count(row: dict) -> str:
    shape = described(row["model"]).shape
    method = methods.find(audit.arm(row["method"], row["settings"]))
    whole = method.trains_base
    trained = shape.parameters if whole else method.trainable_parameters(shape, 0)
    saved = shape.bytes_per_weight * trained if whole else method.artifact_bytes(shape, 0, shape.bytes_per_weight)
    size = f"{saved / GB:.3g} GB" if saved >= GB else f"{saved / 1e6:.3g} MB"
    halved = "" if whole else f" ({saved / 2e6:.3g} MB in 16 bits)"
    share = f"{100 * trained / shape.parameters:.3g} %"
    how = ", ".join(f"{key} {' '.join(v) if isinstance(v, list) else v}" for key, v in row["settings"].items())
    return line([row["at"], row["said"], how or row["method"], f"{trained:,}", share, size + halved, row["note"]])


def published(row: dict) -> str:
    settings = json.dumps(row["settings"])
    need = needed(row["model"], row["method"], settings, "a100-80", row["step"], row.get("again", False))
    peak = need.peak_bytes / GB
    step = row["step"].replace("x", " × ") + (", again" if row.get("again") else "")
    difference = f"{100 * (peak / row['gb'] - 1):+.0f} %"
    return line([row["by"], row["said"], step, f"{row['gb']:g}", f"{peak:.3g}", difference, row["source"]])


def measured() -> Iterator[str]:
    """Rows of tunetrial's own benchmark on an H200."""
    for case in json.loads(RESULTS.read_text(encoding="utf-8"))["cases"]:
        ours = case["measured"]["tunetrial"]
        others = {
            name: found["peak_bytes"]
            for name, found in case["measured"].items()
            if name != "tunetrial" and "peak_bytes" in found
        }
        least = min(others.items(), key=lambda item: item[1], default=None)
        other = "" if least is None else f"{least[1] / GB:.3g} ({least[0]})"
        rows = f"{case['work']['batch']} rows of Alpaca's lengths"
        yield line([case["name"], rows, f"{ours['peak_bytes'] / GB:.3g}", other, f"{1000 * ours['step_s']:.0f} ms"])


def line(cells: list[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


TABLES = {
    "memory": (memory, ["where", "says", "on", *(s.replace("x", " × ") for s in STEPS), "right at", "why"]),
    "time": (time, ["where", "says", "on", "verdict", "predicted", "USD", "price", "why"]),
    "counts": (count, ["where", "says", "method", "trained", "share", "saved", "why"]),
    "published": (published, ["by", "of", "rows × tokens", "GB there", "GB here", "here against there", "source"]),
}
TEXT = {
    "memory": """## Memory
GB of 10^9 bytes that a device must have free, context and the allocator's reserve included, for rows × tokens in one
micro-batch. Precision is what tunetrial trains in: full fine-tuning has fp32 masters, gradients and moments and
computes in bf16 (fp16 on a T4, fp32 on a CPU), 18 to 20 bytes a weight; LoRA and QLoRA of rank 16 on all linear layers
have fp32 adapters beside a base in 16 or 4 bits; AdamW throughout, with layers not computed again. "Right at" names
the first and last of the four settings whose range meets what is said.
""",
    "time": """## Time and money
Steps of 16 rows of 512 tokens; from data sheets, so the range is wide, and without installation, downloads, evaluation
or the search for a learning rate. Several GPUs are for information: tunetrial trains on one.
""",
    "counts": """## Trained weights and storage
Counted by the methods' formulas, which tests hold against the modules themselves; adapters are saved in fp32. No head.
""",
    "published": """## Against what others published
Peak of tensors (`max_memory_allocated`), without context and reserve. These are other programs: some hold the logits of
all tokens in fp32 at once (LitGPT: 1,304 × 32,000 × 4 bytes a copy), keep fp32 copies or pad rows, so a difference is
not by itself an error of the count, which is held against tunetrial's own peaks below and in
[planning.md](planning.md). Where it is far off, we say so under the table.
""",
}


HEAD = """Made by `tools/seed_tables.py` from `tools/seed_tables.json`. The documents are those with which tunetrial
began. Places are document:line. Left out is what no plan says: quality, latency, and memory when serving.
"""
BILLS = """Document 001 bills 65 GB of storage at 0.10 USD a GB-month as if it were an hour: its 4,680 USD a month (line
869) are 6.50, and its 942 USD for base and adapters (line 878) are 1.31. 65,536 weights for a 4096 × 4096 layer at rank
8 are right (003:25), and 3.5 GB for 7B in 4 bits nearly (004:98): 3.9 with scales, embedding and head.
"""
MEASURED = """## What was measured
On one H200, rows of Alpaca's lengths ([benchmarks](../benchmarks/README.md), B3): peak of tensors in GB, and the peer
that needed least of those that ran in the same call. 13B, 70B, a T4 and a laptop have not been measured.
"""


def section(name: str) -> Iterator[str]:
    row, heads = TABLES[name]
    yield from TEXT[name].splitlines()
    yield ""
    yield line(heads)
    yield "|" + "---|" * len(heads)
    yield from map(row, SAID[name])
    yield ""


def page() -> Iterator[str]:
    yield from ("# The documents' tables, counted again", *HEAD.splitlines(), "")
    yield from (f"- {number}: {title}" for number, title in SAID["documents"].items())
    yield ""
    for name in ("memory", "time", "counts"):
        yield from section(name)
    yield from (*BILLS.splitlines(), "")
    yield from section("published")
    yield from (f"- {name}: {text}" for name, text in SAID["sources"].items())
    yield from ("", *SAID["remarks"], "", *MEASURED.splitlines(), "")
    yield line(["case", "step", "tunetrial", "least of the peers", "a step"])
    yield "|---|---|---|---|---|"
    yield from measured()


def main(places: list[str]) -> None:
    if not places:
        DOCS.write_text("\n".join(page()) + "\n", encoding="utf-8")
        return
    for name, (row, _) in TABLES.items():
        print(*(row(said) for said in SAID[name] if said.get("at", said.get("by")) in places), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
