"""Stacked bars of memory against what a device has, as one SVG that needs nothing else: no script, font or style."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tunetrial.core.work import Part

GIB = 2**30
TITLES: dict[Part, tuple[str, str]] = {
    "base": ("base", "#1d5fa6"),
    "trained": ("trained weights", "#0d7265"),
    "gradients": ("gradients", "#8a6100"),
    "moments": ("moments", "#8a3da0"),
    "activations": ("activations", "#b8460e"),
    "workspace": ("workspace", "#55565f"),
    "other": ("other", "#a5a6ad"),
}
WIDTH, MARGIN, LABEL, RIGHT, ROW, BAR = 960, 12, 230, 150, 34, 18
INK, SOFT, RULE, OVER = "#1c1d20", "#5c5d64", "#e3e0d8", "#98191b"


@dataclass(frozen=True)
class Bar:
    """What an arm holds at its peak, by part, in bytes; `most` with the device's context and the allocator's reserve
    at the high end; `room` what the device has free, None where that is not known."""

    label: str
    parts: dict[Part, int]
    most: float
    room: float | None
    note: str = ""


def svg(title: str, bars: Sequence[Bar]) -> str:
    """Draw bars on one scale, each with a mark at what its device has; from there on a bar is over."""
    longest = max((max(bar.most, bar.room or 0) for bar in bars), default=0) or 1
    place = lambda held: LABEL + (WIDTH - LABEL - RIGHT) * held / longest  # noqa: E731
    height = 74 + ROW * len(bars) + 26
    drawn = [_text(MARGIN, 18, title, size=16, weight=600)]
    x = float(MARGIN)
    used = [part for part in TITLES if any(bar.parts.get(part) for bar in bars)]
    for part in used:
        name, colour = TITLES[part]
        drawn += [f'<rect x="{x:.1f}" y="30" width="11" height="11" rx="2" fill="{colour}"/>', _text(x + 16, 40, name)]
        x += 16 + 7.2 * len(name) + 18
    drawn += [f'<rect x="{x:.1f}" y="30" width="11" height="11" rx="2" fill="url(#reserve)"/>']
    drawn += [_text(x + 16, 40, "context and reserve, at most"), _text(x + 196, 40, "┃ what the device has")]
    top = 58
    for number, bar in enumerate(bars):
        drawn += _bar(bar, top + ROW * number, place)
    axis = top + ROW * len(bars) + 4
    for tick in _ticks(longest / GIB):
        at = place(tick * GIB)
        drawn += [f'<path d="M{at:.1f} {top - 4} V{axis}" stroke="{RULE}" fill="none"/>']
        drawn += [_text(at, axis + 16, f"{tick:g} GiB", anchor="middle", fill=SOFT)]
    pattern = (
        '<defs><pattern id="reserve" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#efede7"/>'
        f'<path d="M0 0 V6" stroke="{SOFT}" stroke-width="2"/></pattern></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Inter, Segoe UI, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>{pattern}{"".join(_behind_first(drawn))}</svg>\n'
    )


def _bar(bar: Bar, y: float, place) -> list[str]:
    drawn, held = [_text(LABEL - 12, y + 13, bar.label, anchor="end")], 0
    for part, (name, colour) in TITLES.items():
        size = bar.parts.get(part, 0)
        if size:
            x, end = place(held), place(held + size)
            box = f'x="{x:.1f}" y="{y}" width="{end - x:.1f}" height="{BAR}" fill="{colour}"'
            said = escape(f"{bar.label}: {name} {size / GIB:.2f} GiB")
            drawn.append(f"<rect {box}><title>{said}</title></rect>")
            held += size
    if bar.most > held:
        x, end = place(held), place(bar.most)
        drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{end - x:.1f}" height="{BAR}" fill="url(#reserve)"/>')
    over = bar.room is not None and bar.most > bar.room
    if bar.room is not None:
        at = place(bar.room)
        colour = OVER if over else INK
        drawn.append(f'<path d="M{at:.1f} {y - 5} V{y + BAR + 5}" stroke="{colour}" stroke-width="2.5"/>')
    said = bar.note or f"{bar.most / GIB:.1f} GiB"
    drawn.append(_text(WIDTH - RIGHT + 12, y + 13, said, fill=OVER if over else INK))
    return drawn


def _behind_first(drawn: list[str]) -> list[str]:
    """Lines of the scale before all that stands on them."""
    return sorted(drawn, key=lambda one: RULE not in one)


def _ticks(most: float) -> list[float]:
    """At most seven round numbers from 0 on."""
    step = next(s * 10**e for e in range(-3, 6) for s in (1, 2, 5) if most / (s * 10**e) <= 6)
    return [round(n * step, 6) for n in range(int(most / step) + 1)]


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", fill: str = INK, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
