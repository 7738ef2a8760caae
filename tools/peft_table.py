"""Try every adapter type of PEFT on a tiny model and write down which can be arms: `peft_types.json`.

python tools/peft_table.py            # the file; a few minutes on one core
python tools/peft_table.py IA3 VERA   # print these rows and write nothing

A type can be an arm if its loss falls, nothing but its own parameters moves, rows do not see each other, and what is
saved is loaded by PEFT to the same logits. Whether it can be folded into the base is noted beside it; docs/methods.md,
which `tools/capability_table.py` writes next, says what those that can be arms do in a session of the engine. The model
is a random Llama of two layers, so the table says what works, not what is worth using.
"""

import copy
import dataclasses
import json
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import LlamaConfig, LlamaForSequenceClassification

from tunetrial.core.errors import SpecError
from tunetrial.core.study import Setting
from tunetrial.engine.peft_arms import PeftArm
from tunetrial.methods import PeftSpec
from tunetrial.methods.peft import OWN_TARGETS, TYPES, Capability

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEPS, FALLS, SAME = 40, 0.95, 1e-4
# What a tiny model asks for: sizes that divide its width, and what a type cannot do without.
SETTINGS: dict[str, dict[str, Setting]] = {
    "C3A": {"block_size": 32},
    "FOURIERFT": {"n_frequency": 64},
    "ROAD": {"group_size": 32},
    "SHIRA": {"r": 8},
    "VBLORA": {"vector_length": 32, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 64},
}
# What cannot work here whatever a probe finds: the loop knows examples, losses and parameters and nothing of methods.
NEEDS = {
    "ADALORA": "it reallocates ranks from gradients between backward and update",
    "ADAPTION_PROMPT": "it puts prompts into attention, which lays rows end to end here",
    "POLY": "it routes by task ids, which single tasks do not have",
    "SHADOW": "it runs a second model beside the base",
    "TRAINABLE_TOKENS": "it needs token ids, which a study file does not hold",
    "XLORA": "it mixes adapters that must be trained before",
}
PROMPTS = "it puts virtual tokens before each row, and rows lie end to end here"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    asked = sys.argv[1:]
    types = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
    found = {}
    for name in asked or types:
        found[name] = probe(name)
        print(name, found[name].model_dump(exclude={"settings"}, exclude_defaults=True), flush=True)
    if not asked:
        content = {"peft": version("peft"), "types": {n: r.model_dump(exclude_defaults=True) for n, r in found.items()}}
        TYPES.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def probe(peft_type: str) -> Capability:
    """Try one type: does it train, alone; load to the same logits; merge?"""
    config = next(c for kind, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind.value == peft_type)
    shared = {field.name for field in dataclasses.fields(PeftConfig)}
    settings = tuple(f.name for f in dataclasses.fields(config) if f.name not in shared | {"modules_to_save"})
    reason = PROMPTS if issubclass(config, PromptLearningConfig) else NEEDS.get(peft_type)
    if reason is not None:
        return Capability(refused=reason, settings=settings)
    given = dict(SETTINGS.get(peft_type, {}))
    if "target_modules" in settings and peft_type not in OWN_TARGETS:
        given.setdefault("target_modules", PROJECTIONS)
    try:
        return _tried(PeftSpec(peft_type=peft_type, settings=given), settings)
    except SpecError as error:
        return Capability(refused=str(error).split("got ", 1)[1].rsplit(";", 1)[0][:160], settings=settings)
    except Exception as error:  # whatever a type does wrong is what the table is for
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Capability(refused=f"it fails on a plain Llama ({text[:120]})", settings=settings)


def _tried(spec: PeftSpec, settings: tuple[str, ...]) -> Capability:
    base = tiny()
    for rate in (1e-3, 1e-2, 1e-1):
        model = copy.deepcopy(base)
        arm = PeftArm(model.model, spec, seed=1)
        own = {parameter.data_ptr() for parameter in arm.trained.values()}
        before = {n: t.clone() for n, t in arm.peft.state_dict().items() if t.data_ptr() not in own}
        losses = train(model, list(arm.trained.values()), rate)
        moved = [n for n, t in arm.peft.state_dict().items() if n in before and not torch.equal(t, before[n])]
        falls = losses[-1] < FALLS * losses[0]
        if falls or moved:
            break
    if moved:
        return Capability(refused=f"it moves what it does not mark as trainable ({moved[0]})", settings=settings)
    if not falls:
        return Capability(refused="its loss does not fall", settings=settings)
    ours = logits(model)
    if not (logits(model, rows()[0][:1]) - ours[:1]).abs().max() < SAME:
        return Capability(refused="what it computes for a row depends on the rows beside it", settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        masters = {name: parameter.detach().clone() for name, parameter in arm.trained.items()}
        arm.save(
            masters, {"score.weight": model.score.weight.detach()}, Path(folder), base="tiny", base_fingerprint="tiny"
        )
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    if not (logits(loaded) - ours).abs().max() < SAME:
        return Capability(refused="what is saved does not load to the same logits", trains=True, settings=settings)
    return Capability(trains=True, loads=True, merges=merges(loaded, ours), settings=settings)


def merges(loaded: PeftModel, ours: torch.Tensor) -> bool:
    """Whether the adapter can be folded into the base without changing what it computes."""
    try:
        return bool((logits(loaded.merge_and_unload(safe_merge=True)) - ours).abs().max() < SAME)
    except (AttributeError, NotImplementedError, ValueError, TypeError):
        return False


def tiny() -> LlamaForSequenceClassification:
    """A random Llama with a head of two labels."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        num_labels=2,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config).eval().requires_grad_(False)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, 64, (16, 8), generator=generator), torch.arange(16) % 2


def train(model: LlamaForSequenceClassification, parameters: list[torch.nn.Parameter], rate: float) -> list[float]:
    """A few steps over the same rows with the head at rest, so that what falls is due to the adapter."""
    optimiser, (ids, labels), losses = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0), rows(), []
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Of all rows, or of those given."""
    return model(input_ids=rows()[0] if ids is None else ids).logits


if __name__ == "__main__":
    main()
