"""Learning in the report: how soon arms learn, in a table; ladders with one step beyond, as pictures; what to spend on
next, in a table and a sentence.

Each picture is one SVG that needs nothing else, no script, font or style; on the report's page it takes the page's
colours. It draws what was estimated elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tunetrial.analysis import metrics
from tunetrial.core.evidence import Decision, Evidence
from tunetrial.core.findings import Ascent, Gained, Learned, Outlook, Prospect, Reached
from tunetrial.report import words
from tunetrial.report.plots import Frame, ticks

COLOURS = ("#1d5fa6", "#b8460e", "#0d7265", "#8a3da0", "#8a6100", "#b3205f", "#4a6a1c", "#55565f")
INK, SOFT, RULE, PAPER = (
    f"var(--{name}, {colour})"
    for name, colour in (("ink", "#1c1d20"), ("soft", "#5c5d64"), ("rule", "#e3e0d8"), ("paper", "#ffffff"))
)
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 400, 52, 388, 56, 236
DIAMOND = "M0-5L5 0L0 5L-5 0z"
TITLES = {"rows": ("More rows", "training rows"), "ranks": ("More rank", "rank")}


@dataclass(frozen=True)
class Soon:
    """How soon an arm learns, in words: after how many steps, by share; at which price; its mean loss."""

    task: str
    arm: str
    reached: tuple[str, ...]
    mean_loss: str
    never: str


def soon(decision: Decision) -> tuple[Soon, ...]:
    """One row an arm and task; empty where no curve was kept."""
    return tuple(
        Soon(
            words.name(one.task),
            words.name(one.arm),
            tuple(_reached(reached, one.usd_per_step) for reached in one.steps.values()),
            "not known" if one.mean_loss is None else _interval(*map(words.figure, one.mean_loss)),
            _never(one),
        )
        for one in decision.learned
    )


def _reached(reached: Reached, usd_per_step: float | None) -> str:
    """A median over seeds with its interval, and the median's price where there is one."""
    median, low, high = (
        "beyond the run" if at is None else _short(at) for at in (reached.median, reached.low, reached.high)
    )
    said = median if median == low == high else _interval(median, low, high)
    priced = reached.median is not None and usd_per_step is not None
    return f"{said}; {words.dollars(reached.median * usd_per_step)}" if priced else said


def _never(one: Learned) -> str:
    """How many runs never got there, by share, where some did not."""
    lost = {share: reached for share, reached in one.steps.items() if reached.never}
    return ", ".join(f"{r.never} of {r.runs} runs never had {words.percent(share)}" for share, r in lost.items())


def _interval(value: str, low: str, high: str) -> str:
    return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Ahead:
    """What to spend on next: the sentence, the table of prospects with its heading first, pictures with what they show
    in words, and what could not be read."""

    sentence: str
    rows: tuple[tuple[str, ...], ...]
    pictures: tuple[str, ...]
    unread: tuple[str, ...]


def ahead(evidence: Evidence, decision: Decision) -> Ahead | None:
    """What a study's ladder found, ready to be shown; None without a ladder."""
    found, study = decision.outlook, evidence.lock.study
    if found is None:
        return None
    task = study.task(found.task)
    margin = None if isinstance(task.margin, str) else task.margin
    arm = next(place for place, one in enumerate(study.arms) if one.name == found.arm)
    metric = metrics.find(task.metric)
    turned = "" if metric.higher_is_better else ", turned so that more is better"
    label = f"gain in {words.metric(task.metric)}{turned}{'' if margin is None else '; shaded: the margin'}"
    return Ahead(
        spend_sentence(found, margin=margin),
        spend_rows(found.prospects, margin=margin),
        tuple(ladder_svg(one, arm=arm, y_label=label, margin=margin) for one in found.ascents),
        tuple(f"{TITLES[of][0]}: {words.prose(why)}." for of, why in found.unread.items()),
    )


