"""`compare MODEL DATA`: what is guessed from a file of rows, what is refused, and that nothing runs unasked."""

import json
import os
import pty
import subprocess

import pytest
import yaml

from test_cli import TUNETRIAL, tunetrial
from tunetrial import spec
from tunetrial.core.errors import DataError, SpecError
from tunetrial.spec import oneline


def rows(tmp_path, made, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


def mails(count=60):
    return [
        {
            "id": f"m{n}",
            "subject": f"Mail {n}",
            "body": f"{'yes no maybe'.split()[n % 3]} and {n}",
            "queue": "abc"[n % 3],
        }
        for n in range(count)
    ]


KINDS = {
    "labels": ([{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(40)], "classify", "{{ text }}\n", "label"),
    "label numbers": ([{"text": f"t {n}", "label": n % 3} for n in range(40)], "classify", "{{ text }}\n", "label"),
    "ratings": ([{"text": f"t {n}", "score": n % 5} for n in range(40)], "regress", "{{ text }}\n", "score"),
    "measures": ([{"text": f"t {n}", "target": n / 7} for n in range(40)], "regress", "{{ text }}\n", "target"),
    "answers": (
        [{"question": f"q {n}", "answer": f"a {n}"} for n in range(40)],
        "generate",
        "{{ question }}\n",
        "answer",
    ),
    "two": (mails(), "classify", "{{ subject }}\n{{ body }}\n", "queue"),
    "spaced": ([{"a b": f"t {n}", "label": "ab"[n % 2]} for n in range(40)], "classify", "{{ row['a b'] }}\n", "label"),
}


def test_a_file_named_as_a_built_in_task_is_a_task_of_its_own(tmp_path):
    task = oneline.guess(rows(tmp_path, mails(), name="tickets.jsonl"))
    assert spec.parse(oneline.study_file("embedded", task)).tasks[0].name == "tickets-rows"


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_is_told_by_the_values_of_the_target(tmp_path, name):
    made, kind, prompt, target = KINDS[name]
    task = oneline.guess(rows(tmp_path, made))
    assert (task.fields["kind"], task.fields["input"], task.fields["target"]) == (kind, prompt, target)
    study = spec.parse(oneline.study_file("embedded", task))
    untrained = {"generate": "untuned"}.get(kind, "tfidf")
    assert [arm.name for arm in study.arms] == ["full", "lora", untrained] and study.tasks[0].margin == task.margin
    assert any(f"{untrained}, " in remark and "is an arm too: one run" in remark for remark in task.remarks)
    assert (
        "MARGIN CHOSEN FOR YOU" in oneline.study_file("embedded", task)
        and "guessed from the columns" in task.remarks[0]
    )


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}, "conversations"),
        ({"instruction": "do", "input": "it", "output": "done"}, "instruction"),
    ],
)
def test_conversations_are_known_by_their_column(tmp_path, row, field):
    task = oneline.guess(rows(tmp_path, [row]))
    assert task.fields["kind"] == "generate" and task.fields["messages"] == field and task.margin == 0.02
    spec.parse(oneline.study_file("embedded", task))


def test_a_margin_is_what_was_said_or_chosen_by_a_stated_rule(tmp_path):
    data = rows(tmp_path, [{"text": f"t {n}", "target": float(n)} for n in range(11)])
    task = oneline.guess(data)
    assert task.margin == 0.33  # a tenth of 3.3166, the standard deviation of 0 to 10
    assert task.remarks[-1] == (
        "MARGIN CHOSEN FOR YOU: 0.33 mae, a tenth of the standard deviation of the target; write your own with --margin"
    )
    assert oneline.guess(data, margin=2.5).remarks[-1] == "margin 2.5 mae, as you said"


def test_what_is_known_of_the_task_is_taken(tmp_path):
    data = rows(tmp_path, [{"text": f"t {n}", "label": n % 3, "note": f"n {n}"} for n in range(40)])
    assert oneline.guess(data, task="regress").fields["kind"] == "regress"
    assert oneline.guess(data, task="note").fields["kind"] == "generate"
    assert oneline.guess(data, task="regress:label").fields["target"] == "label"


