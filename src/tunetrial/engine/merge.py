"""An adapter merged into its base: a model folder of its own, which any study may name as a base, or an arm as its own.

The product is computed in fp32 and proven against base plus adapter before it is rounded to the base's dtype; what
the rounding moves is measured on what was saved.
"""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from tunetrial import models
from tunetrial.core import files, manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record
from tunetrial.core.study import Precision
from tunetrial.engine import adapters
from tunetrial.engine.quantised import matrix
from tunetrial.engine.readout import Readout
from tunetrial.methods.storage import Storage
from tunetrial.models.adapters import CONFIG, FINGERPRINT, HEADS, READOUT, WEIGHTS, AdapterFolder, read_adapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

PREFIX = "base_model.model."
PROBE_ROWS, PROBE_LENGTH = 8, 32
TOLERANCE = 1e-3
NOT_COPIED = (".safetensors", manifest.NAME, models.INDEX)
HEAD, MERGED_FROM = f"{PREFIX}score.weight", "merged_from.json"
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
IN_CONFIG = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Dequantised(Record):
    """A base as it was while an adapter was trained beside it: its blocks' linear layers stored in few bits, from
    weights in the precision of that training, and read again."""

    storage: Storage
    precision: Precision


class Merged(Record):
    """What was merged into what. Differences are of logits on drawn tokens: the largest between base plus adapter and
    the merged weights, both fp32, relative to the largest logit; the same after rounding to the base's dtype; and the
    share of positions at which the likeliest next token stayed the same through it.

    `base_checked`: the adapter says which weights it was trained on, and it is these. PEFT writes no such fingerprint;
    tunetrial's own adapters have one. Of a merged classifier the same holds of its labels, in place of tokens.
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


def merge(
    adapter: Path,
    out: Path,
    *,
    base_model: str | None = None,
    root: Path | None = None,
    dtype: Dtype | None = None,
    onto: Dequantised | None = None,
    keep_head: bool = False,
) -> Merged:
    """Merge a LoRA or DoRA adapter into its base and write the result as a model folder.

    Args:
        base_model: Instead of the base that the adapter names.
        root: The folder that a relative base starts from.
        dtype: What the weights are saved in; the base's own if not said.
        onto: Merge into the base as training saw it in few bits, dequantised, instead of the base itself. The product
            is in 16 or 32 bits either way: nothing is ever added to weights in 4 bits.
        keep_head: Write a classifier with the adapter's own head, which stays fp32, instead of a language model.
    Raises:
        ModelError: The adapter cannot be merged, or its keys do not fit the base.
        StoreError: `out` is not empty, or cannot be written.
        IntegrityError: The adapter is of other base weights, holds NaN or infinity, changes nothing, or the merged
            model does not compute what base plus adapter does. Nothing is written then.
    """
    read = read_adapter(adapter)
    name = base_model or read.base_model
    if name is None:
        raise ModelError(f"{adapter / CONFIG}: names no base; say which with --base")
    files.check_new(out)
    base = models.resolve(name, root)
    shape = models.shape(base.folder)
    if not shape.decoder:
        raise ModelError(f"{name}: only language models are merged, got a {shape.model_type} base; merge it with PEFT")
    head = _head(read) if keep_head else None
    weights, checked = adapter_weights(read, base)
    model = load(base.folder, head)
    if onto is not None:
        _dequantise(model, onto, tuple(shape.projections))
    ids = drawn_tokens(shape.vocabulary)
    merged, beside, moved = _merge(model, read, weights, ids)
    with files.new_folder(out.absolute()) as folder:
        _save(merged, folder, read, base, dtype=dtype, keep_head=keep_head)
        saved = logits(load(folder, head), ids)
        if not saved.isfinite().all():
            raise IntegrityError(f"{out}: as saved it computes NaN or infinity, got dtype {dtype}; use bf16 or fp32")
        _tell(folder, read, base, onto)
        manifest.seal(folder)
    return Merged(
        adapter=str(adapter),
        base=name,
        base_fingerprint=base.fingerprint,
        base_checked=checked,
        matrices=sum("lora_A" in key for key in weights),
        heads_left_out=() if keep_head else read.heads,
        merge_difference=moved,
        rounding_difference=difference(saved, beside),
        same_next_token=float((saved.argmax(-1) == beside.argmax(-1)).float().mean()),
        fingerprint=models.resolve(str(out.absolute())).fingerprint,
    )


def read_weights(path: Path, base: models.PinnedModel) -> tuple[dict[str, torch.Tensor], bool]:
    """All tensors of an adapter's file, which are finite; and whether they say that they are of this base.

    Raises:
        IntegrityError: The file cannot be read, is of other base weights, or holds NaN or infinity.
    """
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
    for key, weight in weights.items():
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise IntegrityError(f"{path}: {key}: NaN or infinity, got {bad} such numbers; train the adapter anew")
    return weights, stated is not None


def adapter_weights(read: AdapterFolder, base: models.PinnedModel) -> tuple[dict[str, torch.Tensor], bool]:
    """The adapter's tensors without heads, finite and of effect; and whether they say that they are of this base."""
    path = read.folder / WEIGHTS
    weights, stated = read_weights(path, base)
    body = {k: w for k, w in weights.items() if k.removeprefix(PREFIX).split(".")[0] not in HEADS}
    if not any(weight.any() for key, weight in body.items() if "lora_B" in key):
        raise IntegrityError(f"{path}: changes nothing, got no lora_B that is not 0; name an adapter that was trained")
    return body, stated


