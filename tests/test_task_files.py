"""Tasks of one's own files: what is read, what is refused by which row, how splits are drawn and kept apart."""

import codecs
import csv
import io
import json
import re
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial import tasks
from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import TaskSpec
from tunetrial.tasks import files, prompt, splits

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def spec(**changes) -> TaskSpec:
    """A classify task over the fields `text` and `label` of data.jsonl."""
    plain = dict(name="mine", kind="classify", metric="accuracy", margin=0.1, data="data.jsonl")
    return TaskSpec(**plain | dict(input="{{ text }}", target="label") | changes)


def rows_of(count: int, labels: tuple = ("no", "yes")) -> list[dict]:
    return [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(folder: Path, rows: list[dict], **changes) -> TaskData:
    write(folder, "data.jsonl", rows)
    return tasks.load(spec(**changes), folder)


def counts(data: TaskData) -> dict[str, int]:
    return {split: len(examples) for split, examples in data.splits.items()}


# Reading


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_text_files_are_read_whatever_their_marks(tmp_path, kind, mark, newline):
    rows = [{"text": 'He said "no",\nthen\u2028left', "label": "01"}, {"text": "Zoë ☃ 日本", "label": "1"}]
    if kind == "jsonl":
        text = newline.join(json.dumps(row, ensure_ascii=False) for row in rows) + newline * 2
    else:
        written = io.StringIO()
        writer = csv.DictWriter(written, ["text", "label"], lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
        text = written.getvalue()
    path = tmp_path / f"data.{kind}"
    path.write_bytes(mark + text.encode())
    read = files.read(path, "data")
    assert [row.fields for row in read] == rows
    assert [row.number for row in read] == [1, 2]


def test_rows_are_found_by_number_and_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",x\nnext,y\n')
    assert [row.where for row in files.read(tmp_path / "a.csv", "a.csv")] == ["row 1 (line 2)", "row 2 (line 4)"]
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in files.read(tmp_path / "a.jsonl", "a.jsonl")] == ["row 1", "row 2 (line 3)"]


def test_all_formats_give_the_same_examples(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row | {"sender": f"s{i % 25}"} for i, row in enumerate(rows_of(100, (0, 1, 10)))]
    write(tmp_path, "data.jsonl", rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    with open(tmp_path / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "sender"])
        writer.writeheader()
        writer.writerows(rows)
    made = [tasks.load(spec(data=f"data.{kind}", cluster="sender"), tmp_path) for kind in ("jsonl", "csv", "parquet")]
    assert made[0] == made[1] == made[2]
    assert made[0].labels == ("0", "1", "10")


@given(st.lists(st.fixed_dictionaries({"a": WORDS, "b": WORDS}), min_size=1, max_size=5))
def test_csv_and_jsonl_give_back_what_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    write(folder, "data.jsonl", rows)
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("data.jsonl", "data.csv"):
        assert [row.fields for row in files.read(folder / name, name)] == rows


@settings(max_examples=300)
@given(st.sampled_from(["jsonl", "csv", "parquet"]), st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, kind, content):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(content)
    try:
        assert files.read(path, path.name)
    except DataError as error:
        assert str(error).startswith(f"any.{kind}: ") and "got" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: has no rows, got 0 bytes"),
        ("a.jsonl", b"\n \n", "a.jsonl: has no rows, got 3 bytes"),
        ("a.csv", b"", "a.csv: has no rows, got 0 bytes"),
        ("a.csv", b"text,label\r\n", "a.csv: has no rows, got 12 bytes"),
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"a.jsonl: 1 of 2 rows cannot be used: row 2: not JSON \(Expecting value"),
        ("a.jsonl", b"[1, 2]\n", r"row 1: not a JSON object, got '\[1, 2\]'"),
        ("a.jsonl", b"[" * 100_000, "row 1: not readable JSON"),
        (
            "a.jsonl",
            '{"a": "é"}\n'.encode("latin-1"),
            r"\(perhaps another encoding\), got byte 0xe9 on line 1",
        ),
        (
            "a.csv",
            "a,b\n1,2\n".encode("utf-16"),
            r"not UTF-8 \(perhaps UTF-16\), got byte 0xff on line 1",
        ),
        (
            "a.csv",
            b"a,b\n1,2\n1\n1,2,3\n",
            r"2 of 3 rows .*: row 2 \(line 3\): needs 2 cells as the header, got 1; row 3",
        ),
        ("a.csv", b'a,b\n1,"2\n', "a.csv: line 2: not CSV, got unexpected end of data; mend its quotes"),
        ("a.csv", b"a;b\n1;2\n", "a.csv: one column, got 'a;b'; save it with commas"),
        ("a.csv", b"a,a\n1,2\n", "columns need one name each, got 'a' twice"),
        ("a.parquet", b"PAR1 no", "a.parquet: not a Parquet file"),
        ("a.json", b"[]", "a.json: unknown kind of file, got ending '.json'; use .jsonl, .csv, .parquet"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        tasks.load(spec(data=name), tmp_path)


def test_a_file_not_found_brings_the_nearest_names(tmp_path):
    with pytest.raises(DataError, match="that folder has no .jsonl, .csv, .parquet file"):
        tasks.load(spec(data="ticket.jsonl"), tmp_path)
    for name in ("tickets.jsonl", "other.csv", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=r"ticket.jsonl: no such file, got .*; that folder has tickets.jsonl$"):
        tasks.load(spec(data="ticket.jsonl"), tmp_path)
    with pytest.raises(DataError, match="make the folder .*away or mend the path"):
        tasks.load(spec(data="away/a.csv"), tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="folder.csv: cannot be read, got Is a directory"):
        tasks.load(spec(data="folder.csv"), tmp_path)


# Faults of rows


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"text": None}, "a printed field has no value in text"),
        ({"text": float("nan")}, "a printed field has no value in text"),
        ({"text": " \n"}, "prompt is empty"),
        ({"text": "half \ud83d"}, "prompt is no valid Unicode"),
        ({"label": None}, "label is empty, got None"),
        ({"label": ""}, "label is empty, got ''"),
        ({"label": "yes "}, "label has white space around it, got 'yes '"),
        ({"label": ["yes"]}, r"label is neither text nor a whole number, got \['yes'\]"),
        ({"label": 1}, "label is a number, got 1, most are text"),
        ({"label": True}, "label is true or false, got True, most are text"),
        ({"id": None}, "id is empty"),
        ({"id": "i2"}, "id 'i2' repeats row 3"),
        ({"sender": ""}, "sender is empty"),
    ],
)
def test_faulty_rows_are_named_by_number(tmp_path, change, fault):
    rows = [row | {"id": f"i{i}", "sender": f"s{i}"} for i, row in enumerate(rows_of(40))]
    rows[6] |= change
    with pytest.raises(DataError, match=rf"^data.jsonl: 1 of 40 rows cannot be used: row 7: {fault}.*; mend or remove"):
        load(tmp_path, rows, id="id", cluster="sender")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("high", "label is no number, got 'high'"),
        ("3,5", "label is no number, got '3,5'"),
        ("1_000", "label is no number, got '1_000'"),
        (True, "label is no number, got True"),
        (float("nan"), "label is not finite, got nan"),
        ("1e999", "label is not finite, got '1e999'"),
        (10**400, "label is not finite, got 1000"),
        (None, "label is empty, got None"),
    ],
)
def test_targets_that_are_no_numbers_are_named_by_row(tmp_path, value, fault):
    rows = rows_of(40, (1, 2.5, "3.5"))
    rows[6]["label"] = value
    with pytest.raises(DataError, match=rf"1 of 40 rows cannot be used: row 7: {fault}"):
        load(tmp_path, rows, kind="regress")


