"""Known facts about fine-tuning, each run again and held against what is expected.

    TUNETRIAL_DATA=folder python -m benchmarks.acceptance    # all runs; some 250 trainings
    python -m benchmarks.acceptance --facts 3,4              # some facts
    python -m benchmarks.acceptance --page                   # docs/acceptance.md from what was found

Expectations were written down before the first run. What comes out otherwise stands in the page as it came.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from benchmarks.acceptance import facts
from benchmarks.acceptance.runs import Runs

HERE = Path(__file__).resolve().parent
LOG, FOUND = HERE.parent / "results/acceptance/runs.jsonl", HERE.parent / "results/acceptance/facts.json"
READING = HERE / "reading.md"  # what was made of it, by hand
PAGE = HERE.parent.parent / "docs/acceptance.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", default=",".join(map(str, facts.FACTS)), help="their numbers")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, to try the script")
    parser.add_argument("--out", type=Path, default=LOG.parent, help="folder of runs.jsonl and facts.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU if there is one")
    parser.add_argument("--page", action="store_true", help="write the page and run nothing")
    asked = parser.parse_args()
    if asked.page:
        PAGE.write_text(page(json.loads(FOUND.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    data = Path(os.environ.get("TUNETRIAL_DATA", ""))
    if not (data / "e2e_nlg").is_dir():
        sys.exit(f"acceptance: TUNETRIAL_DATA: no folder with e2e_nlg, got {str(data)!r}; name it")
    asked.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(asked.out / "runs.jsonl", data, scale=asked.scale, device=asked.device)
    kept = asked.out / "facts.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for number in map(int, asked.facts.split(",")):
        row = facts.FACTS[number](runs)
        found[str(number)] = {**row.model_dump(mode="json"), "machine": _machine(runs)}
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{number}. {row.fact}: {row.state}: {row.ours}", flush=True)


def page(found: dict[str, dict]) -> str:
    """The table of what was found, as Markdown."""
    lines = [
        "# What a correct lab must reproduce",
        "Facts about fine-tuning with a published or derived number, run again on the embedded base (12.3 M weights),",
        "on E2E (data to text, 1,000 rows) and held-out paragraphs of WikiText-2, each method at its own rate; three",
        "seeds a rate, five at the rate found. What was expected was written down first (`benchmarks/acceptance`).",
        "**pass**: our interval or number lies within it; **fail**: outside; **can't tell**: the interval has both. A",
        "small base is no large one: a fact that fails here is not refuted for 7B, and one that passes is not proven.",
        "",
        "| # | fact | expected | ours | |",
        "|---|---|---|---|---|",
    ]
    rows = (found[number] for number in sorted(found, key=int))
    lines += [f"| {r['number']} | {r['fact']} | {r['expected']} | {r['ours']} | **{r['state']}** |" for r in rows]
    machines = sorted({one["machine"] for one in found.values()})
    return "\n".join([*lines, "", f"Run on {'; '.join(machines)}.", "", READING.read_text(encoding="utf-8")])


def _machine(runs: Runs) -> str:
    kind = runs.session.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else "CPU"
    return f"{name}, {runs.session.precision}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
