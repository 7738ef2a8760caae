"""Inputs that mean the same, worded otherwise: by another template, order, case, typos, white space, or by people.

A variant changes what a row's prompt is filled with, or the template; the prompt is then made as all prompts are
(`examples.examine`), and id, cluster and target stay those of the plain example. What is drawn depends on the seed, the
variant's name, the example and the field alone. That a variant keeps the meaning is claimed for the common run of
text, not for code, or for fields in which case or spaces carry meaning: name the fields that may change.

Words that hold a digit, an address, a label of the task, or a word of the text that is to be written are never altered.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.records import canonical
from tunetrial.core.study import TaskSpec
from tunetrial.core.variants import Noise, Order, Paraphrase, Template, Variant
from tunetrial.tasks import files, noise, prompt
from tunetrial.tasks.examples import examine, identify
from tunetrial.tasks.files import Row, short

CHANGES: dict[str, Callable[[str, float, frozenset[str], random.Random], str]] = {
    "typos": noise.misspell,
    "case": noise.recase,
    "whitespace": noise.respace,
}


@dataclass(frozen=True)
class Varied:
    """The examples of a split under one variant, in the split's order, and how many inputs differ from the plain."""

    examples: tuple[Example, ...]
    changed: int


@dataclass(frozen=True)
class Origin:
    """The rows that a split's examples came from, how messages name their file, and where relative paths start."""

    where: str
    rows: Sequence[Row]
    root: Path


def vary(spec: TaskSpec, data: TaskData, split: str, variant: Variant, origin: Origin, *, seed: int) -> Varied:
    """Make one variant of a split of a loaded task.

    Raises:
        DataError: The variant does not apply to the task or to a row; the message names both.
    """
    plain, where = data.splits[split], f"{origin.where}: variant {variant.name}"
    if spec.messages:
        made = _talks(plain, variant, where, seed)
    else:
        made = _rendered(spec, data, plain, variant, replace(origin, where=where), seed)
    pairs = zip(plain, made, strict=True)
    return Varied(made, sum((old.prompt, old.messages) != (new.prompt, new.messages) for old, new in pairs))


def _rendered(
    spec: TaskSpec, data: TaskData, plain: Sequence[Example], variant: Variant, origin: Origin, seed: int
) -> tuple[Example, ...]:
    """Rows with changed fields, or under another template, made examples as all rows are."""
    # Rows that were left out for their hidden labels may have no id.
    named = [row for row in origin.rows if spec.id is None or row.fields.get(spec.id) is not None]
    row_of = {identify(row, spec): row for row in named}
    if isinstance(variant, Template):
        _check_template(spec, variant, origin.where)
        spec = spec.model_copy(update={"input": variant.input})
    given = _paraphrases(variant, plain, row_of, origin) if isinstance(variant, Paraphrase) else {}
    rows, faults = [], []
    for example in plain:
        row = row_of[example.id]
        try:
            changed = _fields(row.fields, example, spec, data, variant, given, seed)
        except DataError as fault:
            faults.append(f"{row.where}: {fault}")
        else:
            rows.append(replace(row, fields=row.fields | changed))
    files.refuse(origin.where, faults, of=len(plain))
    new = {example.id: example.prompt for example in examine(rows, spec, origin.where).examples}
    return tuple(replace(example, prompt=new[example.id]) for example in plain)


def _fields(
    fields: dict, example: Example, spec: TaskSpec, data: TaskData, variant: Variant, given: dict[str, str], seed: int
) -> dict:
    """The fields of a row that the variant changes, with their new values."""
    if isinstance(variant, Template):
        return {}
    if isinstance(variant, Paraphrase):
        return {variant.field: given[example.id]}
    if isinstance(variant, Order):
        rng = stream(seed, variant.name, example.id, variant.field)
        return {variant.field: _reordered(fields, variant, example, spec, rng)}
    kept, change = _kept(example, spec, data), CHANGES[variant.kind]
    shown = variant.fields or tuple(name for name in _shown(fields, spec) if isinstance(fields[name], str))
    for name in shown:
        if not isinstance(fields.get(name), str):
            raise DataError(f"{name} is no text, got {short(fields.get(name))}")
    return {
        name: change(fields[name], variant.rate, kept, stream(seed, variant.name, example.id, name)) for name in shown
    }


