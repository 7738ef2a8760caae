"""Weights made ready to be deployed: an adapter merged, a tuned model as a language model, adapters drawn at random."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunetrial import methods, models
from tunetrial.core.deployment import Offer
from tunetrial.core.errors import ModelError
from tunetrial.core.study import Arm, Setting
from tunetrial.engine import pairs, place
from tunetrial.engine.adapters import adapted, attach, save_peft
from tunetrial.engine.merge import copy_rest, merge, stored_dtype
from tunetrial.engine.streams import stream
from tunetrial.models import PinnedModel
from tunetrial.models.adapters import CONFIG

DRAWN_SD = 0.02


def offer(base: PinnedModel, arm: str, artifacts: Sequence[Path], out: Path) -> Offer:
    """Make the artifacts of an arm ready: adapters, the first of which is merged into the folder `out`, or one tuned
    model, which is written there as a language model.

    Raises:
        ModelError: An artifact is refused, or does not fit the base.
        IntegrityError: An adapter is of other base weights, or a file is damaged.
        StoreError: The disk has no room for the merged model.
    """
    first = artifacts[0]
    if (first / CONFIG).is_file():
        merge(first, out, base_model=str(base.folder))
        return Offer(arm=arm, adapters=tuple(map(str, artifacts)), merged=str(out))
    return Offer(arm=arm, full=str(as_language_model(base, first, out)))


def as_language_model(base: PinnedModel, artifact: Path, out: Path) -> Path:
    """A tuned model's folder as one that is read as a language model: itself if it is one; a classifier's backbone goes
    under the output layer of its base, in a new folder."""
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or ()):
        return artifact
    _, tuned = pairs.open_pair(base, artifact, stored_dtype(base.folder), torch.device("cpu"))
    tuned.model.save_pretrained(out)
    copy_rest(base.folder, out)
    return out


def drawn(base: PinnedModel, settings: dict[str, Setting], count: int, scratch: Path, *, seed: int) -> list[Path]:
    """Write LoRA adapters of these settings with random weights, none of which is 0: for how fast they are, which does
    not depend on their values.

    Raises:
        SpecError: The settings do not suit the base.
        ModelError: The base is no language model.
    """
    shape, settled = models.shape(base.folder), methods.settle("lora", settings)
    if not shape.decoder:
        raise ModelError(f"{base.name}: language models alone are timed, got a {shape.model_type} base; name another")
    spec = methods.find(Arm(name="lora", method="lora", settings=settled)).adapter(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.folder, trust_remote_code=False))
    with place.assumed(place.Place("cpu")):
        attach(model, [spec], seeds=[0])
    told = {"base": str(base.folder), "base_fingerprint": base.fingerprint, "task_type": "CAUSAL_LM"}
    folders = [scratch / f"drawn{number}" for number in range(count)]
    for number, folder in enumerate(folders):
        generator = torch.Generator().manual_seed(stream(seed, f"drawn {number}"))
        weights = {}
        for path, layer in adapted(model).items():
            (_, rank, inputs), (_, outputs, _) = layer.lora_A.shape, layer.lora_B.shape
            weights[f"{path}.lora_A"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            weights[f"{path}.lora_B"] = torch.randn(outputs, rank, generator=generator) * DRAWN_SD
        folder.mkdir()
        save_peft(weights, folder, settings=settled, spec=spec, transposed=shape.transposed, **told)
    return folders
