"""States under base and tuned model: the base under an adapter, poolings, and drift that is 0 where nothing changed."""

import pytest
import torch
from transformers import AutoModel

from bases import make
from tunetrial import methods, models
from tunetrial.core.study import Arm
from tunetrial.engine import adapters, attention, blocks
from tunetrial.engine.torch_engine import DTYPES

CPU = torch.device("cpu")
ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17]]


@pytest.mark.parametrize(
    ("family", "method", "settings"),
    [
        ("llama", "lora", {}),
        ("llama", "lora", {"dora": True}),
        ("llama-biased", "qlora", {}),
        ("gpt2", "lora", {}),
        ("bert", "lora", {"base": "int8"}),
    ],
)
def test_at_the_start_a_model_switched_off_is_the_adapted_one_bit_for_bit(family, method, settings, tmp_path):
    make(family, tmp_path)
    shape, arm = models.shape(tmp_path), Arm(name=method, method=method, settings=methods.settle(method, settings))
    layout, found = attention.lay_out(ROWS, CPU), methods.find(arm)
    for precision in ("fp32", "bf16"):
        model = attention.load(tmp_path, AutoModel, DTYPES[precision], CPU)
        adapters.quantise(model, found.storage, tuple(shape.projections), device=CPU)
        adapters.attach(model, [found.adapter(shape)], seeds=[1])
        with torch.no_grad():
            adapted = blocks.states(model, layout)
            with adapters.switched_off():
                assert torch.equal(blocks.states(model, layout), adapted)
            for name, weight in model.named_parameters():
                if name.endswith("lora_B"):
                    weight.fill_(0.1)
            assert not torch.equal(blocks.states(model, layout), adapted)
            with adapters.switched_off():
                assert torch.equal(blocks.states(model, layout), adapted)
