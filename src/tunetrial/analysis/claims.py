"""Claims recomputed from the numbers that their document gives: arithmetic, bills, weighted matrices, contradictions.

Every number stands for all that is written so (half of its last digit); a claim is called wrong only where no such
number makes it true. Nothing here says whether the given numbers are true themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tunetrial.core import expressions
from tunetrial.core.claims import (
    Arithmetic,
    Claim,
    Consistency,
    Finding,
    Matrix,
    Measured,
    Money,
    Outcome,
    Ratio,
    Share,
    Unsupported,
    Untestable,
    Weighing,
)
from tunetrial.core.quantities import Quantity, Said, figure, read, unit_of

TOLERANCE = 1e-9
FACTORS = {720: "24 × 30, hours of a month", 730: "hours of a month", 24: "hours of a day", 12: "months of a year"}
FACTORS |= {60: "minutes of an hour", 3600: "seconds of an hour", 1000: "a prefix", 8: "bits of a byte"}
Pair = tuple[Quantity, Quantity]  # as written, and with all that is written so
JUDGED = "a reader's judgement, nothing computed: "


def finding(claim: Claim, outcome: Outcome, working: str, found: str | None = None, **more: Any) -> Finding:
    """What came of a claim."""
    head = {"claim": claim.id, "at": claim.at, "quote": claim.quote, "kind": claim.kind, "note": claim.note}
    return Finding(**head, outcome=outcome, working=working, found=found, **more)


def against(claim: Claim, said: Said, pair: Pair, working: str) -> Finding:
    """A claim beside what it comes to."""
    exact, wide = pair
    shown = said.show(exact)
    if exact.dimensions != said.value.dimensions:
        came, stated = unit_of(exact.dimensions), unit_of(said.value.dimensions)
        return finding(claim, "WRONG", f"{working}: comes to {came}, but {stated} is stated")
    outcome = judged(said, exact, wide)
    hint = _hint(said, exact) if outcome == "WRONG" else ""
    if outcome == "WRONG" and said.binary is not None and judged(said.binary, exact, wide) != "WRONG":
        outcome, hint = "HOLDS WITHIN ROUNDING", f"; right in units of 1024, as {said.unit} is often meant"
    elif outcome == "HOLDS WITHIN ROUNDING" and (exact.low < exact.high or said.value.low < said.value.high):
        hint = "; the ranges meet"
    return finding(claim, outcome, f"{working} = {shown}{hint}", shown)


def judged(said: Said, exact: Quantity, wide: Quantity) -> Outcome:
    """Whether a number, range or bound as written agrees with what it comes to, of the same unit."""
    value, rounded = said.value, said.rounded
    near = TOLERANCE * max(abs(exact.low), abs(exact.high), abs(value.low), abs(value.high))
    if said.relation in ("<", "<="):
        tests = exact.high < value.high + near * (said.relation == "<="), wide.low <= value.high
    elif said.relation in (">", ">="):
        tests = exact.low > value.low - near * (said.relation == ">="), wide.high >= value.low
    else:
        inside = value.low - near <= exact.low and exact.high <= value.high + near
        tests = inside, wide.low <= rounded.high + near and wide.high >= rounded.low - near
    return "HOLDS" if tests[0] else "HOLDS WITHIN ROUNDING" if tests[1] else "WRONG"


def pairs(given: Mapping[str, str | int | float]) -> dict[str, Said]:
    return {name: read(text) for name, text in given.items()}


def both(text: str, given: Mapping[str, Said]) -> Pair:
    """An expression of what is written, and of all that is written so.

    Raises:
        ValueError: Units do not go together.
    """
    exact = expressions.quantity(text, {name: said.value for name, said in given.items()})
    try:
        return exact, expressions.quantity(text, {name: said.rounded for name, said in given.items()})
    except ValueError:  # a divisor that may be rounded from 0, a cosine from more than 1
        return exact, exact


def arithmetic(claim: Arithmetic) -> Finding:
    given = pairs(claim.given)
    return _worked(claim, claim.of, given)


def ratio(claim: Ratio) -> Finding:
    return _worked(claim, "a / b", {"a": read(claim.of), "b": read(claim.to)})


def share(claim: Share) -> Finding:
    of = {"share": "part / whole", "fewer": "1 - part / whole", "more": "part / whole - 1"}[claim.compared]
    return _worked(claim, of, {"part": read(claim.part), "whole": read(claim.whole)})


def money(claim: Money) -> Finding:
    """A bill; its working shows each line."""
    given, terms, lines = {}, [], []
    for name, item in claim.bill.items():
        given[name] = read(item.amount)
        terms.append(name)
        if item.price is not None:
            given[f"{name}_price"] = read(item.price)
            terms[-1] = f"{name} * {name}_price"
        lines.append(f"{name} {item.amount}" + (f" × {item.price}" if item.price is not None else ""))
    return _worked(claim, " + ".join(terms), given, " + ".join(lines))


def _worked(claim: Claim, of: str, given: Mapping[str, Said], shown: str | None = None) -> Finding:
    said = read(claim.says)
    if shown is None:
        values = ", ".join(f"{name} = {each.text}" for name, each in given.items())
        shown = f"{of}" + (f" with {values}" if values else "")
    try:
        pair = both(of, given)
    except ValueError as error:
        return finding(claim, "WRONG", f"{shown}: {error}")
    return against(claim, said, pair, shown)


def _hint(said: Said, exact: Quantity) -> str:
    """What a wrong number may have come from: one of the factors between units."""
    if exact.low != exact.high or not exact.low or not said.value.low:
        return ""
    times = said.value.low / exact.low
    for factor, name in FACTORS.items():
        for by, words in ((factor, f"{factor} times as much as that ({name})"), (1 / factor, f"1/{factor} ({name})")):
            if abs(times / by - 1) < 5e-3:
                return f"; what is stated is {words}"
    return ""


def matrix(claim: Matrix) -> Finding:
    """Totals of a weighted matrix, and whether its weights are all of it.

    Source: the weighted sum of scores.
    """
    weights = pairs(claim.weights)
    whole = sum(weight.value.low for weight in weights.values())
    if abs(whole - 1) > TOLERANCE:
        return finding(claim, "WRONG", f"weights add up to {100 * whole:g} %, not 100 %")
    outcomes, shown = [], []
    for option, text in claim.says.items():
        scores, said = claim.scores.get(option, {}), read(text)
        if set(scores) != set(weights):
            return finding(claim, "WRONG", f"{option} has no score for {', '.join(sorted(set(weights) - set(scores)))}")
        total = sum(weights[name].value.low * scores[name] for name in weights)
        outcomes.append(judged(said, *[Quantity.of(total)] * 2))
        terms = " + ".join(f"{weight.text} × {scores[name]:g}" for name, weight in weights.items())
        shown.append(f"{option}: {terms} = {figure(round(total, 9))}")
    worst = max(outcomes, key=("HOLDS", "HOLDS WITHIN ROUNDING", "WRONG").index)
    return finding(claim, worst, "; ".join(shown), " and ".join(part.rpartition(" = ")[2] for part in shown))


def weighing(claim: Weighing, matrices: Mapping[str, Matrix]) -> Finding:
    """Whether a winner rests on more than the author's numbers: measured scores, criteria that differ.

    Tells besides at which weight each criterion would turn the result, and the share of all weights at which the winner
    wins (uniform on the simplex, exact).
    """
    table = matrices[claim.matrix]
    weights = {name: read(text).value.low for name, text in table.weights.items()}
    mine = table.scores[claim.says]
    others = {name: scores for name, scores in table.scores.items() if name != claim.says}
    totals = {name: sum(weights[key] * scores[key] for key in weights) for name, scores in table.scores.items()}
    told = []
    for name, scores in others.items():
        ahead = {key: mine[key] - scores[key] for key in weights}
        told.append(f"of all weights, {claim.says} wins at {100 * winning(list(ahead.values())):.4g} %")
        for key, gap in ahead.items():
            others_weigh = 1 - weights[key]
            rest = sum(weights[k] * ahead[k] for k in weights if k != key) / others_weigh if others_weigh > 0 else 0
            if gap < 0 < rest:
                told.append(f"{name} would win with {key} at more than {100 * rest / (rest - gap):.3g} % of the weight")
    doubled = sum(weights[key] for key in claim.restates)
    if claim.restates:
        told.append(f"{100 * doubled:g} % of the weight is on {', '.join(claim.restates)}, which restate one thing")
    if claim.scored == "opinions":
        told.append("the scores are opinions")
    wrong = max(totals, key=totals.__getitem__) != claim.says
    weak = claim.scored == "opinions" or doubled > 0.5
    return finding(claim, "WRONG" if wrong else "NOT SUPPORTED" if weak else "HOLDS", "; ".join(told))


def winning(ahead: list[float]) -> float:
    """The share of all weights, uniform on the simplex, at which the weighted sum of these is above 0.

    Source: Varsi (1971), volumes of a simplex cut by a plane; exact, stable where values are equal.
    """
    above, below = [gap for gap in ahead if gap > 0], [gap for gap in ahead if gap <= 0]
    if not above:
        return 0.0
    parts = [1.0] + [0.0] * len(below)
    for gap in above:
        for number, other in enumerate(below, 1):
            parts[number] = (other * parts[number] - gap * parts[number - 1]) / (other - gap)
    return parts[-1]


def consistency(claim: Consistency) -> Finding:
    """Whether numbers of several places can all be true."""
    given = {name: read(each.value) for name, each in claim.values.items()}
    shown = ", ".join(f"{each.value} ({each.at})" for each in claim.values.values())
    elsewhere = tuple(dict.fromkeys(each.at for each in claim.values.values() if each.at != claim.at))
    try:
        outcome = _agreed(claim, given)
    except ValueError as error:
        return finding(claim, "INCONSISTENT", f"{shown}: {error}", against=elsewhere)
    must = f"; must hold: {claim.must}" if claim.must else "; they would have to be equal"
    return finding(claim, outcome, f"{shown}{must}", against=elsewhere)


def _agreed(claim: Consistency, given: Mapping[str, Said]) -> Outcome:
    if claim.must is None:
        first, *rest = [(said.value, said.rounded) for said in given.values()]
        outcomes = [related(first, "==", other) for other in rest]
    else:
        left, sign, right = expressions.sides(expressions.tree(claim.must, expressions.FUNCTIONS, compares=True))
        from ast import unparse

        outcomes = [related(both(unparse(left), given), sign, both(unparse(right), given))]
    return max(outcomes, key=("HOLDS", "HOLDS WITHIN ROUNDING", "INCONSISTENT").index)


def related(left: Pair, sign: str, right: Pair) -> Outcome:
    """Whether two numbers stand in a relation: as written, or at least by all that is written so.

    Two ranges are equal if their ends are; a number is equal to a range that it lies in.

    Raises:
        ValueError: Their units differ.
    """
    left[0].same(right[0])
    if sign in (">", ">="):
        left, sign, right = right, {">": "<", ">=": "<="}[sign], left
    ranges = [pair[0].low < pair[0].high for pair in (left, right)]
    tests = [_stands(a, sign, b, all(ranges)) for a, b in zip(left, right, strict=True)]
    if sign == "==" and all(ranges):
        slack = [abs(a[0].low - a[1].low) + abs(a[0].high - a[1].high) for a in (left, right)]
        apart = max(abs(left[0].low - right[0].low), abs(left[0].high - right[0].high))
        tests[1] = apart <= sum(slack)
    return "HOLDS" if tests[0] else "HOLDS WITHIN ROUNDING" if tests[1] else "INCONSISTENT"


def _stands(a: Quantity, sign: str, b: Quantity, ranges: bool) -> bool:
    near = TOLERANCE * max(map(abs, (a.low, a.high, b.low, b.high)))
    if sign == "==" and ranges:
        return abs(a.low - b.low) <= near and abs(a.high - b.high) <= near
    if sign == "==":
        return a.low <= b.high + near and b.low <= a.high + near
    if sign == "!=":
        return a.low > b.high + near or b.low > a.high + near
    return a.low < b.high - near if sign == "<" else a.low <= b.high + near


def measured(claim: Measured) -> Finding:
    """A claim beside the interval of a measurement that its file has: none of it, or all of it, must agree."""
    if claim.found is None:
        return finding(claim, "UNTESTABLE HERE", "no measurement is at hand; give a study that has one")
    low, high = read(claim.found.low).value, read(claim.found.high).value
    low.same(high)
    return beside(claim, Quantity.of(low.low, high.high, dimensions=low.dimensions), claim.found.at, claim.found.limits)


def beside(claim: Measured, interval: Quantity, at: str, limits: str) -> Finding:
    """A claim beside an interval.

    Raises:
        ValueError: Its unit is another.
    """
    said = read(claim.says)
    said.value.same(interval)
    shown = said.show(interval)
    outcome = judged(said, interval, interval)
    if said.relation == "=" and outcome != "WRONG":
        inside = said.rounded.low <= interval.low and interval.high <= said.rounded.high
        outcome = "HOLDS" if inside else "HOLDS WITHIN ROUNDING"
    here: Outcome = {"HOLDS": "SUPPORTED HERE", "WRONG": "CONTRADICTED HERE"}.get(outcome, "UNTESTABLE HERE")
    unsettled = "; the interval has what is claimed, and other values too" if here == "UNTESTABLE HERE" else ""
    working = f"claimed {said.text}, measured {shown} ({at}){unsettled}"
    return finding(claim, here, working, shown, against=(at,), limits=limits)


def unsupported(claim: Unsupported) -> Finding:
    return finding(claim, "NOT SUPPORTED", f"{JUDGED}needs {claim.needs}; there is {claim.instead}")


def untestable(claim: Untestable) -> Finding:
    return finding(claim, "UNTESTABLE HERE", claim.why)


CHECKS: dict[type[Claim], Callable[[Any], Finding]] = {
    Arithmetic: arithmetic,
    Ratio: ratio,
    Share: share,
    Money: money,
    Matrix: matrix,
    Consistency: consistency,
    Measured: measured,
    Unsupported: unsupported,
    Untestable: untestable,
}


def recomputed(claims: Iterable[Claim]) -> dict[str, Matrix]:
    """The matrices among claims, by id."""
    return {claim.id: claim for claim in claims if isinstance(claim, Matrix)}
