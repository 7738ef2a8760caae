"""Geometry of the plots: where marks, lines, bars and ticks go. It draws nothing and estimates nothing.

Forests and bars are measured in percent of their width, so that they stretch to any screen; panels (curves) in the
units of a fixed view box. The only arithmetic on data is the mean of curves, for drawing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tunetrial.analysis import metrics
from tunetrial.core.evidence import Comparison, Evidence, Measurement, TrialRecord
from tunetrial.core.study import whole
from tunetrial.report import words
from tunetrial.report.headline import comparable, margin_of

BINS = 60
PROBES = (
    ("peak_bytes", "Peak memory"),
    ("optimizer_state_bytes", "Optimiser state"),
    ("artifact_bytes", "Saved artifact"),
    ("step_s", "One optimiser step"),
    ("latency_s", "Latency, one example"),
    ("load_s", "Loading"),
)


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One comparison on its task's axis, in percent; `effect` is None when there is nothing to draw."""

    comparison: Comparison
    low: float | None = None
    effect: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Forest:
    """The comparisons of one task on one axis in the metric's unit; the band is plus or minus the margin."""

    task: str
    metric: str
    dots: tuple[Dot, ...]
    zero: float
    band: tuple[float, float]
    ticks: tuple[Tick, ...]
    margin: str


@dataclass(frozen=True)
class Mark:
    """A run; a `faint` one stands beside those that count."""

    x: float
    y: float
    arm: int
    text: str
    faint: bool = False


@dataclass(frozen=True)
class Line:
    """Points as SVG writes them; `faint` is a single seed's, else the mean."""

    points: str
    arm: int
    faint: bool


@dataclass(frozen=True)
class Chosen:
    """A learning rate that was settled on; `at_edge` when the best lies at an end of the grid."""

    x: float
    arm: int
    name: str
    rate: str
    at_edge: bool


