"""How long deployments take: tables and sentences of what was timed; computes no statistics."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tunetrial.core.deployment import Contender, Deployment, Ratio, Timing, Work
from tunetrial.core.evidence import Decision
from tunetrial.report import words

GIB, WIDTH = 2**30, 24
BUSY = 0.1
READ = ("separate", "full")  # of the other setups the tables say enough


def text(found: Deployment) -> str:
    """A table a kind of request, what it takes to have contenders in memory, and sentences."""
    parts = [_heading(found)]
    for work in dict.fromkeys(timing.work for timing in found.timings):
        parts.append("\n".join(_work(found, work)))
    parts.append("\n".join(_footprints(found)))
    if found.swaps:
        parts.append("\n".join(_swaps(found)))
    parts.append("\n".join(readings(found)))
    return "\n\n".join(parts) + "\n"


def readings(found: Deployment) -> Iterator[str]:
    """What separate adapters and full models cost beside merged ones, on each path, and what the framework does, in a
    sentence each."""
    for ratio in found.setup_ratios:
        if ratio.contender.setup in READ:
            of = f"{ratio.contender.path} {ratio.contender.name}"
            yield f"{of} takes {_said(ratio)} {ratio.against.name} at {ratio.work}: {ratio.pace}"
    for ratio in found.path_ratios:
        if ratio.contender.setup in ("merged", "separate"):
            yield f"engine {ratio.contender.name} takes {_said(ratio)} eager at {ratio.work}: {ratio.pace}"


def _said(ratio: Ratio) -> str:
    return f"{ratio.ratio:.2f} ×{_ends(ratio)}"


def _ends(ratio: Ratio) -> str:
    return "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"


def _heading(found: Deployment) -> str:
    facts, asked = found.facts, found.asked
    lines = [
        f"Deployments of {asked.base} on {facts['device']}, {facts['dtype']}, {facts['threads']} threads",
        f"{asked.sessions} sessions (process starts) of about {asked.seconds:g} s, order by seed {asked.seed}; "
        f"SAME is within {found.margin:.0%}",
        "Ratios have intervals over sessions; each stands for itself, none is adjusted for there being many.",
    ]
    if asked.sessions == 1:
        lines.append("One session has no interval: nothing can be told from it; ask for more with --sessions.")
    if facts["others"] > BUSY:
        share = f"{facts['others']:.0%} of the cores"
        lines.append(f"Other processes computed meanwhile, on up to {share}: measure again when the machine is idle.")
    return "\n".join(lines)


def _work(found: Deployment, work: Work) -> Iterator[str]:
    yield f"{str(work)[0].upper()}{str(work)[1:]}"
    yield f"  {'':<{WIDTH}} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {_unit(work):>9}  × merged"
    ratios = {(one.contender, one.work): one for one in found.setup_ratios}
    for path in ("eager", "engine"):
        for timing in found.timings:
            if timing.work == work and timing.contender.path == path:
                yield _row(timing, ratios.get((timing.contender, work)))


def _row(timing: Timing, ratio: Ratio | None) -> str:
    times = " ".join(f"{_ms(seconds):>8}" for seconds in (timing.p50_s, timing.p95_s, timing.p99_s))
    against = "" if ratio is None else f"{ratio.ratio:.2f}{_ends(ratio)} {ratio.pace}"
    return f"  {_cut(_full_name(timing))} {times} {timing.per_s:>9.4g}  {against}".rstrip()


def _full_name(timing: Timing) -> str:
    many = f" of {timing.adapters}" if timing.contender.setup == "mixed" else ""
    return words.clean(f"{timing.contender.path} {timing.contender.name}{many}", 80)


def _short(contender: Contender) -> str:
    return _cut(words.clean(f"{contender.path} {contender.name}", 80))


def _cut(name: str) -> str:
    return f"{name if len(name) <= WIDTH else f'{name[: WIDTH - 1]}…':<{WIDTH}}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.4g}"


def _footprints(found: Deployment) -> Iterator[str]:
    yield f"  {'':<{WIDTH}} {'load s':>9} {'weights':>10} {'peak':>10} {'on disk':>10}"
    for path in ("eager", "engine"):
        for one in (one for one in found.footprints if one.contender.path == path):
            held = (one.weights_bytes, one.peak_bytes, one.artifact_bytes)
            sizes = " ".join(f"{'–' if size is None else _size(size):>10}" for size in held)
            yield f"  {_short(one.contender)} {one.load_s:>9.3g} {sizes}"


def _swaps(found: Deployment) -> Iterable[str]:
    yield "From one adapter to another: resident beside it, from the host's memory, from disk"
    for swap in found.swaps:
        name = _short(Contender(setup="swapped", path=swap.path, arm=swap.arm))
        yield f"  {name} {swap.where:<9} {1e3 * swap.swap_s:.2g} ms"


def _size(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"


@dataclass(frozen=True)
class Row:
    """A contender in a table: its name and cells."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """A ratio in the picture: places across of its ends and middle, and the place down; hollow where it is open."""

    name: str
    low: float
    middle: float
    high: float
    y: int
    hollow: bool
    text: str


@dataclass(frozen=True)
class Section:
    """What the report says: where it was timed, a table a kind of request, what contenders hold, sentences, and a
    picture of the ratios with intervals: `band` is the margin, `ticks` are ratios, all as places across."""

    heading: tuple[str, ...]
    tables: tuple[tuple[str, str, tuple[Row, ...]], ...]
    held: tuple[Row, ...]
    swaps: tuple[str, ...]
    readings: tuple[str, ...]
    bars: tuple[Bar, ...]
    band: tuple[float, float]
    ticks: tuple[tuple[float, str], ...]


LABEL_PX, WIDE_PX, ROW_PX = SIZES_PX = 300, 640, 20
LEAST, MOST = 0.5, 2.0  # what the picture holds of ratios; those beyond lie at its edge


def section(decision: Decision) -> Section | None:
    """None where nothing was timed."""
    found = decision.deployed
    if found is None:
        return None
    works = dict.fromkeys(timing.work for timing in found.timings)
    shown = [ratio for ratio in found.setup_ratios if ratio.contender.setup in READ and ratio.low is not None]
    return Section(
        heading=tuple(words.clean(line) for line in _heading(found).splitlines()),
        tables=tuple((str(work), _unit(work), tuple(_cells(found, work))) for work in works),
        held=tuple(_held(found)),
        swaps=tuple(" ".join(line.split()) for line in _swaps(found)) if found.swaps else (),
        readings=tuple(readings(found)),
        bars=tuple(_bar(ratio, number) for number, ratio in enumerate(shown)),
        band=(_across(1 / (1 + found.margin)), _across(1 + found.margin)),
        ticks=tuple((_across(at), f"{at:g}") for at in (LEAST, 0.7, 1.0, 1.4, MOST)),
    )


def _unit(work: Work) -> str:
    return "answers/s" if work.new_tokens == 1 else "tokens/s"


def _cells(found: Deployment, work: Work) -> Iterator[Row]:
    ratios = {(one.contender, one.work): one for one in found.setup_ratios}
    for timing in (one for one in found.timings if one.work == work):
        ratio = ratios.get((timing.contender, work))
        times = (_ms(seconds) for seconds in (timing.p50_s, timing.p95_s, timing.p99_s))
        against = "" if ratio is None else f"{ratio.ratio:.2f}{_ends(ratio)} {ratio.pace}"
        yield Row(_full_name(timing), (*times, f"{timing.per_s:.4g}", against))


def _held(found: Deployment) -> Iterator[Row]:
    for one in found.footprints:
        held = (one.weights_bytes, one.peak_bytes, one.artifact_bytes)
        name = words.clean(f"{one.contender.path} {one.contender.name}", 80)
        yield Row(name, (f"{one.load_s:.3g}", *("–" if size is None else _size(size) for size in held)))


def _bar(ratio: Ratio, number: int) -> Bar:
    name = words.clean(f"{ratio.contender.path} {ratio.contender.name}", 30)
    text = f"{name}, {ratio.work}: {ratio.ratio:.2f}{_ends(ratio)} {ratio.pace}"
    ends = (_across(value) for value in (ratio.low, ratio.ratio, ratio.high))
    short = f"{name}, {ratio.work.batch} × {ratio.work.new_tokens}"
    return Bar(short, *ends, y=ROW_PX * number + ROW_PX // 2, hollow=ratio.pace == "CAN'T TELL", text=text)


def _across(ratio: float) -> float:
    """Where a ratio lies on the picture's logarithmic scale, in its pixels."""
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return round(LABEL_PX + share * (WIDE_PX - LABEL_PX - 10), 1)
