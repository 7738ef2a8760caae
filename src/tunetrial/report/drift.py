"""How far arms moved from their base: small panels by layer with floors shaded, tables, a sentence each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.findings import Ends, Moved, Updated
from tunetrial.core.pins import TEXT
from tunetrial.report import plots, words
from tunetrial.report.plots import Frame, Tick

DRAWN = {"1 - CKA": "1 \N{MINUS SIGN} CKA", "change": "relative change"}
MEASURES = {**DRAWN, "1 - cosine": "1 \N{MINUS SIGN} cosine", "angle": "angle, radians"}
MEASURES |= {"1 - RSA": "1 \N{MINUS SIGN} RSA"}
POOLINGS = {"mean": "mean of a row", "last": "last token", "tokens": "single tokens"}
FLOORS = ("batch", "dtype")
TOP, EPSILON = 10, 0.5
HEADROOM = 1.5


@dataclass(frozen=True)
class Curve:
    """An arm: its mean by layer, its band of intervals, and how far its own runs lie from each other, as points."""

    arm: int
    name: str
    mean: str
    band: str
    between: str


@dataclass(frozen=True)
class Panel:
    """One measure of one source by layer; `floor` is the outline of what the base differs from itself by."""

    task: str
    source: str
    measure: str
    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    floor: str
    alt: str


@dataclass(frozen=True)
class Row:
    """One arm by one measure, mean over layers, each number with its interval as the report writes it."""

    task: str
    source: str
    pooling: str
    measure: str
    arm: str
    overall: str
    difference: str
    equal: str
    floor: str
    between: str
    across: str
    basis: str
    main: bool


@dataclass(frozen=True)
class Matrices:
    """What an arm's training did to its matrices; `sweep` has by side and k the intruders at each epsilon."""

    task: str
    arm: str
    size: str
    spectral: str
    stable: str
    effective: str
    intruders: str
    rounding: str
    basis: str
    sweep: tuple[tuple[str, int, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Section:
    """All that the report says of drift."""

    level: str
    sentences: tuple[str, ...]
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]
    matrices: tuple[Matrices, ...]
    epsilons: tuple[float, ...]


def section(evidence: Evidence, decision: Decision) -> Section | None:
    """None where a study did not ask for it, or nothing came of it."""
    measured = [*decision.moved, *decision.updated]
    if not measured:
        return None
    return Section(
        level=words.percent(measured[0].level),
        sentences=sentences(decision, evidence.lock.study.reference),
        panels=panels(evidence, decision),
        rows=rows(decision, evidence.lock.study.reference),
        matrices=matrices(decision),
        epsilons=decision.updated[0].epsilons if decision.updated else (),
    )


def panels(evidence: Evidence, decision: Decision) -> tuple[Panel, ...]:
    """Two for each task and source: means of rows, drawn."""
    order = [arm.name for arm in evidence.lock.study.arms]
    drawn = [one for one in decision.moved if one.pooling == "mean" and one.measure in DRAWN]
    keys = dict.fromkeys((one.task, one.source, one.measure) for one in drawn)
    return tuple(
        _panel([one for one in drawn if (one.task, one.source, one.measure) == key], order) for key in sorted(keys)
    )


def _panel(found: Sequence[Moved], order: Sequence[str]) -> Panel:
    means = [value[0] for one in found for value in one.by_layer if value]
    means += [value for one in found for value in one.between_seeds or () if value is not None]
    ends = [value[2] for one in found for value in one.by_layer if value and value[2] is not None]
    # Of few seeds intervals are wide: they are cut where they would press the curves flat.
    highest = min(max([*means, *ends]), HEADROOM * max(means)) or 1.0
    layers = max(len(one.by_layer) for one in found) - 1
    frame = Frame((0, max(layers, 1)), (0, 1.04 * highest))
    floor_L = _floor_by_layer(found[0])
    first = found[0]
    said = "; ".join(f"{words.clean(one.arm, 40)} {words.figure(one.overall[0], 2)}" for one in found)
    marked = plots.ticks(*frame.y)
    return Panel(
        task=first.task,
        source=source_of(first.source),
        measure=DRAWN[first.measure],
        frame=frame,
        x_ticks=tuple(Tick(frame.across(at), f"{at:g}") for at in plots.ticks(*frame.x) if at == int(at)),
        y_ticks=tuple(Tick(frame.down(at), words.plain(at)) for at in marked),
        curves=tuple(_curve(frame, one, order.index(one.arm)) for one in found),
        floor=_outline(frame, [(layer, 0.0, value) for layer, value in floor_L]),
        alt=f"{DRAWN[first.measure]} by layer on {source_of(first.source)}; means over layers: {said}.",
    )


def _curve(frame: Frame, one: Moved, arm: int) -> Curve:
    valued = [(layer, *value) for layer, value in enumerate(one.by_layer) if value]
    spread = [
        (layer, mean if low is None else low, mean if high is None else high) for layer, mean, low, high in valued
    ]
    between = [(n, value) for n, value in enumerate(one.between_seeds or ()) if value is not None]
    return Curve(
        arm=arm,
        name=one.arm,
        mean=frame.path((layer, mean) for layer, mean, _, _ in valued),
        band=_outline(frame, spread),
        between=frame.path(between),
    )


def _outline(frame: Frame, spread: Sequence[tuple[int, float, float]]) -> str:
    """Along the upper ends and back along the lower ones."""
    upper, lower = [(x, high) for x, _, high in spread], [(x, low) for x, low, _ in reversed(spread)]
    return frame.path([*upper, *lower])


def _floor_by_layer(one: Moved) -> list[tuple[int, float]]:
    """The larger of the floors by layer."""
    found = {}
    for value_L in one.floors.values():
        for layer, value in enumerate(value_L):
            if value is not None:
                found[layer] = max(value, found.get(layer, value))
    return sorted(found.items())


def source_of(source: str) -> str:
    """A source in words."""
    return f"held-out text {words.name(source.removeprefix(TEXT))}" if source.startswith(TEXT) else "the task's rows"


def rows(decision: Decision, reference: str) -> tuple[Row, ...]:
    """Every arm by every measure, arms one below the other; `main` are those that are drawn."""
    poolings, measures = list(POOLINGS), list(MEASURES)
    place = lambda one: (one.task, one.source, poolings.index(one.pooling), measures.index(one.measure))  # noqa: E731
    return tuple(
        Row(
            task=words.name(one.task),
            source=source_of(one.source),
            pooling=POOLINGS[one.pooling],
            measure=MEASURES[one.measure],
            arm=words.name(one.arm),
            overall=words.ends(one.overall),
            difference=_difference(one, reference),
            equal=_equal(one),
            floor=_floor(one),
            between=_mean(one.between_seeds),
            across=_mean(one.between_arms),
            basis=f"{one.seeds} runs, {one.rows} rows",
            main=one.pooling == "mean" and one.measure in DRAWN,
        )
        for one in sorted(decision.moved, key=place)
    )


def _difference(one: Moved, reference: str) -> str:
    if one.difference is not None:
        return words.ends(one.difference, sign=True)
    return "reference" if one.arm == reference else "not comparable"


def _equal(one: Moved) -> str:
    if one.at_equal_score is not None:
        return words.ends(one.at_equal_score, sign=True)
    reasons = {"few seeds": "needs 4 seeds", "scores apart": "scores do not overlap", "no spread": "no spread"}
    return reasons.get(one.unequal or "", "")


def _floor(one: Moved) -> str:
    """The mean over layers of each floor: one row at a time, and in another dtype."""
    return "; ".join(_mean(one.floors[how]) for how in FLOORS if how in one.floors) or "not measured"


def _mean(value_L: Sequence[float | None] | None) -> str:
    valued = [value for value in value_L or () if value is not None]
    return words.figure(sum(valued) / len(valued), 2) if valued else ""


def sentences(decision: Decision, reference: str) -> tuple[str, ...]:
    """What it means, for each task and source, and of weights."""
    keys = dict.fromkeys((one.task, one.source) for one in decision.moved)
    found = [one for one in decision.moved if (one.pooling, one.measure) == ("mean", "change")]
    told = [[one for one in found if (one.task, one.source) == key] for key in keys]
    states = [_of_states(arms, reference) for arms in told if arms]
    tasks = dict.fromkeys(one.task for one in decision.updated)
    return (*states, *(_of_weights([one for one in decision.updated if one.task == task]) for task in tasks))


def _of_states(arms: Sequence[Moved], reference: str) -> str:
    first = arms[0]
    far = ", ".join(f"with {words.name(one.arm)} by {words.figure(one.overall[0], 2)}" for one in arms)
    said = f"Tuned on {words.name(first.task)}, layers moved on {source_of(first.source)} {far} of the rows' own spread"
    floor = max((value for _, value in _floor_by_layer(first)), default=None)
    if floor is not None:
        said += f" (the base differs from itself by at most {words.figure(floor, 2)})"
    return f"{said}.{''.join(_against(one, reference) for one in arms if one.difference)}"


def _against(one: Moved, reference: str) -> str:
    value, low, high = one.difference
    arm, other = words.name(one.arm), words.name(reference)
    if low is None or high is None:
        return ""
    side = "more than" if low > 0 else "less than" if high < 0 else "neither more nor less, as far as is shown, than"
    said = f" {arm} moved {side} {other}: {words.ends(one.difference, sign=True)}"
    reasons = {
        "few seeds": "; whether it would at equal score, 3 seeds or fewer cannot tell",
        "scores apart": "; one of the two scored higher with every seed, so what learning moved is not told apart",
    }
    if one.at_equal_score is None:
        return f"{said}{reasons.get(one.unequal or '', '')}."
    return f"{said}; at equal score {words.ends(one.at_equal_score, sign=True)} would be left."


def _of_weights(arms: Sequence[Updated]) -> str:
    said = "; ".join(
        f"with {words.name(one.arm)} by {words.figure(one.size[0], 2)} of their size"
        + ("" if one.effective is None else f" in some {words.figure(one.effective[0], 2)} directions")
        for one in arms
    )
    found = [(one, _at(one, "left")) for one in arms]
    known = [f"{words.figure(count[0], 2)} with {words.name(one.arm)}" for one, count in found if count]
    new = f" Of a matrix's first {TOP} directions {' and '.join(known)} are intruders, on average." if known else ""
    return f"Tuned on {words.name(arms[0].task)}, weight matrices changed {said}.{new}"


def matrices(decision: Decision) -> tuple[Matrices, ...]:
    """Every arm of which weights were looked at."""
    return tuple(
        Matrices(
            task=words.name(one.task),
            arm=words.name(one.arm),
            size=words.ends(one.size),
            spectral=words.ends(one.spectral),
            stable="" if one.stable is None else words.ends(one.stable),
            effective="" if one.effective is None else words.ends(one.effective),
            intruders=" and ".join(_count(count) for side in one.intruders if (count := _at(one, side))),
            rounding="" if one.rounding is None else words.figure(one.rounding, 2),
            basis=f"{one.seeds} runs, {one.matrices} matrices; chance {words.number(one.chance[0], 2)} to "
            f"{words.number(one.chance[1], 2)}",
            sweep=tuple(_sweep(one)),
        )
        for one in decision.updated
    )


def _count(found: Ends) -> str:
    return words.figure(found[0], 2) if found[1] is None else words.ends(found)


def _at(one: Updated, side: str) -> Ends | None:
    """Intruders among the first 10 at an epsilon of 0.5, the published setting."""
    return one.intruders[side][one.tops.index(TOP)][one.epsilons.index(EPSILON)]


def _sweep(one: Updated) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    for side, counts in one.intruders.items():
        for top, at in zip(one.tops, counts, strict=True):
            yield side, top, tuple("" if count is None else words.figure(count[0], 2) for count in at)
