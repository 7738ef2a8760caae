"""The file form to a study: defaults that depend on other fields, and what must hold between fields."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from tunetrial.analysis import metrics
from tunetrial.core.ladder import Ladder
from tunetrial.core.scenario import SHARES, Criterion, Opinion
from tunetrial.core.study import Arm, Budget, Costs, Hardware, Rule, Study, TaskSpec, Tuning
from tunetrial.methods import Method
from tunetrial.methods.lora import Lora
from tunetrial.spec.faults import Fault, nearest, show
from tunetrial.spec.form import CriteriaForm, OpinionForm, StudyForm, TuningForm
from tunetrial.spec.strategy import escalation
from tunetrial.spec.tasks import check_floor, resolve_tasks
from tunetrial.spec.text import NUMBER

POINTS, MAX_POINTS, FEWEST_RATES = 5, 9, 3
SHARED = (  # of a form and a study, as they are
    "base_model",
    "epochs",
    "batch_examples",
    "max_tokens",
    "weight_decay",
    "precision",
    "readout",
    "retention",
    "frontier",
    "keep",
    "pack",
    "seed",
)


def resolve(form: StudyForm, root: Path) -> tuple[Study | None, list[Fault]]:
    """The study, or what is wrong with it."""
    tasks, faults = resolve_tasks(form.tasks, root)
    arms = tuple(_arm(name, form) for name in form.arms)
    require, floor_faults = _floors(form, tasks)
    tuning, tuning_faults = _tuning(form.tuning, form.arms)
    ladder, ladder_faults = _ladder(form, tasks)
    strategy, strategy_faults = escalation(form, tasks)
    faults += [
        *_arm_faults(form, arms),
        *_unreadable(form, arms, tasks),
        *_gainless(form, arms, tasks),
        *_name_faults(form),
        *_fold_faults(form, tasks),
        *floor_faults,
        *tuning_faults,
        *ladder_faults,
        *strategy_faults,
        *_cost_faults(form, tasks),
        *_forgetting_faults(form),
    ]
    if faults:
        return None, faults
    names = [task.name for task in tasks]
    study = Study(
        question=form.question or f"{' or '.join(form.arms)} for {' and '.join(names)}?",
        tasks=tasks,
        arms=arms,
        reference=form.reference or (strategy.steps[0] if strategy else _first_full(arms)),
        looks=form.replicates.looks,
        folds=form.replicates.folds,
        repeats=form.replicates.repeats,
        tuning=tuning,
        rule=Rule(level=form.rule.level, primary=form.rule.primary or names[0]),
        limits=form.limits.model_dump(exclude_none=True),
        require=require,
        criteria={name: Criterion(**c) for name, c in form.criteria.model_dump(exclude_none=True).items()},
        opinions={name: Opinion(**o.model_dump()) for name, o in form.opinions.items()},
        hardware=Hardware(**form.hardware.model_dump()),
        budget=Budget(**form.budget.model_dump()),
        costs=Costs(**form.costs.model_dump()),
        ladder=ladder,
        strategy=strategy,
        drift=tuple(what for what in ("states", "weights") if what in form.drift),
        **{name: getattr(form, name) for name in SHARED},
    )
    return study, []


def _first_full(arms: tuple[Arm, ...]) -> str:
    """The first arm of full fine-tuning, one from the base as it is before one with a warm start; else the first."""
    full = [arm for arm in arms if arm.method == "full"]
    return min(full, key=lambda arm: "warm_start" in arm.settings, default=arms[0]).name


def _arm(name: str, form: StudyForm) -> Arm:
    """The study's own base is none of the arm's."""
    own = form.arms[name].model_dump(exclude_none=True)
    method, base = own.pop("method"), own.pop("base_model", None)
    return Arm(name=name, method=method, settings=own, base_model=None if base == form.base_model else base)


def _arm_faults(form: StudyForm, arms: tuple[Arm, ...]) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for arm in arms:
        same = seen.setdefault(arm.model_copy(update={"name": ""}).digest, arm.name)
        if same != arm.name:
            yield Fault(("arms", arm.name), f"the same method and settings as {same!r}; change one or remove it")
    if form.reference is not None and form.reference not in form.arms:
        yield Fault(("reference",), f"not an arm, got {show(form.reference)}; {nearest(form.reference, form.arms)}")


def _unreadable(form: StudyForm, arms: tuple[Arm, ...], tasks: tuple[TaskSpec, ...]) -> Iterator[Fault]:
    """The untuned base has no trained head to read; a linear model of words writes no text."""
    for arm in arms:
        for task in tasks:
            if arm.method == "none" and task.kind == "regress":
                what = f"an untuned base has no head to read numbers from, got task {task.name!r}"
                yield Fault(("arms", arm.name), f"{what}; remove the arm, or compare with tfidf")
            elif arm.method == "none" and task.kind == "classify" and form.readout == "head":
                what = f"an untuned base has no head to read the labels of {task.name!r} from, got readout 'head'"
                yield Fault(("arms", arm.name), f"{what}; add readout: labels to the study, or remove the arm")
            elif arm.method == "tfidf" and task.kind == "generate":
                what = f"a linear model of words writes no text, got task {task.name!r}"
                yield Fault(("arms", arm.name), f"{what}; remove the arm, or compare with none")


def _gainless(form: StudyForm, arms: tuple[Arm, ...], tasks: tuple[TaskSpec, ...]) -> Iterator[Fault]:
    """A margin that is a share of the gain needs the score of the untuned base, and a reference that gains over it."""
    on = {arm.name: arm.base_model for arm in arms}
    reference = form.reference or _first_full(arms)
    base = next((arm.name for arm in arms if arm.method == "none" and on[arm.name] == on.get(reference)), None)
    names = [task.name for task in form.tasks]
    for task in (task for task in tasks if task.kept_share is not None):
        keys = ("tasks", names.index(task.name), "margin")
        if task.kind == "regress":
            what = f"the untuned base has no head to read numbers from, got {show(task.margin)}"
            yield Fault(keys, f"{what}; give the margin in units of {task.metric}")
        elif base is None:
            readout = " and readout: labels to the study" if task.kind == "classify" and form.readout == "head" else ""
            what = f"needs the score of the untuned base, got {show(task.margin)} and no arm of method none"
            yield Fault(keys, f"{what}; add the arm base: {{method: none}}{readout}")
        elif reference == base:
            what = f"the reference is the untuned base itself, got {show(base)}; let a trained arm be the reference"
            yield Fault(("reference",), what)


def _name_faults(form: StudyForm) -> Iterator[Fault]:
    names = [task.name for task in form.tasks]
    primary = form.rule.primary
    if primary is not None and primary not in names:
        yield Fault(("rule", "primary"), f"not a task, got {show(primary)}; {nearest(primary, names)}")
    looks = form.replicates.looks
    if list(looks) != sorted(set(looks)):
        what = f"must grow from look to look, got {show(looks)}; write them in growing order, such as [5, 10]"
        yield Fault(("replicates", "looks"), what)


def _fold_faults(form: StudyForm, tasks: tuple[TaskSpec, ...]) -> Iterator[Fault]:
    """Folds that were asked for need rows that have no test split of their own."""
    if isinstance(form.replicates.folds, int) and not any(t.data and not t.validation and not t.test for t in tasks):
        what = f"no task has a single file of rows to cut, got {form.replicates.folds}; name data alone, or remove this"
        yield Fault(("replicates", "folds"), what)


def _tuning(form: TuningForm, arms: Mapping[str, Method]) -> tuple[Tuning | None, list[Fault]]:
    rates, keys = form.learning_rate, ("tuning", "learning_rate")
    faults = []
    if rates != "auto" and len(rates) < FEWEST_RATES:
        reason = "with fewer the best rate has no neighbour on both sides"
        faults.append(Fault(keys, f"must hold at least 3 rates, got {show(rates)}; {reason}: add rates or write auto"))
    elif rates != "auto" and list(rates) != sorted(set(rates)):
        faults.append(Fault(keys, f"must grow, got {show(rates)}; write each rate once, the smallest first"))
    points = form.points or (POINTS if rates == "auto" else len(rates))
    if rates != "auto" and points != len(rates):
        remedy = "remove points, or let learning_rate be auto"
        faults.append(Fault(("tuning", "points"), f"{len(rates)} rates are listed, got points {points}; {remedy}"))
    most = form.max_points or max(MAX_POINTS, points)
    if most < points:
        faults.append(Fault(("tuning", "max_points"), f"must be >= points ({points}), got {most}; raise it"))
    for arm in form.centres:
        if arm not in arms:
            faults.append(Fault((*keys[:1], "centres", arm), f"not an arm, got {show(arm)}; {nearest(arm, arms)}"))
        elif rates != "auto":
            what = "the rates are listed, so there is no centre; remove this, or let learning_rate be auto"
            faults.append(Fault((*keys[:1], "centres", arm), what))
    if form.on is not None and not any(arm.method == "lora" and arm.base == "plain" for arm in arms.values()):
        what = f"no arm has a frozen base in the compute dtype, got {show(form.on)}"
        faults.append(Fault((*keys[:1], "on"), f"{what}; remove it, or add an arm of lora"))
    if faults:
        return None, faults
    shared = {"seeds": form.seeds, "centres": form.centres, "on": form.on, "exhaustive": form.exhaustive}
    return Tuning(learning_rate=rates, points=points, max_points=most, **shared), []


def _ladder(form: StudyForm, tasks: tuple[TaskSpec, ...]) -> tuple[Ladder | None, list[Fault]]:
    """A ladder is of an arm that takes steps, its ranks around the arm's own; what has a worth needs a price."""
    asked = form.ladder
    if asked is None:
        return None, []
    method, place = form.arms.get(asked.arm), ("ladder", "arm")
    if method is None:
        return None, [Fault(place, f"not an arm, got {show(asked.arm)}; {nearest(asked.arm, form.arms)}")]
    if not method.tuned:
        return None, [Fault(place, f"takes no steps, got {show(asked.arm)}; name an arm that is trained")]
    if not asked.rows and not asked.ranks:
        what = "asks for nothing, got neither rows nor ranks; write rows: [0.25, 0.5, 1], or ranks around the arm's own"
        return None, [Fault(("ladder",), what)]
    try:
        ladder = Ladder(**asked.model_dump())
    except ValidationError as error:
        field, _, what = str(error.errors()[0]["ctx"]["error"]).partition(": ")
        return None, [Fault(("ladder", field), what)]
    return ladder, [*_rank_faults(ladder, method), *_worth_faults(ladder, form, tasks)]


