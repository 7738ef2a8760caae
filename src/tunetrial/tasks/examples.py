"""Examples of rows: the prompt rendered, the target as a label, number or text, and every fault named by its row."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tunetrial.core.errors import DataError, RunawayError
from tunetrial.core.evidence import Example
from tunetrial.core.study import TaskSpec
from tunetrial.tasks import conversations, prompt
from tunetrial.tasks.conversations import Conversation
from tunetrial.tasks.files import Row, refuse, short

HIDDEN = "-1"
# What chat templates and tokenizers write as single tokens; in a row they end a turn or a text where none ends.
CONTROL = re.compile(
    r"<\|[^\s<>|]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>"
    r"|<\uff5c[^\s<>]{1,40}\uff5c>"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """The usable rows of one file as examples: how messages name the file, and each row by its example's id.

    `hidden` counts the rows that were left out because their label is -1, the usual mark of a label not given.
    `remarks` say what else was found or not used.
    """

    where: str
    examples: tuple[Example, ...]
    row_of: dict[str, str]
    hidden: int
    remarks: tuple[str, ...] = ()


def examine(rows: Sequence[Row], spec: TaskSpec, where: str) -> Source:
    """Make an example of every row.

    Labels become text (1, 1.0 and "1" all "1"; true "true"), targets of `regress` finite numbers, those of `generate`
    stay as they are. Without the field `spec.id` an example is known by its row's number; without `spec.cluster` it is
    a cluster of its own.

    Raises:
        DataError: A field is nowhere, or rows have faults; the message shows the first five by number.
    """
    _check_fields(rows, spec, where)
    seen = [row for row in rows if spec.kind != "classify" or _plain(row.fields.get(spec.target)) != HIDDEN]
    if spec.kind == "classify":
        _check_types(seen, spec.target, where)
    examples, row_of, faults, talks = [], {}, [], []
    with prompt.filling(spec.input) as fill:
        for row in seen:
            try:
                talk = _talk(row, spec)
                example = _example(row, spec, fill, talk)
                if example.id in row_of:
                    raise DataError(f"{spec.id} {example.id!r} repeats {row_of[example.id]}")
            except RunawayError as fault:
                raise DataError(f"{where}: {row.where}: {fault}; simplify the template") from None
            except DataError as fault:
                faults.append(f"{row.where}: {fault}")
            else:
                examples.append(example)
                talks += [talk] if talk else []
                row_of[example.id] = row.where
    if faults:
        _check_names(rows, spec, where)
    refuse(where, faults, of=len(rows))
    remarks = (*_remark_unused(talks), *_remark_controls(examples, row_of))
    return Source(where, tuple(examples), row_of, hidden=len(rows) - len(seen), remarks=remarks)


def _talk(row: Row, spec: TaskSpec) -> Conversation | None:
    for field in filter(None, (spec.messages, spec.target, spec.tests, spec.id, spec.cluster)):
        if field not in row.fields:
            raise DataError(f"{field} is missing")
    return conversations.read(row.fields, spec.messages) if spec.messages else None


def _example(row: Row, spec: TaskSpec, fill: Callable[[dict], str], talk: Conversation | None) -> Example:
    read_target = {"classify": _label, "regress": _number, "generate": _name}[spec.kind]
    target = talk.answer if talk else read_target(row.fields[spec.target], spec.target)
    if spec.kind == "generate":
        _check_measurable(target, spec)
    name = identify(row, spec)
    return Example(
        id=name,
        cluster=name if spec.cluster is None else _name(row.fields[spec.cluster], spec.cluster),
        prompt="" if talk else fill(row.fields),
        target=target,
        messages=talk.json if talk else None,
        tests=None if spec.tests is None else _tests(row.fields[spec.tests], spec.tests),
        tools=talk.tools if talk else None,
    )


def identify(row: Row, spec: TaskSpec) -> str:
    """The id of the example that a row makes: its field `spec.id`, or its number."""
    return str(row.number) if spec.id is None else _name(row.fields[spec.id], spec.id)


def _check_measurable(target: str, spec: TaskSpec) -> None:
    """A metric that reads targets must be able to read all of them, which is better known before the training."""
    from tunetrial.analysis import texts  # numpy comes with it, for which reading labels need not wait

    fault = texts.fault(spec.metric, target)
    if fault:
        raise DataError(f"{spec.target or spec.messages}: {fault} in the target for {spec.metric}, got {short(target)}")


def _tests(value: object, field: str) -> str:
    """Python code, or a list of its lines."""
    listed = isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value)
    code = "\n".join(value) if listed else value
    if not isinstance(code, str):
        raise DataError(f"{field} is no code, got {short(value)}")
    _refuse_empty(code, field)
    return code


def _remark_unused(talks: Sequence[Conversation]) -> list[str]:
    """What conversations hold and their turns do not."""
    remarks = []
    cut = [talk for talk in talks if talk.unanswered]
    if cut:
        remarks.append(f"{len(cut)} of {len(talks)} conversations go on after the last answer, which was left out")
    for key, count in sorted(Counter(key for talk in talks for key in talk.unused).items()):
        remarks.append(f"{count} of {len(talks)} conversations have {key!r}, which is not shown to the model")
    return remarks


def _remark_controls(examples: Sequence[Example], row_of: dict[str, str]) -> list[str]:
    """Rows whose text would be taken for control tokens; what they hold is the user's and stays."""
    texts = ((e.id, [e.prompt, str(e.target), *conversations.contents(e), e.tools or ""]) for e in examples)
    found = [(name, match[0]) for name, said in texts if (match := CONTROL.search("\n".join(said)))]
    if not found:
        return []
    (name, mark), count = found[0], f"{len(found)} of {len(examples)} rows"
    return [f"{count} hold text that tokenizers may take for control tokens, such as {mark!r} in {row_of[name]}"]


