"""What fine-tuning a model would take on devices that need not be there: memory, time and money, without a study.

A study's own plan (`preview`) knows its rows, its trials and its machine; a forecast is for the question before that.
"""

import textwrap
from collections.abc import Iterator

from tunetrial.core.evidence import Held
from tunetrial.core.records import Record
from tunetrial.core.spans import between
from tunetrial.plan.estimate import GIB, Range
from tunetrial.plan.fit import Fit
from tunetrial.plan.power import Power

WIDTH = 100
PARTS = ("base", "trained", "gradients", "moments", "activations", "workspace", "other")


class Cell(Record):
    """One arm on one device. `step_s` are seconds of an optimiser step and `run_s` of one training run of so many
    epochs, where rows were given; `usd` is the run's price, by the hour at `price`. Each is None where it is not known,
    and `why` says of time why not. `phases` are bytes at the peak of each phase, where they were asked for: on the
    device as counted, for "merge" of the host and for "serve" as `plan.deployed` has it."""

    fit: Fit
    precision: str
    phases: dict[str, Range] = {}
    step_s: Range | None = None
    run_s: Range | None = None
    usd: Range | None = None
    price: str | None = None
    why: str | None = None


class Forecast(Record):
    """A model by its configuration, on devices by their data sheets or as measured.

    `parameters` are counted, or of a family that is not known lie within `bound`, and nothing is said of fits then.
    `sessions` tells, by device, of limits on how long one may be used at a time.
    """

    model: str
    source: str
    parameters: int | None
    bound: tuple[int, int] | None = None
    step: str
    cells: tuple[Cell, ...] = ()
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
    heads = ["method", "on", "has GiB", "needs GiB", "verdict", "a step", "a run", "USD"]
    rows = [heads]
    for cell in cells:
        rows.append(
            [
                cell.fit.arm,
                cell.fit.device,
                f"{cell.fit.room_bytes / GIB:.1f}",
                _gib(cell.fit.need.bytes),
                cell.fit.verdict,
                _time(cell.step_s),
                _time(cell.run_s),
                _usd(cell.usd),
            ]
        )
    kept = [n for n, head in enumerate(heads) if n < 5 or any(row[n] for row in rows[1:])]
    widths = [max(len(row[n]) for row in rows) for n in kept]
    for row in rows:
        yield "  ".join(row[n].ljust(width) for n, width in zip(kept, widths, strict=True)).rstrip()


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
