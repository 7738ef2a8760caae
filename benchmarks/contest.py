"""A benchmark: contenders do the same work, each in a process of its own; a table and a JSON file come of it.

A case is one piece of work with its targets, written down before the first run. A contender is a function from a case
to what it measured; it runs in a child process, since some libraries change others for good when they are imported.
Contenders whose names agree up to a comma share a process, and the models that it has loaded. One that cannot be
imported, fails or takes too long is "not run", with the reason. What targets compare are times for the same work.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tunetrial

RESULTS = Path(__file__).parent / "results"
OURS = "tunetrial"
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "liger-kernel",
    "unsloth",
    "bitsandbytes",
    "accelerate",
    "triton",
)

Measured = dict[str, object]


@dataclass(frozen=True)
class Target:
    """What is to be reached by a number that two measurements, or one, make.

    "speed-up" is the time of the fastest of `against` over that of the fastest of `of`, "price" the inverse minus 1,
    "time" that of the fastest of `of` itself, in seconds. The first is to be at least `reach`, the others at most;
    `aim` is what to try for beyond, `predicted` what was expected before the first run.
    """

    name: str
    kind: Literal["speed-up", "price", "time"]
    reach: float | None
    aim: float | None = None
    predicted: float | None = None
    measure: str = "step_s"
    of: tuple[str, ...] = (OURS,)
    against: tuple[str, ...] = ()

    def value(self, measured: dict[str, Measured]) -> float | None:
        """None where a side was not run."""
        own, other = self._fastest(measured, self.of), self._fastest(measured, self.against)
        if own is None or self.kind == "time":
            return own
        if other is None:
            return None
        return other / own if self.kind == "speed-up" else own / other - 1

    def _fastest(self, measured: dict[str, Measured], names: tuple[str, ...]) -> float | None:
        found = [measured.get(name, {}).get(self.measure) for name in names]
        return min((seconds for seconds in found if seconds is not None), default=None)

    def outcome(self, value: float | None) -> str:
        """In words: "aim reached", "reached", "missed", "no target" or "not run"."""
        if value is None:
            return "not run"
        if self.reach is None:
            return "no target"
        sign = 1 if self.kind == "speed-up" else -1
        if self.aim is not None and sign * value >= sign * self.aim:
            return "aim reached"
        return "reached" if sign * value >= sign * self.reach else "missed"


@dataclass(frozen=True)
class Case:
    """One piece of work: what the contenders are told, who takes part, and what is to be reached."""

    name: str
    work: dict[str, object]
    contenders: tuple[str, ...]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Options:
    """What a contender is given beside the case: the device ("cpu" or "cuda") and a folder for models."""

    device: str
    folder: Path


@dataclass(frozen=True)
class Benchmark:
    """`cases` gives those of a device ("cpu", "cuda") or the toy ones of "small"; one without any is not for it."""

    id: str
    title: str
    cases: dict[str, tuple[Case, ...]]
    contenders: dict[str, Callable[[Case, Options], Measured]] = field(default_factory=dict)

    def main(self, script: str) -> None:
        """Run as a command; see `--help`."""
        asked = arguments(self)
        cases = chosen(self, asked)
        if asked.only is not None:
            take_part(self, asked, cases)
            return
        began, load = time.perf_counter(), os.getloadavg()[0]
        cases = [case for case in cases if set(case.contenders) & set(asked.contenders or case.contenders)]
        names = [n for n in self.contenders if any(n in case.contenders for case in cases)]
        names = [n for n in names if asked.contenders is None or n in asked.contenders]
        measured: dict[str, dict[str, Measured]] = {case.name: {} for case in cases}
        for process in dict.fromkeys(name.partition(",")[0] for name in names):
            together = [name for name in names if name.partition(",")[0] == process]
            left_s = min(asked.limit_s, asked.total_s - (time.perf_counter() - began))
            for case, name, found in child(script, asked, together, cases, left_s):
                measured[case][name] = found
        documents = [document(case, measured[case.name], asked.device, load) for case in cases]
        for made in documents:
            print(table(made))
        print(f"{time.perf_counter() - began:.0f} s in all", file=sys.stderr)
        if not asked.small or asked.results:
            save(self, documents, asked.device, asked.results or RESULTS)


def arguments(benchmark: Benchmark) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=benchmark.title)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="toy work, to try the script; nothing is saved")
    parser.add_argument("--cases", help="only those whose name contains one of these, separated by |")
    parser.add_argument("--contenders", type=lambda text: text.split("|"), help="only these, separated by |")
    parser.add_argument("--limit-s", type=float, default=600, help="for each contender's process")
    parser.add_argument("--total-s", type=float, default=7200, help="for all of them: who comes too late is not run")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tunetrial-benchmarks")
    parser.add_argument("--results", type=Path, help="where the JSON file goes; benchmarks/results by default")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(benchmark: Benchmark, asked: argparse.Namespace) -> list[Case]:
    cases = benchmark.cases.get("small" if asked.small else asked.device, ())
    wanted = [
        case for case in cases if asked.cases is None or any(part in case.name for part in asked.cases.split("|"))
    ]
    if not wanted:
        sys.exit(f"{benchmark.id}: no such case on this device, got {asked.cases or asked.device!r}; see the script")
    return wanted


def child(
    script: str, asked: argparse.Namespace, names: list[str], cases: list[Case], limit_s: float
) -> Iterator[tuple[str, str, Measured]]:
    """Run contenders through their cases in a process of their own: case, contender and what was found of each."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "measured.jsonl"
        into.touch()
        command = [sys.executable, script, "--only", "|".join(names), "--into", str(into), "--device", asked.device]
        command += ["--folder", str(asked.folder)] + (["--small"] if asked.small else [])
        command += ["--cases", asked.cases] if asked.cases else []
        try:
            code = subprocess.run(command, timeout=max(limit_s, 0), stdout=sys.stderr).returncode
            missing = f"its process ended with {code}"
        except subprocess.TimeoutExpired:
            missing = f"stopped after {limit_s:.0f} s" if limit_s > 0 else "no time was left for it"
        lines = [json.loads(line) for line in into.read_text(encoding="utf-8").splitlines()]
    found = {(case, name): measured for case, name, measured in lines}
    for case in cases:
        for name in [name for name in names if name in case.contenders]:
            yield case.name, name, found.get((case.name, name), {"not_run": missing})


