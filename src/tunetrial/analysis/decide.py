"""From verdicts and costs to a recommendation, or to an abstention that still says what is safe.

1. Arms that did not train, diverged, do not fit, exceed a limit or miss a floor are out, with the reason.
2. Safe is an arm that is not worse than the reference on the primary task: the reference itself, and BETTER, SAME,
   NOT WORSE and "WORSE, negligibly".
   Where the reference did not train, an arm without training that is not worse than any trained arm is recommended.
3. Without criteria, quality goes first and then cost: among the arms that are BETTER, or if there is none among the
   safe ones, the cheapest (training time, then peak memory, then storage; within 10 % counts as equal). It abstains
   if a cheaper arm's verdict is open.
4. With criteria or opinions, the arm with the highest weighted value, if it is first in 80 % of joint draws and stays
   first when all weights change by up to a quarter (`weighing`). If quality is no criterion, only safe
   arms are weighed.

Other tasks than the primary decide nothing; where their verdicts differ, `because` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunetrial.analysis import costs, escalation, fairness, ladder, learning, need, rates, reasons
from tunetrial.analysis.board import Board, lay_out
from tunetrial.analysis.compare import comparison, review
from tunetrial.analysis.explained import explained
from tunetrial.analysis.layers import moved
from tunetrial.analysis.repeats import repeats
from tunetrial.analysis.retention import forgotten
from tunetrial.analysis.tradeoff import frontiers
from tunetrial.analysis.weighing import of_study, weigh
from tunetrial.analysis.weights import updated
from tunetrial.analysis.wordings import wordings
from tunetrial.core.evidence import Abstention, Confirmation, Decision, Evidence, Flip, Measurement, Need


@dataclass(frozen=True)
class Choice:
    """A recommendation or an abstention, the sentences that led there, and where it would change."""

    recommendation: str | None = None
    abstention: Abstention | None = None
    because: tuple[str, ...] = ()
    flips: tuple[Flip, ...] = ()


def decide(
    evidence: Evidence,
    *,
    test_openings: Mapping[str, int] | None = None,
    post_hoc: Sequence[str] = (),
    preferred: Mapping[str, Measurement] | None = None,
) -> Decision:
    """Decide by the study's own rule.

    `test_openings` counts by task how often the test rows were opened, this time included; `post_hoc` names choices
    that were changed after results. Both are recorded, said, and change nothing. `preferred` is by arm how often people
    prefer its answers to the reference's (`rounds.preferred`), weighed where the study has that criterion.
    """
    results, cases = review(evidence)
    board = lay_out(evidence, results, cases, preferred)
    needed = need.answer(board)
    choice = _weigh(board) if evidence.lock.study.criteria or evidence.lock.study.opinions else _rule(board, needed)
    verdicts = tuple(comparison(evidence, case) for case in cases)
    others = [c for c in verdicts if c.task != board.primary]
    steps = escalation.escalated(evidence)
    closing = (*escalation.sentences(steps), *reasons.closing(board, others, test_openings or {}, post_hoc))
    return Decision(
        verdicts=verdicts,
        arms=results,
        costs={arm: dict(own) for arm, own in board.costs.items()},
        recommendation=choice.recommendation,
        abstention=choice.abstention,
        because=(
            *reasons.whether_to_tune(needed),
            *reasons.opening(board),
            *choice.because,
            *closing,
        ),
        flips=choice.flips,
        need=needed,
        pareto=costs.pareto(board.candidates, board.costs, higher_is_better=board.metric.higher_is_better),
        excluded=board.excluded,
        fairness=fairness.ledger(evidence),
        post_hoc=tuple(post_hoc),
        confirmations=_confirmations(evidence),
        repeats=repeats(evidence),
        wordings=wordings(evidence),
        forgotten=forgotten(evidence),
        searches=rates.search_costs(evidence),
        moved=moved(evidence, results, level=evidence.lock.study.rule.level),
        updated=updated(evidence, level=evidence.lock.study.rule.level),
        frontiers=frontiers(evidence),
        explained=explained(evidence),
        learned=learning.learned(evidence, level=evidence.lock.study.rule.level),
        outlook=ladder.outlook(evidence, run_usd=_run_usd(board), excluded=board.excluded),
        escalated=steps,
        test_openings=dict(test_openings or {}),
        study_digest=evidence.lock.digest,
        record_digests={r.trial.id: r.digest for r in evidence.records},
        synthetic=evidence.lock.engine == "sim" or any(r.synthetic for r in evidence.records),
    )


def _run_usd(board: Board) -> dict[str, float]:
    """The price of one training run by arm, where it is known."""
    return {arm: own["cost_usd"].value for arm, own in board.costs.items() if "cost_usd" in own}


def _confirmations(evidence: Evidence) -> tuple[Confirmation, ...]:
    study = evidence.lock.study
    parts = [part for task in study.tasks for part in evidence.lock.parts(task.name)]
    found = (rates.confirmation(evidence, arm.name, part) for part in parts for arm in study.arms)
    return tuple(one for one in found if one)


def _rule(board: Board, needed: Need | None) -> Choice:
    """Quality first, then cost."""
    safe = board.safe
    if not safe and needed and needed.answer == "no" and needed.arm in board.candidates:
        because = (f"{board.reference} is out, and no trained arm is better than {needed.arm} by the margin.",)
        return Choice(recommendation=needed.arm, because=(*because, *reasons.costs(board, needed.arm)))
    if not safe:
        return Choice(abstention=_nothing_safe(board))
    better = [arm for arm in safe if arm != board.reference and board.verdicts[arm].words == "BETTER"]
    pool = better or safe
    pick = board.cheapest(pool)
    if pick is None:
        reason = f"{', '.join(pool)} cannot be told apart by cost"
        return Choice(abstention=reasons.abstention(board, reason, safe=pool[0]))
    rivals = [] if better else [arm for arm in board.open if board.cheapest([pick, arm]) != pick]
    if rivals:
        rival = board.cheapest(rivals) or rivals[0]
        known = "is cheaper than" if board.cheapest([pick, rival]) == rival else "is not known to cost more than"
        verdict = board.verdicts[rival]
        reason = f"{rival} {known} {pick}, and its verdict is open: {verdict.words}: {reasons.finding(verdict)}"
        return Choice(abstention=reasons.abstention(board, reason, safe=pick, rival=rival))
    because = tuple(reasons.cheapest_of(board, pick, pool))
    return Choice(recommendation=pick, because=because, flips=_margin_flips(board, pick))


def _margin_flips(board: Board, pick: str) -> tuple[Flip, ...]:
    """The margin at which the pick would lose its verdict, and to which arm; bounds as at the levels of this study."""
    case = board.cases.get(pick)
    if case is None or case.verdict is None:
        return ()
    spec, bound = board.evidence.lock.study.task(board.primary), case.verdict.bound
    if spec.kept_share is not None:
        return _share_flips(board, pick, spec.kept_share)
    if case.verdict.words == "BETTER":
        # With a margin above the upper bound the gain would not matter, and cost would decide.
        estimate = case.difference.estimate
        at, to = 2 * estimate.effect + estimate.above - estimate.below - bound, board.cheapest(board.safe)
    else:
        at, to = -bound, board.cheapest([arm for arm in board.safe if arm != pick])
    if to in (None, pick) or at <= 0:
        return ()
    return (Flip(what=f"margin of {board.primary} ({board.metric.title})", now=spec.margin, at=at, to=to),)


def _share_flips(board: Board, pick: str, kept: float) -> tuple[Flip, ...]:
    """The share of the gain at which the pick would lose its verdict; bounds as at the levels of this study."""
    case = board.cases[pick]
    limits = case.difference.gains.limits(2 * case.verdict.bound_level - 1)
    if limits is None:
        return ()
    if case.verdict.words == "BETTER":
        at, to = 2 - limits[1], board.cheapest(board.safe)
    else:
        at, to = limits[0], board.cheapest([arm for arm in board.safe if arm != pick])
    if to in (None, pick) or not 0 < at < 1:
        return ()
    return (Flip(what=f"share of the gain to be kept on {board.primary}", now=kept, at=at, to=to),)


def _weigh(board: Board) -> Choice:
    """The highest weighted value by the study's own criteria, if it is first surely enough."""
    found = weigh(board, of_study(board.evidence.lock.study))
    because = (*found.because, *found.warnings)
    if found.recommendation is not None:
        because = (*because, *reasons.costs(board, found.recommendation))
    return Choice(found.recommendation, found.abstention, because, found.flips)


