"""Conversations of rows: OpenAI messages, ShareGPT and Alpaca, all written as OpenAI messages.

The study names one field, and its content says which layout it is: a list of turns with `role` and `content`, a list
of turns with `from` and `value`, or the text of an instruction, which belongs to fields `input` and `output`. A field
`system` beside the last two opens the conversation. A field `tools` holds the functions that it may call, as a list or
its JSON: each as OpenAI has it, or the function alone. What follows the last answer asks for no answer and is left out.
"""

import json
from dataclasses import dataclass
from typing import Any

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example
from tunetrial.core.records import canonical
from tunetrial.tasks.files import short

ROLES = ("system", "user", "assistant", "tool")
# As Axolotl, FastChat and LLaMA-Factory read ShareGPT.
SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "function_call": "function_call",
}
KEPT = {"role", "content", "name", "tool_calls", "tool_call_id"}


@dataclass(frozen=True)
class Conversation:
    """Turns from the first to the last answer as canonical JSON, and the content of that answer.

    `tools` are its functions in OpenAI's layout, as JSON in the row's order of keys, since a template writes them so.
    `unused` are keys of the row's conversation that are not in the turns, `unanswered` counts turns after the answer.
    """

    json: str
    answer: str
    tools: str | None
    unused: frozenset[str]
    unanswered: int


def read(fields: dict, name: str) -> Conversation:
    """Read the conversation of a row that begins in the field `name`.

    Raises:
        DataError: It is in no known layout, a turn is faulty, or there is no answer to a user; the caller adds where.
    """
    value = fields[name]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parse(value, name)
    if isinstance(value, str):
        turns, unused = _alpaca(fields, name), set()
    else:
        turns, unused = _listed(fields, value, name)
    last = max((n for n, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise DataError(f"{name} has no assistant turn, got {', '.join(turn['role'] for turn in turns)}")
    if not turns[last]["content"].strip():
        raise DataError(f"{name}: its last assistant turn {last + 1} says nothing, which is no answer to learn")
    if not any(turn["role"] == "user" for turn in turns[:last]):
        raise DataError(f"{name} has no user turn before its answer, turn {last + 1}")
    try:
        written = canonical(turns[: last + 1])
    except ValueError:
        raise DataError(f"{name}: a call of a tool has a number that is not finite") from None
    tools = _tools(fields.get("tools"))
    return Conversation(written, turns[last]["content"], tools, frozenset(unused), len(turns) - last - 1)


def contents(example: Example) -> list[str]:
    """What is said in each turn of an example's conversation; nothing without one."""
    return [turn["content"] for turn in json.loads(example.messages)] if example.messages else []


def _alpaca(fields: dict, name: str) -> list[dict]:
    """An instruction, what it is about, if anything, and the answer."""
    if "output" not in fields:
        raise DataError(f"{name} is text, so an Alpaca instruction, but output is missing")
    about = fields.get("input")
    asked = [_content(fields[name], name), *([_content(about, "input")] if about not in (None, "") else [])]
    answer = {"role": "assistant", "content": _content(fields["output"], "output")}
    return [*_system(fields), {"role": "user", "content": "\n\n".join(asked)}, answer]


def _listed(fields: dict, value: object, name: str) -> tuple[list[dict], set[str]]:
    if not isinstance(value, list):
        raise DataError(f"{name} is no list of turns, got {short(value)}")
    if not value:
        raise DataError(f"{name} is an empty conversation, got []")
    unused: set[str] = set()
    turns = [] if isinstance(value[0], dict) and "role" in value[0] else _system(fields)
    for number, turn in enumerate(value, start=1):
        where = f"{name}: turn {number}"
        if not isinstance(turn, dict) or not ({"role", "content"} & set(turn) or {"from", "value"} <= set(turn)):
            raise DataError(f"{where} has neither role and content nor from and value, got {short(turn)}")
        if "role" not in turn and "content" in turn:
            raise DataError(f"{where}: role is missing")
        turns.append(_openai(turn, where) if "role" in turn else _sharegpt(turn, where))
        unused |= set(turn) - (KEPT if "role" in turn else {"from", "value"})
    return turns, unused


def _system(fields: dict) -> list[dict]:
    said = fields.get("system")
    return [{"role": "system", "content": _content(said, "system")}] if said not in (None, "") else []


def _openai(turn: dict, where: str) -> dict:
    role = turn["role"]
    if role not in ROLES:
        raise DataError(f"{where}: unknown role, got {short(role)}; use {', '.join(ROLES)}")
    kept: dict[str, Any] = {"role": role}
    calls = turn.get("tool_calls")
    if calls:
        if role != "assistant":
            raise DataError(f"{where}: tool_calls are an assistant's, got role {role!r}")
        kept["tool_calls"] = _calls(calls, where)
    silent = calls and turn.get("content") is None
    kept["content"] = "" if silent else _content(turn.get("content"), f"{where}: content")
    return kept | {key: _content(turn[key], f"{where}: {key}") for key in ("name", "tool_call_id") if turn.get(key)}


def _sharegpt(turn: dict, where: str) -> dict:
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataError(f"{where}: unknown speaker, got {short(speaker)}; use {', '.join(SPEAKERS)}")
    said = _content(turn["value"], f"{where}: value")
    if SPEAKERS[speaker] != "function_call":
        return {"role": SPEAKERS[speaker], "content": said}
    calls = _parse(said, f"{where}: value")
    return {"role": "assistant", "content": "", "tool_calls": _calls(calls if type(calls) is list else [calls], where)}


def _calls(calls: object, where: str) -> list[dict]:
    """Calls of tools as chat templates take them: arguments are an object, not its JSON text."""
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls are no list, got {short(calls)}")
    return [_call(call, where) for call in calls]


def _call(call: object, where: str) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: a call of a tool needs name and arguments, got {short(call)}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parse(arguments, f"{where}: arguments")
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: arguments are no object, got {short(arguments)}")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(value: object) -> str | None:
    """Functions as templates take them; None where there are none."""
    if isinstance(value, str):
        value = _parse(value, "tools") if value.strip() else None
    if value in (None, []):
        return None
    if not isinstance(value, list):
        raise DataError(f"tools is no list of functions, got {short(value)}")
    try:
        listed = [_function(tool, number) for number, tool in enumerate(value, start=1)]
        return _content(json.dumps(listed, ensure_ascii=False, allow_nan=False), "tools")
    except ValueError:
        raise DataError("tools: a function has a number that is not finite") from None


def _function(tool: object, number: int) -> dict:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"tools: function {number} has no name, got {short(tool)}")
    return {"type": "function", "function": function}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON, got {short(text)}") from None


def _content(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is no text, got {short(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{where} is no valid Unicode, got {short(value)}")
    return value
