"""Serving an artifact in the foreground: an engine is started, waited for, watched, and follows an alias.

Nothing stands between whoever asks and the engine: an alias is followed by having the engine that runs apply another
adapter, and where it cannot, by starting it again at the same port, if that is wanted.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import httpx

from tunetrial.core import files
from tunetrial.core.errors import ConfigError, EndpointError, ModelError, TunetrialError
from tunetrial.core.records import Record
from tunetrial.ship import engines, llamacpp
from tunetrial.ship.engines import Engine
from tunetrial.ship.registry import Registry
from tunetrial.ship.served import Alias, Served, find
from tunetrial.store import home

START_S, WATCH_S, ASK_S, ANSWER_S = 300.0, 0.25, 0.05, 120.0
LOOPBACK = "127.0.0.1"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What is to be served, and how. `context` is the tokens of one request, prompt and answer; `restart` whether the
    engine may be stopped and started to follow an alias."""

    what: str
    port: int | None = None
    engine: Literal["auto", "llama.cpp", "vllm"] = "auto"
    llama_cpp: Path | None = None
    context: int | None = None
    restart: bool = False


class Serving(Record):
    """What is served where: an OpenAI-compatible address, the model's name there, the engine and its process."""

    url: str
    model: str
    version: int | None
    engine: str
    pid: int

    def __str__(self) -> str:
        number = "" if self.version is None else f" (version {self.version})"
        return f"{self.url} serves {self.model}{number} by {self.engine}"


def serve(asked: Asked, registry: Registry, *, announce: Callable[[Serving], None], tell: Tell) -> None:
    """Serve until this process is interrupted (SIGINT or SIGTERM, which end it orderly), and follow an alias meanwhile.

    The engine ends with this process, however that ends. Its log is kept where serving failed, and an error names it.

    Args:
        announce: Called once, when it answers.
        tell: Called with a line about what happens.
    Raises:
        ConfigError: There is no such version, alias or engine, or the port is in use.
        ModelError, IntegrityError: The files cannot be served, or are not those that were shipped.
        EndpointError: The engine ended by itself.
    """
    with _interruptible(), suppress(KeyboardInterrupt):
        tell(f"checking the files of {asked.what}")
        served, alias = find(asked.what, registry)
        port = _port(asked.port)
        with _log() as log, httpx.Client(base_url=_address(port), timeout=ANSWER_S, trust_env=False) as client:
            stopped = None
            while True:
                with _started(asked, served, alias, client, log, tell) as (engine, process):
                    if stopped is None:
                        about = {"model": served.name, "version": served.version, "engine": engine.said}
                        announce(Serving(url=f"{_address(port)}/v1", pid=process.pid, **about))
                    else:
                        took = f"nothing answered for {time.perf_counter() - stopped:.1f} s"
                        tell(f"{served.name} is version {served.version} from now on, {took}")
                    served, stopped = _watch(asked, engine, process, served, alias, client, log, tell)


