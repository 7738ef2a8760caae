"""A client of OpenAI-compatible chat endpoints: asked once, answered from the disk ever after.

The key is read from an environment variable that the user names; it goes to the endpoint and nowhere else, neither into
the cache nor into an error. It is not sent over plain HTTP to another machine, and redirects are not followed.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field

from tunetrial.core import files
from tunetrial.core.errors import ConfigError, EndpointError, IntegrityError
from tunetrial.core.records import Record, digest

if TYPE_CHECKING:
    import httpx

LOCAL = ("localhost", "127.0.0.1", "::1")
AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)
LONGEST_WAIT_S = 60.0


class Endpoint(Record):
    """Where a judge model answers: `url` up to and without `/chat/completions`, the model's name there.

    `key_from` names the environment variable that holds the key, None where none is asked for.
    """

    url: str
    model: str
    key_from: str | None = None
    timeout_s: float = Field(default=120.0, gt=0)


@dataclass(frozen=True)
class Reply:
    """What the model said, and whether it came from the cache."""

    text: str
    cached: bool


class Client:
    """Asks one endpoint, at temperature 0, and keeps every answer in the folder `cache` under the digest of what was
    asked. It may be used by several threads.

    Args:
        tries: How often a question is put before it is given up, with 1, 2, 4 … s (or as long as the endpoint says, up
            to a minute) between.
        pause: What waits; for tests.
    Raises:
        ConfigError: The URL is none, the named variable is not set, or a key would go over plain HTTP.
    """

    def __init__(
        self, endpoint: Endpoint, cache: Path, *, tries: int = 6, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint, self._cache, self._tries, self._pause = endpoint, cache, tries, pause
        self._http, self._key = connect(endpoint, "judge")
        cache.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """Give the model's answer to these messages.

        Raises:
            EndpointError: The endpoint refuses, cannot be reached after all tries, or answers as no chat endpoint does.
            IntegrityError: What the cache holds is not what it was asked for.
        """
        body = {"model": self.endpoint.model, "messages": list(messages), "temperature": 0}
        asked = {"url": self.endpoint.url, "body": body}
        path = self._cache / f"{digest(asked)}.json"
        if path.exists():
            return Reply(_kept(path, asked), cached=True)
        text = self._said(self._post(body))
        files.write(path, json.dumps({"asked": asked, "answer": text}).encode())
        return Reply(text, cached=False)

    def _post(self, body: dict) -> object:
        """The JSON that the endpoint answers with, after as many tries as it takes."""
        import httpx

        url, fault = f"{self.endpoint.url.rstrip('/')}/chat/completions", ""
        for attempt in range(self._tries):
            wait_s = min(2.0**attempt, LONGEST_WAIT_S)
            try:
                answer = self._http.post(url, json=body)
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._failed(f"{type(error).__name__}: {error}", "mend the address") from None
            else:
                fault = f"status {answer.status_code}: {answer.text[:200]}"
                if answer.is_success:
                    return _json(answer.content)
                if answer.status_code not in AGAIN:
                    raise self._failed(fault, "mend the address, model or key")
                wait_s = _asked_wait_s(answer.headers.get("Retry-After"), wait_s)
            if attempt + 1 < self._tries:
                self._pause(wait_s)
        raise self._failed(fault, f"gave up after {self._tries} tries, run again later: what was answered is kept")

    def _said(self, answer: object) -> str:
        try:
            text = answer["choices"][0]["message"]["content"]
        except (TypeError, KeyError, IndexError):
            raise self._failed(f"no chat answer {str(answer)[:200]}", "name a chat endpoint") from None
        return text if isinstance(text, str) else ""

    def _failed(self, fault: str, do: str) -> EndpointError:
        shown = " ".join((fault.replace(self._key, "…") if self._key else fault).split())
        return EndpointError(f"judge {self.endpoint.model} at {self.endpoint.url}: does not answer, got {shown}; {do}")


def connect(endpoint: Endpoint, who: str, *, at_once: int = 10) -> tuple["httpx.Client", str | None]:
    """A client that sends the endpoint's key to it alone, and the key, not to be told to anybody.

    Args:
        who: Asks, as errors name it.
        at_once: How many requests may be under way.
    Raises:
        ConfigError: The URL is none, the named variable is not set, or a key would go over plain HTTP.
    """
    import httpx

    address = urlsplit(endpoint.url)
    if "@" in address.netloc:
        raise ConfigError(f"{who}: the address holds a name or password, got one before @; use a key's variable")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(f"{who}: no web address, got {endpoint.url!r}; write https://host/v1")
    local, key = address.hostname in LOCAL, _key(endpoint.key_from, who)
    if key and address.scheme == "http" and not local:
        raise ConfigError(f"{who}: a key is not sent over plain HTTP, got {endpoint.url!r}; use https")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    return httpx.Client(headers=headers, timeout=endpoint.timeout_s, trust_env=not local, limits=limits), key


def _key(variable: str | None, who: str) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"{who}: no key in the environment, got {variable!r} unset; set it, or name another variable")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{who}: no key, got {variable!r} with characters that no key has; set it anew")
    return key


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def _asked_wait_s(header: str | None, otherwise_s: float) -> float:
    """Retry-After in seconds; a date, or nothing, leaves our own waiting time."""
    return min(float(header), LONGEST_WAIT_S) if header and header.isdecimal() else otherwise_s


def _kept(path: Path, asked: dict) -> str:
    try:
        kept = json.loads(path.read_bytes())
        if kept["asked"] == asked and isinstance(kept["answer"], str):
            return kept["answer"]
    except (ValueError, KeyError, TypeError):
        pass
    raise IntegrityError(f"{path}: not the answer that was kept, got other content; delete the file to ask again")