@dataclass(frozen=True)
class Panel:
    """One small plot inside `frame`; `alt` says in words what it shows, `base` where the untuned base lies."""

    task: str
    x_label: str
    y_label: str
    frame: "Frame"
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    alt: str
    arms: tuple[tuple[int, str], ...] = ()
    marks: tuple[Mark, ...] = ()
    crosses: tuple[Mark, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    clamped: bool = False
    base: tuple[float, float] | None = None


@dataclass(frozen=True)
class Bar:
    arm: int
    name: str
    task: str
    share: float | None
    text: str


@dataclass(frozen=True)
class Bars:
    title: str
    note: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Frame:
    """A plot's view box and the data range that fills it."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 360
    height: int = 232
    left: int = 48
    right: int = 348
    top: int = 16
    bottom: int = 192

    def across(self, value: float) -> float:
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 2)

    def down(self, value: float) -> float:
        """Values outside the range are drawn at the frame's edge."""
        low, high = self.y
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        return round(self.bottom - share * (self.bottom - self.top), 2)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{self.across(x)},{self.down(y)}" for x, y in points)


def ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Choose round numbers within a range, in steps of 1, 2 or 5 times a power of ten."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (factor * step) <= most), 10)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1))


def forests(comparisons: Sequence[Comparison]) -> tuple[Forest, ...]:
    """One forest a task, in the order given."""
    tasks = dict.fromkeys(c.task for c in comparisons)
    return tuple(_forest([c for c in comparisons if c.task == task]) for task in tasks)


def _forest(comparisons: list[Comparison]) -> Forest:
    # Of a share of the gain there is no margin before an effect, and then nothing is drawn.
    shown = next((c for c in comparisons if c.margin is not None), comparisons[0])
    margin = shown.margin or 1.0
    ends = [end for c in comparisons if comparable(c) for end in (c.low, c.high, c.effect)] + [-margin, margin]
    pad = 0.08 * (max(ends) - min(ends))
    low, high = min(ends) - pad, max(ends) + pad

    def at(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    marked = ticks(low, high)
    decimals = _decimals(marked)
    return Forest(
        task=comparisons[0].task,
        metric=comparisons[0].metric,
        dots=tuple(Dot(c, at(c.low), at(c.effect), at(c.high)) if comparable(c) else Dot(c) for c in comparisons),
        zero=at(0),
        band=(at(-margin), round(at(margin) - at(-margin), 3)),
        ticks=tuple(Tick(at(tick), words.signed(tick, decimals)) for tick in marked),
        margin=margin_of(shown),
    )


def rate_panels(evidence: Evidence, chosen: dict[tuple[str, str], tuple[float, bool]]) -> tuple[Panel, ...]:
    """Validation metric against learning rate, one panel a task that was tuned.

    The line of an arm is its confirmation's where it has one, and that of its search on another base is then faint. Of
    a search at rungs the line is that of the rungs; the runs that went on to their end are marks alone.

    Args:
        chosen: By (task, arm), the rate settled on and whether it lies at an edge.
    """
    panels = []
    for task in evidence.lock.study.tasks:
        records = [r for purpose in ("rung", "tune", "confirm") for r in evidence.of(purpose=purpose, task=task.name)]
        name = f"validation.{task.metric}"
        valued = [(r, r.measurements[name].value) for r in records if r.status == "ok" and name in r.measurements]
        if valued:
            failed = [r for r in records if r.status != "ok"]
            panels.append(_rate_panel(evidence, task.name, valued, failed, chosen))
    return tuple(panels)


def _rate_panel(
    evidence: Evidence,
    task: str,
    valued: list[tuple[TrialRecord, float]],
    failed: list[TrialRecord],
    chosen: dict[tuple[str, str], tuple[float, bool]],
) -> Panel:
    arms = [arm.name for arm in evidence.lock.study.arms]
    present = [arm for arm in arms if any(r.trial.arm.name == arm for r in [*(r for r, _ in valued), *failed])]
    settled = {arm: chosen[task, arm] for arm in present if (task, arm) in chosen}
    logs = [math.log10(r.trial.learning_rate) for r in [*(r for r, _ in valued), *failed]]
    logs += [math.log10(rate) for rate, _ in settled.values()]
    frame = Frame(padded(logs, least=0.5), padded([value for _, value in valued]))
    lines = []
    confirmed = {r.trial.arm.name for r, _ in valued if r.trial.purpose == "confirm"}
    search = "tune" if evidence.lock.study.tuning.exhaustive else "rung"
    for arm, purpose in [(arm, purpose) for arm in present for purpose in (search, "confirm")]:
        by_rate: dict[float, list[float]] = {}
        for record, value in valued:
            if (record.trial.arm.name, record.trial.purpose) == (arm, purpose):
                by_rate.setdefault(record.trial.learning_rate, []).append(value)
        points = [(math.log10(rate), fmean(values)) for rate, values in sorted(by_rate.items())]
        if points:
            lines.append(Line(frame.path(points), arms.index(arm), faint=arm in confirmed and purpose == search))
    name = evidence.lock.study.task(task).metric
    metric = words.metric(name) + ("" if metrics.find(name).higher_is_better else ", lower is better")
    picks = "; ".join(f"{words.clean(a, 40)} {words.rate(r)}" for a, (r, _) in settled.items()) or "none yet"
    return Panel(
        task=task,
        x_label="learning rate",
        y_label=f"validation {metric}",
        frame=frame,
        x_ticks=_rate_ticks(frame),
        y_ticks=value_ticks(frame),
        lines=tuple(lines),
        arms=tuple((arms.index(arm), arm) for arm in present),
        marks=tuple(_rate_mark(frame, arms, record, value) for record, value in valued),
        crosses=tuple(_cross(frame, arms, record, present.index(record.trial.arm.name)) for record in failed),
        chosen=tuple(
            Chosen(frame.across(math.log10(rate)), arms.index(arm), arm, words.rate(rate), edge)
            for arm, (rate, edge) in settled.items()
        ),
        alt=f"Validation {metric} against learning rate, {len(valued)} runs and {len(failed)} failed. Chosen: {picks}.",
    )


def _rate_mark(frame: Frame, arms: list[str], record: TrialRecord, value: float) -> Mark:
    trial = record.trial
    outcome = words.figure(value, 4) if record.status == "ok" else record.status
    partly = f", after {words.percent(trial.share)} of its steps" if trial.share else ""
    where = {"confirm": ", to confirm", "rung": partly}
    text = f"{words.clean(trial.arm.name, 40)}, rate {words.rate(trial.learning_rate)}, seed {trial.seed}"
    text += f"{where.get(trial.purpose, '')}: {outcome}"
    return Mark(frame.across(math.log10(trial.learning_rate)), frame.down(value), arms.index(trial.arm.name), text)


def _cross(frame: Frame, arms: list[str], record: TrialRecord, row: int) -> Mark:
    """A failed run, above the axis on its arm's own row, so that arms do not hide each other."""
    mark = _rate_mark(frame, arms, record, frame.y[0])
    return replace(mark, y=frame.bottom - 7 - 11 * (row % 6))


def _rate_ticks(frame: Frame) -> tuple[Tick, ...]:
    low, high = frame.x
    decades = [10.0**k for k in range(math.floor(low), math.ceil(high) + 1)]
    marked = [rate for decade in decades for rate in (decade, 3 * decade) if low <= math.log10(rate) <= high]
    if len(marked) > 6:
        marked = [rate for rate in decades if low <= math.log10(rate) <= high]
    return tuple(Tick(frame.across(math.log10(rate)), words.rate(rate)) for rate in marked)


def loss_panels(evidence: Evidence) -> tuple[Panel, ...]:
    """Training loss by step of the final runs, one panel a task that has curves."""
    panels = []
    for task in evidence.lock.study.tasks:
        records = evidence.of(purpose="final", task=task.name)
        drawn = [(r, points) for r in records if (points := thin(evidence.curves.get(r.trial.id, ())))]
        if drawn:
            panels.append(_loss_panel(evidence, task.name, task.kind, drawn))
    return tuple(panels)


def _loss_panel(evidence: Evidence, task: str, kind: str, drawn: list[tuple[TrialRecord, list]]) -> Panel:
    arms = [arm.name for arm in evidence.lock.study.arms]
    sound = [points for record, points in drawn if record.status == "ok"] or [points for _, points in drawn]
    losses = [loss for _, points in drawn for _, loss in points]
    steps = [step for _, points in drawn for step, _ in points]
    frame = Frame((0, max(steps)), padded([loss for points in sound for _, loss in points]))
    lines = [Line(frame.path(points), arms.index(r.trial.arm.name), faint=True) for r, points in drawn]
    present = [arm for arm in arms if any(r.trial.arm.name == arm for r, _ in drawn)]
    for arm in present:
        curves = [points for r, points in drawn if r.trial.arm.name == arm and r.status == "ok"]
        if curves:
            lines.append(Line(frame.path(_mean_curve(curves)), arms.index(arm), faint=False))
    unit = {"classify": "nats", "generate": "nats a token", "regress": "squared SD"}[kind]
    return Panel(
        task=task,
        x_label="optimiser step",
        y_label=f"training loss, {unit}",
        frame=frame,
        x_ticks=tuple(Tick(frame.across(at), words.number(at, 0)) for at in ticks(*frame.x) if at == int(at)),
        y_ticks=value_ticks(frame),
        lines=tuple(lines),
        arms=tuple((arms.index(arm), arm) for arm in present),
        alt=f"Training loss by optimiser step, {len(drawn)} final runs of {len(present)} arms, and each arm's mean.",
        clamped=max(losses) > frame.y[1],
    )


def thin(curve: Sequence[dict]) -> list[tuple[float, float]]:
    """Average a curve within at most 60 stretches of equal length; steps without a finite loss are left out."""
    points = [(row["step"], row["loss"]) for row in curve if row.get("loss") is not None and math.isfinite(row["loss"])]
    length = math.ceil(len(points) / BINS) or 1
    stretches = [points[i : i + length] for i in range(0, len(points), length)]
    return [(fmean(step for step, _ in s), fmean(loss for _, loss in s)) for s in stretches]


def _mean_curve(curves: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Average over seeds where every one of them has a point."""
    return [(column[0][0], fmean(loss for _, loss in column)) for column in zip(*curves, strict=False)]


def probe_bars(evidence: Evidence) -> tuple[Bars, ...]:
    """Cost by arm and task from solo probes, one group a quantity that was measured at all; bars begin at 0."""
    study = evidence.lock.study
    records = {(r.trial.arm.name, whole(r.trial.task)): r for r in evidence.of(purpose="probe")}
    groups = []
    for name, title in PROBES:
        found = {key: r.measurements[name] for key, r in records.items() if name in r.measurements}
        if found:
            longest = max(m.value for m in found.values()) or 1.0
            bars = [
                _bar(i, arm.name, task.name, records, found, longest)
                for task in study.tasks
                for i, arm in enumerate(study.arms)
            ]
            counts = sorted({m.n for m in found.values() if m.n})
            note = (
                f"median of {counts[0]}"
                if len(counts) == 1
                else f"median of {counts[0]} to {counts[-1]}"
                if counts
                else ""
            )
            groups.append(Bars(title, note, tuple(bars)))
    return tuple(groups)


def _bar(
    index: int,
    arm: str,
    task: str,
    records: dict[tuple[str, str], TrialRecord],
    found: dict[tuple[str, str], Measurement],
    longest: float,
) -> Bar:
    if (arm, task) in found:
        measured = found[arm, task]
        return Bar(index, arm, task, round(100 * measured.value / longest, 2), words.quantity(measured))
    record = records.get((arm, task))
    why = (
        "does not fit"
        if record and record.status == "infeasible"
        else "diverged"
        if record and record.status == "diverged"
        else "not measured"
    )
    return Bar(index, arm, task, None, why)


def padded(values: list[float], least: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or least / 2 or abs(high) / 2 or 1.0
    return low - pad, high + pad


def value_ticks(frame: Frame) -> tuple[Tick, ...]:
    marked = ticks(*frame.y)
    decimals = _decimals(marked)
    return tuple(Tick(frame.down(at), words.number(at, decimals)) for at in marked)


def _decimals(marked: Sequence[float]) -> int:
    """Decimals that tell neighbouring ticks apart."""
    return max(0, -math.floor(math.log10(marked[1] - marked[0]) + 1e-9)) if len(marked) > 1 else 2
