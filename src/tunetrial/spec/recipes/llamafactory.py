"""LLaMA-Factory's recipes, by the arguments of llamafactory 0.9.5 (`llamafactory.hparams`), read on 2026-11-22."""

import json
from pathlib import Path

from tunetrial.core.errors import SpecError
from tunetrial.spec.faults import nearest, show
from tunetrial.spec.recipes import recipe as r
from tunetrial.spec.recipes.recipe import Dataset, Given, Recipe

MARKS = {"stage", "finetuning_type", "cutoff_len", "lora_target", "lora_rank", "dataset_dir", "template"}
DEFAULTS = {
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset_dir": "data",
    "cutoff_len": 2048,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
}


def read(values: dict, where: str, folder: Path, *, devices: int) -> Recipe:
    """Read a recipe; its `dataset_info.json` is looked for beside it and in the current folder.

    Raises:
        SpecError: It is no supervised fine-tuning, or a value cannot be used.
    """
    given = Given("llamafactory", where, values, DEFAULTS)
    if (stage := given.take("stage")) != "sft":
        raise given.refuse("stage", "no supervised fine-tuning", stage, "studies compare sft alone")
    base = given.take("model_name_or_path")
    if not isinstance(base, str):
        raise SpecError(f"{where}: model_name_or_path: is missing; a LLaMA-Factory recipe has it")
    method, settings = _method(given)
    data = _data(given, folder)
    settings |= r.optimizer(given, "optim")
    r.scheduled(given, "lr_scheduler_type")
    fields = {
        "learning_rate": given.number("learning_rate"),
        "epochs": r.epochs(given, "num_train_epochs"),
        "batch_examples": r.batch(given, "per_device_train_batch_size", devices),
        "max_tokens": given.count("cutoff_len"),
        "weight_decay": given.number("weight_decay"),
        "precision": r.precision(given.take("bf16"), given.take("fp16")),
    }
    given.expect("do_train", True)
    given.rest()
    return Recipe(
        tool="llamafactory",
        base_model=base,
        method=method,
        settings=settings,
        data=data,
        left=tuple(given.left),
        same=tuple(given.same),
        **fields,
    )


def _method(given: Given) -> tuple:
    kind, bits = given.take("finetuning_type"), given.count("quantization_bit")
    if kind not in ("lora", "full"):
        raise given.refuse("finetuning_type", "unknown kind", kind, "use lora or full")
    if bits not in (None, 4, 8):
        raise given.refuse("quantization_bit", "must be 4 or 8", bits, "use 4 for qlora")
    if kind == "full":
        if bits:
            raise given.refuse("quantization_bit", "conflicts with finetuning_type full", bits, "remove one")
        for key in ("lora_rank", "lora_alpha", "lora_target"):
            given.take(key) if key not in given else given.leave(key, "full fine-tuning has no adapter")
        return "full", {}
    rank = given.count("lora_rank")
    alpha = given.number("lora_alpha") or 2 * rank
    where = r.targets(given, "lora_target", given.take("lora_target"), everything="all")
    dora, rslora = given.flag("use_dora"), given.flag("use_rslora")
    return r.lora(rank, alpha, where, rslora=rslora, dora=dora, bits=bits)


def _data(given: Given, folder: Path) -> Dataset | None:
    named, place = given.take("dataset"), str(given.take("dataset_dir"))
    if not named:
        return None
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    for other in names[1:]:
        why = "a task has one file; join the rows, or name a second task"
        given.left.append(r.Left(key="dataset", value=show(other), why=why))
    roots = [folder / place, Path(place)]
    info = next((root / "dataset_info.json" for root in roots if (root / "dataset_info.json").is_file()), None)
    if info is None:
        remedy = "name the folder that holds it as dataset_dir"
        raise given.refuse("dataset_dir", "has no dataset_info.json", place, remedy)
    try:
        known = json.loads(info.read_text(encoding="utf-8"))
        entry = known[names[0]]
    except KeyError:
        raise given.refuse("dataset", f"not in {info}", names[0], nearest(names[0], known)) from None
    except (ValueError, OSError) as error:
        raise SpecError(f"{info}: cannot be read, got {error}; mend it") from None
    return _dataset(given, names[0], entry, info.parent)


def _dataset(given: Given, name: str, entry: dict, folder: Path) -> Dataset:
    columns, hub = entry.get("columns") or {}, entry.get("hf_hub_url")
    path = f"hub:{hub}" if hub else str(folder / entry.get("file_name", name))
    if entry.get("ranking"):
        raise given.refuse("dataset", "holds preferences, no answers to learn", name, "use supervised data")
    for key, value in entry.items():
        if key not in ("file_name", "hf_hub_url", "formatting", "columns", "ranking") and value is not None:
            given.left.append(r.Left(key=f"{name}.{key}", value=show(value), why="see whether it matters"))
    formatting = entry.get("formatting", "alpaca")
    if formatting in ("sharegpt", "openai"):
        if columns.get("tools") not in (None, "tools"):
            why = "tools are read from a field of that name; rename it"
            given.left.append(r.Left(key=f"{name}.columns.tools", value=columns["tools"], why=why))
        return Dataset(path=path, messages=columns.get("messages") or "conversations")
    if formatting != "alpaca":
        raise given.refuse("dataset", f"{name} has an unknown formatting", formatting, "use alpaca or sharegpt")
    prompt, query = columns.get("prompt") or "instruction", columns.get("query") if columns else "input"
    answer = columns.get("response") or "output"
    for key in ("history", "system", "tools"):
        if columns.get(key):
            given.left.append(r.Left(key=f"{name}.columns.{key}", value=columns[key], why="not in the prompt"))
    if (prompt, query, answer) == ("instruction", "input", "output"):
        return Dataset(path=path, messages="instruction")
    shown = "".join(f"{{{{ {field} }}}}\n" for field in (prompt, query) if field)
    return Dataset(path=path, input=shown, target=answer)


def write(recipe: Recipe, micro: int, seed: int) -> tuple[dict, list[str]]:
    """The keys of a recipe, and what they cannot say."""
    settings, notes = recipe.settings, []
    keys: dict[str, object] = {"model_name_or_path": recipe.base_model, "stage": "sft", "do_train": True}
    if recipe.method == "full":
        keys["finetuning_type"] = "full"
    else:
        named = settings["targets"] != "all-linear"
        alpha = settings["alpha"]
        if alpha != int(alpha):
            notes.append(f"alpha {alpha:g}: LLaMA-Factory takes whole numbers")
        keys |= {"finetuning_type": "lora", "lora_rank": settings["rank"], "lora_alpha": round(alpha)}
        keys |= {"lora_dropout": 0.0, "lora_target": ",".join(settings["targets"]) if named else "all"}
        keys |= {"use_rslora": True} if settings.get("rslora") else {}
        keys |= {"use_dora": True} if settings.get("dora") else {}
        bits = 4 if recipe.method == "qlora" else 8 if settings.get("base") == "int8" else None
        keys |= {"quantization_bit": bits} if bits else {}
    notes.append("rows longer than cutoff_len: LLaMA-Factory cuts them, the study left them out")
    if recipe.data is not None:
        notes.append(f"data: enter {show(recipe.data.path)} in dataset_info.json, and its name here as dataset")
    keys |= {
        "cutoff_len": recipe.max_tokens,
        "packing": False,
        "num_train_epochs": float(recipe.epochs),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_examples // micro,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "optim": r.optimizer_name(recipe),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": 1.0,
        **r.dtypes(recipe),
        "seed": seed,
    }
    return keys, notes
