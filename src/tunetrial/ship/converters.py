"""GGUF files that llama.cpp's own programs write: of other families of models, of other tokenizers, and K-quants.

    converters.write_base(Path("model"), Path("model-q4.gguf"), kind="q4_k_m", llama_cpp=Path("~/llama.cpp"))

They are taken from a checkout that the user names, and run as processes of their own. What `gguf_files` can write is
written by it and, for K-quants, handed to llama.cpp's quantiser, which keeps what the file states. What the product
knows of other models and adapters is checked before the converters see them, because they take it as it comes: rsLoRA's
scale above all. Their files do not say of which weights they are.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from tunetrial import models
from tunetrial.core import files
from tunetrial.core.errors import ConfigError, ModelError
from tunetrial.engine import merge
from tunetrial.models.adapters import CONFIG, WEIGHTS, read_adapter
from tunetrial.models.sizes import read_config
from tunetrial.ship import gguf_files

OF_MODELS, OF_ADAPTERS = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
QUANTISERS = ("llama-quantize", "build/bin/llama-quantize")
NAMES_CODE = ("config.json", "tokenizer_config.json")
SAID_CHARACTERS = 300


def write_base(folder: Path, to: Path, *, kind: str, llama_cpp: Path) -> Path:
    """Write a model folder as a GGUF, by llama.cpp's converter where it is none that is written here; kinds that are
    written by neither, by llama.cpp's quantiser after that.

    Args:
        kind: f32, f16, bf16 or q8_0; any other name is passed to `llama-quantize` (q4_k_m, q5_k_m, q6_k and so on).
        llama_cpp: A checkout of llama.cpp; for other kinds one that was built.
    Raises:
        ModelError: The folder brings code of its own, which the converter would run; or the converter refuses it.
        ConfigError: The checkout has no such program.
        StoreError: `to` cannot be written; nothing new is left there then.
    """
    base = models.resolve(str(folder.absolute()))
    for name in NAMES_CODE:
        if (base.folder / name).is_file() and read_config(base.folder / name).get("auto_map"):
            got = "got auto_map"
            raise ModelError(f"{base.folder / name}: names code that the converter would run, {got}; use another model")
    outtype = kind.lower()
    direct = outtype in gguf_files.KINDS
    quantiser = None if direct else _program(llama_cpp, QUANTISERS)
    with tempfile.TemporaryDirectory(dir=_parent(to), prefix=f".{to.name}.") as made, files.replacing(to) as temporary:
        whole = temporary if direct else Path(made) / "f32.gguf"
        _write_whole(base.folder, whole, outtype if direct else "f32", llama_cpp)
        if quantiser is not None:
            _run([str(quantiser), str(whole), str(temporary), kind.upper()], about=base.folder)
    return to


def _write_whole(folder: Path, to: Path, outtype: str, llama_cpp: Path) -> None:
    """By our own writer, which states of which weights it is; what it refuses, by llama.cpp's converter."""
    if gguf_files.writable(folder):
        gguf_files.write_base(folder, to, kind=outtype)
        return
    script = _program(llama_cpp, (OF_MODELS,))
    asked = [str(folder), "--outfile", str(to), "--outtype", outtype]
    _run([sys.executable, str(script), *asked], about=folder)


def write_adapter(adapter: Path, base: Path, to: Path, *, llama_cpp: Path) -> Path:
    """Write a LoRA adapter as a GGUF with the scales that it was trained with, by llama.cpp's converter where its base
    is none that is written here.

    Raises:
        ModelError: The adapter cannot be a GGUF or does not fit the base, or the converter refuses it.
        IntegrityError: It is of other base weights, holds NaN, or changes nothing.
        ConfigError: The checkout has no such program.
        StoreError: `to` cannot be written; nothing new is left there then.
    """
    reason = gguf_files.refusal(adapter)
    if reason is not None:
        raise ModelError(reason)
    if gguf_files.writable(base):
        return gguf_files.write_adapter(adapter, base, to)
    script = _program(llama_cpp, (OF_ADAPTERS,))
    read, pinned = read_adapter(adapter), models.resolve(str(base.absolute()))
    weights, _ = merge.adapter_weights(read, pinned)
    alpha, factors = gguf_files.rescaled(weights, gguf_files.trained_scales(read, weights, pinned.folder))
    for path, factor in factors.items():
        weights[f"{path}.lora_B.weight"] = weights[f"{path}.lora_B.weight"].float() * factor
    config = read_config(adapter / CONFIG) | {"lora_alpha": alpha, "use_rslora": False, "alpha_pattern": {}}
    with tempfile.TemporaryDirectory(dir=_parent(to), prefix=f".{to.name}.") as made, files.replacing(to) as temporary:
        plain = Path(made)
        save_file(weights, plain / WEIGHTS, metadata={"format": "pt"})
        (plain / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        asked = ["--base", str(pinned.folder), "--outfile", str(temporary), "--outtype", "f32", str(plain)]
        _run([sys.executable, str(script), *asked], about=adapter)
    return to


def _program(llama_cpp: Path, names: tuple[str, ...]) -> Path:
    folder = llama_cpp.expanduser().absolute()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"--llama-cpp: no {names[0]} there, got {llama_cpp}; name a checkout of llama.cpp that has it")


def _parent(to: Path) -> Path:
    with files.writing(to):
        os.stat(to.absolute().parent)
    return to.absolute().parent


def _run(command: list[str], *, about: Path) -> None:
    """Run one of llama.cpp's programs; its own last words make the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ConfigError(f"{command[0]}: cannot be run, got {error.strerror}; build llama.cpp") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        got = f"got status {done.returncode}: {said[-1][:SAID_CHARACTERS]}" if said else f"got status {done.returncode}"
        program = Path(command[1] if command[0] == sys.executable else command[0]).name
        raise ModelError(f"{about}: {program} refuses it, {got}; see to that, or name another checkout")
