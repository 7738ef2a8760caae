"""Real llama.cpp: its tokens, its numbers and its text beside those of transformers and PEFT, and its surely ending."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import httpx
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from test_merge import peft_adapter
from tiny import make_model, make_trial
from tunetrial import models, tasks
from tunetrial.core import manifest
from tunetrial.core.errors import ConfigError, EndpointError, IntegrityError, ModelError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine.texts import Texts
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.ship import gguf_files, llamacpp

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's, in these tests
BASE = models.EMBEDDED
LONGEST, NEAR_NATS = 16, 1e-3


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def data() -> TaskData:
    whole = tasks.load(tasks.built_in("tickets_json"), Path.cwd())
    splits = {name: whole.splits[name][:count] for name, count in (("train", 32), ("validation", 3))}
    return TaskData(whole.name, whole.kind, whole.labels, splits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """GGUF files, and adapters that a few steps changed enough to write another text."""
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def base(folder) -> Path:
    return gguf_files.write_base(BASE, folder / "base.gguf", kind="f32")


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["lora", "rslora"])
def adapter(request, folder, data) -> Path:
    """An adapter of a few steps; of rsLoRA, whose scale is 4 times that of LoRA."""
    arm = {"rank": 16, "alpha": 32 if not request.param else 8, "rslora": request.param}
    controls = {"readout": "text", "max_new_tokens": LONGEST, "epochs": 3, "batch_examples": 8}
    trial = make_trial(
        "lora", settings=arm, rate=3e-3, base_fingerprint=models.resolve("embedded").fingerprint, **controls
    )
    run = TorchEngine(device="cpu").open(BASE, "fp32").start(trial, data)
    list(run.steps(None))
    run.save(folder / f"adapter-{request.param}")
    return folder / f"adapter-{request.param}"


@torch.no_grad()
def log_probs(model, ids: list[int]) -> np.ndarray:
    return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1).numpy()


def greedy(model, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Greedy tokens by transformers' own loop, without the end of text."""
    how, made = GenerationConfig(max_new_tokens=LONGEST, do_sample=False, eos_token_id=0, pad_token_id=1), []
    for ids in prompts:
        row = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=how)[0]
        made.append(tuple(row[len(ids) :].tolist()[: -1 if row[-1] == 0 else None]))
    return made


def written(running: llamacpp.Server, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [running.complete(ids, max_tokens=LONGEST).tokens for ids in prompts]


def apart(running: llamacpp.Server, model, prompts: list[list[int]]) -> float:
    """The largest difference of a log-probability of any token after any of the prompts, in nats."""
    differences = []
    for ids in prompts:
        (best, found), told = running.next_token(ids, top=8192), np.empty(8192)
        told[best] = found
        differences.append(np.abs(told - log_probs(model, ids)).max())
    return max(differences)


@pytest.fixture(scope="module")
def prompts(data, tokenizer):
    return [row.tokens[: row.prompt] for row in Texts(tokenizer).rows(data.splits["validation"])]


@pytest.fixture(scope="module")
def untuned(prompts) -> list[tuple[int, ...]]:
    return greedy(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), prompts)


def test_an_f32_base_computes_what_transformers_does(base, prompts, untuned):
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with llamacpp.server(base, threads=1) as running:
        assert written(running, prompts) == untuned
        assert apart(running, model, prompts) < NEAR_NATS


def test_an_adapter_beside_the_base_computes_what_peft_does(base, adapter, prompts, untuned, folder):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), adapter)
    tuned = greedy(model, prompts)
    assert all(own != other for own, other in zip(tuned, untuned, strict=True))
    made = gguf_files.write_adapter(adapter, BASE, folder / f"{adapter.name}.gguf")
    with llamacpp.server(base, adapter=made, threads=1) as running:
        assert written(running, prompts) == tuned
        assert apart(running, model, prompts) < NEAR_NATS
        running.scale(0.0)
        assert written(running, prompts) == untuned
        running.scale(1.0)
        assert written(running, prompts[:1]) == tuned[:1]


ODD = [
    "Hello  wörld\n\n\t x",
    "日本語 🙂👍🏽 é e\u0301",
    "it's 3.14% _of_ 1,000",
    "a" * 99,
    "\u00a0\u2003 \r\n",
    "<|endoftext|>b",
    " ",
]
CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t'sdé<|>"))


@pytest.fixture(scope="module")
def running(base):
    with llamacpp.server(base, alias="mine", threads=1) as running:
        yield running


@settings(max_examples=150)
@given(st.text(CHARACTERS, min_size=1, max_size=60))
def test_tokens_are_those_of_the_tokenizer(running, tokenizer, text):
    assert running.tokenize(text) == tokenizer(text).input_ids


@pytest.mark.parametrize("text", ODD)
def test_tokens_of_odd_texts_are_those_of_the_tokenizer(running, tokenizer, text):
    assert running.tokenize(text) == tokenizer(text).input_ids


def test_a_conversation_is_written_as_in_training(running, tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is\nit?"}]
    messages += [{"role": "assistant", "content": "Here."}, {"role": "user", "content": "Thanks"}]
    asked = Example("a", "a", "", "", messages=json.dumps([*messages, {"role": "assistant", "content": "Bye"}]))
    written = "".join(text for text, _ in Texts(tokenizer).pieces(asked))
    assert written.startswith(running.template(messages) + "Bye")


def test_a_text_is_continued_as_its_tokens_are_and_served_by_name(running, tokenizer):
    by_text = running.complete("The weather in the north", max_tokens=8, top=3)
    by_tokens = running.complete(tokenizer("The weather in the north").input_ids, max_tokens=8, top=3)
    assert by_text.text == by_tokens.text == tokenizer.decode(by_text.tokens)
    assert len(by_text.tokens) == 8 and by_text.log_probs_TN.shape == (8, 3)
    assert [ids[0] for ids in by_text.top_ids_TN] == list(by_text.tokens)
    body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, trust_env=False).json()
    assert answer["model"] == "mine" and answer["choices"][0]["message"]["content"]
    assert running.url.startswith("http://127.0.0.1:")


