"""A model on devices that need not be there: the counting, fitting and pricing behind `tunetrial plan --model`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tunetrial import methods, models
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.speed import exactly
from tunetrial.core.study import Arm, Controls, Hardware
from tunetrial.core.work import Traced
from tunetrial.models import Described, ModelShape
from tunetrial.plan import catalogue, shards
from tunetrial.plan.catalogue import Device, Price
from tunetrial.plan.fit import Ask, Fit, Share, fit, sharded_fit
from tunetrial.plan.forecast import Cell, Forecast
from tunetrial.plan.noise import prior_of
from tunetrial.plan.power import Power, power_of
from tunetrial.plan.speed import assumed, seconds

MOST, SEEDS = 10**7, 5
SHARDED = "states sharded over {} GPUs, needs are of each; for information, since tunetrial trains on one GPU"
AS_THEY_LIE = (8, 0)  # from this compute capability on rows are not padded, and passes are recorded


def forecast(
    model: str,
    asked: Sequence[str] = ("full", "lora", "qlora"),
    devices: Sequence[str] = (),
    *,
    step: str = "16x512",
    rows: int | None = None,
    test: str | None = None,
    usd_per_hour: float | None = None,
    root: Path | None = None,
) -> Forecast:
    """Say whether methods fit devices, how long a step and a run take, what that costs, and what it could show.

    Every row is taken to have all tokens and all of them answered, or of an encoder one of two labels; a study's own
    plan goes by its rows.

    Args:
        model, devices: As `models.described` and `catalogue.several` read them.
        asked: Methods; those of the LoRA family on all linear layers, with rank 16 or as in "lora:8".
        step: Rows of an optimiser step × tokens of a row.
        rows: How many rows are trained on, all epochs together, for the time of a run.
        test: Test rows and the smallest difference in accuracy that matters, for five seeds and the usual prior.
        usd_per_hour: Else what TUNETRIAL_USD_PER_HOUR says, else what the catalogue has.
    Raises:
        ModelError, ConfigError, SpecError, EvidenceError: The model, a device or a method is not known, or a number
            makes no sense.
    """
    asked, devices = _named("--method", asked), _named("--gpu", devices)
    batch, tokens = _numbers("--step", step, "x", "rows x tokens, as in 16x512")
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: not a number of rows, got {rows}; give 1 or more")
    if usd_per_hour is None:
        usd_per_hour = _price_given(os.environ.get("TUNETRIAL_USD_PER_HOUR"))
    found = models.described(model, root)
    remarks = [found.limit] if found.limit else []
    told = {
        "model": found.name,
        "source": found.source,
        "step": f"{batch} rows of {tokens} tokens",
        "power": None if test is None else _power(test),
    }
    if found.shape is None:
        remarks.append(f"its weights lie between these bounds: {found.bound.why}")
        bound = found.bound.low, found.bound.high
        return Forecast(parameters=None, bound=bound, remarks=tuple(remarks), **told)
    if tokens > found.shape.context:
        remarks.append(f"rows cut at the model's context of {found.shape.context} tokens")
    arms, places = [_arm(name) for name in asked], {name: catalogue.several(name) for name in devices}
    rooms = {name: place.usable_bytes or place.memory_bytes for name, (_, place) in places.items()}
    remarks += [f"{name}: its memory is the host's, not known here" for name, room in rooms.items() if room is None]
    asked_of = {"tokens": min(tokens, found.shape.context), "batch": batch, "rows": rows, "usd_per_hour": usd_per_hour}
    cells = _cells(found, arms, places, rooms, **asked_of)
    sessions = {name: _limit(place) for name, (_, place) in places.items() if place.tier}
    remarks += [f"{name}: {SHARDED.format(number)}" for name, (number, _) in places.items() if number > 1]
    counted = {"parameters": found.shape.parameters, "cells": tuple(cells), "sessions": sessions}
    return Forecast(remarks=tuple(remarks), **counted, **told)


def _cells(
    found: Described,
    arms: Sequence[Arm],
    places: Mapping[str, tuple[int, Device]],
    rooms: Mapping[str, int | None],
    *,
    tokens: int,
    batch: int,
    rows: int | None,
    usd_per_hour: float | None,
) -> Iterator[Cell]:
    """Every arm on every device whose memory is known; what computes alike is counted once."""
    kept: dict[tuple, Traced] = {}
    share = _share(found.shape)
    for name, (number, place) in places.items():
        count = _counter(found.config, place, tokens=tokens, batch=batch, decoder=found.shape.decoder, kept=kept)
        step_of = {"kind": place.kind, "batch": batch, "count": count, "share": share}
        for arm in arms if rooms[name] is not None else ():
            if number > 1:
                fitted = sharded_fit(arm, name, number, rooms[name], **step_of)
            else:
                fitted = fit(arm, name, rooms[name], longest=tokens, **step_of)
            yield _cell(fitted, arm, place, count, shape=found.shape, batch=batch, rows=rows, usd_per_hour=usd_per_hour)


def _share(shape: ModelShape) -> Share:
    return lambda arm, traced, devices: shards.sharded(traced, _sharding(arm, shape), devices)


def _sharding(arm: Arm, shape: ModelShape) -> shards.Sharding:
    """As arms are counted: in 16 bits, since GPUs that are joined have no more, and with the outputs of `_counter`."""
    return shards.Sharding.of(arm, shape, compute_bytes=2, outputs=None if shape.decoder else 2)


def _cell(
    fitted: Fit,
    arm: Arm,
    place: Device,
    count: Callable[[Arm, Ask], Traced],
    *,
    shape: ModelShape,
    batch: int,
    rows: int | None,
    usd_per_hour: float | None,
) -> Cell:
    """Time and price of what fits, as the engine gets through."""
    told = {"fit": fitted, "precision": _precision(place)}
    if fitted.verdict == "does not fit":
        return Cell(**told)
    smaller = fitted.verdict in ("fits in smaller steps", "would fit sharded") and fitted.changes
    ask = fitted.changes[0].need.ask if smaller else fitted.need.ask
    step = count(arm, ask).phases["step"]
    try:
        step_s = seconds(step.work, assumed(place), recorded=capability(place) >= AS_THEY_LIE)
        if fitted.devices > 1:
            own = fitted.need.ask.micro_batch
            how = {"passes": -(-own // ask.micro_batch)}
            step_s = shards.seconds(step_s * exactly(own / batch), _sharding(arm, shape), fitted.devices, place, **how)
    except (EvidenceError, ConfigError) as error:
        return Cell(why=str(error), **told)
    steps = None if rows is None else -(-rows // batch)
    run_s = None if steps is None else step_s * exactly(steps)
    price = _price(place, usd_per_hour)
    usd = None if run_s is None or price is None else run_s * exactly(fitted.devices * price.usd / 3600)
    return Cell(step_s=step_s, run_s=run_s, usd=usd, price=None if usd is None else f"{place.name}: {price}", **told)


def _price(place: Device, usd_per_hour: float | None) -> Price | None:
    """The user's, or what the catalogue has; None where neither is known."""
    try:
        return catalogue.rate(place, Hardware(usd_per_hour=usd_per_hour))
    except ConfigError:
        return None