def test_the_first_five_faults_come_in_one_message(tmp_path):
    rows = rows_of(40)
    for i in range(3, 30, 3):
        del rows[i]["label" if i % 2 else "text"]
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows)
    message = str(caught.value)
    assert message.startswith("data.jsonl: 9 of 40 rows cannot be used: row 4: label is missing; row 7: 'text' is")
    assert message.count("row ") == 5 and message.endswith("; and 4 more; mend or remove them") and "\n" not in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "lable"}, "target: no row has this field, got 'lable'; did you mean 'label'?"),
        ({"id": "number"}, "id: no row has this field, got 'number'; use one of label, text"),
        ({"cluster": "txet"}, "cluster: no row has this field, got 'txet'; did you mean 'text'?"),
        ({"input": "{{ txt }}"}, "input: no row has this field, got 'txt'; did you mean 'text'?"),
    ],
)
def test_a_field_that_is_nowhere_is_one_fault_of_the_study(tmp_path, changes, message):
    with pytest.raises(DataError, match=f"^data.jsonl: {message.replace('?', '[?]')}$"):
        load(tmp_path, rows_of(9), **changes)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ text", "mine: input: no Jinja template"),
        ("{{ text | shout }}", "mine: input: no Jinja template .*shout"),
        ("{{ text.__class__.__mro__ }}", "SecurityError"),
        ("{{ text + 1 }}", "TypeError"),
        ("{% for i in range(10**9) %}{{ text }}{% endfor %}", "OverflowError"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(tmp_path, template, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows_of(9), input=template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a' | center(10 ** 11) }}",
        "{{ text * 10 ** 10 }}",
        "{{ text }}{{ 2 ** bend ** 2 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set grown = namespace(s=text) %}{% for i in range(60) %}{% set grown.s = grown.s ~ grown.s %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_or_takes_all_memory_is_refused_by_row_within_seconds(tmp_path, template):
    rows = [row | {"bend": 1 if number < 2 else 10**9} for number, row in enumerate(rows_of(9))]
    began_s = time.monotonic()
    said = rf"^data.jsonl: row {3 if 'bend' in template else 1}: input takes more than 2 s and 1 GiB to render; "
    with pytest.raises(DataError, match=said):
        load(tmp_path, rows, input=template)
    assert time.monotonic() - began_s < 20


def test_a_template_with_loops_is_filled_as_any_other(tmp_path):
    template = "{% for word in text.split() %}{{ word }}\n{% endfor %}{{ row['text'] * 2 }}\U0001f600 {{ missing }}"
    with prompt.filling(template) as fill:
        for fields in ({"text": "a b", "missing": "é"}, {"text": "\u2028", "missing": datetime(2026, 1, 2)}):
            assert fill(fields) == prompt.fill(template, fields)
        with pytest.raises(DataError, match="a printed field has no value in missing"):
            fill({"text": "a", "missing": None})
        assert fill({"text": "a", "missing": 1}) == "a\naa\U0001f600 1"


def test_prompts_may_say_that_a_value_is_optional_and_use_any_name():
    assert prompt.fill('{{ a }}{{ b or "" }}{% if c is defined %}{{ c }}{% endif %}', {"a": 1, "b": None}) == "1"
    assert prompt.fill('{{ row["Ticket text"] }}\n', {"Ticket text": "<b> & 'so'"}) == "<b> & 'so'\n"
    assert prompt.fill("{{ row }}", {"row": "mine"}) == "mine"
    with pytest.raises(DataError, match="a printed field has no value in Ticket text"):
        prompt.fill('{{ row["Ticket text"] }}', {"Ticket text": None})


# Labels


def test_labels_become_text_in_natural_order(tmp_path):
    assert load(tmp_path, rows_of(60, (10, 2, 0.0, 1))).labels == ("0", "1", "2", "10")
    assert load(tmp_path, rows_of(60, ("c10", "c2", "C1", "7"))).labels == ("7", "C1", "c2", "c10")
    data = load(tmp_path, rows_of(60, (True, False)))
    assert data.labels == ("false", "true") and isinstance(data.splits["test"][0].target, str)
    remarks = load(tmp_path, rows_of(60, ("Yes", "yes", "no"))).remarks
    assert "labels: 'Yes' and 'yes' differ in case only" in remarks


def test_hidden_labels_are_dropped_and_counted(tmp_path):
    write(tmp_path, "test.jsonl", [{"text": f"t{i}", "label": (-1, 0, 1)[i % 3]} for i in range(30)])
    data = load(tmp_path, rows_of(40, (0, 1)), test="test.jsonl")
    assert counts(data)["test"] == 20 and data.labels == ("0", "1")
    assert "test: 10 of 30 rows with the hidden label -1 were dropped" in data.remarks
    write(tmp_path, "test.jsonl", [{"text": f"t{i}", "label": "-1"} for i in range(30)])
    with pytest.raises(DataError, match="test.jsonl: test has no rows left, got 0"):
        load(tmp_path, rows_of(40, (0, 1)), test="test.jsonl")


def test_a_class_called_minus_one_is_not_taken_for_hidden(tmp_path):
    with pytest.raises(DataError, match="label -1 means hidden, got 10 of 30 rows; remove these rows, or name it"):
        load(tmp_path, rows_of(30, (-1, 0, 1)))
    assert load(tmp_path, rows_of(30, (-1, 0, 1)), kind="regress").splits["train"][0].target in (-1.0, 0.0, 1.0)


def test_labels_unknown_to_train_are_named_by_row(tmp_path):
    write(tmp_path, "test.jsonl", [{"text": f"t{i}", "label": ("no", "yes", "mabye")[i % 3]} for i in range(12)])
    with pytest.raises(
        DataError, match="^test.jsonl: 4 of 12 .*: row 3: test has label 'mabye', train has none; row 6"
    ):
        load(tmp_path, rows_of(40), test="test.jsonl")


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (
            rows_of(30, ("no",)),
            "classify",
            "^data.jsonl: train needs 2 or more classes, got only 'no' in 19 rows",
        ),
        (rows_of(30, (2.0,)), "regress", "train needs 2 or more different targets, got only 2.0 in"),
        (rows_of(2), "classify", "validation has no rows left, got 0; add rows, or name a validation file"),
    ],
)
def test_too_little_to_learn_or_judge_is_refused(tmp_path, rows, kind, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows, kind=kind)


