"""TRL's and PEFT's arguments, by trl 1.16.0, transformers 5.23 and peft 0.21.2, read on 2026-11-22.

Keys are those of SFTConfig, ModelConfig and ScriptArguments, as `trl sft --config` takes them, and of LoraConfig and
BitsAndBytesConfig. They may stand side by side or in sections; a section of LoraConfig has PEFT's own defaults.
"""

from pathlib import Path

from tunetrial.core.errors import SpecError
from tunetrial.spec.faults import show
from tunetrial.spec.recipes import recipe as r
from tunetrial.spec.recipes.recipe import Dataset, Given, Recipe

MARKS = {"model_name_or_path", "use_peft", "lora_r", "r", "max_length", "dataset_name", "lora_target_modules"}
SECTIONS = ("lora_config", "peft_config", "LoraConfig")
DEFAULTS = {
    "learning_rate": 2e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": 1024,
    "weight_decay": 0.0,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch_fused",
    "warmup_steps": 0,
    "dataset_train_split": "train",
}
PLAIN = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
OWN = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


def read(values: dict, where: str, folder: Path, *, devices: int) -> Recipe:
    """Read arguments, flat or in sections.

    Raises:
        SpecError: A key stands twice, or a value cannot be used.
    """
    flat, tool = _flat(values, where)
    own = "r" in flat
    adapted = bool(own or flat.get("use_peft") in (True, "true", "True") or "peft_type" in flat)
    given = Given(tool, where, flat, DEFAULTS | ((OWN if own else PLAIN) if adapted else {}))
    if "max_seq_length" in given and "max_length" not in given:
        flat["max_length"] = flat.pop("max_seq_length")
        given = Given(tool, where, flat, DEFAULTS | ((OWN if own else PLAIN) if adapted else {}))
    base = given.take("model_name_or_path") or given.take("base_model_name_or_path")
    if not isinstance(base, str):
        raise SpecError(f"{where}: model_name_or_path: is missing; add the base model")
    method, settings = _method(given, adapted, "r" if own else "lora_r")
    data = _data(given, folder)
    settings |= r.optimizer(given, "optim")
    r.scheduled(given, "lr_scheduler_type")
    fields = {
        "learning_rate": given.number("learning_rate"),
        "epochs": r.epochs(given, "num_train_epochs"),
        "batch_examples": r.batch(given, "per_device_train_batch_size", devices),
        "max_tokens": given.count("max_length"),
        "weight_decay": given.number("weight_decay"),
        "precision": r.precision(given.take("bf16"), given.take("fp16")),
    }
    given.rest()
    return Recipe(
        tool=tool,
        base_model=base,
        method=method,
        settings=settings,
        data=data,
        left=tuple(given.left),
        same=tuple(given.same),
        **fields,
    )


