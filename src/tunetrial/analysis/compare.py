"""Verdicts of a study: every candidate against the reference on every task, with what each arm did.

The estimand is the difference of the task's metric over new seeds and new examples (new clusters, where rows come in
clusters), each arm at its best learning rate, for this base model and data; turned so that positive is better. Nothing
is claimed of other tasks or models, and nothing is averaged over tasks. Finals have the tuned rates, so the effect
shown may flatter an arm by what the other's rate loses: interval and tests allow below for what the reference's rate
is expected to lose, and above for what the candidate's is (`rates`); for nothing where a search cannot tell, which
`procedure` says. Pairs are finals of the same seed. A comparison is made at the last look that both arms have
completed, on the first seeds of that look, so that an interrupted study says what it would have said there; levels
are those of `verdict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunetrial.analysis import arms, fairness, metrics, rates, stats, verdict
from tunetrial.analysis.arms import Outcome
from tunetrial.analysis.stats import Components, Estimate
from tunetrial.analysis.verdict import Verdict
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import ArmResult, Comparison, Evidence, Scores

FIRST_LOOK = "the finals of the first look"


@dataclass(frozen=True)
class Difference:
    """One pair of arms at a look: the estimate, what it is made of, and how much it rests on.

    `regrets` is what the rate of each arm that was tuned is expected to lose; None where its search cannot tell.
    """

    parts: Components
    estimate: Estimate
    rows: int
    regrets: Mapping[str, float | None]


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
        and case.difference.parts.replicates < last
        and verdict.bound_by(case.difference.parts) == "seeds"
        for case in review(evidence)[1]
        if case.verdict
    )


def review(evidence: Evidence) -> tuple[tuple[ArmResult, ...], tuple[Case, ...]]:
    """Gather every arm's outcome, and judge all planned comparisons as one family."""
    study, found = evidence.lock.study, []
    outcomes = {(t.name, a.name): arms.outcome(evidence, t.name, a.name) for t in study.tasks for a in study.arms}
    for task in study.tasks:
        against = arms.reference(evidence, task.name)
        for arm in study.arms:
            if arm.name != against:
                found.append(_case(evidence, outcomes, task.name, arm.name, against))
    verdicts = verdict.judge(
        [case.difference and case.difference.estimate for case in found],
        [study.task(case.task).margin for case in found],
        alpha=1 - study.rule.level,
        looks=study.looks,
    )
    cases = tuple(replace(case, verdict=judged) for case, judged in zip(found, verdicts, strict=True))
    return tuple(outcome.result for outcome in outcomes.values()), cases


def _case(
    evidence: Evidence, outcomes: Mapping[tuple[str, str], Outcome], task: str, candidate: str, reference: str
) -> Case:
    """Find what stands in the way of a comparison, else estimate the difference."""
    pair = {arm: outcomes[task, arm] for arm in (candidate, reference)}
    states = {arm: outcome.result.state for arm, outcome in pair.items()}
    blank = Case(task, candidate, reference)
    lost = [arm for arm, state in states.items() if state in ("does not fit", "diverged")]
    if lost:
        return replace(blank, not_comparable=_why_lost(pair[lost[0]].result, evidence))
    broken = fairness.obstacles(evidence, task, candidate, reference)
    if broken:
        return replace(blank, not_comparable="; ".join(broken))
    first = evidence.lock.study.looks[0]
    waiting = [f"{arm} has {len(o.seeds)} of {first} finals" for arm, o in pair.items() if states[arm] == "pending"]
    if waiting:
        return replace(blank, pending=", ".join(waiting), needs=FIRST_LOOK)
    idle = [arm for arm, state in states.items() if state == "did not train"]
    if idle:
        return replace(blank, not_comparable=_why_idle(pair[idle[0]].result, evidence))
    return _difference(evidence, blank, pair[candidate], pair[reference])


def _difference(evidence: Evidence, blank: Case, candidate: Outcome, reference: Outcome) -> Case:
    rows: Scores = arms.scored_rows(evidence, blank.task)
    shared = sorted(set(candidate.seeds) & set(reference.seeds))
    look = arms.complete_look(len(shared), evidence.lock.study.looks)
    if look is None:
        first = evidence.lock.study.looks[0]
        return replace(blank, pending=f"{len(shared)} of {first} pairs are complete", needs=FIRST_LOOK)
    seeds = tuple(shared[:look])
    diff_RE = stats.cluster_values(candidate.stack(seeds) - reference.stack(seeds), rows.cluster_E)
    try:
        parts, noise = stats.components(diff_RE), stats.crossed(diff_RE)
    except EvidenceError as error:
        return replace(blank, pending=str(error), needs="test rows on which the arms differ")
    tuned = {arm: rates.tuned(evidence, arm, blank.task) for arm in (blank.reference, blank.candidate)}
    regrets = {arm: rate.expected_regret for arm, rate in tuned.items() if rate}
    below, above = (regrets.get(arm) or 0.0 for arm in tuned)
    estimate = noise.model_copy(update={"below": below, "above": above})
    return replace(blank, difference=Difference(parts, estimate, len(rows.example_id_E), regrets))


