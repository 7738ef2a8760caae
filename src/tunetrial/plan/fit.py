"""Whether an arm fits a device, and the smallest changes that would make it fit.

What is held is counted (`engine.trace`), not estimated; added to it are what the device's context takes and what the
allocator holds in reserve. When memory is short the engine halves its micro-batches by itself, and then computes
layers again in the backward pass: neither changes which examples a step sees, so a comparison stays fair. Every other
change is another question, and is said to be.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

from tunetrial import methods
from tunetrial.core.records import Record
from tunetrial.core.study import Arm
from tunetrial.core.work import STATES, Part, Traced
from tunetrial.plan.estimate import GIB, Range

# A process on an H200 held 0.78 GiB beside its tensors and the allocator's reserve (torch 2.11, CUDA 13, compiled
# kernels loaded); smaller and older devices load fewer kernels.
CONTEXT_BYTES = {
    "cpu": Range(low=0.3 * GIB, high=1.0 * GIB),
    "cuda": Range(low=0.4 * GIB, high=0.9 * GIB),
    "xpu": Range(low=0.3 * GIB, high=1.0 * GIB),
}
# What the allocator keeps beyond the most that tensors take at one time: pieces that no tensor fits into.
RESERVE = Range(low=1.0, high=1.1)


class Ask(Record):
    """How a step is computed: so many examples at once, rows cut at so many tokens if given, and whether layers are
    computed again in the backward pass."""

    micro_batch: int
    recomputes: bool = False
    most_tokens: int | None = None


SHORTEST = 64
Count = Callable[[Arm, Ask], Traced]


class Need(Record):
    """Memory of an arm, asked so: `peak_bytes` of tensors in the phase that takes most, what they are, and `bytes`,
    what the device must have free for them, context and reserve included. Evaluation is not among the phases that a
    count is asked for: the engine halves its batches until they fit."""

    ask: Ask
    phase: str
    peak_bytes: int
    parts: dict[Part, int]
    bytes: Range
    operations: float

    @classmethod
    def of(cls, traced: Traced, ask: Ask, kind: str) -> "Need":
        phase, most = max(traced.phases.items(), key=lambda item: item[1].peak_bytes)
        context = CONTEXT_BYTES[kind]
        step = traced.phases["step"].work
        return cls(
            ask=ask,
            phase=phase,
            peak_bytes=most.peak_bytes,
            parts=most.parts,
            bytes=Range(
                low=most.peak_bytes * RESERVE.low + context.low, high=most.peak_bytes * RESERVE.high + context.high
            ),
            operations=sum(kernel.count * kernel.operations for kernel in step),
        )


class Change(Record):
    """Something that would make an arm fit. `time` is how many times the arithmetic of a step it takes, launches and
    traffic apart; `fair` says what it does to the comparison."""

    what: str
    need: Need
    time: float
    fair: str


Share = Callable[[Arm, Traced, int], Traced]
Verdict = Literal["fits", "tight", "fits in smaller steps", "would fit sharded", "does not fit"]


class Fit(Record):
    """An arm on a device: "fits" as asked, "tight" where it does at the low end of what it needs alone, "fits in
    smaller steps" where the engine gets through by itself as the first of `changes` says, or "does not fit".

    On several `devices` states are sharded and `need` is of each of them, with its share of a step's examples: they
    "would fit sharded", in smaller steps where there are `changes`, since the engine trains on one.
    """

    arm: str
    device: str
    devices: int = 1
    room_bytes: int
    verdict: Verdict
    need: Need
    changes: tuple[Change, ...] = ()


def fit(
    arm: Arm,
    device: str,
    room_bytes: int,
    *,
    kind: str,
    batch: int,
    longest: int,
    count: Count,
    share: Share | None = None,
) -> Fit:
    """Find out whether an arm fits and, if not, what would make it fit, the smallest change first.

    Args:
        room_bytes: What the device has free before anything is on it.
        kind: "cpu", "cuda" or "xpu".
        batch: Examples of a step.
        longest: Tokens of the longest row.
        count: Counts an arm, asked so.
        share: Makes of a count what each of so many GPUs would hold (`shards`); without it no more GPUs are offered.
    """

    def needs(asked: Arm, ask: Ask) -> Need:
        return Need.of(count(asked, ask), ask, kind)

    whole = needs(arm, Ask(micro_batch=batch))
    found = {"arm": arm.name, "device": device, "room_bytes": room_bytes, "need": whole}
    if whole.bytes.high <= room_bytes:
        return Fit(verdict="fits", **found)
    smaller = _smaller(arm, room_bytes, batch, needs, whole) if _least(whole, kind) <= room_bytes else None
    own = () if smaller is None else (_by_itself(smaller, whole, batch),)
    if whole.bytes.low <= room_bytes:
        return Fit(verdict="tight", changes=own, **found)
    others: tuple[Change, ...] = ()
    if smaller is None:
        others += tuple(_other_settings(arm, room_bytes, batch, kind, needs, whole))
        if _least(whole, kind) <= room_bytes:
            others += tuple(_shorter(arm, room_bytes, longest, needs, whole))
        if share is not None:
            others += tuple(_more_devices(arm, room_bytes, batch, kind, count, share, whole))
    return Fit(verdict="does not fit" if smaller is None else "fits in smaller steps", changes=own + others, **found)


def _smaller(arm: Arm, room_bytes: int, batch: int, needs: Callable[[Arm, Ask], Need], whole: Need) -> Need | None:
    """The largest micro-batch that fits, halving from the batch; else one example with layers computed again."""
    sizes = list(_halves(batch)) or [1]
    one = needs(arm, Ask(micro_batch=sizes[-1]))
    if one.bytes.high > room_bytes:
        again = needs(arm, Ask(micro_batch=sizes[-1], recomputes=True))
        return again if again.bytes.high <= room_bytes else None
    slope = (whole.bytes.high - one.bytes.high) / (batch - sizes[-1])
    for size in sizes[:-1]:  # activations grow with the examples, nearly in a line
        if one.bytes.high + 0.98 * slope * (size - sizes[-1]) <= room_bytes:
            tried = needs(arm, Ask(micro_batch=size))
            if tried.bytes.high <= room_bytes:
                return tried
    return one


def _halves(batch: int) -> Iterator[int]:
    while batch > 1:
        batch //= 2
        yield batch


def _by_itself(need: Need, whole: Need, batch: int) -> Change:
    what = [f"micro-batches of {need.ask.micro_batch} instead of {batch}"] if batch > 1 else []
    what += ["layers computed again in the backward pass"] if need.ask.recomputes else []
    fair = "fair: the same examples in every step; the engine does it by itself"
    return Change(what=", ".join(what), need=need, time=need.operations / whole.operations, fair=fair)


def _other_settings(
    arm: Arm, room_bytes: int, batch: int, kind: str, needs: Callable[[Arm, Ask], Need], whole: Need
) -> Iterator[Change]:
    """Changes of the arm itself, those that fit."""
    settings = arm.settings
    asked: list[tuple[str, Arm, str]] = []
    if settings.get("optimizer_bits") == 32 and _least(whole, kind, but="moments") <= room_bytes:
        fair = "fair if every arm takes it: optimizer_bits: 8"
        asked.append(("moments in 8 bits", _with(arm, optimizer_bits=8), fair))
    if arm.method == "lora" and settings.get("base") == "plain":
        qlora = Arm(name=arm.name, method="qlora", settings=methods.settle("qlora", _plain(settings)))
        asked.append(("QLoRA: the base in 4 bits", qlora, "another method: add it as an arm of its own"))
    if arm.method == "full":
        lora = Arm(name=arm.name, method="lora", settings=methods.settle("lora", {"rank": 16}))
        asked.append(("LoRA of rank 16 on all linear layers", lora, "another method: add it as an arm of its own"))
        qlora = Arm(name=arm.name, method="qlora", settings=methods.settle("qlora", {"rank": 16}))
        asked.append(("QLoRA of rank 16 on all linear layers", qlora, "another method: add it as an arm of its own"))
    for what, other, fair in asked:
        need = needs(other, Ask(micro_batch=batch))
        if need.bytes.high > room_bytes:
            smaller = _smaller(other, room_bytes, batch, needs, need) if _least(need, kind) <= room_bytes else None
            if smaller is None:
                continue
            need, what = smaller, f"{what}, {_by_itself(smaller, need, batch).what}"
        yield Change(what=what, need=need, time=need.operations / whole.operations, fair=fair)


def _held(need: Need) -> int:
    """Bytes that stay whatever the rows: weights, their gradients and moments."""
    return sum(need.parts.get(part, 0) for part in STATES)


def _least(need: Need, kind: str, *, but: Part | None = None) -> float:
    """What a device must have free for these alone, or for all but one of them: with fewer rows no less is needed."""
    return (_held(need) - need.parts.get(but, 0)) * RESERVE.high + CONTEXT_BYTES[kind].high


def _shorter(
    arm: Arm, room_bytes: int, longest: int, needs: Callable[[Arm, Ask], Need], whole: Need
) -> Iterator[Change]:
    """The longest half, quarter and so on of the rows' tokens at which the arm fits, one example at a time."""
    while longest > SHORTEST:
        longest //= 2
        ask = Ask(micro_batch=1, recomputes=True, most_tokens=longest)
        need = needs(arm, ask)
        if need.bytes.high <= room_bytes:
            what = f"rows cut at {longest} tokens, one at a time, layers computed again in the backward pass"
            fair = f"fair if max_tokens is {longest} for every arm, and it is another task then"
            yield Change(what=what, need=need, time=need.operations / whole.operations, fair=fair)
            return


