"""`tunetrial serve` as a user meets it: real llama.cpp, real HTTP, real signals, and a registry that moves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from shipped_folders import shipped, statement
from test_cli import TUNETRIAL
from test_llamacpp import bare_adapter, gone
from test_merge import peft_adapter
from tiny import make_model
from tunetrial import cli, models
from tunetrial.core import manifest
from tunetrial.core.errors import EndpointError, IntegrityError, ModelError
from tunetrial.ship import engines, gguf_files, llamacpp, served
from tunetrial.ship.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
BASE = models.EMBEDDED
PROMPT = "The weather in the north of the country today is "
MANY_S = 120


def adapter(folder: Path, seed: int) -> Path:
    """An adapter of the embedded base that writes another text than others."""
    made = peft_adapter(BASE, folder)
    weights = load_file(made / "adapter_model.safetensors")
    draw = torch.Generator().manual_seed(seed)
    drawn = {name: 0.15 * torch.randn(one.shape, generator=draw) for name, one in weights.items()}
    save_file(drawn, made / "adapter_model.safetensors")
    return made


def seal(folder: Path, **changes) -> Path:
    about = {"format": "gguf", "base_fingerprint": models.resolve("embedded").fingerprint, "arm": "lora"}
    (folder / "tunetrial.json").write_text(json.dumps(statement(**about | changes)))
    manifest.seal(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Shipped folders: adapters 1 and 2 of one base, `other` of the same base in bf16, `whole` a model alone."""
    root = tmp_path_factory.mktemp("serve")
    base = gguf_files.write_base(BASE, root / "base.gguf", kind="f32")
    for name, seed in (("1", 1), ("2", 2), ("other", 3)):
        (root / name).mkdir()
        gguf_files.write_adapter(adapter(root / f"peft-{name}", seed), BASE, root / name / "adapter.gguf")
        if name == "other":
            gguf_files.write_base(BASE, root / name / "base.gguf", kind="bf16")
        else:
            os.link(base, root / name / "base.gguf")
        seal(root / name)
    (root / "whole").mkdir()
    os.link(base, root / "whole" / "model.gguf")
    seal(root / "whole", arm="full", chain={"passed": False, "first_break": "here"})
    return root


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def registry(home, made) -> Registry:
    """`mail` has three versions, the first of which is the champion."""
    found = Registry.at()
    for name in ("1", "2", "other"):
        found.add("mail", made / name)
    found.promote("mail", "1")
    return found


