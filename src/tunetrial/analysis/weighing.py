"""A scenario decided from a study's records: hard limits first, then values between anchors, weighed.

An arm is recommended if it is first in at least 80 % of the joint draws (`draws`) at the scenario's weights, and stays
first when all of these change by up to a quarter at once. Else this abstains and names the best next spend. Weights,
anchors, prices and volumes are the user's: nothing here says that they are right. Where quality is no criterion, only
arms are weighed that the study's verdicts call safe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunetrial.analysis import argued, bars, draws, information, reasons, scoring, smaa, yearly
from tunetrial.analysis.board import Board
from tunetrial.analysis.compare import FIRST_LOOK
from tunetrial.analysis.draws import Draws
from tunetrial.analysis.scoring import Scale
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Abstention, Flip, Measurement
from tunetrial.core.owning import Ownership
from tunetrial.core.scenario import Inputs, Scenario
from tunetrial.core.study import Study
from tunetrial.core.weighed import Basis, MoreSeeds, Standing, Weighed, Weight

# How far prices and volumes are followed upwards for a flip, as a multiple of what they are.
FARTHEST = 1000.0
NOTHING = "criteria with anchors, by which every arm is measured"
INPUTS = {
    "usd_per_hour": "price of an hour in USD",
    "usd_per_gb_month": "price of a GB-month in USD",
    "requests_per_month": "requests a month",
    "retrainings_per_month": "retrainings a month",
    "tenants": "number of tenants",
}
BASES: dict[str, Basis] = {"cost_usd": "estimated", "year_usd": "estimated"}
Amounts = Mapping[str, Mapping[str, Measurement]]


@dataclass(frozen=True)
class Table:
    """What is weighed: a scenario with its prices filled in, arms by criteria in natural units, and who is out."""

    board: Board
    scenario: Scenario
    inputs: Inputs
    amounts: Amounts
    owned: Ownership | None
    scales: tuple[Scale, ...]
    excluded: Mapping[str, str]
    left_out: Mapping[str, str]
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def weight_J(self) -> Floats:
        return scoring.weights(self.scales)

    @property
    def value_AJ(self) -> Floats:
        return scoring.values(self.names, self.scales, self.amounts)

    def drawn(self, found: Draws, shift: Mapping[str, Floats] | None = None, seeds: float = 1.0) -> tuple[Floats, ...]:
        """Values and natural amounts in every draw, each of shape (B, A, J); `shift` moves the arms by criterion."""
        moved = shift or {}
        amount_BAJ = np.stack(
            [found.amounts(s.name, self.centre(s.name) + moved.get(s.name, 0.0), seeds=seeds) for s in self.scales],
            axis=2,
        )
        value_BAJ = np.stack([s.value(amount_BAJ[:, :, j]) for j, s in enumerate(self.scales)], axis=2)
        return value_BAJ, amount_BAJ

    def centre(self, name: str) -> Floats:
        """What was measured of each arm by one criterion."""
        return np.array([self.amounts[arm][name].value for arm in self.names])


def of_study(study: Study) -> Scenario:
    """The study's own criteria, opinions, limits and prices as a scenario."""
    return Scenario(
        name="study",
        title="the study's own criteria",
        criteria=study.criteria,
        opinions=study.opinions,
        limits=study.limits,
        inputs=Inputs(),
    )


def weigh(board: Board, scenario: Scenario, *, owned: Ownership | None = None, seed: int = 0) -> Weighed:
    """Decide for one scenario. The same seed gives the same bytes.

    Args:
        owned: What arms take to own, for the cost of the first year; without it no arm has one.
    """
    table = lay_out(board, scenario, owned)
    if board.costs_obstacle:
        return _unweighed(table, reasons.abstention(board, board.costs_obstacle))
    if not table.scales or not table.names:
        return _unweighed(table, reasons.abstention(board, "no arm can be weighed by the criteria", NOTHING))
    try:
        per_seed = yearly.by_seed(table.owned, table.inputs.tenants) if table.owned else {}
        criteria = [s.name for s in table.scales]
        found = draws.jointly(board, table.names, criteria, per_seed={"year_usd": per_seed}, seed=seed)
    except EvidenceError as error:
        return _unweighed(table, reasons.abstention(board, str(error), FIRST_LOOK))
    return _judged(table, found, seed)


