"""A model on devices that need not be there: the counting, fitting and pricing behind `tunetrial plan --model`."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tunetrial import methods, models
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.loading import load
from tunetrial.core.money import Price
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Controls, Hardware, Precision
from tunetrial.core.work import Traced
from tunetrial.models import Described, ModelShape
from tunetrial.plan import catalogue, shards
from tunetrial.plan.catalogue import Device
from tunetrial.plan.deployed import phases_of
from tunetrial.plan.fit import Ask, Fit, Share, fit, sharded_fit
from tunetrial.plan.forecast import Cell, Forecast
from tunetrial.plan.noise import prior_of
from tunetrial.plan.power import Power, power_of
from tunetrial.plan.speed import assumed, replays
from tunetrial.plan.timing import Gauge
from tunetrial.store import home
from tunetrial.trial import calibration
from tunetrial.trial.lengths import Steps, steps_of, whole

SEEDS, LABELS = 5, 2
HERE = "here"
AS_THEY_LIE = (8, 0)  # from this compute capability on rows are not padded
SHARDED = "states sharded over {} GPUs, needs are of each; for information, since tunetrial trains on one GPU"


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
    phases: bool = False,
) -> Forecast:
    """Say whether methods fit devices, how long a step and a run take, what that costs, and what it could show.

    All tokens of rows are taken to be answered, or of an encoder to have one of two labels; a study's own plan goes by
    its rows.

    Args:
        model, devices: As `models.described` and `catalogue.several` read them; "here" is this machine, once it was
            measured.
        asked: Methods; those of the LoRA family on all linear layers, with rank 16 or as in "lora:8".
        step: Rows of an optimiser step × tokens of a row, or × a file of the tokens of each row (`lengths.steps_of`).
        rows: How many rows are trained on, all epochs together, for the time of a run.
        test: Test rows and the smallest difference in accuracy that matters, for five seeds and the usual prior.
        phases: Count evaluation and what comes after training as well.
        usd_per_hour: Else what TUNETRIAL_USD_PER_HOUR says, else what the catalogue has.
    Raises:
        ModelError, ConfigError, SpecError, EvidenceError: The model, a device or a method is not known, or a number
            makes no sense.
    """
    asked, devices = named("--method", asked), named("--gpu", devices)
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: not a number of rows, got {rows}; give 1 or more")
    if usd_per_hour is None:
        usd_per_hour = price_given()
    found = models.described(model, root)
    remarks = [found.limit] if found.limit else []
    told = {
        "model": found.name,
        "source": found.source,
        "power": None if test is None else _power(test),
    }
    steps = steps_of(step, sys.maxsize if found.shape is None else found.shape.context)
    told["step"] = steps.said
    if found.shape is None:
        remarks.append(f"its weights lie between these bounds: {found.bound.why}")
        bound = found.bound.low, found.bound.high
        return Forecast(parameters=None, bound=bound, remarks=tuple(remarks), **told)
    if steps.cut:
        remarks.append(f"rows cut at the model's context of {found.shape.context} tokens")
    arms, places = [_arm(name) for name in asked], {name: place_of(name) for name in devices}
    rooms = {name: place.usable_bytes or place.memory_bytes for name, (_, place, _) in places.items()}
    remarks += [f"{HERE}: {gauge.said}" for name, (_, _, gauge) in places.items() if name == HERE]
    remarks += [f"{name}: its memory is the host's, not known here" for name, room in rooms.items() if room is None]
    asked_of = {"steps": steps, "rows": rows, "usd_per_hour": usd_per_hour, "phases": phases}
    cells = _cells(found, arms, places, rooms, **asked_of)
    sessions = {name: limit(place) for name, (_, place, _) in places.items() if place.tier}
    remarks += _of_several({name: number for name, (number, *_) in places.items()}, steps.batch)
    counted = {"parameters": found.shape.parameters, "cells": tuple(cells), "sessions": sessions}
    return Forecast(remarks=tuple(remarks), **counted, **told)


def _of_several(numbers: Mapping[str, int], batch: int) -> Iterator[str]:
    """What is to be said of several GPUs for a step of so many rows."""
    for name, number in numbers.items():
        if number > 1:
            yield f"{name}: {SHARDED.format(number)}"
        if number > batch:
            yield f"{name}: more GPUs than a step has rows; some would have none"


def place_of(name: str) -> tuple[int, Device, Gauge]:
    """How many of which device, and how fast it is; "here" is this machine.

    Raises:
        ConfigError: It is not known, or this machine was never measured.
    """
    if name == HERE:
        return 1, *calibration.here(home())
    number, place = catalogue.several(name)
    return number, place, Gauge((assumed(place),), "by its data sheet", recorded=replays(place))


def _cells(
    found: Described,
    arms: Sequence[Arm],
    places: Mapping[str, tuple[int, Device, Gauge]],
    rooms: Mapping[str, int | None],
    *,
    steps: Steps,
    rows: int | None,
    usd_per_hour: float | None,
    phases: bool,
) -> Iterator[Cell]:
    """Every arm on every device whose memory is known; what computes alike is counted once."""
    kept: dict[tuple, Traced] = {}
    share, told = share_of(found.shape), {"rows": rows, "usd_per_hour": usd_per_hour, "phases": phases}
    for name, (number, place, gauge) in places.items():
        count = _counter(found.config, place, steps, decoder=found.shape.decoder, kept=kept)
        step_of = {"kind": place.kind, "batch": steps.batch, "count": count, "share": share}
        for arm in arms if rooms[name] is not None else ():
            if number > 1:
                fitted = sharded_fit(arm, name, number, rooms[name], **step_of)
            else:
                fitted = fit(arm, name, rooms[name], longest=steps.longest, **step_of)
            yield _cell(fitted, arm, place, gauge, count, steps, shape=found.shape, **told)


def share_of(shape: ModelShape) -> Share:
    """What each of several GPUs would hold of a count."""
    return lambda arm, traced, devices: shards.sharded(traced, _sharding(arm, shape), devices)


def _sharding(arm: Arm, shape: ModelShape) -> shards.Sharding:
    """As arms are counted: in 16 bits, since GPUs that are joined have no more, and with the outputs of `_counter`."""
    return shards.Sharding.of(arm, shape, compute_bytes=2, outputs=None if shape.decoder else LABELS)


def _cell(
    fitted: Fit,
    arm: Arm,
    place: Device,
    gauge: Gauge,
    count: Callable[..., Traced],
    steps: Steps,
    *,
    shape: ModelShape,
    rows: int | None,
    usd_per_hour: float | None,
    phases: bool,
) -> Cell:
    """Time and price of what fits, as the engine gets through."""
    told = {"fit": fitted, "precision": precision_of(place)}
    if fitted.verdict == "does not fit":
        return Cell(**told)
    smaller = fitted.verdict in ("fits in smaller steps", "would fit sharded") and fitted.changes
    ask = fitted.changes[0].need.ask if smaller else fitted.need.ask
    if phases and fitted.devices == 1:
        served = {"rows": steps.batch, "tokens": steps.longest, "outputs": 0 if shape.decoder else LABELS}
        whole_trial = count(arm, ask, alone=False)
        told["phases"] = phases_of(whole_trial, arm, shape, precision=precision_of(place), **served)
    try:
        step_s = _step_seconds(arm, ask, precision_of(place), gauge, count, steps)
        if fitted.devices > 1:
            own = fitted.need.ask.micro_batch
            how = {"passes": -(-own // ask.micro_batch)}
            step_s = shards.seconds(
                step_s * exactly(own / steps.batch), _sharding(arm, shape), fitted.devices, place, **how
            )
    except (EvidenceError, ConfigError) as error:
        return Cell(why=str(error), **told)
    run_s = None if rows is None else step_s * exactly(-(-rows // steps.batch))
    price = _price(place, usd_per_hour)
    usd = None if run_s is None or price is None else run_s * exactly(fitted.devices * price.usd / 3600)
    return Cell(step_s=step_s, run_s=run_s, usd=usd, price=None if usd is None else f"{place.name}: {price}", **told)


def _step_seconds(
    arm: Arm, ask: Ask, precision: Precision, gauge: Gauge, count: Callable[..., Traced], steps: Steps
) -> Range:
    """Of a mean step, whose time is taken to be linear in its tokens between the fullest step and the least."""
    how = {"precision": precision, "method": arm.method}
    taken = lambda traced: gauge.seconds(traced.phases["step"].work, **how)  # noqa: E731
    full = taken(count(arm, ask))
    if steps.mean_share == 1:
        return full
    return full * exactly(steps.mean_share) + taken(count(arm, ask, least=True)) * exactly(1 - steps.mean_share)


def _price(place: Device, usd_per_hour: float | None) -> Price | None:
    """The user's, or what the catalogue has; None where neither is known."""
    try:
        return catalogue.rate(place, Hardware(usd_per_hour=usd_per_hour))
    except ConfigError:
        return None


