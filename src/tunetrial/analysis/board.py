"""What a choice is made from: the arms still in, their verdicts on the primary task, and their costs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tunetrial.analysis import arms, costs, fairness, metrics, repeats
from tunetrial.analysis.compare import Case, comparison
from tunetrial.analysis.verdict import SAFE
from tunetrial.core.evidence import ArmResult, ArmState, Comparison, Evidence, Measurement


@dataclass(frozen=True)
class Board:
    """What a choice is made from: the arms still in, their verdicts on the primary task, and their costs."""

    evidence: Evidence
    results: tuple[ArmResult, ...]
    cases: dict[str, Case]
    verdicts: dict[str, Comparison]
    reference: str
    costs: costs.Costs
    excluded: dict[str, str]
    costs_obstacle: str | None

    @property
    def candidates(self) -> list[str]:
        """Arms that are not out, the reference first."""
        names = dict.fromkeys([self.reference, *(arm.name for arm in self.evidence.lock.study.arms)])
        return [name for name in names if name not in self.excluded and self.state(name) == "trained"]

    @property
    def safe(self) -> list[str]:
        """Candidates that are not worse than the reference, and the reference."""
        return [a for a in self.candidates if a == self.reference or self.verdicts[a].words in SAFE]

    @property
    def open(self) -> list[str]:
        """Arms that are not out and may yet turn out to be safe, unfinished ones included."""
        words = ("CAN'T TELL YET", "NOT COMPARABLE")
        return [arm for arm, c in self.verdicts.items() if arm not in self.excluded and c.words in words]

    @property
    def primary(self) -> str:
        """The task that decides."""
        return self.evidence.lock.study.rule.primary

    @property
    def metric(self) -> metrics.Metric:
        """The metric of the primary task."""
        return metrics.find(self.evidence.lock.study.task(self.primary).metric)

    def state(self, arm: str) -> ArmState:
        """An arm's state on the primary task."""
        return next(r.state for r in self.results if (r.task, r.arm) == (self.primary, arm))

    def cheapest(self, names: Sequence[str]) -> str | None:
        """The cheapest of these; None if the costs cannot tell."""
        if self.costs_obstacle and len(names) > 1:
            return None
        return costs.cheapest(names, self.costs)


def _agreement(evidence: Evidence) -> dict[str, Measurement]:
    """On the primary task, the share of answers that two seeds have alike; all of an arm in which nothing is random."""
    study, found = evidence.lock.study, {}
    for arm in study.arms:
        own = repeats.agreement_by_seed(evidence, study.rule.primary, arm.name)
        if own:
            found[arm.name] = Measurement(value=sum(own.values()) / len(own), unit="share", n=len(own))
        elif arm.fixed and study.task(study.rule.primary).kind != "regress":
            found[arm.name] = Measurement(value=1.0, unit="share")
    return found


def lay_out(
    evidence: Evidence,
    results: tuple[ArmResult, ...],
    found: Sequence[Case],
    preferred: Mapping[str, Measurement] | None = None,
    criteria: Collection[str] | None = None,
) -> Board:
    """Set the primary task's cases, the costs and the exclusions side by side. What people prefer and how far seeds
    agree is weighed beside the costs where it is among the `criteria`, by default those of the study."""
    primary = evidence.lock.study.rule.primary
    cases = {case.candidate: case for case in found if case.task == primary}
    measured = costs.measured(evidence, results)
    criteria = evidence.lock.study.criteria if criteria is None else criteria
    shares = {"preference": preferred or {}, "agreement": _agreement(evidence) if "agreement" in criteria else {}}
    for name in (name for name in shares if name in criteria):
        for arm, share in shares[name].items():
            measured.setdefault(arm, {})[name] = share
    return Board(
        evidence=evidence,
        results=results,
        cases=cases,
        verdicts={name: comparison(evidence, case) for name, case in cases.items()},
        reference=arms.reference(evidence, primary),
        costs=measured,
        excluded=costs.excluded(evidence, results, measured),
        costs_obstacle=fairness.costs_obstacle(evidence),
    )
