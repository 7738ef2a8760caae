"""Engines that serve an artifact: llama.cpp, as its own program or by its bindings, and vLLM, which is not run here.

Each is a process of its own on the loopback, and is asked over HTTP to apply another adapter of the base that it has.
vLLM's requests are those of its documentation: docs.vllm.ai, "LoRA adapters", `/v1/load_lora_adapter`.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx

from tunetrial import models
from tunetrial.core.errors import ConfigError, EndpointError, IntegrityError, ModelError
from tunetrial.models.adapters import CONFIG, read_adapter
from tunetrial.models.sizes import read_config
from tunetrial.ship import gguf_head, llamacpp, vllm
from tunetrial.ship.served import Served

Name = Literal["llama.cpp", "vllm"]
GUARD = Path(__file__).with_name("engine_process.py")
PROGRAMS = ("llama-server", "build/bin/llama-server")
OF_LLAMA_CPP = ("gguf", "ollama")
SLOTS, LONGEST = 4, 4096
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class Engine(Protocol):
    """Serves one model under one name."""

    said: str

    def start(self, port: int, log: Any) -> subprocess.Popen:
        """Start it; `llamacpp.stop` ends it."""

    def obstacle(self, served: Served) -> str | None:
        """Why an artifact cannot take the place of the one that is served while it runs, or None."""

    def apply(self, client: httpx.Client, served: Served) -> None:
        """Answer with this artifact from the next request on."""


def choose(engine: Literal["auto", "llama.cpp", "vllm"], served: Served) -> Name:
    """The engine for an artifact: GGUF goes to llama.cpp; adapters and whole models in Hugging Face's layout to vLLM.

    Raises:
        ConfigError: The engine that is asked for does not take it, or vLLM or a GPU for it is missing.
    """
    kind = served.shipped.format
    fitting: Name = "llama.cpp" if kind in OF_LLAMA_CPP else "vllm"
    if engine not in ("auto", fitting):
        other = "vllm, merged or adapter" if engine == "vllm" else "gguf"
        raise ConfigError(f"{served}: {engine} does not take it, got format {kind}; ship it with --format {other}")
    if fitting == "vllm" and (missing := _missing_for_vllm()):
        do = "install it, or ship it with --format gguf for llama.cpp"
        raise ConfigError(f"{served}: format {kind} is served by vLLM, got {missing}; {do}")
    return fitting


def _missing_for_vllm() -> str | None:
    if shutil.which("vllm") is None:
        return "no program vllm"
    import torch

    return None if torch.cuda.is_available() else "no CUDA GPU"


def open_engine(name: Name, now: Served, others: Sequence[Served], llama_cpp: Path | None, context: int | None):
    """The engine of this name, ready to be started with one artifact applied and others held beside it.

    Raises:
        TunetrialError: It is not installed, or would refuse the files.
    """
    if name == "vllm":
        return VLLM.of(now, context)
    return LlamaCpp.of(now, others, _program(llama_cpp), context)


def _program(llama_cpp: Path | None) -> Path | None:
    """llama.cpp's own server, in a checkout or on the path; None where its bindings serve.

    Raises:
        ConfigError: The checkout has none, or there is neither.
    """
    if llama_cpp is not None:
        places = [llama_cpp / name for name in PROGRAMS]
        if found := next((place for place in places if place.is_file()), None):
            return found.absolute()
        raise ConfigError(f"--llama-cpp: no llama-server there, got {llama_cpp}; build it, or leave the option out")
    if found := shutil.which("llama-server"):
        return Path(found)
    llamacpp.require()
    return None


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp with one GGUF and any adapters of it; `held` are the adapters' digests in the order of their numbers.

    Keys and values are f32 and flash attention is off, as where it was proven that the files compute what was trained.
    Where several adapters are held, no request begins with what another one computed: llama.cpp would go on from a
    prompt that an adapter read which is no longer applied (github.com/ggml-org/llama.cpp/issues/26207).
    """

    name: str
    model: Path
    model_digest: str
    adapters: tuple[Path, ...]
    held: tuple[str, ...]
    program: Path | None
    context: int

    @classmethod
    def of(cls, now: Served, others: Sequence[Served], program: Path | None, context: int | None) -> "LlamaCpp":
        model, adapter = now.gguf
        every = (now, *others) if adapter else ()
        path, adapters = now.path(model), tuple(one.path(adapter) for one in every)
        llamacpp.check_base(path, adapters)
        trained = gguf_head.stated_context(path)
        longest = context or min(trained, LONGEST)
        if longest > trained:
            raise ConfigError(f"--context: {path.name} was trained on {trained} tokens, got {context}; ask for fewer")
        held = tuple(one.digests[adapter] for one in every)
        return cls(now.name, path, now.digests[model], adapters, held, program, longest)

    @property
    def said(self) -> str:
        return f"llama.cpp ({'xllamacpp' if self.program is None else self.program.name})"

    def start(self, port: int, log: Any) -> subprocess.Popen:
        alone = len(self.adapters) < 2
        if self.program is None:
            how = {"context": self.context, "port": port, "slots": SLOTS, "cache": alone}
            told = llamacpp.settings(self.model, self.adapters, alias=self.name, **how)
            return llamacpp.start(llamacpp.PROCESS, told, log, _environment())
        return llamacpp.start(GUARD, self.command(port), log, _environment())

    def command(self, port: int) -> list[str]:
        """The command line of llama.cpp's own server.

        Source: the options of `llama-server`, github.com/ggml-org/llama.cpp, tools/server/README.md.
        """
        words = [str(self.program), "--model", str(self.model.absolute()), "--alias", self.name, "--offline"]
        words += ["--host", "127.0.0.1", "--port", str(port), "--no-webui", "--parallel", str(SLOTS)]
        words += ["--ctx-size", str(self.context * SLOTS), "--flash-attn", "off"]
        words += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
        for number, adapter in enumerate(self.adapters):
            words += ["--lora-scaled", f"{adapter.absolute()}:0"] if number else ["--lora", str(adapter.absolute())]
        return words if len(self.adapters) < 2 else [*words, "--no-cache-prompt", "--cache-ram", "0"]

    def obstacle(self, served: Served) -> str | None:
        model, adapter = served.gguf
        if adapter is None or not self.adapters:
            return "llama.cpp changes adapters alone, and it is a whole model"
        if served.digests[model] != self.model_digest:
            return f"it has another {model}"
        return None if served.digests[adapter] in self.held else "its adapter was not there when llama.cpp was started"

    def apply(self, client: httpx.Client, served: Served) -> None:
        llamacpp.Server(str(client.base_url).rstrip("/"), self.name, 0, client).apply(
            self.held.index(served.digests[served.gguf[1]])
        )


