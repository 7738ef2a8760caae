"""Is drift task-dependent, and by what? Tasks that differ in one thing: how well the untuned base tells their labels.

    python tools/planted_shift.py                                     # draws the rows of studies/shift
    tunetrial run studies/shift/study.yaml
    python tools/planted_shift.py studies/shift/study-results         # tables and picture of docs/planted-shift.md

A row is a sentence with an animal or a building and one of sixteen colours. Its label is which of the two it has, and
the other one where the colour is one of so many that turn it. With no such colour the label lies along a direction
that the base has already; with eight it is the exclusive or of two things, and lies along none. Sentences, lengths,
words and the share of either label are the same in all tasks; nothing else differs.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

from tunetrial.analysis.stats import Estimate, paired

STUDY = Path(__file__).resolve().parent.parent / "studies/shift"
PICTURE = STUDY.parent.parent / "docs/planted-shift.png"
TURNING = (0, 2, 4, 6, 8)
FEWEST_TASKS = 3
SIZES, SEED, LEVEL, LEARNT = {"train": 1000, "validation": 300, "test": 500}, 7, 0.95, 0.95
ANIMALS = "dog cat horse cow sheep goat pig duck lion wolf bear fox mouse bird fish frog".split()
BUILDINGS = (
    "house church school shop farm castle tower bridge barn palace hotel station temple hall mill cottage".split()
)
COLOURS = "red blue green yellow white black brown grey pink orange purple golden silver dark pale bright".split()
NAMES = "Tom Anna Peter Mary John Lucy Sam Emma Jack Alice Ben Rose".split()
VERBS = "saw found liked painted passed remembered noticed described".split()
TIMES = ("yesterday", "last week", "in the morning", "at night", "again", "on Sunday", "in spring", "after school")
MEASURES = {"relative change": lambda frame: frame["change"], "1 - CKA": lambda frame: 1 - frame["cka"]}


def main() -> None:
    if len(sys.argv) == 1:
        draw()
        return
    runs, told = drifts(Path(sys.argv[1])), probes()
    print("\n".join(tables(runs, told)))
    print("\n".join(["Runs that learnt their task alone:", "", *tables(learnt(runs), told)]))
    print(with_rate(runs, told))
    picture(runs, told)


def name(turning: int) -> str:
    return f"turning{turning}"


def draw() -> None:
    """The same sentences in every task, each row with the label that its task gives it."""
    rng = random.Random(SEED)
    turners = rng.sample(COLOURS, len(COLOURS))
    (STUDY / "rows").mkdir(exist_ok=True)
    for split, size in SIZES.items():
        drawn = [sentence(rng) for _ in range(size)]
        for turning in TURNING:
            path = STUDY / f"rows/{name(turning)}-{split}.jsonl"
            rows = [
                {"id": f"{split}{n}", "text": text, "label": label(animal, colour in turners[:turning])}
                for n, (text, animal, colour) in enumerate(drawn)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            print(f"{path}: {size} rows")


def sentence(rng: random.Random) -> tuple[str, bool, str]:
    """A sentence, whether it has an animal, and its colour."""
    animal, colour = rng.random() < 0.5, rng.choice(COLOURS)
    noun = rng.choice(ANIMALS if animal else BUILDINGS)
    text = f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {colour} {noun} {rng.choice(TIMES)}."
    return text, animal, colour


def label(animal: bool, turned: bool) -> str:
    return "left" if animal != turned else "right"


def probes() -> dict[str, float]:
    """By task the test accuracy of a logistic regression on what the untuned base's last layer holds at the last token,
    its strength chosen on validation rows."""
    from sklearn.linear_model import LogisticRegression

    states = {split: base_states([row["text"] for row in rows(TURNING[0], split)]) for split in SIZES}
    middle, spread = states["train"].mean(0), states["train"].std(0)
    states = {split: (found - middle) / spread for split, found in states.items()}
    accuracies = {}
    for turning in TURNING:
        labels = {split: [row["label"] for row in rows(turning, split)] for split in SIZES}
        fitted = [
            LogisticRegression(C=c, solver="newton-cholesky").fit(states["train"], labels["train"])
            for c in (1e-3, 1e-2, 1e-1, 1)
        ]
        best = max(fitted, key=lambda model: model.score(states["validation"], labels["validation"]))
        accuracies[name(turning)] = float(best.score(states["test"], labels["test"]))
    return accuracies


def rows(turning: int, split: str) -> list[dict]:
    return [json.loads(line) for line in (STUDY / f"rows/{name(turning)}-{split}.jsonl").open(encoding="utf-8")]


def base_states(texts: list[str]) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from tunetrial import models

    folder = models.resolve("embedded").folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        return np.array([model(own, use_cache=False).last_hidden_state[0, -1].numpy() for own in ids], dtype=np.float64)


def drifts(results: Path) -> dict[tuple[str, str, str], dict[int, float]]:
    """By measure, arm and task what each seed's final has drifted on its test rows, a mean over layers; a layer's state
    of a row is the mean of its tokens'. Scores are under the measure "score"."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for path in sorted(results.glob("trials/*/states.parquet")):
        record = json.loads((path.parent / "record.json").read_text(encoding="utf-8"))["record"]
        trial, measured = record["trial"], record["measurements"]
        frame = parquet.read_table(path).to_pandas()
        frame = frame[(frame["source"] == "test") & (frame["pooling"] == "mean") & (frame["layer"] > 0)]
        values = {measure: float(value(frame).mean()) for measure, value in MEASURES.items()}
        values |= {"score": measured["test.accuracy"]["value"], "rate": trial["learning_rate"]}
        for measure, value in values.items():
            found.setdefault((measure, trial["arm"]["name"], trial["task"]), {})[trial["seed"]] = value
    return found


