"""Do you need to tune at all? Every arm without training against every trained one, on the task that decides.

"No" says that an arm without training is not worse than any trained arm, whichever that is best: each of the one-sided
tests against the margin must reject, so each is made at the full level (intersection-union; Berger 1982), which allows
for the looks and, by Bonferroni, for several arms without training. Trained arms that diverged or do not fit are left
out. "Yes" is read off the study's verdicts: every arm without training is worse than the reference, or no better than a
constant. Nothing is claimed of prompts, shots or features that no arm of the study has.
"""

from collections.abc import Sequence

from tunetrial.analysis import fairness, reasons, stats
from tunetrial.analysis.arms import Outcome
from tunetrial.analysis.board import Board
from tunetrial.analysis.compare import Case, difference, outcome
from tunetrial.core.evidence import Need


def answer(board: Board) -> Need | None:
    """Answer it by the margin of the primary task; None where all arms are trained, or none is."""
    study = board.evidence.lock.study
    lost = {arm.name for arm in study.arms if board.state(arm.name) in ("does not fit", "diverged")}
    untrained = [arm.name for arm in study.arms if arm.untrained and arm.name not in lost]
    trained = [arm.name for arm in study.arms if not arm.untrained and arm.name not in lost]
    if not untrained or not trained:
        return None
    enough = {arm: said for arm in untrained if (said := _not_worse(board, arm, trained, of=len(untrained)))}
    if enough:
        arm = board.cheapest(list(enough)) or next(iter(enough))
        return Need(answer="no", arm=arm, reason=enough[arm])
    better = [arm for arm in trained if arm in board.verdicts and board.verdicts[arm].words == "BETTER"]
    settled = all(_is_worse(board, arm, better) for arm in untrained)
    asked = board.verdicts if board.reference in untrained else [*untrained, *better]
    said = [f"{arm}, {board.verdicts[arm].words}: {reasons.measured(board.verdicts[arm])}" for arm in asked]
    return Need(answer="yes" if settled else "open", arm=untrained[0], reason="; ".join(said))


def _not_worse(board: Board, arm: str, trained: Sequence[str], *, of: int) -> str | None:
    """How it is shown that an arm is not worse than any of these; None where it is not shown."""
    evidence, study = board.evidence, board.evidence.lock.study
    if board.state(arm) != "trained":
        return None
    alpha = stats.per_look((1 - study.rule.level) / of, evidence.lock.looks(board.primary), sides=1)
    outcomes = {name: outcome(evidence, board.primary, name) for name in (arm, *trained)}
    bases = {other: study.untuned(other) for other in trained}
    outcomes |= {base: outcome(evidence, board.primary, base) for base in bases.values() if base}
    found = {other: _against(board, outcomes[arm], outcomes[other], outcomes.get(bases[other])) for other in trained}
    shown = (c.difference and c.difference.contrasts.worst.p_not_below(0.0) <= alpha for c in found.values())
    if not all(shown):
        return None
    least = {other: case.difference.estimate.at_least(1 - alpha) for other, case in found.items()}
    nearest = min(least, key=least.get)
    effect, title = found[nearest].difference.estimate.effect, board.metric.title
    return (
        f"{arm} is not worse than {' or '.join(trained)} by your margin: {title} {effect:+.3g} against {nearest}, "
        f"at worst {least[nearest]:+.3g} ({100 * (1 - alpha):.1f} %, one-sided)"
    )


def _against(board: Board, arm: Outcome, other: Outcome, base: Outcome | None) -> Case:
    blank = Case(board.primary, arm.result.arm, other.result.arm)
    if fairness.obstacles(board.evidence, board.primary, blank.candidate, blank.reference):
        return blank
    return difference(board.evidence, blank, arm, other, base)


def _is_worse(board: Board, arm: str, better: Sequence[str]) -> bool:
    """Whether an arm is shown to be worse than a trained one: the reference, or one that is better than it."""
    if arm == board.reference:
        return bool(better)
    if board.state(arm) == "did not train":
        return board.state(board.reference) == "trained"
    verdict = board.verdicts[arm]
    return verdict.words == "WORSE" or (verdict.direction == "worse" and bool(better))
