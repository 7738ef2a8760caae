"""A step that is counted, and the same step really taken on the CPU: the same peak, whatever is drawn."""

import gc
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import bases
from tunetrial import methods
from tunetrial.core.study import Arm, Controls
from tunetrial.engine.meter import Meter
from tunetrial.engine.trace import trace
from tunetrial.engine.unread import Asked, Session

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "max_position_embeddings": 128}
TOLERANCE, SLACK_BYTES = 0.005, 2**12
DECODERS = ("llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3")
DECODERS += ("gpt2", "gpt_neox", "gpt_neox-unbiased")
PACKED = (("lora", {}), ("lora", {"dora": True}), ("lora", {"base": "int8"}), ("qlora", {"rank": 4}))
QUICK = (("full", {}), ("full", {"warm_start": 0.5}), ("lora", {}), ("lora", {"dora": True}))
SOLO = (
    *QUICK[:2],
    ("full", {"optimizer_bits": 8}),
    ("lora", {"optimizer_bits": 8}),
    *(("peft", {"peft_type": name}) for name in ("IA3", "LOHA", "VERA", "LN_TUNING", "MISS", "OFT")),
)


@dataclass(frozen=True)
class Case:
    family: str
    layers: int
    method: str
    settings: dict
    precision: str
    head: bool
    outputs: int
    lengths: list[int]
    members: int
    micro_batch: int
    recomputes: bool


@st.composite
def cases(draw, solo=(*PACKED, *SOLO), packed=PACKED) -> Case:
    family = draw(st.sampled_from((*DECODERS, *bases.ENCODERS)))
    encoder = family in bases.ENCODERS
    lengths = draw(st.lists(st.integers(2, 60), min_size=1, max_size=9))
    members = draw(st.integers(1, 3))
    method, chosen = draw(st.sampled_from(packed if members > 1 else solo))
    assume(method != "peft" or family != "gpt2")  # whose Conv1D many of PEFT's types refuse
    return Case(
        family=family,
        layers=draw(st.integers(1, 7)),
        method=method,
        settings=chosen,
        precision=draw(st.sampled_from(("fp32", "bf16"))),
        head=encoder or draw(st.booleans()),
        outputs=draw(st.integers(1, 5)),
        lengths=lengths,
        members=members,
        micro_batch=draw(st.integers(1, len(lengths))),
        recomputes=draw(st.booleans()),
    )


def both(case: Case) -> tuple[int, int]:
    """Bytes at the peak of a step: counted, and of tensors that were there."""
    config = bases.configuration(case.family, **SIZES, num_hidden_layers=case.layers).to_dict()
    config.pop("layer_types", None)
    arm = Arm(name="drawn", method=case.method, settings=methods.settle(case.method, case.settings))
    readout = {"readout": "head"} if case.head else {"readout": "text", "max_new_tokens": 4}
    controls = Controls(base_fingerprint="", precision=case.precision, **readout)
    kind = "generate" if not case.head else "classify" if case.outputs > 1 else "regress"
    how = {"lengths": case.lengths, "kind": kind, "outputs": case.outputs, "members": case.members}
    how |= {"micro_batch": case.micro_batch, "recomputes": case.recomputes}
    counted = trace(config, arm, controls, device="cpu", training_alone=True, **how).phases["step"].peak_bytes
    return counted, taken(Asked.of(config, arm, controls, **how))


def taken(asked: Asked) -> int:
    session, meter = Session(asked, torch.device("cpu")), Meter("cpu")
    meter.give((*session.model.parameters(), *session.model.buffers()), "base")
    with meter:
        loop = asked.pack(session).loop
        if loop.warm_start is not None:
            loop.merge()
        loop.recomputes, rates = asked.recomputes, [1e-4] * asked.members
        loop.step(asked.step, rates)
        gc.collect(1)
        meter.reset()
        loop.step(asked.step, rates)
    return meter.peak


def check(case: Case) -> None:
    counted, there = both(case)
    assert counted == pytest.approx(there, rel=TOLERANCE, abs=SLACK_BYTES)


QUIETLY = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=5, **QUIETLY)
@given(cases(QUICK, QUICK[2:]))
def test_a_drawn_step_takes_on_the_cpu_what_was_counted(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=200, **QUIETLY)
@given(cases())
def test_hundreds_of_drawn_steps_take_on_the_cpu_what_was_counted(case):
    check(case)