def test_tokens_that_are_no_whole_characters_are_told_of_too(tmp_path):
    """A random model with tied embeddings repeats the last token, here half a character."""
    tiny = make_model(tmp_path / "tiny", merges=(("e", "r"),))
    model, prompt = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), [70, 71, 148]
    with llamacpp.server(gguf_files.write_base(tiny, tmp_path / "t.gguf", kind="f32"), threads=1) as running:
        made = running.complete(prompt, max_tokens=12, top=258)
        assert b"\xef\xbf\xbd" in made.text.encode() and len(made.log_probs_TN) >= len(made.tokens) > 3
        for place, token in enumerate(made.tokens):
            told = np.empty(258)
            told[made.top_ids_TN[place]] = made.log_probs_TN[place]
            assert made.top_ids_TN[place][0] == token
            assert np.allclose(told, log_probs(model, [*prompt, *made.tokens[:place]]), atol=NEAR_NATS)


def test_what_it_refuses_is_one_line(running):
    with pytest.raises(
        EndpointError, match=r"/completion: llama.cpp refuses, got HTTP 400 .*600 tokens.*; change what"
    ):
        running.complete([5] * 600, max_tokens=1)
    with pytest.raises(EndpointError, match="invalid tokens"):
        running.complete([8192], max_tokens=1)
    with pytest.raises(EndpointError, match="nothing to continue, got an empty prompt; give one"):
        running.complete("", max_tokens=1)
    with pytest.raises(ConfigError, match="no adapter to scale, got none at the start; start it with one"):
        running.scale(0.5)


def bare_adapter(path: Path) -> Path:
    """An adapter as other programs write it, which does not say of which base it is, and fits none of these tests."""
    bare = gguf.GGUFWriter(path, "llama")
    bare.add_type("adapter")
    bare.add_string("adapter.type", "lora")
    bare.add_float32("adapter.lora.alpha", 8.0)
    for side, shape in (("a", (2, 64)), ("b", (64, 2))):
        bare.add_tensor(f"blk.0.attn_v.weight.lora_{side}", np.ones(shape, np.float32))
    bare.write_header_to_file()
    bare.write_kv_data_to_file()
    bare.write_tensors_to_file()
    bare.close()
    return path


def test_an_adapter_of_another_base_and_one_that_does_not_fit_are_refused(base, tmp_path):
    other = make_model(tmp_path / "other")
    strange = gguf_files.write_adapter(peft_adapter(other, tmp_path / "a"), other, tmp_path / "a.gguf")
    with pytest.raises(
        IntegrityError, match=r"a.gguf: made for base weights .*, got base.gguf of .*; name the GGUF of"
    ):
        with llamacpp.server(base, adapter=strange):
            pass
    bare_adapter(tmp_path / "bare.gguf")
    with pytest.raises(ModelError, match=r"base.gguf: llama.cpp cannot serve it, got .*; write the file anew"):
        with llamacpp.server(base, adapter=tmp_path / "bare.gguf", threads=1):
            pass


def test_a_file_that_is_cut_or_no_gguf_is_refused(base, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:-100_000])
    with pytest.raises(ModelError, match="cut.gguf: not a GGUF that can be read"):
        with llamacpp.server(tmp_path / "cut.gguf"):
            pass
    with pytest.raises(ModelError, match="none.gguf: not a GGUF that can be read, got FileNotFoundError"):
        with llamacpp.server(tmp_path / "none.gguf"):
            pass


def test_a_flipped_byte_is_found_where_the_folder_is_sealed(base, tmp_path):
    """llama.cpp itself loads it."""
    content = bytearray(base.read_bytes())
    (tmp_path / "base.gguf").write_bytes(content)
    manifest.seal(tmp_path)
    content[-1000] ^= 4
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(IntegrityError, match="base.gguf: expected .* SHA-256 .*; reinstall or restore the file"):
        with llamacpp.server(tmp_path / "base.gguf", threads=1):
            pass
    (tmp_path / manifest.NAME).unlink()
    with llamacpp.server(tmp_path / "base.gguf", threads=1) as running:
        assert running.tokenize("a")


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process has ended, or does in this time; one that nobody has waited for yet has."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_it_ends_with_its_block_however_that_ends(base):
    with llamacpp.server(base, threads=1) as running:
        assert not gone(running.pid, 0.1)
    assert gone(running.pid, 0.1)
    with pytest.raises(KeyboardInterrupt), llamacpp.server(base, threads=1) as running:
        raise KeyboardInterrupt
    assert gone(running.pid, 0.1)
    with llamacpp.server(base, threads=1) as running:
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(EndpointError, match="llama.cpp does not answer, got .*; start it again"):
            running.complete("a", max_tokens=1)


def test_it_ends_when_its_parent_is_killed(base):
    code = (
        "import time; from pathlib import Path; from tunetrial.ship import llamacpp\n"
        f"with llamacpp.server(Path({str(base)!r}), threads=1) as running:\n"
        "    print(running.pid, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
