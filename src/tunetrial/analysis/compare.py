"""Verdicts of a study: every candidate against the reference on every task, with what each arm did.

The estimand is the difference of the task's metric over new seeds and new examples (new clusters, where rows come in
clusters), each arm at its best learning rate, for this base model and data; turned so that positive is better. Nothing
is claimed of other tasks or models, and nothing is averaged over tasks. Finals have the tuned rates, so the effect
shown may flatter an arm by what the other's rate loses: interval and tests allow below for what the reference's rate
is expected to lose, and above for what the candidate's is (`rates`); for nothing where a search cannot tell, which
`procedure` says. Pairs are finals of the same seed; one final of an arm in which nothing is random is paired with all.
Where the untuned base has a score, each candidate's share of the reference's gain over it is given too (`gains`), and
a margin may be a share of that gain. A comparison is made at the last look that both arms have
completed, on the first seeds of that look, so that an interrupted study says what it would have said there; levels
are those of `verdict`. A task in folds has an estimand and a variance of its own (`folds`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunetrial.analysis import arms, escalation, fairness, folds, metrics, rates, stats, verdict
from tunetrial.analysis.arms import Outcome
from tunetrial.analysis.gains import Gains, gains
from tunetrial.analysis.stats import Components, Estimate
from tunetrial.analysis.verdict import Contrasts, Verdict
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, Comparison, Evidence, GainShare, Scores
from tunetrial.core.study import TaskSpec, whole

FIRST_LOOK = "the finals of the first look"


@dataclass(frozen=True)
class Difference:
    """One pair of arms at a look: the estimate, what it is made of, and how much it rests on.

    `regrets` is what the rate of each arm that was tuned is expected to lose; None where its search cannot tell.
    `gains` are those over the untuned base, where it has a score; `contrasts` what the margin makes of the estimate.
    Of a task in folds there are no `parts` and no `gains`, and nothing is allowed for rates.
    """

    parts: Components | None
    estimate: Estimate
    rows: int
    regrets: Mapping[str, float | None]
    gains: Gains | None = None
    contrasts: Contrasts | None = None


@dataclass(frozen=True)
class Case:
    """One planned comparison: its difference and verdict if it has one, else what stands in the way."""

    task: str
    candidate: str
    reference: str
    not_comparable: str | None = None
    pending: str | None = None
    needs: str | None = None
    difference: Difference | None = None
    verdict: Verdict | None = None


def compare(evidence: Evidence) -> tuple[tuple[ArmResult, ...], tuple[Comparison, ...]]:
    """Give each arm's result and each candidate's comparison, by task and arm in the study's order."""
    results, cases = review(evidence)
    return results, tuple(comparison(evidence, case) for case in cases)


def extend(evidence: Evidence) -> bool:
    """Say whether the next look must be run: some comparison is open, and seeds, not examples, bound its interval.

    BETTER, WORSE, WORSE negligibly and SAME are settled and stop early. Asked when every arm has completed a look,
    and answered for the study: the verdicts are one family, in which the level of each depends on the others' p. If a
    settled task kept its first look while another went on, Holm's procedure could take back what it had rejected.
    """
    last = evidence.lock.study.looks[-1]
    return any(
        case.verdict.words in verdict.OPEN
        and case.difference.parts is not None
        and case.difference.parts.replicates < last
        and verdict.bound_by(case.difference.parts) == "seeds"
        for case in review(evidence)[1]
        if case.verdict
    )


def review(evidence: Evidence) -> tuple[tuple[ArmResult, ...], tuple[Case, ...]]:
    """Gather every arm's outcome, and judge all planned comparisons as one family."""
    study, results, found = evidence.lock.study, [], []
    passed = escalation.passed_over(evidence)
    for task in study.tasks:
        against = arms.reference(evidence, task.name)
        outcomes = {arm.name: outcome(evidence, task.name, arm.name) for arm in study.arms}
        outcomes |= {arm: _not_run(outcomes[arm]) for arm in passed}
        results += [one.result for one in outcomes.values()]
        found += [
            replace(Case(task.name, arm, against), not_comparable=f"{arm} was not run: {passed[arm]}")
            if arm in passed
            else _case(evidence, outcomes, task.name, arm, against)
            for arm in outcomes
            if arm != against
        ]
    asked = [case.difference and case.difference.contrasts for case in found]
    looks = [evidence.lock.looks(case.task) for case in found]
    verdicts = verdict.judge(asked, alpha=1 - study.rule.level, looks=looks)
    cases = tuple(replace(case, verdict=judged) for case, judged in zip(found, verdicts, strict=True))
    return tuple(results), cases