def _nothing_safe(board: Board) -> Abstention:
    """The reference is out or unfinished, and no arm is shown to be as good as it."""
    state = board.state(board.reference)
    why = f"the reference {board.reference} is out ({board.excluded.get(board.reference, state)})"
    choice = board.cheapest(board.candidates) or next(iter(board.candidates), None)
    if state == "pending":
        return Abstention(
            reason=f"the finals of {board.reference} are not complete",
            safe_choice=None,
            at_worst=None,
            next_spend="the finals of the first look",
        )
    if state != "trained":
        worst = f"{choice} is better than a constant; what {board.reference} would do is not known" if choice else None
        few = board.evidence.lock.folding(board.evidence.lock.study.rule.primary)
        spend = f"learning rates at which {board.reference} trains, or another reference"
        spend = f"more rows: so few may not show that anything was learned; else {spend}" if few else spend
        return Abstention(
            reason=f"{why}: nothing to compare with", safe_choice=choice, at_worst=worst, next_spend=spend
        )
    worst = reasons.at_worst(board, choice, choice) if choice else None
    spend = (
        reasons.next_spend(board.verdicts[board.open[0]]) if board.open else "other arms, or other limits and floors"
    )
    return Abstention(
        reason=f"{why}, and no other arm is shown to be as good", safe_choice=choice, at_worst=worst, next_spend=spend
    )
