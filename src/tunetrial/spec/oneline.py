"""One line to a study file: the task is guessed from the columns of a file of rows, and every guess is said.

What cannot be told is refused with the columns that there are; nothing is chosen in silence.
"""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from tunetrial import tasks
from tunetrial.core.errors import DataError, SpecError
from tunetrial.core.records import Record
from tunetrial.spec.faults import show
from tunetrial.spec.write import scalar
from tunetrial.tasks import files, folds
from tunetrial.tasks.files import Row

KINDS = {"classify": "macro_f1", "regress": "mae", "generate": "nll"}
# What needs no training: labels and numbers are read from heads, which an untuned base has not.
WORDS, BASE = ("tfidf", "a linear model of words"), ("untuned", "the base as it is")
UNTRAINED = {"classify": WORDS, "regress": WORDS, "generate": BASE}
# Few rows are cut into folds, on which macro-F1 is biased.
OF_FEW = {"classify": "accuracy"}
CONVERSATIONS = ("messages", "conversations")
TARGETS = ("label", "target", "class", "category", "intent", "sentiment", "queue", "score", "rating", "stars", "answer",
           "completion", "response", "output")  # fmt: skip
NO_INPUT = re.compile(r"(.*_)?(id|idx|uuid|index|split|date|timestamp|url)|.*_(id|at|url)", re.IGNORECASE)
MOST_LABELS, ROWS_A_LABEL, MOST_INPUTS = 100, 4, 5
SHARE, SD_SHARE = 0.02, 0.1
_BUDGET = re.compile(r"([0-9.]+) ?(usd|h)(?:@([0-9.]+))?")


class Task(Record):
    """A task as guessed: its fields in a study file, and what was guessed, in words."""

    fields: dict[str, str]
    margin: float
    remarks: tuple[str, ...]


class Spend(Record):
    """A budget as it was said: dollars at a price an hour, or hours."""

    usd: float | None = None
    gpu_hours: float | None = None
    usd_per_hour: float | None = None


def spend(text: str, *, price: str | None = None) -> Spend:
    """Read "20usd@0.80", "2h", or "20usd" where the price of an hour is known otherwise.

    Raises:
        SpecError: It is none of these, or dollars without a price.
    """
    found = _BUDGET.fullmatch(text.strip().lower())
    try:
        amount, hourly = float(found[1]), float(found[3] or price or 0)
    except (TypeError, ValueError):
        raise SpecError(f"--budget: no budget, got {show(text)}; write 20usd@0.80 (at 0.80 an hour), or 2h") from None
    if not amount > 0 or (found[2] == "usd" and not hourly > 0):
        what = "must be > 0" if not amount > 0 else "dollars need the price of this machine"
        remedy = "write 20usd@0.80 (at 0.80 an hour), set TUNETRIAL_USD_PER_HOUR, or write hours, such as 2h"
        raise SpecError(f"--budget: {what}, got {show(text)}; {remedy}")
    return Spend(**{"usd" if found[2] == "usd" else "gpu_hours": amount}, usd_per_hour=hourly if hourly > 0 else None)


def guess(data: str, *, task: str | None = None, margin: float | None = None) -> Task:
    """Guess the task of a file of rows.

    Args:
        task: What is known of it: a kind, a column to predict, or both as kind:column.
        margin: The smallest difference that matters; without it one is chosen, and said.
    Raises:
        DataError: The file cannot be read, or what is to be predicted cannot be told; the columns are listed.
    """
    rows = files.read(Path(data).expanduser(), data)
    columns = list(dict.fromkeys(name for row in rows for name in row.fields))
    kind, target = _said(task, columns, data)
    fields = {"data": data} | (_fields(rows, columns, kind, target, data))
    metric = KINDS[fields["kind"]]
    few = len(rows) < folds.FEW_ROWS
    if few:
        metric = OF_FEW.get(fields["kind"], metric)
    chosen, why = (margin, "as you said") if margin is not None else _margin(fields, rows)
    what = fields.get("target") or fields["messages"]
    remarks = [
        f"{fields['kind']} {what!r} by {metric}, guessed from the columns {', '.join(columns)}; otherwise give "
        "--task kind:column, or change the study file",
    ]
    if "input" in fields:
        remarks.append(f"the prompt is {fields['input']!r}; change input in the study file if a column is missing")
    name, what = UNTRAINED[fields["kind"]]
    remarks.append(f"do you need to tune at all? {name}, {what}, is an arm too: one run, with nothing to search for")
    if few:
        remarks.append(
            f"fewer than {folds.FEW_ROWS} rows are cut into folds, so that each is tested; for one split, write "
            "replicates: {folds: none}"
        )
    head, tail = ("margin", "") if margin is not None else ("MARGIN CHOSEN FOR YOU:", "; write your own with --margin")
    remarks.append(f"{head} {chosen:g} {metric}, {why}{tail}")
    return Task(fields=fields | {"metric": metric}, margin=chosen, remarks=tuple(remarks))