def _check_fields(rows: Sequence[Row], spec: TaskSpec, where: str) -> None:
    """A field that no row has is one mistake in the study, not one in every row."""
    there = sorted({name for row in rows for name in row.fields})
    for role in ("messages", "target", "tests", "id", "cluster"):
        field = getattr(spec, role)
        if field and field not in there:
            raise DataError(f"{where}: {role}: no row has this field, got {field!r}; {_advise(field, there)}")


def _check_names(rows: Sequence[Row], spec: TaskSpec, where: str) -> None:
    """The same for the fields of the prompt, which may be optional there: asked only once rows have faults."""
    there = sorted({name for row in rows for name in row.fields})
    for field in sorted(prompt.names(spec.input) - {"row", *there}):
        raise DataError(f"{where}: input: no row has this field, got {field!r}; {_advise(field, there)}")


def _advise(field: str, there: list[str]) -> str:
    near = difflib.get_close_matches(field, there, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(there[:20])}"


def _check_types(rows: Sequence[Row], field: str, where: str) -> None:
    """1 and "1" and true in one column of labels are a mistake of the export, whichever was meant."""
    types = [(row, _type(row.fields.get(field))) for row in rows]
    counts = Counter(kind for _, kind in types if kind)
    if len(counts) > 1:
        usual = max(sorted(counts), key=counts.__getitem__)
        odd = [(row, kind) for row, kind in types if kind and kind != usual]
        faults = [f"{row.where}: {field} is {kind}, got {row.fields[field]!r}, most are {usual}" for row, kind in odd]
        refuse(where, faults, of=len(rows))


def _type(value: object) -> str | None:
    """How a label is written; None for what is no label at all, which is another fault."""
    if isinstance(value, bool):
        return "true or false"
    return "text" if isinstance(value, str) else "a number" if isinstance(value, int | float) else None


def _plain(value: object) -> str | None:
    """Labels and names as text; None for what is neither text nor a whole number nor a truth value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) else None


def _label(value: object, field: str) -> str:
    label = _name(value, field)
    if label != label.strip():
        raise DataError(f"{field} has white space around it, got {label!r}")
    return label


def _name(value: object, field: str) -> str:
    _refuse_empty(value, field)
    name = _plain(value)
    if name is None:
        raise DataError(f"{field} is neither text nor a whole number, got {short(value)}")
    return name


def _number(value: object, field: str) -> float:
    _refuse_empty(value, field)
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and NUMBER.fullmatch(value.strip())):
        raise DataError(f"{field} is no number, got {short(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{field} is not finite, got {short(value)}")
    return number


def _refuse_empty(value: object, field: str) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{field} is empty, got {value!r}")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{field} is no valid Unicode, got {short(value)}")
