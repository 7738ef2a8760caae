"""What it takes to work with tuned models, as two documents say it and as a study measured it: docs/operations.md.

python tools/operations.py                         # the page
python tools/operations.py demo.yaml               # measure on a finished study that was timed (`tunetrial bench`)

Claims, each with its document and line, and what was measured are in `operations.json`. A study gives the times of its
probes, what `tunetrial bench` timed of its finals, and its sizes; exports and the registry's moves are timed here.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tunetrial import Study
from tunetrial.core.money import HOURS_PER_MONTH
from tunetrial.core.owning import Figure, Taken
from tunetrial.core.spans import span
from tunetrial.ship.order import Order
from tunetrial.ship.registry import Registry
from tunetrial.store import StudyFolder

DOCS = Path(__file__).parent.parent / "docs" / "operations.md"
KEPT = Path(__file__).with_suffix(".json")
MOVES = 9
HEADS = ["where", "what", "LoRA, said", "full, said", "ratio", "LoRA here", "full here", "ratio here", "known by"]
HEAD = """Made by `tools/operations.py` from `tools/operations.json`. The documents are those with which tunetrial began
([their other tables](seed-tables.md)); places are document:line. They speak of models of 1 to 7 billion weights on GPUs
and say nowhere how anything was timed. Beside them stands what one small study measured on a CPU: ratios can be held
against each other, times cannot. A ratio is full over LoRA.
"""


def measure(path: Path) -> dict:
    """Everything that the page says of a study's arms, in seconds and bytes; None where nothing measured it."""
    study = Study.load(path)
    found = study.costs()
    with tempfile.TemporaryDirectory() as scratch:
        arms = {each.arm: arm(study, each, Path(scratch)) for each in found.taken}
    decision, lock = study.decide(), StudyFolder(study.folder).read_lock()
    return {
        "question": study.asked.question,
        "base": study.asked.base_model,
        "task": found.task,
        "study": decision.study_digest[:12],
        "machine": found.taken[0].machine,
        "parameters": lock.parameters,
        "others": decision.deployed and decision.deployed.facts["others"],
        "sessions": decision.deployed and decision.deployed.asked.sessions,
        "arms": arms,
    }


def arm(study: Study, taken: Taken, scratch: Path) -> dict[str, list]:
    """Values of one arm, each with how it is known."""
    exported, moved = shipped(study, taken, scratch)
    storage = {n: stored(taken, n) for n in (4, 5)}
    parts = {name: said(taken.cycle_s[name]) for name in ("train", "deploy", "test")} | {"export": exported}
    whole = None if None in parts.values() else [sum(value for value, _ in parts.values()), "the four above"]
    rate = taken.alone_per_s
    return {
        **parts,
        **moved,
        "cycle": whole,
        "iterations_per_month": whole and [HOURS_PER_MONTH * 3600 / whole[0], "one machine, one after the other"],
        "storage_bytes": storage[4],
        "storage_of_5_bytes": storage[5],
        "resident_bytes": held(taken),
        "swap": said(taken.swap_s),
        "answer": rate and [1 / rate.value, f"{rate.basis}, {rate.of}"],
    }


def said(figure: Figure | None) -> list | None:
    return figure and [figure.value, f"{figure.basis}, {figure.of}"]


def stored(taken: Taken, variants: int) -> list | None:
    """Bytes of so many variants, with the base that adapters share."""
    each, base = taken.artifact_bytes, taken.base_bytes
    if each is None or (taken.shares_base and base is None):
        return None
    return [(base.value if base else 0) + variants * each.value, "sizes of finals" + (" and base" if base else "")]


def held(taken: Taken) -> list | None:
    """Bytes of one variant's weights in memory."""
    each, base = taken.resident_bytes, taken.resident_base_bytes
    if each is None or (taken.shares_base and base is None):
        return None
    return [each.value + (base.value if base else 0), "weights alone, probe"]