def _rank_faults(ladder: Ladder, method: Method) -> Iterator[Fault]:
    keys, got = ("ladder", "ranks"), f"got {show(ladder.ranks)}"
    if ladder.ranks and not isinstance(method, Lora):
        what = f"{ladder.arm!r} has no rank, being of method {method.method}, {got}"
        yield Fault(keys, f"{what}; name an arm of lora or qlora, or remove this")
    elif ladder.ranks and method.rank not in ladder.ranks:
        yield Fault(keys, f"must hold the rank of {ladder.arm!r}, {method.rank}, {got}; add it")


def _worth_faults(ladder: Ladder, form: StudyForm, tasks: tuple[TaskSpec, ...]) -> Iterator[Fault]:
    primary = form.rule.primary or form.tasks[0].name
    for name in ("label_usd", "margin_usd"):
        value, keys = getattr(ladder, name), ("ladder", name)
        if value is not None and form.hardware.usd_per_hour is None:
            what = f"needs the price of a run, got {show(value)} and no hardware.usd_per_hour"
            yield Fault(keys, f"{what}; give the price of the machine, 0 if it costs nothing, or remove this")
    share = next((task.margin for task in tasks if task.name == primary and task.kept_share is not None), None)
    if ladder.margin_usd is not None and share is not None:
        what = f"the margin of {primary!r} is a share of a gain, got {show(share)}"
        yield Fault(("ladder", "margin_usd"), f"{what}; give it in units of the metric, or remove this")


