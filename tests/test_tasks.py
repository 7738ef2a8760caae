"""The embedded tasks: sizes, splits, labels, near-duplicates, agreement, scoring and damage."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import build_data
import check_data
from tunetrial import tasks
from tunetrial.analysis import texts
from tunetrial.core.errors import DataError, IntegrityError
from tunetrial.tasks import tickets_json

SIZES = {
    "newsletter": {"train": 81, "train_extra": 159, "validation": 100, "test": 190},
    "tickets": {"train": 320, "validation": 160, "test": 420},
    "tickets_json": {"train": 320, "validation": 160, "test": 420},
}


@pytest.mark.parametrize("name", SIZES)
def test_splits_have_their_sizes_and_share_no_sender(name):
    task, seen = tasks.find(name), {}
    assert set(task.splits) == set(SIZES[name])
    for split, size in SIZES[name].items():
        rows = tasks.read_rows(task, split)
        assert len(rows) == size
        for row in rows:
            assert seen.setdefault(row["sender"], split) == split
            assert row[task.target] and tasks.render(task, row).strip()


def test_newsletter_uses_all_ten_scores_in_train_and_test():
    task = tasks.find("newsletter")
    for split in ("train", "test"):
        scores = [row["score"] for row in tasks.read_rows(task, split)]
        assert {int(score) for score in scores} == set(range(1, 11))
        assert all(score * 2 == int(score * 2) and 1 <= score <= 10 for score in scores)


def test_tickets_labels_are_all_used_and_the_object_states_them():
    task = tasks.find("tickets")
    rows = [row for split in task.splits for row in tasks.read_rows(task, split)]
    assert {row["queue"] for row in rows} == set(task.labels)
    assert len({row["urgency"] for row in rows}) == 3 and len({row["product"] for row in rows}) == 5
    for row in rows:
        assert json.loads(row["json"]) == {key: row[key] for key in ("queue", "urgency", "product")}
        assert score(row["json"], row["json"]) == {"valid": 1, "schema_valid": 1, "field_accuracy": 1}


@pytest.mark.slow
def test_committed_data_equal_what_the_sources_give(tmp_path):
    build_data.build(tmp_path)
    made = sorted(tmp_path.rglob("*.json*"))
    assert len(made) == 9
    for path in made:
        assert path.read_bytes() == (build_data.EMBEDDED / path.relative_to(tmp_path)).read_bytes(), path


@pytest.mark.slow
def test_no_two_items_are_near_duplicates(capsys):
    faults: list[str] = []
    items = build_data.read_items("newsletter")
    check_data.report_likeness("newsletter", {i["id"]: f"{i['title']} {i['snippet']}" for i in items}, faults)
    items = build_data.read_items("tickets")
    check_data.report_likeness("tickets", {i["id"]: i["message"] for i in items}, faults)
    assert faults == []


def test_near_duplicates_would_be_found(capsys):
    faults: list[str] = []
    slots = {
        "a": "Could you tell Mr Hansen that 4 lamps came to us in Lund on 12 May but without shades",
        "b": "Could you tell Mr Okafor that 9 lamps came to us in Cork on 30 May but without shades",
        "c": "Nothing in this one is like the others at all.",
    }
    check_data.report_likeness("slots", slots, faults)
    assert any("a and b" in fault or "b and a" in fault for fault in faults)


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="ab", max_size=30))
def test_jaccard_equals_a_count_over_the_union(a, b):
    x, y = check_data.grams(a), check_data.grams(b)
    shared = sum(gram in y for gram in x)
    union = len(x) + len(y) - shared
    assert check_data.jaccard(x, y) == (shared / union if x and y else 0)


def test_prompts_fit_a_laptop(capsys):
    faults: list[str] = []
    for name in tasks.BUILT_IN:
        check_data.report_rows(name, faults)
    assert faults == []


def test_icc_gives_the_published_value():
    judges = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert round(check_data.icc_agreement(judges.astype(float)), 3) == 0.290


RIGHT = '{"queue":"billing","urgency":"high","product":"stove"}'


def score(completion: str, target: str) -> dict[str, float]:
    return {
        "valid": texts.valid_json(target, completion),
        "schema_valid": texts.fits_schema(completion, tickets_json.TICKETS_JSON.json_schema),
        "field_accuracy": texts.field_accuracy(target, completion),
    }


@pytest.mark.parametrize(
    ("completion", "valid", "schema", "fields"),
    [
        ('{"queue":"billing","urgency":"high","product":"stove"}', 1, 1, 1),
        (' {"product": "stove", "urgency": "high", "queue": "billing"} ', 1, 1, 1),
        ('{"queue":"billing","urgency":"low","product":"lamp"}', 1, 1, 1 / 3),
        ('{"queue":"billing","urgency":"urgent","product":"stove"}', 1, 0, 2 / 3),
        ('{"queue":"billing","urgency":"high"}', 1, 0, 2 / 3),
        ('{"queue":"billing","urgency":"high","product":"stove","note":""}', 1, 0, 1),
        ('Sure! {"queue":"billing","urgency":"high","product":"stove"}', 0, 0, 0),
        ('{"queue":"billing","urgency":"high","product":"stove"', 0, 0, 0),
        ('["billing","high","stove"]', 1, 0, 0),
        ("NaN", 0, 0, 0),
        ("", 0, 0, 0),
        ("[" * 100_000, 0, 0, 0),
    ],
)
def test_tickets_json_scores_by_hand(completion, valid, schema, fields):
    expected = {"valid": valid, "schema_valid": schema, "field_accuracy": pytest.approx(fields)}
    assert score(completion, RIGHT) == expected


@given(st.text())
def test_tickets_json_scores_any_text(completion):
    assert all(0 <= value <= 1 for value in score(completion, RIGHT).values())


@given(
    st.dictionaries(st.sampled_from(["queue", "urgency", "product", "note"]), st.sampled_from(["low", "lamp", 1, None]))
)
def test_the_schema_of_tickets_json_says_what_its_record_says(fields):
    """The JSON Schema that completions are held against is that of `Routing`, strictly read."""
    try:
        tickets_json.Routing.model_validate(fields, strict=True)
        fits = 1.0
    except ValidationError:
        fits = 0.0
    assert score(json.dumps(fields), RIGHT)["schema_valid"] == fits


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(DataError, match="got 'newsleter'; use one of newsletter, tickets, tickets_json"):
        tasks.find("newsleter")
    with pytest.raises(DataError, match="got 'dev'; use one of train, validation, test"):
        tasks.read_rows(tasks.find("tickets"), "dev")


def test_altered_data_are_refused(tmp_path):
    task = tasks.find("tickets")
    task = task.model_copy(update={"folder": shutil.copytree(task.folder, tmp_path / "tickets")})
    assert len(tasks.read_rows(task, "train")) == 320
    path = task.folder / "train.jsonl"
    path.write_text(path.read_text().replace('"queue": "billing"', '"queue": "repair"', 1))
    with pytest.raises(IntegrityError, match=r"train\.jsonl: expected .* SHA-256"):
        tasks.read_rows(task, "train")


def test_a_prompt_with_a_missing_field_is_an_error():
    with pytest.raises(DataError, match="newsletter: row n1: 'snippet' is undefined, got fields id, title, sender"):
        tasks.render(tasks.find("newsletter"), {"id": "n1", "title": "a", "sender": "b"})


def test_a_prompt_keeps_the_newline_that_parts_it_from_the_answer():
    task = tasks.find("tickets_json")
    row = tasks.read_rows(task, "train")[0]
    assert tasks.render(task, row) == row["message"] + "\n"


def test_splits_repeat_and_follow_the_labels_they_are_balanced_on():
    rows = build_data.shortest(build_data.label_tickets(), count=900, text="message")
    first = build_data.split_by_sender(rows, build_data.TICKETS_SPLITS, ("queue",))
    assert first == build_data.split_by_sender(rows, build_data.TICKETS_SPLITS, ("queue",))
    assert first != build_data.split_by_sender(rows, build_data.TICKETS_SPLITS, ("urgency",))
