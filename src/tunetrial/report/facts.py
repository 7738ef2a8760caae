"""What the report says, in words: one reading of Evidence and Decision that all four outputs share.

Every number comes from a record or from the decision; sums of wall time are the only arithmetic.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tunetrial.analysis import metrics
from tunetrial.core.evidence import ArmResult, Comparison, Decision, Evidence, Flip, Measurement, TrialRecord
from tunetrial.core.study import Criterion, TaskSpec
from tunetrial.report import words

VERDICTS = {
    "BETTER": ("better", "▲"),
    "SAME (within your margin)": ("same", "="),
    "NOT WORSE": ("same", "≥"),
    "WORSE, negligibly": ("slight", "▽"),
    "WORSE": ("worse", "▼"),
    "CAN'T TELL YET": ("open", "?"),
    "NOT COMPARABLE": ("void", "×"),
}
STATES = {
    "did not train": "not better than the untuned base and the best constant answer",
    "diverged": "loss, gradient or weights were no longer finite",
    "does not fit": "needs more memory than there is, even one example at a time",
    "pending": "not finished yet",
}


@dataclass(frozen=True)
class Headline:
    """The first thing read: the answer, what supports it, and what would change it."""

    answer: str
    support: tuple[str, ...]
    flips: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """One comparison in words; `kind` and `symbol` tell the words apart without colour."""

    comparison: Comparison
    kind: str
    symbol: str
    effect: str
    interval: str
    basis: str
    power: str
    margin: str


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
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


def headline(evidence: Evidence, decision: Decision) -> Headline:
    """Say what to use and why; or why not yet, what is safe meanwhile and what to spend next on."""
    spent = f"This study took {spending(evidence)}."
    if decision.abstention is not None:
        abstention = decision.abstention
        safe = words.name(abstention.safe_choice) if abstention.safe_choice else "none"
        worst = f"; at worst: {words.clean(abstention.at_worst)}" if abstention.at_worst else ""
        support = (
            f"Why: {words.clean(abstention.reason)}",
            f"Cheapest safe choice: {safe}{worst}.",
            f"Best next spend: {words.clean(abstention.next_spend)}",
        )
        return Headline("No recommendation yet.", tuple(map(_stop, (*support, *_open(evidence, decision), spent))), ())
    use = decision.recommendation
    if use is None:
        return Headline("Nothing is decided.", (*_open(evidence, decision), spent), ())
    support = (*_effects(evidence, decision, use), *_costs(evidence, decision, use), spent)
    return Headline(f"Use {words.name(use)}.", support, tuple(map(flip, decision.flips)))


def _stop(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?", "…")) else f"{sentence}."


def _open(evidence: Evidence, decision: Decision) -> tuple[str, ...]:
    primary = evidence.lock.study.rule.primary
    found = [c for c in decision.verdicts if c.task == primary]
    return tuple(f"{words.name(c.candidate)}: {sentence(evidence, c)}." for c in found[:2])


def _effects(evidence: Evidence, decision: Decision, use: str) -> tuple[str, ...]:
    """The primary task's comparison of what is recommended; of the others, where the reference itself is."""
    primary = [c for c in decision.verdicts if c.task == evidence.lock.study.rule.primary]
    own = [c for c in primary if c.candidate == use]
    if own:
        return (f"{own[0].words}: {sentence(evidence, own[0])}.",)
    return tuple(f"{words.name(c.candidate)} is {c.words}: {sentence(evidence, c)}." for c in primary[:3])


def _costs(evidence: Evidence, decision: Decision, use: str) -> tuple[str, ...]:
    """Up to three costs of what is recommended beside the reference's."""
    reference = evidence.lock.study.reference
    own, other = decision.costs.get(use, {}), decision.costs.get(reference, {})
    parts = []
    for name in (name for name in words.CRITERIA if name != "quality" and name in own):
        beside = f" vs {words.quantity(other[name])}" if use != reference and name in other else ""
        parts.append(f"{words.quantity(own[name])}{beside} {words.criterion(name).lower()}")
    against = "" if use == reference or not parts else f" ({words.name(use)} vs {words.name(reference)})"
    return (f"{'; '.join(parts[:3])}{against}.",) if parts else ()