def ladder_svg(found: Ascent, *, arm: int, y_label: str, margin: float | None) -> str:
    """Draw what each rung gains over the arm as it is, with intervals, and the forecast of one doubling, hollow.

    Sizes are on a scale of doublings. The band is plus or minus the margin, where there is one.
    """
    sizes, (title, x_label) = found.sizes, TITLES[found.of]
    shown = [(size, gain, False) for size, gain in zip(sizes, found.gains, strict=True)]
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
    points = [(math.log2(size), 0.0 if gain is None else gain.expected) for size, gain, _ in shown]
    look, count = f'fill="none" stroke="{colour}" stroke-width="2"', len(sizes)
    parts.append(f'<path d="M{frame.path(points[:count])}" {look}/>')
    if found.beyond is not None:
        parts.append(f'<path d="M{frame.path(points[count - 1 :])}" stroke-dasharray="4 4" {look}/>')
    for size, gain, ahead in shown:
        parts += _rung(frame, size, gain, colour, ahead=ahead, margin=margin)
    if found.beyond is None:
        parts.append(_text(RIGHT, TOP + 12, "no forecast: returns do not diminish", anchor="end", size=11.5, fill=SOFT))
    return _svg(title, y_label, parts)


def _rung(
    frame: Frame, size: float, gain: Gained | None, colour: str, *, ahead: bool, margin: float | None
) -> list[str]:
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


def spend_sentence(found: Outlook, *, margin: float | None) -> str:
    """What the ladder means here, in one sentence."""
    known = [one for one in found.prospects if one.gain is not None]
    if not known:
        return "What to spend on next cannot be said: of no way could a gain be told."
    most = max(known, key=lambda one: one.gain)
    said = f"most is expected of {most.what}: {_gain(most.gain, margin)}"
    said += f" ({_gain(most.low, margin)} to {_gain(most.high, margin)})"
    passed = [one.what for one in found.prospects if one.net_usd is None]
    rest = f"; {' and '.join(passed)} could not be weighed" if passed else ""
    if found.best is None and most.gain <= 0:
        return f"Stop, because no further spend is expected to gain anything; {said}."
    if found.best is None:
        return f"What to spend on next is yours to weigh, since prices or the worth of a gain were not said; {said}."
    if found.best == "stop":
        return f"Stop, because no further spend is expected to gain more than it costs; {said}{rest}."
    chosen = next(one for one in found.prospects if one.what == found.best)
    net = f"the expected gain of {_gain(chosen.gain, margin)} is worth {words.dollars(chosen.net_usd)} more than its"
    return f"Spend on {found.best}, because {net} price; {_chance(chosen.chance_pays)} likely to pay at all{rest}."


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


def _grid(frame: Frame, axis: float) -> list[str]:
    marked = ticks(*frame.y)
    decimals = max(0, -math.floor(math.log10(marked[1] - marked[0]) + 1e-9)) if len(marked) > 1 else 2
    parts = []
    for at in marked:
        y = frame.down(at)
        parts.append(f'<path d="M{LEFT} {y}H{RIGHT}" stroke="{RULE}"/>')
        parts.append(_text(LEFT - 8, y + 4, words.number(at, decimals), anchor="end", size=11.5, fill=SOFT))
    return [*parts, f'<path d="M{LEFT} {axis}H{RIGHT}" stroke="{SOFT}"/>']


def _axis(frame: Frame, y: float, marked: Sequence[tuple[float, str]], label: str) -> list[str]:
    parts = []
    for at, text in marked:
        parts.append(f'<path d="M{frame.across(at)} {y}v4" stroke="{SOFT}"/>')
        parts.append(_text(frame.across(at), y + 18, text, anchor="middle", size=11.5, fill=SOFT))
    return [*parts, _text((LEFT + RIGHT) / 2, y + 36, label, anchor="middle", size=11.5, fill=SOFT)]


def _svg(title: str, y_label: str, parts: Sequence[str]) -> str:
    height = BOTTOM + 44
    head = _text(12, 18, title, size=14, weight=600) + _text(12, 38, y_label, size=11.5, fill=SOFT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Inter, Segoe UI, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>{head}{"".join(parts)}</svg>\n'
    )


def _text(
    x: float, y: float, text: str, *, size: float = 13, anchor: str = "start", fill: str = INK, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
