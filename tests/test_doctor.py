"""What `doctor` says of a base and rows before any training."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tiny import make_model
from trial_study import write_study
from tunetrial import Study
from tunetrial.cli import app


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_chat(folder, base, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    path = folder / "study.yaml"
    path.write_text(
        f"base_model: {base}\narms: [full, lora]\ntasks:\n  - {{name: chat, data: rows.jsonl, kind: generate, "
        "messages: messages, metric: exact_match, margin: 0.1}\n"
    )
    return path


def found(diagnosis, task, what):
    findings = diagnosis.base if task is None else diagnosis.tasks[task]
    return next(f for f in findings if f.what == what)


def test_rows_are_shown_as_the_base_reads_them(base, tmp_path):
    rows = [talk(f"what of {n}?", f"late {n}") for n in range(60)]
    diagnosis = Study.load(write_chat(tmp_path, base, rows)).doctor()
    assert diagnosis.sound
    assert found(diagnosis, None, "chat template").state == "note"
    assert found(diagnosis, None, "end of text").found == "'<e>'"
    shown = diagnosis.rows["chat"][0]
    given, answer, rest = (shown.pieces[0], shown.pieces[1], shown.pieces[2:])
    assert given[0].startswith("user: what of") and given[0].endswith("assistant: ") and not given[1]
    assert answer[0] == f"{shown.target}<e>\n" and answer[1] and not rest


@pytest.mark.slow
def test_control_tokens_in_the_rows_are_counted(base, tmp_path):
    rows = [talk(f"what of {n}?" + "<e>" * (n % 2), f"late {n}") for n in range(60)]
    diagnosis = Study.load(write_chat(tmp_path, base, rows)).doctor()
    finding = found(diagnosis, "chat", "control tokens in the text")
    assert finding.state == "note" and "<e> in " in finding.found and finding.remedy


@pytest.mark.slow
def test_tools_that_the_template_does_not_show_are_said(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    path = write_chat(tmp_path, folder, [talk(f"{n}?", f"late {n}") for n in range(30)])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"tools": [{"name": "f"}]}) + "\n" for row in rows))
    finding = found(Study.load(path).doctor(), "chat", "tools")
    assert finding.state == "note" and finding.remedy
    assert finding.found == "in 30 training rows, unseen in 30: the chat template has no place for them"


@pytest.mark.slow
def test_too_many_long_rows_are_bad_and_end_with_status_1(base, tmp_path):
    rows = [talk(f"what of {n}? " + "late " * 40 * (n % 3 == 0), f"late {n}") for n in range(60)]
    path = write_chat(tmp_path, base, rows)
    result = CliRunner().invoke(app, ["doctor", str(path)])
    assert result.exit_code == 1 and "BAD  lengths" in result.stdout
    assert "«late" in result.stdout


def test_labels_that_are_rare_are_named(tmp_path):
    path = write_study(tmp_path, label=lambda split, name: "rare" if int(name) in (3, 4) else "ab"[int(name) % 2])
    finding = found(Study.load(path, engine="sim").doctor(), "mail", "labels")
    assert finding.state == "note" and "'rare' 2 rows" in finding.found


def test_nothing_of_the_test_split_is_shown(tmp_path):
    path = write_study(tmp_path)
    diagnosis = Study.load(path, engine="sim").doctor()
    shown = {row.row for rows in diagnosis.rows.values() for row in rows}
    assert shown and not any(name.startswith("test") for name in shown)


def test_json_is_the_diagnosis(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(write_study(tmp_path)), "--engine", "sim", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["tasks"]["mail"]


def test_a_base_and_a_file_of_rows_are_enough(base, tmp_path):
    rows = "".join(json.dumps({"text": f"parcel {n} late", "label": "ab"[n % 2]}) + "\n" for n in range(120))
    (tmp_path / "rows.jsonl").write_text(rows)
    result = CliRunner().invoke(app, ["doctor", str(base), str(tmp_path / "rows.jsonl"), "--engine", "sim"])
    assert result.exit_code == 0 and "labels: 2" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