def _not_run(found: Outcome) -> Outcome:
    return replace(found, result=found.result.model_copy(update={"state": "not run"}))


def outcome(evidence: Evidence, task: str, arm: str) -> Outcome:
    """What an arm did on a task, in folds or not."""
    gather = folds.outcome if evidence.lock.folding(task) else arms.outcome
    return gather(evidence, task, arm)


def _case(evidence: Evidence, outcomes: Mapping[str, Outcome], task: str, candidate: str, reference: str) -> Case:
    """Find what stands in the way of a comparison, else estimate the difference."""
    pair = {arm: outcomes[arm] for arm in (candidate, reference)}
    states = {arm: outcome.result.state for arm, outcome in pair.items()}
    blank = Case(task, candidate, reference)
    lost = [arm for arm, state in states.items() if state in ("does not fit", "diverged")]
    if lost:
        return replace(blank, not_comparable=why_lost(pair[lost[0]].result, evidence))
    broken = fairness.obstacles(evidence, task, candidate, reference)
    if broken:
        return replace(blank, not_comparable="; ".join(broken))
    study, base = evidence.lock.study, outcomes.get(evidence.lock.study.untuned(reference))
    due = {arm: outcome for arm, outcome in pair.items() if states[arm] == "pending"}
    if study.task(task).kept_share and base.result.state == "pending":
        due[base.result.arm] = base
    cut = evidence.lock.folding(task)
    asked = {arm: cut.splits if cut else 1 if study.arm(arm).fixed else study.looks[0] for arm in due}
    waiting = [f"{arm} has {len(o.seeds)} of {asked[arm]} finals" for arm, o in due.items()]
    if waiting:
        return replace(blank, pending=", ".join(waiting), needs=FIRST_LOOK)
    idle = [arm for arm, state in states.items() if state == "did not train"]
    if idle:
        return replace(blank, not_comparable=why_idle(pair[idle[0]].result, evidence))
    return difference(evidence, blank, pair[candidate], pair[reference], base)


def _over_folds(evidence: Evidence, blank: Case, candidate: Outcome, reference: Outcome) -> Case:
    """Estimate the difference of two arms that have all folds; pending before."""
    shared, due = len(set(candidate.seeds) & set(reference.seeds)), evidence.lock.folding(blank.task).splits
    if shared < due:
        return replace(blank, pending=f"{shared} of {due} folds are complete", needs="the finals of all folds")
    diff_J = (candidate.stack(candidate.seeds) - reference.stack(reference.seeds))[:, 0]
    try:
        effect = folds.estimate(evidence.lock, blank.task, diff_J)
    except EvidenceError as error:
        return replace(blank, pending=str(error), needs="test rows on which the arms differ")
    rows, _ = folds.tested(evidence, blank.task)
    contrasts = verdict.by_margin(effect, evidence.lock.study.task(blank.task).margin)
    return replace(blank, difference=Difference(None, effect, rows, {}, contrasts=contrasts))


def difference(evidence: Evidence, blank: Case, candidate: Outcome, reference: Outcome, base: Outcome | None) -> Case:
    """Estimate a difference at the last look that both arms have completed; pending before the first.

    `base` is the outcome of the reference's untuned base where the study has one.
    """
    if evidence.lock.folding(blank.task):
        return _over_folds(evidence, blank, candidate, reference)
    rows: Scores = arms.scored_rows(evidence, blank.task)
    looks, spec = evidence.lock.study.looks, evidence.lock.study.task(blank.task)
    seeds = candidate.shared_look(reference, looks)
    if not seeds:
        shared = set(candidate.seeds) & set(reference.seeds)
        return replace(blank, pending=f"{len(shared)} of {looks[0]} pairs are complete", needs=FIRST_LOOK)
    tuned = {arm: rates.tuned(evidence, arm, blank.task) for arm in (blank.reference, blank.candidate)}
    regrets = {arm: rate.expected_regret for arm, rate in tuned.items() if rate}
    below, above = (regrets.get(arm) or 0.0 for arm in tuned)
    diff_RE = stats.cluster_values(candidate.stack(seeds) - reference.stack(seeds), rows.cluster_E)
    try:
        parts = stats.components(diff_RE)
        effect = stats.crossed(diff_RE).model_copy(update={"below": below, "above": above})
    except EvidenceError as error:
        return replace(blank, pending=str(error), needs="test rows on which the arms differ")
    over_base = None
    if base is not None and set(seeds) <= set(base.seeds) and not _unfair(evidence, blank, base):
        gain_GRE = [arm.stack(seeds) - base.stack(seeds) for arm in (candidate, reference)]
        own = (stats.cluster_values(gain_RE, rows.cluster_E) for gain_RE in gain_GRE)
        over_base = gains(*own, candidate_regret=above, reference_regret=below)
    found = Difference(parts, effect, len(rows.example_id_E), regrets, over_base)
    if spec.kept_share is None:
        return replace(blank, difference=replace(found, contrasts=verdict.by_margin(effect, spec.margin)))
    return _by_gain(evidence, replace(blank, difference=found), base)