def _address(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


@contextmanager
def _started(
    asked: Asked, served: Served, alias: Alias | None, client: httpx.Client, log: Path, tell: Tell
) -> Iterator[tuple[Engine, subprocess.Popen]]:
    """Start the right engine, wait until it answers as the artifact, and end it with the block.

    Raises:
        ModelError: It ended, or did not answer in time.
    """
    if served.remark:
        tell(f"note: {served.remark}")
    name = engines.choose(asked.engine, served)
    others, said = alias.companions(served) if alias and name == "llama.cpp" else ((), ())
    for line in said:
        tell(line)
    engine = engines.open_engine(name, served, others, asked.llama_cpp, asked.context)
    tell(f"starting {engine.said}, its log in {log}")
    with open(log, "ab") as written:
        process = engine.start(client.base_url.port, written)
    try:
        _wait(engine, process, served, client, log)
        if others:
            engine.apply(client, served)
            numbers = ", ".join(str(one.version) for one in others)
            tell(f"also loaded: version {numbers}; {served.name} is followed to these without a restart")
        yield engine, process
    finally:
        llamacpp.stop(process)


def _wait(engine: Engine, process: subprocess.Popen, served: Served, client: httpx.Client, log: Path) -> None:
    """Wait until an engine answers to the name of what it serves."""
    until = time.monotonic() + START_S
    while not engines.answers_to(client, served.name):
        status = process.poll()
        if status is not None or time.monotonic() > until:
            got = f"got no answer in {START_S:g} s" if status is None else f"got status {status}"
            raise ModelError(f"{served}: {engine.said} cannot serve it, {got}{_complaint(log)}; see {log}")
        time.sleep(ASK_S)


def _watch(
    asked: Asked,
    engine: Engine,
    process: subprocess.Popen,
    served: Served,
    alias: Alias | None,
    client: httpx.Client,
    log: Path,
    tell: Tell,
) -> tuple[Served, float]:
    """Follow the alias until the engine has to be started again for it; returns what is to be served then, and when
    the old version stopped to be.

    Raises:
        EndpointError: The engine ended by itself, or does not switch.
    """
    refused: int | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            said = f"got status {process.wait(WATCH_S)}{_complaint(log)}"
            raise EndpointError(f"{served}: {engine.said} ended by itself, {said}; see {log}")
        number = _version(alias, tell) if alias else served.version
        if number in (None, served.version, refused):
            refused = None if number == served.version else refused
            continue
        began, this = time.perf_counter(), f"{alias.name}@{number}"
        wanted, obstacle = _wanted(engine, alias, number, in_full=False)
        if obstacle and wanted and asked.restart:
            tell(f"{this}: {obstacle}; checking its files to start again for it")
            again, damage = _wanted(engine, alias, number, in_full=True)
            if again:
                return again, time.perf_counter()
            wanted, obstacle = again, damage
        if obstacle is None:
            engine.apply(client, wanted)
            served, refused = wanted, None
            tell(f"{served.name} is version {number} from now on, switched in {_ms(began)}")
        else:
            refused = number
            do = "start again, or with --restart" if wanted else "mend it and promote it again"
            tell(f"{this} is not served: {obstacle}; version {served.version} goes on; {do}")


def _wanted(engine: Engine, alias: Alias, number: int, *, in_full: bool) -> tuple[Served | None, str | None]:
    """A version, and why the engine that runs cannot go over to it; no version where its files are damaged."""
    try:
        wanted = alias.served(number, in_full=in_full)
        return wanted, engine.obstacle(wanted)
    except TunetrialError as error:
        return None, str(error)


def _ms(began: float) -> str:
    return f"{1e3 * (time.perf_counter() - began):.1f} ms"


def _version(alias: Alias, tell: Tell) -> int | None:
    """Where the alias is; None while the registry cannot be read."""
    try:
        return alias.version()
    except TunetrialError as error:
        tell(f"{alias.name}@{alias.alias} cannot be followed just now: {error}")
        return None


def _port(wanted: int | None) -> int:
    """The port that is wanted, if it is free, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted or 0))
        except (OSError, OverflowError) as error:
            got = getattr(error, "strerror", None) or error
            raise ConfigError(f"--port: {wanted} cannot be had, got {got}; use another, or leave it out") from None
        return probe.getsockname()[1]


@contextmanager
def _log() -> Iterator[Path]:
    """A file for the engine's log, removed where all went well."""
    log = home().absolute() / "serve" / f"{os.getpid()}.log"
    with files.writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    try:
        yield log
    except KeyboardInterrupt:
        log.unlink(missing_ok=True)
        raise
    except TunetrialError:
        if not log.stat().st_size:
            log.unlink()
        raise


def _complaint(log: Path) -> str:
    """What an engine's log says of an error, a line at most: llama.cpp's first, any other's last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    marked = [" ".join(line.split()[2:]) for line in lines if " E " in line[:24]]
    other = [line for line in lines if "rror" in line]
    said = next(iter(marked), None) or next(iter(reversed(other)), None)
    shown = "".join(c if c.isprintable() else " " for c in said or "")
    return f" ({' '.join(shown.split())[:200]})" if shown else ""


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends what is within as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
