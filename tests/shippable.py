"""Tiny studies of real weights, trained in this process within seconds: something to ship."""

import json
from pathlib import Path

from safetensors.torch import load_file

import tiny
from tunetrial import Study, models, tasks
from tunetrial.core.pins import DataPin
from tunetrial.core.study import Lock
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import Terms, carry_out

YAML = """
question: "Is <b>LoRA</b> as good?"
base_model: base
tasks:
  - {{name: mail, data: train.jsonl, validation: validation.jsonl, test: test.jsonl, id: id, {task}}}
arms:
  full: {{method: full}}
  lora: {{method: lora, rank: 4, rslora: true, alpha: 6}}
  qlora: {{method: qlora, rank: 4}}
  dora: {{method: lora, rank: 4, dora: true}}
{untuned}reference: full
replicates: {{looks: [3]}}
precision: fp32
batch_examples: 4
epochs: 4
"""
TEXT = 'kind: generate, input: "{{{{ text }}}} =>", target: target, metric: nll, margin: 0.05, max_new_tokens: 8'
LABELS = 'kind: classify, input: "{{{{ text }}}}", target: target, metric: accuracy, margin: 0.05'
UNTUNED = "  untuned: {method: none}\n"
NUMBERS = 'kind: regress, input: "{{{{ text }}}}", target: number, metric: mae, margin: 0.05'
TALKS = "kind: generate, messages: turns, metric: nll, margin: 0.05, max_new_tokens: 8"
RATES = {"full": 3e-3, "untuned": None}
ROWS = {"train": 48, "validation": 12, "test": 12}


class Silent:
    def started(self, facts):
        pass

    def stepped(self, step):
        pass


def make_study(
    folder: Path, task: str = TEXT, *, arms=("full", "lora", "qlora", "dora"), seeds: int = 3, **base
) -> Study:
    """Write a study of made-up rows on a tiny base, and train finals of each arm."""
    tiny.make_model(folder / "base", **base)
    (folder / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for split, rows in ROWS.items():
        words = [tiny.WORDS[(n * 7 + len(split)) % 6] for n in range(rows)]
        made = [
            {"id": f"{split}-{n}", "text": f"{n} {split} {word}", "target": "abc"[tiny.WORDS.index(word) % 3]}
            for n, word in enumerate(words)
        ]
        for row in made:
            row["number"] = 3.0 + "abc".index(row["target"])
            row["turns"] = [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["target"]},
            ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "study.yaml").write_text(YAML.format(task=task.format(), untuned=UNTUNED if task == TEXT else ""))
    study = Study.load(folder / "study.yaml")
    asked, base = study.asked, models.resolve("base", folder)
    data = tasks.load(asked.tasks[0], folder)
    pin = DataPin(
        digests={split: data.digest(split) for split in data.splits},
        counts={split: len(rows) for split, rows in data.splits.items()},
        labels=data.labels,
    )
    lock = Lock(
        study=asked,
        base_fingerprint=base.fingerprint,
        parameters=models.shape(base.folder).parameters,
        precision="fp32",
        data={"mail": pin},
    )
    results, session = StudyFolder(study.folder), TorchEngine(device="cpu").open(base.folder, "fp32")
    results.write_lock(lock)
    for arm in (*arms, *(["untuned"] if task == TEXT else [])):
        for seed in lock.final_seeds(seeds if arm in arms else 1):
            rate = RATES.get(arm, 1e-2)
            trial = lock.trial(arm, "mail", learning_rate=rate, seed=seed, purpose="final")
            terms = Terms(asked.tasks[0].metric, synthetic=False)
            carry_out([trial], data, session, [results.trial(trial)], terms=terms, watch=Silent())
    return study


def finals(study: Study, arm: str):
    """An arm's finals with their folders."""
    results = StudyFolder(study.folder)
    found = [r for r in results.records() if (r.trial.arm.name, r.trial.purpose) == (arm, "final")]
    return [(record, results.trial(record.trial)) for record in sorted(found, key=lambda r: r.trial.seed)]


def weights(folder: Path) -> dict:
    return load_file(next(folder.glob("*model.safetensors")))