def _flat(values: dict, where: str) -> tuple[dict, str]:
    """Sections opened; a key that stands in two is refused."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        is_section = (
            isinstance(value, dict) and ("config" in key.lower() or "arg" in key.lower()) and "kwargs" not in key
        )
        for inner, one in value.items() if is_section else [(key, value)]:
            if flat.get(inner, one) != one:
                raise SpecError(f"{where}: {inner}: given twice, got {show(flat[inner])} and {show(one)}; remove one")
            flat[inner] = one
    return flat, "peft" if any(name in values for name in SECTIONS) or "r" in flat else "trl"


def _method(given: Given, adapted: bool, rank_key: str) -> tuple:
    four, eight = given.flag("load_in_4bit"), given.flag("load_in_8bit")
    given.take("use_peft")
    kind = given.take("peft_type") or "LORA"
    if not adapted:
        if four or eight:
            raise given.refuse("load_in_4bit", "a quantised base without an adapter", True, "add use_peft: true")
        return "full", {}
    if kind != "LORA":
        raise given.refuse("peft_type", "unknown kind", kind, "use LORA")
    if four and eight:
        raise given.refuse("load_in_8bit", "conflicts with load_in_4bit", True, "remove one")
    task = given.take("task_type") or given.take("lora_task_type")
    if task not in (None, "CAUSAL_LM"):
        given.leave("task_type" if "task_type" in given else "lora_task_type", "the task says what is trained")
    named = "target_modules" if "target_modules" in given else "lora_target_modules"
    where = r.targets(given, named, given.take(named), everything="all-linear")
    given.expect("bias", "none")
    given.expect("init_lora_weights", True)
    dora, rslora = given.flag("use_dora"), given.flag("use_rslora")
    given.expect("bnb_4bit_quant_type", "nf4")
    rank, alpha = given.count(rank_key), given.number("lora_alpha")
    return r.lora(rank, alpha, where, rslora=rslora, dora=dora, bits=4 if four else 8 if eight else None)


def _data(given: Given, folder: Path) -> Dataset | None:
    """A Hub id or a folder of files, whose columns are told by the files alone."""
    name = given.take("dataset_name")
    given.expect("dataset_train_split", "train")
    if name is None:
        return None
    field = given.take("dataset_text_field")
    if field not in (None, "text"):
        given.leave("dataset_text_field", "a text without a prompt has no answer to score")
    return Dataset(path=str(name), messages="messages")


def write(recipe: Recipe, micro: int, seed: int) -> tuple[dict, list[str]]:
    """The keys of `trl sft --config`, and what they cannot say."""
    settings, notes = recipe.settings, []
    keys: dict[str, object] = {"model_name_or_path": recipe.base_model}
    if recipe.method == "full":
        keys["dtype"] = "float32"
    else:
        named, alpha = settings["targets"] != "all-linear", settings["alpha"]
        if alpha != int(alpha):
            notes.append(f"alpha {alpha:g}: trl takes whole numbers")
        keys |= {"use_peft": True, "lora_r": settings["rank"], "lora_alpha": round(alpha), "lora_dropout": 0.0}
        keys["lora_target_modules"] = list(settings["targets"]) if named else "all-linear"
        keys |= {"use_rslora": True} if settings.get("rslora") else {}
        keys |= {"use_dora": True} if settings.get("dora") else {}
        keys |= _storage(recipe, nested="use_bnb_nested_quant")
    if recipe.data is not None:
        name = recipe.data.path.removeprefix("hub:")
        notes.append(f"rows: dataset_name {show(name)} must have the columns messages, or prompt and completion")
        keys["dataset_name"] = name
    return keys | _training(recipe, micro, seed, notes), notes


def write_peft(recipe: Recipe, micro: int, seed: int) -> tuple[dict, list[str]]:
    """LoraConfig, BitsAndBytesConfig and SFTConfig, each a section, and what they cannot say.

    Raises:
        SpecError: The arm has no adapter.
    """
    if recipe.method == "full":
        raise SpecError("recipe: peft writes adapters, got an arm of method full; use --for trl")
    settings, notes = recipe.settings, []
    where = settings["targets"]
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings["rank"],
        "lora_alpha": settings["alpha"] if settings["alpha"] % 1 else int(settings["alpha"]),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": where if where == "all-linear" else list(where),
        "use_rslora": bool(settings.get("rslora")),
        "use_dora": bool(settings.get("dora")),
    }
    keys: dict[str, object] = {"model_name_or_path": recipe.base_model, "lora_config": adapter}
    storage = _storage(recipe, nested="bnb_4bit_use_double_quant")
    keys |= {"quantization_config": storage} if storage else {}
    return keys | {"training_args": _training(recipe, micro, seed, notes)}, notes


def _storage(recipe: Recipe, *, nested: str) -> dict[str, object]:
    if recipe.method == "qlora":
        return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", nested: True}
    return {"load_in_8bit": True} if recipe.settings.get("base") == "int8" else {}


def _training(recipe: Recipe, micro: int, seed: int, notes: list[str]) -> dict[str, object]:
    notes.append("rows longer than max_length: trl cuts them, the study left them out")
    return {
        "max_length": recipe.max_tokens,
        "packing": False,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_examples // micro,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "optim": r.optimizer_name(recipe),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": 1.0,
        **r.dtypes(recipe),
        "seed": seed,
    }