def sharded_fit(
    arm: Arm, device: str, devices: int, room_bytes: int, *, kind: str, batch: int, count: Count, share: Share
) -> Fit:
    """Find out whether an arm would fit so many GPUs over which its states are sharded, each with as many of a step's
    `batch` examples; if need be in smaller micro-batches. Of other changes more such GPUs alone are offered."""

    def needs(asked: Arm, ask: Ask) -> Need:
        return Need.of(share(asked, count(asked, ask), devices), ask, kind)

    own = math.ceil(batch / devices)
    whole = needs(arm, Ask(micro_batch=own))
    found = {"arm": arm.name, "device": device, "devices": devices, "room_bytes": room_bytes, "need": whole}
    if whole.bytes.high <= room_bytes:
        return Fit(verdict="would fit sharded", **found)
    if _least(whole, kind) <= room_bytes:
        smaller = _smaller(arm, room_bytes, own, needs, whole)
        if smaller is not None:
            change = _by_itself(smaller, whole, own).model_copy(
                update={"fair": "fair: the same examples in every step"}
            )
            return Fit(verdict="would fit sharded", changes=(change,), **found)
    if whole.bytes.low <= room_bytes:
        return Fit(verdict="tight", **found)
    more = tuple(_more_devices(arm, room_bytes, batch, kind, count, share, whole, beyond=devices))
    return Fit(verdict="does not fit", changes=more, **found)


