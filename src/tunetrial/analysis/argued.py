"""The sentences of a weighed scenario: what carried it, what it rests on, and what to be wary of."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tunetrial.core.weighed import Standing

if TYPE_CHECKING:
    from tunetrial.analysis.weighing import Table

# What the bill of a run, and of a year, is made of: a weight on a part beside one on the bill counts it twice.
PARTS = {"cost_usd": ("train_s",), "year_usd": ("train_s", "cost_usd", "storage_mib")}


def restated(table: "Table", name: str) -> str | None:
    """The one thing that several criteria of a scenario tell; None if this one stands alone."""
    told = _told(table, name)
    return told if told and sum(_told(table, s.name) == told for s in table.scales) > 1 else None


def _told(table: "Table", name: str) -> str | None:
    if name in table.scenario.opinions:
        return table.scenario.opinions[name].restates
    present = [s.name for s in table.scales]
    return "cost" if name in PARTS or any(name in PARTS[bill] for bill in present if bill in PARTS) else None


def warnings(table: "Table") -> tuple[str, ...]:
    """Criteria that are told more than once, opinions, and criteria beyond whose anchors all arms lie."""
    found, scales = [], table.scales
    for told in dict.fromkeys(filter(None, (restated(table, s.name) for s in scales))):
        same = [s for s in scales if _told(table, s.name) == told]
        names, share = ", ".join(s.name for s in same), sum(s.weight for s in same)
        found.append(f"{100 * share:.0f} % of the weight is on {told}, told {len(same)} times: {names}.")
    if table.owned and any(s.name == "year_usd" for s in scales):
        found += [f"year_usd leaves out {what}: {why}." for what, why in _left_out(table).items()]
    opinions = [s for s in scales if s.name in table.scenario.opinions]
    if opinions:
        names, share = ", ".join(s.name for s in opinions), sum(s.weight for s in opinions)
        found.append(f"{100 * share:.0f} % of the weight is on opinions, which nothing here has measured: {names}.")
    for j, scale in enumerate(scales if len(table.names) > 1 else ()):
        column = set(table.value_AJ[:, j].tolist())
        if column in ({0.0}, {1.0}):
            anchor = f"{scale.best if 1.0 in column else scale.worst:g}"
            found.append(f"{scale.name} tells no arms apart: all lie at its anchor {anchor} or beyond.")
    return tuple(found)


def _left_out(table: "Table") -> dict[str, str]:
    """What no total of the first year has, of the arms that are weighed."""
    weighed = [one for one in table.owned.owned if one.arm in table.names]
    return {what: why.partition(" (")[0] for one in weighed for what, why in one.left_out.items()}


def because(
    table: "Table", order: Sequence[str], carried: Mapping[str, float], standings: Mapping[str, Standing]
) -> tuple[str, ...]:
    """What the first place is made of, what that rests on, and how sure it is."""
    said = [_weights(table)]
    pick = order[0]
    if len(order) > 1:
        lead = standings[pick].score - standings[order[1]].score
        parts = sorted(((n, x) for n, x in carried.items() if abs(x) >= 5e-4), key=lambda part: -part[1])
        made = ", ".join(f"{name} {x:+.3f}{_mark(table, name)}" for name, x in parts) or "nothing above 0.0005"
        scores = [f"{arm} {standings[arm].score:.3f}" for arm in order[:2]]
        said.append(f"{scores[0]} leads {scores[1]} by {lead:.3f}: {made}.")
        said += [_figures(table, pick, order[1], [name for name, _ in parts])] if parts else []
        said += _without_opinions(table, pick)
        first, ever = standings[pick].first, standings[pick].ranks[0]
        said.append(f"{pick} is first in {percent(first)} of draws, and in {percent(ever)} under any weights.")
    else:
        said.append(f"{pick} is the only arm that can be weighed.")
    said += [f"{arm} is out: {why}." for arm, why in table.excluded.items()]
    said += [f"{name} is not weighed: {why}." for name, why in table.left_out.items()]
    return tuple(said)


def _without_opinions(table: "Table", pick: str) -> list[str]:
    """Who would be first by what was measured alone, if that is another arm."""
    measured = [j for j, s in enumerate(table.scales) if s.name not in table.scenario.opinions]
    if not measured or len(measured) == len(table.scales):
        return []
    top = table.names[int((table.value_AJ[:, measured] @ table.weight_J[measured]).argmax())]
    return [] if top == pick else [f"Without the opinions {top} would be first."]


def percent(share: float) -> str:
    """A share of draws in whole percent; one that is not all or nothing never reads as if it were."""
    if 0 < share < 0.005 or 0.995 <= share < 1:
        return "over 99 %" if share > 0.5 else "under 1 %"
    return f"{100 * share:.0f} %"


def _mark(table: "Table", name: str) -> str:
    return " (opinion)" if name in table.scenario.opinions else ""


def _weights(table: "Table") -> str:
    shares = ", ".join(
        f"{s.name} {s.weight:.2f} ({s.worst:g} to {s.best:g}{', log' if s.log else ''}{_aside(table, s.name)})"
        for s in table.scales
    )
    return f"Weighed by {shares}."


def _aside(table: "Table", name: str) -> str:
    return ", opinion" if name in table.scenario.opinions else ""


def _figures(table: "Table", pick: str, second: str, names: Sequence[str]) -> str:
    """Both arms' figures of the criteria that tell them apart, and what each rests on."""
    told = []
    for name in names:
        own, other = table.amounts[pick][name], table.amounts[second][name]
        told.append(f"{name} {own.value:.4g} vs {other.value:.4g} {_unit(own.unit)}({_basis(table, name, own.n)})")
    return f"{pick} vs {second}: {'; '.join(told)}."


def _unit(unit: str) -> str:
    return "" if unit in ("share", "points, an opinion") else f"{unit} "


def _basis(table: "Table", name: str, n: int | None) -> str:
    if name in table.scenario.opinions:
        return "your opinion"
    if name == "quality":
        return f"measured, {n} finals"
    if name == "preference":
        return f"people's votes on {n} rows"
    if name == "agreement":
        return f"{n} finals, each pair of them" if n else "nothing random"
    if name == "energy_wh":
        return "counted by the GPU in one probe"
    if name == "forgetting_nats":
        return f"measured, {n} finals" if n else "by definition"
    if name == "year_usd":
        return "estimated: measured seconds and bytes at given prices and volumes"
    if name == "cost_usd":
        return "measured seconds at a given price"
    return "measured by one probe"
