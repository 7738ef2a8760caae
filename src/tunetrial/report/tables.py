"""Tables of the report: arms by criteria, what each arm costs at a glance, and what failed."""

from dataclasses import dataclass

from tunetrial.analysis import metrics
from tunetrial.core.evidence import ArmResult, Decision, Evidence, Measurement, TrialRecord
from tunetrial.core.findings import Repeats
from tunetrial.core.study import Criterion, TaskSpec, whole
from tunetrial.report import headline, words

STATES = {
    "did not train": "not better than the untuned base and the best constant answer",
    "no better than a constant": "it was not trained, and the best constant answer does as well",
    "diverged": "loss, gradient or weights were no longer finite",
    "does not fit": "needs more memory than there is, even one example at a time",
    "pending": "not finished yet",
    "not run": "the steps before it were not worth leaving for it",
}


@dataclass(frozen=True)
class Cell:
    """A cell; `chip` is a verdict with its symbol, `kind` its class, or "missing"."""

    text: str
    note: str = ""
    chip: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Column:
    head: str
    unit: str
    note: str


@dataclass(frozen=True)
class Row:
    arm: int
    name: str
    tags: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Failure:
    arm: str
    task: str
    what: str
    why: str


def columns(evidence: Evidence, decision: Decision) -> tuple[Column, ...]:
    """One column a task, then one for each cost that any arm has."""
    study = evidence.lock.study
    found = []
    for task in study.tasks:
        higher = metrics.find(task.metric).higher_is_better
        required = study.require.get(f"{task.name}.{task.metric}")
        note = f"{'higher' if higher else 'lower'} is better; margin {words.margin(task.margin)}"
        note += f"; required {words.clean(required, 20)}" if required else ""
        found.append(Column(f"{words.name(task.name)}: {words.metric(task.metric)}", "mean, test split", note))
    where = f", {words.name(study.rule.primary)}" if len(study.tasks) > 1 else ""
    for name in cost_names(decision):
        limit = f"limit {words.plain(study.limits[name])}" if name in study.limits else ""
        weighed = _weighed(study.criteria[name]) if name in study.criteria else ""
        found.append(Column(words.criterion(name), f"measured{where}", "; ".join(filter(None, (weighed, limit)))))
    return tuple(found)


def _weighed(criterion: Criterion) -> str:
    anchors = [
        f"{text} {words.plain(at)}"
        for text, at in (("0 at", criterion.worst), ("1 at", criterion.best))
        if at is not None
    ]
    return ", ".join([f"weight {words.plain(criterion.weight)}", *anchors])


def cost_names(decision: Decision) -> tuple[str, ...]:
    """Costs that any arm has, the known ones first."""
    present = dict.fromkeys(name for costs in decision.costs.values() for name in costs if name != "quality")
    known = [name for name in words.CRITERIA if name in present]
    return (*known, *(name for name in present if name not in known))


def rows(evidence: Evidence, decision: Decision) -> tuple[Row, ...]:
    """One row an arm, in the study's order."""
    study = evidence.lock.study
    found = []
    for index, arm in enumerate(study.arms):
        cells = []
        for task in study.tasks:
            result = next((a for a in decision.arms if (a.task, a.arm) == (task.name, arm.name)), None)
            cut = evidence.lock.folding(task.name) is not None
            state = result and _state(evidence, result)
            cells.append(_outcome(task, result, decision, arm.name, state=state, cut=cut))
        own = decision.costs.get(arm.name, {})
        cells += [_cost(own.get(name)) for name in cost_names(decision)]
        on_base = headline.on_base(evidence, arm.name).strip()
        tags = (*_tags(study.reference, decision, arm.name), *filter(None, [on_base]))
        found.append(Row(index, arm.name, tags, tuple(cells)))
    return tuple(found)


def _tags(reference: str, decision: Decision, arm: str) -> tuple[str, ...]:
    tags = {
        "recommended": decision.recommendation == arm,
        "reference": reference == arm,
        "on the Pareto front": arm in decision.pareto,
        "excluded": arm in decision.excluded,
    }
    return tuple(tag for tag, holds in tags.items() if holds)


def _outcome(
    task: TaskSpec, result: ArmResult | None, decision: Decision, arm: str, *, state: str | None, cut: bool
) -> Cell:
    found = next((c for c in decision.verdicts if (c.task, c.candidate) == (task.name, arm)), None)
    kind, symbol = headline.VERDICTS[found.words] if found else ("", "")
    chip = f"{symbol} {found.words}" if found else ""
    if result is None:
        return Cell("no runs", "", chip, kind or "missing")
    of = "fold" if cut else "seed"
    seeds = f"{len(result.values)} {of}{'' if len(result.values) == 1 else 's'}"
    margin = found.margin if found else next((c.margin for c in decision.verdicts if c.task == task.name), None)
    decimals = words.decimals_for(task.margin if task.kept_share is None else margin)
    parts = [state] if state != "trained" and result.mean is not None else []
    parts += [f"SD {words.number(result.sd, decimals)}"] if result.sd is not None else []
    parts += [seeds] if result.values else []
    parts += [f"{result.failed} failed"] if result.failed else []
    text = state if result.mean is None else words.number(result.mean, decimals)
    return Cell(text, ", ".join(parts), chip, kind)


def _state(evidence: Evidence, result: ArmResult) -> str:
    """The state in words; an arm that nothing was trained of cannot have failed to train."""
    idle = result.state == "did not train" and evidence.lock.study.arm(result.arm).untrained
    return "no better than a constant" if idle else result.state


