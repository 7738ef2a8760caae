"""lm-eval's results of two models side by side; its own API on a task of ours, where it is installed."""

import json
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import make_model
from tunetrial import models
from tunetrial.analysis.forgetting import flips
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.engine.harness import answer, pair_up
from tunetrial.engine.pairs import open_pair


def sample(doc, *, filtered="none", hashed=None, **scores):
    return {"doc_id": doc, "doc_hash": hashed or f"h{doc}", "filter": filtered, "metrics": list(scores), **scores}


def test_results_are_paired_by_example_metric_and_filter():
    base = [sample(1, acc=1.0, ll=(0.1, 2)), sample(0, acc=True, ll=(0.2, 3)), sample(0, filtered="strict", acc=0)]
    tuned = [sample(0, acc=0.0, ll=(0.3, 3)), sample(1, acc=1, ll=(0.1, 2)), sample(0, filtered="strict", acc=1)]
    one, strict = pair_up("arc", "1.0", base, tuned)
    assert (one.metric, one.filtered, one.example_E) == ("acc", "none", ("0", "1"))
    assert (one.base_E.tolist(), one.tuned_E.tolist()) == ([1, 1], [0, 1])
    assert (strict.filtered, strict.base_E.tolist(), strict.tuned_E.tolist()) == ("strict", [0], [1])
    assert flips(one.base_E, one.tuned_E).lost == 1


@pytest.mark.parametrize("tuned", [[sample(0, acc=1)], [sample(0, acc=1), sample(1, hashed="other", acc=1)]])
def test_results_of_other_examples_are_refused(tuned):
    with pytest.raises(EvidenceError, match="not put the same examples"):
        pair_up("arc", "1.0", [sample(0, acc=1), sample(1, acc=1)], tuned)


TASK = """task: small_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{file}"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
metadata:
  version: 3.0
"""


@pytest.mark.filterwarnings("ignore")  # other libraries' own
def test_a_task_of_ones_own_is_put_to_both_models(tmp_path, monkeypatch):
    """Against the choice that is likeliest by hand. Where lm-eval is not installed this says so and skips."""
    pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install 'tunetrial[lm-eval]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"{w} is", "choices": ["late", "gold", "broken"], "answer": n % 3}
        for n, w in enumerate("abcdefgh")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/small.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    folder = make_model(tmp_path / "base", hidden=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapted = with_adapter(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    base, tuned = open_pair(models.resolve(str(folder)), tmp_path / "adapter", torch.float32, torch.device("cpu"))
    before = base.model.config._attn_implementation
    (found,) = answer(base, tuned, tokenizer, ["small_words"], folder=tmp_path / "tasks")
    assert (found.task, found.version, found.metric) == ("small_words", "3.0", "acc")
    assert base.model.config._attn_implementation == before
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for model, scores in ((plain, found.base_E), (adapted, found.tuned_E)):
        assert scores.tolist() == [float(by_hand(model, tokenizer, row) == row["answer"]) for row in rows]
    assert not np.array_equal(found.base_E, found.tuned_E)
    with pytest.raises(ConfigError, match="no such task, got 'nothing'"):
        answer(base, tuned, tokenizer, ["nothing"], folder=tmp_path / "tasks")


def with_adapter(folder):
    """The model with an adapter that matters."""
    torch.manual_seed(3)
    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), LoraConfig(r=4, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return made.eval()


@torch.no_grad()
def by_hand(model, tokenizer, row) -> int:
    """The choice with the largest sum of log-probabilities after the question and a blank."""
    sums = []
    for choice in row["choices"]:
        prompt, ids = (tokenizer(text).input_ids for text in (row["question"], f"{row['question']} {choice}"))
        log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(log_p[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
    return int(np.argmax(sums))


def test_without_lm_eval_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match="tunetrial.lm-eval."):
        answer(None, None, None, ["hellaswag"])
