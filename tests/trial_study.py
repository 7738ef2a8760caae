"""Small studies on the simulator, for tests of trial/ and the command line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tunetrial import Study

SPLITS = {"train": 60, "validation": 40, "test": 50}
YAML = """
base_model: {base_model}
tasks:
  - name: mail
    data: train.jsonl
    validation: validation.jsonl
    test: test.jsonl
    kind: {kind}
    input: "{{{{ text }}}}"
    target: target
    id: id
    metric: {metric}
    margin: 0.05
arms:
{arms}
reference: {reference}
batch_examples: 4
epochs: 2
tuning: {{points: 3, max_points: 5}}
{more}
"""


def write_study(
    folder: Path,
    *,
    arms: tuple[str, ...] = ("full", "lora"),
    kind: str = "classify",
    label: Callable[[str, str], str] = lambda split, name: "abc"[int(name) % 3],
    more: str = "",
    base_model: str = "embedded",
) -> Path:
    """Write a study of a made-up task, 30 steps a trial; `label` gives the target of a row of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in SPLITS.items():
        made = [_row(split, str(number), kind, label) for number in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    methods = [
        "method: full" if arm == "full" else f"method: lora, rank: {2**number}" for number, arm in enumerate(arms)
    ]
    lines = "\n".join(f"  {arm}: {{{method}}}" for arm, method in zip(arms, methods, strict=True))
    metric = {"classify": "accuracy", "regress": "mae"}[kind]
    path = folder / "study.yaml"
    path.write_text(
        YAML.format(reference=arms[0], kind=kind, metric=metric, arms=lines, more=more, base_model=base_model)
    )
    return path


def _row(split: str, name: str, kind: str, label: Callable[[str, str], str]) -> dict:
    words = hashlib.sha256(f"{split} {name}".encode()).hexdigest()
    target = float(name) / 10 if kind == "regress" else label(split, name)
    return {"id": f"{split}-{name}", "text": f"mail {words[:8]} {words[8:16]}", "target": target}


def load(path: Path, engine: str) -> Study:
    """Load a study on one of the engines of `trial_engines`."""
    return Study.load(path, engine=f"trial_engines:{engine}")


def content(study: Study) -> dict[str, dict]:
    """All that a finished study holds, by trial id, without times and numbers of attempts."""
    return {path.parent.name: _content(path.parent) for path in sorted(study.folder.glob("trials/*/record.json"))}


def differences(found: dict[str, dict], expected: dict[str, dict]) -> list[str]:
    """Say where two contents differ, so that a failing test can be read."""
    lines = [f"{trial}: in one alone" for trial in found.keys() ^ expected.keys()]
    for trial in sorted(found.keys() & expected.keys()):
        one, other = found[trial], expected[trial]
        for name, value in one["record"].items():
            if value != other["record"][name]:
                lines.append(f"{trial}: {name}: {value} is not {other['record'][name]}")
        steps = [n for n, (a, b) in enumerate(zip(one["curve"], other["curve"], strict=False), start=1) if a != b]
        if steps or len(one["curve"]) != len(other["curve"]):
            lines.append(
                f"{trial}: curves of {len(one['curve'])} and {len(other['curve'])} steps differ at {steps[:3]}"
            )
        if one["scores"] != other["scores"]:
            lines.append(f"{trial}: scores.parquet differs")
    return lines


def _content(folder: Path) -> dict:
    record = json.loads((folder / "record.json").read_text())["record"]
    timed = list(record["measurements"]) if record["trial"]["purpose"] == "probe" else ["train_s", "evaluate_s"]
    for name in timed:
        record["measurements"].pop(name, None)
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    scores = folder / "scores.parquet"
    return {
        "record": {name: value for name, value in record.items() if name not in ("attempt", "legs_s")},
        "curve": [{name: value for name, value in step.items() if name != "seconds"} for step in curve],
        "scores": scores.read_bytes() if scores.exists() else None,
    }
