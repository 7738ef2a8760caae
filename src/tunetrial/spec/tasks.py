"""Tasks of a study file: built-in ones with what differs, own ones with what is due, and the metrics they name."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError, nodes

from tunetrial import tasks
from tunetrial.analysis import metrics, texts
from tunetrial.core.errors import DataError
from tunetrial.core.records import canonical
from tunetrial.core.study import TaskSpec
from tunetrial.spec.faults import Fault, nearest, show
from tunetrial.spec.form import TaskForm
from tunetrial.spec.variants import check_variants, resolve_variants
from tunetrial.tasks import prompt

# chrF for texts: it needs no words and so suits every language and code, and gives part of the credit for part of a
# text, which single examples need (Popović 2015). What has one right answer is better judged by another metric.
DEFAULT_METRIC = {"classify": "macro_f1", "regress": "mae", "generate": "chrf"}
LARGEST_SCHEMA_BYTES = 65_536
_OF_TEXT = ("messages", "json_schema", "tests", "criterion")
_NOT_TEXT = "is for tasks that generate text, got a {} task; remove it"
_MEASURED_BY = {"schema_valid": "json_schema", "tests_pass": "tests"}
_UNITS = {
    "target units": "in the unit of the target",
    "nats a token": "in nats a token",
    "bits a byte": "in bits a byte",
}
_OVER_BUILT_IN = {"name", "metric", "margin", "epochs", "variants", "criterion"}


def resolve_tasks(forms: tuple[TaskForm, ...], root: Path) -> tuple[tuple[TaskSpec, ...], list[Fault]]:
    """The tasks that can be told, and what is wrong with the others."""
    specs, faults = [], []
    names = [form.name for form in forms]
    for number, form in enumerate(map(_filled, forms)):
        spec, wrong = _built_in(form) if form.name in tasks.BUILT_IN else _own(form, root)
        if form.name in names[:number]:
            wrong = {"name": f"given twice, got {show(form.name)}; remove one, or choose another name"}
        faults += [Fault(("tasks", number, *_keys(field)), what) for field, what in wrong.items()]
        specs += [spec] if spec and not wrong else []
    return tuple(specs), faults


def _keys(field: str) -> Iterator[str | int]:
    return (int(key) if key.isdecimal() else key for key in field.split())


def _filled(form: TaskForm) -> TaskForm:
    """A task of GLUE with what its table says, where the file does not say otherwise."""
    if form.name not in tasks.GLUE:
        return form
    given = form.model_dump(exclude_unset=True)
    known = tasks.GLUE[form.name].spec.model_dump(include=set(TaskForm.model_fields), exclude_none=True)
    replaced = {"data": ("test",), "metric": ("margin",)}
    dropped = {field for cause, fields in replaced.items() if cause in given for field in fields}
    return TaskForm(**{field: value for field, value in known.items() if field not in dropped} | given)


def check_floor(task: TaskSpec, metric: str, condition: str) -> str | None:
    """What is wrong with a floor such as "<= 1.5" on a metric of a task, if anything is."""
    wrong = _check_metric(task.kind, metric) or _check_measured(task, metric)
    if wrong:
        return wrong
    higher = metrics.METRICS[metric].higher_is_better
    if higher == (condition[:2] == ">="):
        return None
    better, sign = ("higher", ">=") if higher else ("lower", "<=")
    return f"{metric} is better when {better}, got {show(condition)}; write '{sign} {condition[3:]}'"


def _built_in(form: TaskForm) -> tuple[TaskSpec | None, dict[str, str]]:
    """A built-in task with the margin, metric or epochs that the file gives."""
    fixed = sorted(form.model_fields_set - _OVER_BUILT_IN)
    if fixed:
        remedy = "remove this, or name your own task otherwise"
        return None, {field: f"{form.name!r} is built in, with rows and prompt of its own; {remedy}" for field in fixed}
    try:
        spec = tasks.built_in(form.name)
    except DataError as error:
        return None, {"": str(error).removeprefix("tasks: ")}
    if form.criterion is not None and spec.kind != "generate":
        return None, {"criterion": _NOT_TEXT.format(spec.kind)}
    given = form.model_dump(exclude_none=True, exclude={"variants"})
    spec = spec.model_copy(update=given | {"variants": resolve_variants(form.variants)})
    wrong = _check_metric(spec.kind, spec.metric) or _check_measured(spec, spec.metric)
    if wrong:
        return None, {"metric": wrong}
    if form.metric is not None and form.margin is None:
        return None, {"margin": _choose_margin(spec.metric)}
    return spec, _check_margin(spec.metric, spec.margin) | check_variants(spec)


def _own(form: TaskForm, root: Path) -> tuple[TaskSpec | None, dict[str, str]]:
    """A task over the user's rows."""
    if form.data is None:
        known = [name for name, task in tasks.BUILT_IN.items() if task.kind in DEFAULT_METRIC] + [*tasks.GLUE]
        if form.model_fields_set == {"name"}:
            what = f"no built-in task, got {show(form.name)}; {nearest(form.name, known)} (your own task needs data)"
            return None, {"": what}
        return None, {"data": "is missing; give the file of rows, such as data/rows.jsonl"}
    wrong = _check_asked(form)
    metric = form.metric or DEFAULT_METRIC.get(form.kind)
    unfit = (_check_metric(form.kind, metric) or _check_measured(form, metric)) if form.kind else None
    if unfit:
        wrong["metric"] = unfit
    elif form.margin is None:
        wrong["margin"] = _choose_margin(metric)
    else:
        wrong |= _check_margin(metric, form.margin)
    paths = [os.path.normpath(path) for path in (form.data, form.validation, form.test) if path]
    if len(set(paths)) < len(paths):
        wrong["data"] = "the same file for two splits, got " + show(paths) + "; name one file for each, or data alone"
    if form.input and form.target and (bad := _check_input(form.input, form.target)):
        wrong["input"] = bad
    schema, unread = _read_schema(form.json_schema, root) if form.json_schema else (None, None)
    if unread:
        wrong["json_schema"] = unread
    settled = {"metric": metric, **({"json_schema": schema} if schema else {})}
    if wrong:
        return None, wrong
    spec = TaskSpec(**form.model_dump(exclude_none=True) | settled | {"variants": resolve_variants(form.variants)})
    return spec, check_variants(spec)


