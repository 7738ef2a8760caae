"""Pictures of learning: curves with where runs reach their plateau, and ladders with one step beyond; what to spend on
next, in a table and a sentence.

Each picture is one SVG that needs nothing else, no script, font or style; on the report's page it takes the page's
colours. It draws what was estimated elsewhere; the only arithmetic on data is the mean of curves, for drawing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from tunetrial.analysis.ladder import Ascent
from tunetrial.analysis.learning import Reached
from tunetrial.analysis.prospects import Gain, Prospect, best
from tunetrial.core.errors import EvidenceError
from tunetrial.report import words
from tunetrial.report.plots import BINS, Frame, ticks

COLOURS = ("#1d5fa6", "#b8460e", "#0d7265", "#8a3da0", "#8a6100", "#b3205f", "#4a6a1c", "#55565f")
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 4", "4 2 1 2")
INK, SOFT, RULE, PAPER = (
    f"var(--{name}, {colour})"
    for name, colour in (("ink", "#1c1d20"), ("soft", "#5c5d64"), ("rule", "#e3e0d8"), ("card", "#ffffff"))
)
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 64, 700, 64, 300
ROW = 20
DIAMOND = "M0-5L5 0L0 5L-5 0z"


@dataclass(frozen=True)
class Courses:
    """The runs of an arm: x of each point, values of each run (NaN from where it diverged), and where runs have a
    share of their gain, by share. `arm` is its place in the study, which gives its colour."""

    name: str
    arm: int
    x_S: NDArray[np.float64]
    value_RS: NDArray[np.float64]
    reached: Mapping[float, Reached]


def courses_svg(title: str, arms: Sequence[Courses], *, x_label: str, y_label: str) -> str:
    """Draw every run faintly and each arm's mean of runs that came to their end; below, on the same axis, where half of
    its runs have reached their shares, with the interval: an arrow where an end lies beyond what was seen.

    Raises:
        EvidenceError: There is nothing to draw.
    """
    if not arms:
        raise EvidenceError(f"{title}: nothing to draw, got no arm with a curve; train the finals")
    drawn = [(one, *_thinned(one)) for one in arms]
    # Runs that diverge shoot up before they end: the frame is that of the runs that came to their end.
    whole = [row for _, _, rows in drawn for row in rows if np.isfinite(row).all()] or [
        r for _, _, rs in drawn for r in rs
    ]
    values = np.concatenate(whole)
    frame = _frame((0.0, max(float(one.x_S[-1]) for one in arms)), (np.nanmin(values), np.nanmax(values)))
    marked = [(one, share, reached) for one in arms for share, reached in one.reached.items()]
    axis = BOTTOM + 14 + ROW * len(marked)
    parts = [*_grid(frame, axis), *_axis(frame, axis, [(x, _short(x)) for x in ticks(*frame.x)], x_label)]
    for one, x_S, value_RS in drawn:
        for row in value_RS:
            parts.append(_line(frame, x_S, row, f'stroke="{_colour(one.arm)}" stroke-width="1" opacity=".28"'))
        mean = f'stroke="{_colour(one.arm)}" stroke-width="2.4" stroke-dasharray="{DASHES[one.arm % 8]}"'
        if (ended_R := np.isfinite(value_RS).all(axis=1)).any():
            parts.append(_line(frame, x_S, value_RS[ended_R].mean(axis=0), mean))
    for number, (one, share, reached) in enumerate(marked):
        parts += _reached(frame, one, share, reached, BOTTOM + 18 + ROW * number)
    legend = [(words.clean(one.name, 40), one.arm) for one in arms]
    return _svg(title, y_label, legend, parts, axis + 44)


def _thinned(one: Courses) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Averages within at most 60 stretches of equal length; a stretch with a NaN is one."""
    length = math.ceil(len(one.x_S) / BINS)
    starts = np.arange(0, len(one.x_S), length)
    counts = np.diff((*starts, len(one.x_S)))
    return np.add.reduceat(one.x_S, starts) / counts, np.add.reduceat(one.value_RS, starts, axis=1) / counts


def _reached(frame: Frame, one: Courses, share: float, reached: Reached, y: float) -> list[str]:
    """One row: an interval with its median, and in words what they are."""
    said = f"{words.clean(one.name, 24)}, {words.percent(share)} of its gain: {said_of(reached)}"
    colour = _colour(one.arm)
    parts = [f"<g><title>{escape(said)}</title>"]
    if reached.low is not None:
        low, high = frame.across(reached.low), frame.right if reached.high is None else frame.across(reached.high)
        end = f"M{high - 5} {y - 4}L{high} {y}L{high - 5} {y + 4}" if reached.high is None else f"M{high} {y - 4}v8"
        parts.append(
            f'<path d="M{low} {y}H{high}M{low} {y - 4}v8{end}" stroke="{colour}" stroke-width="2" fill="none"/>'
        )
        if reached.median is not None:
            at = f"translate({frame.across(reached.median)} {y})"
            parts.append(f'<path d="{DIAMOND}" transform="{at}" fill="{colour}" stroke="{PAPER}"/>')
    beyond = "" if reached.median is not None else f", {reached.never} of {reached.runs} not within it"
    parts.append(_text(LEFT - 6, y + 4, words.percent(share), anchor="end", size=11, fill=colour))
    if beyond:
        parts.append(_text(RIGHT, y - 6, f"{words.clean(one.name, 24)}{beyond}", anchor="end", size=11, fill=colour))
    return [*parts, "</g>"]


