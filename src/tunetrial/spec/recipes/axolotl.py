"""axolotl's recipes, by the schema of axolotl 0.19.0 (`axolotl.utils.schemas`), read on 2026-11-22."""

from tunetrial.core.errors import SpecError
from tunetrial.spec.faults import show
from tunetrial.spec.recipes import recipe as r
from tunetrial.spec.recipes.recipe import Dataset, Given, Recipe

MARKS = {"sequence_len", "micro_batch_size", "num_epochs", "adapter", "datasets", "lora_target_linear"}
DEFAULTS = {
    "num_epochs": 1.0,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "sequence_len": 512,
    "weight_decay": 0.0,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.03,
    "optimizer": "adamw_torch_fused",
}
CHAT = ("chat_template", "sharegpt", "messages")


def read(values: dict, where: str, *, devices: int) -> Recipe:
    """Read a recipe.

    Raises:
        SpecError: It is no supervised fine-tuning, or a value cannot be used.
    """
    given = Given("axolotl", where, values, DEFAULTS)
    for key in ("rl", "reward_model", "process_reward_model", "pretraining_dataset"):
        if given.take(key):
            raise given.refuse(key, "no supervised fine-tuning", values[key], "studies compare that alone")
    base, rate = given.take("base_model"), given.number("learning_rate")
    if not isinstance(base, str) or rate is None:
        key = "learning_rate" if isinstance(base, str) else "base_model"
        raise SpecError(f"{where}: {key}: is missing; an axolotl recipe has it")
    method, settings = _method(given)
    data = _data(given)
    settings |= r.optimizer(given, "optimizer")
    r.scheduled(given, "lr_scheduler")
    fields = {
        "epochs": r.epochs(given, "num_epochs"),
        "batch_examples": r.batch(given, "micro_batch_size", devices),
        "max_tokens": given.count("sequence_len"),
        "weight_decay": given.number("weight_decay"),
        "precision": r.precision(given.take("bf16"), given.take("fp16")),
    }
    given.rest()
    return Recipe(
        tool="axolotl",
        base_model=base,
        method=method,
        settings=settings,
        learning_rate=rate,
        data=data,
        left=tuple(given.left),
        same=tuple(given.same),
        **fields,
    )


def _method(given: Given) -> tuple:
    adapter, four, eight = given.take("adapter"), given.flag("load_in_4bit"), given.flag("load_in_8bit")
    if adapter not in (None, "lora", "qlora"):
        raise given.refuse("adapter", "unknown kind", adapter, "use lora, qlora, or none for full fine-tuning")
    if adapter is None:
        if four or eight:
            raise given.refuse("adapter", "missing beside a quantised base", adapter, "write lora or qlora")
        return "full", {}
    if adapter == "qlora" and (eight or not four) or four and eight:
        got = f"load_in_4bit {show(four)} and load_in_8bit {show(eight)}"
        raise SpecError(f"{given.where}: adapter: {adapter} conflicts with the storage, got {got}; mend one")
    rank, alpha = given.count("lora_r"), given.number("lora_alpha")
    if rank is None or alpha is None:
        key = "lora_r" if rank is None else "lora_alpha"
        raise SpecError(f"{given.where}: {key}: is missing; axolotl has no default of its own")
    linear, named = given.flag("lora_target_linear"), given.take("lora_target_modules")
    where = "all-linear" if linear else r.targets(given, "lora_target_modules", named, everything="all-linear")
    if linear and named:
        given.leave("lora_target_modules", "lora_target_linear takes all linear layers")
    dora, rslora = given.flag("peft_use_dora"), given.flag("peft_use_rslora")
    return r.lora(rank, alpha, where, rslora=rslora, dora=dora, bits=4 if four else 8 if eight else None)


def _data(given: Given) -> Dataset | None:
    listed = given.take("datasets")
    if not listed:
        return None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and one.get("path") for one in listed):
        raise given.refuse("datasets", "must be a list of mappings with a path", listed, "write one")
    first, *others = listed
    for number, one in enumerate(others, start=2):
        why = "a task has one file; join the rows, or name a second task"
        given.left.append(r.Left(key=f"datasets[{number}]", value=show(one["path"]), why=why))
    return _dataset(given, first)