def _why_lost(result: ArmResult, evidence: Evidence) -> str:
    if result.state == "does not fit":
        records = (r for r in evidence.records if r.trial.task == result.task and r.trial.arm.name == result.arm)
        reason = next((r.reason for r in records if r.status == "infeasible" and r.reason), None)
        return f"{result.arm} does not fit on this machine" + (f": {reason}" if reason else "")
    of = len(evidence.of(purpose="final", task=result.task, arm=result.arm))
    return f"{result.arm} diverged in " + (f"{result.failed} of {of} finals" if of else "every tuning trial")


def _why_idle(result: ArmResult, evidence: Evidence) -> str:
    metric = metrics.find(evidence.lock.study.task(result.task).metric)
    if result.mean is None:
        return f"{result.arm} did not train: no learning rate gave a defined {metric.title}"
    floor, turn = result.floor or 0.0, 1 if metric.higher_is_better else -1
    text = f"{result.arm} did not train: {metric.title} {result.mean:.4g} is not shown to be better than a constant's "
    better = sum(turn * (value - floor) > 0 for value in result.values.values())
    alone = f"{floor:.4g}, though {better} of {len(result.values)} finals alone are" if better else f"{floor:.4g}"
    return text + alone + (f", {result.failed} of its finals diverged" if result.failed else "")


def comparison(evidence: Evidence, case: Case) -> Comparison:
    """Write a case down as a record."""
    spec = evidence.lock.study.task(case.task)
    head = {
        "task": case.task,
        "candidate": case.candidate,
        "reference": case.reference,
        "metric": spec.metric,
        "margin": spec.margin,
    }
    if case.not_comparable:
        return Comparison(**head, words="NOT COMPARABLE", reason=case.not_comparable)
    if case.verdict is None:
        return Comparison(**head, words="CAN'T TELL YET", reason=case.pending, needs=case.needs)
    judged, parts, estimate = case.verdict, case.difference.parts, case.difference.estimate
    per_cluster = case.difference.rows / parts.examples
    return Comparison(
        **head,
        words=judged.words,
        direction=judged.direction,
        size=judged.size,
        effect=estimate.effect,
        low=judged.low,
        high=judged.high,
        level=judged.level,
        mde=stats.detectable_effect(estimate.se, estimate.df, level=judged.level) + max(estimate.below, estimate.above),
        n_replicates=parts.replicates,
        n_examples=case.difference.rows,
        n_clusters=parts.examples,
        bound_by=verdict.bound_by(parts),
        needs=verdict.needs(parts, estimate, judged, spec.margin, rows_per_example=per_cluster),
        procedure=_procedure(evidence, case),
    )


def _procedure(evidence: Evidence, case: Case) -> str:
    """Name the test, its levels and what they allow for, for the methods section of a report."""
    study, judged, parts = evidence.lock.study, case.verdict, case.difference.parts
    family = len(study.tasks) * (len(study.arms) - 1)
    return (
        f"crossed two-way t, {parts.replicates} paired seeds x {case.difference.rows} test rows in {parts.examples} "
        f"clusters, df {case.difference.estimate.df:.1f}; direction two-sided at {100 * judged.level:.2f} %, margin "
        f"one-sided at {100 * judged.bound_level:.2f} % with lower bound {judged.bound:.4g}; levels allow for looks at "
        f"{', '.join(map(str, study.looks))} seeds and for a family of {family} (Holm){_allowance(case)}"
    )


def _allowance(case: Case) -> str:
    """Say what interval and tests allow for tuning; nothing of arms that have nothing to tune."""
    end, regrets = {case.reference: "low", case.candidate: "high"}, case.difference.regrets
    known = [f"{arm} {regret:.2g} ({end[arm]} end)" for arm, regret in regrets.items() if regret is not None]
    unknown = [arm for arm, regret in regrets.items() if regret is None]
    said = f"; interval and tests allow for what tuned rates are expected to lose: {', '.join(known)}" if known else ""
    return said + (f"; nothing is allowed for the tuning of {' and '.join(unknown)}" if unknown else "")