# Splits


def test_splits_are_drawn_in_fifths_and_by_label(tmp_path):
    data = load(tmp_path, rows_of(500, ("a", "a", "a", "a", "b")))
    assert counts(data) == {"train": 320, "validation": 80, "test": 100}
    assert Counter(e.target for e in data.splits["test"]) == {"a": 80, "b": 20}
    assert data.remarks == (
        "test: drawn from train, 100 of 500 rows",
        "validation: drawn from train, 80 of 400 rows",
    )


def test_the_order_of_rows_and_other_fields_do_not_move_a_row(tmp_path):
    rows = rows_of(200)
    first = load(tmp_path, rows)
    again = load(tmp_path, [row | {"note": i} for i, row in enumerate(reversed(rows))])
    for split in first.splits:
        assert {e.prompt for e in first.splits[split]} == {e.prompt for e in again.splits[split]}
    assert [e.prompt for e in first.splits["train"]] == [e.prompt for e in again.splits["train"]][::-1]


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12), st.sampled_from([0.1, 0.2, 0.5]))
def test_drawing_parts_whole_groups_and_never_more_than_half_a_group_too_many(seed, count, groups, share):
    made = [Example(str(i), f"g{(i * 7 + seed) % groups}", f"p{i}", "ab"[(i + seed) % 3 == 0]) for i in range(count)]
    rest, part = splits.draw(made, share, group=lambda e: e.cluster)
    assert sorted((*rest, *part), key=lambda e: int(e.id)) == made
    assert not {e.cluster for e in rest} & {e.cluster for e in part}
    largest = max(Counter(e.cluster for e in made).values())
    assert len(part) <= share * count + largest / 2
    assert splits.draw(made[::-1], share, group=lambda e: e.cluster) == (rest[::-1], part[::-1])