def _floors(form: StudyForm, tasks: tuple[TaskSpec, ...]) -> tuple[dict[str, str], list[Fault]]:
    """The floors in one spelling, "<= 1.5"."""
    require, faults = {}, []
    for key, condition in form.require.items():
        found = re.fullmatch(rf"\s*([<>]=)\s*({NUMBER.pattern})\s*", condition)
        task, _, metric = key.rpartition(".")
        names = [t.name for t in form.tasks]
        if task not in names:
            what = f"names no task of this study; write task.metric with one of the tasks {', '.join(names)}"
        elif found is None:
            what = f"must be <= or >= and a number, got {show(condition)}; write a condition such as '<= 1.5'"
        else:
            require[key] = f"{found[1]} {float(found[2])!r}"
            what = next((check_floor(t, metric, require[key]) for t in tasks if t.name == task), None)
        if what:
            faults.append(Fault(("require", key), what))
    return require, faults


def _cost_faults(form: StudyForm, tasks: tuple[TaskSpec, ...]) -> Iterator[Fault]:
    for part in ("limits", "criteria"):
        if getattr(form, part).cost_usd is not None and form.hardware.usd_per_hour is None:
            what = "needs a price, got no hardware.usd_per_hour; give the price of the machine, or remove this"
            yield Fault((part, "cost_usd"), what)
    if form.budget.usd is not None and not form.hardware.usd_per_hour:
        what = "needs a price, got no hardware.usd_per_hour; give the price of the machine, or a budget of gpu_hours"
        yield Fault(("budget", "usd"), what)
    primary = form.rule.primary or form.tasks[0].name
    metric = next((metrics.METRICS[task.metric] for task in tasks if task.name == primary), None)
    yield from anchor_faults(form.criteria, quality_rises=metric.higher_is_better if metric else None)
    numbers = any(task.name == primary and task.kind == "regress" for task in tasks)
    if form.criteria.agreement is not None and numbers:
        what = f"needs answers that can be the same, got numbers on {show(primary)}; remove it"
        yield Fault(("criteria", "agreement"), what)
    yield from opinion_faults(form.opinions, form.arms)