def _shown(fields: dict, spec: TaskSpec) -> list[str]:
    """The fields that the prompt may show: those named in the template, or all where it goes by `row`."""
    named = prompt.names(spec.input)
    hidden = {spec.target, spec.tests, spec.id, spec.cluster}
    return [name for name in fields if name not in hidden and (name in named or "row" in named)]


def _kept(example: Example, spec: TaskSpec, data: TaskData) -> frozenset[str]:
    """Words that no change may touch, casefolded: of labels, or of the text to write unless its number counts."""
    if data.kind == "classify":
        said = data.labels
    else:
        said = (example.target,) if data.kind == "generate" and spec.metric != "numeric_match" else ()
    return frozenset(word for text in said for word in noise.words(text))


def _reordered(fields: dict, variant: Order, example: Example, spec: TaskSpec, rng: random.Random) -> object:
    value = fields.get(variant.field)
    if isinstance(value, dict):
        return dict(_shuffled(list(value.items()), rng))
    is_text = isinstance(value, str) and variant.separator
    if not is_text and not isinstance(value, list):
        do = "is no list, object, or text with a separator"
        raise DataError(f"{variant.field} {do}, got {short(value)}")
    parts = value.split(variant.separator) if is_text else value
    names_place = len(str(example.target)) <= 2 or spec.kind == "classify"
    if spec.kind != "regress" and names_place and str(example.target) not in map(str, parts):
        raise DataError(f"target {example.target!r} is none of {variant.field}, so it may mean a place in their order")
    parts = _shuffled(parts, rng)
    return variant.separator.join(parts) if is_text else parts


def _shuffled(parts: list, rng: random.Random) -> list:
    """Another order than this one, if there is another."""
    moved = rng.sample(parts, len(parts))
    return moved if moved != parts else parts[1:] + parts[:1]


def _check_template(spec: TaskSpec, variant: Template, where: str) -> None:
    try:
        asked, own = prompt.names(variant.input), prompt.names(spec.input)
    except DataError as fault:
        raise DataError(f"{where}: input: {fault}; mend the template") from None
    if asked != own:
        got = f"got {', '.join(sorted(asked)) or 'none'}"
        raise DataError(f"{where}: must ask for the same fields as the task, {', '.join(sorted(own))}, {got}; add them")


def _paraphrases(
    variant: Paraphrase, plain: Sequence[Example], row_of: dict[str, Row], origin: Origin
) -> dict[str, str]:
    """The other text of each example, by its id; all must have one."""
    if (variant.column is None) == (variant.file is None):
        raise DataError(f"{origin.where}: needs a column or a file, got {variant.model_dump()}; name one of them")
    if variant.column is not None:
        given = {example.id: row_of[example.id].fields.get(variant.column) for example in plain}
        source = variant.column
    else:
        source = variant.file
        rows = files.read(origin.root / Path(source).expanduser(), source)
        given = {str(row.fields.get("id")): row.fields.get(variant.field) for row in rows}
        if len(given) < len(rows):
            raise DataError(f"{source}: ids repeat, got {len(rows)} rows of {len(given)} ids; keep one row an example")
    lacking = [e.id for e in plain if not isinstance(given.get(e.id), str) or not given[e.id].strip()]
    if lacking:
        got = f"got none for {', '.join(map(repr, lacking[: files.SHOWN]))}"
        raise DataError(
            f"{origin.where}: {source} lacks {len(lacking)} of {len(plain)} examples, {got}; add their texts"
        )
    return {example.id: given[example.id] for example in plain}


def _talks(plain: Sequence[Example], variant: Variant, where: str, seed: int) -> tuple[Example, ...]:
    """Conversations in which the user's turns are changed; only noise applies to them."""
    if not isinstance(variant, Noise) or variant.fields:
        got = f"got {variant.kind}" + (" of fields" if isinstance(variant, Noise) else "")
        raise DataError(f"{where}: conversations take case, typos and whitespace in all user turns, {got}; use these")
    made = []
    for example in plain:
        kept, turns = frozenset(noise.words(str(example.target))), json.loads(example.messages)
        for number, turn in enumerate(turns):
            if turn["role"] == "user":
                rng = stream(seed, variant.name, example.id, str(number))
                turn["content"] = CHANGES[variant.kind](turn["content"], variant.rate, kept, rng)
        made.append(replace(example, messages=canonical(turns)))
    return tuple(made)


def stream(seed: int, variant: str, example: str, field: str) -> random.Random:
    """The random stream of one text, which no other text shares."""
    text = json.dumps([seed, variant, example, field])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()))