def _named(option: str, names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise ConfigError(f"{option}: names nothing, got {','.join(names)!r}; give at least one")
    return found


def _arm(name: str) -> Arm:
    """A method by name, one of the LoRA family with its rank."""
    method, _, rank = name.partition(":")
    if method not in ("lora", "qlora"):
        return Arm(name=name, method=name, settings=methods.settle(name, {}))
    settings = {"rank": _whole("--method", rank, "a rank, as in lora:8") if rank else 16}
    return Arm(name=name, method=method, settings=methods.settle(method, settings))


def _numbers(option: str, text: str, between: str, like: str) -> tuple[int, int]:
    first, _, second = text.lower().replace("×", "x").partition(between)
    return _whole(option, first, like), _whole(option, second, like)


def _whole(option: str, text: str, like: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MOST:
        raise ConfigError(f"{option}: not a number from 1 to {MOST:,}, got {text.strip()[:20]!r}; give {like}")
    return value


def _price_given(usd_per_hour: str | None) -> float | None:
    if usd_per_hour is None:
        return None
    try:
        usd = float(usd_per_hour)
    except ValueError:
        usd = float("nan")
    return catalogue.given(usd, "GPU-hour", where="TUNETRIAL_USD_PER_HOUR").usd


def _power(test: str) -> Power:
    rows, _, margin = test.partition(":")
    like = "rows:margin, as in 277:0.01"
    count = _whole("--test", rows, like)
    try:
        smallest = float(margin or 0.01)
    except ValueError:
        raise ConfigError(f"--test: not a margin, got {margin[:20]!r}; give {like}") from None
    return power_of("accuracy", smallest, count, SEEDS, prior_of("accuracy"))


def capability(place: Device) -> tuple[int, int]:
    """A CUDA device's; the oldest there is where none is known."""
    if place.compute_capability is None:
        return (0, 0)
    major, minor = place.compute_capability.split(".")
    return int(major), int(minor)


def _precision(place: Device) -> str:
    """bf16 where the hardware computes it, else fp16; fp32 on a CPU without units for bf16."""
    if place.operations_per_s.get("bf16") is not None:
        return "bf16"
    return "fp16" if place.kind == "cuda" else "fp32"


def _counter(
    config: Mapping[str, object],
    place: Device,
    *,
    tokens: int,
    batch: int,
    decoder: bool,
    kept: dict[tuple, Traced],
) -> Callable[[Arm, Ask], Traced]:
    """Counts arms on a device, each asked so once; `kept` is shared by devices that compute alike."""
    from tunetrial.engine.trace import trace

    where = {"device": "cuda", "capability": capability(place)} if place.kind == "cuda" else {"device": "cpu"}
    precision = _precision(place)

    def count(arm: Arm, ask: Ask) -> Traced:
        key = arm.model_dump_json(exclude={"name"}), ask, precision, *where.values()
        if key not in kept:
            length = min(tokens, ask.most_tokens or tokens)
            controls = Controls(
                base_fingerprint="none",
                precision=precision,
                **({"readout": "text", "max_new_tokens": 1} if decoder else {"readout": "head"}),
                epochs=1,
                batch_examples=batch,
                max_tokens=length,
            )
            kept[key] = trace(
                config,
                arm,
                controls,
                lengths=[length] * batch,
                micro_batch=ask.micro_batch,
                recomputes=ask.recomputes,
                training_alone=True,
                kind="generate" if decoder else "classify",
                outputs=1 if decoder else 2,
                **where,
            )
        return kept[key]

    return count


def _limit(place: Device) -> str:
    tier = place.tier
    week = "" if tier.week_h is None else f", {tier.week_h:g} h a week"
    count = "" if tier.count == 1 else f", {tier.count} GPUs of which one is reckoned with"
    return f"{tier.title}: {place.title}{count}, sessions of at most {tier.session_h:g} h{week} ({tier.source})"
