"""Answers as text: the loss against a plain padded language model, completions and likelihoods against transformers."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from tiny import make_data, make_model, make_trial
from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine.texts import Texts
from tunetrial.engine.torch_engine import TorchEngine

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


@pytest.fixture(scope="module")
def data():
    """Each prompt is answered by its words in reverse."""

    def turned(split):
        return tuple(Example(e.id, e.cluster, e.prompt + " =", " ".join(e.prompt.split()[::-1])) for e in split)

    rows = make_data("classify", rows=64, validation=20)
    return TaskData("tiny", "generate", (), {name: turned(split) for name, split in rows.splits.items()})


def start(base, data, method="lora", *, precision="fp32", readout="text", epochs=5, **controls):
    session = TorchEngine(device="cpu").open(base, precision)
    longest = 24 if readout == "text" else None
    trial = make_trial(method, precision=precision, readout=readout, max_new_tokens=longest, epochs=epochs, **controls)
    return session, session.start(trial, data)


def padded(rows):
    """Ids, attention mask and labels (-100 where nothing is answered) of rows, padded on the right."""
    longest = max(len(row.tokens) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for number, row in enumerate(rows):
        length = len(row.tokens)
        ids[number, :length], mask[number, :length] = torch.tensor(row.tokens), 1
        labels[number, :length] = torch.where(torch.tensor(row.answers_T), ids[number, :length], -100)
    return ids, mask, labels


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_loss_curve_equals_a_plain_padded_language_models(base, data, method):
    """AdamW with the loss normalised by the answered tokens of the step, in fp64 (transformers' own rounds to fp32)."""
    session, run = start(base, data, method, precision="fp64")
    plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")
    if method == "lora":
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():  # PEFT asks transformers for a name that is deprecated there
            warnings.simplefilter("ignore", FutureWarning)
            plain = get_peft_model(plain, config, autocast_adapter_dtype=False)
        ours = run.trainables.member(0)
        for name, parameter in plain.named_parameters():
            if ".lora_A." in name:
                mine = name.removeprefix("base_model.model.").replace(".default.weight", "")
                parameter.data.copy_(ours[f"causal.{mine}"].detach())
    trained = [p for p in plain.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rows = session.texts.rows(data.splits["train"])
    theirs, found = [], []
    for number, step in enumerate(run.steps(None)):
        batch = [rows[row] for row in run.loop.courses[0].order[number]]
        ids, mask, labels = padded(batch)
        logits, wanted = plain(input_ids=ids, attention_mask=mask).logits[:, :-1], labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        loss = loss / (wanted != -100).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.param_groups[0]["lr"] = step.learning_rate
        optimiser.step()
        optimiser.zero_grad()
        theirs.append(loss.item())
        found.append(step.loss)
    assert len(found) == 20 and found[-1] < found[0]
    assert found == pytest.approx(theirs, rel=1e-9)


def test_micro_batches_change_nothing_though_answers_differ_in_length(base, data):
    session, whole = start(base, data, precision="fp64", epochs=2)
    losses = [step.loss for step in whole.steps(None)]
    trial = make_trial("lora", precision="fp64", readout="text", max_new_tokens=24, epochs=2)
    parts = session.start(trial, data, micro_batch=3)
    assert [step.loss for step in parts.steps(None)] == pytest.approx(losses, rel=1e-9)


def test_completions_equal_those_of_each_prompt_alone(base, data, tmp_path):
    session, run = start(base, data, "full", rate=1e-2, epochs=30)
    list(run.steps(None))
    run.save(tmp_path / "made")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    examples = data.splits["validation"]
    found = run.predict(examples)
    for example, row, completion in zip(examples, session.texts.rows(examples), found, strict=True):
        settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=0, pad_token_id=0)
        prompt = torch.tensor([row.tokens[: row.prompt]])
        alone = plain.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        assert completion == session.tokenizer.decode(alone[0, row.prompt :], skip_special_tokens=True), example.id
    assert len(set(found)) > 1


def test_likelihoods_equal_transformers_loss_of_each_row_alone(base, data):
    session, run = start(base, data)
    examples = data.splits["validation"]
    plain = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    for (nats, tokens), row in zip(run.likelihoods(examples), session.texts.rows(examples), strict=True):
        ids, mask, labels = padded([row])
        assert tokens == len(row.tokens) - row.prompt == int((labels != -100).sum())
        with torch.no_grad():
            assert nats / tokens == pytest.approx(float(plain(ids, attention_mask=mask, labels=labels).loss), rel=1e-5)


def test_labels_are_read_by_the_likelihood_of_their_texts(base):
    data = make_data("classify", rows=64)
    session, run = start(base, data, "full", readout="labels", rate=3e-3)
    losses = [step.loss for step in run.steps(None)]
    found = run.predict(data.splits["validation"])
    for example, label in zip(data.splits["validation"], found, strict=True):
        nats = {
            text: run.likelihoods([Example(example.id, example.cluster, example.prompt, text)])[0][0]
            for text in data.labels
        }
        assert label == min(nats, key=nats.get)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_saved_computes_the_same_in_transformers_and_peft(base, data, method, tmp_path):
    session, run = start(base, data, method, rate=3e-3)
    list(run.steps(None))
    run.save(tmp_path / "made")
    if method == "lora":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "made")
        assert json.loads((tmp_path / "made/adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    row = session.texts.rows(data.splits["validation"])[0]
    ids, mask, labels = padded([row])
    with torch.no_grad():
        theirs = float(loaded(ids, attention_mask=mask, labels=labels).loss)
    nats, tokens = run.likelihoods(data.splits["validation"][:1])[0]
    assert nats / tokens == pytest.approx(theirs, rel=1e-5)


def test_a_session_serves_heads_and_texts_in_turn(base, data):
    """What one leaves behind does not reach the other."""
    session, first = start(base, data)
    losses = [step.loss for step in first.steps(None)]
    classify = make_data("classify", rows=32)
    list(session.start(make_trial("full", epochs=1), classify).steps(None))
    again = session.start(first.trials[0], data)
    assert [step.loss for step in again.steps(None)] == losses


def chat(*turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    return Example("r1", "r1", "", turns[-1][1], json.dumps(messages))


@pytest.fixture
def chatml(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return Texts(tokenizer)


TALK = (("system", "be brief"), ("user", "bread?"), ("assistant", "late"), ("user", "oven?"), ("assistant", "broken"))


def test_every_assistant_turn_is_an_answer_and_nothing_else(chatml):
    row = chatml.rows([chat(*TALK)])[0]
    answered = [token for token, is_answer in zip(row.tokens, row.answers_T, strict=True) if is_answer]
    assert chatml.tokenizer.decode(answered) == "late<|im_end|>\nbroken<|im_end|>\n"
    whole = chatml.tokenizer.apply_chat_template(json.loads(chat(*TALK).messages), tokenize=False)
    assert chatml.tokenizer.decode(row.tokens) == whole
    assert chatml.tokenizer.decode(row.tokens[: row.prompt]).endswith("oven?<|im_end|>\n<|im_start|>assistant\n")
    assert chatml.stops([row]) == {0, chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_template_that_drops_reasoning_from_earlier_turns_leaves_the_last_turn_as_the_answer(chatml):
    chatml.tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}"
    )
    row = chatml.rows([chat(*TALK)])[0]
    answered = [token for token, is_answer in zip(row.tokens, row.answers_T, strict=True) if is_answer]
    assert chatml.tokenizer.decode(answered) == "<think></think>broken<|im_end|>\n"


QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nYou may call one or more functions.\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- set tool_call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
FIND = {"name": "find", "description": "Where is an order?", "parameters": {"type": "object", "properties": {}}}


def called() -> Example:
    """A conversation whose first answer is a call of a tool, and the tools that it may call."""
    call = {"type": "function", "function": {"name": "find", "arguments": {"order": 7}}}
    turns = [
        {"role": "user", "content": "Where is order 7?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "on its way"},
        {"role": "assistant", "content": "On its way."},
    ]
    tools = json.dumps([{"type": "function", "function": FIND}])
    return Example("r1", "r1", "", "On its way.", messages=json.dumps(turns), tools=tools)


def test_tools_are_shown_by_a_template_that_knows_them(chatml):
    """A template of Qwen's kind; calls and answers are trained on, tools and what they return are not."""
    chatml.tokenizer.chat_template = QWEN
    example = called()
    pieces = Texts(chatml.tokenizer).pieces(example)
    assert "".join(text for text, _ in pieces) == chatml.tokenizer.apply_chat_template(
        json.loads(example.messages), tools=json.loads(example.tools), tokenize=False
    )
    assert '<tools>\n{"type": "function", "function": {"name": "find", "description": ' in pieces[0][0]
    assert [text for text, answer in pieces if answer] == [
        '<tool_call>\n{"name": "find", "arguments": {"order": 7}}\n</tool_call><|im_end|>\n',
        "On its way.<|im_end|>\n",
    ]
    [row], [bare] = chatml.rows([example]), chatml.rows([replace(example, tools=None)])
    assert len(row.tokens) > len(bare.tokens)


def test_rows_whose_tools_are_not_seen_are_counted(chatml, base):
    rows = [called(), chat(*TALK), replace(called(), tools=None)]
    told = chatml.describe(rows, readout="text")
    assert (told.tools, told.unseen_tools) == (1, 1)
    chatml.tokenizer.chat_template = QWEN
    told = Texts(chatml.tokenizer).describe(rows, readout="text")
    assert (told.tools, told.unseen_tools) == (1, 0)
    plain = Texts(AutoTokenizer.from_pretrained(base)).describe(rows, readout="text")
    assert (plain.tools, plain.unseen_tools, plain.template) == (1, 1, None)


def test_a_base_without_a_template_writes_conversations_in_lines(base):
    texts = Texts(AutoTokenizer.from_pretrained(base))
    assert texts.plain
    assert "".join(text for text, _ in texts.pieces(chat(*TALK))) == (
        "system: be brief\nuser: bread?\nassistant: late<e>\nuser: oven?\nassistant: broken<e>\n"
    )
    assert texts.stops(texts.rows([chat(*TALK)])) == {0}


def test_templates_are_told_apart_by_their_digest(base, chatml):
    assert chatml.template_digest != Texts(AutoTokenizer.from_pretrained(base)).template_digest


def test_a_conversation_that_the_template_refuses_is_named(chatml):
    chatml.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="row r1: the base's chat template refuses it, got roles must alternate"):
        chatml.rows([chat(*TALK)])


def test_a_template_without_a_place_for_the_answer_is_refused(chatml):
    chatml.tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(DataError, match="row r1: the base's chat template begins no answer where it asks for one"):
        chatml.rows([chat(*TALK)])
