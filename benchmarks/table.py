"""Write the tables of benchmarks/README.md from the targets in the scripts and the JSON files in results/.

python benchmarks/table.py
"""

import json
from pathlib import Path

import b1_study
import b2_packed
import b3_solo
import b5_evaluation
import b6_decode
import b7_mixed
import b8_swaps
import b10_nf4
import b12_demo
from contest import RESULTS, Benchmark, Case, Target

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- results: written by table.py -->\n", "<!-- end of results -->\n"
SCRIPTS = (b1_study, b2_packed, b3_solo, b5_evaluation, b6_decode, b7_mixed, b8_swaps, b10_nf4, b12_demo)
BENCHMARKS = tuple(b.BENCHMARK for b in SCRIPTS)
DEVICES = {"cuda": "GPU", "cpu": "CPU"}
MEASURES = {
    "adapter_step_s": "an adapter-step",
    "example_s": "an example",
    "token_s": "a token",
    "host_s": "an adapter from the host",
    "study_s": "the study",
    "step_s": "a step",
}


def render(folder: Path = RESULTS) -> str:
    """Both tables: what came of every target, and what every contender measured."""
    outcomes = ["| | on | work | target | to reach / to aim at | predicted | came | outcome | by |", "|" + "---|" * 9]
    details = [
        "| | work | contender | time of | tokens/s | MFU | peak | cold | first loss | when, where |",
        "|" + "---|" * 10,
    ]
    for benchmark in BENCHMARKS:
        for device in DEVICES:
            found = read(benchmark, device, folder)
            for case in benchmark.cases[device]:
                made = found.get(case.name)
                outcomes += [outcome(benchmark, device, case, target, made) for target in case.targets]
                details += [] if made is None else [detail(benchmark, case, made, n) for n in made["measured"]]
    return "\n".join([*outcomes, "", "### What each measured", "", *details, "", versions(folder)]) + "\n"


def read(benchmark: Benchmark, device: str, folder: Path) -> dict[str, dict]:
    path = folder / f"{benchmark.id.lower()}-{device}.json"
    if not path.exists():
        return {}
    return {case["name"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}


def outcome(benchmark: Benchmark, device: str, case: Case, target: Target, made: dict | None) -> str:
    value = None if made is None else target.value(made["measured"])
    goals = " / ".join(shown(target, goal) for goal in (target.reach, target.aim) if goal is not None)
    sign = "≥ " if target.kind == "speed-up" else "≤ "
    words = "not run yet" if made is None else f"**{target.outcome(value)}**"
    by = "" if value is None else sides(target, made["measured"])
    cells = [benchmark.id, DEVICES[device], case.name, target.name, sign + goals if goals else "–"]
    return row([*cells, shown(target, target.predicted), shown(target, value), words, by])


def shown(target: Target, value: float | None) -> str:
    if value is None:
        return ""
    return {"speed-up": f"{value:.2f} ×", "price": f"{value:+.1%}", "time": seconds(value)}[target.kind]


def sides(target: Target, measured: dict) -> str:
    """Who was the fastest on either side."""
    names = [_fastest(side, target.measure, measured) for side in (target.of, target.against) if side]
    return " against ".join(names)


def _fastest(side: tuple[str, ...], measure: str, measured: dict) -> str:
    there = {name: measured[name][measure] for name in side if measured.get(name, {}).get(measure) is not None}
    best = min(there, key=there.get)
    return f"{best}: {seconds(there[best])}"


def detail(benchmark: Benchmark, case: Case, made: dict, name: str) -> str:
    found = made["measured"][name]
    when = f"{made['date']}, {made['machine']}, load {made['load']}"
    if "not_run" in found:
        return row([benchmark.id, case.name, name, f"not run: {found['not_run']}", "", "", "", "", "", when])
    measure = next(key for key in MEASURES if key in found)
    rate, used, cold = found.get("tokens_per_s"), found.get("mfu"), found.get("cold_s")
    derived = ", derived" if found.get("derived") == measure else ""
    return row(
        [
            benchmark.id,
            case.name,
            name,
            f"{MEASURES[measure]}{derived}: {seconds(found[measure])}",
            "" if rate is None else f"{rate:,.0f}",
            "" if used is None else f"{used:.0%}",
            "" if "peak_bytes" not in found else f"{found['peak_bytes'] / 2**30:.1f} GiB",
            "" if cold is None else seconds(cold),
            "" if "first_loss" not in found else f"{found['first_loss']:.3f}",
            when,
        ]
    )


def versions(folder: Path) -> str:
    """Every set of versions that a result here was made with."""
    cases = [case for path in sorted(folder.glob("*.json")) for case in json.loads(path.read_text("utf-8"))["cases"]]
    sets = sorted({", ".join(f"{name} {version}" for name, version in case["versions"].items()) for case in cases})
    return "Versions: " + ("; or ".join(sets) or "nothing was run yet") + "."


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def written(page: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + render() + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
