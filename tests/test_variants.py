"""Variants of inputs: targets untouched, seeds that count, any text survives, and faults in one line."""

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial import tasks
from tunetrial.core import variants
from tunetrial.core.errors import DataError
from tunetrial.core.study import TaskSpec
from tunetrial.tasks import noise

PLAIN = TaskSpec(
    name="mail", kind="classify", metric="accuracy", margin=0.05, data="train.jsonl", test="rows.jsonl",
    input="Subject: {{ subject }}\n{{ body }}", target="queue", id="id",
)  # fmt: skip
MAIL = [
    {
        "id": f"m{number}",
        "subject": f"Invoice {number} was never delivered",
        "body": f"Please send the missing delivery again, order {number}4711. Yours truly, {name}.",
        "queue": "billing" if number % 2 else "delivery",
        "options": ["billing", "delivery", "returns"],
        "facts": {"weight": number, "colour": "red"},
        "said": "Kindly ship it once more.",
    }
    for number, name in enumerate(["Ann", "Bo", "Cy", "Dee", "Eve", "Flo"])
]


def before(row, copy):
    """A row of the training split, whose prompt stands nowhere else."""
    return json.loads(
        json.dumps(row | {"id": f"{row.get('id')}-{copy}"})
        .replace("Invoice", f"Paper {copy}")
        .replace("the ", f"the {copy} ")
    )


def vary(variant, *, rows=MAIL, spec=PLAIN, seed=1, files=None):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train = [before(row, copy) for copy in range(5) for row in rows]
        for name, lines in {"train.jsonl": train, "rows.jsonl": rows, **(files or {})}.items():
            (root / name).write_text("\n".join(map(json.dumps, lines)))
        data = tasks.load(spec, root)
        return data.splits["test"], tasks.vary(spec, data, root, "test", [variant], seed=seed)[variant.name]


ROWS = [row | {"id": f"{row['id']}-{copy}", "subject": f"{row['subject']} {copy}"} for copy in range(5) for row in MAIL]


@pytest.mark.parametrize("variant", variants.USUAL, ids=lambda variant: variant.name)
def test_noise_changes_inputs_alone_and_depends_on_the_seed(variant):
    plain, varied = vary(variant, rows=ROWS)
    _, again = vary(variant, rows=ROWS)
    _, other = vary(variant, rows=ROWS, seed=2)
    assert varied == again and varied.examples != other.examples
    assert varied.changed == sum(a.prompt != b.prompt for a, b in zip(plain, varied.examples, strict=True)) > 0
    for before, after in zip(plain, varied.examples, strict=True):
        assert (before.id, before.cluster, before.target) == (after.id, after.cluster, after.target)
        assert after.prompt.startswith("Subject: ")  # the frame is the task's
        assert [w for w in after.prompt.split() if any(c.isdigit() for c in w)] == [
            w for w in before.prompt.split() if any(c.isdigit() for c in w)
        ]
        assert "delivery" in after.prompt  # a label


TEXTS = st.text(max_size=60) | st.sampled_from(
    ["", "  ", "日本語の文章です", "नमस्ते दुनिया", "Straße ŉ ﬁne", "🙂🙂", "café"]
)


@settings(max_examples=100)
@given(TEXTS, st.integers(0, 1000), st.sampled_from([noise.misspell, noise.recase, noise.respace]))
def test_any_text_survives_and_keeps_its_letters(text, seed, change):
    changed = change(text, 0.7, frozenset({"fine"}), random.Random(seed))
    assert changed == change(text, 0.7, frozenset({"fine"}), random.Random(seed))
    assert bool(text.strip()) == bool(changed.strip())
    if change is noise.misspell:
        assert len(changed) == len(text)
    if change is noise.recase:
        assert changed.casefold() == text.casefold()
    if change is noise.respace:
        assert changed.split() == text.split()


def test_typos_come_at_their_rate_and_spare_first_letters():
    text = " ".join(["sentence", "another", "wording"] * 2000)
    wrong = [
        (a, b)
        for a, b in zip(text.split(), noise.misspell(text, 0.05, frozenset(), random.Random(0)).split(), strict=True)
        if a != b
    ]
    assert 240 < len(wrong) < 360  # 300 expected, standard deviation 17
    assert all(a[0] == b[0] and len(a) == len(b) for a, b in wrong)
    assert noise.NEAR["g"] == "fhtyvb" and noise.NEAR["p"] == "o" + "l"


def test_acronyms_stay_and_shouting_does_not():
    for seed in range(10):
        changed = noise.recase("The US and IT staff", 1.0, frozenset(), random.Random(seed))
        assert "US" in changed and "IT" in changed
    assert "the us" in {noise.recase("THE US", 1.0, frozenset(), random.Random(seed)) for seed in range(20)}