def shipped(study: Study, taken: Taken, scratch: Path) -> tuple[list, dict[str, list]]:
    """Seconds of an export of two versions, the shorter, and of moves between them in a registry of its own."""
    form = {"format": "adapter"} if taken.shares_base else {"format": "merged"}
    orders = [{"seed": seed} for seed in sorted(taken.run_s)[:2]] if taken.shares_base else [{"dtype": "fp32"}, {}]
    registry, took = Registry.at(scratch / "registry"), []
    for number, more in enumerate(orders):
        to = scratch / f"{taken.arm}-{number}"
        took.append(timed(lambda to=to, more=more: study.ship(Order(arm=taken.arm, **form, **more), to)))
        registry.add(taken.arm, to)
    registry.promote(taken.arm, "1")
    ups, downs = [], []
    for _ in range(MOVES):
        ups.append(timed(lambda: registry.promote(taken.arm, "2")))
        downs.append(timed(lambda: registry.rollback(taken.arm)))
    of = f"median of {MOVES}, `tunetrial registry`, files checked"
    moves = {"promote": [statistics.median(ups), of], "rollback": [statistics.median(downs), of]}
    return [min(took), f"`tunetrial ship --format {form['format']}`"], moves


def timed(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def page(kept: dict) -> Iterator[str]:
    """The page, line by line."""
    measured = kept["measured"]
    arms = measured["arms"]
    yield from ("# Working with tuned models: said and measured", *HEAD.splitlines(), "")
    yield (
        f"**The study**: {measured['question']} Task {measured['task']}, base {measured['base']} of "
        f"{measured['parameters'] / 1e6:.1f} million weights, on {measured['machine']}; study {measured['study']}. "
        + timing(measured)
    )
    yield ""
    yield line(HEADS)
    yield "|" + "---|" * len(HEADS)
    for row in kept["said"]:
        yield line(cells(row, arms))
    moves = {"at": "", "said": ["", ""], "values": None}
    yield line(cells(moves | {"what": "promote a version", "key": "promote"}, arms))
    yield from ("", *remarks(arms))


def timing(measured: dict) -> str:
    if measured["sessions"] is None:
        return "Nobody timed its finals as they are deployed."
    busy = measured["others"]
    others = f" while other processes took up to {busy:.0%} of the cores: times are rough" if busy > 0.1 else ""
    return f"Finals were timed in {measured['sessions']} sessions{others}."


def cells(row: dict, arms: dict) -> list[str]:
    lora, full = (arms[name].get(row["key"]) for name in ("lora", "full"))
    ratios = (row["values"], [each[0] for each in (lora, full)] if lora and full else None)
    there, here = ("" if pair is None else times(pair[1] / pair[0]) for pair in ratios)
    unit = size if row["key"].endswith("_bytes") else count if row["key"].endswith("_month") else span
    shown = ("not measured" if each is None else unit(each[0]) for each in (lora, full))
    known = dict.fromkeys(each[1] for each in (lora, full) if each)
    return [row["at"], row["what"], *row["said"], there, *shown, here, "; ".join(known)]


def remarks(arms: dict) -> Iterator[str]:
    """What the measurements say of the claims, in sentences with their numbers."""
    for key, name in (("train", "Training"), ("cycle", "A whole iteration")):
        lora, full = arms["lora"][key], arms["full"][key]
        if lora and full:
            yield f"- {name} takes full fine-tuning {full[0] / lora[0]:.2f} times as long as LoRA here."
    lora, full = arms["lora"]["rollback"][0], arms["full"]["rollback"][0]
    yield (
        f"- Rollback is the same row in the registry for both, {span(lora)} and {span(full)}; what serves must then "
        "load the version, which is a row of its own."
    )
    lora, full = (arms[name]["deploy"] for name in ("lora", "full"))
    if lora and full:
        yield (
            f"- Loading a base and an adapter beside it takes {span(lora[0])}, a full model {span(full[0])}: the base "
            "is what is loaded in both. Once it is there, another adapter is in place at once; another full model is "
            "loaded again."
        )
    lora, full = (arms[name]["storage_bytes"] for name in ("lora", "full"))
    if lora and full:
        yield f"- Four full models take {full[0] / lora[0]:.1f} times the bytes of four adapters and their base."


def times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def size(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g} MB" if size_bytes < 1e9 else f"{size_bytes / 1e9:.3g} GB"


def count(value: float) -> str:
    return f"{value:,.0f}"


def line(row: list[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def main(arguments: list[str]) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    if arguments:
        kept["measured"] = measure(Path(arguments[0]))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    DOCS.write_text("\n".join(page(kept)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
