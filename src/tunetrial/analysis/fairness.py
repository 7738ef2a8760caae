"""The fairness ledger: rules that a pair of arms must keep before a difference between them is anybody's finding.

A rule that breaks makes the pair NOT COMPARABLE, with what was found as the reason; nothing is repaired or skipped.
To add a rule, write a function `(Pair) -> (holds, found)` and one entry of `RULES`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import isclose, log

from tunetrial.analysis import arms, metrics
from tunetrial.core.evidence import Check, Evidence, TrialRecord
from tunetrial.core.study import whole

# How an execution may differ without a difference in what is computed: a smaller micro-batch at the same batch, a pack,
# passes replayed or not, or an adapter that changes norms and so leaves the walked blocks to transformers' own.
MAY_DIFFER = frozenset(
    {
        "blocks",
        "compiled",
        "cuda_graphs",
        "not_compiled",
        "not_recorded",
        "micro_batch",
        "pack",
        "pack_at_once",
        "recomputes",
        "loss_scale",
        "overflows",
    }
)
# Which attention is right for a base is the base's own, and so declared with it.
OF_THE_BASE = frozenset({"attention"})


# Of so many folds of a task one may have its best rate at an edge.
FOLDS_AT_EDGE = 5


@dataclass(frozen=True)
class Pair:
    """A candidate and its reference on one task, with the records of their finals and tuning trials."""

    evidence: Evidence
    task: str
    candidate: str
    reference: str

    def of(self, purpose: str) -> tuple[TrialRecord, ...]:
        """Records of one purpose, of both arms."""
        both = (self.candidate, self.reference)
        return tuple(r for arm in both for r in self.evidence.of(purpose=purpose, task=self.task, arm=arm))

    @property
    def trained(self) -> tuple[TrialRecord, ...]:
        """All records but the probes, finals first."""
        return (*self.of("final"), *self.of("tune"), *self.of("rung"), *self.of("confirm"))

    def seeds(self, arm: str) -> dict[int, TrialRecord]:
        """An arm's finals by seed."""
        return {r.trial.seed: r for r in self.evidence.of(purpose="final", task=self.task, arm=arm)}

    @property
    def without_steps(self) -> list[str]:
        """The arms that take no optimiser steps: their finals have no learning rate."""
        return [a for a in (self.candidate, self.reference) if self.evidence.lock.study.arm(a).untrained]

    @property
    def one_base(self) -> bool:
        """Whether both arms are on the same weights."""
        lock = self.evidence.lock
        return lock.base(self.candidate).fingerprint == lock.base(self.reference).fingerprint

    @property
    def shared(self) -> list[int]:
        """Seeds that both arms have finals of."""
        return sorted(set(self.seeds(self.candidate)) & set(self.seeds(self.reference)))


Found = tuple[bool, str]


def ledger(evidence: Evidence) -> tuple[Check, ...]:
    """Check every rule on every pair; one line a rule. Empty until two arms of a task have finals."""
    study = evidence.lock.study
    groups = []
    for task in study.tasks:
        against = arms.reference(evidence, task.name)
        groups += [_pairs(evidence, task.name, arm.name, against) for arm in study.arms if arm.name != against]
    groups = [pairs for pairs in groups if any(p.seeds(p.candidate) and p.seeds(p.reference) for p in pairs)]
    rules = RULES.items() if groups else ()
    checks = [_check(what, [(pairs[0], *_apply(rule, pairs)) for pairs in groups]) for what, rule in rules]
    bases = _bases(evidence, [pairs[0] for pairs in groups])
    anchored = [_anchored(evidence, arm.name) for arm in study.arms if evidence.of(purpose="anchor", arm=arm.name)]
    packs = Check(
        what="packed trials are as alone",
        holds=all(holds for holds, _ in anchored),
        found="; ".join(text for _, text in anchored),
    )
    return (*checks, *bases, *([packs] if anchored else []), *_one_machine(evidence))


def obstacles(evidence: Evidence, task: str, candidate: str, reference: str) -> list[str]:
    """Why a pair cannot be compared: what each broken rule found; empty when all hold."""
    found = [_apply(rule, _pairs(evidence, task, candidate, reference)) for rule in RULES.values()]
    found += [_anchored(evidence, arm) for arm in (candidate, reference)]
    return [text for holds, text in found if not holds]


def _pairs(evidence: Evidence, task: str, candidate: str, reference: str) -> list[Pair]:
    """The pair on a task, or in each fold of a task."""
    return [Pair(evidence, name, candidate, reference) for name in evidence.lock.parts(task)]


