"""Spans of time in words: the one way in which plans, progress and reports write them."""

UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def span(seconds: float, *, space: str = " ") -> str:
    """Write a time: milliseconds below a second, minutes from two on, hours and minutes from two hours on, days from
    three on; nobody waits for less than a millisecond."""
    if 0 < seconds < 0.001:
        return f"under 1{space}ms"
    if seconds < 1:
        return f"{_digits(1000 * seconds)}{space}ms" if seconds else f"0{space}s"
    if seconds < 120:
        return f"{_digits(seconds)}{space}s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}{space}min"
    if minutes < 3 * 1440:
        return f"{minutes // 60}{space}h {minutes % 60:02d}{space}min"
    return f"{_digits(seconds / 86_400)}{space}days"


def between(low: float, high: float) -> str:
    """Write a range of time in the unit that its middle reads best in: "2.7–6.7 min"."""
    middle = (low * high) ** 0.5
    size, unit = next(((size, unit) for size, unit in UNITS if middle >= size), (1e-3, "ms"))
    ends = [f"{end / size:.0f}" if end / size >= 10 else f"{end / size:.2g}" for end in (low, high)]
    return f"{ends[0] if ends[0] == ends[1] else '–'.join(ends)} {unit}"


def _digits(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