def said_of(reached: Reached) -> str:
    """A median over seeds in words, with its interval and the runs that never got there."""
    median = "not within the run" if reached.median is None else _short(reached.median)
    low = "beyond the run" if reached.low is None else _short(reached.low)
    high = "beyond the run" if reached.high is None else _short(reached.high)
    never = f"; {reached.never} of {reached.runs} runs never got there" if reached.never else ""
    return f"{median} ({words.percent(reached.level)} interval {low} to {high}{never})"


def ladder_svg(title: str, found: Ascent, *, arm: int, x_label: str, y_label: str, margin: float | None) -> str:
    """Draw what each rung gains over the arm as it is, with intervals, and the forecast of one doubling, hollow.

    Sizes are on a scale of doublings. The band is plus or minus the margin, where there is one.
    """
    sizes = [rung.size for rung in found.rungs]
    shown: list[tuple[float, Gain | None, bool]] = [(s, g, False) for s, g in zip(sizes, found.gains, strict=True)]
    if found.beyond is not None:
        shown.append((2 * sizes[-1], found.beyond, True))
    ends = [0.0, *(end for _, gain, _ in shown if gain for end in (gain.low, gain.high))]
    ends += [] if margin is None else [-margin, margin]
    first, last = math.log2(sizes[0]), math.log2(2 * sizes[-1])
    frame = _frame((first - 0.3, last + 0.3), (min(ends), max(ends)))
    marked = [(math.log2(size), _short(size)) for size in (*sizes, 2 * sizes[-1])]
    parts = []
    if margin is not None:
        top, bottom = frame.down(margin), frame.down(-margin)
        box = f'x="{LEFT}" width="{RIGHT - LEFT}" y="{top}" height="{bottom - top:.2f}" fill="var(--band, #eceae3)"'
        parts.append(f"<rect {box}><title>plus or minus the margin, {words.plain(margin)}</title></rect>")
    parts += [*_grid(frame, BOTTOM), *_axis(frame, BOTTOM, marked, x_label)]
    zero, colour = frame.down(0.0), _colour(arm)
    parts.append(f'<path d="M{LEFT} {zero}H{RIGHT}" stroke="{SOFT}"/>')
    at_K = np.log2([size for size, _, _ in shown])
    value_K = np.array([0.0 if gain is None else gain.expected for _, gain, _ in shown])
    solid, count = f'stroke="{colour}" stroke-width="2.2"', len(sizes)
    parts.append(_line(frame, at_K[:count], value_K[:count], solid))
    parts.append(_line(frame, at_K[count - 1 :], value_K[count - 1 :], f'{solid} stroke-dasharray="4 4"'))
    for size, gain, ahead in shown:
        parts += _rung(frame, size, gain, colour, ahead=ahead, margin=margin)
    if found.beyond is None:
        why = "no forecast: the rungs do not follow diminishing returns"
        parts.append(_text(RIGHT, TOP + 14, why, anchor="end", size=12, fill=SOFT))
    return _svg(title, y_label, [], parts, BOTTOM + 44)