def named(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names without blanks, each once.

    Raises:
        ConfigError: There is none.
    """
    found = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise ConfigError(f"{option}: names nothing, got {','.join(names)!r}; give at least one")
    return found


def _arm(name: str) -> Arm:
    """A method by name, one of the LoRA family with its rank."""
    method, _, rank = name.partition(":")
    if method not in ("lora", "qlora"):
        return Arm(name=name, method=name, settings=methods.settle(name, {}))
    settings = {"rank": whole("--method", rank, "a rank, as in lora:8") if rank else 16}
    return Arm(name=name, method=method, settings=methods.settle(method, settings))


def price_given() -> float | None:
    """US dollars for an hour, as TUNETRIAL_USD_PER_HOUR has it; None where it is not set.

    Raises:
        ConfigError: It is no price.
    """
    usd_per_hour = os.environ.get("TUNETRIAL_USD_PER_HOUR")
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
    count = whole("--test", rows, like)
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


def precision_of(place: Device) -> Precision:
    """bf16 where the hardware computes it, else fp16; fp32 on a CPU without units for bf16."""
    if place.operations_per_s.get("bf16") is not None:
        return "bf16"
    return "fp16" if place.kind == "cuda" else "fp32"


def _counter(
    config: Mapping[str, object],
    place: Device,
    steps: Steps,
    *,
    decoder: bool,
    kept: dict[tuple, Traced],
) -> Callable[..., Traced]:
    """Counts arms on a device, each asked so once; `kept` is shared by devices that compute alike."""
    tracing = load("tunetrial.engine.trace")
    precision, cuda, own = precision_of(place), place.kind == "cuda", capability(place)
    like = AS_THEY_LIE if own >= AS_THEY_LIE else own
    where = {"device": "cuda", "capability": like} if cuda else {"device": "cpu"}

    def count(arm: Arm, ask: Ask, *, least: bool = False, alone: bool = True) -> Traced:
        key = arm.model_dump_json(exclude={"name"}), ask, least, alone, precision, *where.values()
        if key not in kept:
            lengths = steps.least if least else steps.fullest
            lengths = [min(tokens, ask.most_tokens or tokens) for tokens in lengths]
            controls = Controls(
                base_fingerprint="none",
                precision=precision,
                **({"readout": "text", "max_new_tokens": 1} if decoder else {"readout": "head"}),
                epochs=1,
                batch_examples=steps.batch,
                max_tokens=max(lengths),
            )
            kept[key] = tracing.trace(
                config,
                arm,
                controls,
                lengths=lengths,
                micro_batch=ask.micro_batch,
                recomputes=ask.recomputes,
                training_alone=alone,
                kind="generate" if decoder else "classify",
                outputs=1 if decoder else LABELS,
                **where,
            )
        return tracing.elsewhere(kept[key], like, own) if cuda else kept[key]

    return count


def limit(place: Device) -> str:
    """How long a free machine may be used at a time."""
    tier = place.tier
    week = "" if tier.week_h is None else f", {tier.week_h:g} h a week"
    count = "" if tier.count == 1 else f", {tier.count} GPUs of which one is reckoned with"
    return f"{tier.title}: {place.title}{count}, sessions of at most {tier.session_h:g} h{week} ({tier.source})"
