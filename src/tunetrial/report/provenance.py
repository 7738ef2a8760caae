"""Provenance: what was run on what, in words and digests."""

from collections.abc import Iterable, Iterator

from tunetrial import methods
from tunetrial.core.evidence import Confirmation, Decision, Evidence, TrialRecord
from tunetrial.core.ladder import scouted
from tunetrial.core.study import Lock, TaskSpec
from tunetrial.report import headline, words


def gather(evidence: Evidence, decision: Decision) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """What was run on what, in groups of (name, value): enough to find the same study again."""
    lock, study = evidence.lock, evidence.lock.study
    purposes = {p: evidence.of(purpose=p) for p in ("rung", "tune", "confirm", "final", "anchor", "probe")}
    purposes["ladder"] = tuple(r for r in purposes["confirm"] if r.trial.task in lock.rungs)
    purposes["weighing"] = tuple(r for r in purposes["confirm"] if r.trial.task == scouted(study.rule.primary))
    others = {*lock.rungs, scouted(study.rule.primary)}
    purposes["confirm"] = tuple(r for r in purposes["confirm"] if r.trial.task not in others)
    rule = [
        ("question", words.clean(study.question)),
        ("study digest", decision.study_digest),
        ("rule", f"{words.percent(study.rule.level)} over the family; {words.name(study.rule.primary)} decides"),
        ("looks", f"after {', '.join(map(str, study.looks))} seeds"),
        *_budget(evidence, decision),
    ]
    base = [
        ("base model", words.clean(study.base_model)),
        ("fingerprint", lock.base_fingerprint),
        *([("revision", words.clean(lock.revision, 80))] if lock.revision else []),
        ("parameters", words.number(lock.parameters, 0)),
        *_other_bases(lock),
        ("precision", lock.precision),
        ("engine", words.clean(lock.engine)),
    ]
    runs = [(f"{p} runs", f"{len(r)}; seeds {_ranges(x.trial.seed for x in r)}") for p, r in purposes.items() if r]
    runs += [
        (f"{words.name(c.arm)} on {words.name(c.task)}: tuned on {study.tuning.on}", _confirmed(lock, c))
        for c in decision.confirmations
    ]
    runs += [
        *([] if study.tuning.exhaustive else [("search", f"at rungs: {headline.searched(decision)}")]),
        ("settings", _settings(evidence)),
        *((words.name(name), said) for name, said in _remarks(lock)),
        ("records", f"{len(decision.record_digests)} digests in the JSON report"),
    ]
    data = [pair for task in study.tasks if task.name in lock.data for pair in _data(evidence, decision, task)]
    return (
        ("Pre-registration", tuple(rule)),
        ("Base", tuple(base)),
        ("Data", tuple(data)),
        ("Runs", tuple(runs)),
        ("Machine and versions", _machine(evidence.records)),
    )


def _other_bases(lock: Lock) -> Iterator[tuple[str, str]]:
    """The bases of arms that are not on the study's own."""
    for arm, base in lock.others.items():
        commit = f", revision {words.clean(base.revision, 80)}" if base.revision else ""
        size = f"{words.number(base.parameters, 0)} parameters"
        yield (
            f"base of {words.name(arm)}",
            f"{words.clean(lock.study.base_of(arm))}, {size}, fingerprint {base.fingerprint}{commit}",
        )


def _budget(evidence: Evidence, decision: Decision) -> list[tuple[str, str]]:
    """What was allowed, what was spent of it, and what was made smaller beforehand."""
    allowed = evidence.lock.study.budget.model_dump(exclude_none=True)
    of = ", ".join(
        f"{decision.spent[name].value:.3g} of {allowed[name]:g} {decision.spent[name].unit}"
        for name in allowed
        if name in decision.spent
    )
    return ([("budget spent", of)] if of else []) + [("reduced", str(one)) for one in evidence.lock.reductions]


def _remarks(lock: Lock) -> Iterator[tuple[str, str]]:
    """What arms do that their settings alone do not say."""
    for arm in lock.study.arms:
        if said := methods.find(arm).remark(lock.base(arm.name).parameters):
            yield arm.name, said


def _confirmed(lock: Lock, found: Confirmation) -> str:
    """What a search on another base chose, and what that cost in runs as the finals are."""
    metric = words.metric(lock.study.task(found.task).metric)
    lost = "every run at it failed" if found.regret is None else f"regret {words.figure(found.regret)}"
    return (
        f"it chose {words.rate(found.searched)}; in {lock.precision} the best of "
        f"{found.rates} rates, {found.seeds} seeds each, is {words.rate(found.best)}; {lost} in validation {metric}"
    )


def _settings(evidence: Evidence) -> str:
    study = evidence.lock.study
    shared = f"{study.batch_examples} examples a step, at most {study.max_tokens} tokens a row"
    arms = [
        f"{words.name(a.name)}: {a.method}"
        + "".join(f", {words.clean(k, 40)} {words.clean(v, 80)}" for k, v in a.settings.items())
        for a in study.arms
    ]
    return "; ".join([shared, *arms])


def _data(evidence: Evidence, decision: Decision, task: TaskSpec) -> list[tuple[str, str]]:
    pin, name = evidence.lock.data[task.name], words.name(task.name)
    counts = ", ".join(f"{words.number(n, 0)} {words.clean(split, 20)}" for split, n in pin.counts.items())
    digests = ", ".join(f"{words.clean(split, 20)} {digest[:16]}" for split, digest in pin.digests.items())
    remarks = [(f"{name}: remark", words.clean(remark)) for remark in pin.remarks]
    times = decision.test_openings.get(task.name)
    opened = [(f"{name}: test rows opened", "once" if times == 1 else f"{times} times")] if times else []
    epochs = str(evidence.lock.controls(task.name).epochs)
    cut, first = evidence.lock.folding(task.name), evidence.lock.data[evidence.lock.parts(task.name)[0]].counts
    folds = f"{cut}; the first has {', '.join(f'{n} {split}' for split, n in first.items())} rows"
    opened = [(f"{name}: folds", folds), *opened] if cut else opened
    return [(f"{name}: rows", counts), (f"{name}: epochs", epochs), (f"{name}: SHA-256", digests), *opened, *remarks]


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
