"""The command by which vLLM serves an adapter or a model. vLLM is not run here: its documented rules are checked.

Source: docs.vllm.ai, `vllm serve` and `LoRAConfig` (ranks, dtypes), v0.14 to v0.22; adapters with DoRA, biases or
`modules_to_save` are refused there as well.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.models.adapters import AdapterFolder

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ADAPTER_DTYPES = ("bf16", "fp16")
SCRIPT = """#!/bin/sh
# Not run: written from vLLM's documentation. It answers on this machine alone; add options behind the name.
cd -- "$(dirname -- "$0")" || exit
exec {command} "$@"
"""


def check(adapter: AdapterFolder, dtype: str) -> int:
    """Check an adapter against vLLM's rules; returns the least `--max-lora-rank` that takes it.

    Raises:
        ModelError: vLLM would refuse it.
    """
    if adapter.method == "dora":
        raise ModelError("ship: vLLM serves no DoRA, got use_dora: true; merge first: add --merge")
    if adapter.heads:
        raise ModelError(f"ship: vLLM serves no head of an adapter, got {adapter.heads[0]}; train with readout: labels")
    if dtype not in ADAPTER_DTYPES:
        do = "merge first: add --merge, or use --dtype bf16"
        raise ModelError(f"ship: vLLM serves adapters in 16 bits alone, got {dtype}; {do}")
    fitting = [rank for rank in RANKS if rank >= adapter.rank]
    if not fitting:
        raise ModelError(f"ship: vLLM takes ranks up to {RANKS[-1]}, got {adapter.rank}; merge first: add --merge")
    return fitting[0]


def adapter_command(
    base: str, path: str, *, revision: str | None, name: str, rank: int, dtype: str, more: Sequence[str] = ()
) -> list[str]:
    """Serve the adapter in the folder `path` beside its base, under `name`."""
    plain = "=" not in path and "," not in path
    module = f"{name}={path}" if plain else json.dumps({"name": name, "path": path})
    lora = ["--enable-lora", "--lora-modules", module, "--max-lora-rank", str(rank)]
    return _command(base, revision, [*lora, *more], dtype)


def model_command(folder: str, *, name: str, dtype: str, more: Sequence[str] = ()) -> list[str]:
    """Serve a whole model under `name`."""
    return _command(folder, None, ["--served-model-name", name, *more], dtype)


def dtype_of(script: Path) -> str:
    """The dtype that a script of `script` serves in; bf16 where there is no script.

    Raises:
        IntegrityError: It states none that is known.
    """
    if not script.is_file():
        return "bf16"
    words = script.read_text(encoding="utf-8", errors="replace").split()
    stated = words[words.index("--dtype") + 1 :][:1] if "--dtype" in words else []
    found = next((short for short, name in DTYPES.items() if [name] == stated), None)
    if found is None:
        raise IntegrityError(f"{script}: states no dtype that is known, got {stated}; ship the folder again")
    return found


def script(command: Sequence[str]) -> str:
    """A shell script that runs the command in its own folder."""
    return SCRIPT.format(command=shlex.join(command))


def _command(model: str, revision: str | None, options: Sequence[str], dtype: str) -> list[str]:
    pinned = ["--revision", revision] if revision else []
    return ["vllm", "serve", model, *pinned, *options, "--dtype", DTYPES[dtype], "--host", "127.0.0.1"]