def sentence(evidence: Evidence, comparison: Comparison) -> str:
    """Effect, interval and margin of one comparison; or why there is none."""
    c = comparison
    if c.effect is None or c.low is None or c.high is None or c.level is None:
        return _bare(c.reason) if c.reason else "no interval"
    unit = _spaced(unit_of(evidence, c))
    turned = "" if metrics.find(c.metric).higher_is_better else ", + is better"
    said = f"you said {words.plain(c.margin)} matters"
    return f"{words.metric(c.metric)} {effect(c)}{unit} vs {words.name(c.reference)}{turned} ({interval(c)}; {said})"


def _bare(text: str) -> str:
    return words.clean(text).removesuffix(".")


def effect(c: Comparison) -> str:
    """The effect, with digits by the margin."""
    return "" if c.effect is None else words.signed(c.effect, words.decimals_for(c.margin))


def interval(c: Comparison) -> str:
    """The interval with its level."""
    if c.low is None or c.high is None or c.level is None:
        return ""
    decimals = words.decimals_for(c.margin)
    return f"{words.percent(c.level)}: {words.signed(c.low, decimals)}…{words.signed(c.high, decimals)}"


def unit_of(evidence: Evidence, c: Comparison) -> str:
    """The unit in which the metric was measured; empty for a share or a coefficient."""
    name = f"test.{c.metric}"
    units = (r.measurements[name].unit for r in evidence.of(purpose="final", task=c.task) if name in r.measurements)
    unit = next(units, metrics.find(c.metric).unit)
    return "" if unit in words.UNITLESS else words.clean(unit, 20)


def _spaced(unit: str) -> str:
    return f"{words.THIN}{unit}" if unit else ""


def flip(point: Flip) -> str:
    """One point at which the recommendation changes."""
    now, at = words.plain(point.now), words.plain(float(f"{point.at:.3g}"))
    return f"Flips to {words.name(point.to)} if {words.clean(point.what, 120)} reaches {at} (now {now})."


def spending(evidence: Evidence) -> str:
    """Wall time of all attempts, and its price where the user gave one an hour."""
    seconds = sum(sum(r.legs_s) for r in evidence.records)
    runs = f"{len(evidence.records)} run" + ("" if len(evidence.records) == 1 else "s")
    if not any(r.legs_s for r in evidence.records):
        return f"{runs}; their time is not recorded"
    usd = evidence.lock.study.hardware.usd_per_hour
    price = "" if usd is None else f", {words.dollars(seconds / 3600 * usd)} at {words.dollars(usd)} an hour"
    return f"{words.duration(seconds)} of machine time for {runs}{price}"


def verdicts(decision: Decision) -> tuple[Verdict, ...]:
    """Every comparison, in the decision's order: never sorted by effect."""
    return tuple(_verdict(c) for c in decision.verdicts)


def _verdict(c: Comparison) -> Verdict:
    kind, symbol = VERDICTS[c.words]
    clusters = f" in {c.n_clusters} clusters" if c.n_clusters and c.n_clusters != c.n_examples else ""
    basis = f"{c.n_replicates} seeds × {words.number(c.n_examples, 0)} examples{clusters}" if c.n_replicates else ""
    decimals = words.decimals_for(c.margin)
    power = "" if c.mde is None else f"would have shown {words.number(c.mde, decimals)} with 80{words.THIN}% power"
    return Verdict(c, kind, symbol, effect(c), interval(c), basis, power, words.plain(c.margin))