def take_part(benchmark: Benchmark, asked: argparse.Namespace, cases: list[Case]) -> None:
    """As a child: measure case after case, each written down as soon as it is known."""
    options = Options(asked.device, asked.folder)
    for case in cases:
        for name in [name for name in asked.only.split("|") if name in case.contenders]:
            print(f"{benchmark.id} · {case.name} · {name}", file=sys.stderr, flush=True)
            try:
                found = benchmark.contenders[name](case, options)
            except Exception as error:  # the boundary: whatever a contender fails at, the others are measured
                traceback.print_exc()
                found = {"not_run": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}
            with asked.into.open("a", encoding="utf-8") as file:
                file.write(json.dumps([case.name, name, found]) + "\n")


def versions() -> dict[str, str]:
    """Of tunetrial and the packages that are installed."""
    found = {"tunetrial": tunetrial.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} CPUs"


def document(case: Case, measured: dict[str, Measured], device: str, load: float) -> dict:
    """What is kept of a case. Those who take part and were not asked for are said to be not run.

    `load` is how many processes ran on the machine when the script began, the mean of a minute.
    """
    whole = {name: measured.get(name, {"not_run": "not asked for in this call"}) for name in case.contenders}
    values = [(target, target.value(whole)) for target in case.targets]
    return {
        "name": case.name,
        "work": case.work,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(device),
        "load": round(load, 1),
        "versions": versions(),
        "measured": whole,
        "targets": [asdict(t) | {"value": value, "outcome": t.outcome(value)} for t, value in values],
    }


def save(benchmark: Benchmark, documents: list[dict], device: str, folder: Path) -> None:
    """Write the results; cases of earlier calls that were not run again stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark.id.lower()}-{device}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []
    fresh = {made["name"]: made for made in documents}
    kept = {case["name"]: case for case in before} | fresh
    listed = [case.name for case in benchmark.cases[device]]
    cases = [kept[name] for name in listed if name in kept]
    whole = {"id": benchmark.id, "title": benchmark.title, "device": device, "cases": cases}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def table(made: dict) -> str:
    """A case as text: a line a contender, a line a target."""
    lines = [f"\n{made['name']}  [{made['machine']}, {made['date']}]"]
    for name, found in made["measured"].items():
        numbers = ", ".join(f"{key} {shown(value)}" for key, value in found.items() if key != "settings")
        lines.append(f"  {name:28} {numbers}")
        if "settings" in found:
            lines.append(f"  {'':28} with {found['settings']}")
    for target in made["targets"]:
        value = "" if target["value"] is None else f" {target['value']:.3g}"
        lines.append(f"  {target['name']}: {target['kind']}{value}, to reach {target['reach']}: {target['outcome']}")
    return "\n".join(lines)


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
