"""llama.cpp as users run it: its HTTP server on the loopback, in a process of its own, with one model and one adapter.

    with server(Path("base.gguf"), adapter=Path("adapter.gguf")) as running:
        print(running.complete("subject: parcel", max_tokens=16).text)

It comes with the wheel `xllamacpp` (the extra `gguf`). Nothing of it is fetched or built.
"""

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, EndpointError, IntegrityError, ModelError
from tunetrial.ship import gguf_head

PROCESS = Path(__file__).with_name("llamacpp_process.py")
START_S, STOP_S, ANSWER_S = 300, 10, 600
FORCED = 1e9


@dataclass(frozen=True)
class Completion:
    """What the server wrote after a prompt, without the token that ended it.

    `top_ids_TN` and `log_probs_TN` are the likeliest tokens where each of `tokens` was chosen, and where the end was,
    with their natural logarithms of probability over the whole vocabulary, before any sampling. None where not asked.
    """

    text: str
    tokens: tuple[int, ...]
    top_ids_TN: np.ndarray | None
    log_probs_TN: np.ndarray | None


@dataclass(frozen=True)
class Server:
    """A server that answers at `url` until its context ends."""

    url: str
    alias: str
    pid: int
    _client: httpx.Client

    def complete(self, prompt: str | Sequence[int], *, max_tokens: int, top: int = 0) -> Completion:
        """Continue a prompt greedily up to its end of text, `max_tokens` or the context's end.

        Args:
            prompt: A text, tokenised as by `tokenize`, or tokens as they are.
            top: How many of the likeliest tokens to tell at each place; the size of the vocabulary for all.
        Raises:
            EndpointError: The server refuses the prompt (longer than the context, or empty), or is gone.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        told = self._continue(tokens, n_predict=max_tokens, n_probs=top, return_tokens=True)
        ended = told["stop_type"] == "eos"
        made = tuple(told["tokens"][: -1 if ended else None])
        if not top:
            return Completion(told["content"], made, None, None)
        places, known = len(made) + ended, told.get("completion_probabilities", [])
        if len(known) == places:
            pairs = [_ranked(place) for place in known]
        else:  # llama.cpp leaves out what it says of tokens that are no whole characters
            pairs = [self.next_token([*tokens, *made[:place]], top=top) for place in range(places)]
        return Completion(told["content"], made, np.stack([ids for ids, _ in pairs]), np.stack([p for _, p in pairs]))

    def next_token(self, tokens: Sequence[int], *, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest next tokens and their log-probabilities, likeliest first, whatever they spell.

        Raises:
            EndpointError: As `complete`.
        """
        whole = self.tokenize("a", begin=False)[0]  # chosen in place of the likeliest; what is told is from before that
        told = self._continue(list(tokens), n_predict=1, n_probs=top, logit_bias=[[whole, FORCED]])
        return _ranked(told["completion_probabilities"][0])

    def tokenize(self, text: str, *, begin: bool = True) -> list[int]:
        """The tokens of a text, special ones in it taken as such; with `begin` after the beginning of text, if the
        model has one put before a text."""
        return self._ask("POST", "/tokenize", {"content": text, "add_special": begin})["tokens"]

    def template(self, messages: Sequence[dict], *, tools: Sequence[dict] | None = None) -> str:
        """A conversation as the model's chat template writes it, asking for an answer."""
        asked = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        return self._ask("POST", "/apply-template", asked)["prompt"]

    def scale(self, factor: float) -> None:
        """Multiply the adapter's update by a factor from now on: 0 is the base alone, 1 what was trained.

        Raises:
            ConfigError: The server was started without an adapter.
        """
        if not self.scales():
            raise ConfigError(f"{self.url}: scale: no adapter to scale, got none at the start; start it with one")
        self._ask("POST", "/lora-adapters", [{"id": 0, "scale": factor}])

    def scales(self) -> tuple[float, ...]:
        """How strongly each adapter acts that the server was started with, in that order."""
        told = {one["id"]: one["scale"] for one in self._ask("GET", "/lora-adapters")}
        return tuple(told[number] for number in sorted(told))

    def apply(self, number: int) -> None:
        """Apply one of the adapters that the server was started with, from the next request on, and no other.

        Raises:
            EndpointError: The server refuses, or does not do it.
        """
        wanted = tuple(float(one == number) for one in range(len(self.scales())))
        self._ask("POST", "/lora-adapters", [{"id": one, "scale": scale} for one, scale in enumerate(wanted)])
        if (found := self.scales()) != wanted:
            raise EndpointError(f"{self.url}: llama.cpp keeps other adapters, got scales {found}; start it again")

    def _continue(self, tokens: list[int], **asked: Any) -> dict:
        if not tokens:
            raise EndpointError(f"{self.url}: nothing to continue, got an empty prompt; give one")
        body = {"prompt": tokens, "temperature": 0.0, "cache_prompt": False, **asked}
        return self._ask("POST", "/completion", body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._client.request(method, path, json=body)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:200]
            got = f"got HTTP {error.response.status_code} {said}"
            raise EndpointError(f"{self.url}{path}: llama.cpp refuses, {got}; change what is asked") from None
        except (httpx.HTTPError, ValueError) as error:
            got = f"got {type(error).__name__}"
            raise EndpointError(f"{self.url}{path}: llama.cpp does not answer, {got}; start it again") from None


