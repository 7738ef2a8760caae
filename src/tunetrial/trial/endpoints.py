"""Any OpenAI-compatible server put under load: streamed answers timed as whoever asks would see them.

A turn keeps as many requests under way as its concurrency says: whenever one ends, the next is sent. Targets take turns
in an order that the seed draws anew in every session, with the same prompts; every turn begins with requests that are
not timed, which open its connections. Nothing is asked again: what fails is counted.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tunetrial.core.endpoints import Asked, EndpointBench, Request, Target, Turn
from tunetrial.core.errors import ConfigError, DataError, EndpointError
from tunetrial.core.records import digest
from tunetrial.rating.endpoint import Endpoint, connect

WHO = "bench"
MADE_UP, WORDS_A_PROMPT = 64, 24
WORDS = (
    "amber anchor autumn basket bridge candle canyon cedar copper corner desert ember engine feather forest garden "
    "glacier hammer harbour island kettle lantern ledger magnet meadow mirror mountain needle orchard paper pepper "
    "pillar pocket quarry ribbon river saddle signal silver station summer tunnel valley velvet village window winter"
).split()
Prompt = dict[str, Any]


@dataclass(frozen=True)
class Terms:
    """How to time: requests a turn, tokens an answer at most, how many at once, in how many sessions.

    `key_from` names the environment variable that holds a key. A request that is not through after `timeout_s` failed.
    """

    concurrency: tuple[int, ...] = (1, 8)
    requests: int = 32
    tokens: int = 32
    sessions: int = 5
    key_from: str | None = None
    timeout_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value in (("--requests", self.requests), ("--tokens", self.tokens), ("--sessions", self.sessions)):
            if value < 1:
                raise ConfigError(f"bench: {option}: must be 1 or more, got {value}; say 32")
        if not self.concurrency or min(self.concurrency) < 1 or len(set(self.concurrency)) < len(self.concurrency):
            got = f"got {self.concurrency}"
            raise ConfigError(f"bench: --concurrency: different whole numbers above 0 are wanted, {got}; say 1,8")


def find_targets(urls: Sequence[str], names: Sequence[str], terms: Terms) -> tuple[Target, ...]:
    """Pair addresses and models: several of one go with one of the other, or as many; a model left out is the one that
    the server lists.

    Raises:
        ConfigError: They cannot be paired, or are the same twice.
        EndpointError: A server does not say which model it has, or has several.
    """
    urls = [url.rstrip("/") for url in urls]
    names = list(names) or [None] * len(urls)
    if len(names) != len(urls) and 1 not in (len(urls), len(names)):
        got = f"got {len(urls)} and {len(names)}"
        raise ConfigError(f"bench: as many --model as --endpoint are wanted, or one of either, {got}; say which")
    most = max(len(urls), len(names))
    pairs = zip(urls * (most // len(urls)), names * (most // len(names)), strict=True)
    found = tuple(Target(url=url, model=name or _listed(url, terms)) for url, name in pairs)
    if len(set(found)) < len(found):
        raise ConfigError(f"bench: --endpoint: different targets are wanted, got {found[0].url} twice; leave one out")
    return found


def _listed(url: str, terms: Terms) -> str:
    client, _ = _client(url, terms, at_once=1)
    with client:
        try:
            names = [one["id"] for one in client.get(f"{url}/models").raise_for_status().json()["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            got = f"got {type(error).__name__}"
            raise EndpointError(
                f"{url}/models: lists no models, {got}; start it, mend the address or add --model"
            ) from None
    if len(names) != 1:
        raise EndpointError(f"{url}/models: one model is wanted, got {len(names)}: {names[:4]}; say which by --model")
    return str(names[0])


def _client(url: str, terms: Terms, *, at_once: int) -> tuple[httpx.Client, str | None]:
    where = Endpoint(url=url, model="", key_from=terms.key_from, timeout_s=terms.timeout_s)
    return connect(where, WHO, at_once=at_once)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Prompts of a file: JSON lines with `messages`, which go to `/chat/completions`, or `prompt`, to `/completions`.

    Raises:
        DataError: It cannot be read, holds none, or a line is neither.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read, got {type(error).__name__}; name a file of JSON lines") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind = "messages" if "messages" in row else "prompt"
            if not isinstance(row[kind], list if kind == "messages" else str) or not row[kind]:
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            do = 'write {"prompt": "…"} or {"messages": […]}'
            raise DataError(f"{path}:{number}: not a prompt, got {line[:60]!r}; {do}") from None
        found.append({kind: row[kind]})
    if not found:
        raise DataError(f"{path}: holds no prompts, got an empty file; write a JSON object a line")
    return tuple(found)


def made_up_prompts(count: int, seed: int) -> tuple[Prompt, ...]:
    """Questions of words drawn by the seed. They differ from their beginning on, so that no server has read it."""
    draw = random.Random(seed)
    texts = (" ".join(draw.choices(WORDS, k=WORDS_A_PROMPT)) for _ in range(count))
    return tuple({"messages": [{"role": "user", "content": f"{text}: go on with this list."}]} for text in texts)


def measure(
    targets: Sequence[Target], terms: Terms, prompts: Sequence[Prompt] | None, *, tell: Callable[[str], None]
) -> EndpointBench:
    """Time targets under load.

    Args:
        prompts: Dealt in an order that the seed draws, again from the first where there are few; made up where None,
            another one for each request of a session.
        tell: Called with a line about what happens.
    Raises:
        ConfigError: An address or key that is none.
        EndpointError: A target gave not one whole answer in a turn.
    """
    draw, sessions = random.Random(terms.seed), []
    known = list(prompts or made_up_prompts(max(MADE_UP, 2 * terms.requests), terms.seed))
    for number in range(1, terms.sessions + 1):
        with ExitStack() as stack:
            ask = {}
            for target in targets:
                client, _ = _client(target.url, terms, at_once=max(terms.concurrency))
                ask[target] = partial(_ask, stack.enter_context(client), target, terms=terms)
            turns = []
            for many in terms.concurrency:
                dealt = _dealt(known, many + terms.requests, draw)
                for target in draw.sample(targets, len(targets)):
                    tell(f"session {number} of {terms.sessions}: {target.model} at {target.url}, {many} at once")
                    turns.append(_turn(ask[target], target, many, dealt))
            sessions.append(tuple(turns))
    asked = Asked(
        targets=tuple(targets),
        concurrency=terms.concurrency,
        requests=terms.requests,
        tokens=terms.tokens,
        sessions=terms.sessions,
        prompts=len(known),
        prompts_digest=digest(known),
        seed=terms.seed,
    )
    return EndpointBench(asked=asked, sessions=tuple(sessions))


def _dealt(prompts: Sequence[Prompt], count: int, draw: random.Random) -> list[Prompt]:
    shuffled: list[Prompt] = []
    while len(shuffled) < count:
        shuffled += draw.sample(prompts, len(prompts))
    return shuffled[:count]


def _turn(ask: Callable[[Prompt], Request], target: Target, concurrency: int, prompts: Sequence[Prompt]) -> Turn:
    """The first of the prompts, as many as are asked at once, are not timed."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        list(pool.map(ask, prompts[:concurrency]))
        began, busy = time.perf_counter(), time.process_time()
        requests = tuple(pool.map(ask, prompts[concurrency:]))
        wall_s, busy_s = time.perf_counter() - began, time.process_time() - busy
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if all(request.fault for request in requests):
        (fault, many) = Counter(request.fault for request in requests).most_common(1)[0]
        got = f"got {fault} {many} times"
        do = "start it, or mend the address, model or key"
        raise EndpointError(f"{target.url}: {target.model} gave none of {len(requests)} answers, {got}; {do}")
    share = busy_s / wall_s
    return Turn(target=target, concurrency=concurrency, wall_s=wall_s, client_share=share, requests=requests)


