"""Rows of text: prompts with completions, and conversations in every layout, with their faults by row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial import tasks
from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData, example_row
from tunetrial.core.study import TaskSpec
from tunetrial.tasks import conversations, splits

USER = {"role": "user", "content": "Is my lamp ready?"}
ANSWER = {"role": "assistant", "content": "It is."}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"order": 7}}}
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(min_size=1, max_size=6)), max_size=6)


def spec(**changes) -> TaskSpec:
    plain = dict(name="mine", kind="generate", metric="chrf", margin=0.1, data="data.jsonl")
    return TaskSpec(**plain | changes)


def load(folder, rows: list[dict], **changes) -> TaskData:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.load(spec(**changes), folder)


def chat(number: int, *turns: dict) -> dict:
    asked = {"role": "user", "content": f"question {number}"}
    return {"messages": [asked, *(turns or [{"role": "assistant", "content": f"answer {number}"}])]}


def everything(data: TaskData) -> list[Example]:
    return [example for part in data.splits.values() for example in part]


# Layouts


def read(fields: dict, name: str = "messages") -> list[dict]:
    return json.loads(conversations.read(fields, name).json)


def test_openai_messages_stay_as_they_are():
    system, tool = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "{}", "tool_call_id": "c1"}
    called = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]}
    turns = [system, USER, called, tool, ANSWER, {"role": "user", "content": "Thanks"}, ANSWER]
    assert read({"messages": turns}) == turns
    assert read({"messages": json.dumps(turns)}) == turns, "a cell of a CSV file holds JSON"


def test_calls_of_tools_have_arguments_as_objects():
    function = {"name": "find", "arguments": '{"order": 7}'}
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    turns = read({"messages": [USER, called, {"role": "tool", "content": "{}"}, ANSWER]})
    assert turns[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_sharegpt_is_written_as_messages():
    said = [
        ("human", "Is my lamp ready?"),
        ("function_call", '{"name": "find", "arguments": {"order": 7}}'),
        ("observation", "{}"),
        ("gpt", "It is."),
    ]
    row = {"conversations": [{"from": who, "value": what} for who, what in said], "system": "Be brief."}
    assert read(row, "conversations") == [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "{}"},
        ANSWER,
    ]


def test_alpaca_is_written_as_messages():
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    answer = {"role": "assistant", "content": "Good day"}
    assert read(row, "instruction") == [{"role": "user", "content": "Translate.\n\nGuten Tag"}, answer]
    assert read(row | {"input": ""}, "instruction") == [{"role": "user", "content": "Translate."}, answer]
    with_system = read(row | {"system": "Be brief.", "input": None}, "instruction")
    assert [turn["role"] for turn in with_system] == ["system", "user", "assistant"]


@given(TURNS)
def test_any_turns_are_read_up_to_the_last_answer_or_refused(turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    sharegpt = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": content} for role, content in turns]
    try:
        found = conversations.read({"c": messages}, "c")
    except DataError as error:
        with pytest.raises(DataError, match=f"^{str(error)[:10]}"):
            conversations.read({"c": sharegpt}, "c")
        return
    assert found == conversations.read({"c": sharegpt}, "c")
    kept = json.loads(found.json)
    assert kept == messages[: len(kept)] and found.answer == kept[-1]["content"]
    assert kept[-1]["role"] == "assistant" and len(kept) + found.unanswered == len(messages)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], r"messages is an empty conversation, got \[\]"),
        (None, "messages is no list of turns, got None"),
        (7, "messages is no list of turns, got 7"),
        ("hello", "messages is text, so an Alpaca instruction, but output is missing"),
        ("[1", r"messages is not JSON, got '\[1'"),
        ([USER], "messages has no assistant turn, got user"),
        ([ANSWER], "messages has no user turn before its answer, turn 1"),
        ([USER, {"role": "bot", "content": "x"}], "messages: turn 2: unknown role, got 'bot'; use system, user,"),
        ([USER, {"role": ["a"], "content": "x"}], r"turn 2: unknown role, got \['a'\]"),
        ([USER, {"content": "x"}], "messages: turn 2: role is missing"),
        ([USER, {"role": "assistant"}], "messages: turn 2: content is no text, got None"),
        ([USER, {"role": "assistant", "content": None}], "messages: turn 2: content is no text, got None"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "turn 2: content is no text, got"),
        ([USER, {"role": "assistant", "content": " "}], "its last assistant turn 2 says nothing"),
        ([USER, {"role": "assistant", "content": "half \ud83d"}], "turn 2: content is no valid Unicode"),
        ([USER, "hello"], "turn 2 has neither role and content nor from and value, got 'hello'"),
        ([{"from": "user"}, ANSWER], "turn 1 has neither role and content nor from and value"),
        ([{"from": "alien", "value": "x"}, ANSWER], "turn 1: unknown speaker, got 'alien'"),
        ([{"from": "human", "value": 3}, ANSWER], "turn 1: value is no text, got 3"),
        ([USER, {"from": "function_call", "value": "find()"}, ANSWER], "turn 2: value is not JSON, got 'find"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], "last assistant turn 2 says nothing"),
        ([USER, ANSWER | {"tool_calls": [{"name": 3}]}], "turn 2: a call of a tool needs name and arguments"),
        ([USER | {"tool_calls": [CALL]}, ANSWER], "turn 1: tool_calls are an assistant's, got role 'user'"),
        ([USER, ANSWER | {"tool_calls": "x"}], "turn 2: tool_calls are no list, got 'x'"),
    ],
)
def test_faulty_conversations_are_named_by_row(tmp_path, value, fault):
    rows = [chat(number) for number in range(20)]
    rows[6] = {"messages": value}
    with pytest.raises(DataError, match=rf"^data.jsonl: 1 of 20 rows cannot be used: row 7: .*{fault}"):
        load(tmp_path, rows, messages="messages")


def test_a_field_of_conversations_that_is_nowhere_brings_the_nearest(tmp_path):
    with pytest.raises(DataError, match="messages: no row has this field, got 'message'; did you mean 'messages'"):
        load(tmp_path, [chat(1), chat(2)], messages="message")


# What is said of rows


def test_turns_after_the_answer_and_unused_keys_are_counted(tmp_path):
    rows = [chat(number) for number in range(40)]
    rows[3]["messages"].append({"role": "user", "content": "Thanks"})
    rows[4]["messages"][1]["weight"] = 0
    data = load(tmp_path, rows, messages="messages")
    assert data.remarks[:2] == (
        "train: 1 of 40 conversations go on after the last answer, which was left out",
        "train: 1 of 40 conversations have 'weight', which is not shown to the model",
    )
    assert all(json.loads(e.messages)[-1] == {"role": "assistant", "content": e.target} for e in everything(data))
    assert all(e.prompt == "" for e in everything(data))


FIND = {"name": "find", "description": "Where is an order?", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    "tools",
    [[FIND], [{"type": "function", "function": FIND}], json.dumps([FIND]), json.dumps([{"function": FIND}])],
)
def test_tools_are_written_as_openai_has_them_in_the_order_of_the_row(tools):
    found = conversations.read(chat(1) | {"tools": tools}, "messages").tools
    assert json.loads(found) == [{"type": "function", "function": FIND}]
    assert list(json.loads(found)[0]["function"]) == ["name", "description", "parameters"]


@pytest.mark.parametrize("none", [None, "", " ", "[]", []])
def test_no_tools_are_no_tools(none):
    assert conversations.read(chat(1) | {"tools": none}, "messages").tools is None


@pytest.mark.parametrize(
    ("tools", "fault"),
    [
        ("{", "tools is not JSON, got '{'"),
        ("{}", "tools is no list of functions, got {}"),
        (7, "tools is no list of functions, got 7"),
        ([FIND, {"description": "?"}], "tools: function 2 has no name, got"),
        ([{"function": "find"}], "tools: function 1 has no name, got"),
        ([FIND | {"parameters": float("inf")}], "tools: a function has a number that is not finite"),
        ([FIND | {"description": "\ud800"}], "tools is no valid Unicode, got"),
    ],
)
def test_faulty_tools_are_named(tools, fault):
    with pytest.raises(DataError, match=fault):
        conversations.read(chat(1) | {"tools": tools}, "messages")


def test_tools_are_part_of_the_digest(tmp_path):
    rows = [chat(number) for number in range(40)]
    plain = load(tmp_path, rows, messages="messages")
    with_tools = load(tmp_path, [row | {"tools": [FIND]} for row in rows], messages="messages")
    assert plain.digest("train") != with_tools.digest("train")
    shown = everything(with_tools)[0]
    assert Example(*example_row(shown)) == shown and shown.tools
    assert len(example_row(everything(plain)[0])) == 5


@pytest.mark.parametrize("mark", ["</s>", "<|im_start|>", "<|eot_id|>", "[INST]", "<start_of_turn>", "<｜User｜>"])
def test_control_tokens_in_rows_are_counted_and_kept(tmp_path, mark):
    rows = [chat(number) for number in range(40)]
    rows[3]["messages"][0]["content"] += mark
    [remark] = [r for r in load(tmp_path, rows, messages="messages").remarks if "control" in r]
    assert remark == (
        f"train: 1 of 40 rows hold text that tokenizers may take for control tokens, such as {mark!r} in row 4"
    )


def test_what_looks_like_markup_is_no_control_token(tmp_path):
    rows = [{"text": f"<b>{n}</b> a < b | c > d [INSTANCE] <{n}|>", "label": f"l{n % 2}"} for n in range(40)]
    data = load(tmp_path, rows, kind="classify", metric="accuracy", input="{{ text }}", target="label")
    assert not [r for r in data.remarks if "control" in r]


# Splits


def test_conversations_repeat_when_all_before_the_answer_does(tmp_path):
    rows = [chat(number) for number in range(40)]
    rows += [chat(0), chat(1, {"role": "assistant", "content": "another answer"})]
    data = load(tmp_path, rows, messages="messages")
    assert "train: 1 of 42 rows repeat an earlier prompt and its target and were dropped" in data.remarks
    of_one = [
        (split, e)
        for split, part in data.splits.items()
        for e in part
        if "question 1" in json.loads(e.messages)[0]["content"].split(",")
    ]
    assert len({split for split, _ in of_one}) == 1 and len({e.cluster for _, e in of_one}) == 1
    keys = [{splits.asked(e) for e in part} for part in data.splits.values()]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])


def test_several_targets_of_a_prompt_stay_together_as_one_cluster(tmp_path):
    rows = [{"input": f"name {n // 3}", "output": f"text {n}"} for n in range(120)]
    data = load(tmp_path, rows, input="{{ input }}", target="output")
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 78, "validation": 18, "test": 24}
    assert {split: len({e.cluster for e in part}) for split, part in data.splits.items()} == {
        "train": 26,
        "validation": 6,
        "test": 8,
    }
    assert data.labels == ()


def test_targets_of_text_stay_as_they_are(tmp_path):
    rows = [{"q": f"q {n}", "a": f" answer {n}\n" if n else 18} for n in range(20)]
    targets = {e.target for e in everything(load(tmp_path, rows, input="{{ q }}", target="a"))}
    assert targets == {"18"} | {f" answer {n}\n" for n in range(1, 20)}
    rows[4]["a"] = None
    with pytest.raises(DataError, match="row 5: a is empty, got None"):
        load(tmp_path, rows, input="{{ q }}", target="a")


def test_targets_that_the_metric_cannot_read_are_named_before_training(tmp_path):
    rows = [{"q": f"q {n}", "a": f"#### {n}"} for n in range(20)]
    rows[4]["a"] = "four"
    with pytest.raises(DataError, match="row 5: a: no number in the target for numeric_match, got 'four'"):
        load(tmp_path, rows, input="{{ q }}", target="a", metric="numeric_match")


def test_tests_come_with_their_rows(tmp_path):
    rows = [{"q": f"q {n}", "a": f"x = {n}", "t": [f"assert x == {n}", "assert x >= 0"]} for n in range(20)]
    data = load(tmp_path, rows, input="{{ q }}", target="a", tests="t", metric="tests_pass")
    example = next(e for e in everything(data) if e.id == "4")
    assert example.tests == "assert x == 3\nassert x >= 0"
    assert Example(*example_row(example)) == example and len(example_row(example)) == 6
    rows[4]["t"] = []
    with pytest.raises(DataError, match=r"row 5: t is no code, got \[\]"):
        load(tmp_path, rows, input="{{ q }}", target="a", tests="t", metric="tests_pass")


def test_digests_hold_conversations_and_tests(tmp_path):
    plain = Example("1", "1", "p", "t")
    data = [
        TaskData("x", "generate", (), {"test": (e,)})
        for e in (
            plain,
            Example("1", "1", "p", "t", "[]"),
            Example("1", "1", "p", "t", None, "x"),
            Example("1", "1", "p", "t", "x"),
        )
    ]
    assert len({one.digest("test") for one in data}) == 4
    assert len(example_row(plain)) == 4


# Real rows


@pytest.mark.parametrize(
    ("name", "fields", "sizes"),
    [
        ("glaive_toolcall_demo", {"messages": "conversations"}, (156, 28, 59)),
        ("alpaca_cherry5", {"messages": "instruction"}, (2711, 200, 200)),
        ("conala", {"input": "{{ rewritten_intent or intent }}\n", "target": "snippet"}, (1893, 473, 494)),
        ("e2e_nlg", {"input": "{{ input }}\n", "target": "output"}, (3616, 905, 4577)),
        ("gsm8k", {"input": "{{ question }}\n", "target": "answer", "metric": "numeric_match"}, (5978, 1495, 1319)),
    ],
)
def test_outside_texts_load(outside_data, name, fields, sizes):
    named = {split: f"{name}/{split}.jsonl" for split in ("validation", "test")}
    named = {split: path for split, path in named.items() if (outside_data / path).exists()}
    data = tasks.load(spec(name=name, data=f"{name}/train.jsonl", **named, **fields), outside_data)
    assert tuple(len(part) for part in data.splits.values()) == sizes