def _ranked(place: dict) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of what llama.cpp says of one place."""
    top = place["top_logprobs"]
    return np.array([one["id"] for one in top]), np.array([one["logprob"] for one in top], dtype=np.float64)


@contextmanager
def server(
    model: Path,
    *,
    adapter: Path | None = None,
    alias: str = "tunetrial",
    context: int = 512,
    threads: int | None = None,
    exact: bool = True,
) -> Iterator[Server]:
    """Start llama.cpp's server on a free port of the loopback, and stop it at the end, or when this process dies.

    Args:
        adapter: A GGUF of a LoRA adapter, applied at scale 1.
        threads: Of the CPU; llama.cpp's own choice if left out.
        exact: Keep keys and values in f32 and leave flash attention out, to compare with the trained model. Without it
            llama.cpp takes its own choice: f16.
    Raises:
        ConfigError: `xllamacpp` is not installed.
        IntegrityError: A manifest lies beside a file and does not list it, or with other bytes; or the adapter says
            that it is of other base weights than the model: llama.cpp itself takes any adapter whose sizes fit.
        ModelError: A file is no GGUF, or llama.cpp cannot load it or does not answer in time.
    """
    require()
    adapters = () if adapter is None else (adapter,)
    for path in (model, *adapters):
        if (path.parent / manifest.NAME).is_file():
            manifest.check_manifest(path.parent, [path.name])
    check_base(model, adapters)
    told = settings(model, adapters, alias=alias, context=context, threads=threads, exact=exact)
    with tempfile.TemporaryFile() as log:
        process = start(PROCESS, told, log)
        try:
            url = _address(process, log, model)
            with httpx.Client(base_url=url, timeout=ANSWER_S, trust_env=False) as client:
                running = Server(url, alias, process.pid, client)
                running._ask("GET", "/health")
                yield running
        finally:
            stop(process)


def require() -> None:
    """Refuse to go on without llama.cpp's bindings.

    Raises:
        ConfigError: `xllamacpp` is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError("xllamacpp: not installed, got no such package; pip install 'tunetrial[gguf]'")


def check_base(model: Path, adapters: Sequence[Path]) -> None:
    """Refuse adapters that say that they are of other base weights than the model, as `server`."""
    stated = gguf_head.stated_base(model)
    for adapter in adapters:
        made_for = gguf_head.stated_base(adapter)
        if stated and made_for and stated != made_for:
            got = f"got {model.name} of {stated[:12]}"
            raise IntegrityError(f"{adapter}: made for base weights {made_for[:12]}, {got}; name the GGUF of its base")


def settings(
    model: Path,
    adapters: Sequence[Path],
    *,
    alias: str,
    context: int,
    threads: int | None = None,
    exact: bool = True,
    port: int = 0,
    slots: int = 1,
    cache: bool = True,
) -> dict:
    """What the process is told to serve; see `llamacpp_process.serve`."""
    files = {"model": str(model.absolute()), "adapters": [str(path.absolute()) for path in adapters], "alias": alias}
    how = {"context": context, "threads": threads, "exact": exact}
    return {**files, **how, "port": port, "slots": slots, "cache": cache}


def start(script: Path, told: object, log: Any, environment: Mapping[str, str] = os.environ) -> subprocess.Popen:
    """Start a script that ends when its stdin closes, in a process group of its own; it is told one line of JSON."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**environment, "PYTHONPATH": path},
        process_group=0,
    )
    with suppress(BrokenPipeError):  # its end is seen when it is waited for
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
    return process


def _address(process: subprocess.Popen, log: Any, model: Path) -> str:
    """Wait until the server is there, and return its address."""
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if ready else b""
    told = json.loads(line) if line else {}
    if "url" in told:
        return told["url"]
    said = told.get("error") or (f"got no answer in {START_S} s" if not ready else f"status {process.wait()}")
    raise ModelError(f"{model}: llama.cpp cannot serve it, got {said}{_complaint(log)}; write the file anew")


def _complaint(log: Any) -> str:
    """The last of llama.cpp's own lines about an error, if there is one."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if " E " in line[:24]]
    return f" ({' '.join(lines[0].split()[2:])[:200]})" if lines else ""


def stop(process: subprocess.Popen) -> None:
    """End what `start` began, and wait until it is gone."""
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process.stdout.close()
