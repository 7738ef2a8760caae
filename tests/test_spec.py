"""Study files: what they mean, what is refused and in which words, and that writing and reading agree."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from tunetrial import spec
from tunetrial.core.errors import SpecError
from tunetrial.core.study import Arm, Criterion
from tunetrial.methods import settle

SHORTEST = "base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\n"
OWN = "{name: mine, data: rows.csv, kind: classify, input: '{{ text }}', target: label, margin: 0.02%s}"
TEXT = "{name: mine, data: rows.csv, kind: generate, margin: 0.02%s}"
CHAT = "{name: mine, data: rows.csv, kind: generate, messages: chats, margin: 0.02%s}"
WHOLE = """\
question: Can LoRA replace full fine-tuning for our newsletter scoring?
base_model: models/llama
tasks:
  - {name: newsletter, epochs: 5, margin: 0.3}
  - name: queues
    data: data/queues.jsonl
    test: data/queues-test.jsonl
    kind: classify
    input: "{{ subject }}\\n{{ body }}"
    target: queue
    cluster: customer
    metric: accuracy
    margin: 2e-2
arms:
  everything: {method: full}
  small: {method: lora, rank: 8, targets: [q_proj, v_proj], rslora: true}
  usual: {method: lora}
reference: everything
rule: {level: 0.9, primary: queues}
replicates: {looks: [4, 8]}
tuning: {learning_rate: [1e-4, 3e-4, 1e-3, 3e-3], seeds: 4}
limits: {peak_gib: 24, cost_usd: 2}
require: {newsletter.mae: "<=1.5", queues.macro_f1: ">= 0.6"}
criteria: {quality: {weight: 0.4}, cost_usd: {weight: 0.2, worst: 20, best: 0}}
opinions: {strategic fit: {weight: 0.1, scores: {full: 6, lora: 9}, restates: cost}}
hardware: {gpu: l4, usd_per_hour: 0.80}
epochs: 2
batch_examples: 8
weight_decay: 1e-4
precision: fp32
keep: all
seed: 7
"""


def own(extra: str = "") -> str:
    return f"base_model: embedded\ntasks:\n- {OWN % extra}\narms: [full, lora]\n"


def refusal(text: str) -> list[str]:
    with pytest.raises(SpecError) as error:
        spec.parse(text)
    return str(error.value).split("\n")


def test_the_shortest_study_gets_the_stated_defaults():
    study = spec.parse(SHORTEST)
    assert study.question == "full or lora for newsletter?"
    assert [(arm.name, arm.method) for arm in study.arms] == [("full", "full"), ("lora", "lora")]
    assert study.arm("lora").settings == settle("lora", {})
    assert (study.reference, study.rule.primary, study.rule.level) == ("full", "newsletter", 0.95)
    task = study.task("newsletter")
    assert (task.kind, task.metric, task.margin, task.data, task.epochs) == ("regress", "mae", 0.25, None, None)
    assert (study.epochs, study.batch_examples, study.weight_decay, study.looks) == (3, 16, 0.0, (5, 10))
    tuning = study.tuning
    assert (tuning.learning_rate, tuning.points, tuning.max_points, tuning.seeds) == ("auto", 5, 9, 3)
    assert (study.limits, study.require, study.criteria, study.keep, study.seed) == ({}, {}, {}, "median", 0)


def test_a_whole_study_is_read_as_written():
    study = spec.parse(WHOLE)
    newsletter, queues = study.tasks
    assert (newsletter.epochs, newsletter.margin, newsletter.metric) == (5, 0.3, "mae")
    assert (queues.data, queues.test, queues.validation) == ("data/queues.jsonl", "data/queues-test.jsonl", None)
    assert (queues.input, queues.metric, queues.margin) == ("{{ subject }}\n{{ body }}", "accuracy", 0.02)
    small = {"rank": 8, "targets": ("q_proj", "v_proj"), "rslora": True}
    assert study.arms[1] == Arm(name="small", method="lora", settings=settle("lora", small))
    assert study.tuning.learning_rate == (1e-4, 3e-4, 1e-3, 3e-3)
    assert (study.tuning.points, study.tuning.max_points) == (4, 9)
    assert study.limits == {"peak_gib": 24, "cost_usd": 2}
    assert study.require == {"newsletter.mae": "<= 1.5", "queues.macro_f1": ">= 0.6"}
    assert study.criteria["cost_usd"] == Criterion(weight=0.2, worst=20, best=0)
    assert study.opinions["strategic fit"].scores == {"full": 6, "lora": 9}
    assert (study.hardware.usd_per_hour, study.looks, study.seed, study.keep) == (0.8, (4, 8), 7, "all")


def test_the_default_reference_is_the_full_arm_or_else_the_first():
    arms = "arms: {a: {method: lora}, b: {method: full}}\n"
    assert spec.parse(SHORTEST.replace("arms: [full, lora]\n", arms)).reference == "b"
    arms = "arms: {a: {method: lora}, b: {method: lora, rank: 8}}\n"
    assert spec.parse(SHORTEST.replace("arms: [full, lora]\n", arms)).reference == "a"


def test_own_data_gets_the_metric_of_its_kind():
    assert spec.parse(own()).tasks[0].metric == "macro_f1"
    assert spec.parse(own().replace("classify", "regress")).tasks[0].metric == "mae"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("1.", 1.0), ("+0.1", 0.1), ("-0.0", 0.0), ("0", 0.0)],
)
def test_numbers_are_read_as_they_look(written, value):
    study = spec.parse(f"{SHORTEST}weight_decay: {written}\n")
    assert repr(study.weight_decay) == repr(value)


@pytest.mark.parametrize("word", "yes no on off y 010 1_000 0x1F 0o17 1:30 2024-01-01 nan inf 1e 1e5x '1' '' =".split())
def test_what_looks_like_no_number_is_none(word):
    assert refusal(f"{SHORTEST}weight_decay: {word}\n")[0].startswith("study.yaml:4: weight_decay: must be a number")


@pytest.mark.parametrize("word", "yes no on off 010 1_000 1:30 2024-01-01 nan".split())
def test_what_looks_like_text_is_text(word):
    assert spec.parse(f"{SHORTEST}question: {word}\n").question == word


GIVE_ARMS = "give the two or more arms to compare, such as [full, lora]"
KEYS = ", ".join(json.loads(json.dumps(spec.json_schema()))["properties"])
ADDED = [
    ("epochs: 0", "epochs: must be >= 1, got 0; give the passes over the training rows, such as 3"),
    ("epoch: 3", "epoch: unknown key; did you mean 'epochs'?"),
    ("<<: {epochs: 4}", f"<<: unknown key; use one of {KEYS}"),
    ("seed: true", "seed: must be a whole number, got true; give the seed of the whole study, such as 0"),
    ("epochs:", "epochs: has no value; write one, or remove the line"),
    ("epochs: ~", "epochs: has no value; write one, or remove the line"),
    ("weight_decay: .inf", "weight_decay: must be a finite number, got .inf; write a number"),
    ("weight_decay: .NaN", "weight_decay: must be a finite number, got .NaN; write a number"),
    ("weight_decay: 1e999", "weight_decay: too large a number, got '1e999'; write a smaller one"),
    ("seed: 1000000000000000000000", "seed: too large a number, got '1000000000000000000000'; write a smaller one"),
    ("question: &a What?", "question: anchors are not read, got '&a'; remove it"),
    ("question: *a", "question: aliases are not read, got '*a'; write the value itself"),
    ("epochs: !!int 3", "epochs: tags are not read, got '!!int'; remove it"),
    ('question: "a\\x07"', "question: holds a control character, got 'a\\x07'; remove it"),
    ("precision: fp8", "precision: must be 'auto' or 'bf16' or 'fp16' or 'fp32' or 'fp64', got 'fp8'; give"),
    ("rule: 0.95", "rule: must be a mapping, got 0.95; give the rule of decision, such as {level: 0.95}"),
    ("rule: {level: 95}", "rule.level: must be < 1, got 95; give the family-wise level of confidence, such as 0.95"),
    ("rule: {primary: newsleter}", "rule.primary: not a task, got 'newsleter'; did you mean 'newsletter'?"),
    ("reference: ful", "reference: not an arm, got 'ful'; did you mean 'full'?"),
    ("replicates: {looks: [10, 5]}", "replicates.looks: must grow from look to look, got [10, 5]; write them in"),
    ("replicates: {looks: [5, 5]}", "replicates.looks: must grow from look to look, got [5, 5]; write them in"),
    ("replicates: {looks: [1, 5]}", "replicates.looks[1]: must be >= 2, got 1; give the numbers of seeds after"),
    ("tuning: {learning_rate: 1e-4}", "tuning.learning_rate: must be 'auto' or a list, got 0.0001; give the word"),
    ("tuning: {learning_rate: [1e-4]}", "tuning.learning_rate: must hold at least 3 rates, got [0.0001]; with fewer"),
    ("tuning: {learning_rate: [1, 1e-4, 1]}", "tuning.learning_rate: must grow, got [1.0, 0.0001, 1.0]; write each"),
    ("tuning: {learning_rate: [.1, .2, .3], points: 5}", "tuning.points: 3 rates are listed, got points 5; remove"),
    ("tuning: {points: 7, max_points: 5}", "tuning.max_points: must be >= points (7), got 5; raise it"),
    ("tuning: {seeds: 1}", "tuning.seeds: must be >= 3, got 1; give the number of seeds at the best learning rate"),
    ("limits: {peak_gb: 3}", "limits.peak_gb: unknown key; did you mean 'peak_gib'?"),
    (
        "limits: {quality: 0.8}",
        "limits.quality: is no cost, got 0.8; write a floor instead: require: {task",
    ),
    ("limits: {cost_usd: 3}", "limits.cost_usd: needs a price, got no hardware.usd_per_hour; give the price"),
    ("require: {newsletter.mae: '>= 1'}", "require.newsletter.mae: mae is better when lower, got '>= 1.0'; write '<="),
    ("require: {newsletter.mae: 1.5}", "require.newsletter.mae: must be text, got 1.5; give the floors as task.metric"),
    ("require: {newsletter.mae: '< 1'}", "require.newsletter.mae: must be <= or >= and a number, got '< 1'; write a"),
    ("require: {tickets.mae: '<= 1'}", "require.tickets.mae: names no task of this study; write task.metric with"),
    ("require: {newsletter.mcc: '>= 1'}", "require.newsletter.mcc: mcc is a metric of classify tasks, got a regress"),
    ("require: {newsletter.range_used: '>= 1'}", "require.newsletter.range_used: range_used only describes, got a"),
    (
        "opinions: {fit: {weight: 1, scores: {lorra: 3}}}",
        "opinions.fit.scores.lorra: no arm or method of this study; did",
    ),
    (
        "opinions: {fit: {weight: 1, scores: {full: 12}}}",
        "opinions.fit.scores.full: must lie from 0 to 10, got 12; mend",
    ),
    (
        "criteria: {train_s: {weight: 1, worst: 9, best: 0, log: true}}",
        "criteria.train_s.log: a logarithm needs anchors above 0",
    ),
    (
        "criteria: {forgetting_nats: {weight: 1, worst: 1, best: 0}}",
        "criteria.forgetting_nats: needs held-out texts, got no retention; add retention",
    ),
    ("criteria: {agreement: {weight: 1}}", "criteria.agreement: needs answers that can be the same, got numbers on"),
    ("criteria: {quality: {weight: 0}}", "criteria.quality.weight: must be > 0, got 0; give the weight of the step"),
    ("criteria: {train_s: {weight: 1}}", "criteria.train_s: has no worst and best; give the values that count 0 and 1"),
    ("criteria: {train_s: {weight: 1, best: 1}}", "criteria.train_s: has best without worst; give both, in natural"),
    ("criteria: {train_s: {weight: 1, best: 2, worst: 1}}", "criteria.train_s: less is better here, got worst 1.0 and"),
    ("criteria: {quality: {weight: 1, best: 2, worst: 1}}", "criteria.quality: less is better here, got worst 1.0 and"),
    ("retention: [x]", "retention: must be a mapping, got ['x']; give the files of held-out texts that must stay"),
    ("drift: [state]", "drift[1]: must be 'states' or 'weights', got 'state'"),
    ("budget: {usd: 5}", "budget.usd: needs a price, got no hardware.usd_per_hour; give the price of the machine, or"),
]


@pytest.mark.parametrize(("line", "said"), ADDED)
def test_a_wrong_line_is_named_with_its_remedy(line, said):
    [message] = refusal(f"{SHORTEST}{line}\n")
    assert message.startswith(f"study.yaml:4: {said}")
    assert re.search(r"; .|\?$", message)


TASKS = [
    ("newsleter", "newsleter: no built-in task, got 'newsleter'; did you mean 'newsletter'?"),
    ("Tickets", "Tickets: must have 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit, got"),
    ("{name: a/b}", "[1].name: must have 1 to 64 of a-z"),
    ("{name: ../../x}", "[1].name: must have 1 to 64 of a-z"),
    (f"{{name: {'a' * 65}}}", "[1].name: must have 1 to 64 of a-z"),
    ("{name: tickets, input: x}", "tickets.input: 'tickets' is built in, with rows and prompt of its own; remove"),
    ("{name: tickets, metric: mae}", "tickets.metric: mae is a metric of regress tasks, got a classify task; use one"),
    ("{name: tickets, metric: mcc}", "tickets.margin: is missing; give the smallest difference in mcc that would"),
    ("{name: tickets, margin: 5}", "tickets.margin: macro_f1 is at most 1, so no difference could matter, got 5.0;"),
    ("{name: tickets, kind: generate}", "tickets.kind: 'tickets' is built in, with rows and prompt of its own; remove"),
    ("{name: tickets, json_schema: s.json}", "tickets.json_schema: 'tickets' is built in, with rows and prompt of its"),
    ("{name: tickets_json, metric: tests_pass, margin: 0.1}", "tickets_json.metric: tests_pass needs tests, got none;"),
    ("{name: tickets_json, metric: accuracy}", "tickets_json.metric: accuracy is a metric of classify tasks, got a"),
    (TEXT % "", "mine: has neither input and target nor messages; give the fields of prompts and completions, or of"),
    (
        TEXT % ", target: b",
        "mine.input: is missing; give the template of the prompt, such as '{{ title }}: {{ text }}'",
    ),
    (CHAT % ", target: b", "mine.target: the conversation itself says what is asked and answered, got target beside"),
    (CHAT % ", metric: f1", "mine.metric: unknown metric, got 'f1'; use one of chrf, exact_match,"),
    (CHAT % ", metric: corpus_bleu", "mine.metric: corpus_bleu only describes, got a generate task; use one of chrf,"),
    (
        CHAT % ", metric: schema_valid",
        "mine.metric: schema_valid needs json_schema, got none; give the file of the JSON",
    ),
    (
        CHAT % ", metric: tests_pass",
        "mine.metric: tests_pass needs tests, got none; give the field of Python code that",
    ),
    (
        CHAT % ", json_schema: no.json",
        "mine.json_schema: cannot be read (No such file or directory), got 'no.json'; name",
    ),
    (CHAT % """, json_schema: '{"type": 3}'""", "mine.json_schema: is no JSON Schema ("),
    (
        CHAT % """, json_schema: '{"a": }'""",
        "mine.json_schema: is not JSON (Expecting value: line 1 column 7 (char 6)), got",
    ),
    (
        CHAT % ", max_new_tokens: 0",
        "mine.max_new_tokens: must be >= 1, got 0; give the most tokens of a completion, such",
    ),
    (
        CHAT.replace(", margin: 0.02", "") % "",
        "mine.margin: is missing; give the smallest difference in chrf that would",
    ),
    (
        CHAT.replace(", margin: 0.02", "") % ", metric: nll",
        "mine.margin: is missing; give the smallest difference in nll that would change what you do (in nats a token)",
    ),
    (
        CHAT.replace("0.02", "2") % "",
        "mine.margin: chrf is at most 1, so no difference could matter, got 2.0; write two",
    ),
    (OWN % ", tests: t", "mine.tests: is for tasks that generate text, got a classify task; remove it"),
    (OWN % ", messages: m", "mine.messages: is for tasks that generate text, got a classify task; remove it"),
    (
        "{name: tickets, margin: 95% of gain}",
        "tickets.margin: needs the score of the untuned base, got '95% of gain' and",
    ),
    (
        "{name: tickets, margin: 40% of gain}",
        "tickets.margin: must be a number or a share from '50% of gain' to below 100%",
    ),
    ("{name: newsletter, margin: 95% of gain}", "newsletter.margin: the untuned base has no head to read numbers from"),
    ("{name: mine, kind: classify}", "mine.data: is missing; give the file of rows, such as data/rows.jsonl"),
    (OWN % ", test: ./rows.csv", "mine.data: the same file for two splits, got ['rows.csv', 'rows.csv']; name"),
    (OWN % ", metric: f1", "mine.metric: unknown metric, got 'f1'; use one of accuracy, macro_f1, mcc"),
    (OWN.replace("{{ text }}", "text") % "", "mine.input: names no field, so every prompt is the same, got 'text';"),
    (OWN.replace("{{ text }}", "{{ 10 ** (10 ** 10) }}") % "", "mine.input: names no field, so every prompt is the"),
    (OWN.replace("{{ text }}", "{{ text }") % "", "mine.input: no template (unexpected '}'), got '{{ text }'; write"),
    (OWN.replace("text", "label") % "", "mine.input: shows the model the target 'label', got '{{ label }}'; remove"),
    (OWN.replace("text", "row['label']").replace("'{", '"{').replace("}'", '}"') % "", "mine.input: shows the model"),
    (OWN.replace(", margin: 0.02", "") % "", "mine.margin: is missing; give the smallest difference in macro_f1 that"),
    (OWN.replace(", target: label", "") % "", "mine.target: is missing; give the field to predict, such as 'label'"),
    ("3", "[1]: must be a mapping, got 3; give the tasks, by name or described, such as [newsletter]"),
]


@pytest.mark.parametrize(("task", "said"), TASKS)
def test_a_wrong_task_is_named_with_its_remedy(task, said):
    [message] = refusal(f"base_model: embedded\narms: [full, lora]\ntasks:\n- {task}\n")
    place = "tasks" if said.startswith("[") else "tasks."
    assert message.startswith(f"study.yaml:4: {place}{said}")


ARMS = [
    ("[full]", f": must hold at least 2, got ['full']; {GIVE_ARMS}"),
    ("full", f": must be a mapping, got 'full'; {GIVE_ARMS}"),
    ("[full, full]", ": the same method twice, got 'full'; write a mapping of names to settings"),
    ("[full, peft]", ".peft.peft_type: is missing; give the type of PEFT's adapter, such as IA3"),
    ("[full, lorra]", ".lorra: unknown method, got 'lorra'; did you mean 'lora'?"),
    (
        "{a: {method: full}, b: {method: peft, peft_type: IA4}}",
        ".b.peft_type: no such type in PEFT, got 'IA4'; did you mean IA3",
    ),
    (
        "{a: {method: full}, b: {method: peft, peft_type: PROMPT_TUNING}}",
        ".b.peft_type: cannot be compared: it puts virtual tokens before each row",
    ),
    (
        "{a: {method: full}, b: {method: peft, peft_type: OFT, oft_blocksize: 32}}",
        ".b: oft_blocksize: no such setting of OFT, got 32; did you mean 'oft_block_size'?",
    ),
    ("{a: {method: full}, b: {rank: 3}}", f".b: has no method; {GIVE_ARMS}"),
    ("{a: {method: full}, b: lora}", ".b: must be a mapping"),
    ("{a: {method: full}, B: {method: lora}}", ".B: must have 1 to 64 of a-z"),
    (
        "{a: {method: full}, b: {method: lora, rank: 0}}",
        ".b.rank: must be >= 1, got 0; give the rank of the update",
    ),
    ("{a: {method: full}, b: {method: lora, rank: true}}", ".b.rank: must be a whole number, got true; "),
    ("{a: {method: full}, b: {method: lora, rank: '8'}}", ".b.rank: must be a whole number, got '8'; "),
    ("{a: {method: full}, b: {method: lora, alpha: 0}}", ".b.alpha: must be > 0, got 0; give the scale of the update"),
    ("{a: {method: full}, b: {method: lora, targets: 3}}", ".b.targets: must be 'all-linear' or a list, got 3; give"),
    ("{a: {method: full}, b: {method: lora, rslora: 2}}", ".b.rslora: must be true or false, got 2; give the choice"),
    ("{a: {method: full}, b: {method: lora, rnk: 8}}", ".b.rnk: unknown key; did you mean 'rank'?"),
    ("{a: {method: lora}, b: {method: full, rank: 8}}", ".b: rank: is of the adapter of a warm start, got 8 without"),
    ("{a: {method: lora}, b: {method: full, warm_start: 1}}", ".b.warm_start: must be < 1, got 1; give the share of"),
    ("{a: {method: lora}, b: {method: none, rank: 8}}", ".b.rank: unknown key; use one of shots, method"),
    ("{a: {method: lora}, b: {method: lora, rank: 16}}", ".b: the same method and settings as 'a'; change one or"),
]


@pytest.mark.parametrize(("arms", "said"), ARMS)
def test_a_wrong_arm_is_named_with_its_remedy(arms, said):
    [message] = refusal(f"base_model: embedded\ntasks: [newsletter]\narms: {arms}\n")
    assert message.startswith(f"study.yaml:3: arms{said}")


BROKEN = [
    ("", "study.yaml: not a study, got an empty file; begin with base_model:, tasks: and arms:"),
    ("# nothing\n", "study.yaml: not a study, got an empty file; begin"),
    ("- a\n", "study.yaml: not a study, got ['a']; begin"),
    ("epochs: 3\n\tseed: 1\n", "study.yaml:2: cannot be read as YAML, found character '\\t' that cannot start any"),
    ("question: Can LoRA: do\n", "study.yaml:1: cannot be read as YAML, mapping values are not allowed here; put"),
    ("input: {{ text }}\n", "study.yaml:1: cannot be read as YAML, a key that is not plain text; put quotes round"),
    ("a: 1\n---\nb: 2\n", "study.yaml:2: a second document begins; keep one study in a file"),
    ("a: \0\n", "study.yaml:1: not text, got character U+0000; remove it"),
    ('a: "\\U00110000"\n', "study.yaml: cannot be read as YAML, got chr() arg not in range(0x110000); write a valid"),
    ("[" * 50_000, "study.yaml:1: cannot be read as YAML, nesting of more than 8 levels; a study is flatter"),
    ("- " * 50_000, "study.yaml:1: cannot be read as YAML, nesting of more than 8 levels; a study is flatter"),
    ("a: 1\n" * 3000, "study.yaml:2: a: given twice, first at line 1; remove one"),
    ("".join(f"k{n}: 1\n" for n in range(9999)), "study.yaml:2001: cannot be read as YAML, more than 2000 entries; a"),
    ("a" * 300_000, "study.yaml: larger than 256 KiB; a study is a page of YAML, its rows belong in their own files"),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_broken_text_is_refused_soon_with_its_line(text, said):
    began = time.process_time()
    assert refusal(text)[0].startswith(said)
    assert time.process_time() - began < 5


def test_a_bomb_of_aliases_is_refused():
    levels = "".join(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    assert "anchors are not read" in refusal("x0: &a0 [lol]\n" + levels)[0]


def test_a_key_given_twice_is_named_once_with_both_lines():
    text = "base_model: embedded\narms:\n  a: {method: lora,\n    rank: 8}\n  a: {method: lora, rank: 8}\n"
    assert refusal(text) == ["study.yaml:5: arms.a: given twice, first at line 3; remove one"]


def test_tasks_of_text_have_their_defaults_and_read_back():
    said = f"base_model: embedded\ntasks:\n- {CHAT % ''}\n- tickets_json\narms: [full, lora]\n"
    study = spec.parse(said)
    chats, routing = study.tasks
    assert (chats.kind, chats.metric, chats.messages, chats.input, chats.target) == (
        "generate",
        "chrf",
        "chats",
        "",
        "",
    )
    assert (chats.max_new_tokens, routing.metric, routing.max_new_tokens) == (128, "field_accuracy", 64)
    assert spec.parse(spec.write(study)) == study
    long = TEXT % ", input: '{{ a }}', target: b, max_new_tokens: 300, metric: nll"
    study = spec.parse(f"base_model: embedded\ntasks: [{long.replace('0.02', '2')}]\narms: [full, lora]\n")
    assert (study.tasks[0].margin, study.tasks[0].max_new_tokens) == (2, 300)
    assert spec.parse(spec.write(study)) == study


def test_a_schema_is_read_into_the_study(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object",\n "required": ["b", "a"]}', encoding="utf-8-sig")
    path = tmp_path / "study.yaml"
    named = CHAT % ", metric: schema_valid, json_schema: schema.json"
    path.write_text(f"base_model: embedded\ntasks: [{named}]\narms: [full, lora]\n")
    study = spec.read(path)
    assert study.tasks[0].json_schema == '{"required":["b","a"],"type":"object"}'
    assert spec.parse(spec.write(study)) == study, "what is written needs no file"
    (tmp_path / "schema.json").write_text("{" * 70_000)
    with pytest.raises(SpecError, match="mine.json_schema: is longer than 64 KiB, got 'schema.json'; write a smaller"):
        spec.read(path)


def test_a_metric_of_a_library_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    [message] = refusal(f"base_model: embedded\ntasks: [{CHAT % ', metric: rouge_l'}]\narms: [full, lora]\n")
    assert "rouge_l needs rouge-score, got none installed; pip install 'tunetrial[eval]', or use another" in message


def test_five_faults_are_shown_in_the_order_of_the_file():
    text = "seed: -1\nepochs: 0\ntasks: [newsletter]\narms: [full, lora]\nkeep: no\nlimits: {a: 1, b: 2}\n"
    shown = refusal(text)
    places = ["", ":1", ":2", ":5", ":6"]
    assert [message.split(": ")[0] for message in shown] == [f"study.yaml{place}" for place in places + [""]]
    assert shown[0].startswith("study.yaml: base_model: is missing; give the folder of the base model")
    assert shown[-1] == "study.yaml: and 1 more; mend these first"


def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(SHORTEST + "question: Wie früh?\n", encoding="utf-8")
    plain = spec.read(path)
    path.write_text(SHORTEST.replace("\n", "\r\n") + "question: Wie früh?\n", encoding="utf-8-sig")
    assert spec.read(str(path)) == plain
    assert spec.parse("\ufeff" + SHORTEST) == spec.parse(SHORTEST)


def test_files_that_are_no_study_are_refused_by_name(tmp_path):
    def said(path: Path | str) -> str:
        with pytest.raises(SpecError) as error:
            spec.read(path)
        return str(error.value)

    path = tmp_path / "study.yaml"
    assert said(path).startswith(f"{path}: not a file, got nothing there;")
    assert said(tmp_path).startswith(f"{tmp_path}: not a file, got a folder;")
    assert said("/dev/zero").startswith("/dev/zero: not a file")
    assert said("a\0b").startswith("'a\\x00b': not a file")
    assert said("x" * 5000).endswith("name a file that you may read")
    path.write_bytes(SHORTEST.encode("utf-16"))
    assert said(path) == f"{path}:1: not UTF-8, got byte 0xff; save it as UTF-8"
    path.write_bytes(SHORTEST.encode() + "question: Wie früh?".encode("latin-1"))
    assert said(path) == f"{path}:4: not UTF-8, got byte 0xfc; save it as UTF-8"
    path.write_bytes(b"a" * 300_000)
    assert said(path).startswith(f"{path}: larger than 256 KiB;")
    path.write_text(SHORTEST + "epochs: 0\n")
    assert said(path).startswith(f"{path}:4: epochs: must be >= 1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.touch(mode=0)
    with pytest.raises(SpecError, match="Permission denied"):
        spec.read(path)