def _merge(
    model: torch.nn.Module, read: AdapterFolder, weights: dict[str, torch.Tensor], ids: torch.Tensor
) -> tuple[torch.nn.Module, torch.Tensor, float]:
    """Merge by PEFT; returns the model, the logits that it had with the adapter beside its weights, and how far the
    merged ones are from these.

    Raises:
        IntegrityError: Too far.
    """
    attached = attach_by_peft(model, read, weights)
    beside = logits(attached, ids)
    merged = attached.merge_and_unload(safe_merge=True)
    moved = difference(logits(merged, ids), beside)
    if not moved <= TOLERANCE:
        got = f"got logits that differ by {moved:.1e} of the largest"
        what = "merged it does not compute what base plus adapter does"
        raise IntegrityError(f"{read.folder}: {what}, {got}; do not use it")
    return merged, beside, moved


def drawn_tokens(vocabulary: int) -> torch.Tensor:
    """Rows of ids on which two models are held against each other."""
    return torch.randint(vocabulary, (PROBE_ROWS, PROBE_LENGTH), generator=torch.Generator().manual_seed(0))


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value wanted."""
    return float((found - wanted).abs().max()) / float(wanted.abs().max())


def attach_by_peft(model: torch.nn.Module, read: AdapterFolder, weights: dict[str, torch.Tensor]) -> "PeftModel":
    """Put an adapter of these weights into a causal language model, which is changed in place.

    Raises:
        ModelError: Its keys are not those of the model.
    """
    from peft import PeftModel, set_peft_model_state_dict

    config = peft_config(read)
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


def peft_config(read: AdapterFolder) -> "PeftConfig":
    """An adapter's settings as PEFT has them, for a language model, without heads."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(read.folder))
    config.task_type = config.modules_to_save = config.auto_mapping = None
    config.inference_mode = config.init_lora_weights = True  # weights are loaded over whatever it would start from
    return config


def _head(read: AdapterFolder) -> torch.Tensor:
    """The classifier's matrix (labels, hidden)."""
    path = read.folder / WEIGHTS
    with safe_open(path, framework="pt") as file:
        if HEAD not in file.keys():
            raise ModelError(f"{path}: no head to keep, got none named score; merge without it")
        return file.get_tensor(HEAD).float()


def load(folder: Path, head: torch.Tensor | None = None) -> torch.nn.Module:
    """The model in fp32: a language model, or a classifier with this head."""
    settings = {"dtype": torch.float32, "trust_remote_code": False}
    with _quiet():
        if head is None:
            return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(head), **settings)
    model.score.weight.data = head.clone()
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of a head that is not in the base; here it comes from the adapter."""
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Row after row: a classifier without a padding token takes no batch."""
    return torch.cat([model(input_ids=row[None]).logits.float() for row in ids])


@torch.no_grad()
def _dequantise(model: torch.nn.Module, onto: Dequantised, targets: tuple[str, ...]) -> None:
    """Put in place of the linear layers' weights what their few bits say."""
    plain = {path: (parent, name, getattr(parent, name)) for parent, name, path in adapters.slots(model, targets)}
    for parent, name, layer in plain.values():
        narrow = layer.weight.data.to(DTYPES[onto.precision])
        layer.weight.data, wide = narrow, layer.weight.data
        adapters.quantise(parent, onto.storage, (name,), device=wide.device)
        weight = matrix(getattr(parent, name)).to(wide)
        layer.weight.data = weight.T.contiguous() if isinstance(layer, Conv1D) else weight
        setattr(parent, name, layer)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that the base is stored in."""
    with safe_open(sorted(folder.glob("*.safetensors"))[0], framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def _save(
    merged: torch.nn.Module,
    folder: Path,
    read: AdapterFolder,
    base: models.PinnedModel,
    *,
    dtype: Dtype | None,
    keep_head: bool,
) -> None:
    """Write the weights, and beside them the base's own tokenizer and settings."""
    merged.to(DTYPES[dtype] if dtype else stored_dtype(base.folder))
    if keep_head:
        merged.score.float()
    merged.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written for the owner's eyes alone; the rest goes by the umask
        shutil.copymode(folder / "config.json", weights)
    copy_rest(base.folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = IN_CONFIG[dtype]
    if keep_head:
        config = Readout.model_validate_json((read.folder / READOUT).read_bytes()).config(config)
        shutil.copyfile(read.folder / READOUT, folder / READOUT)
    if keep_head or dtype is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tell(folder: Path, read: AdapterFolder, base: models.PinnedModel, onto: Dequantised | None) -> None:
    """Write what was merged into what."""
    told = {"adapter": str(read.folder), "adapter_digest": read.digest_of_weights, "base": base.name}
    told |= {FINGERPRINT: base.fingerprint} | ({} if onto is None else {"dequantised": onto.model_dump()})
    (folder / MERGED_FROM).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def copy_rest(base: Path, folder: Path) -> None:
    """Tokenizer and settings are the base's own files."""
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.endswith(NOT_COPIED) and path.suffix not in models.PICKLED:
            shutil.copyfile(path, folder / path.name)
