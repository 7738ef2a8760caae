"""Stacked bars of memory against what a device has: measured in percent of their width, for the page, which stretches
them to any screen, and as one SVG that needs nothing else: no script, font or style."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Held
from tunetrial.core.work import Part
from tunetrial.report import plots, words
from tunetrial.report.plots import Tick

GIB, MIB = 2**30, 2**20
TITLES: dict[Part, tuple[str, str]] = {
    "base": ("base", "#1d5fa6"),
    "trained": ("trained weights", "#0d7265"),
    "gradients": ("gradients", "#8a6100"),
    "moments": ("moments", "#8a3da0"),
    "activations": ("activations", "#b8460e"),
    "workspace": ("workspace", "#55565f"),
    "other": ("other", "#a5a6ad"),
}
REST = "beside tensors, at most"
ROOM, MEASURED = "what the device has", "measured"
BEYOND = "room of {}: beyond this scale"
# A device with more than so many times what is needed has its mark beyond the scale.
FAR = 3.0
WIDTH, MARGIN, LABEL, RIGHT, ROW, BAR = 960, 12, 230, 150, 34, 18
DIAMOND = "M0-6L6 0L0 6L-6 0z"
INK, SOFT, RULE, OVER, PAPER = "#1c1d20", "#5c5d64", "#e3e0d8", "#98191b", "#ffffff"


@dataclass(frozen=True)
class Piece:
    """A part of a bar, in percent; `part` is None for what comes beside tensors."""

    part: Part | None
    at: float
    width: float
    said: str


@dataclass(frozen=True)
class Bar:
    """One arm: `room` is where the device ends and `measured` what a run took, in percent; None where that is not known
    or, of the room, beyond the scale. `over` where the device has less than is needed at most."""

    label: str
    pieces: tuple[Piece, ...]
    room: float | None
    measured: float | None
    over: bool
    note: str
    alt: str


@dataclass(frozen=True)
class Picture:
    """Bars on one scale from 0, and what is named below them."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    parts: tuple[Part, ...]
    measured: bool
    beyond: str | None


def picture(held: Sequence[Held]) -> Picture:
    """Lay bars out; the note beside each is its verdict, or what it needs at most."""
    need = max((max(one.most_bytes, one.measured_bytes or 0) for one in held), default=0) or 1
    rooms = {one.room_bytes for one in held if one.room_bytes is not None}
    longest = max([need, *(room for room in rooms if room <= FAR * need)])
    unit, name = (GIB, "GiB") if longest >= GIB else (MIB, "MiB")
    at = lambda value: round(100 * value / longest, 3)  # noqa: E731
    far = sorted(room for room in rooms if room > longest)
    marked = plots.ticks(0, longest / unit)
    return Picture(
        bars=tuple(_bar(one, at, longest) for one in held),
        ticks=tuple(Tick(at(tick * unit), f"{tick:g} {name}" if tick else "0") for tick in marked),
        parts=tuple(part for part in TITLES if any(one.parts.get(part) for one in held)),
        measured=any(one.measured_bytes is not None for one in held),
        beyond=" or ".join(map(words.size, far)) if far else None,
    )


def _bar(held: Held, at: Callable[[float], float], longest: float) -> Bar:
    pieces, end = [], 0
    for part, (title, _) in TITLES.items():
        size = held.parts.get(part, 0)
        if size:
            pieces.append(Piece(part, at(end), at(size), f"{title} {words.size(size)}"))
            end += size
    if held.most_bytes > end:
        rest = held.most_bytes - end
        pieces.append(Piece(None, at(end), at(rest), f"{REST}, {words.size(rest)}"))
    room, measured = held.room_bytes, held.measured_bytes
    said = [*(piece.said for piece in pieces), f"in all {words.size(held.most_bytes)}"]
    said += [f"the device has {words.size(room)}"] if room is not None else []
    said += [f"measured {words.size(measured)}"] if measured is not None else []
    return Bar(
        label=held.label,
        pieces=tuple(pieces),
        room=None if room is None or room > longest else at(room),
        measured=None if measured is None else at(measured),
        over=room is not None and held.most_bytes > room,
        note=held.verdict or words.size(held.most_bytes),
        alt=f"{words.clean(held.label, 80)}: {', '.join(said)}",
    )