def _cost(measured: Measurement | None) -> Cell:
    return Cell("not measured", kind="missing") if measured is None else Cell(words.quantity(measured))


def glance(evidence: Evidence, decision: Decision) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Cell, ...]], ...]]:
    """Costs of up to three arms side by side: what is recommended or safe, the reference, then the study's order."""
    study = evidence.lock.study
    focus = decision.recommendation or (decision.abstention and decision.abstention.safe_choice)
    names = dict.fromkeys(filter(None, (focus, study.reference, *(arm.name for arm in study.arms))))
    shown = tuple(name for name in names if name in decision.costs)[:3]
    costs = [name for name in cost_names(decision) if any(name in decision.costs[arm] for arm in shown)][:5]
    return shown, tuple((words.criterion(c), tuple(_cost(decision.costs[a].get(c)) for a in shown)) for c in costs)


@dataclass(frozen=True)
class Prediction:
    """A line of the plan beside its measurement; `outside` asks for attention."""

    name: str
    said: str
    measured: str
    within: str
    error: str
    outside: bool


def predictions(decision: Decision) -> tuple[Prediction, ...]:
    """What the plan said before the first run, in the units of the report."""
    found = []
    for scored in decision.predictions:
        said = [words.quantity(Measurement(value=value, unit=scored.unit)) for value in (scored.low, scored.high)]
        text = said[0] if said[0] == said[1] else f"{said[0]} to {said[1]}"
        if scored.likely is not None and said[0] != said[1]:
            text += f", likely {words.quantity(Measurement(value=scored.likely, unit=scored.unit))}"
        measured = scored.measured
        found.append(
            Prediction(
                f"{scored.what} of {words.name(scored.arm)}" if scored.arm else scored.what,
                text,
                "not measured" if measured is None else words.quantity(Measurement(value=measured, unit=scored.unit)),
                {None: "", True: "yes", False: "no"}[scored.inside],
                "" if scored.error is None else f"{scored.error:+.1%}",
                scored.inside is False,
            )
        )
    return tuple(found)


def coverage(decision: Decision) -> str:
    """How many measurements lie within what was said of them."""
    judged = [scored.inside for scored in decision.predictions if scored.inside is not None]
    if not judged:
        return "Nothing was measured that it spoke of."
    return f"{sum(judged)} of {len(judged)} measurements lie within what was said of them."


@dataclass(frozen=True)
class Again:
    """How an arm answers with another seed: the share or spread, what is beyond chance, churn, and all in words."""

    task: str
    arm: str
    same: str
    beyond: str
    churn: str
    seeds: int
    sentence: str


def again(decision: Decision) -> tuple[Again, ...]:
    """What changes with nothing but the seed."""
    return tuple(
        Again(
            words.name(one.task),
            words.name(one.arm),
            _ends(one.same, share=one.measure == "agreement"),
            "not defined" if one.beyond_chance is None else _ends(one.beyond_chance, share=False),
            "" if one.churn is None else _ends(one.churn, share=True),
            one.seeds,
            _in_words(one),
        )
        for one in decision.repeats
    )


def _in_words(one: Repeats) -> str:
    if one.measure != "agreement":
        return f"from seed to seed an answer moves by {words.figure(one.same[0])}."
    changed = f"with another seed {_rounded(1 - one.same[0])} of the answers change"
    return changed + ("." if one.churn is None else f"; {_rounded(one.churn[0])} differ from the reference's.")


def _rounded(share: float) -> str:
    return words.percent(round(share, 2))


def _ends(found: tuple[float, float | None, float | None], *, share: bool) -> str:
    written = (lambda part: words.percent(round(part, 3))) if share else words.figure
    value, *ends = (None if part is None else written(part) for part in found)
    return value if None in ends else f"{value} ({ends[0]} to {ends[1]})"


def failures(evidence: Evidence, decision: Decision) -> tuple[Failure, ...]:
    """Arms without a usable result, runs that diverged or did not fit, arms that were ruled out: none is dropped."""
    states = {(a.task, a.arm): _state(evidence, a) for a in decision.arms if a.state != "trained"}
    found = [Failure(arm, task, state, STATES[state]) for (task, arm), state in states.items()]
    groups: dict[tuple[str, str, str, str], list[TrialRecord]] = {}
    for record in evidence.records:
        if record.status != "ok":
            trial = record.trial
            purpose = "ladder" if trial.task in evidence.lock.rungs else trial.purpose
            groups.setdefault((trial.arm.name, whole(trial.task), purpose, record.status), []).append(record)
    found += [
        Failure(arm, task, _count(purpose, status, group), _reasons(group))
        for (arm, task, purpose, status), group in groups.items()
    ]
    found += [Failure(arm, "", "excluded", words.prose(reason)) for arm, reason in decision.excluded.items()]
    return tuple(found)


def _count(purpose: str, status: str, group: list[TrialRecord]) -> str:
    said = {"diverged": "diverged", "infeasible": "did not fit"}[status]
    return f"{len(group)} {purpose} run{'s' if len(group) > 1 else ''} {said}"


def _reasons(group: list[TrialRecord]) -> str:
    rates = ", ".join(dict.fromkeys(words.rate(r.trial.learning_rate) for r in group if r.trial.learning_rate))
    reasons = "; ".join(dict.fromkeys(words.clean(r.reason, 160) for r in group if r.reason))
    return "; ".join(filter(None, (rates and f"at rate {rates}", reasons)))