def _apply(rule: Callable[[Pair], Found], pairs: list[Pair]) -> Found:
    """Whether a rule holds for a pair, or in its folds.

    A rule must hold in every fold in which both arms have a final, but for the edge of the rates tried: there one fold
    in five may be, since on so few validation rows some curve always leads astray, and what that loses is part of the
    fold's difference. More of it means that the range itself is wrong for an arm.
    """
    if len(pairs) == 1:
        return rule(pairs[0])
    found = [(p.task.partition("#")[2], *rule(p)) for p in pairs if p.seeds(p.candidate) and p.seeds(p.reference)]
    broken = [f"fold {fold}: {text}" for fold, holds, text in found if not holds]
    allowed = len(pairs) // FOLDS_AT_EDGE if rule is _interior_rate else 0
    if len(broken) > allowed:
        return False, f"in {len(broken)} of {len(pairs)} folds, such as {broken[0]}"
    kept = next((f"fold {fold}: {text}" for fold, holds, text in found if holds), "no fold has finals of both arms yet")
    aside = f"; not in {len(broken)}, where {allowed} may be: {broken[0]}" if broken else ""
    return True, f"in {len(found) - len(broken)} of {len(pairs)} folds, such as {kept}{aside}"


def _check(what: str, results: list[tuple[Pair, bool, str]]) -> Check:
    """Sum the pairs up: all if the rule holds, else those that break it; those of which the same was found together."""
    holds, pairs = all(kept for _, kept, _ in results), {}
    for pair, kept, text in results:
        if kept == holds:
            pairs.setdefault(text, []).append(f"{whole(pair.task)}, {pair.candidate} and {pair.reference}")
    found = []
    for text, own in pairs.items():
        found.append(f"{'every comparison' if len(own) == len(results) > 1 else ' · '.join(own)}: {text}")
    return Check(what=what, holds=holds, found="; ".join(found))


def _same_study(pair: Pair) -> Found:
    lock, records = pair.evidence.lock, pair.trained
    for record in records:
        t = record.trial
        asked = lock.like(t)
        differ = [name for name in ("arm", "controls", "data_digest") if getattr(t, name) != getattr(asked, name)]
        if differ:
            return False, f"trial {t.id} ({t.arm.name}) is of another study: its {', '.join(differ)} differ"
    return True, f"{len(records)} trials with the controls, data and arms of the lock"


def _one_world(pair: Pair) -> Found:
    wanted, records = pair.evidence.lock.engine == "sim", pair.trained
    wrong = [r for r in records if r.synthetic != wanted]
    if wrong:
        kind = "synthetic" if wrong[0].synthetic else "measured"
        other = "synthetic" if wanted else "measured"
        return False, f"trial {wrong[0].trial.id} ({wrong[0].trial.arm.name}) is {kind} in a {other} study"
    return True, "all synthetic (simulated)" if wanted else "all measured"


def _paired_seeds(pair: Pair) -> Found:
    for arm in (pair.candidate, pair.reference):
        finals = pair.evidence.of(purpose="final", task=pair.task, arm=arm)
        rates = sorted({r.trial.learning_rate for r in finals} - {None})
        if len(rates) > 1:
            return False, f"{arm} has finals at {len(rates)} learning rates: {', '.join(f'{r:g}' for r in rates)}"
        seed, times = Counter(r.trial.seed for r in finals).most_common(1)[0] if finals else (0, 1)
        if times > 1:
            return False, f"{arm} has {times} finals of seed {seed}"
    fixed = [arm for arm in (pair.candidate, pair.reference) if pair.evidence.lock.study.arm(arm).fixed]
    if fixed:
        return True, f"nothing in {' and '.join(fixed)} is random: one final stands for every seed"
    ours, theirs = set(pair.seeds(pair.candidate)), set(pair.seeds(pair.reference))
    look, alone = min(len(ours), len(theirs)), ours ^ theirs
    first = pair.evidence.lock.looks(pair.task)[0]
    if look >= first and not set(sorted(ours | theirs)[:first]) <= ours & theirs:
        return False, f"seeds are not paired: {', '.join(map(str, sorted(alone)))} have a final of one arm alone"
    return True, f"{len(pair.shared)} pairs with one seed each"


def _same_tokens(pair: Pair) -> Found:
    ours, theirs = pair.seeds(pair.candidate), pair.seeds(pair.reference)
    if pair.without_steps:
        return True, f"{' and '.join(pair.without_steps)} took no training steps"
    finished = [s for s in pair.shared if ours[s].status == theirs[s].status == "ok"]
    if not pair.one_base:
        return _same_order(finished, ours, theirs)
    for seed in finished:
        digests = ours[seed].token_digest, theirs[seed].token_digest
        if None in digests:
            return False, f"seed {seed}: no digest of the token stream is recorded"
        if digests[0] != digests[1]:
            return False, f"seed {seed}: the arms trained on different token streams"
    return True, f"{len(finished)} pairs trained on the same tokens in the same order"


