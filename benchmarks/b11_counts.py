"""What the tiny real studies of B11 say together; an interval of a share is Clopper and Pearson's, of a mean Student's
over studies, both of 95 %."""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

ARMS = ("full", "lora")


def count(rows: Sequence[dict], *, margin: float) -> dict:
    """Steps, distance of rates, what the rates of the rungs lose, and whether the arms stand as at the grid's rates.

    `near` are arms whose two rates are at most a step of the grid apart, `apart` those of which the grid's own two
    seeds choose so. `lost` is accuracy on further seeds at the grid's rates less that at the rungs', the mean of both
    arms, and `expected` the loss that the searches at rungs allow for. `away` is how many decades either rate lies
    above the top of a parabola through the grid's whole runs. Rankings are counted among studies whose arms
    differ by the margin at the grid's rates; `turned` are those whose arms differ by it the other way round at the
    rungs'. A study of which a judged run diverged has neither.
    """
    pairs = [(row[f"grid, {arm}"], row[f"rungs, {arm}"]) for row in rows for arm in ARMS]
    found = [(grid, rungs) for grid, rungs in pairs if rungs["rate"]]
    away = [[math.log10(one["rate"] / grid["top"]) for one in (grid, rungs)] for grid, rungs in found]
    ratios = [rungs["steps"] / grid["steps"] for grid, rungs in pairs]
    ways = ("grid", "rungs")
    judged = [row for row in rows if None not in [mean(row, way, arm) for way in ways for arm in ARMS]]
    lost = [statistics.fmean(mean(row, "grid", arm) - mean(row, "rungs", arm) for arm in ARMS) for row in judged]
    gaps = [[mean(row, way, "lora") - mean(row, way, "full") for way in ways] for row in judged]
    clear = [(grid, rungs) for grid, rungs in gaps if abs(grid) >= margin]
    moved = [grid["moved"] for grid, _ in pairs]
    by_study = [statistics.fmean(row[f"grid, {arm}"]["moved"] for arm in ARMS) for row in rows]
    expected = [rungs["expected"] for _, rungs in pairs if rungs["expected"] is not None]
    return {
        "studies": len(rows),
        "steps": {"mean": tidy(statistics.fmean(ratios)), "least": tidy(min(ratios)), "most": tidy(max(ratios))},
        "near": share([near(math.log10(rungs["rate"] / grid["rate"])) for grid, rungs in found]),
        "apart": share([near(grid["apart"]) for grid, _ in pairs]),
        "lost": interval(lost),
        "ranking": share([grid * rungs > 0 for grid, rungs in clear]),
        "turned": sum(grid * rungs < 0 and abs(rungs) >= margin for grid, rungs in clear),
        "expected": tidy(statistics.fmean(expected)),
        "away": {
            way: {"mean": tidy(statistics.fmean(x)), "rms": tidy(rms(x))}
            for way, x in zip(ways, zip(*away, strict=True), strict=True)
        },
        "moved": interval(by_study) | {"rms": tidy(rms(moved)), "of": len(moved)},
        "accuracy": tidy(statistics.fmean(mean(row, "grid", arm) for row in judged for arm in ARMS)),
    }


def near(decades: float) -> bool:
    """At most half a decade; rates have three digits."""
    return abs(decades) <= 0.5 + 5e-3


def rms(values: Sequence[float]) -> float:
    return statistics.fmean(x * x for x in values) ** 0.5


def mean(row: dict, way: str, arm: str) -> float | None:
    scores = row[f"{way}, {arm}"]["judged"]
    return None if not scores or None in scores else statistics.fmean(scores)


def share(hits: Sequence[bool]) -> dict:
    ends = stats.binomtest(sum(hits), len(hits)).proportion_ci()
    return {"hits": sum(hits), "of": len(hits), "low": tidy(ends.low), "high": tidy(ends.high)}


def interval(values: Sequence[float]) -> dict:
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    middle = statistics.fmean(values)
    return {"mean": tidy(middle), "low": tidy(middle - half), "high": tidy(middle + half)}


def tidy(value: float) -> float:
    return round(float(value), 4)


def said(made: dict) -> str:
    """The rows of the table of benchmarks/README.md."""
    steps, lost, moved = made["steps"], made["lost"], made["moved"]
    grid, rungs = (made["away"][way] for way in ("grid", "rungs"))
    return "\n".join(
        [
            f"| steps of tuning against the grid | {steps['mean']:.0%} ({steps['least']:.0%} to {steps['most']:.0%}) |",
            f"| rate within a step of the grid's | {of(made['near'])} |",
            f"| the grid's own two seeds within a step of each other | {of(made['apart'])} |",
            f"| decades above the top of a parabola through the grid's runs | {rungs['mean']:+.2f}, root mean square "
            f"{rungs['rms']:.2f}; the grid's best mean {grid['mean']:+.2f}, {grid['rms']:.2f} |",
            f"| accuracy lost against the grid's rates, further seeds | {lost['mean']:.3f} "
            f"({lost['low']:.3f} to {lost['high']:.3f}) of {made['accuracy']:.3f} |",
            f"| loss that the search at rungs expects of its rate, the mean | {made['expected']:.3f} |",
            f"| ranking as at the grid's rates, where arms differ by the margin there | {of(made['ranking'])} |",
            f"| … of these, the other way round by the margin | {made['turned']} |",
            f"| how far the best rate moves from the rung to the end | {moved['mean']:+.2f} decades "
            f"({moved['low']:+.2f} to {moved['high']:+.2f}), root mean square {moved['rms']:.2f}, {moved['of']} arms |",
        ]
    )


def of(found: dict) -> str:
    return f"{found['hits']} of {found['of']} ({found['low']:.0%} to {found['high']:.0%})"
