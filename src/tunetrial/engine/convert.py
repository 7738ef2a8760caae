"""An adapter that was trained over changed base weights, made into an ordinary one over the base as it is.

PiSSA, OLoRA, CorDA and LoRA-GA start from factors B0 A0 of the base W and train beside W - s B0 A0. What they learnt is
W - s B0 A0 + s B A, so that [B, -B0] [A; A0], of twice the rank at the same scale, says it over W itself. B0 and A0 are
in no adapter: who trained it must have saved them before the first step.
Source: arXiv:2404.02948, section on conversion; PEFT's `path_initial_model_for_weight_conversion` does the same.
"""

import json
import math
from pathlib import Path

import torch

from tunetrial import models
from tunetrial.core import files, manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record
from tunetrial.engine import merge, tensors
from tunetrial.engine.readout import READOUT
from tunetrial.models.adapters import CONFIG, FINGERPRINT, WEIGHTS, AdapterFolder, read_adapter
from tunetrial.models.sizes import read_config

PROJECTED = {"pissa": True, "olora": False}  # whether B0 A0 is scaled as the adapter is where it is taken from W
LARGEST_RESIDUE = 0.02


class Converted(Record):
    """What became of an adapter. Differences are of logits on drawn tokens, relative to the largest: between the
    changed base with the trained adapter and the base with the converted one, in fp32; and the same where the changed
    base was rounded to the base's dtype, as it was in training.

    `base_checked`: B0 A0 is what such a start takes from these base weights; of CorDA and LoRA-GA, which look at data,
    that cannot be told.
    """

    adapter: str
    base: str
    base_fingerprint: str
    base_checked: bool
    start: str
    rank: int
    matrices: int
    difference: float
    rounding_difference: float

    def __str__(self) -> str:
        checked = "it starts from this base" if self.base_checked else "that it starts from this base is not checked"
        return (
            f"{self.adapter} ({self.start}) over {self.base}: rank {self.rank}, {self.matrices} matrices; {checked}\n"
            f"logits differ by {self.difference:.1e} of the largest, {self.rounding_difference:.1e} with the base that "
            "it was trained beside as rounded"
        )


def convert(adapter: Path, out: Path, *, initial: Path, base_model: str | None = None) -> Converted:
    """Write an ordinary adapter of twice the rank that computes over the base what `adapter` does over its changed one.

    Args:
        initial: The folder that PEFT saved before the first step: B0 and A0.
        base_model: Instead of the base that the adapter names.
    Raises:
        ModelError: There is nothing to convert, it is not linear (DoRA), or both folders are not of one adapter.
        IntegrityError: `initial` is no start of this base, or the converted adapter computes something else.
        StoreError: `out` holds something, or cannot be written. Nothing is written in any of these cases.
    """
    read, begun = read_adapter(adapter, moved=True), _initial(initial)
    start = str(read_config(adapter / CONFIG).get("init_lora_weights"))
    _check_start(adapter, start, read)
    name = base_model or read.base_model
    if name is None:
        raise ModelError(f"{adapter / CONFIG}: names no base; say which with --base")
    files.check_new(out)
    base = models.resolve(name)
    (trained, _), (first, _) = merge.adapter_weights(read, base), merge.adapter_weights(begun, base)
    _check_alike(adapter, initial, trained, first)
    beside = _as_trained(base, begun, first, trained, start)
    made = {key: _joined(key, weight, first[key]) for key, weight in trained.items()}
    with files.new_folder(out.absolute()) as folder:
        whole = made | _heads(read)
        tensors.write(folder / WEIGHTS, whole, metadata={"format": "pt", FINGERPRINT: base.fingerprint})
        (folder / CONFIG).write_text(json.dumps(_config(adapter, name), indent=1) + "\n", encoding="utf-8")
        if (adapter / READOUT).is_file():
            (folder / READOUT).write_bytes((adapter / READOUT).read_bytes())
        written = read_adapter(folder)
        attached = merge.attach_by_peft(merge.load(base.folder), written, merge.adapter_weights(written, base)[0])
        found = merge.logits(attached, _ids(base))
        difference, rounding = (merge.difference(found, wanted) for wanted in beside)
        if not difference <= merge.TOLERANCE:
            got = f"got logits that differ by {difference:.1e} of the largest"
            raise IntegrityError(f"{adapter}: converted it computes something else, {got}; do not use it")
        manifest.seal(folder)
    return Converted(
        adapter=str(adapter),
        base=name,
        base_fingerprint=base.fingerprint,
        base_checked=_kind(start) in PROJECTED,
        start=start,
        rank=written.rank,
        matrices=sum("lora_A" in key for key in made),
        difference=difference,
        rounding_difference=rounding,
    )


def _initial(folder: Path) -> AdapterFolder:
    try:
        return read_adapter(folder, moved=True)
    except ModelError as error:
        do = "without the factors from before the first step it cannot be converted"
        raise ModelError(f"--initial: {error}; {do}") from None