class Served:
    """A `tunetrial serve` that runs."""

    def __init__(self, process: subprocess.Popen, told: Path) -> None:
        self.process, self._told = process, told
        self.made = json.loads(process.stdout.readline() or "{}")

    @property
    def told(self) -> str:
        return self._told.read_text()

    def wait_for(self, said: str) -> str:
        """The line in which it says this."""
        until = time.monotonic() + MANY_S
        while time.monotonic() < until:
            if found := [line for line in self.told.splitlines() if said in line]:
                return found[-1]
            assert self.process.poll() is None, self.told
            time.sleep(0.05)
        raise AssertionError(self.told)

    def text(self, **more) -> str:
        """The greedy answer of 12 tokens, asked as anybody would."""
        body = {"model": self.made["model"], "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | more
        answer = httpx.post(f"{self.made['url']}/completions", json=body, timeout=MANY_S, trust_env=False)
        return answer.raise_for_status().json()["choices"][0]["text"]


@contextmanager
def serving(home: Path, *words: object) -> Iterator[Served]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TUNETRIAL_HOME": str(home)}
    home.mkdir(exist_ok=True)
    with open(home / "told", "w") as told:
        command = [*TUNETRIAL, "serve", *map(str, words), "--context", "256", "--json"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=told)
    try:
        yield Served(process, home / "told")
    finally:
        process.kill()
        process.communicate()


def in_chain(folder: Path) -> str:
    """The greedy answer of the files as the fidelity chain asks for it."""
    adapter = folder / "adapter.gguf"
    model = folder / ("base.gguf" if adapter.exists() else "model.gguf")
    with llamacpp.server(model, adapter=adapter if adapter.exists() else None, threads=1) as running:
        return running.complete(PROMPT, max_tokens=12).text


def test_an_alias_is_followed_without_a_restart_and_answers_as_the_chain_does(home, registry, made):
    texts = {name: in_chain(made / name) for name in ("1", "2")}
    assert texts["1"] != texts["2"]
    with serving(home, "mail@champion") as server:
        assert server.made["model"] == "mail@champion" and server.made["version"] == 1
        assert server.made["url"].startswith("http://127.0.0.1:") and "xllamacpp" in server.made["engine"]
        assert "also loaded: version 2;" in server.told
        assert server.text() == texts["1"]
        registry.promote("mail", "2")
        assert server.wait_for("is version 2 from now on, switched in ").endswith(" ms")
        assert server.text() == texts["2"]  # the same prompt, whatever was computed of it before
        registry.rollback("mail")
        server.wait_for("is version 1 from now on")
        assert server.text() == texts["1"]
        registry.promote("mail", "3")
        said = server.wait_for("mail@3 is not served: it has another base.gguf; version 1 goes on; start again, or")
        assert said.endswith("with --restart") and server.text() == texts["1"]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(MANY_S) == 0 and gone(server.made["pid"])
        assert not list((home / "serve").iterdir())  # the log of what went well


@pytest.mark.slow
def test_with_restart_an_alias_is_followed_to_another_base_at_the_same_address(home, registry, made):
    with serving(home, "mail@champion", "--restart") as server:
        before = server.made["pid"]
        registry.promote("mail", "3")
        assert "nothing answered for" in server.wait_for("is version 3 from now on")
        assert server.text() == in_chain(made / "other") and gone(before)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(MANY_S) == 0


def test_a_folder_is_served_until_its_parent_is_killed_and_then_nothing_is_left(home, made):
    with serving(home, made / "whole") as server:
        assert server.made["model"] == "full" and server.made["version"] is None
        assert "the fidelity chain of" in server.told and "failed at here" in server.told
        assert server.text() == in_chain(made / "whole")
        server.process.kill()
        assert gone(server.made["pid"])


@pytest.mark.slow
def test_an_engine_that_dies_is_one_line_that_names_its_log(home, made):
    with serving(home, made / "whole") as server:
        os.kill(server.made["pid"], signal.SIGKILL)
        assert server.process.wait(MANY_S) == 1
        last = server.told.splitlines()[-1]
        assert last.startswith("tunetrial: ") and "ended by itself, got status -9" in last
        assert Path(last.rpartition("see ")[2]).read_text()


STAND_IN = """#!{python}
# Takes the options of `llama-server` and serves by llama.cpp's bindings.
import argparse, json, subprocess, sys, urllib.request
read = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "alias", "host", "port", "parallel", "ctx-size", "flash-attn", "cache-type-k", "cache-type-v"):
    read.add_argument(f"--{{name}}", required=True)
read.add_argument("--cache-ram")
read.add_argument("--lora")
read.add_argument("--lora-scaled", action="append", default=[])
for name in ("offline", "no-webui", "no-cache-prompt"):
    read.add_argument(f"--{{name}}", action="store_true")
asked = read.parse_args()
assert (asked.host, asked.flash_attn, asked.cache_type_k, asked.cache_type_v) == ("127.0.0.1", "off", "f32", "f32")
slots = int(asked.parallel)
assert all(one.endswith(":0") for one in asked.lora_scaled)
loras = [asked.lora, *(one[:-2] for one in asked.lora_scaled)] if asked.lora else []
told = dict(model=asked.model, adapters=loras, alias=asked.alias, context=int(asked.ctx_size) // slots, threads=1)
told |= dict(exact=True, port=int(asked.port), slots=slots, cache=not asked.no_cache_prompt)
with subprocess.Popen([sys.executable, {process!r}], stdin=subprocess.PIPE, text=True) as server:
    server.stdin.write(json.dumps(told) + "\\n")
    server.stdin.flush()
    print("serves in", server.pid, file=sys.stderr, flush=True)
    server.wait()
"""


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_llama_cpp_s_own_server_is_told_the_same(home, registry, made, tmp_path):
    """Its options as they are documented, taken by a stand-in; all that it started ends with it."""
    text = STAND_IN.format(python=sys.executable, process=str(llamacpp.PROCESS))
    checkout = program(tmp_path / "checkout", "llama-server", text)
    with serving(home, "mail@champion", "--llama-cpp", checkout) as server:
        assert server.made["engine"] == "llama.cpp (llama-server)", server.told
        assert server.text() == in_chain(made / "1")
        registry.promote("mail", "2")
        server.wait_for("is version 2 from now on")
        assert server.text() == in_chain(made / "2")
        (log,) = (home / "serve").iterdir()
        grandchild = int(log.read_text().partition("serves in ")[2].split()[0])
        server.process.kill()
        assert gone(server.made["pid"]) and gone(grandchild)


def refused(home: Path, *words: object) -> str:
    """The one line of a `serve` that does not come to serve."""
    ran = CliRunner().invoke(cli.app, ["serve", *map(str, words)])
    assert ran.exit_code == 1 and ran.stdout == "", (ran.stdout, ran.stderr, ran.exception)
    lines = [line for line in ran.stderr.splitlines() if line.startswith("tunetrial: ")]
    assert len(lines) == 1 and lines[0] == ran.stderr.splitlines()[-1]
    return lines[0]


def test_altered_files_are_refused_before_anything_is_started(home, registry, made, tmp_path):
    folder = shutil.copytree(made / "1", tmp_path / "altered")
    with open(folder / "adapter.gguf", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff" * 4)
    assert "adapter.gguf: expected" in refused(home, folder)
    (folder / "manifest.json").unlink()
    assert "manifest.json: file is missing" in refused(home, folder)
    kept = (registry.find("mail", "1").folder / "adapter.gguf").resolve()
    kept.chmod(0o644)
    content = kept.read_bytes()
    stamp = kept.stat()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(kept, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "mail@1: adapter.gguf: is altered" in refused(home, "mail@champion")
    assert not (home / "serve").exists() or not list((home / "serve").iterdir())


def test_what_cannot_be_found_or_had_is_one_line(home, registry, made, tmp_path):
    assert "there are 1 to 3, champion" in refused(home, "mail@challenger")
    assert "no such name, got 'post'" in refused(home, "post@champion")
    assert "no such folder; name one that" in refused(home, tmp_path / "none")
    assert "no llama-server there, got" in refused(home, made / "1", "--llama-cpp", tmp_path)
    assert "vllm does not take it, got format gguf; ship it with --format vllm" in refused(
        home, made / "1", "--engine", "vllm"
    )
    assert "was trained on" in refused(home, made / "1", "--context", 100_000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port: {port} cannot be had, got Address already in use" in refused(home, made / "1", "--port", port)
    assert not list((home / "serve").iterdir())


def test_a_model_that_the_engine_refuses_or_a_program_that_does_not_run_is_one_line(home, made, tmp_path):
    folder = shutil.copytree(made / "1", tmp_path / "strange", copy_function=os.link)
    for name in ("adapter.gguf", "tunetrial.json", "manifest.json"):
        (folder / name).unlink()
    bare_adapter(folder / "adapter.gguf")
    said = refused(home, seal(folder))
    assert (
        "llama.cpp (xllamacpp) cannot serve it, got status 1 (" in said and Path(said.rpartition("see ")[2]).is_file()
    )
    broken = program(tmp_path / "broken", "llama-server", "#!/bin/sh\necho 'error: no such GPU' >&2\nexit 7\n")
    said = refused(home, made / "1", "--llama-cpp", broken)
    assert "llama.cpp (llama-server) cannot serve it, got status 7 (error: no such GPU); see " in said
    absent = program(tmp_path / "absent", "llama-server", "#!/no/such/shell\n")
    assert "got status 127 (error: " in refused(home, made / "1", "--llama-cpp", absent)


def test_heads_and_adapters_without_a_gpu_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    plain = shipped(tmp_path / "plain")
    manifest.seal(plain)
    assert "format adapter is served by vLLM, got no program vllm; install it, or ship it" in refused(home, plain)
    head = shipped(tmp_path / "head", files={"readout.json": b"{}"})
    manifest.seal(head)
    assert "answers by a head, which no engine here serves, got readout.json" in refused(home, head)


def test_only_what_may_be_promoted_and_is_intact_is_held_beside_the_champion(registry, made, tmp_path):
    folder = shutil.copytree(made / "2", tmp_path / "failed")
    registry.add("mail", seal(folder, chain={"passed": False, "first_break": "a hop"}))
    champion, alias = served.find("mail@champion", registry)
    assert [one.version for one in alias.companions(champion)[0]] == [2]  # 3 has another base, 4 failed
    assert served.find("mail@1", registry)[1] is None
    kept = (registry.find("mail", "2").folder / "adapter.gguf").resolve()
    kept.unlink()
    others, said = alias.companions(champion)
    assert others == () and len(said) == 1 and said[0].startswith("left out: mail@2: adapter.gguf: is missing")


VLLM = """#!{python}
# Stands in for vLLM: says what it was told, and answers as its documentation says of a server with one adapter.
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
words = [word for word in sys.argv[1:] if word != str(port)]
seen = dict(words=words, may=os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), quiet=os.environ.get("DO_NOT_TRACK"))
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def say(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.say(dict(data=[dict(id="mail@champion")], **seen))
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen["posted"] = body if self.path == "/v1/load_lora_adapter" else self.path
        self.say({{}})
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def adapters(home, tmp_path) -> Registry:
    """`mail` has three versions, as adapters in PEFT's layout: of ranks 2 and 64, and one of another base."""
    found = Registry.at()
    for number, rank in enumerate((2, 64, 2), 1):
        folder = peft_adapter(BASE, tmp_path / f"adapter-{number}", r=rank)
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(BASE)}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "README.md").write_text(str(number))
        found.add("mail", seal(folder, format="adapter", **({"base_fingerprint": "ef" * 32} if number == 3 else {})))
    found.promote("mail", "1")
    return found


def test_vllm_is_given_the_command_and_requests_of_its_documentation(home, adapters, tmp_path, monkeypatch):
    """vLLM itself is not run: what it is told is looked at, and a stand-in answers."""
    program(tmp_path / "bin", "vllm", VLLM.format(python=sys.executable))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    champion, _ = served.find("mail@champion", adapters)
    assert engines.choose("auto", champion) == "vllm"
    engine = engines.open_engine("vllm", champion, (), None, 512)
    place = str(champion.folder)
    assert list(engine.words) == [
        *("vllm", "serve", str(BASE), "--enable-lora", "--lora-modules", f"mail@champion={place}"),
        *("--max-lora-rank", "8", "--max-model-len", "512", "--no-enable-prefix-caching"),
        *("--dtype", "bfloat16", "--host", "127.0.0.1"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        open(tmp_path / "log", "wb") as log,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        process = engine.start(port, log)
        try:
            until = time.monotonic() + MANY_S
            while not engines.answers_to(client, "mail@champion") and time.monotonic() < until:
                time.sleep(0.05)
            seen = client.get("/").json()
            assert seen["words"] == [*engine.words[1:], "--port"] and (seen["may"], seen["quiet"]) == ("True", "1")
            again = served.find("mail@1", adapters)[0]
            assert engine.obstacle(again) is None
            engine.apply(client, again)
            posted = {"lora_name": "mail@champion", "lora_path": place, "load_inplace": True}
            assert client.get("/").json()["posted"] == posted
        finally:
            llamacpp.stop(process)
    assert "--no-enable-prefix-caching" not in engines.open_engine("vllm", again, (), None, None).words
    obstacles = [engine.obstacle(served.find(f"mail@{number}", adapters)[0]) for number in (2, 3)]
    assert obstacles == ["its rank is 64, and vLLM was started for 8", "it has another base"]
    with pytest.raises(EndpointError, match="vLLM does not answer, got ConnectError; start it again"):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            engine.apply(client, again)
    with pytest.raises(IntegrityError, match="expected weights efefefefefef, got .*; restore the base of mail@3"):
        engines.open_engine("vllm", served.find("mail@3", adapters)[0], (), None, None)


def test_a_whole_model_is_served_by_vllm_in_its_own_dtype(home, tmp_path):
    folder = make_model(tmp_path / "whole")
    config = json.loads((folder / "config.json").read_text())
    for dtype, said in (("float32", "float32"), ("float64", None)):
        (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
        whole, _ = served.find(str(seal(folder, format="merged")), Registry.at())
        if said is None:
            with pytest.raises(ModelError, match="not a language model in 16 or 32 bits, got dtype 'float64'"):
                engines.open_engine("vllm", whole, (), None, None)
        else:
            words = engines.open_engine("vllm", whole, (), None, None).words
            assert words[:5] == ("vllm", "serve", str(folder), "--served-model-name", "lora")
            assert words[words.index("--dtype") + 1] == said