def columns(evidence: Evidence, decision: Decision) -> tuple[Column, ...]:
    """Two columns a task (metric, verdict), then one for each cost that any arm has."""
    study = evidence.lock.study
    found = []
    for task in study.tasks:
        higher = metrics.find(task.metric).higher_is_better
        required = study.require.get(f"{task.name}.{task.metric}")
        note = f"{'higher' if higher else 'lower'} is better" + (f"; required {required}" if required else "")
        found.append(Column(f"{words.name(task.name)}: {words.metric(task.metric)}", "mean, test split", note))
        found.append(Column("Verdict", f"vs {words.name(study.reference)}", f"margin {words.plain(task.margin)}"))
    for name in cost_names(decision):
        limit = f"limit {words.plain(study.limits[name])}" if name in study.limits else ""
        weighed = _weighed(study.criteria[name]) if name in study.criteria else ""
        found.append(Column(words.criterion(name), "measured", "; ".join(filter(None, (weighed, limit)))))
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
            cells += [_outcome(task, result), _words(decision, task, arm.name)]
        own = decision.costs.get(arm.name, {})
        cells += [_cost(own.get(name)) for name in cost_names(decision)]
        found.append(Row(index, arm.name, _tags(study.reference, decision, arm.name), tuple(cells)))
    return tuple(found)


def _tags(reference: str, decision: Decision, arm: str) -> tuple[str, ...]:
    tags = {
        "recommended": decision.recommendation == arm,
        "reference": reference == arm,
        "on the Pareto front": arm in decision.pareto,
        "excluded": arm in decision.excluded,
    }
    return tuple(tag for tag, holds in tags.items() if holds)


def _outcome(task: TaskSpec, result: ArmResult | None) -> Cell:
    if result is None:
        return Cell("no runs", kind="missing")
    seeds = f"{len(result.values)} seeds" if len(result.values) != 1 else "1 seed"
    decimals = words.decimals_for(task.margin)
    parts = [result.state] if result.state != "trained" else []
    if result.mean is not None:
        parts += [] if result.sd is None else [f"SD {words.number(result.sd, decimals)}"]
        parts += [seeds]
    parts += [f"{result.failed} failed"] if result.failed else []
    if result.mean is None:
        return Cell(result.state, ", ".join(parts[1:]), kind="missing")
    return Cell(words.number(result.mean, decimals), ", ".join(parts))


def _words(decision: Decision, task: TaskSpec, arm: str) -> Cell:
    found = next((c for c in decision.verdicts if (c.task, c.candidate) == (task.name, arm)), None)
    if found is None:
        is_reference = any(c.reference == arm for c in decision.verdicts if c.task == task.name)
        return Cell("reference" if is_reference else "no comparison", kind="missing")
    kind, symbol = VERDICTS[found.words]
    return Cell(f"{symbol} {found.words}", effect(found), kind)


def _cost(measured: Measurement | None) -> Cell:
    return Cell("not measured", kind="missing") if measured is None else Cell(words.quantity(measured))


def failures(evidence: Evidence, decision: Decision) -> tuple[Failure, ...]:
    """Arms without a usable result, runs that diverged or did not fit, arms that were ruled out: none is dropped."""
    found = [Failure(a.arm, a.task, a.state, STATES[a.state]) for a in decision.arms if a.state != "trained"]
    groups: dict[tuple[str, str, str, str], list[TrialRecord]] = {}
    for record in evidence.records:
        if record.status != "ok":
            trial = record.trial
            groups.setdefault((trial.arm.name, trial.task, trial.purpose, record.status), []).append(record)
    found += [
        Failure(arm, task, _count(purpose, status, group), _reasons(group))
        for (arm, task, purpose, status), group in groups.items()
    ]
    found += [Failure(arm, "", "excluded", words.clean(reason)) for arm, reason in decision.excluded.items()]
    return tuple(found)


def _count(purpose: str, status: str, group: list[TrialRecord]) -> str:
    said = {"diverged": "diverged", "infeasible": "did not fit"}[status]
    return f"{len(group)} {purpose} run{'s' if len(group) > 1 else ''} {said}"


