"""A recipe of another tool in our own terms, and what of it a study does not carry over, each with its reason."""

import re
from collections.abc import Mapping
from typing import Literal

from tunetrial.core.errors import SpecError
from tunetrial.core.records import Record
from tunetrial.core.study import Setting
from tunetrial.spec.faults import show
from tunetrial.spec.text import NUMBER

Tool = Literal["axolotl", "llamafactory", "trl", "peft"]

EIGHT_BITS = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")
SECRET = r"(?!(eos|pad|bos|unk)_).*(token|secret|password|api_key)"

# Keys of all tools that a study does not carry over, and why: the first that matches counts.
_REASONS = (
    (r"lora_dropout|module_dropout|.*dropout.*", "no arm has dropout"),
    (r"neftune_noise_alpha|label_smoothing_factor|loss_type|.*_loss.*", "the loss is plain cross-entropy in every arm"),
    (r"lr_scheduler.*|cosine_.*|lr_quadratic_warmup|lr_groups|lr_div_factor", "in every arm the rate falls linearly"),
    (r"warmup_.*", "every arm warms up over the first 10 % of its steps"),
    (
        r"optimizer|optim|optim_.*|adam_.*|adam_epsilon2|use_(galore|apollo|badam|muon|adam_mini).*",
        "every arm has AdamW (0.9, 0.999, 1e-8)",
    ),
    (r"loraplus_.*|embedding_lr.*", "one learning rate for all that an arm trains"),
    (r"max_grad_norm|gradient_clipping", "every arm clips the gradient at a norm of 1"),
    (
        r"max_steps|early_stopping.*|load_best_model_at_end|metric_for_best_model|greater_is_better",
        "every arm trains whole epochs, and its last step is scored",
    ),
    (r"seed|data_seed|full_determinism", "a study draws the seeds of its runs from its own"),
    (
        r"val_set_size|val_size|eval_dataset|test_datasets|dataset_test_split|do_eval|test_split_size",
        "a study draws validation and test rows from the data, or reads them from files named in the task",
    ),
    (
        r"modules_to_save|lora_modules_to_save|additional_target|.*trainable_token.*|unfrozen_parameters",
        "beside the adapter only the head is trained",
    ),
    (r"bias|lora_bias|fan_in_fan_out|lora_fan_in_fan_out", "an arm trains no biases of its own"),
    (
        r"init_lora_weights|peft_init_lora_weights|pissa_.*|loftq_.*|peft|.*_config_kwargs",
        "A is drawn as a linear layer is by default, and B is zero",
    ),
    (
        r".*rank_pattern|.*alpha_pattern|.*layers_to_transform|.*layers_pattern|.*layer_replication|.*target_parameters",
        "one rank and one alpha for the named projections of all layers",
    ),
    (
        r"train_on_inputs|train_on_prompt|mask_history|completion_only_loss|assistant_only_loss|roles_to_train|"
        r"train_on_eo.",
        "the loss is on the answers alone",
    ),
    (
        r"chat_template.*|template|tool_format|default_system|enable_thinking|special_tokens|tokens|conversation|"
        r"eos_token|pad_token|preserve_thinking",
        "the base's own chat template renders conversations",
    ),
    (
        r"(wandb|swanlab|mlflow|comet|trackio|hub|logging|save|eval|push_to|use_tensorboard|report|run_name|output|"
        r"overwrite|plot|saves|evals|checkpoint|resume|project|disable_tqdm|do_).*|strict|debug|.*_steps_per_epoch",
        "how a run is logged and saved; nothing is learned from it",
    ),
    (
        r"bf16|fp16|tf32|bfloat16|float16|pure_bf16|dtype|torch_dtype|.*attention.*|attn_implementation|flash_attn|"
        r"gradient_checkpointing.*|deepspeed.*|fsdp.*|ddp.*|dataloader_.*|.*num_(proc|workers).*|dataset_(prepared_path|"
        r"processes|num_proc)|.*packing.*|pad_to_.*|padding_free|group_by_length|use_liger.*|liger_.*|torch_compile.*|"
        r"model_type|tokenizer_type|device.*|local_rank|auto_find_batch_size|activation_.*|plugins|low_cpu.*|"
        r"overwrite_cache|use_cache|length_column_name|lora_(mlp|qkv|o)_kernel|lora_on_cpu|remove_unused_columns|"
        r"is_(llama|mistral|falcon|qwen)_derived_model|.*batch_size|bnb_.*|use_bnb.*|double_quantization|"
        r"quantization_(method|type|device_map)|xformers.*|resize_token.*",
        "how it is carried out; the engine decides, and its records say",
    ),
    (r"trust_remote_code|trust_.*", "code of others is not run unless a study says so itself"),
)