def lay_out(board: Board, scenario: Scenario, owned: Ownership | None = None) -> Table:
    """Fill in prices, gather amounts, rule out by limits, and find which arms and criteria can be weighed."""
    study = board.evidence.lock.study
    inputs = _filled(scenario.inputs, study, owned)
    owned = yearly.at(owned, inputs) if owned and _yearly(scenario) else None
    amounts = _amounts(board, scenario, inputs, owned)
    excluded = dict(board.excluded)
    for arm in board.candidates:
        own = scenario.limits.items()  # those of the study have ruled out what they rule out, but at its own prices
        limits = {n: at for n, at in own if n.endswith("_usd") or study.limits.get(n) != at}
        if over := [bar.said for bar in bars.limits(limits, amounts.get(arm, {})) if not bar.holds]:
            excluded[arm] = "; ".join(over)
    floor = next((r.floor for r in board.results if (r.task, r.arm) == (board.primary, board.reference)), None)
    scales, left = scoring.scales(scenario, study, floor=floor)
    by_quality = any(scale.name == "quality" for scale in scales)
    candidates = [arm for arm in board.candidates if arm not in excluded]
    entered = [a for a in candidates if a in board.safe or (by_quality and board.verdicts[a].effect is not None)]
    for arm in candidates:
        lacking = [s.name for s in scales if s.name not in amounts[arm]]
        if arm not in entered:
            left[arm] = f"{board.verdicts[arm].words}: {reasons.finding(board.verdicts[arm])}"
        elif lacking:
            left[arm] = f"{', '.join(lacking)} was not measured{yearly.why_not(owned, arm) if owned else ''}"
    names = tuple(arm for arm in entered if arm not in left)
    table = Table(board, scenario, inputs, amounts, owned, scales, excluded, left, names)
    return replace(table, warnings=argued.warnings(table))


def _filled(inputs: Inputs, study: Study, owned: Ownership | None) -> Inputs:
    """Prices that the scenario leaves to the study, and the room of the machine that it has or names."""
    given = {
        "usd_per_hour": study.hardware.usd_per_hour,
        "usd_per_gb_month": study.costs.usd_per_gb_month,
        "usd_per_engineer_hour": study.costs.usd_per_engineer_hour,
        "room_gib": owned.terms.room_bytes / 2**30 if owned and owned.terms.room_bytes else None,
    }
    return inputs.model_copy(update={name: value for name, value in given.items() if getattr(inputs, name) is None})


def _yearly(scenario: Scenario) -> bool:
    return "year_usd" in (*scenario.criteria, *scenario.limits)


def _amounts(board: Board, scenario: Scenario, inputs: Inputs, owned: Ownership | None) -> Amounts:
    """By arm what was measured, what the user says, and what it costs; what is not known is absent."""
    study, found = board.evidence.lock.study, {}
    said = scoring.opinions(scenario, study)
    year = yearly.comparable(owned) if owned else {}
    for arm in study.arms:
        own = dict(board.costs.get(arm.name, {}))
        if arm.untrained:
            own["forgetting_nats"] = Measurement(value=0.0, unit="nats a token")
        if "train_s" in own and inputs.usd_per_hour is not None:
            usd = own["train_s"].value / 3600 * inputs.usd_per_hour
            own["cost_usd"] = Measurement(value=usd, unit="USD", n=own["train_s"].n)
        if arm.name in year:
            own["year_usd"] = Measurement(value=year[arm.name], unit="USD in the first year")
        own |= {name: Measurement(value=score, unit="points, an opinion") for name, score in said[arm.name].items()}
        found[arm.name] = own
    return found