def _by_gain(evidence: Evidence, case: Case, base: Outcome) -> Case:
    """Judge by a share of the gain, if the reference is shown to have gained over the base."""
    study, found = evidence.lock.study, case.difference
    without, unfair = replace(case, difference=None), _unfair(evidence, case, base)
    if unfair:
        return replace(without, not_comparable=f"the margin is a share of a gain: {unfair}")
    if found.gains is None and base.result.state in ("does not fit", "diverged"):
        return replace(without, not_comparable=f"the margin is a share of a gain: {why_lost(base.result, evidence)}")
    if found.gains is None:
        return replace(without, pending=f"{base.result.arm} lacks finals to count gains from", needs=FIRST_LOOK)
    level = stats.per_look(1 - study.rule.level, study.looks, sides=1)
    if found.gains.reference_gain.p_not_below(0.0) > level:
        what = f"{case.reference}'s gain over {base.result.arm} is not shown, so no share of it can be asked for"
        return replace(without, not_comparable=what)
    kept = study.task(case.task).kept_share
    contrasts = Contrasts(found.estimate, found.gains.contrast(kept), found.gains.contrast(2 - kept))
    return replace(case, difference=replace(found, contrasts=contrasts))


def _unfair(evidence: Evidence, case: Case, base: Outcome) -> str:
    """Why the reference's gain over the base is nobody's finding; empty where it may be counted."""
    if base.result.arm == case.reference:
        return f"{base.result.arm} is the untuned base itself"
    return "; ".join(fairness.obstacles(evidence, case.task, base.result.arm, case.reference))


def why_lost(result: ArmResult, evidence: Evidence) -> str:
    """Of an arm that does not fit or diverged."""
    if result.state == "does not fit":
        records = (r for r in evidence.records if whole(r.trial.task) == result.task and r.trial.arm.name == result.arm)
        reason = next((r.reason for r in records if r.status == "infeasible" and r.reason), None)
        return f"{result.arm} does not fit on this machine" + (f": {reason}" if reason else "")
    cut, of = evidence.lock.folding(result.task), len(evidence.of(purpose="final", task=result.task, arm=result.arm))
    if cut is not None:
        return f"{result.arm} diverged in {result.failed} of {cut.splits} folds"
    return f"{result.arm} diverged in " + (f"{result.failed} of {of} finals" if of else "every tuning trial")


def why_idle(result: ArmResult, evidence: Evidence) -> str:
    """Of an arm that did not train."""
    study = evidence.lock.study
    metric = metrics.find(study.task(result.task).metric)
    if result.mean is None:
        return f"{result.arm} did not train: no learning rate gave a defined {metric.title}"
    turn = 1 if metric.higher_is_better else -1
    bars = {"a constant's": result.floor, f"{study.untuned(result.arm)}'s, untuned,": result.base}
    known = {whose: value for whose, value in bars.items() if value is not None} or {"a constant's": 0.0}
    whose, bar = max(known.items(), key=lambda item: turn * item[1])
    what = "" if study.arm(result.arm).untrained else " did not train"
    text = f"{result.arm}{what}: {metric.title} {result.mean:.4g} is not shown to be better than {whose} {bar:.4g}"
    better = sum(turn * (value - bar) > 0 for value in result.values.values())
    several = f", though {better} of {len(result.values)} finals alone are" if better and len(result.values) > 1 else ""
    return text + several + (f", {result.failed} of its finals diverged" if result.failed else "")


