"""`peft`: any adapter of Hugging Face's PEFT that stood a probe; which did is in `peft_types.json`."""

import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, Field, field_validator, model_validator

from tunetrial.core.records import Record
from tunetrial.core.study import Setting
from tunetrial.methods.method import PeftSpec, Trained, full_centre
from tunetrial.models import ModelShape

TYPES = Path(__file__).parent / "peft_types.json"
OURS = ("task_type", "base_model_name_or_path", "revision", "inference_mode", "modules_to_save", "peft_version")
# Where PEFT finds what to adapt by itself; everywhere else all projections of the blocks are meant.
OWN_TARGETS = ("IA3", "LN_TUNING")
HIGHEST = 0.3
# Rates over LoRA's: those of PEFT's method comparison (C3A, HiRA, IA3, LoKr, VB-LoRA; LoRA 1e-4) or of the order that
# papers report (VeRA arXiv:2310.11454, FourierFT arXiv:2405.03003); 1 for all other types. The search decides.
RATES = {
    "C3A": 3000,
    "FOURIERFT": 30,
    "HIRA": 45,
    "IA3": 50,
    "LN_TUNING": 10,
    "LOKR": 30,
    "PVERA": 40,
    "VBLORA": 5,
    "VERA": 40,
    "WAVEFT": 30,
}


class Capability(Record):
    """What the probe found of one type: whether it trains, merges and loads to the same logits; why it is refused."""

    refused: str | None = None
    trains: bool = False
    merges: bool = False
    loads: bool = False
    settings: tuple[str, ...] = ()


@cache
def capabilities() -> Mapping[str, Capability]:
    """The probe's findings by type, in alphabetical order."""
    found = json.loads(TYPES.read_text(encoding="utf-8"))["types"]
    return {name: Capability.model_validate(found[name]) for name in sorted(found)}


def fitting() -> tuple[str, ...]:
    """The types that can be an arm."""
    return tuple(name for name, found in capabilities().items() if found.refused is None)


class Peft(Trained):
    """An adapter of PEFT's own making, `peft_type`, with the settings of its configuration beside it.

    What PEFT marks as trainable is trained, with the head. Where `target_modules` is left out all projections of the
    blocks are adapted, or what PEFT takes by default where the type adapts something else (IA3, LN_TUNING).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Setting]

    peft_type: str = Field(
        description="type of PEFT's adapter",
        examples=["IA3"],
        json_schema_extra=lambda s: s.update(enum=list(fitting())),
    )

    @field_validator("peft_type")
    @classmethod
    def _fits(cls, value: str) -> str:
        known, name = capabilities(), value.upper()
        if name not in known:
            close = difflib.get_close_matches(name[:100], fitting(), 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"use one of {', '.join(fitting())}"
            raise ValueError(f"no such type in PEFT, got {value!r}; {hint}")
        if known[name].refused is not None:
            close = difflib.get_close_matches(name, fitting(), 3, cutoff=0.3)
            raise ValueError(f"cannot be compared: {known[name].refused}, got {value!r}; use {' or '.join(close)}")
        return name

    @model_validator(mode="after")
    def _settings_are_of_the_type(self) -> "Peft":
        known = capabilities()[self.peft_type].settings
        for name, value in self.__pydantic_extra__.items():
            if name in OURS:
                raise ValueError(f"{name}: set by the study, got {value!r}; remove it")
            if name not in known:
                close = difflib.get_close_matches(name[:100], known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"use some of {', '.join(known)}"
                raise ValueError(f"{name}: no such setting of {self.peft_type}, got {value!r}; {hint}")
            if name.endswith("dropout") and value:
                raise ValueError(f"{name}: no arm has dropout, got {value!r}; remove it")
        return self

    def adapter(self, shape: ModelShape) -> PeftSpec:
        settings = dict(self.__pydantic_extra__)
        if "target_modules" in capabilities()[self.peft_type].settings and self.peft_type not in OWN_TARGETS:
            settings.setdefault("target_modules", tuple(shape.projections))
        return PeftSpec(peft_type=self.peft_type, settings=settings)

    def trainable_parameters(self, shape: ModelShape, outputs: int) -> int | None:
        """As PEFT makes them for the types of `COUNTS`; None for others, or where target modules are a pattern."""
        formula, given = COUNTS.get(self.peft_type), self.__pydantic_extra__
        if formula is None or set(given) - {"target_modules", "feedforward_modules", "r", "n_frequency"}:
            return None
        in_layer = formula(shape, given)
        return None if in_layer is None else shape.layers * in_layer + shape.readout_parameters(outputs)

    def artifact_bytes(self, shape: ModelShape, outputs: int, base_bytes_per_weight: int) -> int | None:
        """What is trained in fp32; unknown where the count is, or where random projections are saved too."""
        trained = None if self.peft_type in ("VERA", "PVERA") else self.trainable_parameters(shape, outputs)
        return None if trained is None else 4 * trained

    def learning_rate_centre(self, parameters: int) -> float:
        """LoRA's times the factor of the type, at most 0.3."""
        return min(min(10 * full_centre(parameters), 2e-3) * RATES.get(self.peft_type, 1), HIGHEST)


def _targets(shape: ModelShape, given: Mapping[str, Setting]) -> list[tuple[int, int]] | None:
    """Inputs and outputs of the projections meant, of one layer."""
    names = given.get("target_modules", tuple(shape.projections))
    if isinstance(names, str) or any(name not in shape.projections for name in names):
        return None
    return [shape.projections[name] for name in names]


def _each(count):
    """A count over the targets of one layer, from (inputs, outputs, rank)."""

    def of_layer(shape: ModelShape, given: Mapping[str, Setting]) -> int | None:
        targets = _targets(shape, given)
        return None if targets is None else sum(count(i, o, given) for i, o in targets)

    return of_layer


def _ia3(shape: ModelShape, given: Mapping[str, Setting]) -> int | None:
    """A factor an output of the targets, an input of those that are feed-forward."""
    targets = given.get("target_modules", ("k_proj", "v_proj", "down_proj"))
    forward = given.get("feedforward_modules", ("down_proj",) if "target_modules" not in given else ())
    if isinstance(targets, str) or any(name not in shape.projections for name in targets):
        return None
    return sum(shape.projections[name][0 if name in forward else 1] for name in targets)


# Weights of one layer by type, checked against PEFT's own in the tests; ranks default as PEFT's do.
COUNTS = {
    "DELORA": _each(lambda i, o, g: g.get("r", 8) * (i + o) + 1),
    "FOURIERFT": _each(lambda i, o, g: g.get("n_frequency", 1000)),
    "HRA": _each(lambda i, o, g: g.get("r", 8) * i),
    "IA3": _ia3,
    "LOHA": _each(lambda i, o, g: 2 * g.get("r", 8) * (i + o)),
    "LORA": _each(lambda i, o, g: g.get("r", 8) * (i + o)),
    "MISS": _each(lambda i, o, g: g.get("r", 64) * o),
    "VERA": _each(lambda i, o, g: o + g.get("r", 256)),
}
