"""Numbers as people write them: "17 GB", "~56–84 GB", "99.6 %", "$10,247", "3x", "26.01 ± 0.18 ms", "<3%", "4K".

A number is known to half of its last written digit; after "~" trailing zeros are not written digits, and whole numbers
of things that are counted ("22 layers") are exact. Bytes, seconds,
dollars and degrees are units that do not mix; anything else that is counted (weights, steps, GPUs) has no unit. GB are
10**9 bytes, a month is 730 hours, B alone is a billion.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Self

Dimensions = tuple[int, int, int, int]  # exponents of bytes, seconds, dollars, degrees
NONE: Dimensions = (0, 0, 0, 0)
_BYTES, _SECONDS, _USD, _DEGREES = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)
_HOUR = 3600.0
COUNTED = ("parameters", "params", "weights", "models", "steps", "examples", "samples", "rows", "layers", "epochs")
COUNTED += ("request", "requests", "token", "tokens", "seeds", "runs", "tasks", "methods", "variants")
_UNITS: dict[str, tuple[float, Dimensions]] = {
    **{f"{prefix}B": (1000.0**power, _BYTES) for power, prefix in enumerate("KMGTP", 1)},
    **{f"{prefix}iB": (1024.0**power, _BYTES) for power, prefix in enumerate("KMGTP", 1)},
    **dict.fromkeys(("byte", "bytes"), (1.0, _BYTES)),
    **dict.fromkeys(("bit", "bits"), (0.125, _BYTES)),
    "kB": (1e3, _BYTES),
    "us": (1e-6, _SECONDS),
    "ms": (1e-3, _SECONDS),
    **dict.fromkeys(("s", "sec", "second", "seconds"), (1.0, _SECONDS)),
    **dict.fromkeys(("min", "minute", "minutes"), (60.0, _SECONDS)),
    **dict.fromkeys(("h", "hour", "hours"), (_HOUR, _SECONDS)),
    **dict.fromkeys(("day", "days"), (24 * _HOUR, _SECONDS)),
    **dict.fromkeys(("week", "weeks"), (168 * _HOUR, _SECONDS)),
    **dict.fromkeys(("month", "months"), (730 * _HOUR, _SECONDS)),
    **dict.fromkeys(("year", "years"), (8760 * _HOUR, _SECONDS)),
    **dict.fromkeys(("USD", "dollar", "dollars"), (1.0, _USD)),
    **dict.fromkeys(("deg", "°", "degrees"), (1.0, _DEGREES)),
    "%": (0.01, NONE),
    **dict.fromkeys(("pt", "points"), (1.0, NONE)),
    **dict.fromkeys(("x", "×", "times"), (1.0, NONE)),
    **dict.fromkeys(("req", "GPU", "engineer"), (1.0, NONE)),
}
_UNITS |= dict.fromkeys(COUNTED, (1.0, NONE))
_TIMES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "Mi": 2.0**20}
_TIMES |= {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_FIGURE = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?|\.\d+"
_MANY = r"(?:\s?(?:thousand|million|billion|trillion|Mi|[kKMBT])(?![A-Za-z]))?"
_RELATION = r"<=|>=|≤|≥|<|>|=|~|≈|about |nearly |under |over |up to |at least |at most "
_UNIT = r"\s?(?:%|°|×|[A-Za-z]+)(?:[-·/][A-Za-z]+)*"
SAID = re.compile(
    rf"(?P<relation>{_RELATION})?\s*(?P<sign>[+−-])?(?P<dollar>\$)?(?P<low>{_FIGURE})(?P<low_many>{_MANY})"
    rf"(?:\s?(?:-|–|—|to)\s?[~≈]?(?P<minus>[−-])?\$?(?P<high>{_FIGURE})(?P<high_many>{_MANY}))?(?P<more>\+(?!\d))?"
    rf"(?P<unit>{_UNIT})?(?:\s?±\s?(?P<spread>{_FIGURE})(?P<spread_unit>{_UNIT})?)?"
)
_BOUNDS = {"<": "<", "under ": "<", "up to ": "<=", "at most ": "<=", "<=": "<=", "≤": "<="}
_BOUNDS |= {">": ">", "over ": ">", "at least ": ">=", ">=": ">=", "≥": ">="}


@dataclass(frozen=True)
class Quantity:
    """What lies between two ends, in bytes, seconds, dollars, degrees and their products; arithmetic is of intervals.

    Raises:
        ValueError: Units do not go together, a divisor may be 0, or a result is not finite.
    """

    low: float
    high: float
    dimensions: Dimensions = NONE

    @classmethod
    def of(cls, *ends: float, dimensions: Dimensions = NONE) -> Self:
        if not all(math.isfinite(end) for end in ends):
            raise ValueError("the result is not a finite number")
        return cls(min(ends), max(ends), dimensions)

    def __neg__(self) -> Self:
        return replace(self, low=-self.high, high=-self.low)

    def __add__(self, other: Self) -> Self:
        self.same(other)
        return self.of(self.low + other.low, self.high + other.high, dimensions=self.dimensions)

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __mul__(self, other: Self) -> Self:
        products = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return self.of(*products, dimensions=self._joined(other, 1))

    def __truediv__(self, other: Self) -> Self:
        if other.low <= 0 <= other.high:
            raise ValueError("the divisor may be 0")
        ratios = [a / b for a in (self.low, self.high) for b in (other.low, other.high)]
        return self.of(*ratios, dimensions=self._joined(other, -1))

    def __pow__(self, other: Self) -> Self:
        power = other.low
        if other.dimensions != NONE or other.low != other.high or power != int(power) or not 0 <= power <= 12:
            raise ValueError("an exponent must be a whole number from 0 to 12")
        whole = int(power)
        ends = [self.low**whole, self.high**whole] + ([0.0] if self.low < 0 < self.high and whole % 2 == 0 else [])
        return self.of(*ends, dimensions=tuple(whole * part for part in self.dimensions))

    def same(self, other: Self) -> None:
        """Refuse what has another unit."""
        if self.dimensions != other.dimensions:
            raise ValueError(f"{unit_of(self.dimensions)} and {unit_of(other.dimensions)} do not go together")

    def _joined(self, other: Self, sign: int) -> Dimensions:
        return tuple(a + sign * b for a, b in zip(self.dimensions, other.dimensions, strict=True))


@dataclass(frozen=True)
class Said:
    """A number as written: its ends, how far each may be rounded, and whether it is a bound ("<", ">=")."""

    text: str
    value: Quantity
    slack: tuple[float, float]
    relation: str
    unit: str
    scale: float
    spread: Quantity | None = None

    @property
    def rounded(self) -> Quantity:
        """All that is written so."""
        return replace(self.value, low=self.value.low - self.slack[0], high=self.value.high + self.slack[1])

    @property
    def binary(self) -> Self | None:
        """The same with MB read as MiB, as many write it; None of other units."""
        power = "KMGTP".find(self.unit[:1].upper()) + 1
        if not re.fullmatch("[kKMGTP]B", self.unit):
            return None
        by = 1.024**power
        value = replace(self.value, low=self.value.low * by, high=self.value.high * by)
        return replace(self, value=value, slack=(self.slack[0] * by, self.slack[1] * by))

    def show(self, found: Quantity) -> str:
        """A quantity in the unit of what was said."""
        ends = [end / self.scale for end in (found.low, found.high)]
        unit = f" {self.unit}" if self.unit else ""
        low, high = (figure(end) for end in ends)
        return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def read(text: str | int | float) -> Said:
    """Read a number as written, all of the text.

    Raises:
        ValueError: It is no such number, or its unit is not known.
    """
    written = f"{text}" if isinstance(text, str) else repr(text)
    match = SAID.fullmatch(written.strip())
    if match is None:
        raise ValueError(f"must be a number with a unit, got {written[:60]!r}; write it as in '17 GB', '3x' or '2-5 %'")
    return said_of(match)


def said_of(match: re.Match[str]) -> Said:
    """What a match of `SAID` says.

    Raises:
        ValueError: Its unit is not known, or it is too large.
    """
    part = match.groupdict()
    name = (part["unit"] or part["spread_unit"] or "").strip().replace("·", "-")
    name = f"USD{name}" if part["dollar"] else name
    scale, dimensions = unit(name)
    relation = part["relation"] or ""
    rough = relation in ("~", "≈", "about ", "nearly ")
    lows = _figure(part["low"], part["low_many"] or (part["high_many"] if part["high"] else ""), rough)
    highs = _figure(part["high"], part["high_many"], rough) if part["high"] else lows
    if name in COUNTED and not rough and not (part["low_many"] or part["high_many"]):
        lows, highs = ((number, 0.0 if number == int(number) else half) for number, half in (lows, highs))
    low = -lows[0] * scale if part["sign"] in ("-", "−") else lows[0] * scale
    high = low if not part["high"] else -highs[0] * scale if part["minus"] else highs[0] * scale
    low, high, slack = (low, high, (lows[1], highs[1])) if low <= high else (high, low, (highs[1], lows[1]))
    bound = _BOUNDS.get(relation, ">=" if part["more"] else "=")
    spread = None
    if part["spread"]:
        spread = Quantity.of(_figure(part["spread"], "", False)[0] * scale, dimensions=dimensions)
    value = Quantity.of(low, high, dimensions=dimensions)
    ends = (slack[0] * scale, slack[1] * scale)
    return Said(match[0].strip(), value, ends, bound, name, scale, spread)


def unit(name: str) -> tuple[float, Dimensions]:
    """What a unit is in bytes, seconds and dollars: `GB-month`, `USD/GB-month`, `req/s`; after a slash all divides.

    Raises:
        ValueError: It is not known.
    """
    scale, dimensions, sign = 1.0, NONE, 1
    for mark, part in re.findall(r"([-/]?)([^-/]+)", name):
        if part not in _UNITS:
            raise ValueError(f"must have a known unit, got {name!r}; use one such as GB, h, USD/GB-month, % or x")
        sign = -1 if mark == "/" else sign
        size, own = _UNITS[part]
        scale *= size**sign
        dimensions = tuple(a + sign * b for a, b in zip(dimensions, own, strict=True))
    return scale, dimensions


def unit_of(dimensions: Dimensions) -> str:
    """Dimensions in words: `bytes·s`, `USD/s`."""
    names = ("bytes", "s", "USD", "degrees")
    over = [name for name, power in zip(names, dimensions, strict=True) for _ in range(power)]
    under = [name for name, power in zip(names, dimensions, strict=True) for _ in range(-power)]
    if not over and not under:
        return "a plain number"
    return "·".join(over or ["1"]) + "".join(f"/{name}" for name in under)


def figure(value: float) -> str:
    """A number in at most six digits, whole ones in full."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e15:
        digits = max(0, 5 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{min(digits, 6)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.4g}"


def _figure(text: str, many: str, rough: bool) -> tuple[float, float]:
    """A written number and half of its last digit."""
    plain, _, power = text.replace(",", "").lower().partition("e")
    times = _TIMES[(many or "").strip()] * float(f"1e{power or 0}")
    decimals = len(plain.partition(".")[2])
    zeros = len(plain) - len(plain.rstrip("0")) if rough and not decimals and plain.strip("0") else 0
    value, half = float(plain) * times, 0.5 * 10.0 ** (zeros - decimals) * times
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {text[:40]!r}; write a smaller one")
    return value, half
