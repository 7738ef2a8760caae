"""Numbers and strings as the report writes them: true minus signs, thin spaces, units, text that stays text."""

import math
import re
import unicodedata

from tunetrial.analysis.metrics import METRICS
from tunetrial.core.evidence import Measurement
from tunetrial.core.findings import Ends
from tunetrial.core.spans import span

MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"
BINARY = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
BYTES = {"bytes": 1, "B": 1, **dict(BINARY)}

UNITLESS = frozenset(("", "1", "share", "fraction", "coefficient", "F1", "correlation", "target units"))
CRITERIA = {
    "quality": "Quality",
    "peak_gib": "Peak memory",
    "storage_mib": "Saved artifact",
    "train_s": "One training run",
    "cost_usd": "Price of one run",
    "latency_ms": "Latency, one example",
    "forgetting_nats": "Forgetting",
    "year_usd": "First year",
    "preference": "Preferred by people",
    "agreement": "Same answer with another seed",
    "energy_wh": "Energy of one run",
}


def clean(text: object, limit: int = 300) -> str:
    """Make one line of printable text of at most `limit` characters; the middle of a longer one becomes an ellipsis.

    Control characters, bidirectional overrides and lone surrogates become U+FFFD, white space one space.
    """
    line = " ".join(str(text).split())
    line = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in _BIDI else c for c in line)
    if len(line) <= limit:
        return line
    return line[: limit - limit // 3 - 1].rstrip() + "…" + line[-(limit // 3) :].lstrip()


def prose(text: object, limit: int = 400) -> str:
    """A sentence from elsewhere, with true minus signs before its numbers."""
    return re.sub(r"(?<![\w.-])-(?=\d)", MINUS, clean(text, limit))


def name(text: object) -> str:
    """Write a user's name for something inside a sentence; one that runs right to left is isolated from it."""
    short = clean(text, 60)
    turns = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in short)
    return f"\u2068{short}\u2069" if turns else short


def tie(text: str) -> str:
    """Keep an interval, or a metric's name, on one line of the page."""
    return text.replace("…", "\u2060…\u2060").replace("macro-F1", "macro\u2011F1")


_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def metric(name: str) -> str:
    """The usual spelling of a metric's name."""
    return METRICS[name].title if name in METRICS else clean(name, 40)


def criterion(name: str) -> str:
    """The report's heading of a criterion."""
    return CRITERIA.get(name, clean(name, 40))


def number(value: float, decimals: int) -> str:
    """Write with so many decimals, thin spaces between thousands from five digits on."""
    text = f"{abs(value):.{decimals}f}"
    whole, _, rest = text.partition(".")
    if len(whole) > 4:
        whole = f"{int(whole):,}".replace(",", THIN)
    sign = MINUS if value < 0 and float(text) else ""
    return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"


def signed(value: float, decimals: int) -> str:
    """Write with its sign; a value that rounds to zero has none."""
    text = number(value, decimals)
    return f"+{text}" if value > 0 and float(f"{value:.{decimals}f}") else text


def decimals_for(margin: float | None) -> int:
    """Decimals for effects: one more than the margin's leading digit needs; three where it is not known."""
    return 3 if margin is None else max(0, 1 - math.floor(math.log10(margin)))


def figure(value: float, digits: int = 3) -> str:
    """Write with so many significant digits; whole numbers from 1000 on keep all of theirs."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude <= 14:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    return number(value, max(0, digits - 1 - magnitude))


def plain(value: float) -> str:
    """Write a number that the user set, as short as it was set."""
    text = f"{value:.10g}"
    return text.replace("-", MINUS) if "e" in text else number(value, len(text.partition(".")[2]))


def rate(value: float) -> str:
    """Write a learning rate the way it is typed: 3e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def margin(asked: float | str) -> str:
    """Write a margin as the study asks for it: a number, or a share of the gain."""
    return asked.replace("%", f"{THIN}%") if isinstance(asked, str) else plain(asked)


def percent(level: float) -> str:
    """Write a level in (0, 1) with at most one decimal."""
    return f"{100 * level:.1f}".removesuffix(".0") + f"{THIN}%"


def size(value_bytes: float) -> str:
    """Write bytes in the largest binary unit that leaves 0.1 or more."""
    for unit, scale in BINARY:
        if value_bytes >= 0.1 * scale:
            return f"{_measured(value_bytes / scale)}{THIN}{unit}"
    return f"{number(value_bytes, 0)}{THIN}B"


def duration(seconds: float) -> str:
    """Write a time, with thin spaces."""
    return span(seconds, space=THIN)


def dollars(usd: float) -> str:
    """Write a price: cents from a dollar on, two significant digits below."""
    return f"${number(usd, 2)}" if usd >= 1 or usd == 0 else f"${figure(usd, 2)}"


def quantity(measured: Measurement) -> str:
    """Write a measurement in the unit that reads best."""
    value, unit = measured.value, measured.unit
    if unit in BYTES:
        return size(value * BYTES[unit])
    if unit == "s":
        return duration(value)
    if unit.lower() in ("usd", "$"):
        return dollars(value)
    if unit in UNITLESS:
        return figure(value)
    return f"{_measured(value)}{THIN}{clean(unit, 20)}"


def _measured(value: float) -> str:
    return number(value, 2) if 0.1 <= abs(value) < 1 else figure(value)


def decimals_of(found: Ends) -> int:
    """So many that two significant digits of the interval's length, or of the value alone, are told."""
    value, low, high = found
    length = abs(value) if low is None or high is None else high - low
    return min(max(decimals_for(length or None), 2), 6)


def ends(found: Ends, *, sign: bool = False) -> str:
    """Write a value and its interval, if it has one."""
    value, low, high = found
    decimals, write = decimals_of(found), signed if sign else number
    interval = "" if low is None or high is None else f" ({write(low, decimals)} to {write(high, decimals)})"
    return f"{write(value, decimals)}{interval}"
