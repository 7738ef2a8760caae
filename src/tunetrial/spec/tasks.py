"""Tasks of a study file: built-in ones with what differs, own ones with what is due, and the metrics they name."""

import os

from jinja2 import TemplateError, nodes

from tunetrial import tasks
from tunetrial.analysis import metrics
from tunetrial.core.errors import DataError
from tunetrial.core.study import TaskSpec
from tunetrial.spec.faults import Fault, nearest, show
from tunetrial.spec.form import TaskForm
from tunetrial.tasks import prompt

DEFAULT_METRIC = {"classify": "macro_f1", "regress": "mae"}
_OVER_BUILT_IN = {"name", "metric", "margin", "epochs"}


def resolve_tasks(forms: tuple[TaskForm, ...]) -> tuple[tuple[TaskSpec, ...], list[Fault]]:
    """The tasks that can be told, and what is wrong with the others."""
    specs, faults = [], []
    names = [form.name for form in forms]
    for number, form in enumerate(map(_filled, forms)):
        spec, wrong = _built_in(form) if form.name in tasks.BUILT_IN else _own(form)
        if form.name in names[:number]:
            wrong = {"name": f"given twice, got {show(form.name)}; remove one, or choose another name"}
        faults += [Fault(("tasks", number, *field.split()), what) for field, what in wrong.items()]
        specs += [spec] if spec and not wrong else []
    return tuple(specs), faults


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
    wrong = _check_metric(task.kind, metric)
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
    given = form.model_dump(exclude_none=True)
    spec = spec.model_copy(update=given)
    wrong = _check_metric(spec.kind, spec.metric)
    if wrong:
        return None, {"metric": wrong}
    if form.metric is not None and form.margin is None:
        return None, {"margin": _choose_margin(spec.metric)}
    return spec, _check_margin(spec.metric, spec.margin)


def _own(form: TaskForm) -> tuple[TaskSpec | None, dict[str, str]]:
    """A task over the user's rows."""
    if form.data is None:
        known = [name for name, task in tasks.BUILT_IN.items() if task.kind in DEFAULT_METRIC] + [*tasks.GLUE]
        if form.model_fields_set == {"name"}:
            what = f"no built-in task, got {show(form.name)}; {nearest(form.name, known)} (your own task needs data)"
            return None, {"": what}
        return None, {"data": "is missing; give the file of rows, such as data/rows.jsonl"}
    wrong = {f: f"is missing; {_due(f)}" for f in ("kind", "input", "target") if getattr(form, f) is None}
    metric = form.metric or DEFAULT_METRIC.get(form.kind)
    unfit = _check_metric(form.kind, metric) if form.kind else None
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
    return (None, wrong) if wrong else (TaskSpec(**form.model_dump() | {"metric": metric}), {})


def _due(field: str) -> str:
    description = TaskForm.model_fields[field].description
    return f"give the {description}, such as {show(TaskForm.model_fields[field].examples[0])}"


def _check_metric(kind: str, metric: str) -> str | None:
    fit = [m.name for m in metrics.of_kind(kind) if m.higher_is_better is not None]
    if metric in fit:
        return None
    if metric in metrics.METRICS:
        known = metrics.METRICS[metric]
        reason = "only describes" if kind in known.kinds else f"is a metric of {' and '.join(known.kinds)} tasks"
        return f"{metric} {reason}, got a {kind} task; use one of {', '.join(fit)}"
    return f"unknown metric, got {show(metric)}; {nearest(metric, fit)}"


def _choose_margin(metric: str | None) -> str:
    unit = "in the unit of the metric"
    if metric in metrics.METRICS:
        unit = "0.02 is two points of 100" if _runs_to_one(metric) else "in the unit of the target"
    name = metric or "the metric"
    return f"is missing; give the smallest difference in {name} that would change what you do ({unit})"


def _check_margin(metric: str | None, margin: float) -> dict[str, str]:
    if metric not in metrics.METRICS or not _runs_to_one(metric) or margin < 1:
        return {}
    remedy = "write two points of 100 as 0.02"
    return {"margin": f"{metric} is at most 1, so no difference could matter, got {show(margin)}; {remedy}"}


def _runs_to_one(metric: str) -> bool:
    return metrics.METRICS[metric].unit != "target units"


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
