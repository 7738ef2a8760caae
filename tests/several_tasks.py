"""A tiny study of two tasks that are read as text, its finals trained in this process within seconds."""

import json
from pathlib import Path

import tiny
from shippable import Silent
from tunetrial import Study, models, tasks
from tunetrial.core.pins import DataPin
from tunetrial.core.study import Lock
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import Terms, carry_out

YAML = """
question: Does one adapter serve both?
base_model: base
tasks:
  - {{name: mail, data: mail-train.jsonl, validation: mail-validation.jsonl, test: mail-test.jsonl, id: id,
      kind: generate, input: "{{{{ text }}}} =>", target: target, metric: nll, margin: 0.05, max_new_tokens: 4}}
  - {{name: news, data: news-train.jsonl, validation: news-validation.jsonl, test: news-test.jsonl, id: id,
      kind: {kind}, input: "{{{{ text }}}} ?", target: {target}, metric: {metric}, margin: 0.05}}
arms:
  full: {{method: full}}
  lora: {{method: lora, rank: 4, rslora: true, alpha: 6}}
  qlora: {{method: qlora, rank: 4}}
  dora: {{method: lora, rank: 4, dora: true}}
  untuned: {{method: none}}
reference: full
readout: {readout}
rule: {{primary: mail}}
replicates: {{looks: [2, 4]}}
precision: fp32
batch_examples: 4
epochs: 4
"""
CLASSIFY = {"kind": "classify", "target": "target", "metric": "accuracy", "readout": "labels"}
ROWS = {"train": 48, "validation": 24, "test": 16}
RATES = {"full": 3e-3, "untuned": None}


def make_study(folder: Path, *, arms=("full", "lora", "untuned"), seeds: int = 2, **task) -> Study:
    """Write the study, and train finals of each arm on both tasks."""
    tiny.make_model(folder / "base")
    for task_name in ("mail", "news"):
        for split, count in ROWS.items():
            (folder / f"{task_name}-{split}.jsonl").write_text("".join(_rows(task_name, split, count)))
    (folder / "study.yaml").write_text(YAML.format(**(CLASSIFY | task)))
    study = Study.load(folder / "study.yaml")
    loaded = {spec.name: tasks.load(spec, folder) for spec in study.asked.tasks}
    base = models.resolve("base", folder)
    lock = Lock(
        study=study.asked,
        base_fingerprint=base.fingerprint,
        parameters=models.shape(base.folder).parameters,
        precision="fp32",
        data={name: _pin(data) for name, data in loaded.items()},
    )
    results, session = StudyFolder(study.folder), TorchEngine(device="cpu").open(base.folder, "fp32")
    results.write_lock(lock)
    for spec in study.asked.tasks:
        for arm in arms:
            for seed in lock.final_seeds(1 if arm == "untuned" else seeds):
                rate = RATES.get(arm, 1e-2 if spec.name == "mail" else 5e-3)
                trial = lock.trial(arm, spec.name, learning_rate=rate, seed=seed, purpose="final")
                terms = Terms(spec.metric, synthetic=False)
                carry_out([trial], loaded[spec.name], session, [results.trial(trial)], terms=terms, watch=Silent())
    return study


def _rows(task: str, split: str, count: int):
    """Words whose answers differ between the tasks."""
    for n in range(count):
        word = tiny.WORDS[(n * 7 + len(split)) % 6]
        number = (tiny.WORDS.index(word) + (task == "news")) % 3
        answer = ("abc" if task == "mail" else "xyz")[number]
        row = {"id": f"{split}-{n}", "text": f"{n} {split} {word}", "target": answer, "number": 1.0 * number}
        yield json.dumps(row) + "\n"


def _pin(data) -> DataPin:
    return DataPin(
        digests={split: data.digest(split) for split in data.splits},
        counts={split: len(rows) for split, rows in data.splits.items()},
        labels=data.labels,
    )
