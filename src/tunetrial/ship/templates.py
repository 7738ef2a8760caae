"""A study's prompt format as a template of Go, the language that Ollama's are written in.

Text of a task or of a chat template is data here: whatever Go or Ollama would read as a command, and whatever Ollama's
parser would drop, stands in a string constant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError, nodes

from tunetrial.core.errors import ModelError
from tunetrial.engine.texts import PLAIN_TEMPLATE
from tunetrial.tasks.prompt import ENVIRONMENT

PROMPT = "{{ .Prompt }}"
# What may stand as it is: printable ASCII but for the brace that opens an action and the quote that ends a value.
_SPECIAL = re.compile(r"[^ !#-z|}~\n]+")
USER, ASSISTANT, SYSTEM = "QuestionText", "AnswerText", "SystemText"


def literal(text: str) -> str:
    """Text that a Go template writes as it is. Source: text/template and string constants of Go (go.dev/ref/spec)."""

    def constant(found: re.Match) -> str:
        codes = "".join(f"\\u{ord(c):04x}" if ord(c) < 2**16 else f"\\U{ord(c):08x}" for c in found[0])
        return f'{{{{ "{codes}" }}}}'

    return _SPECIAL.sub(constant, text)


def prompt_template(source: str) -> tuple[str, str | None]:
    """The template of a task's `input`, and the field whose value is to be sent.

    An input of text around one field is written with that text. Any other is rendered before it is sent, so that the
    template is the prompt alone and there is no one field.
    """
    body = ENVIRONMENT.parse(source).body
    parts = body[0].nodes if len(body) == 1 and isinstance(body[0], nodes.Output) else []
    fields = [part for part in parts if not isinstance(part, nodes.TemplateData)]
    if len(fields) != 1 or not isinstance(fields[0], nodes.Name):
        return PROMPT, None
    pieces = [literal(part.data) if isinstance(part, nodes.TemplateData) else PROMPT for part in parts]
    return "".join(pieces), fields[0].name


@dataclass(frozen=True)
class Turns:
    """What stands around the turns of a conversation. `system` is what stands before and after a system message, None
    where a template takes none; `opening` stands in its place without one."""

    opening: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    asking: str

    def write(self, messages: Sequence[dict]) -> str:
        """The conversation as text, up to where an answer is asked for."""
        around = {"user": self.user, "assistant": self.assistant, "system": self.system}
        said = "".join(f"{around[m['role']][0]}{m['content']}{around[m['role']][1]}" for m in messages)
        opening = "" if messages[0]["role"] == "system" else self.opening
        return f"{opening}{said}{self.asking}"

    def template(self) -> str:
        """The same in Go, over what Ollama gives a template: `.System` and `.Messages`."""
        opening = literal(self.opening)
        if self.system is not None:
            before, after = map(literal, self.system)
            opening = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{opening}{{{{ end }}}}"
        turn = '{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        user = turn.format(word="if", role="user", before=literal(self.user[0]), after=literal(self.user[1]))
        before, after = map(literal, self.assistant)
        assistant = turn.format(word="else if", role="assistant", before=before, after=after)
        said = f"{{{{ range .Messages }}}}{user}{assistant}{{{{ end }}}}{{{{ end }}}}"
        return f"{opening}{said}{literal(self.asking)}"


def turns(tokenizer) -> Turns:
    """What a base's chat template writes around turns, found out from what it writes.

    A beginning-of-text token that the tokenizer puts first by itself is left out. It is not claimed that contents with
    white space around them, tools or reasoning are written alike.

    Raises:
        ModelError: No such strings give what the template gives, of conversations of up to five turns.
    """
    first = [_message("user")]
    try:
        before, after = _cut(_write(tokenizer, first, ask=False), USER)
        asking = _cut(_write(tokenizer, first), USER)[1][len(after) :]
        between = _write(tokenizer, [*first, _message("assistant"), *first])
        begun, rest = _cut(between.removeprefix(f"{before}{USER}"), ASSISTANT)
        ended, _ = _cut(rest, USER)
        system = _system(tokenizer, first)
        common = _common_end([before, ended, *([system[1]] if system else [])])
        made = Turns(
            opening=before.removesuffix(common),
            system=system and (system[0], system[1].removesuffix(common)),
            user=(common, after),
            assistant=(begun.removeprefix(after), ended.removesuffix(common)),
            asking=asking,
        )
        _check(tokenizer, made)
    except (TemplateError, ValueError) as error:
        do = "use --format gguf, whose file carries the template itself"
        what = "chat template: cannot be written as one of Ollama's"
        raise ModelError(f"{what}, got {str(error).splitlines()[0]}; {do}") from None
    bos = tokenizer.bos_token or ""
    if not bos or tokenizer("").input_ids[:1] != [tokenizer.bos_token_id]:
        return made
    system = made.system and (made.system[0].removeprefix(bos), made.system[1])
    return Turns(made.opening.removeprefix(bos), system, made.user, made.assistant, made.asking)


def _message(role: str) -> dict[str, str]:
    return {"role": role, "content": {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}[role]}


def _write(tokenizer, messages: Sequence[dict], *, ask: bool = True) -> str:
    template = PLAIN_TEMPLATE if tokenizer.chat_template is None else None
    return tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask
    )


def _system(tokenizer, first: list[dict]) -> tuple[str, str] | None:
    """What stands before a system message and after it; None where the template refuses one."""
    try:
        written = _write(tokenizer, [_message("system"), *first])
    except (TemplateError, ValueError):
        return None
    before, rest = _cut(written, SYSTEM)
    return before, _cut(rest, USER)[0]


def _cut(text: str, at: str) -> tuple[str, str]:
    before, found, after = text.partition(at)
    if not found:
        raise ValueError("a turn that it leaves out")
    return before, after


def _common_end(texts: Sequence[str]) -> str:
    shortest = min(map(len, texts))
    for length in range(shortest, 0, -1):
        if len({text[-length:] for text in texts}) == 1:
            return texts[0][-length:]
    return ""


def _check(tokenizer, made: Turns) -> None:
    talks = [["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"]]
    talks += [["system", *talk] for talk in talks] if made.system else []
    for talk in talks:
        messages = [_message(role) | {"content": f"Text of turn {n}"} for n, role in enumerate(talk)]
        if made.write(messages) != _write(tokenizer, messages):
            raise ValueError(f"text of its own for the turns {', '.join(talk)}")