def _check_asked(form: TaskForm) -> dict[str, str]:
    """Every task says what is asked and what is answered, and one of conversations by these alone."""
    if form.messages is not None and form.kind == "generate":
        what = "the conversation itself says what is asked and answered, got {} beside messages; remove one of them"
        return {f: what.format(f) for f in ("input", "target") if getattr(form, f) is not None}
    wrong = {f: f"is missing; {_due(f)}" for f in ("kind", "input", "target") if getattr(form, f) is None}
    if form.kind == "generate" and {"input", "target"} <= set(wrong):
        what = "has neither input and target nor messages; give the fields of prompts and completions, or of chats"
        return {"": what}
    if form.kind is not None and form.kind != "generate":
        wrong |= {f: _NOT_TEXT.format(form.kind) for f in _OF_TEXT if getattr(form, f) is not None}
    return wrong


def _read_schema(given: str, root: Path) -> tuple[str | None, str | None]:
    """The canonical JSON of a schema that is given as such or as a path, or what is wrong with it."""
    text, got = given, f"got {show(given)}"
    if not given.lstrip().startswith("{"):
        try:
            with (root / Path(given).expanduser()).open("rb") as file:
                text = file.read(LARGEST_SCHEMA_BYTES + 1).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            return None, f"cannot be read ({reason}), {got}; name the file of a JSON Schema, or write its JSON"
    if len(text) > LARGEST_SCHEMA_BYTES:
        return None, f"is longer than 64 KiB, {got}; write a smaller schema"
    fault = texts.schema_fault(text)
    if fault:
        return None, f"is {' '.join(fault.split())[:120]}, {got}; mend the schema"
    return canonical(json.loads(text)), None


def _check_measured(task: TaskForm | TaskSpec, metric: str) -> str | None:
    """What a metric needs besides target and completion."""
    field = _MEASURED_BY.get(metric)
    if field and getattr(task, field) is None:
        return f"{metric} needs {field}, got none; {_due(field)}"
    return None


def _due(field: str) -> str:
    description = TaskForm.model_fields[field].description
    return f"give the {description}, such as {show(TaskForm.model_fields[field].examples[0])}"


def _check_metric(kind: str, metric: str) -> str | None:
    fit = [m.name for m in metrics.of_kind(kind) if m.higher_is_better is not None]
    if metric in fit:
        package = texts.missing_library(metric)
        remedy = "pip install 'tunetrial[eval]', or use another metric"
        return f"{metric} needs {package}, got none installed; {remedy}" if package else None
    if metric in metrics.METRICS:
        known = metrics.METRICS[metric]
        reason = "only describes" if kind in known.kinds else f"is a metric of {' and '.join(known.kinds)} tasks"
        return f"{metric} {reason}, got a {kind} task; use one of {', '.join(fit)}"
    return f"unknown metric, got {show(metric)}; {nearest(metric, fit)}"


def _choose_margin(metric: str | None) -> str:
    unit = "in the unit of the metric"
    if metric in metrics.METRICS:
        unit = "0.02 is two points of 100" if _runs_to_one(metric) else _UNITS[metrics.METRICS[metric].unit]
    name = metric or "the metric"
    return f"is missing; give the smallest difference in {name} that would change what you do ({unit})"


def _check_margin(metric: str | None, margin: float | str) -> dict[str, str]:
    if isinstance(margin, str) or metric not in metrics.METRICS or not _runs_to_one(metric) or margin < 1:
        return {}
    remedy = "write two points of 100 as 0.02"
    return {"margin": f"{metric} is at most 1, so no difference could matter, got {show(margin)}; {remedy}"}


def _runs_to_one(metric: str) -> bool:
    return metrics.METRICS[metric].unit not in _UNITS


def _check_input(template: str, target: str) -> str | None:
    """What is wrong with a prompt that no row is needed to see."""
    try:
        tree = prompt.ENVIRONMENT.parse(template)
        names = prompt.asked(tree)
    except (TemplateError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        return f"no template ({reason}), got {show(template)}; write fields as {{{{ field }}}}"
    if not names:
        return f"names no field, so every prompt is the same, got {show(template)}; write fields as {{{{ field }}}}"
    through_row = {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    if target in names | through_row | {node.attr for node in tree.find_all(nodes.Getattr)}:
        return f"shows the model the target {target!r}, got {show(template)}; remove it from the prompt"
    return None