@pytest.mark.parametrize(
    ("made", "task", "said"),
    [
        ([{"a": "x", "b": "y"}], None, "cannot tell what to predict, got columns a, b (no column is called label,"),
        ([{"label": "x", "score": 1}], None, "cannot tell what to predict, got columns label, score (label and score"),
        ([{"label": "x", "n": 1}], None, "cannot tell the prompt, got 0 columns of text beside 'label'"),
        ([{"t": "x", "label": ["x"]}], None, "'label' holds neither labels, numbers nor texts, got ['x']; give"),
        ([{"t": "x", "label": "x"}], "sort:label", "--task: no kind and no column of"),
        ([{"t": "x", "label": "x"}], "lable", "--task: no kind and no column of"),
        ([{"t": "x", "score": 3}, {"t": "y", "score": 3}], None, "'score' never varies, so no margin is told; give"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_columns(tmp_path, made, task, said):
    with pytest.raises(DataError) as error:
        oneline.guess(rows(tmp_path, made), task=task)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "price", "found"),
    [
        ("20usd@0.80", None, (20, None, 0.8)),
        ("20 USD", "0.5", (20, None, 0.5)),
        ("20usd@2", "0.5", (20, None, 2)),
        ("1.5h", None, (None, 1.5, None)),
    ],
)
def test_budgets_are_dollars_at_a_price_or_hours(text, price, found):
    made = oneline.spend(text, price=price)
    assert (made.usd, made.gpu_hours, made.usd_per_hour) == found


@pytest.mark.parametrize("text", ["20", "usd", "20eur", "0h", "..h", "20usd", "20usd@0", "-3h", ""])
def test_other_budgets_are_refused(text):
    with pytest.raises(SpecError, match=r"^--budget: .*; write "):
        oneline.spend(text)


@pytest.mark.slow
def test_compare_writes_a_study_shows_the_plan_and_runs_when_it_may(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, mails())
    line = ("compare", "embedded", "rows.jsonl", "--budget", "2h", "--engine", "trial_engines:plain")
    asked = tunetrial(*line, home=tmp_path)
    assert asked.returncode == 2 and asked.stdout == ""
    assert asked.stderr.splitlines()[-1] == "tunetrial: no terminal to ask on; add --yes, or: tunetrial run rows.yaml"
    assert (
        "MARGIN CHOSEN FOR YOU: 0.02 accuracy" in asked.stderr and "budget: 2 h 00 min of the machine" in asked.stderr
    )
    assert "fewer than 300 rows are cut into folds" in asked.stderr and "60 rows in 5 folds × 2 repeats" in asked.stderr
    assert spec.read("rows.yaml").budget.gpu_hours == 2 and not (tmp_path / "rows-results" / "trials").exists()
    ran = tunetrial(*line, "--yes", home=tmp_path)
    assert ran.returncode == 0 and "Report: rows-results/report.html" in ran.stdout, ran.stderr
    other = tunetrial(*line, "--margin", "0.1", "--yes", home=tmp_path)
    assert other.returncode == 1 and "rows.yaml: there is another file of this name" in other.stderr


def test_compare_asks_on_a_terminal_for_margin_price_and_leave(tmp_path):
    """A pseudo-terminal: 3 dollars an hour, a margin of 0.05, and then no."""
    rows(tmp_path, mails())
    main, side = pty.openpty()
    environment = {**os.environ, "TUNETRIAL_HOME": str(tmp_path), "TERM": "dumb"}
    environment.pop("TUNETRIAL_USD_PER_HOUR", None)
    line = [*TUNETRIAL, "compare", "embedded", "rows.jsonl", "--budget", "20usd", "--engine", "sim"]
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdin=side, stdout=subprocess.PIPE, stderr=side
    ) as process:
        os.write(main, b"3\n0.05\nn\n")
        os.close(side)
        process.communicate(timeout=100)
    os.close(main)
    assert process.returncode == 0
    document = yaml.safe_load((tmp_path / "rows.yaml").read_text())
    assert document["budget"] == {"usd": 20.0} and document["hardware"] == {"usd_per_hour": 3.0}
    assert document["tasks"][0]["margin"] == 0.05 and not (tmp_path / "rows-results" / "trials").exists()