def _reasons(group: list[TrialRecord]) -> str:
    rates = ", ".join(dict.fromkeys(words.rate(r.trial.learning_rate) for r in group))
    reasons = "; ".join(dict.fromkeys(words.clean(r.reason, 160) for r in group if r.reason))
    return "; ".join(filter(None, (f"at rate {rates}", reasons)))


def provenance(evidence: Evidence, decision: Decision) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """What was run on what, in groups of (name, value): enough to find the same study again."""
    lock, study = evidence.lock, evidence.lock.study
    purposes = {p: evidence.of(purpose=p) for p in ("tune", "final", "probe")}
    rule = [
        ("question", words.clean(study.question)),
        ("study digest", decision.study_digest),
        ("rule", f"{words.percent(study.rule.level)} over the family; {words.name(study.rule.primary)} decides"),
        ("looks", f"after {', '.join(map(str, study.looks))} seeds"),
    ]
    base = [
        ("base model", words.clean(study.base_model)),
        ("fingerprint", lock.base_fingerprint),
        ("parameters", words.number(lock.parameters, 0)),
        ("precision", lock.precision),
        ("engine", words.clean(lock.engine)),
    ]
    runs = [(f"{p} runs", f"{len(r)}; seeds {_ranges(x.trial.seed for x in r)}") for p, r in purposes.items() if r]
    runs += [
        ("settings", _settings(evidence)),
        ("records", f"{len(decision.record_digests)} digests in the JSON report"),
    ]
    data = [pair for task in study.tasks if task.name in lock.data for pair in _data(evidence, task)]
    return (
        ("Pre-registration", tuple(rule)),
        ("Base", tuple(base)),
        ("Data", tuple(data)),
        ("Runs", tuple(runs)),
        ("Machine and versions", _machine(evidence.records)),
    )


def _settings(evidence: Evidence) -> str:
    study = evidence.lock.study
    shared = f"{study.epochs} epochs, {study.batch_examples} examples a step, at most {study.max_tokens} tokens a row"
    arms = [
        f"{words.name(a.name)}: {a.method}"
        + "".join(f", {words.clean(k, 40)} {words.clean(v, 80)}" for k, v in a.settings.items())
        for a in study.arms
    ]
    return "; ".join([shared, *arms])


def _data(evidence: Evidence, task: TaskSpec) -> list[tuple[str, str]]:
    pin, name = evidence.lock.data[task.name], words.name(task.name)
    counts = ", ".join(f"{words.number(n, 0)} {words.clean(split, 20)}" for split, n in pin.counts.items())
    digests = ", ".join(f"{words.clean(split, 20)} {digest[:16]}" for split, digest in pin.digests.items())
    remarks = [(f"{name}: remark", words.clean(remark)) for remark in pin.remarks]
    return [(f"{name}: rows", counts), (f"{name}: SHA-256", digests), *remarks]


def _ranges(seeds: Iterable[int]) -> str:
    found = sorted(set(seeds))
    parts, start = [], 0
    for i in range(1, len(found) + 1):
        if i == len(found) or found[i] != found[i - 1] + 1:
            parts.append(str(found[start]) if i - start == 1 else f"{found[start]}–{found[i - 1]}")
            start = i
    return ", ".join(parts)


def _machine(records: Iterable[TrialRecord]) -> tuple[tuple[str, str], ...]:
    """Each fact once; where it differs, by arm."""
    facts: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for name, value in {**record.provenance, **record.resolved}.items():
            by_value = facts.setdefault(name, {})
            by_value.setdefault(words.clean(value, 120), set()).add(record.trial.arm.name)
    return tuple((words.clean(name, 40), _by_arm(values)) for name, values in sorted(facts.items()))


def _by_arm(values: dict[str, set[str]]) -> str:
    if len(values) == 1:
        return next(iter(values))
    shown = [
        f"{value} ({', '.join(words.name(arm) for arm in sorted(arms))})" for value, arms in list(values.items())[:6]
    ]
    return "; ".join(shown) + (f"; and {len(values) - 6} more" if len(values) > 6 else "")
