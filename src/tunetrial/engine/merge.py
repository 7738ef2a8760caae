"""An adapter merged into its base: a model folder of its own, which any study may name as a base, or an arm as its own.

The product is computed in fp32 and proven against base plus adapter before it is rounded to the base's dtype; what
the rounding moves is measured on what was saved.
"""

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tunetrial import models
from tunetrial.core import files, manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record
from tunetrial.models.adapters import CONFIG, FINGERPRINT, HEADS, WEIGHTS, AdapterFolder, read_adapter

if TYPE_CHECKING:
    from peft import PeftModel

PREFIX = "base_model.model."
PROBE_ROWS, PROBE_LENGTH = 8, 32
TOLERANCE = 1e-3
NOT_COPIED = (".safetensors", manifest.NAME, models.INDEX)


class Merged(Record):
    """What was merged into what. Differences are of logits on drawn tokens: the largest between base plus adapter and
    the merged weights, both fp32, relative to the largest logit; the same after rounding to the base's dtype; and the
    share of positions at which the likeliest next token stayed the same through it.

    `base_checked`: the adapter says which weights it was trained on, and it is these. PEFT writes no such fingerprint;
    tunetrial's own adapters have one.
    """

    adapter: str
    base: str
    base_fingerprint: str
    base_checked: bool
    matrices: int
    heads_left_out: tuple[str, ...]
    merge_difference: float
    rounding_difference: float
    same_next_token: float
    fingerprint: str

    def __str__(self) -> str:
        checked = "its own base" if self.base_checked else "the adapter does not say of which weights it is"
        lines = [
            f"{self.adapter} into {self.base} ({checked}): {self.matrices} matrices",
            f"merged against base plus adapter, fp32: logits differ by {self.merge_difference:.1e} of the largest",
            f"as saved: by {self.rounding_difference:.1e}; the same next token at {self.same_next_token:.1%}",
        ]
        if self.heads_left_out:
            lines.append(f"left out: {', '.join(self.heads_left_out)}, the head of the adapter's own labels")
        return "\n".join(lines)


def merge(adapter: Path, out: Path, *, base_model: str | None = None, root: Path | None = None) -> Merged:
    """Merge a LoRA or DoRA adapter into its base and write the result as a model folder.

    Args:
        base_model: Instead of the base that the adapter names.
        root: The folder that a relative base starts from.
    Raises:
        ModelError: The adapter cannot be merged, its keys do not fit the base, or `out` is not empty.
        IntegrityError: The adapter is of other base weights, holds NaN or infinity, changes nothing, or the merged
            model does not compute what base plus adapter does. Nothing is written then.
    """
    read = read_adapter(adapter)
    name = base_model or read.base_model
    if name is None:
        raise ModelError(f"{adapter / CONFIG}: names no base; say which with --base")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: is there already; name a new folder")
    base = models.resolve(name, root)
    shape = models.shape(base.folder)
    if not shape.decoder:
        raise ModelError(f"{name}: only language models are merged, got a {shape.model_type} base; merge it with PEFT")
    weights, checked = adapter_weights(read, base)
    model = _load(base.folder)
    ids = torch.randint(shape.vocabulary, (PROBE_ROWS, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))
    merged, beside = _merge(model, read, weights, ids)
    in_weights = _logits(merged, ids)
    largest = float(beside.abs().max())
    difference = float((in_weights - beside).abs().max()) / largest
    if not difference <= TOLERANCE:
        got = f"got logits that differ by {difference:.1e} of the largest"
        raise IntegrityError(f"{adapter}: merged it does not compute what base plus adapter does, {got}; do not use it")
    with files.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as made:
            folder = Path(made) / "model"
            dtype = _stored_dtype(base.folder)
            merged.to(dtype).save_pretrained(folder)
            _copy_rest(base.folder, folder)
            saved = _logits(_load(folder), ids)
            told = {"adapter": str(adapter), "adapter_digest": read.digest_of_weights, "base": name}
            told[FINGERPRINT] = base.fingerprint
            (folder / "merged_from.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            manifest.seal(folder)
            if out.exists():
                out.rmdir()
            folder.rename(out)
            files.sync(out.parent)
    return Merged(
        adapter=str(adapter),
        base=name,
        base_fingerprint=base.fingerprint,
        base_checked=checked,
        matrices=sum("lora_A" in key for key in weights),
        heads_left_out=read.heads,
        merge_difference=difference,
        rounding_difference=float((saved - beside).abs().max()) / largest,
        same_next_token=float((saved.argmax(-1) == beside.argmax(-1)).float().mean()),
        fingerprint=models.resolve(str(out.absolute())).fingerprint,
    )


def adapter_weights(read: AdapterFolder, base: models.PinnedModel) -> tuple[dict[str, torch.Tensor], bool]:
    """The adapter's tensors without heads, finite and of effect; and whether they say that they are of this base."""
    path = read.folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(FINGERPRINT)
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: cannot be read, got {type(error).__name__}; restore the file") from None
    if stated is not None and stated != base.fingerprint:
        got = f"got {base.name} with fingerprint {base.fingerprint[:12]}"
        raise IntegrityError(
            f"{path}: made for base weights {stated[:12]}, {got}; name the base that it was trained on"
        )
    body = {k: w for k, w in weights.items() if k.removeprefix(PREFIX).split(".")[0] not in HEADS}
    for key, weight in body.items():
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise IntegrityError(f"{path}: {key}: NaN or infinity, got {bad} such numbers; train the adapter anew")
    if not any(weight.any() for key, weight in body.items() if "lora_B" in key):
        raise IntegrityError(f"{path}: changes nothing, got no lora_B that is not 0; name an adapter that was trained")
    return body, stated is not None


def _merge(
    model: torch.nn.Module, read: AdapterFolder, weights: dict[str, torch.Tensor], ids: torch.Tensor
) -> tuple[torch.nn.Module, torch.Tensor]:
    """Merge by PEFT; returns the model, and the logits that it had with the adapter beside its weights."""
    attached = attach_by_peft(model, read, weights)
    beside = _logits(attached, ids)
    return attached.merge_and_unload(safe_merge=True), beside


def attach_by_peft(model: torch.nn.Module, read: AdapterFolder, weights: dict[str, torch.Tensor]) -> "PeftModel":
    """Put an adapter of these weights into a causal language model, which is changed in place.

    Raises:
        ModelError: Its keys are not those of the model.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(read.folder))
    config.task_type = config.modules_to_save = config.auto_mapping = None
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT's use of transformers, not ours
            attached = PeftModel(model, config)
            loaded = set_peft_model_state_dict(attached, weights)
    except (ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{read.folder}: does not fit the base, got {text[:200]}; name the base of it") from None
    if loaded.unexpected_keys:
        raise ModelError(f"{read.folder}: does not fit the base, got {loaded.unexpected_keys[0]}; name the base of it")
    missing = [key for key in loaded.missing_keys if "lora_" in key]
    if missing:
        raise ModelError(f"{read.folder}: weights are missing, got none for {missing[0]}; restore the file")
    return attached.eval()


def _load(folder: Path) -> torch.nn.Module:
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()


@torch.no_grad()
def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits.float()


def _stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that the base is stored in."""
    with safe_open(sorted(folder.glob("*.safetensors"))[0], framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def _copy_rest(base: Path, folder: Path) -> None:
    """Tokenizer and settings are the base's own files."""
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.endswith(NOT_COPIED) and path.suffix not in models.PICKLED:
            shutil.copyfile(path, folder / path.name)