def test_a_rare_label_is_never_drawn_whole_and_few_clusters_still_give_every_split(tmp_path):
    rare = [{"text": f"rare {i}", "label": f"r{i // 2}"} for i in range(10)] + [{"text": "lone", "label": "lone"}]
    data = load(tmp_path, [*rows_of(80), *rare])
    assert {e.target for e in data.splits["train"]} == set(data.labels) and len(data.labels) == 8
    mixed = [row | {"who": f"w{i // 10}"} for i, row in enumerate(rows_of(80))]
    assert counts(load(tmp_path, mixed, cluster="who")) == {"train": 50, "validation": 10, "test": 20}
    pure = [row | {"who": f"w{i % 8}"} for i, row in enumerate(rows_of(80))]
    with pytest.raises(DataError, match="validation needs 2 or more classes, got only .* or name a validation file"):
        load(tmp_path, pure, cluster="who")


def test_clusters_stay_whole_and_one_giant_does_not_empty_the_test_split(tmp_path):
    rows = [row | {"sender": "giant" if i < 100 else f"s{i // 4}"} for i, row in enumerate(rows_of(200))]
    data = load(tmp_path, rows, cluster="sender")
    senders = [{e.cluster for e in examples} for examples in data.splits.values()]
    assert len(set.union(*senders)) == sum(map(len, senders)) and "giant" in senders[0]
    assert 36 <= counts(data)["test"] <= 44
    assert data.remarks[0].endswith("rows, whole sender groups")