def _dataset(given: Given, one: dict) -> Dataset:
    kind = one.get("type") or "alpaca"
    used, made = {"path", "type"}, None
    if isinstance(kind, dict):
        fields = {n: kind.get(f"field_{n}") or n for n in ("instruction", "input", "output")}
        prompt = "".join(
            f"{{{{ {kind[f'field_{n}']} }}}}\n" for n in ("instruction", "input") if kind.get(f"field_{n}")
        )
        made = Dataset(path=one["path"], input=prompt or "{{ instruction }}\n", target=fields["output"])
        for key, value in kind.items():
            if key not in ("field_instruction", "field_input", "field_output") and value is not None:
                why = "write the prompt as the task's input"
                given.left.append(r.Left(key=f"datasets[1].type.{key}", value=show(value), why=why))
    elif kind.split(".")[0].split(":")[0] in CHAT:
        used.add("field_messages")
        by_default = "conversations" if kind.startswith("sharegpt") else "messages"
        made = Dataset(path=one["path"], messages=one.get("field_messages") or by_default)
    elif kind.split(":")[0] in ("alpaca", "alpaca_chat.load_default"):
        made = Dataset(path=one["path"], messages="instruction")
    else:
        remedy = "use alpaca, chat_template, sharegpt, or a mapping of fields"
        raise given.refuse("datasets[1].type", "unknown kind", kind, remedy)
    for key, value in one.items():
        if key not in used and value is not None and value is not False:
            why = (
                r.reason(key) if key.startswith(("chat_template", "train_on", "roles_to")) else "see whether it matters"
            )
            given.left.append(r.Left(key=f"datasets[1].{key}", value=show(value), why=why))
    return made


def write(recipe: Recipe, micro: int, seed: int) -> tuple[dict, list[str]]:
    """The keys of a recipe, and what they cannot say."""
    settings, notes = recipe.settings, []
    keys: dict[str, object] = {"base_model": recipe.base_model}
    if recipe.method != "full":
        four, eight = recipe.method == "qlora", settings.get("base") == "int8"
        keys |= {"adapter": "qlora" if four else "lora", "load_in_4bit": four, "load_in_8bit": eight}
        keys |= {"lora_r": settings["rank"], "lora_alpha": _whole(settings["alpha"], notes), "lora_dropout": 0.0}
        named = settings["targets"] != "all-linear"
        keys |= {"lora_target_modules": list(settings["targets"])} if named else {"lora_target_linear": True}
        keys |= {"peft_use_rslora": True} if settings.get("rslora") else {}
        keys |= {"peft_use_dora": True} if settings.get("dora") else {}
    else:
        notes.append("fp32 master weights: axolotl loads the base in bf16 and trains it so")
    data = recipe.data
    if data is not None and data.messages:
        chat = {"type": "alpaca"} if data.messages == "instruction" else {"type": "chat_template"}
        chat |= {"field_messages": data.messages} if data.messages != "instruction" else {}
        keys["datasets"] = [{"path": data.path.removeprefix("hub:"), **chat}]
    elif data is not None:
        notes.append(f"the prompt {show(data.input)} and the field {show(data.target)}: write datasets by hand")
    keys |= {
        "sequence_len": recipe.max_tokens,
        "excess_length_strategy": "drop",
        "sample_packing": False,
        "train_on_inputs": False,
        "num_epochs": recipe.epochs,
        "micro_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_examples // micro,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.1,
        "optimizer": r.optimizer_name(recipe),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": 1.0,
        "bf16": {"bf16": True, "auto": "auto"}.get(recipe.precision, False),
        "fp16": recipe.precision == "fp16",
        "seed": seed,
    }
    return keys, notes


def _whole(alpha: float, notes: list[str]) -> int | float:
    """axolotl takes whole alphas alone."""
    if alpha != int(alpha):
        notes.append(f"alpha {alpha:g}: axolotl takes whole numbers")
    return int(alpha) if alpha == int(alpha) else round(alpha)
