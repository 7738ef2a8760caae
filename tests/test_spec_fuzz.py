"""Study files under random text, random studies and random changes: reading, writing and the schema agree."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial import spec
from tunetrial.core.errors import SpecError

WORDS = [
    "1e-4",
    "yes",
    "null",
    "~",
    "010",
    "1:30",
    "- a",
    "a: b",
    "a # b",
    "{{ x }}",
    "'",
    '"',
    "*a",
    "&a",
    "!",
    ">",
    "|",
]
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), min_size=1, max_size=20)
PHRASE = (TEXT | st.sampled_from(WORDS)).filter(str.strip)
NAME = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True) | st.sampled_from(["null", "yes", "1e-4", "010", "1"])
POSITIVE = st.floats(1e-300, 1e300)
RATES = st.lists(st.floats(1e-9, 1), min_size=3, max_size=7, unique=True).map(sorted)


def optional(required: dict, **others) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(required, optional=others)


def own_task(name: str) -> st.SearchStrategy[dict]:
    required = {"name": st.just(name), "data": st.just("rows.csv"), "target": st.just("label"), "margin": POSITIVE}
    required |= {"kind": st.just("regress"), "input": PHRASE.map(lambda text: f"{{{{ text }}}} {text.strip('{}%#*~')}")}
    metric = st.sampled_from(["mae", "rmse"])
    return optional(
        required, test=st.just("test.csv"), id=PHRASE, cluster=PHRASE, metric=metric, epochs=st.integers(1, 9)
    )


@st.composite
def documents(draw) -> dict:
    """What a study file may hold, in the manner of a person who writes JSON."""
    own = draw(st.lists(NAME.filter(lambda name: name not in ("newsletter", "tickets")), max_size=2, unique=True))
    built_in = [{"name": "newsletter", "margin": draw(POSITIVE)}, "tickets"]
    tasks = draw(st.permutations([*(draw(own_task(name)) for name in own), *built_in]))
    names = [*own, "newsletter", "tickets"]
    arms = draw(st.lists(NAME, min_size=2, max_size=4, unique=True))
    settings = [{"method": "full"}, *({"method": "lora", "rank": 2**n, "rslora": n > 1} for n in range(3))]
    cost = st.fixed_dictionaries({"weight": POSITIVE, "worst": st.just(9), "best": st.floats(-5, 5)})
    tuning = optional({}, learning_rate=RATES | st.just("auto"), seeds=st.integers(3, 9), max_points=st.integers(7, 9))
    looks = st.lists(st.integers(2, 900), min_size=1, max_size=4, unique=True).map(sorted)
    parts = optional(
        {"base_model": PHRASE, "tasks": st.just(tasks), "arms": st.just(dict(zip(arms, settings, strict=False)))},
        question=PHRASE,
        reference=st.sampled_from(arms),
        rule=optional({}, level=st.floats(0.51, 0.99), primary=st.sampled_from(names)),
        replicates=optional({}, looks=looks),
        tuning=tuning,
        limits=optional({}, cost_usd=POSITIVE, train_s=POSITIVE, latency_ms=st.integers(1, 10**6)),
        require=optional({}, **{"tickets.mcc": st.floats(-1, 1).map(">={}".format)}),
        criteria=optional({}, quality=st.fixed_dictionaries({"weight": POSITIVE}), cost_usd=cost, storage_mib=cost),
        epochs=st.integers(1, 100),
        weight_decay=st.floats(0, 1),
        precision=st.sampled_from(["auto", "bf16", "fp64"]),
        keep=st.sampled_from(["median", "all"]),
        seed=st.integers(0, 2**31 - 1),
    )
    return draw(parts) | {"hardware": {"usd_per_hour": draw(st.floats(0, 1e6)), "gpu": draw(PHRASE)}}


def written(document: dict) -> str:
    return json.dumps(document, ensure_ascii=False)


def read_or_refused(text: str) -> bool:
    """Whether it is a study; if not, every line of the message must be one that a person can use."""
    try:
        study = spec.parse(text, "s.yaml")
    except SpecError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 6
        for line in lines:
            assert line.isprintable() and line.startswith("s.yaml:") and len(line) < 600, line
            assert ("; " in line or line.endswith("?")) and "Traceback" not in line, line
        return False
    assert spec.parse(spec.write(study)) == study
    return True


@settings(max_examples=40)
@given(documents())
def test_a_study_is_read_as_written_and_reads_back_equal(document):
    study = spec.parse(written(document))
    assert [task.name for task in study.tasks] == [t if isinstance(t, str) else t["name"] for t in document["tasks"]]
    assert [arm.name for arm in study.arms] == list(document["arms"])
    assert study.base_model == document["base_model"]
    assert study.limits == document.get("limits", {})
    for field in ("question", "reference", "epochs", "weight_decay", "precision", "keep", "seed"):
        assert field not in document or getattr(study, field) == document[field]
    again = spec.parse(spec.write(study))
    assert again == study and again.digest == study.digest


def test_a_study_made_by_hand_that_no_file_can_hold_is_not_written():
    study = spec.parse("base_model: embedded\ntasks: [newsletter]\narms: [full, lora]\n")
    with pytest.raises(SpecError, match="looks: must grow"):
        spec.write(study.model_copy(update={"looks": (5, 5)}))
    prompt = study.tasks[0].model_copy(update={"input": "{{ title }}"})
    with pytest.raises(SpecError, match="does not read back as it was"):
        spec.write(study.model_copy(update={"tasks": (prompt,)}))


@given(st.text(max_size=200) | st.text("abc:-[]{}&*!|>'\"%@`#,? \n\t0.e~<", max_size=60))
def test_random_text_is_refused_in_words(text):
    assert not read_or_refused(text)


LINES = spec.write(
    spec.parse(
        "base_model: embedded\ntasks: [tickets, {name: mine, data: d, kind: regress, input: '{{ a }}', target: b,"
        " margin: 0.5}]\narms: [full, lora]\nlimits: {peak_gib: 3}\nrequire: {mine.mae: '<= 2'}\n"
        "criteria: {train_s: {weight: 1, worst: 9, best: 1}}\n"
    )
).splitlines()
FRAGMENTS = [
    *WORDS,
    *(line.strip() for line in LINES),
    "",
    "0",
    "-1",
    ".inf",
    "[]",
    "{}",
    "  ",
    "---",
    "\t",
    "\ufeff",
    "<<",
]


@given(st.data())
def test_a_valid_file_with_random_damage_is_read_or_refused_in_words(data):
    text = "\n".join(LINES)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 12)))
        text = text[:begin] + data.draw(st.sampled_from(FRAGMENTS) | st.text(max_size=3)) + text[end:]
    read_or_refused(text)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2000) | st.floats(allow_nan=False, allow_infinity=False) | PHRASE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PHRASE, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_documents(draw) -> dict:
    """A document with one value anywhere replaced by any JSON value, or one key added."""
    document = json.loads(written(draw(documents())))
    here = document
    while True:
        key = draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
        inner = here[key]
        if isinstance(inner, dict | list) and inner and draw(st.booleans()):
            here = inner
            continue
        if isinstance(here, dict) and draw(st.booleans()):
            key = draw(PHRASE | st.sampled_from(["rank", "name", "epochs", "method", "retention"]))
        here[key] = draw(JSON_VALUES)
        return document


@settings(max_examples=50)
@given(changed_documents())
def test_a_changed_study_is_read_or_refused_in_words(document):
    read_or_refused(written(document))


def test_the_schema_describes_every_field_with_examples_that_are_accepted():
    schema = spec.json_schema()
    jobs = [schema, *schema["$defs"].values()]
    fields = {name: field for job in jobs for name, field in job["properties"].items() if name != "method"}
    assert {"question", "margin", "peak_gib", "looks", "learning_rate", "usd_per_hour", "rank"} <= set(fields)
    assert all(field["description"] for field in fields.values())
    assert all("additionalProperties" in job for job in jobs)
    assert "null" not in json.dumps(schema)
    for name, field in schema["properties"].items():
        for example in field["examples"]:
            needed = {"hardware": {"usd_per_hour": 1}, "retention": {"wiki": "texts.jsonl"}}
            document = {"base_model": "embedded", "tasks": ["newsletter"], "arms": ["full", "lora"], **needed}
            spec.parse(written(document | {name: example}))


def test_the_schema_accepts_whatever_is_read():
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    schema = spec.json_schema()
    validator.check_schema(schema)

    @settings(max_examples=50)
    @given(documents() | changed_documents())
    def check(document):
        accepted = validator(schema).is_valid(document)
        assert accepted or not read_or_refused(written(document))

    check()
