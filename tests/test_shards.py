"""What each of several GPUs would hold with sharded states: against counts by hand, and against `fully_shard`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial import methods
from tunetrial.core.errors import ConfigError
from tunetrial.core.speed import exactly
from tunetrial.core.study import Arm
from tunetrial.core.work import Phase, Traced
from tunetrial.models import described, shape_of
from tunetrial.plan import catalogue, shards
from tunetrial.plan.shards import Sharding, Weights, sharded

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 60,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "intermediate_size": 101,
    "vocab_size": 97,
}
SHAPE = shape_of({"model_type": "llama", **SIZES, "max_position_embeddings": 2048}, "tiny")


def arm(method: str, **settings) -> Arm:
    return Arm(name=method, method=method, settings=methods.settle(method, settings))


def of(method: str, **settings) -> Sharding:
    return Sharding.of(arm(method, **settings), SHAPE, compute_bytes=2)


def held(sharding: Sharding, devices: int, *, trained: bool) -> float:
    return sum(times * unit.sharded(devices, trained=trained) for times, unit in sharding.units)


def test_shards_by_hand():
    """Rows of every tensor over 4 GPUs, rounded up, times its columns: of a block, then embedding, norm and head."""
    block = 14 * 60 + 2 * 7 * 60 + 15 * 56 + 2 * 26 * 60 + 15 * 101 + 120 // 4
    rest = 2 * 25 * 60 + 15
    full = of("full")
    assert held(full, 4, trained=True) == 4 * (3 * block + rest) and held(full, 4, trained=False) == 0
    low = 7 * (1 * 60) - 60 - 60 + 56 + 101 + 2 * (14 + 7 + 7 + 15 + 26 + 26 + 15)
    lora = of("lora", rank=2)
    assert held(lora, 4, trained=True) == 4 * 3 * low
    assert held(lora, 4, trained=False) == 2 * (3 * block + rest)


def test_on_one_gpu_nothing_is_shared_and_all_weights_are_counted():
    assert held(of("full"), 1, trained=True) == 4 * SHAPE.parameters
    lora = methods.find(arm("lora", rank=2))
    assert held(of("lora", rank=2), 1, trained=True) == 4 * lora.trainable_parameters(SHAPE, 0)
    assert of("lora").exchanged_bytes(1) == 0
    stored = methods.find(arm("qlora")).base_bytes(SHAPE, 2) + 2 * SHAPE.vocabulary * SHAPE.hidden  # the head besides
    assert held(of("qlora"), 1, trained=False) == pytest.approx(stored)


def test_known_models_are_counted_whole():
    for name in ("openai-community/gpt2", "google-bert/bert-base-uncased", "Qwen/Qwen3-0.6B"):
        shape = described(name).shape
        found = Sharding.of(arm("full"), shape, compute_bytes=2, outputs=None if shape.decoder else 2)
        outputs = 0 if shape.decoder else shape.readout_parameters(2)
        assert held(found, 1, trained=True) == 4 * (shape.parameters + outputs), name


@given(rows=st.integers(1, 10**6), columns=st.integers(1, 10**4), devices=st.integers(1, 1024))
def test_shards_hold_all_and_less_than_a_row_each_more(rows, columns, devices):
    shard = Weights(rows, columns, 4, 2, True).shard(devices)
    assert rows * columns <= devices * shard < rows * columns + devices * columns


def test_what_is_gathered_at_once_by_hand():
    """Blocks of w weights, r in none, over 2 GPUs without padding: bf16 weights, bf16 and fp32 gradients."""
    even = shape_of({"model_type": "llama", **SIZES, "intermediate_size": 100, "vocab_size": 98}, "even")
    w, r = even.block_parameters, even.parameters - 3 * even.block_parameters
    full = Sharding.of(arm("full"), even, compute_bytes=2)
    assert full.gathered_bytes(2) == (2 + 2) * r + max((2 * 2 + 2 + 4) * w, 4 * r)
    assert full.exchanged_bytes(2) == ((2 * 2 + 4) * 3 * w + (2 + 4) * r) / 2
    lora = Sharding.of(arm("lora", rank=2), even, compute_bytes=2)
    low = methods.find(arm("lora", rank=2)).trainable_parameters(even, 0) // 3
    assert lora.gathered_bytes(2) == 2 * r + 2 * 2 * (w + low) + (2 + 4) * low


def test_a_count_is_shared_out_and_what_passes_stays_whole():
    parts = {"base": 0, "trained": 6000, "gradients": 6000, "moments": 8000, "activations": 70}
    step = Phase(peak_bytes=sum(parts.values()), parts=parts, passing_bytes=90)
    found = sharded(Traced(phases={"step": step}, tokens=1), of("full"), 4).phases["step"]
    share = of("full").share(4, trained=True)
    masters = held(of("full"), 4, trained=True)
    assert found.parts["moments"] == pytest.approx(8000 * share, abs=1) and 0.25 < share < 0.26
    assert found.parts["trained"] == found.parts["gradients"] == masters and found.parts["activations"] == 90
    assert found.peak_bytes == sum(found.parts.values())
    with pytest.raises(ConfigError, match="not told from the rest"):
        sharded(Traced(phases={"step": Phase(peak_bytes=1, parts={})}, tokens=1), of("full"), 4)


def test_time_is_between_overlapped_and_one_after_the_other():
    place, full = catalogue.device("a100-80"), of("full")
    moved = full.exchanged_bytes(4) / place.link_bytes_per_s
    busy = shards.seconds(exactly(10.0), full, 4, place, passes=3)
    assert busy.low == 10.0 and busy.high == pytest.approx(10.0 + 3 * moved / 0.4)
    idle = shards.seconds(exactly(0.0), full, 4, place, passes=3)
    assert idle.low == pytest.approx(3 * moved / 0.85)
    with pytest.raises(ConfigError, match="several machines is not known"):
        shards.seconds(exactly(1.0), full, 16, place, passes=1)


def test_a_method_whose_tensors_are_not_known_is_refused():
    with pytest.raises(ConfigError, match="cannot be sharded here, got method peft"):
        of("peft", peft_type="IA3")


@pytest.mark.slow
def test_shards_and_exchanges_are_those_of_fully_shard(tmp_path):
    script = Path(__file__).with_name("sharded_llama.py")
    started = [
        subprocess.Popen([sys.executable, script, tmp_path, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    found = [json.loads(process.communicate(timeout=240)[0]) for process in started]
    for number, sharding in enumerate((of("full"), of("lora", rank=3))):
        masters = held(sharding, 2, trained=True)
        for rank in (0, 1):
            measured = found[rank][number]
            assert measured["frozen"] == held(sharding, 2, trained=False)
            assert measured["trained"] == measured["gradients"] == masters
            gathered = 2 * 3 * sharding.block.gathered_bytes(2) + sharding.rest.gathered_bytes(2)
            assert measured["gathered"] == gathered
            assert measured["gathered"] + measured["reduced"] == 2 * sharding.exchanged_bytes(2)
        assert found[0][number]["moments"] == 2 * masters >= found[1][number]["moments"]