def svg(title: str, held: Sequence[Held]) -> str:
    """Draw bars on one scale, each with a mark at what its device has; from there on a bar is over.

    Raises:
        EvidenceError: There is nothing to draw.
    """
    if not held:
        raise EvidenceError(f"{title}: nothing to draw, got no arm whose memory was counted; plan on another base")
    found = picture(held)
    place = lambda percent: LABEL + (WIDTH - LABEL - RIGHT) * percent / 100  # noqa: E731
    height = 94 + ROW * len(found.bars) + 26
    drawn = [_text(MARGIN, 18, title, size=16, weight=600), *_legend(found)]
    top = 78
    axis = top + ROW * len(found.bars) + 4
    for tick in found.ticks:
        at = place(tick.at)
        drawn += [f'<path d="M{at:.1f} {top - 4} V{axis}" stroke="{RULE}" fill="none"/>']
        drawn += [_text(at, axis + 16, tick.text, anchor="middle", fill=SOFT)]
    for number, bar in enumerate(found.bars):
        drawn += _drawn(bar, top + ROW * number, place)
    pattern = (
        '<defs><pattern id="reserve" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#efede7"/>'
        f'<path d="M0 0 V6" stroke="{SOFT}" stroke-width="2"/></pattern></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Inter, Segoe UI, Helvetica, Arial, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>{pattern}{"".join(drawn)}</svg>\n'
    )


def _legend(found: Picture) -> list[str]:
    """Parts in one line; in the next what is no part, and the marks."""
    parts = [TITLES[part] for part in found.parts]
    marks = [f"┃ {ROOM}"] if any(bar.room is not None for bar in found.bars) else []
    marks += [BEYOND.format(found.beyond)] if found.beyond else []
    marks += [f"◇ {MEASURED}"] if found.measured else []
    return [*_entries(parts, 40), *_entries([(REST, "url(#reserve)"), *((mark, None) for mark in marks)], 60)]


def _entries(named: Sequence[tuple[str, str | None]], y: int) -> list[str]:
    drawn, x = [], float(MARGIN)
    for name, colour in named:
        if colour is not None:
            drawn.append(f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" rx="2" fill="{colour}"/>')
            x += 16
        drawn.append(_text(x, y, name))
        x += 7.2 * len(name) + 18
    return drawn


def _drawn(bar: Bar, y: float, place: Callable[[float], float]) -> list[str]:
    drawn = [_text(LABEL - 12, y + 13, words.clean(bar.label, 32), anchor="end")]
    for piece in bar.pieces:
        x, width = place(piece.at), place(piece.width) - LABEL
        colour = "url(#reserve)" if piece.part is None else TITLES[piece.part][1]
        box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"'
        drawn.append(f"<rect {box}><title>{escape(f'{bar.label}: {piece.said}')}</title></rect>")
    if bar.room is not None:
        at, colour = place(bar.room), OVER if bar.over else INK
        drawn.append(f'<path d="M{at:.1f} {y - 5} V{y + BAR + 5}" stroke="{colour}" stroke-width="2.5"/>')
    if bar.measured is not None:
        at = f"translate({place(bar.measured):.1f} {y + BAR / 2:.1f})"
        drawn.append(f'<path d="{DIAMOND}" transform="{at}" fill="{PAPER}" stroke="{INK}" stroke-width="1.6"/>')
    drawn.append(_text(WIDTH - RIGHT + 12, y + 13, bar.note, fill=OVER if bar.over else INK))
    return drawn


def _text(
    x: float, y: float, text: str, *, size: int = 13, anchor: str = "start", fill: str = INK, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