def _check_start(adapter: Path, start: str, read: AdapterFolder) -> None:
    if _kind(start) == "loftq":
        raise ModelError(f"{adapter}: its base is another one in few bits, got {start!r}; serve it on that base")
    if _kind(start) not in ("pissa", "olora", "corda", "lora_ga"):
        raise ModelError(f"{adapter}: is over the base as it is already, got start {start!r}; use it as it is")
    if read.method == "dora":
        raise ModelError(f"{adapter}: magnitudes are of the changed base, got DoRA; train it with another start")


def _kind(start: str) -> str:
    name = start.lower()
    return "pissa" if name.startswith("pissa_niter") else name


def _check_alike(adapter: Path, initial: Path, trained: dict, first: dict) -> None:
    shapes = [{key: tuple(weight.shape) for key, weight in one.items()} for one in (trained, first)]
    odd = sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
    if odd:
        got = f"got {odd[0]} {shapes[0].get(odd[0])} and {shapes[1].get(odd[0])}"
        raise ModelError(f"{initial}: not the start of {adapter}, {got}; name what was saved before its first step")


@torch.no_grad()
def _as_trained(
    base: models.PinnedModel, begun: AdapterFolder, first: dict, trained: dict, start: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the changed base with the trained adapter, in fp32 and with the changed base rounded to its dtype."""
    from peft import set_peft_model_state_dict

    attached = merge.attach_by_peft(merge.load(base.folder), begun, first)
    layers = {n: m for n, m in attached.named_modules() if hasattr(m, "get_delta_weight") and hasattr(m, "lora_A")}
    for name, layer in layers.items():
        taken = layer.get_delta_weight("default")
        _check_taken(begun.folder, name, layer, taken, start)
        layer.base_layer.weight.sub_(taken)
    set_peft_model_state_dict(attached, trained)
    exact, dtype = merge.logits(attached, _ids(base)), merge.stored_dtype(base.folder)
    for layer in layers.values():
        layer.base_layer.weight.copy_(layer.base_layer.weight.to(dtype))
    return exact, merge.logits(attached, _ids(base))


def _check_taken(folder: Path, name: str, layer: torch.nn.Module, taken: torch.Tensor, start: str) -> None:
    """B0 A0 is the base seen from the columns of B0 (singular vectors of PiSSA, Q of OLoRA): nothing else of the base
    is left in their span, up to rounding; of PiSSA by iteration, in that of A0's rows where the matrix is wide."""
    if _kind(start) not in PROJECTED:
        return
    scaled, weight = PROJECTED[_kind(start)], layer.base_layer.weight
    flip = getattr(layer, "fan_in_fan_out", False)
    weight, taken = (weight.T, taken.T) if flip else (weight, taken)
    left = weight - (taken if scaled else taken / layer.scaling["default"])
    columns = torch.linalg.qr(layer.lora_B["default"].weight)[0]
    residue = float((columns.T @ left).norm() / (columns.T @ weight).norm())
    if scaled:
        rows = torch.linalg.qr(layer.lora_A["default"].weight.T)[0]
        residue = min(residue, float((left @ rows).norm() / (weight @ rows).norm()))
    if not residue <= LARGEST_RESIDUE:
        got = f"got {residue:.1%} of {name.removeprefix('base_model.model.')} left"
        raise IntegrityError(f"{folder}: not what {start} takes from this base, {got}; name the base and start of it")


def _joined(key: str, trained: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """[A; A0], or [B, -B0]."""
    if "lora_A" in key:
        return torch.cat([trained, first], dim=0)
    return torch.cat([trained, -first], dim=1)


def _heads(read: AdapterFolder) -> dict[str, torch.Tensor]:
    """The head of the adapter's own labels, which goes along."""
    from safetensors.torch import load_file

    weights = load_file(read.folder / WEIGHTS) if read.heads else {}
    return {key: weight for key, weight in weights.items() if "lora_" not in key}


def _config(adapter: Path, base: str) -> dict:
    """The adapter's settings at twice the rank and the same scale: alpha over rank, or over its root with rsLoRA."""
    config = read_config(adapter / CONFIG)
    factor = math.sqrt(2) if config.get("use_rslora") else 2
    changed = {"r": 2 * config["r"], "lora_alpha": factor * config["lora_alpha"], "init_lora_weights": True}
    changed["rank_pattern"] = {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()}
    changed["alpha_pattern"] = {name: factor * alpha for name, alpha in (config.get("alpha_pattern") or {}).items()}
    return config | changed | {"base_model_name_or_path": base, "corda_config": None, "lora_ga_config": None}


def _ids(base: models.PinnedModel) -> torch.Tensor:
    return merge.drawn_tokens(models.shape(base.folder).vocabulary)
