"""Arms that PEFT builds: trained in our loop, loaded by PEFT; the table of types; counts against PEFT's own."""

import json
import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, LlamaForCausalLM, LlamaForSequenceClassification

import peft_table
from tiny import make_data, make_model, make_trial
from tunetrial import methods, models
from tunetrial.core.errors import SpecError
from tunetrial.core.study import Arm
from tunetrial.engine.attention import lay_out
from tunetrial.engine.peft_arms import PeftArm
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.methods.peft import COUNTS, capabilities, fitting


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


def find(**settings) -> methods.Method:
    return methods.find(Arm(name="x", method="peft", settings=methods.settle("peft", settings)))


@pytest.mark.parametrize("settings", [{"peft_type": "IA3"}, {"peft_type": "VERA", "r": 8}, {"peft_type": "LN_TUNING"}])
def test_it_trains_in_our_loop_and_loads_in_peft(base, settings, tmp_path):
    session, data = TorchEngine(device="cpu").open(base, "fp32"), make_data("classify", rows=48)
    before = {name: weight.clone() for name, weight in session.model.state_dict().items()}
    run = session.start(make_trial("peft", settings=settings, rate=1e-2, epochs=3), data)
    losses = [step.loss for step in run.steps(None)]
    assert losses[-1] < losses[0]
    run.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == settings["peft_type"] and config["task_type"] == "SEQ_CLS"
    plain = LlamaForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    tokens = session.texts.prompts(data.splits["validation"])
    with torch.no_grad():
        ours = run.model(lay_out(tokens, torch.device("cpu")))[0]
        for row, ids in enumerate(tokens):
            assert torch.allclose(ours[row], theirs(input_ids=torch.tensor([ids])).logits[0], atol=1e-5)
    session.prepare(make_trial("lora"))
    after = session.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_it_trains_a_language_model_too(base, tmp_path):
    session, data = TorchEngine(device="cpu").open(base, "fp32"), make_data("classify", rows=32)
    run = session.start(make_trial("peft", settings={"peft_type": "IA3"}, rate=1e-1, epochs=6, readout="labels"), data)
    losses = [step.loss for step in run.steps(None)]
    assert sum(losses[-2:]) < sum(losses[:2])
    run.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path)
    row = session.texts.rows(data.splits["validation"][:1])[0]
    nats = theirs.eval()(input_ids=torch.tensor([row.tokens])).logits[0].log_softmax(-1)
    expected = -sum(nats[place - 1, row.tokens[place]].item() for place in range(row.prompt, len(row.tokens)))
    assert run.likelihoods(data.splits["validation"][:1])[0][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [{"peft_type": "LOHA", "r": 4}, {"peft_type": "VERA", "r": 8}])
def test_same_seed_gives_the_same_adapter_and_torch_is_left_alone(base, settings):
    def drawn(seed):
        model = AutoModel.from_pretrained(base, dtype=torch.float32)
        arm = PeftArm(model, find(**settings).adapter(models.shape(base)), seed=seed)
        return {name: parameter.detach().clone() for name, parameter in arm.trained.items()}

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], again[name]) for name in first)
    if settings["peft_type"] == "LOHA":
        assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("peft_type", sorted(COUNTS))
@pytest.mark.parametrize("targets", [None, ("k_proj", "up_proj")])
def test_counts_are_those_of_peft(base, peft_type, targets):
    settings = {} if targets is None else {"target_modules": targets}
    settings |= {"FOURIERFT": {"n_frequency": 30}, "MISS": {"r": 8}}.get(peft_type, {})
    method, shape = find(peft_type=peft_type, **settings), models.shape(base)
    arm = PeftArm(AutoModel.from_pretrained(base, dtype=torch.float32), method.adapter(shape), seed=1)
    count = sum(parameter.numel() for parameter in arm.trained.values())
    assert count + 3 * shape.hidden == method.trainable_parameters(shape, 3)
    assert method.state_bytes(shape, 3) == 8 * (count + 3 * shape.hidden)


def test_what_has_no_formula_is_not_counted(base):
    shape, method = models.shape(base), find(peft_type="BOFT")
    assert method.trainable_parameters(shape, 3) is method.state_bytes(shape, 3) is method.artifact_bytes(shape, 3, 4)
    assert method.artifact_bytes(shape, 3, 4) is None
    assert find(peft_type="LORA", target_modules="all-linear").trainable_parameters(shape, 3) is None


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "PROMPT_TUNING"])
def test_table_is_what_the_probe_finds(peft_type):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert peft_table.probe(peft_type) == capabilities()[peft_type]


def test_most_types_can_be_arms():
    assert {"IA3", "LORA", "VERA", "OFT", "LOHA"} <= set(fitting()) and len(fitting()) > 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "peft_type: "),
        ({"peft_type": "IA4"}, "peft_type: no such type in PEFT, got 'IA4'; did you mean IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type: cannot be compared: it puts virtual tokens before each row"),
        ({"peft_type": "ADALORA"}, "peft_type: cannot be compared: it reallocates ranks"),
        ({"peft_type": "LOHA", "rank": 3}, "rank: no such setting of LOHA, got 3; use some of"),
        ({"peft_type": "LOHA", "module_dropout": 0.1}, "module_dropout: no arm has dropout, got 0.1; remove it"),
        ({"peft_type": "LOHA", "task_type": "SEQ_CLS"}, "task_type: set by the study"),
    ],
)
def test_what_cannot_be_an_arm_is_refused_in_one_line(settings, message):
    with pytest.raises(SpecError) as caught:
        methods.settle("peft", settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_peft_refuses_for_a_base_is_said_in_one_line(base):
    method = find(peft_type="C3A", block_size=7)
    with pytest.raises(SpecError, match=r"^peft_type C3A: PEFT refuses, got .*; change its settings$"):
        PeftArm(AutoModel.from_pretrained(base), method.adapter(models.shape(base)), seed=1)


def test_a_type_is_written_in_any_case():
    assert methods.settle("peft", {"peft_type": "ia3"})["peft_type"] == "IA3"
