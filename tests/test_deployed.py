"""Memory after training, held against figures that others publish and against sums by hand."""

import pytest

from tunetrial import methods, models
from tunetrial.core.study import Arm
from tunetrial.plan.deployed import cache_bytes, merge_bytes, serve_bytes

LLAMA = models.described("meta-llama/Llama-3.2-1B").shape
BERT = models.described("google-bert/bert-base-uncased").shape


def arm(method: str, **settings: object) -> Arm:
    return Arm(name=method, method=method, settings=methods.settle(method, settings))


def test_keys_and_values_of_a_token_are_those_of_the_papers():
    """OPT-13B: 800 KB a token (Kwon et al. 2023, section 3). Llama 3.1 70B, grouped heads: 320 KiB."""
    opt = {"layers": 40, "kv_heads": 40, "head_dim": 128}
    assert cache_bytes(LLAMA.model_copy(update=opt), 1, precision="fp16") == 800 * 1024
    large = models.described("meta-llama/Llama-3.1-70B").shape
    assert cache_bytes(large, 1, precision="bf16") == 320 * 1024


def test_what_is_served_is_base_adapter_and_cache():
    asked = {"rows": 4, "tokens": 2048, "outputs": 0, "precision": "bf16"}
    weights, cache = 1_235_814_400, 2 * 16 * 8 * 64 * 2 * 4 * 2048
    adapter = 16 * 16 * (2 * 2048 + 2 * (2048 + 512) + 2 * 2048 + 3 * (2048 + 8192))
    assert serve_bytes(arm("full"), LLAMA, **asked) == 2 * weights + cache
    assert serve_bytes(arm("lora"), LLAMA, **asked) == 2 * (weights + adapter) + cache
    matrices = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    saved = serve_bytes(arm("lora"), LLAMA, **asked) - serve_bytes(arm("qlora"), LLAMA, **asked)
    assert saved == pytest.approx((16 - 4.127) / 8 * matrices, rel=1e-4)


def test_a_head_that_answers_takes_no_cache():
    asked = {"rows": 4, "tokens": 128, "outputs": 3, "precision": "fp32"}
    head = BERT.readout_parameters(3)
    assert serve_bytes(arm("full"), BERT, **asked) == 4 * (BERT.parameters + head)
    assert serve_bytes(arm("peft", peft_type="LORA", lora_alpha=8), LLAMA, **asked) is None


def test_merging_holds_what_was_merged_beside_what_is_read_back():
    adapter = 16 * 16 * (2 * 2048 + 2 * (2048 + 512) + 2 * 2048 + 3 * (2048 + 8192))
    least = (2 + 4) * 1_235_814_400 + 4 * (adapter + 3 * 8 * 32 * 128_256)
    found = merge_bytes(arm("qlora"), LLAMA)
    assert (found.low, found.high) == (least, least + 4 * 1_235_814_400)
    assert merge_bytes(arm("full"), LLAMA) is None and merge_bytes(arm("lora"), BERT) is None
