"""What was saved of a tuned model, opened beside the base that it came from, both as language models.

A classifier's head is left out: its backbone is asked as a language model, through the output layer of the base, or
through its own where input and output share their weights.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunetrial import models
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.engine import attention, merge
from tunetrial.engine.states import View
from tunetrial.models.adapters import CONFIG, HEADS, read_adapter


def open_pair(base: models.PinnedModel, artifact: Path, dtype: torch.dtype, device: torch.device) -> tuple[View, View]:
    """Open base and tuned model: an adapter folder of LoRA or DoRA, or a folder with all weights, saved by tunetrial,
    PEFT or transformers.

    An adapter goes into the one model in memory, and is taken off for the base. It is read over the base as it came:
    one trained over weights in few bits computes otherwise there than it did in training.

    Raises:
        ModelError: The base is no language model, or the artifact is refused or does not fit it.
        IntegrityError: The adapter is of other base weights, holds NaN or changes nothing, or a file is damaged.
    """
    shape = models.shape(base.folder)
    if not shape.decoder:
        raise ModelError(f"{base.name}: held-out text is for language models, got a {shape.model_type} base")
    causal = attention.load(base.folder, AutoModelForCausalLM, dtype, device)
    if (artifact / CONFIG).is_file():
        read = read_adapter(artifact)
        weights, _ = merge.adapter_weights(read, base)
        attached = merge.attach_by_peft(causal, read, weights)
        return View(causal, within=attached.disable_adapter), View(causal)
    tuned = attention.load(
        base.folder, AutoModelForCausalLM, dtype, device, attention=causal.config._attn_implementation
    )
    _take_over(tuned, artifact)
    return View(causal), View(tuned)


def _take_over(model: PreTrainedModel, folder: Path) -> None:
    """Give the model all weights of a folder, those of a classifier but for its head."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{folder}: no weights, got no *.safetensors; name a folder with an adapter or a model")
    try:
        weights = {name: weight for path in paths for name, weight in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{folder}: cannot be read, got {type(error).__name__}; restore the files") from None
    body = {name: weight for name, weight in weights.items() if name.split(".")[0] not in HEADS}
    try:
        found = model.load_state_dict(body, strict=False)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{folder}: does not fit the base, got {text[:200]}; name the base of it") from None
    output = model.get_output_embeddings().weight
    shared = output is model.get_input_embeddings().weight
    of_output = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight is output}
    allowed = of_output if shared or len(body) < len(weights) else set()
    strange = [*found.unexpected_keys, *sorted(set(found.missing_keys) - allowed)]
    if strange:
        raise ModelError(f"{folder}: does not fit the base, got {strange[0]}; name the base of it")