def _forgetting_faults(form: StudyForm) -> Iterator[Fault]:
    """What is asked of forgetting needs texts, and a frontier whole runs of the arms themselves."""
    keys = [("limits", "forgetting_nats")] if form.limits.forgetting_nats is not None else []
    keys += [("criteria", "forgetting_nats")] if form.criteria.forgetting_nats is not None else []
    keys += [("frontier",)] if form.frontier else []
    for where in keys if not form.retention else ():
        yield Fault(where, "needs held-out texts, got no retention; add retention: {wiki: texts.jsonl}, or remove this")
    if form.frontier and not form.tuning.exhaustive:
        what = "needs a search by whole runs, got tuning.exhaustive false; remove one of the two"
        yield Fault(("frontier",), what)
    if form.frontier and form.tuning.on is not None:
        what = f"needs a search on the base that is trained, got tuning.on {show(form.tuning.on)}"
        yield Fault(("frontier",), f"{what}; remove one of the two")


def anchor_faults(criteria: CriteriaForm, *, quality_rises: bool | None) -> Iterator[Fault]:
    """Anchors that are missing, equal, the wrong way round, or have no logarithm."""
    for name in type(criteria).model_fields:
        criterion, keys = getattr(criteria, name), ("criteria", name)
        if criterion is None:
            continue
        worst, best = criterion.worst, criterion.best
        rises = quality_rises if name == "quality" else name in SHARES
        got = f"got worst {show(worst)} and best {show(best)}"
        if (worst is None) != (best is None):
            given, missing = ("worst", "best") if best is None else ("best", "worst")
            yield Fault(keys, f"has {given} without {missing}; give both, in natural units")
        elif worst is None and name not in ("quality", *SHARES):
            yield Fault(keys, "has no worst and best; give the values that count 0 and 1, such as worst: 100, best: 10")
        elif worst is not None and worst == best:
            yield Fault(keys, f"worst and best must differ, {got}; give the values that count 0 and 1")
        elif worst is not None and rises is not None and rises != (worst < best):
            yield Fault(keys, f"{'more' if rises else 'less'} is better here, {got}; exchange worst and best")
        elif criterion.log and (worst is None or min(worst, best) <= 0):
            yield Fault((*keys, "log"), f"a logarithm needs anchors above 0, {got}; raise them, or remove log")


def opinion_faults(opinions: Mapping[str, OpinionForm], arms: Mapping[str, Method] | None = None) -> Iterator[Fault]:
    """Opinions that go by a measured criterion's name, lie beyond their own anchors, or are of no arm or method."""
    known = None if arms is None else {*arms, *(settings.method for settings in arms.values())}
    for name, one in opinions.items():
        keys = ("opinions", name)
        if name in CriteriaForm.model_fields or name == "year_usd":
            yield Fault(keys, f"is measured, got an opinion named {show(name)}; move it to criteria, or rename it")
        if one.worst == one.best:
            yield Fault(
                keys, f"worst and best must differ, got {one.worst:g} twice; give the points that count 0 and 1"
            )
        for arm, score in one.scores.items():
            if known is not None and arm not in known:
                yield Fault((*keys, "scores", arm), f"no arm or method of this study; {nearest(arm, known)}")
            elif not min(one.worst, one.best) <= score <= max(one.worst, one.best):
                what = f"must lie from {one.worst:g} to {one.best:g}, got {score:g}; mend it, or worst and best"
                yield Fault((*keys, "scores", arm), what)