def _judged(table: Table, found: Draws, seed: int) -> Weighed:
    names, weight_J = table.names, table.weight_J
    value_BAJ, amount_BAJ = table.drawn(found)
    score_A = table.value_AJ @ weight_J
    order = np.argsort(-score_A, kind="stable")
    first_A = smaa.first(smaa.scores(value_BAJ, weight_J)).mean(axis=0)
    top = int(order[0])
    standings = _standings(table, value_BAJ, amount_BAJ, first_A, np.random.default_rng([seed, 1]))
    more = information.more_seeds(table, found) if first_A[top] < scoring.SURE else ()
    knowing_all, knowing_J = smaa.perfect_knowledge(value_BAJ, weight_J)
    flips = _flips(table)
    lead_J = (table.value_AJ[top] - table.value_AJ[order[1]]) * weight_J if len(names) > 1 else None
    shaken = smaa.shaken(table.value_AJ, weight_J, by=scoring.SHAKE)
    abstention = _abstention(table, found, order, float(first_A[top]), shaken, more)
    carried = {} if lead_J is None else {s.name: float(x) for s, x in zip(table.scales, lead_J, strict=True)}
    return Weighed(
        **_common(table),
        recommendation=names[top] if abstention is None else None,
        abstention=abstention,
        because=argued.because(table, [names[k] for k in order], carried, standings),
        flips=flips,
        standings={names[k]: standings[names[k]] for k in order},
        carried=carried,
        knowing={s.name: float(x) for s, x in zip(table.scales, knowing_J, strict=True) if x > smaa.CLOSE},
        knowing_all=knowing_all,
        more_seeds=more,
        draws=draws.DRAWS,
        seeds=found.seeds,
    )


def _common(table: Table) -> dict[str, object]:
    return {
        "asked": table.scenario,
        "inputs": table.inputs,
        "warnings": table.warnings,
        "weights": tuple(_weight(table, scale) for scale in table.scales),
        "owned": yearly.bills(table.owned) if table.owned else {},
        "excluded": dict(table.excluded),
        "left_out": dict(table.left_out),
    }


def _unweighed(table: Table, abstention: Abstention) -> Weighed:
    because = tuple(f"{name} is not weighed: {why}." for name, why in table.left_out.items())
    nothing = {"recommendation": None, "flips": (), "standings": {}, "carried": {}, "knowing": {}, "knowing_all": None}
    return Weighed(**_common(table), **nothing, abstention=abstention, because=because, more_seeds=(), draws=0, seeds=0)


def _weight(table: Table, scale: Scale) -> Weight:
    opinion = table.scenario.opinions.get(scale.name)
    unit = next((own[scale.name].unit for own in table.amounts.values() if scale.name in own), "")
    return Weight(
        name=scale.name,
        share=scale.weight,
        worst=scale.worst,
        best=scale.best,
        log=scale.log,
        unit=unit,
        basis="opinion" if opinion else BASES.get(scale.name, "measured"),
        restates=argued.restated(table, scale.name),
    )


def _standings(
    table: Table, value_BAJ: Floats, amount_BAJ: Floats, first_A: Floats, rng: np.random.Generator
) -> dict[str, Standing]:
    names, scales = table.names, table.scales
    any_BJ = smaa.flat_weights(rng, len(value_BAJ), len(scales))
    any_BA = smaa.scores(value_BAJ, any_BJ)
    ranks_AR, central_AJ = smaa.acceptability(any_BA), smaa.central_weights(any_BJ, any_BA)
    confidence_A = smaa.confidence(value_BAJ, central_AJ)
    wins_AA = smaa.wins(smaa.scores(value_BAJ, table.weight_J))
    good_J = np.array([1.0 if s.rises else -1.0 for s in scales])
    over_AA, front_A = smaa.dominance(amount_BAJ * good_J)
    score_A = table.value_AJ @ table.weight_J
    keys = [s.name for s in scales]
    found = {}
    for k, arm in enumerate(names):
        others = [(i, other) for i, other in enumerate(names) if i != k]
        ever = bool(np.isfinite(central_AJ[k]).all())
        found[arm] = Standing(
            score=float(score_A[k]),
            amounts={n: _ends(table.amounts[arm][n].value, amount_BAJ[:, k, j]) for j, n in enumerate(keys)},
            values=dict(zip(keys, table.value_AJ[k].tolist(), strict=True)),
            first=float(first_A[k]),
            ranks=tuple(ranks_AR[k].tolist()),
            central=dict(zip(keys, central_AJ[k].tolist(), strict=True)) if ever else None,
            confidence=float(confidence_A[k]) if ever else None,
            front=float(front_A[k]),
            wins={other: float(wins_AA[k, i]) for i, other in others},
            dominates={other: float(over_AA[k, i]) for i, other in others},
        )
    return found