def study_file(model: str, task: Task, *, budget: Spend | None = None, gpu: str | None = None) -> str:
    """Write the study: full fine-tuning against LoRA at their defaults, and what needs no training at all."""
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(task.fields["data"]).stem.lower()).strip("-._")[:40] or "rows"
    name += "-rows" if name in tasks.BUILT_IN else ""
    lines = [f"# {_plain(remark)}" for remark in task.remarks]
    lines += [f"base_model: {scalar(model)}", "tasks:", f"  - name: {scalar(name)}"]
    lines += [f"    {key}: {scalar(value)}" for key, value in task.fields.items()]
    lines += [f"    margin: {task.margin!r}", "arms:", "  full: {method: full}", "  lora: {method: lora}"]
    untrained, _ = UNTRAINED[task.fields["kind"]]
    lines.append(f"  {untrained}: {{method: {'none' if untrained == 'untuned' else untrained}}}")
    price = budget.usd_per_hour if budget else None
    hardware = {"gpu": scalar(gpu) if gpu else None, "usd_per_hour": price}
    lines += _mapping("hardware", hardware)
    lines += _mapping("budget", budget.model_dump(exclude={"usd_per_hour"}) if budget else {})
    return "\n".join(lines) + "\n"


def _mapping(name: str, values: dict) -> list[str]:
    given = ", ".join(f"{key}: {value}" for key, value in values.items() if value is not None)
    return [f"{name}: {{{given}}}"] if given else []


def _said(task: str | None, columns: Sequence[str], data: str) -> tuple[str | None, str | None]:
    if task is None:
        return None, None
    kind, _, column = task.rpartition(":") if ":" in task else (("", "", task), (task, "", ""))[task in KINDS]
    if (kind and kind not in KINDS) or (column and column not in columns):
        raise DataError(
            f"--task: no kind and no column of {data}, got {show(task)}; kinds are {', '.join(KINDS)}, columns are "
            f"{', '.join(columns)}"
        )
    return kind or None, column or None


def _fields(rows: Sequence[Row], columns: list[str], kind: str | None, target: str | None, data: str) -> dict[str, str]:
    """Kind, prompt and target in the fields of a study file."""
    if kind in (None, "generate"):
        talks = [name for name in CONVERSATIONS if name in columns and target in (None, name)]
        if not talks and target in (None, "output") and {"instruction", "output"} <= set(columns):
            talks = ["instruction"]
        if talks:
            return {"kind": "generate", "messages": talks[0]}
    if target is None:
        named = [name for name in columns if name.lower() in TARGETS]
        if len(named) != 1:
            which = f"{' and '.join(named)} all might be" if named else "no column is called label, target, score or so"
            raise DataError(
                f"{data}: cannot tell what to predict, got columns {', '.join(columns)} ({which}); "
                "give --task kind:column, such as --task classify:label"
            )
        target = named[0]
    inputs = [name for name in columns if name != target and not NO_INPUT.fullmatch(name) and _is_text(rows, name)]
    if not 0 < len(inputs) <= MOST_INPUTS:
        raise DataError(
            f"{data}: cannot tell the prompt, got {len(inputs)} columns of text beside {target!r}; "
            "write a study file with an input of your own"
        )
    fields = {"kind": kind or _kind(rows, target, data), "input": "".join(f"{{{{ {_row(n)} }}}}\n" for n in inputs)}
    return fields | {"target": target}


def _row(name: str) -> str:
    return name if name.isidentifier() else f"row[{name!r}]"


def _is_text(rows: Sequence[Row], name: str) -> bool:
    values = [row.fields.get(name) for row in rows]
    return all(isinstance(value, str) for value in values if value is not None) and _number(values) is None


def _kind(rows: Sequence[Row], target: str, data: str) -> str:
    """By the target's values: numbers of many values are for `regress`, few values for `classify`, else text."""
    values = [row.fields.get(target) for row in rows if row.fields.get(target) is not None]
    distinct, numbers = len({str(value) for value in values}), _number(values)
    few = distinct <= min(MOST_LABELS, max(2, len(values) / ROWS_A_LABEL))
    if numbers is not None:
        graded = target.lower() in ("score", "rating", "stars") or not all(n.is_integer() for n in numbers)
        return "regress" if graded or not few else "classify"
    if all(isinstance(value, str | bool) for value in values):
        return "classify" if few else "generate"
    got = show(next((v for v in values if not isinstance(v, str | bool)), None))
    raise DataError(f"{data}: {target!r} holds neither labels, numbers nor texts, got {got}; give --task kind:column")


def _number(values: Sequence[object]) -> list[float] | None:
    """The values as numbers, None if one is none."""
    try:
        return (
            [float(v) for v in values if v is not None and not isinstance(v, bool)]
            if values and not any(isinstance(v, bool) for v in values)
            else None
        )
    except (TypeError, ValueError):
        return None


def _margin(fields: dict[str, str], rows: Sequence[Row]) -> tuple[float, str]:
    """A margin for those who gave none, and what it rests on."""
    if fields["kind"] == "classify":
        return SHARE, "two points of 100"
    if fields["kind"] == "generate":
        return SHARE, "in nats a token: two per cent of perplexity"
    values = _number([row.fields.get(fields["target"]) for row in rows]) or []
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if not spread > 0:
        raise DataError(f"{fields['data']}: {fields['target']!r} never varies, so no margin is told; give --margin")
    return float(f"{SD_SHARE * spread:.2g}"), "a tenth of the standard deviation of the target"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