def _same_order(finished: list[int], ours: dict[int, TrialRecord], theirs: dict[int, TrialRecord]) -> Found:
    """Of arms on different bases, whose tokens differ by their tokenizers: the examples themselves."""
    for seed in finished:
        digests = ours[seed].examples_digest, theirs[seed].examples_digest
        if None in digests:
            return False, f"seed {seed}: no digest of the examples is recorded, and the arms are on different bases"
        if digests[0] != digests[1]:
            return False, f"seed {seed}: the arms trained on different examples, or in another order"
    return True, f"{len(finished)} pairs on different bases trained on the same examples in the same order"


def _same_examples(pair: Pair) -> Found:
    scores, counts = pair.evidence.scores, {}
    for split in ("test", "validation"):
        first = None
        for record in pair.of("final"):
            mine = scores.get((record.trial.id, split))
            if record.status != "ok":
                continue
            name = f"{split} scores of trial {record.trial.id} ({record.trial.arm.name}, seed {record.trial.seed})"
            if not arms.sound(mine):
                return False, f"{name} are {'missing' if mine is None else 'incomplete or not finite'}"
            first = first or mine
            if not arms.same_rows(mine, first):
                return False, f"{name} are of other examples, clusters or targets"
        counts[split] = len(first.example_id_E) if first else 0
    return True, f"the same {counts['test']} test and {counts['validation']} validation examples"


def _scores_match_records(pair: Pair) -> Found:
    metric, checked = metrics.find(pair.evidence.lock.study.task(pair.task).metric), 0
    for record in pair.of("final"):
        for split in ("test", "validation"):
            scores = pair.evidence.scores.get((record.trial.id, split))
            stated = record.measurements.get(f"{split}.{metric.name}")
            if stated is None or not arms.sound(scores):
                continue
            value, checked = metrics.value(metric, scores), checked + 1
            if value is None or not isclose(value, stated.value, rel_tol=1e-9, abs_tol=1e-12):
                got = f"{split}.{metric.name} {stated.value:g} is recorded, its scores give {value}"
                return False, f"trial {record.trial.id} ({record.trial.arm.name}): {got}"
    return True, f"{checked} recorded values equal those of their scores"


def _same_execution(pair: Pair) -> Found:
    """Finals and tuning alike: a rate that was tuned in another precision was tuned for another experiment."""
    ran = [r for r in pair.trained if r.status == "ok"]
    # An arm without steps says nothing of how steps were computed, and says what no step has; the rest must agree.
    silent = [r for r in ran if r.trial.learning_rate is None]
    of_steps = {name for r in ran if r not in silent for name in r.resolved}
    free = MAY_DIFFER if pair.one_base else MAY_DIFFER | OF_THE_BASE
    for name in sorted({name for r in ran for name in r.resolved} - free):
        by_value: dict[str, dict[str, None]] = {}
        for r in (r for r in ran if name in r.resolved or (r not in silent and name in of_steps)):
            who = r.trial.arm.name if r.trial.purpose == "final" else f"{r.trial.arm.name}'s tuning"
            by_value.setdefault(repr(r.resolved.get(name)), {})[who] = None
        if len(by_value) > 1:
            return False, f"{name} differs: " + ", ".join(f"{v} ({', '.join(by_value[v])})" for v in sorted(by_value))
    facts = ran[0].resolved if ran else {}
    return True, ", ".join(f"{name} {facts[name]}" for name in sorted(facts) if name not in free) or "no facts"


def _interior_rate(pair: Pair) -> Found:
    shown = []
    for arm in (pair.candidate, pair.reference):
        if arm in pair.without_steps:
            shown.append(f"{arm} has none")
            continue
        for rate in sorted({r.trial.learning_rate for r in pair.seeds(arm).values()}):
            tried = sorted({r.trial.learning_rate for r in pair.evidence.settling(task=pair.task, arm=arm)})
            if not tried:
                return False, f"{arm} has no tuning trials: its learning rate {rate:g} was not searched for"
            if arms.at_edge(pair.evidence, pair.task, arm, rate):
                return False, f"{arm} is best at the edge of the rates it tried, {tried[0]:g} to {tried[-1]:g}"
            shown.append(f"{arm} {rate:g} in {tried[0]:g} to {tried[-1]:g}")
    return True, ", ".join(shown)