class Left(Record):
    """A key of a recipe that a study does not carry over, as it was given, and why."""

    key: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value}: {self.why}"


class Dataset(Record):
    """Rows of a recipe: a file, or `hub:` and an id; conversations in a field, or a template and the field to write."""

    path: str
    messages: str | None = None
    input: str | None = None
    target: str | None = None


class Recipe(Record):
    """One arm and what is held equal, as a recipe states them; `same` is what every arm of a study has anyway."""

    tool: Tool
    base_model: str
    method: str
    settings: dict[str, Setting]
    learning_rate: float
    epochs: int
    batch_examples: int
    max_tokens: int
    weight_decay: float = 0.0
    precision: str = "auto"
    data: Dataset | None = None
    left: tuple[Left, ...] = ()
    same: tuple[str, ...] = ()


class Given:
    """The keys of a recipe, each to be taken or left: what is not taken is left with a reason, never dropped.

    A key without a value counts as not given, as the tools read it.
    """

    def __init__(self, tool: Tool, where: str, values: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        self.tool, self.where = tool, where
        self._values = {key: value for key, value in values.items() if value is not None}
        self._defaults = defaults
        self._taken: set[str] = set()
        self.left: list[Left] = []
        self.same: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str) -> object:
        """The value of a key, or the tool's own default, or None."""
        self._taken.add(key)
        return self._values.get(key, self._defaults.get(key))

    def number(self, key: str) -> float | None:
        """A number, also when it was written as `2e-4`, which YAML 1.1 reads as text."""
        value = self.take(key)
        if isinstance(value, str) and NUMBER.fullmatch(value):
            value = float(value)
        if value is None or isinstance(value, int | float) and not isinstance(value, bool):
            return value
        raise self.refuse(key, "must be a number", value, "write one")

    def count(self, key: str) -> int | None:
        """A whole number of at least 1."""
        value = self.number(key)
        if value is None:
            return None
        if value < 1 or value != int(value):
            raise self.refuse(key, "must be a whole number >= 1", value, "write one")
        return int(value)

    def flag(self, key: str) -> bool:
        """True or false, false if neither given nor a default."""
        value = self.take(key)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.refuse(key, "must be true or false", value, "write one of them")

    def leave(self, key: str, why: str) -> None:
        """Do not carry a key over, for this reason."""
        self._taken.add(key)
        value = self._values.get(key, self._defaults.get(key))
        by_default = "" if key in self._values else f" ({self.tool}'s default)"
        shown = "(not shown)" if re.fullmatch(SECRET, key) else show(value)
        self.left.append(Left(key=key, value=f"{shown}{by_default}", why=why))

    def expect(self, key: str, *expected: object) -> None:
        """What every arm has anyway, or else what is not carried over."""
        value = self._values.get(key, self._defaults.get(key))
        number = float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value
        if value is None:
            self._taken.add(key)
        elif number in expected:
            self._taken.add(key)
            self.same.append(f"{key} = {show(value)}")
        else:
            self.leave(key, reason(key))

    def rest(self) -> None:
        """Leave all that was neither taken nor left."""
        for key in self._values:
            if key not in self._taken:
                self.leave(key, reason(key))

    def refuse(self, key: str, what: str, value: object, remedy: str) -> SpecError:
        """The error of a key; to be raised."""
        return SpecError(f"{self.where}: {key}: {what}, got {show(value)}; {remedy}")


