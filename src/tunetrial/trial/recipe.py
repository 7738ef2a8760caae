"""What a study found, as a recipe of another tool: an arm's settings, its learning rate, and the seed that ships."""

from tunetrial import plan
from tunetrial.core.errors import EvidenceError, SpecError
from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.study import TaskSpec
from tunetrial.spec import recipes
from tunetrial.spec.faults import nearest, show
from tunetrial.spec.recipes import Dataset, Recipe
from tunetrial.store import first_look, median_replicate


def recipe(evidence: Evidence, decision: Decision, tool: str, *, arm: str | None = None) -> str:
    """Write an arm as a recipe, on the task that decides; the recommended arm if none is named.

    Raises:
        SpecError: The study has no such arm, or the tool cannot have it.
        EvidenceError: No arm is recommended, or the arm's learning rate is not known yet.
    """
    recipes.check_tool(tool)
    study = evidence.lock.study
    name = arm or decision.recommendation
    if name is None:
        raise EvidenceError(f"recipe: no arm is recommended, got {decision.abstention.reason}; name one with --arm")
    known = [one.name for one in study.arms]
    if name not in known:
        raise SpecError(f"recipe: no such arm, got {show(name)}; {nearest(name, known)}")
    task, found = study.task(study.rule.primary), study.arm(name)
    rates = [plan.chosen_rate(evidence, name, part) for part in evidence.lock.parts(task.name)]
    found_rates = sorted((rate for rate in rates if rate), key=lambda rate: rate.value or 0.0)
    rate = found_rates[(len(found_rates) - 1) // 2] if found_rates else None
    if rate is None:
        raise EvidenceError(f"recipe: {name} has no learning rate on {task.name} yet; run the study to its end first")
    controls = evidence.lock.controls(task.name)
    finals = evidence.of(purpose="final", task=task.name, arm=name)
    median = median_replicate(first_look(evidence.lock, finals), task.metric)
    seeds = [record.trial.seed for record in finals]
    runs = sum(len(evidence.of(purpose=p, task=task.name, arm=name)) for p in ("tune", "rung", "confirm"))
    remarks = [
        f"From the study {decision.study_digest[:12]}: arm {name} on {task.name}, base {study.base_of(name)}.",
        f"The learning rate was found by {runs} runs on "
        f"validation rows ({rate.how}{', at the edge of what was tried' if rate.at_edge else ''}"
        f"{f', the median of {len(found_rates)} folds' if len(rates) > 1 else ''}).",
    ]
    if median is not None:
        typical = f"{median.trial.seed} is the median's{' of the first look' if len(rates) == 1 else ''}"
        remarks.append(f"Seeds of its finals: {', '.join(map(str, seeds))}; {typical}.")
    made = Recipe(
        tool=tool,
        base_model=study.base_of(name),
        method=found.method,
        settings=found.settings,
        learning_rate=rate.value,
        epochs=controls.epochs,
        batch_examples=controls.batch_examples,
        max_tokens=controls.max_tokens,
        weight_decay=controls.weight_decay,
        precision=evidence.lock.precision if evidence.lock.precision != "fp64" else "fp32",
        data=_data(task),
    )
    seed = median.trial.seed if median is not None else study.seed
    return recipes.write(tool, made, seed=seed, remarks=[*remarks, *_unlike(task, controls.readout)])


def _data(task: TaskSpec) -> Dataset | None:
    if task.data is None or task.kind != "generate":
        return None
    return Dataset(path=task.data, messages=task.messages, input=task.input or None, target=task.target or None)


def _unlike(task: TaskSpec, readout: str) -> list[str]:
    """What is said of a task that the tools do not train as the study did."""
    if task.kind == "generate":
        return []
    what = "trained a head" if readout == "head" else "scored the texts of labels"
    return [
        f"not expressed: the study {what} for {task.name} ({task.kind}); this recipe trains text, so add data of it"
    ]