def test_a_template_asks_for_the_same_fields():
    other = variants.Template(name="asked", input="{{ body }}\n\nThat was about: {{ subject }}")
    plain, varied = vary(other)
    assert varied.changed == len(plain) and varied.examples[0].prompt.endswith(MAIL[0]["subject"])
    with pytest.raises(DataError, match="same fields as the task, body, subject, got body"):
        vary(variants.Template(name="less", input="{{ body }}"))


def test_order_moves_options_and_facts_but_never_a_target_that_names_a_place():
    spec = PLAIN.model_copy(update={"input": "{{ subject }} {{ options }} {{ facts }}"})
    plain, varied = vary(variants.Order(name="order", field="options"), spec=spec)
    assert varied.changed == len(plain)
    assert all(sorted(a.prompt) == sorted(b.prompt) for a, b in zip(plain, varied.examples, strict=True))
    _, facts = vary(variants.Order(name="facts", field="facts"), spec=spec)
    assert "{'colour': 'red', 'weight': 0}" in facts.examples[0].prompt
    _, text = vary(
        variants.Order(name="parts", field="options", separator=" | "),
        spec=spec.model_copy(update={"input": "{{ subject }} {{ options }}"}),
        rows=[row | {"options": " | ".join(row["options"])} for row in MAIL],
    )
    assert all(set(e.prompt.split(" ")[5:]) == {"billing", "|", "delivery", "returns"} for e in text.examples)
    with pytest.raises(DataError, match="may mean a place"):
        vary(
            variants.Order(name="order", field="options"),
            spec=spec,
            rows=[row | {"queue": "AB"[number % 2]} for number, row in enumerate(MAIL)],
        )


def test_paraphrases_come_from_a_column_or_a_file_and_none_may_be_missing():
    _, varied = vary(variants.Paraphrase(name="people", field="body", column="said"))
    assert varied.examples[0].prompt.endswith("Kindly ship it once more.")
    by_people = variants.Paraphrase(name="people", field="body", file="said.jsonl")
    said = [{"id": row["id"], "body": f"Wherever is {row['id']}?"} for row in MAIL]
    _, varied = vary(by_people, files={"said.jsonl": said})
    assert varied.examples[3].prompt.endswith("Wherever is m3?")
    with pytest.raises(DataError, match="lacks 1 of 6 examples, got none for 'm5'"):
        vary(by_people, files={"said.jsonl": said[:-1]})
    with pytest.raises(DataError, match="name one of them"):
        vary(variants.Paraphrase(name="people", field="body"))


def test_only_the_users_turns_of_conversations_change():
    spec = TaskSpec(
        name="talk", kind="generate", metric="exact_match", margin=0.05, data="train.jsonl", test="rows.jsonl",
        messages="messages",
    )  # fmt: skip
    talk = [{"role": "system", "content": "Answer kindly and shortly."}]
    rows = [
        {"messages": [*talk, {"role": "user", "content": f"Where does the {name} live nowadays"},
                      {"role": "assistant", "content": f"The {name} lives there."}]}
        for name in ("badger", "otter", "heron")
    ]  # fmt: skip
    plain, varied = vary(variants.Noise(name="typos", kind="typos", rate=1.0), spec=spec, rows=rows)
    for before, after in zip(plain, varied.examples, strict=True):
        was, now = json.loads(before.messages), json.loads(after.messages)
        assert was[0] == now[0] and was[2] == now[2] and was[1] != now[1]
        assert before.target == after.target and now[1]["content"].split()[3] in before.target
    with pytest.raises(DataError, match="conversations take case"):
        vary(variants.Template(name="other", input="{{ x }}"), spec=spec, rows=rows)


def test_built_in_tasks_have_variants_of_their_pinned_splits(tmp_path):
    spec = tasks.built_in("tickets")
    data = tasks.load(spec, tmp_path)
    varied = tasks.vary(spec, data, tmp_path, "test", variants.USUAL, seed=0)
    assert all(len(found.examples) == len(data.splits["test"]) for found in varied.values())
    assert varied["typos"].changed > 0.5 * len(data.splits["test"])
    with pytest.raises(DataError, match="need a name each"):
        tasks.vary(spec, data, tmp_path, "test", [variants.USUAL[0]] * 2, seed=0)


def test_folds_and_rows_with_hidden_labels_have_variants_too():
    spec = PLAIN.model_copy(update={"data": "rows.jsonl", "test": None})
    with tempfile.TemporaryDirectory() as folder:
        hidden = [{"subject": "?", "body": "?", "queue": "-1"}]
        Path(folder, "rows.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, *hidden])))
        cut = tasks.fold(tasks.load(spec, Path(folder), folds="auto"), spec, 1)["mail#1.2"]
        varied = tasks.vary(spec, cut, Path(folder), "test", variants.USUAL, seed=0)
    assert [e.id for e in varied["case"].examples] == [e.id for e in cut.splits["test"]] and varied["case"].changed


def test_a_field_that_is_no_text_is_named():
    with pytest.raises(DataError, match="variant case: 6 of 6 rows cannot be used: row 1: facts is no text"):
        vary(variants.Noise(name="case", kind="case", rate=1.0, fields=("facts",)))
