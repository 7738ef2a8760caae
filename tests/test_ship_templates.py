"""Prompt formats in Go's syntax and Modelfiles, read back by small parsers written from Go's and Ollama's documents."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tunetrial import models
from tunetrial.core.errors import ConfigError, ModelError
from tunetrial.engine.texts import PLAIN_TEMPLATE
from tunetrial.ship import templates
from tunetrial.ship.ollama import modelfile, quoted

ODD = st.text(st.sampled_from('{}"\\ \n\t\r-%.ab\u00a0\u200b\u4f60\U0001f600\x00`#'), max_size=30)


def go(template: str, **values) -> str:
    """What Go's text/template writes: text, string constants, fields, if, else and range, no other action."""
    pieces = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    made, at = _go(pieces, 0, values)
    assert at == len(pieces)
    return made


def _go(pieces, at, values):
    made = ""
    while at < len(pieces):
        piece = pieces[at]
        if not piece.startswith("{{"):
            made, at = made + piece, at + 1
            continue
        action = piece[2:-2].strip()
        if action == "end" or action.startswith("else"):
            return made, at
        at += 1
        if action.startswith('"'):
            made += constant(action)
        elif action.startswith("if "):
            part, at = _if(action[3:], pieces, at, values)
            made += part
        elif action == "range .Messages":
            start = at
            _, at = _go(pieces, start, values | {"Role": "", "Content": ""})
            for message in values["Messages"]:
                turn = {"Role": message["role"], "Content": message["content"]}
                made += _go(pieces, start, values | turn)[0]
            assert pieces[at].strip("{} ") == "end"
            at += 1
        else:
            assert re.fullmatch(r"\.[A-Z][a-z]+", action), action
            made += values[action[1:]]
    return made, at


def _if(condition, pieces, at, values):
    equal = re.fullmatch(r'eq \.Role "(\w+)"', condition)
    holds = values["Role"] == equal[1] if equal else bool(values.get(condition[1:]))
    yes, at = _go(pieces, at, values)
    action = pieces[at][2:-2].strip()
    if action.startswith("else if "):
        no, at = _if(action[8:], pieces, at + 1, values)
        return (yes if holds else no), at
    if action == "else":
        no, at = _go(pieces, at + 1, values)
        assert pieces[at][2:-2].strip() == "end"
        return (yes if holds else no), at + 1
    return (yes if holds else ""), at + 1


def constant(action: str) -> str:
    """A string constant of Go's in which every character is an escape of four or eight digits."""
    inner = re.fullmatch(r'"((?:\\u[0-9a-f]{4}|\\U[0-9a-f]{8})+)"', action)
    assert inner, action
    return "".join(chr(int(code, 16)) for code in re.findall(r"\\[uU]([0-9a-f]{4,8})", inner[1]))


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile: a name, a space, a value that ends at the first line end outside quotes. Characters
    that cannot be printed are dropped unless they are white space of a value."""
    found, rest = [], text
    while rest := rest.lstrip(" \t\r\n"):
        if rest.startswith("#"):
            rest = re.sub(r"^[^\r\n]*", "", rest)
            continue
        name, rest = re.match(r"([A-Za-z]+)[ \t](.*)", rest, re.DOTALL).groups()
        if name.lower() == "parameter":
            name, rest = re.match(r"(\w+)[ \t](.*)", rest, re.DOTALL).groups()
        ends = [m.start() for m in re.finditer(r"[\r\n]|\Z", rest)]
        for end in ends:
            value = rest[:end].strip()
            if value.startswith('"""'):
                if len(value) >= 6 and value.endswith('"""'):
                    break
            elif not value.startswith('"') or (len(value) > 1 and value.endswith('"')):
                break
        else:
            raise AssertionError(f"unclosed value: {rest!r}")
        value = "".join(c for c in value if c.isprintable() or c in "\t\r\n")
        found.append((name.lower(), value[3:-3] if value.startswith('"""') else value.strip('"')))
        rest = rest[end:]
    return found


@given(ODD | st.text(max_size=30))
def test_literal_text_comes_back_from_go_as_it_was(text):
    written = templates.literal(text)
    assert go(written) == text and "\r" not in written
    assert set(written) <= set(string.printable) and '"""' not in written