def _more_devices(
    arm: Arm, room_bytes: int, batch: int, kind: str, count: Count, share: Share, whole: Need, *, beyond: int = 1
) -> Iterator[Change]:
    """The fewest such GPUs over which weights, gradients and moments could be shared out, of more than there are; at
    most one for each example."""
    if kind != "cuda":
        return
    counted = count(arm, whole.ask)
    for devices in (2, 4, 8, 16, 32, 64):
        if not beyond < devices <= batch or _held(Need.of(share(arm, counted, devices), whole.ask, kind)) > room_bytes:
            continue
        ask = Ask(micro_batch=math.ceil(batch / devices), recomputes=True)
        need = Need.of(share(arm, count(arm, ask), devices), ask, kind)
        if need.bytes.high <= room_bytes:
            examples = f"{ask.micro_batch} of {batch} examples each"
            what = f"{devices} such GPUs, states sharded, {examples}, layers computed again"
            fair = "fair if every arm runs so; tunetrial trains on one GPU so far"
            time = need.operations / whole.operations * ask.micro_batch / batch
            yield Change(what=what, need=need, time=time, fair=fair)
            return


def _with(arm: Arm, **settings: object) -> Arm:
    return arm.model_copy(update={"settings": {**arm.settings, **settings}})


def _plain(settings: dict) -> dict:
    return {key: settings[key] for key in ("rank", "alpha", "targets", "rslora", "dora") if key in settings}
