"""vLLM's rules on adapters, as its documents state them, and the words of its command."""

import json
from pathlib import Path

import pytest

from tunetrial.core.errors import ModelError
from tunetrial.models.adapters import AdapterFolder
from tunetrial.ship import vllm


def adapter(rank=16, method="lora", heads=()):
    digest = "0" * 64
    return AdapterFolder(
        folder=Path("x"), method=method, rank=rank, base_model=None, heads=heads, digest_of_weights=digest
    )


@pytest.mark.parametrize(
    ("rank", "least"), [(1, 1), (2, 8), (8, 8), (9, 16), (17, 32), (65, 128), (129, 256), (257, 320), (512, 512)]
)
def test_a_rank_is_rounded_up_to_one_that_vllm_takes(rank, least):
    assert vllm.check(adapter(rank), "bf16") == least


@pytest.mark.parametrize(
    ("given", "dtype", "said"),
    [
        (adapter(513), "bf16", "takes ranks up to 512, got 513; merge first"),
        (adapter(method="dora"), "bf16", "serves no DoRA, got use_dora: true; merge first"),
        (adapter(heads=("score",)), "bf16", "serves no head of an adapter, got score; train with readout: labels"),
        (adapter(), "fp32", "adapters in 16 bits alone, got fp32; merge first"),
    ],
)
def test_what_vllm_would_refuse_is_refused_first(given, dtype, said):
    with pytest.raises(ModelError, match=said):
        vllm.check(given, dtype)


def test_a_base_from_the_hub_is_pinned_and_a_path_with_its_separators_is_json():
    made = vllm.adapter_command("org/base", "a=1,b", revision="c0ffee", name="lora", rank=16, dtype="fp16")
    assert made[:5] == ["vllm", "serve", "org/base", "--revision", "c0ffee"]
    assert json.loads(made[made.index("--lora-modules") + 1]) == {"name": "lora", "path": "a=1,b"}
    assert made[made.index("--dtype") + 1] == "float16" and made[-2:] == ["--host", "127.0.0.1"]