def _rung(frame: Frame, size: float, gain: Gain | None, colour: str, *, ahead: bool, margin: float | None) -> list[str]:
    """A mark with its interval; a forecast is hollow."""
    x, value = frame.across(math.log2(size)), 0.0 if gain is None else gain.expected
    said, parts = f"{_short(size)}: the arm as it is", []
    if gain is not None:
        low, high = frame.down(gain.low), frame.down(gain.high)
        low_to_high = f"{_gain(gain.low, margin)} to {_gain(gain.high, margin)}"
        said = f"{_short(size)}: {_gain(gain.expected, margin)} ({low_to_high}){', a forecast' if ahead else ''}"
        parts.append(
            f'<path d="M{x} {low}V{high}M{x - 4} {low}h8M{x - 4} {high}h8" stroke="{colour}" stroke-width="2"/>'
        )
    fill = PAPER if ahead else colour
    place = f'transform="translate({x} {frame.down(value)})"'
    parts.append(f'<path d="{DIAMOND}" {place} fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    return [f"<g><title>{escape(said)}</title>", *parts, "</g>"]


def spend_rows(prospects: Sequence[Prospect], *, margin: float | None) -> tuple[tuple[str, ...], ...]:
    """The table of what to spend on next, a heading first; gains are in units of the metric, higher is better."""
    heading = ("Spend on", "Expected gain", "Interval", "Chance of a gain", "Price", "Gain a dollar", "Worth its price")
    rows = []
    for one in prospects:
        if one.gain is None:
            rows.append((one.what, words.clean(one.why), "", "", _dollars(one.usd), "", ""))
            continue
        pays = "not known" if one.chance_pays is None else f"{_chance(one.chance_pays)} likely"
        a_dollar = "not known" if one.gain_per_usd is None else words.figure(one.gain_per_usd, 2)
        interval = f"{_gain(one.low, margin)} to {_gain(one.high, margin)}"
        rows.append(
            (one.what, _gain(one.gain, margin), interval, _chance(one.chance), _dollars(one.usd), a_dollar, pays)
        )
    return (heading, *rows)


def spend_sentence(prospects: Sequence[Prospect]) -> str:
    """What the table means here, in one sentence."""
    found = best(prospects)
    if found is None:
        return "What to spend on next cannot be said: no way has both a forecast and a price at what a gain is worth."
    passed = [one.what for one in prospects if one.net_usd is None]
    rest = f"; {' and '.join(passed)} could not be weighed" if passed else ""
    if found.what == "stop":
        return f"Stop: no further spend is expected to gain more than it costs{rest}."
    net = words.dollars(found.net_usd)
    return f"Spend on {found.what}: its expected gain is worth {net} more than its price{rest}."


def _dollars(usd: float | None) -> str:
    return "not known" if usd is None else words.dollars(usd)


def _gain(value: float, margin: float | None) -> str:
    return words.signed(value, words.decimals_for(margin))


def _chance(share: float) -> str:
    """A chance in whole percent; nothing measured is certain."""
    bounded = words.percent(min(max(round(share, 2), 0.01), 0.99))
    return f"over {bounded}" if share > 0.99 else f"under {bounded}" if share < 0.01 else bounded


def _short(value: float) -> str:
    return words.number(value, 0) if value == int(value) else words.figure(value)


def _colour(arm: int) -> str:
    return f"var(--c{arm % 8}, {COLOURS[arm % 8]})"


def _frame(x: tuple[float, float], y: tuple[float, float]) -> Frame:
    pad = 0.06 * (y[1] - y[0]) or 1.0
    return Frame(x, (y[0] - pad, y[1] + pad), width=WIDTH, left=LEFT, right=RIGHT, top=TOP, bottom=BOTTOM)


def _line(frame: Frame, x_S: NDArray[np.float64], value_S: NDArray[np.float64], look: str) -> str:
    """A line through the points up to the first that is missing."""
    missing = np.flatnonzero(np.isnan(value_S))
    end = int(missing[0]) if len(missing) else len(value_S)
    points = frame.path(zip(x_S[:end].tolist(), value_S[:end].tolist(), strict=True))
    return f'<path d="M{points}" fill="none" stroke-linejoin="round" {look}/>'


def _grid(frame: Frame, axis: float) -> list[str]:
    marked = ticks(*frame.y)
    decimals = max(0, -math.floor(math.log10(marked[1] - marked[0]) + 1e-9)) if len(marked) > 1 else 2
    parts = []
    for at in marked:
        y = frame.down(at)
        parts.append(f'<path d="M{LEFT} {y}H{RIGHT}" stroke="{RULE}"/>')
        parts.append(_text(LEFT - 8, y + 4, words.number(at, decimals), anchor="end", size=12, fill=SOFT))
    return [*parts, f'<path d="M{LEFT} {axis}H{RIGHT}" stroke="{SOFT}"/>']


def _axis(frame: Frame, y: float, marked: Sequence[tuple[float, str]], label: str) -> list[str]:
    parts = []
    for at, text in marked:
        parts.append(f'<path d="M{frame.across(at)} {y}v4" stroke="{SOFT}"/>')
        parts.append(_text(frame.across(at), y + 18, text, anchor="middle", size=12, fill=SOFT))
    return [*parts, _text((LEFT + RIGHT) / 2, y + 36, label, anchor="middle", size=12, fill=SOFT)]


def _svg(title: str, y_label: str, legend: Sequence[tuple[str, int]], parts: Sequence[str], height: float) -> str:
    head, x = [_text(12, 20, title, size=16, weight=600), _text(12, 40, y_label, size=12, fill=SOFT)], float(RIGHT)
    for name, arm in reversed(legend):
        x -= 7.4 * len(name) + 12
        look = f'stroke="{_colour(arm)}" stroke-width="2.4" stroke-dasharray="{DASHES[arm % 8]}"'
        head += [_text(x, 40, name, size=13), f'<path d="M{x - 32:.1f} 36h26" {look}/>']
        x -= 44
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Inter, Segoe UI, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>{"".join([*head, *parts])}</svg>\n'
    )


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", fill: str = INK, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
