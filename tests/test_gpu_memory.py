"""What a step is foretold to take on the device, against what it takes there."""

import gc

import pytest
import torch

from test_trace import LLAMA, arm, controls
from tunetrial.engine.trace import trace
from tunetrial.engine.unread import Asked, Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: these tests measure one"),
]

LARGER = LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("method", "members", "recomputes"),
    [
        ("full", 1, False),
        ("full", 1, True),
        ("lora", 1, False),
        ("qlora", 1, False),
        ("lora", 4, False),
        ("lora", 4, True),
    ],
)
def test_allocated_bytes_are_foretold(method, members, recomputes):
    how = {"lengths": [200, 512, 700, 1024] * 2, "answered": [50] * 8, "members": members, "recomputes": recomputes}
    how |= {"at_once": members}
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    left = torch.cuda.memory_allocated()
    asked = Asked.of(LARGER, arm(method), controls(), **how)
    loop = asked.pack(Session(asked, torch.device("cuda"))).loop
    loop.recomputes = recomputes
    loop.replay = loop._replay()
    loop.step(asked.step, [1e-5] * members)
    loop.replay.forget()
    torch.cuda.reset_peak_memory_stats()
    loop.step(asked.step, [1e-5] * members)
    found = torch.cuda.max_memory_allocated() - left
    device = torch.cuda.get_device_properties(0)
    known = {"capability": (device.major, device.minor), "processors": device.multi_processor_count}
    foretold = trace(LARGER, arm(method), controls(), **how, **known).phases["step"].peak_bytes
    assert foretold == pytest.approx(found, rel=0.03)