def _ask(client: httpx.Client, target: Target, prompt: Prompt, *, terms: Terms) -> Request:
    """Ask once, and time what streams in."""
    path = "chat/completions" if "messages" in prompt else "completions"
    body = {"model": target.model, **prompt, "max_tokens": terms.tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = _Answer(began=time.perf_counter(), timeout_s=terms.timeout_s)
    try:
        with client.stream("POST", f"{target.url}/{path}", json=body) as response:
            if response.is_success:
                answer.read(response)
            else:
                answer.fault = f"HTTP {response.status_code}"
    except httpx.TimeoutException:
        answer.fault = "no end in time"
    except httpx.ConnectError:
        answer.fault = "no connection"
    except (httpx.HTTPError, httpx.InvalidURL):
        answer.fault = "broke off"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        answer.fault = "not a stream of answers"
    total_s = time.perf_counter() - answer.began
    return Request(first_s=answer.first_s, total_s=total_s, tokens=answer.tokens, fault=answer.fault)


@dataclass
class _Answer:
    """What of a stream has arrived."""

    began: float
    timeout_s: float
    first_s: float | None = None
    tokens: int | None = None
    fault: str | None = None

    def read(self, response: httpx.Response) -> None:
        """Read to the end. A stream that ends without saying so broke off."""
        ended = False
        for line in response.iter_lines():
            since = time.perf_counter() - self.began
            if since > self.timeout_s:
                self.fault = "no end in time"
                return
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                ended = True
                break
            event = json.loads(data)
            if event.get("error"):
                self.fault = "an error in the stream"
                return
            self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
            for choice in event.get("choices") or ():
                ended = ended or choice.get("finish_reason") is not None
                if self.first_s is None and _text(choice):
                    self.first_s = since
        self.fault = None if ended and self.first_s is not None else "no text" if ended else "broke off"


def _text(choice: dict) -> str:
    """The text of a piece of an answer, thoughts included."""
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""
