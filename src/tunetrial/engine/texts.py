"""Examples as tokens: prompts for a head, and for a language model prompts with the answers it is trained on.

Each piece of a row, prompt or answer, is tokenised on its own, so that a prompt has the same tokens when it is trained
on and when its answer is asked for. An answer ends with the end of text, or with what the chat template ends a turn by.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jinja2 import TemplateError

from tunetrial.core.engine import Description
from tunetrial.core.errors import DataError, ModelError
from tunetrial.core.evidence import Example
from tunetrial.core.study import Readout

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Row:
    """Tokens of prompt and answers; `answers_T` marks those that are trained on, `prompt` counts those before the last
    answer."""

    tokens: list[int]
    answers_T: list[bool]
    prompt: int

    @cached_property
    def tokens_T(self) -> np.ndarray:
        return np.asarray(self.tokens, dtype=np.int64)

    @cached_property
    def places(self) -> np.ndarray:
        """Where the tokens are that are trained on; nothing foretells the first of all."""
        return 1 + np.flatnonzero(self.answers_T[1:])


class Texts:
    """What a base's tokenizer and chat template make of examples; each example is looked at once.

    `plain` says that the base has no chat template, so that conversations are written as lines "role: content".
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.plain = tokenizer.chat_template is None
        self._prompts: dict[str, list[int]] = {}
        self._rows: dict[tuple[str, str, str | None, str | None], Row] = {}

    @property
    def template_digest(self) -> str:
        """SHA-256 of the chat template in use."""
        template = PLAIN_TEMPLATE if self.plain else self.tokenizer.chat_template
        return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        """Tokenise prompts as the tokenizer does by default."""
        missing = [e.prompt for e in examples if e.prompt not in self._prompts]
        if missing:
            self._prompts.update(zip(missing, self.tokenizer(missing).input_ids, strict=True))
        return [self._prompts[e.prompt] for e in examples]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenise prompts with their answers.

        Raises:
            DataError: A conversation is not one that the base's template can write.
        """
        return [self._row(example) for example in examples]

    def row(self, example: Example, answer: str) -> Row:
        """Tokenise a prompt with an answer in place of its own."""
        return self._row(Example(example.id, example.cluster, example.prompt, answer))

    def describe(self, examples: Sequence[Example], *, readout: Readout = "head") -> Description:
        """See `core.engine.Session.describe`."""
        tokenizer, template = self.tokenizer, None if self.plain else f"the base's own, {self.template_digest[:12]}"
        if readout == "head":
            pieces = [[(tokenizer.decode(tokens), False)] for tokens in self.prompts(examples)]
        else:
            end = tokenizer.eos_token or ""
            pieces = [self.pieces(e) for e in examples]
            pieces = [
                p if e.messages else [*p[:-1], (p[-1][0] + end, True)] for e, p in zip(examples, pieces, strict=True)
            ]
        controls = Counter()
        for example in examples:
            text = f"{example.prompt}\n{example.target}\n{example.messages or ''}\n{example.tools or ''}"
            controls.update(token for token in tokenizer.all_special_tokens if token in text)
        with_tools = [e for e in examples if e.tools]
        unseen = sum(self.pieces(e) == self.pieces(replace(e, tools=None)) for e in with_tools)
        return Description(
            pieces, dict(controls), template, tokenizer.eos_token, tokenizer.pad_token, len(with_tools), unseen
        )

    def stops(self, rows: Sequence[Row]) -> set[int]:
        """The tokens that end an answer: the end of text, and the special token that these rows' answers end by."""
        special = set(self.tokenizer.all_special_ids)
        ends = {self.tokenizer.eos_token_id} - {None}
        for row in rows:
            last = next((t for t in reversed(row.tokens[row.prompt :]) if t in special), None)
            ends |= set() if last is None else {last}
        return ends

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _row(self, example: Example) -> Row:
        key = (example.prompt, str(example.target), example.messages, example.tools)
        if key not in self._rows:
            tokens, answers, prompt = [], [], 0
            for text, is_answer in self.pieces(example):
                prompt = len(tokens) if is_answer else prompt
                made = self._tokens(text, first=not tokens, example=example)
                tokens += made
                answers += [is_answer] * len(made)
            if example.messages is None:
                tokens.append(self._end())
                answers.append(True)
            self._rows[key] = Row(tokens, answers, prompt)
        return self._rows[key]

    def _tokens(self, text: str, *, first: bool, example: Example) -> list[int]:
        if not first or example.messages is not None:
            return self.tokenizer(text, add_special_tokens=False).input_ids
        made = self.tokenizer(text).input_ids
        return made[:-1] if made and len(made) > 1 and made[-1] == self.tokenizer.eos_token_id else made

    def _end(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "tokenizer: it has no end-of-text token, so no answer could end; add eos_token to its config"
            )
        return self.tokenizer.eos_token_id

    def pieces(self, example: Example) -> list[tuple[str, bool]]:
        """The row as text, in pieces: what is given, and what is answered. The last piece is an answer.

        Every assistant turn of a conversation is an answer. Where the template writes earlier turns otherwise than it
        wrote them when they were last (some drop the reasoning), only the last one is.
        """
        if example.messages is None:
            return [(example.prompt, False), (str(example.target), True)]
        messages = json.loads(example.messages)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        pieces = self._cut(example, messages, turns) or self._cut(example, messages, turns[-1:])
        if pieces is None:
            asked = self._write(example, messages[:-1], ask=True)[-40:]
            raise DataError(
                f"row {example.id}: the base's chat template begins no answer where it asks for one, got {asked!r}; "
                "use a base with another template"
            )
        return pieces

    def _cut(self, example: Example, messages: list[dict], turns: list[int]) -> list[tuple[str, bool]] | None:
        """Cut the whole conversation before and after each of these turns; None if it does not begin with its parts."""
        whole, pieces, done = self._write(example, messages), [], 0
        for turn in turns:
            before = self._write(example, messages[:turn], ask=True)
            after = self._write(example, messages[: turn + 1])
            if not (whole.startswith(before) and whole.startswith(after) and done <= len(before) < len(after)):
                return None
            pieces += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
            done = len(after)
        return pieces

    def _write(self, example: Example, messages: list[dict], *, ask: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=json.loads(example.tools) if example.tools else None,
                chat_template=PLAIN_TEMPLATE if self.plain else None,
                tokenize=False,
                add_generation_prompt=ask,
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            first_line = str(error).partition("\n")[0]
            raise DataError(
                f"row {example.id}: the base's chat template refuses it, got {first_line}; mend the conversation"
            ) from None