@dataclass(frozen=True)
class VLLM:
    """vLLM with a whole model, or with an adapter beside its base, which another may replace under the same name.

    Where it may, no request begins with what another one computed, as with llama.cpp
    (github.com/vllm-project/vllm/issues/42125).
    """

    name: str
    words: tuple[str, ...]
    base: str | None
    fingerprint: str
    rank: int
    by_alias: bool = False
    said: str = "vLLM"

    @classmethod
    def of(cls, now: Served, context: int | None) -> "VLLM":
        place = str(now.folder.absolute())
        more = ["--chat-template", f"{place}/chat_template.jinja"] if "chat_template.jinja" in now.digests else []
        more += ["--max-model-len", str(context)] if context else []
        if CONFIG not in now.digests:
            dtype = _dtype(now.path("config.json"))
            words = vllm.model_command(place, name=now.name, dtype=dtype, more=more)
            return cls(now.name, tuple(words), None, now.shipped.base_fingerprint, 0)
        adapter, dtype = read_adapter(now.folder), vllm.dtype_of(now.folder / "serve.sh")
        rank = vllm.check(adapter, dtype)
        base = _checked_base(now, adapter.base_model)
        more += ["--no-enable-prefix-caching"] if now.by_alias else []
        revision = read_config(now.path(CONFIG)).get("revision")
        how = {"revision": revision, "name": now.name, "rank": rank, "dtype": dtype, "more": more}
        words = vllm.adapter_command(base, place, **how)
        return cls(now.name, tuple(words), base, now.shipped.base_fingerprint, rank, now.by_alias)

    def start(self, port: int, log: Any) -> subprocess.Popen:
        may_change = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} if self.by_alias else {}
        return llamacpp.start(GUARD, [*self.words, "--port", str(port)], log, _environment() | QUIET | may_change)

    def obstacle(self, served: Served) -> str | None:
        if self.base is None or CONFIG not in served.digests:
            return "vLLM changes adapters alone, and it is a whole model"
        if served.shipped.base_fingerprint != self.fingerprint:
            return "it has another base"
        rank = read_adapter(served.folder).rank
        return None if rank <= self.rank else f"its rank is {rank}, and vLLM was started for {self.rank}"

    def apply(self, client: httpx.Client, served: Served) -> None:
        body = {"lora_name": self.name, "lora_path": str(served.folder.absolute()), "load_inplace": True}
        try:
            answer = client.post("/v1/load_lora_adapter", json=body)
        except httpx.HTTPError as error:
            got = f"got {type(error).__name__}"
            raise EndpointError(f"{client.base_url}: vLLM does not answer, {got}; start it again") from None
        if not answer.is_success:
            got = f"got HTTP {answer.status_code} {' '.join(answer.text.split())[:200]}"
            raise EndpointError(f"{client.base_url}: vLLM keeps the adapter that it had, {got}; start it again")


def _dtype(config: Path) -> str:
    told = read_config(config)
    stated = told.get("dtype") or told.get("torch_dtype")
    short = next((short for short, name in vllm.DTYPES.items() if name == stated), None)
    if short is None or any("Sequence" in str(one) for one in told.get("architectures") or ()):
        got = f"got dtype {stated!r} and {told.get('architectures')}"
        raise ModelError(f"{config}: not a language model in 16 or 32 bits, {got}; ship another arm")
    return short


def _checked_base(now: Served, base: str | None) -> str:
    """The base that an adapter names; one on this machine must have the weights that it was trained on."""
    if base is None:
        raise ModelError(f"{now}: names no base, got no base_model_name_or_path; ship it again")
    if Path(base).is_dir() and (found := models.resolve(base).fingerprint) != now.shipped.base_fingerprint:
        stated = now.shipped.base_fingerprint
        raise IntegrityError(f"{base}: expected weights {stated[:12]}, got {found[:12]}; restore the base of {now}")
    return base


def _environment() -> dict[str, str]:
    """This process's variables without those by which llama.cpp would be told otherwise than it is."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}


def answers_to(client: httpx.Client, name: str) -> bool:
    """Whether what answers there is ready, and serves a model of this name."""
    try:
        if not client.get("/health").is_success:
            return False
        return name in {model["id"] for model in client.get("/v1/models").json()["data"]}
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError):
        return False
