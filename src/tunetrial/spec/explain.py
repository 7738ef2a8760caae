"""The faults of a tree against the file form, in words."""

import json
import re
from collections.abc import Iterator

from pydantic import ValidationError

from tunetrial.core.records import Record
from tunetrial.spec.faults import Fault, Keys, Tree, nearest, show
from tunetrial.spec.form import StudyForm, json_schema

_ELSEWHERE = {
    ("limits", "quality"): "is no cost, got {}; write a floor instead: require: {{task.metric: '>= 0.8'}}",
}
_WORDS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_too_long": "must have at most {max_length} characters",
    "union_tag_not_found": "has no {discriminator}",
}
_SHARE = "a share from '50% of gain' to below 100%"
_NAME = "must have 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit"


def explain(tree: Tree, form: type[Record] = StudyForm) -> list[Fault]:
    """What does not fit the file form, each field once; a fault inside a field stands for the field's own."""
    try:
        form.model_validate(tree.value, strict=True)
        return []
    except ValidationError as error:
        errors = [part for part in error.errors(include_url=False) if part["type"] != "none_required"]
        # A margin that is a number is no share of a gain that went wrong.
        numbers = {part["loc"][:-1] for part in errors if part["type"] == "greater_than"}
        errors = [part for part in errors if part["type"] != "string_type" or part["loc"][:-1] not in numbers]
    placed: dict[Keys, list[dict]] = {}
    for part in errors:
        placed.setdefault(_place(tree, part), []).append(part)
    inner = {keys[:depth] for keys in placed for depth in range(len(keys))}
    schema = json_schema(form)
    return [_put(tree, schema, keys, parts) for keys, parts in placed.items() if keys not in inner]


def _place(tree: Tree, part: dict) -> Keys:
    """The keys of the document in an error's location, which also holds names of types tried."""
    keys: Keys = ()
    for key in part["loc"]:
        listed = tree.at(keys)
        if isinstance(listed, tuple) and isinstance(key, str) and key in listed:
            key = listed.index(key)
        keys = (*keys, key) if (*keys, key) in tree.lines else keys
    if part["type"] == "missing":
        return (*keys, part["loc"][-1])
    tag = (*keys, _discriminator(part))
    return tag if part["type"] == "union_tag_invalid" and tag in tree.lines else keys


def _discriminator(part: dict) -> str:
    """The key that says which of several forms a mapping has: an arm's method, a variant's kind."""
    return part.get("ctx", {}).get("discriminator", "").strip("'")


def _put(tree: Tree, schema: dict, keys: Keys, parts: list[dict]) -> Fault:
    """The errors of one field in words: several when it may be of several types."""
    part = parts[0]
    kind, context = part["type"], part.get("ctx", {})
    if keys in _ELSEWHERE:
        return Fault(keys, _ELSEWHERE[keys].format(show(tree.at(keys))))
    if kind == "extra_forbidden":
        known = _subschema(schema, part["loc"][:-1]).get("properties", {})
        return Fault(keys, f"unknown key; {nearest(str(keys[-1]), known)}")
    if kind == "union_tag_invalid":
        known = re.findall("'([^']*)'", context["expected_tags"])
        return Fault(
            keys, f"unknown {_discriminator(part)}, got {show(context['tag'])}; {nearest(context['tag'], known)}"
        )
    remedy = _remedy(_subschema(schema, part["loc"]), part)
    if kind in ("missing", "union_tag_not_found"):
        return Fault(keys, f"{_WORDS[kind].format(discriminator=_discriminator(part))}; {remedy}")
    if kind == "value_error" and ", got " in str(context["error"]):
        return Fault(keys, str(context["error"]))
    got = keys[-1] if part["loc"][-1] == "[key]" else tree.at(keys)
    return Fault(keys, f"{_either(parts)}, got {show(got)}; {remedy}")


def _either(parts: list[dict]) -> str:
    """What would do: `must be 'auto' or a list`."""
    literals = [name for part in parts for name in re.findall("'[^']*'", part.get("ctx", {}).get("expected", ""))]
    words = list(dict.fromkeys(_words(part) for part in parts if part["type"] != "literal_error"))
    if not literals:
        return " or ".join(words)
    return "must be " + " or ".join(literals + [text.removeprefix("must be ") for text in words])


def _words(part: dict) -> str:
    kind, context = part["type"], part.get("ctx", {})
    if kind == "string_pattern_mismatch" and "of gain" in context["pattern"]:
        return _SHARE
    if kind == "string_pattern_mismatch":
        return _NAME if context["pattern"].startswith("^") else "must not be blank"
    if kind == "value_error":
        return str(context["error"])
    bounds = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    return _WORDS[kind].format(**bounds) if kind in _WORDS else part["msg"]


def _remedy(here: dict, part: dict) -> str:
    if part["loc"][-1] == "[key]":
        return "choose such a name"
    if "description" not in here:
        return "write another value, or leave it out"
    example = here["examples"][0] if here.get("examples") else None
    shown = re.sub(r'"([\w.]+)"', r"\1", json.dumps(example))
    remedy = f"give the {here['description']}" + (f", such as {shown}" if example is not None else "")
    if part["type"] == "string_type" and not isinstance(part["input"], dict | tuple):
        return f"{remedy}, in quotes"
    number_as_text = part["type"] in ("int_type", "float_type") and isinstance(part["input"], str)
    number_as_text = number_as_text and "of gain" not in part["input"]
    return f"{remedy}, without quotes" if number_as_text else remedy


def _subschema(schema: dict, location: tuple) -> dict:
    """The part of the schema that an error's location leads to; an item of a list goes by its list's description."""
    here, said = schema, {}
    for key in location:
        steps = (_step(candidate, key) for candidate in _alternatives(schema, here))
        inner = next((step for step in steps if step is not None), None)
        if inner is not None:
            here = inner
            if "title" in here or "description" in here:
                said = {k: here[k] for k in ("description", "examples") if k in here}
    merged: dict = {}
    for candidate in _alternatives(schema, here):
        merged = {**candidate, **merged}
    return {**{k: v for k, v in merged.items() if k != "description"}, **said}


def _step(schema: dict, key: str | int) -> dict | None:
    if isinstance(key, int):
        return schema.get("items")
    mapping = schema.get("discriminator", {}).get("mapping", {})
    if key in mapping:
        return {"$ref": mapping[key]}
    if key in schema.get("properties", {}):
        return schema["properties"][key]
    named = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
    return named if isinstance(named, dict) else None


def _alternatives(schema: dict, here: dict) -> Iterator[dict]:
    """A subschema, what it refers to, and what it is any of."""
    yield here
    if "$ref" in here:
        yield from _alternatives(schema, schema["$defs"][here["$ref"].rsplit("/", 1)[-1]])
    for inner in here.get("anyOf", ()):
        yield from _alternatives(schema, inner)