def _same_tuning(pair: Pair) -> Found:
    tuning, shown = pair.evidence.lock.study.tuning, []
    least = tuning.points if tuning.learning_rate == "auto" else len(set(tuning.learning_rate))
    for arm in (pair.candidate, pair.reference):
        if arm in pair.without_steps:
            shown.append(f"{arm} has nothing to tune")
            continue
        trials = pair.evidence.searching(task=pair.task, arm=arm)
        settling = pair.evidence.settling(task=pair.task, arm=arm)
        tried = {r.trial.learning_rate for r in trials}
        elsewhere = pair.evidence.lock.study.tuned_as(arm) != pair.evidence.lock.study.arm(arm)
        if elsewhere and settling == trials:
            return False, f"{arm} was tuned on {tuning.on} alone: its rate was not confirmed as its finals are run"
        finals = pair.seeds(arm)
        both = {r.trial.seed for r in (*trials, *settling)} & set(finals)
        if both:
            return False, f"{arm}: seed {min(both)} is used for tuning and for a final"
        if not least <= len(tried) <= max(least, tuning.max_points):
            return False, f"{arm} tried {len(tried)} rates, the study asks for {least} to {tuning.max_points}"
        for rate in {r.trial.learning_rate for r in finals.values()}:
            nearest = min((r.trial.learning_rate for r in settling), key=lambda other: abs(log(other / rate)))
            seeds = {r.trial.seed for r in settling if r.trial.learning_rate == nearest}
            if len(seeds) < tuning.seeds:
                return (
                    False,
                    f"{arm} was tuned on {len(seeds)} of {tuning.seeds} seeds at {nearest:g}, where it is best",
                )
        declared = f" on {tuning.on}, as declared, and {len(settling)} to confirm" if elsewhere else ""
        shown.append(f"{arm} {len(tried)} rates in {len(trials)} trials{declared}")
    return True, ", ".join(shown)


def _bases(evidence: Evidence, pairs: list[Pair]) -> tuple[Check, ...]:
    """Which pairs differ in their bases as well: declared, so nothing is broken, but no comparison of methods alone."""
    lock, found = evidence.lock, []
    for candidate, reference in dict.fromkeys((p.candidate, p.reference) for p in pairs if not p.one_base):
        two = (f"{lock.study.base_of(a)} (fingerprint {lock.base(a).fingerprint[:12]})" for a in (candidate, reference))
        found.append(f"{candidate} and {reference}: bases differ, declared: {' against '.join(two)}")
    return (
        (Check(what="bases are the same, or declared to differ", holds=True, found="; ".join(found)),) if found else ()
    )


def _anchored(evidence: Evidence, arm: str) -> Found:
    """Whether an arm's trials in packs came out as one of them did alone: no further apart on validation than the
    margin, where that is in units of the metric. One run's rounding can move single answers; a fault moves more."""
    for anchor in evidence.of(purpose="anchor", arm=arm):
        trial, spec = anchor.trial, evidence.lock.study.task(anchor.trial.task)
        name, finals = f"validation.{spec.metric}", evidence.of(purpose="final", task=trial.task, arm=arm)
        twin = next((r for r in finals if r.trial.seed == trial.seed), None)
        values = [r.measurements[name].value for r in (anchor, twin) if r is not None and name in r.measurements]
        if len(values) < 2:
            return False, f"{arm} on {trial.task}: {anchor.status} alone, not in its pack"
        text = f"{arm} on {trial.task}: {values[0]:.4g} alone, {values[1]:.4g} in a pack of {twin.resolved.get('pack')}"
        if isinstance(spec.margin, str):
            return True, f"{text}, shown alone: the margin is a share of a gain"
        return abs(values[0] - values[1]) <= spec.margin, text
    return True, f"{arm} has no trial to compare"


def _one_machine(evidence: Evidence) -> tuple[Check, ...]:
    """Whether costs may be compared: all probes on one device under the same software."""
    probes = [r for r in evidence.records if r.trial.purpose == "probe" and r.status == "ok"]
    if len({r.trial.arm.name for r in probes}) < 2:
        return ()
    found = costs_obstacle(evidence)
    return (Check(what="costs were measured on one machine", holds=not found, found=found or f"{len(probes)} probes"),)


def costs_obstacle(evidence: Evidence) -> str | None:
    """Why the costs of the arms cannot be compared; None when they can."""
    probes = [r for r in evidence.records if r.trial.purpose == "probe" and r.status == "ok"]
    for name in sorted({name for r in probes for name in r.resolved} - MAY_DIFFER):
        values = sorted({str(r.resolved.get(name)) for r in probes})
        if len(values) > 1:
            return f"the probes' {name} differs: {', '.join(values)}"
    if {r.synthetic for r in probes} - {evidence.lock.engine == "sim"}:
        return "synthetic and measured probes are mixed"
    return None


RULES: dict[str, Callable[[Pair], Found]] = {
    "trials are of this study: same base, controls, data": _same_study,
    "measured and simulated trials are not mixed": _one_world,
    "finals are paired by seed, at one learning rate an arm": _paired_seeds,
    "paired arms trained on the same tokens in the same order": _same_tokens,
    "all finals are scored, on the same examples": _same_examples,
    "records agree with their scores": _scores_match_records,
    "trials were executed alike": _same_execution,
    "learning rates lie inside what was searched": _interior_rate,
    "arms had the same tuning budget, on seeds of its own": _same_tuning,
}