def learnt(runs: dict) -> dict:
    """Those of runs that answer nearly all test rows right: drift of what has not learnt is drift to nowhere."""
    return {
        (measure, arm, task): {s: v for s, v in own.items() if runs["score", arm, task][s] >= LEARNT}
        for (measure, arm, task), own in runs.items()
    }


def slope(runs: dict, measure: str, arm: str, probes: dict[str, float]) -> Estimate:
    """What a seed's drift changes by from a probe of 1 to one of 0.5: half the slope of least squares, turned round, by
    seed; the replicate is the seed."""
    slopes = []
    for seed in sorted({seed for task in probes for seed in runs[measure, arm, task]}):
        points = [(at, runs[measure, arm, task].get(seed)) for task, at in probes.items()]
        at, drift = np.array([point for point in points if point[1] is not None]).T
        if len(at) >= FEWEST_TASKS:
            slopes.append(-0.5 * np.polyfit(at, drift, 1)[0])
    return paired(np.array(slopes))


def with_rate(runs: dict, probes: dict[str, float]) -> str:
    """Log relative change with log rate over tasks, both less their arm's mean; a point is an arm on a task."""
    sides: list[np.ndarray] = []
    for arm in {arm for _, arm, _ in runs}:
        means = [[np.mean(list(runs[m, arm, task].values())) for task in probes] for m in ("rate", "relative change")]
        logs = np.log(means)
        sides.append(logs - logs.mean(1, keepdims=True))
    rate, drift = np.concatenate(sides, axis=1)
    found = np.corrcoef(rate, drift)[0, 1], np.polyfit(rate, drift, 1)[0]
    return f"log drift with log rate, within arms: correlation {found[0]:.2f}, slope {found[1]:.2f}"


def tables(runs: dict, probes: dict[str, float]) -> list[str]:
    arms = sorted({arm for _, arm, _ in runs}, key=lambda arm: (arm != "full", arm))
    lines = []
    for measure in ("score", *MEASURES):
        last = "" if measure == "score" else " from 1 to 0.5 of the probe |"
        lines += [
            f"**{measure}**",
            "",
            "| arm | " + " | ".join(f"probe {p:.3f}" for p in probes.values()) + f" |{last}",
        ]
        lines += ["|" + "---|" * (len(probes) + (1 if measure == "score" else 2))]
        for arm in arms:
            cells = [cell(list(runs[measure, arm, task].values())) for task in probes]
            ends = "" if measure == "score" else f" {said(slope(runs, measure, arm, probes))} |"
            lines.append(f"| {arm} | " + " | ".join(cells) + f" |{ends}")
        lines.append("")
    return lines


def cell(values: list[float]) -> str:
    spread = len(values) > 1 and np.ptp(values) > 0
    return said(paired(np.array(values)), sign="") if spread else f"{np.mean(values):.3f}" if values else ""


def said(found: Estimate, sign: str = "+") -> str:
    low, high = found.interval(LEVEL)
    return f"{found.effect:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def picture(runs: dict, probes: dict[str, float]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    arms = sorted({arm for _, arm, _ in runs}, key=lambda arm: (arm != "full", arm))
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        for arm, marker in zip(arms, "osD^", strict=False):
            found = [paired(np.array(list(runs[measure, arm, task].values()))) for task in probes]
            ends = np.array([one.interval(LEVEL) for one in found])
            line = axes.plot(list(probes.values()), [one.effect for one in found], marker=marker, ms=4, label=arm)[0]
            axes.fill_between(list(probes.values()), ends[:, 0], ends[:, 1], color=line.get_color(), alpha=0.15)
        axes.set(xlabel="accuracy of a probe of the untuned base", ylabel=measure, xlim=(1.02, 0.45))
    axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