def test_a_missing_validation_split_comes_from_train_and_never_from_test(tmp_path):
    write(tmp_path, "test.jsonl", [{"text": f"t{i}", "label": ("no", "yes")[i % 2]} for i in range(50)])
    data = load(tmp_path, rows_of(100), test="test.jsonl")
    assert counts(data) == {"train": 80, "validation": 20, "test": 50}
    assert all(e.prompt.startswith("text") for e in data.splits["validation"])
    write(tmp_path, "dev.jsonl", [{"text": f"d{i}", "label": ("no", "yes")[i % 2]} for i in range(10)])
    assert counts(load(tmp_path, rows_of(100), validation="dev.jsonl")) == {"train": 80, "validation": 10, "test": 20}


def test_a_cluster_in_two_files_is_said(tmp_path):
    write(tmp_path, "test.jsonl", [{"text": f"t{i}", "label": i % 2, "who": f"w{i % 5}"} for i in range(20)])
    rows = [row | {"who": f"w{i}"} for i, row in enumerate(rows_of(100, (0, 1)))]
    remarks = load(tmp_path, rows, test="test.jsonl", cluster="who").remarks
    assert re.fullmatch(r"test: [1-5] of 5 who groups stand in train too, for example 'w[0-4]'", remarks[-1])


# Duplicates


def test_repeats_within_a_split_keep_the_first_and_conflicts_are_said(tmp_path):
    rows = rows_of(100)
    rows += [
        {"text": " text  7 ", "label": "yes"},
        {"text": "text 7", "label": "no"},
        {"text": "TEXT 7", "label": "no"},
    ]
    data = load(tmp_path, rows)
    assert sum(counts(data).values()) == 101
    assert (
        "train: 2 of 103 rows repeat an earlier prompt and were dropped, 1 of them with another target" in data.remarks
    )
    assert splits.normal("e\u0301 a\n\tb") == "\u00e9 a b"


def test_rows_shared_between_splits_leave_train_then_validation_and_never_test(tmp_path):
    test = [{"text": f"t{i}", "label": ("no", "yes")[i % 2]} for i in range(20)]
    validation = [{"text": f"v{i}", "label": ("no", "yes")[i % 2]} for i in range(20)]
    write(tmp_path, "test.jsonl", test)
    write(tmp_path, "dev.jsonl", [*validation, test[3]])
    rows = [*rows_of(40), test[3], test[4] | {"label": "yes"}, validation[5]]
    data = load(tmp_path, rows, validation="dev.jsonl", test="test.jsonl")
    assert counts(data) == {"train": 40, "validation": 20, "test": 20}
    assert data.remarks == (
        "validation: 1 of 21 rows have a prompt that stands in test and were dropped",
        "train: 2 of 43 rows have a prompt that stands in test and were dropped, 1 of them with another target",
        "train: 1 of 41 rows have a prompt that stands in validation and were dropped",
    )


