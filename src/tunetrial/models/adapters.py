"""An adapter folder in PEFT's layout: read, and refused where it could mislead, before PEFT or torch sees it. No torch.

Nothing here loads weights: `engine.merge` does, and checks keys and values there.
"""

import json
from pathlib import Path
from typing import Literal

from tunetrial.core import manifest
from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READOUT = "readout.json"  # of a head that reads answers, beside the weights
FINGERPRINT = "base_fingerprint"
HEADS = {"score", "classifier"}
MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings under which a sum of W and a low-rank product, or DoRA's, is not all that the adapter does.
MUST_BE_EMPTY = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


class AdapterFolder(Record):
    """A LoRA or DoRA adapter whose settings were read. `base_model` is the base that it names, if it names one.

    `heads` are the classifier's parts that it brings besides: they belong to its labels, not to the language model.
    """

    folder: Path
    method: Literal["lora", "dora"]
    rank: int
    base_model: str | None
    heads: tuple[str, ...]
    digest_of_weights: str


def read_adapter(folder: Path, *, moved: bool = False) -> AdapterFolder:
    """Read the settings of an adapter and check that they are those of a plain LoRA or DoRA.

    Refused are settings that name code of another library than transformers (`auto_mapping`), that start from changed
    base weights (PiSSA and its like: added to the original base they give another model, without an error), and all
    that a merge into the weights cannot hold. With `moved` those that start from changed base weights are read: for
    whoever converts them.

    Raises:
        ModelError: No such folder, no safetensors, or settings that are refused.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no adapter, got no {CONFIG}; name a folder that PEFT or tunetrial saved")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object; restore the file")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path}: peft_type: LoRA and DoRA alone can be merged, got {kind!r}; merge it with PEFT")
    for name in MUST_BE_EMPTY:
        if config.get(name):
            got = f"got {_short(config[name])}"
            raise ModelError(f"{path}: {name}: is more than a merge can hold, {got}; use an adapter without it")
    mapping = config.get("auto_mapping") or {}
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if mapping and str(library).split(".")[0] != "transformers":
        got = f"got {_short(library)}"
        raise ModelError(f"{path}: auto_mapping: names code of another library, {got}; do not use this adapter")
    start = config.get("init_lora_weights", True)
    if not moved and isinstance(start, str) and start.lower().startswith(MOVES_THE_BASE):
        do = "convert it with `tunetrial convert` first"
        raise ModelError(f"{path}: init_lora_weights: made for changed base weights, got {start!r}; {do}")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{path}: bias: biases are not merged, got {_short(config['bias'])}; use bias: none")
    saved, rank = config.get("modules_to_save") or [], config.get("r")
    others = sorted({str(name) for name in saved} - HEADS) if isinstance(saved, list) else [_short(saved)]
    if others:
        raise ModelError(f"{path}: modules_to_save: not merged, got {others[0]}; use an adapter of linear layers alone")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ModelError(f"{path}: r: not a rank, got {_short(rank)}; restore the file")
    base = config.get("base_model_name_or_path")
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        got = f"got {pickled[0]}, which can run code when it is opened" if pickled else "got no weights"
        raise ModelError(f"{folder}: no {WEIGHTS}, {got}; save the adapter as safetensors first")
    return AdapterFolder(
        folder=folder,
        method="dora" if config.get("use_dora") else "lora",
        rank=rank,
        base_model=base if isinstance(base, str) and base else None,
        heads=tuple(sorted(saved)),
        digest_of_weights=manifest.sha256(folder / WEIGHTS),
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
