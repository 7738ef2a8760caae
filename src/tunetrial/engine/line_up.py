"""All contenders of a benchmark in memory: which there are, what each takes to load, how adapters change places."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModelForCausalLM
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from safetensors.torch import load_file

from tunetrial.core.deployment import Contender, Offer, Setup, Swaps
from tunetrial.engine import adapters
from tunetrial.engine.contenders import (
    Answering,
    Eager,
    EagerMixed,
    EagerSwapped,
    Engine,
    Rows,
    Weights,
    beside_by_engine,
    beside_by_peft,
    by_engine,
    in_turns,
    load,
    mixed,
    mixed_of,
    name_of,
    twin,
)
from tunetrial.engine.exchange import Exchange
from tunetrial.engine.merge import PREFIX, adapter_weights, peft_config
from tunetrial.engine.probe import Clock
from tunetrial.engine.segments import Segments, over
from tunetrial.models import PinnedModel
from tunetrial.models.adapters import HEADS, WEIGHTS, AdapterFolder, read_adapter

Swap = Callable[[int], None]
Made = TypeVar("Made")
CPU = torch.device("cpu")
SWAPS = 21  # the first of which is not counted


class LineUp:
    """The contenders of offers over one base, all resident; weights that several deploy are in memory once.

    `load_s` is what each would take to load alone: its model's files, the proof of the engine's attention where that
    computes, and its adapters' files and places.
    """

    def __init__(
        self, base: PinnedModel, offers: Sequence[Offer], dtype: torch.dtype, clock: Clock, device: torch.device
    ):
        self.base, self.dtype, self.clock, self.device = base, dtype, clock, device
        self.contenders: dict[Contender, Answering] = {}
        self.load_s: dict[Contender, float] = {}
        self.offers = {offer.arm: offer for offer in offers}
        self.reference: dict[str | None, Answering] = {}
        self._packs: dict[str, tuple[torch.nn.Module, PeftModelForCausalLM]] = {}
        self.most_adapters = max((len(offer.adapters) for offer in offers), default=0) or 1
        self._warm_up(offers)
        plain, base_s = self._models("base", None, base.folder)
        for offer in offers:
            if offer.full is not None:
                self._models("full", offer.arm, Path(offer.full))
            if offer.merged is not None:
                self._models("merged", offer.arm, Path(offer.merged))
            if offer.adapters:
                self._adapters(offer, plain, base_s)

    def owners(self, contender: Contender, rows: int) -> list[int]:
        """By which adapter each of so many rows, or of the first of them, is answered when contenders are held against
        each other."""
        if contender.setup not in ("swapped", "mixed"):
            return [0] * rows
        many = len(self.offers[contender.arm].adapters)
        if contender.setup == "swapped":
            return [many - 1] * rows
        return [adapter for adapter in range(many) for _ in range(rows // many)]

    def expected(self, contender: Contender, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        """What transformers and PEFT make of the same weights (rows, vocabulary)."""
        if contender.setup in ("base", "full"):
            return self.contenders[contender.model_copy(update={"path": "eager"})].logits(rows, owners)
        return self.reference[contender.arm].logits(rows, owners)

    def swaps(self) -> Iterator[Swaps]:
        """Time how adapters of one arm take each other's places."""
        for arm, (pack, by_peft) in self._packs.items():
            folders = [Path(folder) for folder in self.offers[arm].adapters]
            kinds = {**self._by_engine(pack, folders), **self._by_peft(by_peft, folders)}
            for (path, where), swap in kinds.items():
                taken = [self.clock.time(partial(swap, number % len(folders))) for number in range(SWAPS)]
                yield Swaps(arm=arm, path=path, where=where, swaps_s=tuple(taken[1:]))

    def _timed(self, make: Callable[[], Made]) -> tuple[Made, float]:
        found: list[Made] = []
        seconds = self.clock.time(lambda: found.append(make()))
        return found[0], seconds

    def _warm_up(self, offers: Sequence[Offer]) -> None:
        """Load a base and an adapter untimed: libraries prepare themselves at the first ones."""
        model = load(self.base.folder, self.dtype, self.device)
        first = next((Path(offer.adapters[0]) for offer in offers if offer.adapters), None)
        if first is not None:
            self._attach(beside_by_peft, model, [first])

    def _attach(self, how: Callable, model: torch.nn.Module, folders: Sequence[Path]) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT's use of transformers, not ours
            return how(model, [self._read(folder) for folder in folders])

    def _models(self, setup: Setup, arm: str | None, folder: Path) -> tuple[torch.nn.Module, dict[str, float]]:
        """Contenders that are a model alone, and what loading it takes on both paths."""
        plain, load_s = self._timed(partial(load, folder, self.dtype, self.device))
        own, proof_s = self._timed(partial(by_engine, twin(plain)))
        taken = {"eager": load_s, "engine": load_s + proof_s}
        for path, answering in (("eager", Eager(plain)), ("engine", Engine(own))):
            contender = Contender(setup=setup, path=path, arm=arm)
            self.contenders[contender], self.load_s[contender] = answering, taken[path]
        return plain, taken

    def _adapters(self, offer: Offer, plain: torch.nn.Module, base_s: dict[str, float]) -> None:
        many = len(offer.adapters)
        engine_way = self.contenders[Contender(setup="base", path="engine")].model.config._attn_implementation
        for count in (1, many) if many > 1 else (1,):
            folders = [Path(folder) for folder in offer.adapters[:count]]
            own, other = twin(plain), twin(plain)
            own.set_attn_implementation(engine_way)
            own, own_s = self._timed(partial(self._attach, beside_by_engine, own, folders))
            other, other_s = self._timed(partial(self._attach, beside_by_peft, other, folders))
            taken = {"engine": base_s["engine"] + own_s, "eager": base_s["eager"] + other_s}
            self._enter(offer.arm, own, other, count, taken, mixes=not adapters.read_spec(folders[0]).dora)

    def _enter(
        self,
        arm: str,
        own: torch.nn.Module,
        other: PeftModelForCausalLM,
        count: int,
        taken: dict[str, float],
        *,
        mixes: bool,
    ) -> None:
        """Enter the contenders that these models make: one adapter is separate, several are swapped and, where PEFT
        `mixes` them too, mixed on both paths."""
        one, some = (lambda rows: 1), partial(mixed_of, count)
        if count == 1:
            found = {"separate": (Engine(own, adapters_of=one), Eager(other, adapters_of=one))}
        else:
            swapped = Engine(own, in_turns(count), adapters_of=one), EagerSwapped(other, in_turns(count))
            found = {"swapped": swapped, "mixed": (Engine(own, mixed(count), adapters_of=some),)}
            if mixes:
                found["mixed"] += (EagerMixed(other, mixed(count), some),)
            self._packs[arm] = own, other
        self.reference[arm] = EagerSwapped(other, in_turns(count))
        for setup, both in found.items():
            for path, answering in zip(("engine", "eager"), both, strict=False):
                contender = Contender(setup=setup, path=path, arm=arm)
                self.contenders[contender], self.load_s[contender] = answering, taken[path]

    def _read(self, folder: Path) -> tuple[AdapterFolder, Weights]:
        read = read_adapter(folder)
        weights, _ = adapter_weights(read, self.base)
        return read, {name: weight.to(self.dtype) for name, weight in weights.items()}

    def _by_engine(self, pack: torch.nn.Module, folders: Sequence[Path]) -> dict[tuple[str, str], Swap]:
        """Ways to make an adapter of a number the one in place: the first member's."""
        exchange = Exchange(adapters.adapted(pack))
        host = [exchange.flat(self._on_host(folder)) for folder in folders]

        def resident(number: int) -> None:
            with over(Segments(range(number, number + 1), (1,))):
                pass

        return {
            ("engine", "resident"): resident,
            ("engine", "host"): lambda number: exchange.take_in(host[number]),
            ("engine", "disk"): lambda number: exchange.take_in(exchange.flat(self._from_disk(folders[number]))),
        }

    def _by_peft(self, model: PeftModelForCausalLM, folders: Sequence[Path]) -> dict[tuple[str, str], Swap]:
        config = peft_config(read_adapter(folders[0]))

        def swap(weights: Weights) -> None:
            named = {f"{key.removesuffix('.weight')}.{name_of(0)}.weight": weight for key, weight in weights.items()}
            hotswap_adapter_from_state_dict(model, named, name_of(0), config)

        host = [self._on_host(folder) for folder in folders]
        return {
            ("eager", "resident"): lambda number: model.set_adapter(name_of(number), inference_mode=True),
            ("eager", "host"): lambda number: swap(host[number]),
            ("eager", "disk"): lambda number: swap(self._on_host(folders[number])),
        }

    def _on_host(self, folder: Path) -> Weights:
        """An adapter's weights without heads, in the dtype that is computed in."""
        return {name: self._pinned(weight.to(self.dtype)) for name, weight in self._from_disk(folder, CPU).items()}

    def _from_disk(self, folder: Path, device: torch.device | None = None) -> Weights:
        """An adapter's weights without heads, as they are stored, on the device if no other is named."""
        found = load_file(folder / WEIGHTS, device=str(device or self.device))
        return {name: w for name, w in found.items() if name.removeprefix(PREFIX).split(".")[0] not in HEADS}

    def _pinned(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.pin_memory() if self.device.type == "cuda" else weight