def comparison(evidence: Evidence, case: Case) -> Comparison:
    """Write a case down as a record."""
    spec = evidence.lock.study.task(case.task)
    margin = _margin(spec, case)
    head = {
        "task": case.task,
        "candidate": case.candidate,
        "reference": case.reference,
        "metric": spec.metric,
        "margin": margin,
        "kept_share": spec.kept_share,
    }
    if case.not_comparable:
        return Comparison(**head, words="NOT COMPARABLE", reason=case.not_comparable)
    if case.verdict is None:
        return Comparison(**head, words="CAN'T TELL YET", reason=case.pending, needs=case.needs)
    judged, estimate = case.verdict, case.difference.estimate
    basis = _in_folds(evidence, case) if evidence.lock.folding(case.task) else _by_seeds(evidence, case, margin)
    return Comparison(
        **head,
        **basis,
        words=judged.words,
        direction=judged.direction,
        size=judged.size,
        effect=estimate.effect,
        low=judged.low,
        high=judged.high,
        level=judged.level,
        mde=stats.detectable_effect(estimate.se, estimate.df, level=judged.level) + max(estimate.below, estimate.above),
        gain=_gain_share(evidence, case),
    )


def _by_seeds(evidence: Evidence, case: Case, margin: float) -> dict:
    """What a comparison over seeds and test rows rests on."""
    parts, estimate = case.difference.parts, case.difference.estimate
    per_cluster = case.difference.rows / parts.examples
    return {
        "n_replicates": parts.replicates,
        "n_examples": case.difference.rows,
        "n_clusters": parts.examples,
        "bound_by": verdict.bound_by(parts),
        "needs": verdict.needs(parts, estimate, case.verdict, margin, rows_per_example=per_cluster),
        "procedure": _procedure(evidence, case),
    }


def _in_folds(evidence: Evidence, case: Case) -> dict:
    """What a comparison over folds rests on."""
    cut, margin = evidence.lock.folding(case.task), evidence.lock.study.task(case.task).margin
    rows, clusters = folds.tested(evidence, case.task)
    return {
        "n_replicates": cut.splits,
        "n_examples": rows,
        "n_clusters": clusters,
        "folding": cut,
        "needs": verdict.needs_rows(case.difference.estimate, case.verdict, margin, rows=rows),
        "procedure": folds.procedure(evidence.lock, case.task, case.verdict, rows=rows, clusters=clusters),
    }


def _margin(spec: TaskSpec, case: Case) -> float | None:
    """The margin in units of the metric: as given, or as the gain's estimate makes it."""
    if spec.kept_share is None:
        return spec.margin
    return None if case.difference is None else (1 - spec.kept_share) * case.difference.gains.reference_gain.effect


def _gain_share(evidence: Evidence, case: Case) -> GainShare | None:
    """The share of the reference's gain that the candidate gains, at the level of its comparison."""
    base, over_base = evidence.lock.study.untuned(case.reference), case.difference.gains
    if over_base is None or case.candidate == base:
        return None
    limits = over_base.limits(case.verdict.level)
    told = {} if limits is None else {"share": over_base.share, "low": limits[0], "high": limits[1]}
    return GainShare(base=base, level=case.verdict.level, **told)


def _procedure(evidence: Evidence, case: Case) -> str:
    """Name the test, its levels and what they allow for, for the methods section of a report."""
    study, judged, parts = evidence.lock.study, case.verdict, case.difference.parts
    family = len(study.tasks) * (len(study.arms) - 1)
    return (
        f"crossed two-way t, {parts.replicates} paired seeds x {case.difference.rows} test rows in {parts.examples} "
        f"clusters, df {case.difference.estimate.df:.1f}; direction two-sided at {100 * judged.level:.2f} %, margin "
        f"one-sided at {100 * judged.bound_level:.2f} % with lower bound {judged.bound:.4g}{_of_gain(evidence, case)}; "
        f"levels allow for looks at "
        f"{', '.join(map(str, study.looks))} seeds and for a family of {family} (Holm){_allowance(case)}"
    )


def _of_gain(evidence: Evidence, case: Case) -> str:
    """Say of a margin that is a share of the gain what was tested."""
    study = evidence.lock.study
    kept = study.task(case.task).kept_share
    if kept is None:
        return ""
    line = f"{kept:g} of {case.reference} + {1 - kept:.4g} of {study.untuned(case.reference)}"
    least = case.difference.contrasts.worst.at_least(case.verdict.bound_level)
    return f", {least:.4g} for {case.candidate} minus ({line})"


def _allowance(case: Case) -> str:
    """Say what interval and tests allow for tuning; nothing of arms that have nothing to tune."""
    end, regrets = {case.reference: "low", case.candidate: "high"}, case.difference.regrets
    known = [f"{arm} {regret:.2g} ({end[arm]} end)" for arm, regret in regrets.items() if regret is not None]
    unknown = [arm for arm, regret in regrets.items() if regret is None]
    said = f"; interval and tests allow for what tuned rates are expected to lose: {', '.join(known)}" if known else ""
    return said + (f"; nothing is allowed for the tuning of {' and '.join(unknown)}" if unknown else "")
