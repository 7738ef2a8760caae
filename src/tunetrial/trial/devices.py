"""A study on GPUs that need not be here: whether its own arms fit with its own rows, in their order, what would make
them fit, how long they take and what that costs. Behind `tunetrial plan study.yaml --gpu l4,a100-80`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tunetrial import methods, models, plan
from tunetrial.core.errors import ConfigError
from tunetrial.core.money import Account
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Hardware, Lock, Study, TaskSpec
from tunetrial.core.work import Counted, Traced
from tunetrial.models.sizes import read_config
from tunetrial.plan import Gauge, Sizes, catalogue
from tunetrial.plan.catalogue import Device
from tunetrial.plan.fit import Ask, Need, fit
from tunetrial.plan.forecast import Cell, Forecast, Pack, Whole
from tunetrial.plan.outlay import Time, account, price_of, time_of
from tunetrial.plan.peaks import AFTER_TRAINING, phases
from tunetrial.plan.timing import counts
from tunetrial.trial.forecast import (
    AS_THEY_LIE,
    HERE,
    capability,
    limit,
    named,
    place_of,
    precision_of,
    price_given,
    share_of,
)
from tunetrial.trial.lengths import by_order
from tunetrial.trial.pinning import Pinned, pin

SHARDED = ("full", "lora", "qlora")  # whose trained tensors are known one by one (`plan.shards`)


def on_devices(study: Study, root: Path, devices: Sequence[str], *, engine: str = "torch") -> Forecast:
    """Say of each of a study's arms whether it fits each of these GPUs, and how long all its runs take there.

    Base and rows are read as for the study's own plan; nothing is written. Memory is that of the fullest step of an
    epoch, on the task that takes most. The study's own price is that of the GPU that it names, and of no other.

    Args:
        devices: Names as `catalogue.device` reads them; "here" is this machine, once it was measured.
    Raises:
        ConfigError: A device is not known, or several of one are asked for.
        TunetrialError: The study cannot be locked, see `pin`.
    """
    places = {name: _place(name) for name in named("--gpu", devices)}
    with TemporaryDirectory() as folder:
        pinned = pin(study, root, engine=engine, log=Path(folder) / "worker.log", counting=False)
    cells, wholes, kept, remarks = [], [], {}, {}
    for name, (place, gauge) in places.items():
        room = place.usable_bytes or place.memory_bytes
        if room is None:
            remarks[f"{name}: its memory is the host's, not known here"] = None
            continue
        counted = Counts(pinned, _on(pinned.lock, name, place), place, kept)
        time = counted.time(gauge)
        bills = None if time is None else account(counted.lock, time)
        own = [_cell(arm, name, room, counted, time, bills) for arm in study.arms if arm.name in counted.traced]
        cells += own
        wholes.append(_whole(name, own, time, bills))
        remarks |= dict.fromkeys(_left_out(study, counted))
    return Forecast(
        model=study.base_model,
        source="with the study's own rows, in their order",
        parameters=pinned.lock.parameters,
        step="; ".join(_steps(pinned)),
        cells=tuple(cells),
        wholes=tuple(wholes),
        sessions={name: limit(place) for name, (place, _) in places.items() if place.tier},
        remarks=tuple(remarks),
    )


def _place(name: str) -> tuple[Device, Gauge]:
    number, place, gauge = place_of(name)
    if number > 1:
        raise ConfigError(f"--gpu: a study's trials are on one GPU each, got {name!r}; name one, or use --model")
    return place, gauge


def _on(lock: Lock, name: str, place: Device) -> Lock:
    """The study as it would be locked there."""
    study = lock.study
    asked = study.hardware.gpu and catalogue.find(study.hardware.gpu)
    price = study.hardware.usd_per_hour if asked and asked.name == place.name else None
    gpu = None if place.kind == "cpu" else place.name if name == HERE else name
    hardware = Hardware(gpu=gpu, usd_per_hour=price_given() if price is None else price)
    precision = lock.precision if name == HERE or study.precision != "auto" else precision_of(place)
    return lock.model_copy(update={"study": study.model_copy(update={"hardware": hardware}), "precision": precision})


def _cell(arm: Arm, name: str, room: int, counted: "Counts", time: Time | None, bills: Account | None) -> Cell:
    """Whether an arm fits, and if so what its runs take, as the engine gets through."""
    lock, kind, tasks = counted.lock, counted.device.kind, counted.lock.study.tasks
    own = counted.sizes(arm.name)
    longest = max(max(own.counted[spec.name]) for spec in tasks)
    asked = {"kind": kind, "batch": lock.study.batch_examples, "longest": longest, "count": counted}
    fitted = fit(arm, name, room, share=share_of(own.shape) if arm.method in SHARDED else None, **asked)
    traced = counted.traced[arm.name]
    task = max(traced, key=lambda task: traced[task].fullest.training_bytes)
    told = {"fit": fitted, "precision": lock.precision, "pack": _pack(traced[task], asked["batch"], kind)}
    told["phases"] = phases(lock, {arm.name: traced}, {arm.name: own})[arm.name]
    if fitted.verdict == "does not fit" or time is None:
        return Cell(**told)
    more = fitted.changes[0].time if fitted.verdict == "fits in smaller steps" else 1.0
    runs_s, price = time.arms[arm.name].seconds * exactly(more), price_of(lock.study.hardware)
    bill = None if bills is None else next(bill for bill in bills.bills if bill.name == arm.name)
    usd = None if bill is None or bill.usd is None else Range(low=more * bill.usd.low, high=more * bill.usd.high)
    return Cell(runs_s=runs_s, usd=usd, price=None if usd is None else f"{name}: {price}", **told)


def _pack(counted: Counted, batch: int, kind: str) -> Pack | None:
    """What the members of the largest pack need that tuning begins with."""
    if counted.packed is None:
        return None
    training = {name: phase for name, phase in counted.packed.phases.items() if name not in AFTER_TRAINING}
    traced = counted.packed.model_copy(update={"phases": training})
    return Pack(members=counted.members, need=Need.of(traced, Ask(micro_batch=batch), kind))


def _whole(name: str, cells: Sequence[Cell], time: Time | None, bills: Account | None) -> Whole:
    """All runs of all arms that fit, those included that train nothing."""
    left = tuple(cell.fit.arm for cell in cells if cell.fit.verdict == "does not fit")
    times = [cell.runs_s for cell in cells if cell.runs_s is not None]
    prices = [cell.usd for cell in cells if cell.usd is not None]
    told = {cell.fit.arm for cell in cells}
    if time is not None:
        times += [stages.seconds for arm, stages in time.arms.items() if arm not in told]
    if bills is not None:
        rest = [bill.usd for bill in bills.bills if bill.name not in told and bill.usd is not None]
        prices += [Range(low=usd.low, high=usd.high) for usd in rest]
    return Whole(
        device=name,
        seconds=sum(times, exactly(0)) if times else None,
        usd=sum(prices, exactly(0)) if prices else None,
        without=left,
    )


def _left_out(study: Study, counted: "Counts") -> Iterator[str]:
    """Arms of whose memory nothing is said."""
    for arm in study.arms:
        if not methods.find(arm).tuned:
            yield f"{arm.name}: not trained, so nothing is said of its memory"
        elif arm.name not in counted.traced:
            yield f"{arm.name}: cannot be counted without weights; measure it with a short study"


def _steps(pinned: Pinned) -> Iterator[str]:
    lock = pinned.lock
    for spec in lock.study.tasks:
        lengths, batch = pinned.counted[spec.name], lock.study.batch_examples
        said = f"{spec.name}: {batch} of {len(lengths)} rows"
        yield by_order(lengths, batch, said=said, seed=lock.final_seeds(1)[0]).said


class Counts:
    """A study's arms counted on a device, each on every task; what computes alike on another is counted once (`kept`).

    `traced` has the arms that could be counted on all tasks.
    """

    def __init__(self, pinned: Pinned, lock: Lock, place: Device, kept: dict[tuple, Traced | Counted | None]) -> None:
        from tunetrial.engine.place import Place

        self.pinned, self.lock, self.device, self._kept = pinned, lock, place, kept
        self._own = capability(place)
        like = min(self._own, AS_THEY_LIE)
        self._place = Place("cuda", like) if place.kind == "cuda" else Place("cpu")
        self._kind = "cpu" if place.kind == "cpu" else "cuda"
        self._members = plan.first_packs(lock, self._kind)
        found = {arm.name: self._counted(arm) for arm in lock.study.arms if methods.find(arm).tuned}
        self.traced = {arm: each for arm, each in found.items() if None not in each.values()}

    def __call__(self, arm: Arm, ask: Ask) -> Traced:
        """The task that takes most, computed so."""
        asked = [self._asked(arm, spec, ask) for spec in self.lock.study.tasks]
        return max(asked, key=lambda one: one.training_bytes)

    def time(self, gauge: Gauge) -> Time | None:
        """What the study would take of the device, at this speed; None where nothing is known of it."""
        shape, known = models.shape(self.pinned.base), replace(self.pinned.known, traced=self.traced, gauge=gauge)
        each = plan.timed(self.lock, shape, known)
        if each is None:
            return None
        how = {"device": self._kind, "workers": 1, "base_bytes": shape.parameters * shape.bytes_per_weight}
        return time_of(self.lock, counts(self.lock), each, **how)

    def sizes(self, arm: str) -> Sizes:
        """Those of an arm's base, with the tokens of each task's training rows."""
        return self.pinned.others.get(arm) or Sizes(models.shape(self.pinned.base), self.pinned.counted)

    def _counted(self, arm: Arm) -> dict[str, Counted | None]:
        from tunetrial.engine import trace

        found = {}
        for spec in self.lock.study.tasks:
            members = self._members.get((spec.name, arm.name), 1)
            key = self._key(arm, spec, members)
            if key not in self._kept:
                asked = self._asked_of(arm, spec) | {"members": members, "seed": self._seed, "place": self._place}
                lengths = self.sizes(arm.name).counted[spec.name]
                config, controls = self._config(arm.name), self.lock.controls(spec.name)
                self._kept[key] = trace.count(config, arm, controls, lengths, **asked)
            kept = self._kept[key]
            if kept is not None:
                runs = {name: getattr(kept, name) for name in ("fullest", "least", "packed")}
                kept = kept.model_copy(update={name: run and self._here(run) for name, run in runs.items()})
            found[spec.name] = kept
        return found

    def _here(self, traced: Traced) -> Traced:
        """What was counted on a device that computes alike."""
        from tunetrial.engine.trace import elsewhere

        return elsewhere(traced, self._place.capability, self._own) if self._place.kind == "cuda" else traced

    def _asked(self, arm: Arm, spec: TaskSpec, ask: Ask) -> Traced:
        from tunetrial.engine.trace import trace

        controls, own = self.lock.controls(spec.name), self.lock.study.arm(arm.name) == arm
        if own and ask == Ask(micro_batch=controls.batch_examples):
            fullest = self.traced[arm.name][spec.name].fullest
            training = {name: phase for name, phase in fullest.phases.items() if name not in AFTER_TRAINING}
            return fullest.model_copy(update={"phases": training})
        key = self._key(arm, spec, ask)
        if key not in self._kept:
            lengths = self.sizes(arm.name).counted[spec.name]
            steps = by_order(lengths, controls.batch_examples, said=spec.name, seed=self._seed)
            place = {"device": self._place.kind, "capability": self._place.capability}
            self._kept[key] = trace(
                self._config(arm.name),
                arm,
                controls,
                lengths=[min(tokens, ask.most_tokens or tokens) for tokens in steps.fullest],
                micro_batch=ask.micro_batch,
                recomputes=ask.recomputes,
                training_alone=True,
                **self._asked_of(arm, spec),
                **place,
            )
        return self._here(self._kept[key])

    def _asked_of(self, arm: Arm, spec: TaskSpec) -> dict[str, object]:
        return {"kind": spec.kind, "outputs": len(self.lock.data[spec.name].labels) or 1}

    def _key(self, arm: Arm, spec: TaskSpec, how: object) -> tuple:
        return arm.model_dump_json(), spec.name, how, self.lock.precision, self._place

    def _config(self, arm: str) -> Mapping[str, object]:
        return read_config(self.pinned.folder(arm) / "config.json")

    @property
    def _seed(self) -> int:
        return self.lock.final_seeds(1)[0]
