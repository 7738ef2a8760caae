"""The five families of tasks: rows as published become rows that their studies read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunetrial import spec, tasks

FOLDER = Path(__file__).parents[1] / "examples" / "families"
PUBLISHED = {
    "customer_service": lambda n: {
        "dialogue_id": f"d{n}",
        "context": ["Customer: hello", "Agent: yes?", f"Customer: book {n} seats"],
        "response": f"{n} seats, is that right?",
    },
    "code": lambda n: {"question_id": n, "intent": "add", "rewritten_intent": f"add {n}", "snippet": f"x + {n}"},
    "creative_writing": lambda n: {
        "title": f"tale {n}",
        "sections": ["one\ntwo", f"Then {n} swans " + "sang " * 30],
    },
    "data_to_text": lambda n: {"input": f"name : inn {n}", "output": f"There is an inn called {n}."},
    "technical_qa": lambda n: {
        "instruction": f"What does server {n} do?",
        "input": "",
        "output": f"It waits {n} s. " * 9,
    },
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_rows_become_a_study(family, tmp_path):
    rows = [PUBLISHED[family](n) for n in range(80)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    command = [sys.executable, FOLDER / "prepare.py", family, tmp_path, "--to", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    study = tmp_path / f"{family}.yaml"
    study.write_text((FOLDER / f"{family}.yaml").read_text())
    data = tasks.load(spec.read(study).tasks[0], tmp_path)
    counts = {split: len(examples) for split, examples in data.splits.items()}
    assert sum(counts.values()) == len(rows) and all(counts.values())
    texts = [{(e.prompt, e.messages) for e in examples} for examples in data.splits.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