def _ends(value: float, drawn_B: Floats) -> tuple[float, float | None, float | None]:
    if np.ptp(drawn_B) == 0:
        return value, None, None
    return value, *(float(end) for end in np.quantile(drawn_B, (0.025, 0.975)))


def _flips(table: Table) -> tuple[Flip, ...]:
    """Weights, then prices and volumes, at which another arm takes the first place, all else as it is."""
    names, weight_J = table.names, table.weight_J
    found = [
        Flip(what=f"weight of {table.scales[f.criterion].name}", now=weight_J[f.criterion], at=f.at, to=names[f.to])
        for f in smaa.weight_flips(table.value_AJ, weight_J)
    ]
    costly = [s.name for s in table.scales if s.name in ("cost_usd", "year_usd")]
    for name, what in INPUTS.items() if len(names) > 1 and costly else ():
        now = getattr(table.inputs, name)
        if now is not None and (name == "usd_per_hour" or "year_usd" in costly):
            least, most = 1 if name == "tenants" else 0.0, FARTHEST * max(now, 1.0)
            found += scoring.input_flips(what, _moving(table, name), names, now=now, most=most, least=least)
    return tuple(found)


def _moving(table: Table, name: str) -> Callable[[float], Floats]:
    """Scores as one price or volume moves; as they are where an arm has no total any more."""
    hours_A = table.centre("train_s") / 3600 if any(s.name == "cost_usd" for s in table.scales) else None

    def scores(x: float) -> Floats:
        value_AJ = table.value_AJ
        for j, scale in enumerate(table.scales):
            if scale.name == "year_usd":
                inputs = table.inputs.model_copy(update={name: x})
                usd = yearly.comparable(yearly.at(table.owned, inputs))
                if not usd.keys() >= set(table.names):
                    return table.value_AJ @ table.weight_J
                value_AJ[:, j] = scale.value(np.array([usd[arm] for arm in table.names]))
            if scale.name == "cost_usd" and name == "usd_per_hour":
                value_AJ[:, j] = scale.value(hours_A * x)
        return value_AJ @ table.weight_J

    return scores


def _abstention(
    table: Table,
    found: Draws,
    order: Sequence[int],
    share: float,
    shaken: tuple[int, int] | None,
    more: tuple[MoreSeeds, ...],
) -> Abstention | None:
    """Why nothing is recommended, and what to spend on next; None if the first place is sure enough."""
    board, pick = table.board, table.names[order[0]]
    rival = pick if pick != board.reference else None
    if share < scoring.SURE:
        reason = f"{pick} is first in {100 * share:.0f} % of draws, {100 * scoring.SURE:.0f} % is asked for"
        spend = information.next_spend(table, found, (int(order[0]), int(order[1])), more)
        return reasons.abstention(board, reason, spend, rival=rival)
    if shaken is not None:
        other, criterion = table.names[shaken[0]], table.scales[shaken[1]].name
        reason = f"{pick} is not first if the weight of {criterion} and others changes by a quarter, but {other} is"
        spend = f"no more trials: settle how much {criterion} matters"
        return reasons.abstention(board, reason, spend, rival=rival)
    return None
