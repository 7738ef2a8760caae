"""Writing a run in each format, into a folder that is not yet in its place."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tunetrial import models
from tunetrial.core import manifest
from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.engine import merge, tensors
from tunetrial.engine.texts import PLAIN_TEMPLATE
from tunetrial.models.adapters import CONFIG, READOUT, WEIGHTS, AdapterFolder, read_adapter
from tunetrial.report.text import escape
from tunetrial.ship import ollama, templates, vllm
from tunetrial.ship.order import BY_LLAMA_CPP, Source

MODEL, CHAT_TEMPLATE = "model.safetensors", "chat_template.jinja"
GGUF_KINDS = {"fp32": "f32", "fp16": "f16"}
K_BLOCK = 256  # ggml's QK_K
COPIED = (".json", ".safetensors", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Made:
    """What was written: its format as the folder says it, the library that reads it, and what is to be said of it."""

    format: str
    library: str | None
    use: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    command: str | None = None


def write(source: Source, folder: Path) -> Made:
    """Write the run as its order says.

    Raises:
        ModelError: It cannot have this format; the message says what to do instead.
        IntegrityError: Weights are not those of the record, of another base, or not finite.
    """
    if source.order.format in ("gguf", "ollama", "vllm"):
        _refuse_head(source)
    return _WRITERS[source.order.format](source, folder)


def variants(source: Source, folder: Path, score: Callable[[Path], float]) -> dict[str, float]:
    """Score the merged model in `folder`; of an arm on a base in few bits also the one that is merged the other way."""
    if source.full:
        return {"as shipped": score(folder)}
    names = {False: "merged into the base", True: "merged into the dequantised base"}
    found = {names[source.order.dequantised]: score(folder)}
    if source.storage != "plain":
        other = folder.parent / "other"
        _merge(source, other, dtype=source.order.dtype, dequantised=not source.order.dequantised)
        found[names[not source.order.dequantised]] = score(other)
        shutil.rmtree(other)
    return found


def _refuse_head(source: Source) -> None:
    if source.has_head:
        what = f"ship: {source.order.format} has no place for the head that reads {source.task.name}"
        labels = source.task.kind == "classify"
        do = "train with readout: labels, or use --format" if labels else "numbers are read by a head: use --format"
        raise ModelError(f"{what}, got readout head; {do} adapter or merged")


def _hub(source: Source, folder: Path) -> Made:
    return _merged(source, folder) if source.whole else _adapter(source, folder)


def _adapter(source: Source, folder: Path) -> Made:
    adapter = _checked_adapter(source)
    for name in (WEIGHTS, *([READOUT] if source.has_head else [])):
        _copy(source, name, folder)
    config = json.loads((source.artifact / CONFIG).read_text(encoding="utf-8"))
    public = source.order.format == "hub"
    config["base_model_name_or_path"] = source.public_base if public else source.loadable_base
    config["revision"] = source.base.revision
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    loader = "AutoModelForSequenceClassification" if source.has_head else "AutoModelForCausalLM"
    outputs = ", num_labels=LABELS" if source.has_head else ""
    use = (
        "```python\nfrom peft import PeftModel\n"
        f"from transformers import {loader}\n\n"
        f"base = {loader}.from_pretrained(BASE{outputs})\nmodel = PeftModel.from_pretrained(base, FOLDER)\n```",
        *_head_use(source),
    )
    kept = adapter is None or adapter.method == "lora"
    remarks = () if kept else ("A DoRA adapter: GGUF and vLLM do not take it; merge it for them.",)
    return Made("adapter", "peft", use, (*_stored_remark(source), *remarks))


def _checked_adapter(source: Source) -> AdapterFolder | None:
    """The adapter's settings, after its weights were checked; None of PEFT's types that are not of the LoRA family."""
    if source.peft_type != "LORA":
        merge.read_weights(source.artifact / WEIGHTS, source.base)
        return None
    read = read_adapter(source.artifact)
    merge.adapter_weights(read, source.base)
    return read


def _merged(source: Source, folder: Path) -> Made:
    _model(source, folder, dtype=source.order.dtype)
    loader = "AutoModelForSequenceClassification" if source.has_head else "AutoModelForCausalLM"
    use = (
        f"```python\nfrom transformers import AutoTokenizer, {loader}\n\n"
        f"model = {loader}.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```",
        *_head_use(source),
    )
    return Made("merged", "transformers", use, _merge_remark(source))


def _gguf(source: Source, folder: Path) -> Made:
    model, adapter = _gguf_files(source, folder)
    lora = f" --lora {adapter}" if adapter else ""
    use = (f"```sh\nllama-server -m {model}{lora}\n```", _what_to_send(source, "the whole prompt"))
    return Made("gguf", None, use, _gguf_remarks(source))


def _ollama(source: Source, folder: Path) -> Made:
    model, adapter = _gguf_files(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(source.base.folder, trust_remote_code=False)
    ends = tokenizer.eos_token or ""
    if source.task.messages:
        turns = templates.turns(tokenizer)
        template, said = turns.template(), "Send a conversation; the template is the base's own"
        ends = turns.assistant[1] + ends
    else:
        template, field = templates.prompt_template(source.task.input)
        said = f"Send the value of {field}" if field else "Send the whole prompt, as the study rendered it"
    stops = sorted({token for token in tokenizer.all_special_tokens if token in ends})
    longest = source.record.trial.controls.max_new_tokens
    parameters = {"num_predict": longest} if longest else {}
    text = ollama.modelfile(model, adapter=adapter, template=template, stops=stops, parameters=parameters, said=said)
    (folder / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    name = source.order.arm
    use = (f"```sh\nollama create {name} -f Modelfile\nollama run {name}\n```", f"{said}.")
    return Made("ollama", None, use, (*_gguf_remarks(source), "Ollama was not run."))


def _vllm(source: Source, folder: Path) -> Made:
    own = source.lock.precision
    dtype = source.order.dtype or (own if own in vllm.ADAPTER_DTYPES else "bf16")
    said = {"name": source.order.arm, "dtype": dtype}
    if source.whole:
        _model(source, folder, dtype=source.order.dtype)
        make = partial(vllm.model_command, **said)
    else:
        adapter = _checked_adapter(source)
        if adapter is None:
            raise ModelError(f"ship: vLLM serves LoRA alone, got peft_type {source.peft_type}; use --format adapter")
        said |= {"rank": vllm.check(adapter, dtype), "revision": source.base.revision}
        _adapter(source, folder)
        make = partial(vllm.adapter_command, source.loadable_base, **said)
    templated = _write_chat_template(source, folder)
    more = lambda place: ["--chat-template", f"{place}/{CHAT_TEMPLATE}"] if templated else []  # noqa: E731
    (folder / "serve.sh").write_text(vllm.script(make(".", more=more("."))), encoding="utf-8", newline="\n")
    (folder / "serve.sh").chmod(0o755)
    use = (
        f"```sh\nsh serve.sh\n```\n\nAsk for the model `{source.order.arm}`.",
        _what_to_send(source, "the whole prompt to `/v1/completions`"),
    )
    remarks = _merge_remark(source) if source.whole else _stored_remark(source)
    remarks = (*remarks, *_labels_remark(source), "vLLM was not run: the command follows its documentation.")
    command = shlex.join(make(source.place, more=more(source.place)))
    return Made("vllm", "transformers" if source.whole else "peft", use, remarks, command)


def _write_chat_template(source: Source, folder: Path) -> bool:
    """Conversations of a base without a chat template were written by one of ours, which vLLM must be given."""
    if not source.task.messages:
        return False
    tokenizer = AutoTokenizer.from_pretrained(source.base.folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        (folder / CHAT_TEMPLATE).write_text(PLAIN_TEMPLATE, encoding="utf-8")
    return tokenizer.chat_template is None


def _gguf_files(source: Source, folder: Path) -> tuple[str, str | None]:
    """Write a whole model as one file, or base and adapter as two; returns their names."""
    from tunetrial.ship import gguf_files

    write_base, write_adapter = gguf_files.write_base, gguf_files.write_adapter
    if source.order.llama_cpp is not None:
        from tunetrial.ship import converters

        write_base = partial(converters.write_base, llama_cpp=source.order.llama_cpp)
        write_adapter = partial(converters.write_adapter, llama_cpp=source.order.llama_cpp)
    kind = GGUF_KINDS.get(source.order.dtype or "fp32", source.order.dtype)
    if source.full:
        _check_finite(source.artifact / MODEL)
        write_base(source.artifact, folder / "model.gguf", kind=kind)
        return "model.gguf", None
    if source.whole:
        model = folder.parent / "merged"  # the name that its GGUF states
        _merge(source, model, dtype="fp32", dequantised=source.order.dequantised)
        write_base(model, folder / "model.gguf", kind=kind)
        shutil.rmtree(model)
        return "model.gguf", None
    _checked_adapter(source)
    if (why := gguf_files.refusal(source.artifact)) is not None:
        raise ModelError(f"ship: {why}; here: add --merge" if "merge first" in why else f"ship: {why}")
    write_base(source.base.folder, folder / "base.gguf", kind=kind)
    write_adapter(source.artifact, source.base.folder, folder / "adapter.gguf")
    return "base.gguf", "adapter.gguf"


def _model(source: Source, folder: Path, *, dtype: str | None) -> None:
    """Write a whole model in the Hugging Face layout."""
    if not source.full:
        _merge(source, folder, dtype=dtype, dequantised=source.order.dequantised)
        return
    _check_finite(source.artifact / MODEL)
    for name in source.record.artifacts:
        if dtype is None or name not in (MODEL, "config.json"):
            _copy(source, name, folder)
    if dtype is not None:
        _convert(source.artifact, folder, dtype)


def _convert(model: Path, folder: Path, dtype: str) -> None:
    """Write a model's weights in another dtype; a head stays fp32."""
    weights = load_file(model / MODEL)
    kinds = {name: torch.float32 if name.startswith("score.") else merge.DTYPES[dtype] for name in weights}
    made = {name: weight.to(kinds[name]) for name, weight in weights.items()}
    if not all(weight.isfinite().all() for weight in made.values()):
        raise IntegrityError(f"{model / MODEL}: holds numbers too large for {dtype}; use --dtype bf16 or fp32")
    tensors.write(folder / MODEL, made, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = merge.IN_CONFIG[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _merge(source: Source, folder: Path, *, dtype: str | None, dequantised: bool) -> None:
    """Merge the adapter, and say where it comes from without naming places on this machine."""
    onto = None
    if dequantised:
        onto = merge.Dequantised(storage=source.storage, precision=source.record.trial.controls.precision)
    how = {"dtype": dtype, "onto": onto, "keep_head": source.has_head}
    merge.merge(source.artifact, folder, base_model=str(source.base.folder), **how)
    path = folder / merge.MERGED_FROM
    told = json.loads(path.read_text(encoding="utf-8"))
    told |= {"adapter": source.record.trial.id, "base": source.public_base}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    manifest.seal(folder)


def _copy(source: Source, name: str, folder: Path) -> None:
    """Copy a file of the artifact whose bytes are those of the record, whatever happened to it since it was checked."""
    path = source.artifact / name
    if Path(name).name != name or name.startswith(".") or path.suffix not in COPIED or path.is_symlink():
        raise IntegrityError(f"{source.artifact}: not a file that an artifact has, got {name!r}; remove it")
    shutil.copyfile(path, folder / name)
    found, wanted = manifest.sha256(folder / name), source.record.artifacts.get(name)
    if found != wanted:
        raise IntegrityError(f"{path}: expected SHA-256 {wanted}, got {found}; restore the file")


def _check_finite(path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: cannot be read, got {type(error).__name__}; restore the file") from None
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise IntegrityError(f"{path}: {name}: holds NaN or infinity; train the model anew")


def _what_to_send(source: Source, otherwise: str) -> str:
    if source.task.messages:
        return "Send conversations: the chat template is the base's own."
    rendered = escape(json.dumps(source.task.input))
    return f"Send {otherwise}, as the study rendered it from {rendered}, at temperature 0."


def _head_use(source: Source) -> tuple[str, ...]:
    if not source.has_head:
        return ()
    number = "; a number is `logit * sd + mean` of that file" if source.task.kind == "regress" else ""
    return (f"`{READOUT}` says what the head's outputs mean{number}.",)


def _gguf_remarks(source: Source) -> tuple[str, ...]:
    merged = _merge_remark(source) if source.whole else _stored_remark(source)
    return (*merged, *_labels_remark(source), *_blocks_remark(source))


def _blocks_remark(source: Source) -> tuple[str, ...]:
    """K-quants take weights by 256 of a row; what does not divide so, llama.cpp keeps in another kind."""
    if source.order.dtype not in BY_LLAMA_CPP:
        return ()
    shape = models.shape(source.base.folder)
    rows = {"token_embd": shape.hidden} | {name: inputs for name, (inputs, _) in shape.projections.items()}
    odd = {name: length for name, length in rows.items() if length % K_BLOCK}
    if not odd:
        return ()
    said = ", ".join(f"{name} ({length})" for name, length in odd.items())
    return (f"llama.cpp keeps in more bits than {source.order.dtype} what has rows of no multiple of 256: {said}.",)


def _stored_remark(source: Source) -> tuple[str, ...]:
    if source.storage == "plain":
        return ()
    return (
        f"The adapter was trained beside a base in {source.storage}; it is served on the base itself, where it "
        "computes nearly, not exactly, what was scored.",
    )


def _merge_remark(source: Source) -> tuple[str, ...]:
    if source.full or source.storage == "plain":
        return ()
    if source.order.dequantised:
        return (f"Merged into the base as it was dequantised from {source.storage} in training.",)
    return (
        f"Trained beside a base in {source.storage} and merged into the base itself: it computes nearly, not exactly, "
        "what was scored.",
    )


def _labels_remark(source: Source) -> tuple[str, ...]:
    if source.record.trial.controls.readout != "labels":
        return ()
    labels = len(source.lock.data[source.record.trial.task].labels)
    return (f"The study chose among {labels} labels by their likelihood; an engine that writes freely may differ.",)


_WRITERS: dict[str, Callable[[Source, Path], Made]] = {
    "adapter": _adapter,
    "merged": _merged,
    "gguf": _gguf,
    "ollama": _ollama,
    "vllm": _vllm,
    "hub": _hub,
}
