"""Devices that one may not have, what they cost by the hour, and free ones with their limits.

The figures lie beside this file in `devices.json` and `prices.json`; each names its source and the day on which it was
read there. Rates are makers' figures, which no program reaches. Data sheets are cited as public tables quote them; what
no public page or table confirmed says "from memory" in its source.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from tunetrial.core.errors import ConfigError
from tunetrial.core.money import Price, Source, given
from tunetrial.core.records import Record
from tunetrial.core.study import Hardware

GIB = 2**30
Dtype = Literal["fp32", "tf32", "fp16", "bf16", "int8"]

HERE = Path(__file__).parent
# Words of makers and drivers that tell no device from another: "NVIDIA GeForce RTX 4090" is "rtx4090".
IDLE_WORDS = ("nvidia", "geforce", "tesla", "quadro", "amd", "instinct", "intel(r)", "intel", "gpu")
SEVERAL = re.compile(r"(?P<count>[0-9]{1,9})\s*[x×]\s*(?P<device>.+)")
MOST_DEVICES = 1024
NEAREST, CLOSE = 3, 0.6  # names offered for one that is not known, and difflib's ratio that they reach


class Tier(Record):
    """A free machine: how many GPUs, and hours a session and a week; None where no limit is stated.

    It says nothing of whether one is to be had: the hosts promise no GPU.
    """

    name: str
    title: str
    count: int
    session_h: float
    week_h: float | None
    source: Source

    def sessions(self, hours: float) -> int:
        """Sessions, at least, that so many hours take."""
        return math.ceil(hours / self.session_h)

    def weeks(self, hours: float) -> int | None:
        """Weeks, at least, that so many hours take."""
        return None if self.week_h is None else math.ceil(hours / self.week_h)


class Device(Record):
    """A GPU or a class of CPUs.

    `memory_bytes` is what is sold; `usable_bytes` what the driver gives a process in all, CUDA's context included, None
    where the memory is the host's. `operations_per_s` counts multiplications and additions of dense matrix products,
    sums kept in fp32 (int8 in int32), None for a type that the hardware has no matrix unit for. `link_bytes_per_s` is
    the rate, one way, at which it reaches others of its kind in one machine, None where it is alone. `sources` has the
    names of these fields, and "fp32" to "int8".
    """

    name: str
    title: str
    kind: Literal["cuda", "xpu", "cpu"]
    memory_bytes: int | None
    usable_bytes: int | None
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float | None
    operations_per_s: Mapping[Dtype, float | None]
    compute_capability: str | None
    power_w: float | None
    sources: Mapping[str, Source]
    note: str | None = None
    tier: Tier | None = None


def device(name: str) -> Device:
    """The device of this name, however it is written; a free tier's name gives its device with the tier's limits.

    Raises:
        ConfigError: It is not known; the message has the nearest names.
    """
    found = find(name)
    if found is None:
        names = _names()
        near = difflib.get_close_matches(_plain(name), names, n=2 * NEAREST, cutoff=CLOSE)
        mean = ", ".join(list(dict.fromkeys(names[each] for each in near))[:NEAREST])
        remedy = f"did you mean {mean}?" if mean else f"known are {', '.join([*devices(), *_tiers()])}"
        raise ConfigError(f"gpu: not known, got {name!r}; {remedy}")
    return found


def several(name: str) -> tuple[int, Device]:
    """How many devices of which kind, as in "4xa100-80"; one where no number is written.

    Raises:
        ConfigError: As `device`; or the number is none of 1 to MOST_DEVICES, or there cannot be several in a machine.
    """
    written = SEVERAL.fullmatch(name.strip().lower())
    if written is None or find(name) is not None:
        return 1, device(name)
    count, found = int(written["count"]), device(written["device"])
    if not 1 <= count <= MOST_DEVICES:
        raise ConfigError(f"gpu: not a number of devices, got {name!r}; give 1 to {MOST_DEVICES}, as in 4xa100-80")
    if found.tier or (count > 1 and found.link_bytes_per_s is None):
        raise ConfigError(f"gpu: there are not several of these in a machine, got {name!r}; name one, or other GPUs")
    return count, found


def find(name: str) -> Device | None:
    """As `device`, but None for a name that is not known."""
    key = _names().get(_plain(name))
    if key is None or key in devices():
        return devices().get(key)
    tier = _tiers()[key]
    return devices()[_file("devices")["tiers"][key]["device"]].model_copy(update={"tier": tier})


@cache
def devices() -> Mapping[str, Device]:
    """All devices by name."""
    return {name: _device(name, row) for name, row in _file("devices")["devices"].items()}


def prices(of: Device) -> tuple[Price, ...]:
    """What an hour of the device costs on demand, the cheapest first; empty where no price is known.

    A machine of several is divided by their number, though it is only let as a whole. A free tier costs nothing.
    """
    if of.tier:
        free = {"kind": "dated default", "provider": of.tier.title, "what": "free tier", "source": of.tier.source}
        return (Price(usd=0, unit="GPU-hour", **free),)
    rows = (row for row in _file("prices")["gpus"] if row["device"] == of.name)
    return tuple(sorted((_gpu_price(row) for row in rows), key=lambda price: price.usd))


def storage_prices() -> tuple[Price, ...]:
    """What a GB costs a month, the cheapest first."""
    rows = _file("prices")["storage"]
    return tuple(sorted((_storage_price(row) for row in rows), key=lambda price: price.usd))


def storage_rate() -> Price | None:
    """The price of a GB-month to reckon with: the middle one of those known."""
    known = storage_prices()
    return known[len(known) // 2] if known else None


def rate(of: Device, hardware: Hardware) -> Price:
    """The price to reckon with: the user's; else the middle one of those known, of two the dearer.

    Those from memory count only where there are no others. Show the price: it carries provider, date and source.

    Raises:
        ConfigError: The user gives none and none is known.
    """
    if hardware.usd_per_hour is not None:
        return given(hardware.usd_per_hour, "GPU-hour", where="hardware.usd_per_hour")
    known = prices(of)
    rows = [price for price in known if price.source.confirmed] or known
    if not rows:
        raise ConfigError(f"price: none is known for an hour, got {of.name}; give hardware.usd_per_hour")
    return rows[len(rows) // 2]


def _device(name: str, row: Mapping) -> Device:
    sources, values = {}, {}
    scales = {"nominal_gib": GIB, "usable_gib": GIB, "bandwidth_gb_per_s": 1e9, "link_gb_per_s": 1e9, "power_w": 1}
    fields = ("memory_bytes", "usable_bytes", "bandwidth_bytes_per_s", "link_bytes_per_s", "power_w")
    for (key, scale), field in zip(scales.items(), fields, strict=True):
        value, source = row[key]
        values[field] = value if value is None else value * scale
        sources[field] = source
    for key in ("memory_bytes", "usable_bytes"):
        values[key] = values[key] and int(values[key])
    values["compute_capability"], sources["compute_capability"] = row["compute_capability"]
    rates = {dtype: value and value * 1e12 for dtype, (value, _) in row["tera_per_s"].items()}
    sources |= {dtype: source for dtype, (_, source) in row["tera_per_s"].items()}
    said = {field: Source(**_file("devices")["sources"][source]) for field, source in sources.items()}
    text = {key: row.get(key) for key in ("title", "kind", "note")}
    return Device(name=name, operations_per_s=rates, sources=said, **values, **text)


@cache
def _tiers() -> Mapping[str, Tier]:
    found = {}
    for name, row in _file("devices")["tiers"].items():
        limits = {key: row[key] for key in ("title", "count", "session_h", "week_h")}
        found[name] = Tier(name=name, source=Source(**_file("devices")["sources"][row["source"]]), **limits)
    return found


def _gpu_price(row: Mapping) -> Price:
    source = Source(**_file("prices")["sources"][row["source"]])
    text = {key: row[key] for key in ("provider", "what", "region")}
    usd = row["usd_per_hour"] / row["gpus"]
    return Price(usd=usd, unit="GPU-hour", kind="dated default", source=source, **text)


def _storage_price(row: Mapping) -> Price:
    source = Source(**_file("prices")["sources"][row["source"]])
    text = {key: row[key] for key in ("provider", "what", "region", "gb_bytes")}
    return Price(usd=row["usd_per_gb_month"], unit="GB-month", kind="dated default", source=source, **text)


@cache
def _names() -> Mapping[str, str]:
    """Every way of writing a device or a tier, plain, and the name it stands for."""
    rows = _file("devices")
    written = {name: (name, row["title"], *row["also"]) for name, row in rows["devices"].items()}
    written |= {name: (name,) for name in rows["tiers"]}
    return {_plain(way): name for name, ways in written.items() for way in ways}


def _plain(name: str) -> str:
    words = (word for word in name.lower().split() if word not in IDLE_WORDS)
    return "".join(c for word in words for c in word if c.isalnum())


@cache
def _file(name: str) -> dict:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
