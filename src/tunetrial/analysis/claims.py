"""Claims recomputed from the numbers that their document gives: arithmetic, bills, weighted matrices, contradictions.

Every number stands for all that is written so (half of its last digit); a claim is called wrong only where no such
number makes it true. Nothing here says whether the given numbers are true themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from itertools import combinations
from math import inf, isfinite
from operator import add, mul
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
from tunetrial.core.quantities import Quantity, Said, UnitError, figure, read, unit_of

TOLERANCE = 1e-9
WHOLE_NUMBER = 0.5  # half of its last digit
FACTORS = {720: "24 × 30, hours of a month", 730: "hours of a month", 24: "hours of a day", 12: "months of a year"}
FACTORS |= {60: "minutes of an hour", 3600: "seconds of an hour", 1000: "a prefix", 8: "bits of a byte"}
Pair = tuple[Quantity, Quantity]  # as written, and with all that is written so
JUDGED = "a reader's judgement, nothing computed: "
FITS: tuple[Outcome, ...] = ("HOLDS", "HOLDS WITHIN ROUNDING")
Way = tuple[Callable[[Said], Said], str]  # a reading of a number, and words for it
AS_IT_STANDS: Way = (lambda said: said, "")
BINARY: Way = (lambda said: said.binary, "right in units of 1024, as {} is often meant")
OTHERWISE = (BINARY, (lambda said: said.plain, "right in points of numbers out of 100"))


def finding(claim: Claim, outcome: Outcome, working: str, found: str | None = None, **more: Any) -> Finding:
    """What came of a claim."""
    head = {"claim": claim.id, "at": claim.at, "quote": claim.quote, "kind": claim.kind, "note": claim.note}
    return Finding(**head, outcome=outcome, working=working, found=found, **more)


def against(claim: Claim, said: Said, pair: Pair, working: str) -> Finding:
    """A claim beside what it comes to."""
    exact, wide = pair
    if exact.dimensions != said.value.dimensions:
        came, stated = unit_of(exact.dimensions), unit_of(said.value.dimensions)
        return finding(claim, "WRONG", f"{working}: comes to {came}, but {stated} is stated")
    said, outcome, hint = fitting(said, exact, wide)
    shown = said.show(exact)
    if outcome == "WRONG":
        hint = _hint(said, exact)
    elif outcome == "NOT SUPPORTED":
        hint = "; so much is not reached"
    elif outcome != "HOLDS" and wide.anything:
        outcome, hint = "UNTESTABLE HERE", "; its terms, as they are written, leave it open"
    elif outcome != "HOLDS" and not hint and (exact.low < exact.high or said.value.low < said.value.high):
        hint = "; the ranges meet"
    return finding(claim, outcome, f"{working} = {shown}{hint}", shown)


def fitting(said: Said, exact: Quantity, wide: Quantity, ways: Iterable[Way] = OTHERWISE) -> tuple[Said, Outcome, str]:
    """The first reading of a number that agrees with what it comes to, with its outcome and words for that reading.

    It is what was said where no reading agrees.
    """
    outcome = judged(said, exact, wide)
    for way, words in ways if outcome not in FITS else ():
        other = way(said)
        if (found := judged(other, exact, wide)) in FITS:
            return other, found, f"; {words.format(said.unit)}"
    return said, outcome, ""


def judged(said: Said, exact: Quantity, wide: Quantity) -> Outcome:
    """Whether a number, range or bound as written agrees with what it comes to, of the same unit.

    "Up to" says besides that so much is reached: where less comes out it is not supported.
    """
    value, rounded = said.value, said.rounded
    near = _near(exact, value)
    if said.relation in ("<", "<="):
        tests = exact.high < value.high + near * (said.relation == "<="), wide.low <= value.high
    elif said.relation in (">", ">="):
        tests = exact.low > value.low - near * (said.relation == ">="), wide.high >= value.low
    elif said.relation == "up to":
        if wide.high < value.high - said.slack[1] - near:
            return "NOT SUPPORTED"
        least = wide.low if exact.low == exact.high else exact.high - (wide.high - exact.high)
        tests = abs(exact.high - value.high) <= near, not least > rounded.high + near
    else:
        inside = value.low - near <= exact.low and exact.high <= value.high + near
        tests = inside, wide.low <= rounded.high + near and wide.high >= rounded.low - near
    return "HOLDS" if tests[0] else "HOLDS WITHIN ROUNDING" if tests[1] else "WRONG"


def _near(*parts: Quantity) -> float:
    ends = [abs(end) for part in parts for end in (part.low, part.high) if isfinite(end)]
    return TOLERANCE * max(ends, default=0.0)


def pairs(given: Mapping[str, str | int | float]) -> dict[str, Said]:
    return {name: read(text) for name, text in given.items()}


def both(text: str, given: Mapping[str, Said]) -> Pair:
    """An expression of what is written, and of all that is written so: anything, where that cannot be computed.

    Raises:
        UnitError: Units do not go together.
        ValueError: It has no value.
    """
    exact = expressions.quantity(text, {name: said.exact for name, said in given.items()})
    try:
        return exact, expressions.quantity(text, {name: said.rounded for name, said in given.items()})
    except ValueError:  # a divisor that may be rounded from 0
        return exact, Quantity(-inf, inf, exact.dimensions)


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
    bill, lines = [], []
    for name, item in claim.bill.items():
        written = [item.amount] if item.price is None else [item.amount, item.price]
        bill.append([read(part) for part in written])
        lines.append(f"{name} {' × '.join(map(str, written))}")

    def totals() -> Pair:
        exact = reduce(add, (reduce(mul, (part.exact for part in parts)) for parts in bill))
        return exact, reduce(add, (reduce(mul, (part.rounded for part in parts)) for parts in bill))

    return _held(claim, totals, " + ".join(lines))


def _worked(claim: Claim, of: str, given: Mapping[str, Said]) -> Finding:
    """A claim beside an expression of its terms, points among these read either way."""
    values = ", ".join(f"{name} = {each.text}" for name, each in given.items())
    shown = f"{of}" + (f" with {values}" if values else "")
    plain = {name: said.plain for name, said in given.items()}
    readings = [given] if plain == given else [given, plain]
    findings = [_held(claim, partial(both, of, terms), shown) for terms in readings]
    return next((each for each in findings if each.outcome in FITS), findings[0])


def _held(claim: Claim, found: Callable[[], Pair], shown: str) -> Finding:
    """A claim beside what is found; what has no value is no fault of the claim."""
    try:
        pair = found()
    except UnitError as error:
        return finding(claim, "WRONG", f"{shown}: {error}")
    except ValueError as error:
        return finding(claim, "UNTESTABLE HERE", f"{shown}: cannot be worked out, {error}")
    return against(claim, read(claim.says), pair, shown)


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
    """Totals of a weighted matrix, and whether its weights are all of it, as far as these are rounded.

    Source: the weighted sum of scores.
    """
    weights = pairs(claim.weights)
    whole = sum(weight.value.low for weight in weights.values())
    slack = sum(max(weight.slack) for weight in weights.values() if max(weight.slack) < WHOLE_NUMBER)
    if abs(whole - 1) > slack + TOLERANCE:
        return finding(claim, "WRONG", f"weights add up to {100 * whole:g} %, not 100 %")
    meant = {name: weight.value if abs(whole - 1) <= TOLERANCE else weight.rounded for name, weight in weights.items()}
    outcomes, shown = [], []
    for option, text in claim.says.items():
        scores, said = claim.scores.get(option, {}), read(text)
        if set(scores) != set(weights):
            return finding(claim, "WRONG", f"{option} has no score for {', '.join(sorted(set(weights) - set(scores)))}")
        total = sum(weights[name].value.low * scores[name] for name in weights)
        wide = reduce(add, (meant[name] * Quantity.of(scores[name]) for name in weights))
        outcomes.append(judged(said, Quantity.of(total), wide))
        terms = " + ".join(f"{weight.text} × {scores[name]:g}" for name, weight in weights.items())
        shown.append(f"{option}: {terms} = {figure(round(total, 9))}")
    worst = max(outcomes, key=(*FITS, "NOT SUPPORTED", "WRONG").index)
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
    must = f"; must hold: {claim.must}" if claim.must else "; they would have to be equal"
    try:
        for way, words in (AS_IT_STANDS, *OTHERWISE):
            outcome = _agreed(claim, {name: way(said) for name, said in given.items()})
            if outcome != "INCONSISTENT":
                hint = f"; {words.format('GB')}" if words else ""
                return finding(claim, outcome, f"{shown}{must}{hint}", against=elsewhere)
    except UnitError as error:
        return finding(claim, "INCONSISTENT", f"{shown}: {error}", against=elsewhere)
    except ValueError as error:
        return finding(claim, "UNTESTABLE HERE", f"{shown}: cannot be worked out, {error}", against=elsewhere)
    return finding(claim, "INCONSISTENT", f"{shown}{must}", against=elsewhere)


def _agreed(claim: Consistency, given: Mapping[str, Said]) -> Outcome:
    if claim.must is None:
        stated = dict.fromkeys((said.exact, said.rounded) for said in given.values())
        outcomes = [related(one, "==", other) for one, other in combinations(stated, 2)] or ["HOLDS"]
    else:
        left, sign, right = expressions.sides(expressions.tree(claim.must, expressions.FUNCTIONS, compares=True))
        from ast import unparse

        ends = both(unparse(left), given), both(unparse(right), given)
        outcomes = [related(ends[0], sign, ends[1])]
        if outcomes != ["HOLDS"] and any(wide.anything for _, wide in ends):
            return "UNTESTABLE HERE"
    return max(outcomes, key=(*FITS, "INCONSISTENT").index)


def related(left: Pair, sign: str, right: Pair) -> Outcome:
    """Whether two numbers stand in a relation: as written, or at least by all that is written so.

    Two ranges are equal if their ends are; a number is equal to a range that it lies in, and to a bound that it keeps.

    Raises:
        UnitError: Their units differ.
    """
    left[0].same(right[0])
    if sign in (">", ">="):
        left, sign, right = right, {">": "<", ">=": "<="}[sign], left
    ranges = [pair[0].low < pair[0].high and not pair[0].open for pair in (left, right)]
    tests = [_stands(a, sign, b, all(ranges)) for a, b in zip(left, right, strict=True)]
    if sign == "==" and all(ranges):
        slack = [abs(a[0].low - a[1].low) + abs(a[0].high - a[1].high) for a in (left, right)]
        apart = max(abs(left[0].low - right[0].low), abs(left[0].high - right[0].high))
        tests[1] = apart <= sum(slack)
    return "HOLDS" if tests[0] else "HOLDS WITHIN ROUNDING" if tests[1] else "INCONSISTENT"


def _stands(a: Quantity, sign: str, b: Quantity, ranges: bool) -> bool:
    near = _near(a, b)
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
    interval = Quantity.of(low.low, high.high, dimensions=low.dimensions)
    place = {"at": claim.found.at, "limits": claim.found.limits}
    return beside(claim, read(claim.says), interval, **place, ways=OTHERWISE)


def beside(
    claim: Measured, said: Said, interval: Quantity, *, at: str, limits: str, ways: Iterable[Way] = (BINARY,)
) -> Finding:
    """A claim, or the reading of it that `ways` give, beside an interval.

    Raises:
        UnitError: Its unit is another.
    """
    said.value.same(interval)
    said, outcome, hint = fitting(said, interval, interval, ways)
    shown = said.show(interval)
    if said.relation == "=" and outcome != "WRONG":
        inside = said.rounded.low <= interval.low and interval.high <= said.rounded.high
        outcome = "HOLDS" if inside else "HOLDS WITHIN ROUNDING"
    here: Outcome = {"HOLDS": "SUPPORTED HERE", "WRONG": "CONTRADICTED HERE"}.get(outcome, "UNTESTABLE HERE")
    if outcome == "NOT SUPPORTED":
        hint = "; so much is not reached, as it may be elsewhere"
    elif here == "UNTESTABLE HERE":
        hint += "; the interval has what is claimed, and other values too"
    working = f"claimed {said.text}, measured {shown} ({at}){hint}"
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
