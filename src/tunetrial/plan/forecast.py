"""What fine-tuning would take on devices that need not be there, in memory, time and money: of a model by itself, or of
a study's own arms and rows. The plan of a study on the machine at hand is another (`preview`).
"""

import textwrap
from collections.abc import Iterator

from tunetrial.core.evidence import Held
from tunetrial.core.records import Record
from tunetrial.core.spans import between
from tunetrial.plan.estimate import GIB, Range
from tunetrial.plan.fit import Fit, Need
from tunetrial.plan.power import Power

WIDTH, NAME = 100, 20
PARTS = ("base", "trained", "gradients", "moments", "activations", "workspace", "other")


class Pack(Record):
    """So many trials of an arm that train together, as a study's tuning begins, and what they need."""

    members: int
    need: Need


class Cell(Record):
    """One arm on one device. `step_s` are seconds of an optimiser step, `run_s` of one training run of so many epochs,
    where rows were given, and `runs_s` of all runs of a study's arm, one after the other, from those of a search that
    stops at once and the first look to all that there may be; `usd` is their price, by the hour at `price`. Each is
    None where it is not known, and `why` says of time why not. `phases` are bytes at the peak of each phase, where they
    were asked for: on the device as counted, for "merge" of the host and for "serve" as `plan.deployed` has it.
    """

    fit: Fit
    precision: str
    phases: dict[str, Range] = {}
    pack: Pack | None = None
    step_s: Range | None = None
    run_s: Range | None = None
    runs_s: Range | None = None
    usd: Range | None = None
    price: str | None = None
    why: str | None = None


class Whole(Record):
    """A study on one device: all runs of all its arms but those `without` which it would be, since they do not fit."""

    device: str
    seconds: Range | None
    usd: Range | None
    without: tuple[str, ...] = ()


class Forecast(Record):
    """A model by its configuration, on devices by their data sheets or as measured.

    `parameters` are counted, or of a family that is not known lie within `bound`, and nothing is said of fits then.
    `sessions` tells, by device, of limits on how long one may be used at a time. Of a study `wholes` has all its arms
    together.
    """

    model: str
    source: str
    parameters: int | None
    bound: tuple[int, int] | None = None
    step: str
    cells: tuple[Cell, ...] = ()
    wholes: tuple[Whole, ...] = ()
    sessions: dict[str, str] = {}
    power: Power | None = None
    remarks: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[Fit, ...]:
        """All there are, if none of them fits even in smaller steps."""
        fits = tuple(cell.fit for cell in self.cells)
        return fits if all(fit.verdict == "does not fit" for fit in fits) else ()

    @property
    def memory(self) -> tuple[Held, ...]:
        """What each cell holds at its peak, asked for a whole step at once."""
        return tuple(
            Held(
                label=f"{cell.fit.arm} on {cell.fit.device}",
                parts=cell.fit.need.parts,
                most_bytes=cell.fit.need.bytes.high,
                room_bytes=cell.fit.room_bytes,
                verdict=cell.fit.verdict,
            )
            for cell in self.cells
        )

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(forecast: Forecast) -> Iterator[str]:
    if forecast.parameters is not None:
        size = f"{forecast.parameters:,} weights"
    elif forecast.bound is not None:
        size = f"between {forecast.bound[0]:,} and {forecast.bound[1]:,} weights"
    else:
        size = "weights unknown"
    yield from _wrapped(f"{forecast.model}: {size}; {forecast.source}")
    yield from _wrapped(f"a step: {forecast.step}")
    if forecast.cells:
        yield ""
        yield from _table(forecast.cells)
    together = [*_packs(forecast), *_wholes(forecast)]
    if together:
        yield ""
    for line in together:
        yield from _wrapped(line)
    changes = [(cell, change) for cell in forecast.cells for change in cell.fit.changes]
    if changes:
        yield ""
        yield "What would make it fit, the smallest change first:"
    for cell, change in changes:
        said = f"{cell.fit.arm} on {cell.fit.device}: {change.what}: {_gib(change.need.bytes)} GiB"
        if abs(change.time - 1) > 0.02:
            said += f", {change.time:.2g} × the arithmetic of a step"
        yield from _wrapped(f"{said}; {change.fair}", indent="  ")
    rest = [f"{device}: {limit}" for device, limit in forecast.sessions.items()]
    rest += [f"price: {price}" for price in dict.fromkeys(cell.price for cell in forecast.cells if cell.price)]
    rest += [f"no time: {why}" for why in dict.fromkeys(cell.why for cell in forecast.cells if cell.why)]
    rest += list(forecast.remarks)
    if rest:
        yield ""
    for line in rest:
        yield from _wrapped(line)
    if forecast.power:
        yield ""
        yield str(forecast.power)


def _table(cells: tuple[Cell, ...]) -> Iterator[str]:
    heads = [
        "arm" if any(cell.runs_s for cell in cells) else "method",
        "on",
        "has GiB",
        "needs GiB",
        "verdict",
        "a step",
        "a run",
        "all runs",
        "USD",
    ]
    rows = [heads]
    for cell in cells:
        rows.append(
            [
                _short(cell.fit.arm),
                cell.fit.device,
                f"{cell.fit.room_bytes / GIB:.1f}",
                _gib(cell.fit.need.bytes),
                cell.fit.verdict,
                _time(cell.step_s),
                _time(cell.run_s),
                _time(cell.runs_s),
                _usd(cell.usd),
            ]
        )
    kept = [n for n, head in enumerate(heads) if n < 5 or any(row[n] for row in rows[1:])]
    widths = [max(len(row[n]) for row in rows) for n in kept]
    for row in rows:
        yield "  ".join(row[n].ljust(width) for n, width in zip(kept, widths, strict=True)).rstrip()


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _packs(forecast: Forecast) -> Iterator[str]:
    """Trials that train together, and whether they fit as they are."""
    for cell in forecast.cells:
        if cell.pack is not None and cell.fit.verdict != "does not fit":
            fits = cell.pack.need.bytes.high <= cell.fit.room_bytes
            said = "fits" if fits else "more than there is: fewer at once, which the engine finds by itself"
            together = f"tuning trains {cell.pack.members} together: {_gib(cell.pack.need.bytes)} GiB, {said}"
            yield f"{cell.fit.arm} on {cell.fit.device}: {together}"


def _wholes(forecast: Forecast) -> Iterator[str]:
    for whole in forecast.wholes:
        if whole.seconds is not None:
            price = "" if whole.usd is None else f", {_usd(whole.usd)} USD"
            less = f", without {', '.join(whole.without)}" if whole.without else ""
            yield f"the study on {whole.device}{less}: {_time(whole.seconds)}{price}"


def _wrapped(text: str, indent: str = "") -> Iterator[str]:
    how = {"break_on_hyphens": False, "break_long_words": False}
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", **how)


def _gib(needed: Range) -> str:
    return f"{needed.low / GIB:.1f}–{needed.high / GIB:.1f}"


def _usd(found: Range | None) -> str:
    """To the cent, or to two digits from ten cents up."""
    if found is None:
        return ""
    if found.high < 0.005:
        return "0" if found.high == 0 else "under 0.01"
    return "–".join(f"{value:.2f}" if value < 10 else _plain(value) for value in (found.low, found.high))


def _plain(value: float) -> str:
    """Two digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _time(found: Range | None) -> str:
    return "" if found is None else between(found.low, found.high)
