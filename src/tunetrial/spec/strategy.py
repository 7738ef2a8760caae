"""The strategy of a study file: `escalate`, its steps and what a gain is worth."""

from tunetrial.core.strategy import Escalation
from tunetrial.core.study import TaskSpec
from tunetrial.spec.faults import Fault, nearest, show
from tunetrial.spec.form import StudyForm


def escalation(form: StudyForm, tasks: tuple[TaskSpec, ...]) -> tuple[Escalation | None, list[Fault]]:
    """Steps are arms that are trained, in the order of the file unless another is given; the first is the reference."""
    if form.strategy is None:
        return None, []
    steps = form.strategy.steps or tuple(name for name, method in form.arms.items() if method.tuned)
    worth = form.strategy.margin_usd or (form.ladder and form.ladder.margin_usd)
    faults = [*_step_faults(form, steps), *_price_faults(form, worth, tasks)]
    return (None, faults) if faults else (Escalation(steps=steps, margin_usd=worth), [])


def _step_faults(form: StudyForm, steps: tuple[str, ...]) -> list[Fault]:
    keys = ("strategy", "steps")
    for name in steps:
        if name not in form.arms:
            return [Fault(keys, f"not an arm, got {show(name)}; {nearest(name, form.arms)}")]
        if not form.arms[name].tuned:
            return [Fault(keys, f"takes no steps, got {show(name)}; leave it out, it is run in any case")]
    if len(set(steps)) < max(2, len(steps)):
        return [Fault(keys, f"needs two or more different arms, got {show(steps)}; add an arm to go on to")]
    missed = [name for name, method in form.arms.items() if method.tuned and name not in steps]
    if missed:
        return [Fault(keys, f"must hold every arm that is trained, got none of {missed[0]!r}; add it")]
    if form.reference is not None and form.reference != steps[0]:
        what = f"must be the first step of the escalation, {steps[0]!r}, which alone is sure to be run"
        return [Fault(("reference",), f"{what}, got {show(form.reference)}; write {steps[0]}, or remove this")]
    return []


def _price_faults(form: StudyForm, worth: float | None, tasks: tuple[TaskSpec, ...]) -> list[Fault]:
    keys = ("strategy",)
    if len(form.tasks) > 1:
        return [Fault(keys, f"escalates on one task, got {len(form.tasks)}; make a study of each, or remove this")]
    if worth is None:
        what = "needs what a gain of one margin is worth, got no margin_usd"
        return [Fault(keys, f"{what}; write strategy: {{name: escalate, margin_usd: 500}}")]
    if form.hardware.usd_per_hour is None:
        what = "needs the price of a step, got no hardware.usd_per_hour"
        return [Fault(keys, f"{what}; give the price of the machine, 0 if it costs nothing, or remove this")]
    share = next((task.margin for task in tasks if task.kept_share is not None), None)
    if share is not None:
        what = f"prices a margin in units of the metric, got a share of a gain, {show(share)}"
        return [Fault(keys, f"{what}; give the margin as a number, or remove this")]
    return []