def test_one_file_named_twice_is_found_out(tmp_path):
    with pytest.raises(DataError, match="data.jsonl: train has no rows left, got 0"):
        load(tmp_path, rows_of(40), test="data.jsonl")


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xy")), max_size=20),
    st.sets(st.sampled_from("abcdef")),
)
def test_every_dropped_row_is_counted(drawn, shared):
    made = [Example(str(i), str(i), text, label) for i, (text, label) in enumerate(drawn)]
    kept, dropped, conflicts = splits.drop_repeats(made)
    assert [e.prompt for e in kept] == list(dict.fromkeys(e.prompt for e in made)) and len(kept) + dropped == len(made)
    assert conflicts == sum(e.target != next(f.target for f in made if f.prompt == e.prompt) for e in made)
    others = [Example("o", "o", text, "x") for text in shared]
    kept, dropped, conflicts = splits.drop_shared(made, others)
    assert {e.prompt for e in kept}.isdisjoint(shared) and len(kept) + dropped == len(made)
    assert conflicts == sum(e.prompt in shared and e.target != "x" for e in made)


# Built-in and outside data


def test_built_in_tasks_load_as_pinned():
    data = tasks.load(tasks.built_in("newsletter"), Path("/nowhere"))
    assert counts(data) == {"train": 81, "validation": 100, "test": 190} and data.remarks == () and data.labels == ()
    first = tasks.read_rows(tasks.find("newsletter"), "test")[0]
    example = data.splits["test"][0]
    assert (example.id, example.cluster, example.target) == (first["id"], first["sender"], first["score"])
    data = tasks.load(tasks.built_in("tickets"), Path("/nowhere"))
    assert counts(data) == {"train": 320, "validation": 160, "test": 420} and data.remarks == ()
    assert data.labels == ("account", "advice", "billing", "delivery", "repair", "returns")


def test_a_built_in_task_of_text_has_its_schema_and_targets():
    task = tasks.built_in("tickets_json")
    data = tasks.load(task, Path("/nowhere"))
    assert (data.kind, data.labels, data.remarks, task.max_new_tokens) == ("generate", (), (), 64)
    assert json.loads(task.json_schema)["required"] == list(json.loads(data.splits["train"][0].target))


def test_unknown_built_in_tasks_are_refused():
    with pytest.raises(DataError, match="no such built-in task, got 'newsleter'; use newsletter, or name your data"):
        tasks.built_in("newsleter")
    with pytest.raises(DataError, match="newsletter: without data it is built in"):
        tasks.load(tasks.built_in("newsletter").model_copy(update={"test": "a.csv"}), Path())


PAIR = "{{ text_a }}\n{{ text_b }}"


@pytest.mark.parametrize(
    ("name", "kind", "template", "cluster", "sizes", "labels", "remark"),
    [
        ("glue_mrpc", "classify", PAIR, None, (3668, 408, 1725), 2, None),
        ("trec6", "classify", "{{ text }}", None, (4299, 1072, 500), 6, "train: 71 of 5452 rows repeat an earlier"),
        ("banking77", "classify", "{{ text }}", None, (7992, 2000, 3079), 77, "test: 1 of 3080 rows repeat"),
        (
            "glue_stsb",
            "regress",
            PAIR,
            None,
            (5693, 1496, 1378),
            0,
            "train: 7 of 5706 rows have a prompt",
        ),
        ("humicroedit_headlines", "regress", PAIR, "text_a", (7765, 949, 938), 0, None),
    ],
)
def test_outside_data_load_with_the_known_quirks(outside_data, name, kind, template, cluster, sizes, labels, remark):
    named = {split: f"{name}/{split}.jsonl" for split in ("validation", "test")}
    named = {split: path for split, path in named.items() if (outside_data / path).exists()}
    task = spec(name=name, kind=kind, data=f"{name}/train.jsonl", input=template, cluster=cluster, **named)
    data = tasks.load(task, outside_data)
    assert tuple(counts(data).values()) == sizes and len(data.labels) == labels
    assert remark is None or any(r.startswith(remark) for r in data.remarks), data.remarks


def test_outside_sst2_loses_its_hidden_test_labels(outside_data):
    data = tasks.load(spec(data="glue_sst2/validation.jsonl", test="glue_sst2/test.jsonl"), outside_data)
    assert counts(data) == {"train": 698, "validation": 174, "test": 1747}
    assert data.remarks[0] == "test: 74 of 1821 rows with the hidden label -1 were dropped"