@given(ODD, ODD)
def test_an_input_around_one_field_keeps_its_text_and_no_text_is_a_command(before, after):
    jinja = "{% raw %}" + before.replace("{% endraw", "") + "{% endraw %}{{ body }}{% raw %}" + after + "{% endraw %}"
    template, field = templates.prompt_template(jinja)
    assert field == "body"
    expected = templates.ENVIRONMENT.from_string(jinja).render(body="BODY")
    assert go(template, Prompt="BODY") == expected
    text = modelfile("m.gguf", adapter=None, template=template, stops=[], parameters={}, said="x")
    assert commands(text)[:2] == [("from", "./m.gguf"), ("template", template)]


@pytest.mark.parametrize(
    "source", ["{{ a }}{{ b }}", "{{ a | upper }}", "{% if a %}{{ a }}{% endif %}", "no field", ""]
)
def test_any_other_input_is_sent_as_it_was_rendered(source):
    assert templates.prompt_template(source) == ("{{ .Prompt }}", None)


def test_the_field_of_a_built_in_task_stands_in_its_text():
    assert templates.prompt_template("{{ message }}\n") == ("{{ .Prompt }}\n", "message")
    assert templates.prompt_template('Say "{{ x }}" now:') == (
        'Say {{ "\\u0022" }}{{ .Prompt }}{{ "\\u0022" }} now:',
        "x",
    )


@given(st.lists(ODD | st.sampled_from(["<|im_end|>", "</s>", '"', "a b"]), max_size=3), ODD)
def test_a_modelfile_reads_back_to_its_values_or_is_refused(stops, text):
    template = templates.literal(text)
    try:
        made = modelfile(
            "base.gguf",
            adapter="adapter.gguf",
            template=template,
            stops=stops,
            parameters={"num_predict": 8},
            said=f"odd\nFROM evil {text}",
        )
    except ConfigError as error:
        assert any('"""' in s or any(not (c.isprintable() or c in "\n\t") for c in s) for s in stops), error
        return
    assert commands(made) == [
        ("from", "./base.gguf"),
        ("adapter", "./adapter.gguf"),
        ("template", template),
        *(("stop", stop) for stop in stops),
        ("temperature", "0"),
        ("repeat_penalty", "1"),
        ("num_predict", "8"),
    ]


@pytest.mark.parametrize("value", ['a"""\nFROM evil', "a\rb", "a\x00", "\u200b"])
def test_a_value_that_ollama_would_read_otherwise_is_refused(value):
    with pytest.raises(ConfigError, match="Modelfile: a value cannot be written, got .*; use --format gguf"):
        quoted(value)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou \"help\".<|im_end|>\n' }}{% endif %}" + CHATML
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}"


def tokenizer(template: str | None):
    made = AutoTokenizer.from_pretrained(models.EMBEDDED)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    "template", [None, CHATML, WITH_DEFAULT, NO_SYSTEM], ids=["plain", "chatml", "default", "none"]
)
def test_a_chat_template_in_go_writes_what_the_base_s_own_writes(template):
    own = tokenizer(template)
    made = templates.turns(own).template()
    says = lambda role, text: {"role": role, "content": text}  # noqa: E731
    talks = [[says("user", "Hi {{ .Prompt }}")], [says("user", "a"), says("assistant", '"b"'), says("user", "c")]]
    if template is not NO_SYSTEM:
        talks += [[says("system", "Be brief."), *talk] for talk in talks]
    for talk in talks:
        system = next((m["content"] for m in talk if m["role"] == "system"), "")
        expected = own.apply_chat_template(
            talk, chat_template=template or PLAIN_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        assert go(made, System=system, Messages=talk) == expected


def test_a_chat_template_that_go_cannot_write_is_refused():
    with pytest.raises(ModelError, match="cannot be written as one of Ollama's, got .*; use --format gguf"):
        templates.turns(tokenizer(NUMBERED))
    with pytest.raises(ModelError, match="a turn that it leaves out"):
        templates.turns(tokenizer("always the same"))


def test_a_first_token_that_the_tokenizer_writes_itself_is_not_written_twice():
    class Adding:
        def __init__(self, own):
            self.own = own

        def __getattr__(self, name):
            return getattr(self.own, name)

        def __call__(self, text):
            return type("Encoded", (), {"input_ids": [self.own.bos_token_id]})

    own = tokenizer(None)
    assert own.bos_token not in templates.turns(Adding(own)).opening and own.bos_token in templates.turns(own).opening