def reason(key: str) -> str:
    """Why a study does not carry a key over."""
    found = (why for pattern, why in _REASONS if re.fullmatch(pattern, key))
    return next(found, "no setting that a study compares or holds equal")


def optimizer(given: Given, key: str) -> dict[str, Setting]:
    """AdamW, with moments in 8 bits if the recipe says so; another is not carried over."""
    value = given.take(key)
    if value not in EIGHT_BITS:
        given.expect(key, None, "adamw_torch", "adamw_torch_fused", "adamw_hf")
        return {}
    if value.startswith("paged"):
        given.leave(key, "AdamW in 8 bits, not paged to the host")
    return {"optimizer_bits": 8}


def scheduled(given: Given, scheduler: str) -> None:
    """Schedule and clipping, which every arm has alike."""
    given.expect(scheduler, "linear")
    given.expect("adam_beta1", 0.9)
    given.expect("adam_beta2", 0.999)
    given.expect("adam_epsilon", 1e-8)
    given.expect("max_grad_norm", 1.0)
    given.expect("lora_dropout", 0.0)
    for one, other in (("warmup_ratio", "warmup_steps"), ("warmup_steps", "warmup_ratio")):
        if one in given or other not in given:
            given.expect(one, 0.1)


def epochs(given: Given, key: str) -> int:
    """Whole epochs, rounded up; a part of one is said."""
    value = given.number(key)
    if value is None or value <= 0:
        raise given.refuse(key, "must be > 0", value, "write the passes over the data")
    whole = max(1, -int(-value // 1))
    if whole != value:
        given.leave(key, f"whole epochs alone; {whole} taken")
    return whole


def batch(given: Given, micro: str, devices: int) -> int:
    """Examples of one optimiser step: on one device at a time, times accumulation, times devices."""
    each, accumulated = given.count(micro), given.count("gradient_accumulation_steps")
    for key in ("packing", "sample_packing", "neat_packing"):
        if key in given and given.flag(key):
            given.leave(key, "a step is of examples, not of packs; so batch_examples is fewer than the recipe sees")
    return (each or 1) * (accumulated or 1) * devices


def targets(given: Given, key: str, value: object, *, everything: str) -> str | tuple[str, ...]:
    """Projections by name, or all of them."""
    if value is None:
        why = (
            "PEFT chooses by architecture; q_proj and v_proj are what it takes in Llama-like bases: see whether it fits"
        )
        given.left.append(Left(key=key, value="nothing", why=why))
        return ("q_proj", "v_proj")
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if names in ([everything], ["all-linear"]):
        return "all-linear"
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(n, str) and re.fullmatch(r"[\w.]+", n) for n in names)
    ):
        raise given.refuse(
            key, "a pattern or no list of names", value, "name the projections, such as [q_proj, v_proj]"
        )
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in names}))


def lora(rank: int, alpha: float, where: str | tuple[str, ...], *, rslora: bool, dora: bool, bits: int | None) -> tuple:
    """Method and settings of a LoRA: in 4 bits it is `qlora`."""
    settings: dict[str, Setting] = {"rank": rank, "alpha": float(alpha), "targets": where}
    settings |= {name: True for name, on in (("rslora", rslora), ("dora", dora)) if on}
    if bits == 8:
        settings["base"] = "int8"
    return ("qlora" if bits == 4 else "lora"), settings


def precision(bf16: object, fp16: object) -> str:
    """The compute dtype: what the recipe says, else what the machine can."""
    if bf16 is True or bf16 == "full":
        return "bf16"
    if fp16 is True:
        return "fp16"
    return "fp32" if bf16 is False and fp16 is False else "auto"


def optimizer_name(recipe: Recipe) -> str:
    """AdamW by its name in all tools."""
    return "adamw_bnb_8bit" if recipe.settings.get("optimizer_bits") == 8 else "adamw_torch"


def dtypes(recipe: Recipe) -> dict[str, bool]:
    """The compute dtype in the words of transformers; nothing where the machine decides."""
    kinds = ("bf16", "fp16")
    return {} if recipe.precision == "auto" else {kind: recipe.precision == kind for kind in kinds}
