"""The torch engine on a CUDA device: the contract of every engine, and the same experiment as on the CPU."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForSequenceClassification

import test_engine_contract as contract
from test_engine_contract import (  # noqa: F401
    test_a_damaged_checkpoint_is_passed_over,
    test_a_probe_measures_what_decides,
    test_a_trial_that_is_only_tried_ends_after_its_first_steps_or_its_last,
    test_an_interrupted_run_goes_on_to_the_same_end,
    test_another_seed_is_another_run,
    test_another_trials_checkpoint_is_refused,
    test_arms_of_a_pair_see_the_same_tokens_in_the_same_order,
    test_every_token_is_trained_on_once_an_epoch,
    test_facts_say_how_it_was_executed,
    test_lengths_count_tokens_and_grow_with_the_prompt,
    test_numbers_that_are_not_finite_end_the_run,
    test_steps_are_all_there_once_and_warm_up_then_fall,
    test_the_same_trial_is_the_same_to_the_last_bit,
    uninterrupted,
)
from tiny import make_data, make_model, make_trial
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine.attention import lay_out
from tunetrial.engine.quantised import QuantisedLinear, matrix
from tunetrial.engine.torch_engine import DTYPES, TorchEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: these tests measure one"),
]

CURVE = 1e-3  # sums run in another order on each device
TWENTY_STEPS = {"rows": 80, "epochs": 4}
METHODS = pytest.mark.parametrize("method", ["full", "lora"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("wide"), hidden=512, layers=4)


@pytest.fixture(params=["fp32", "bf16"])
def precision(request):
    return request.param


@pytest.fixture
def case(base):
    return contract.Case("cuda", lambda: TorchEngine(device="cuda", checkpoint_every_s=0.0), base)


@pytest.fixture
def session(case, precision):
    return case.make().open(case.base, precision)


@pytest.fixture(params=["classify", "regress"])
def data(request):
    return contract.data_of(request.param)


@pytest.fixture
def scarce():
    """Leaves this process that many bytes of the device beyond what it holds; all of it again afterwards."""
    total = torch.cuda.get_device_properties(0).total_memory

    def leave(room_bytes: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room_bytes) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def start(base, device, method, *, kind="classify", precision="fp32", rows=80, **how):
    session = TorchEngine(device=device, **how.pop("engine", {})).open(base, precision)
    micro_batch = how.pop("micro_batch", None)
    if kind == "generate":
        how |= {"readout": "text", "max_new_tokens": 24}
    trial = make_trial(method, precision=precision, **how)
    data = turned_words(rows) if kind == "generate" else make_data(kind, rows=rows)
    return session.start(trial, data, micro_batch=micro_batch)


def turned_words(rows: int) -> TaskData:
    """Each prompt is answered by its words in reverse."""

    def turned(split):
        return tuple(Example(e.id, e.cluster, e.prompt + " =", " ".join(e.prompt.split()[::-1])) for e in split)

    splits = {name: turned(split) for name, split in make_data("classify", rows=rows).splits.items()}
    return TaskData("tiny", "generate", (), splits)


def losses_of(run, checkpoint=None) -> list[float]:
    return [step.loss for step in run.steps(checkpoint)]


def masters(run) -> dict[str, torch.Tensor]:
    return {name: master.detach().cpu().clone() for name, master in run.trainables.member(0).items()}


@PRECISIONS
@METHODS
def test_a_run_starts_from_the_same_tokens_and_weights_as_on_the_cpu(base, method, precision):
    here, there = (start(base, device, method, precision=precision) for device in ("cpu", "cuda"))
    assert here.token_digest == there.token_digest
    ours, theirs = masters(here), masters(there)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert there.facts()["device"] == torch.cuda.get_device_name()
    assert there.facts()["compute_dtype"] == precision


@pytest.mark.parametrize("kind", ["classify", "regress"])
@METHODS
def test_the_loss_curve_is_that_of_the_cpu(base, method, kind):
    here, there = (losses_of(start(base, device, method, kind=kind, **TWENTY_STEPS)) for device in ("cpu", "cuda"))
    assert len(here) == 20
    assert there == pytest.approx(here, rel=CURVE, abs=CURVE)
    assert there[-1] < there[0]


@METHODS
def test_fp16_follows_fp32_with_fp32_masters(base, method):
    exact = losses_of(start(base, "cuda", method, **TWENTY_STEPS))
    run = start(base, "cuda", method, precision="fp16", **TWENTY_STEPS)
    losses = losses_of(run)
    assert losses == pytest.approx(exact, rel=1e-2) and losses != exact
    assert all(master.dtype == torch.float32 for master in masters(run).values())
    assert run.facts()["compute_dtype"] == "fp16" and run.facts()["overflows"] == 0


@METHODS
def test_an_overflow_in_fp16_repeats_its_step(base, method):
    expected = losses_of(start(base, "cuda", method, precision="fp16", **TWENTY_STEPS))
    run = start(base, "cuda", method, precision="fp16", **TWENTY_STEPS)
    run.loop.courses[0].scaler.scale = 2.0**40
    found = losses_of(run)
    assert run.facts()["overflows"] > 5 and run.facts()["loss_scale"] < 2.0**40
    assert len(found) == len(expected) and found == pytest.approx(expected, rel=1e-2)


@METHODS
def test_a_language_models_loss_curve_is_that_of_the_cpu(base, method):
    here, there = (
        losses_of(start(base, device, method, kind="generate", **TWENTY_STEPS)) for device in ("cpu", "cuda")
    )
    assert there == pytest.approx(here, rel=CURVE, abs=CURVE)
    assert there[-1] < there[0]


@PRECISIONS
def test_completions_equal_those_of_each_prompt_alone(base, precision, tmp_path):
    """To the letter in fp32. In bf16, batches of other shapes round otherwise, so most must agree."""
    run = start(base, "cuda", "full", kind="generate", precision=precision, rate=1e-2, rows=64, epochs=30)
    losses_of(run)
    run.save(tmp_path / "made")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=DTYPES[precision]).cuda()
    examples, texts = turned_words(64).splits["validation"], run.session.texts
    found, alone = run.predict(examples), []
    for row in texts.rows(examples):
        prompt = torch.tensor([row.tokens[: row.prompt]]).cuda()
        settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=0, pad_token_id=0)
        made = plain.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        alone.append(run.session.tokenizer.decode(made[0, row.prompt :], skip_special_tokens=True))
    assert len(set(found)) > 1
    agree = sum(ours == theirs for ours, theirs in zip(found, alone, strict=True))
    assert agree == len(found) if precision == "fp32" else agree >= 0.8 * len(found)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_qlora_trains_beside_weights_in_4_bits(base, precision):
    """The stored weights are those of the CPU but for ties; an evaluation in mid-training changes nothing."""
    pytest.importorskip("bitsandbytes")
    how = {"kind": "generate", "precision": precision, **TWENTY_STEPS}
    ours, theirs = (stored_weights(start(base, device, "qlora", **how)) for device in ("cuda", "cpu"))
    assert len(ours) == 14 and ours.keys() == theirs.keys()
    same = torch.cat([torch.isclose(ours[n], theirs[n], rtol=1e-2, atol=1e-4).flatten() for n in ours])
    assert same.float().mean() > 0.99
    expected = losses_of(start(base, "cuda", "qlora", **how))
    run, found = start(base, "cuda", "qlora", **how), []
    for step in run.steps(None):
        found.append(step.loss)
        if step.step == 8:
            run.predict(turned_words(16).splits["validation"][:4])
    assert found == pytest.approx(expected, rel=CURVE, abs=CURVE) and found[-1] < found[0]


def stored_weights(run) -> dict[str, torch.Tensor]:
    layers = run.model.named_modules()
    return {name: matrix(m).float().cpu() for name, m in layers if isinstance(m, QuantisedLinear)}


@METHODS
def test_in_bf16_it_learns_what_the_cpu_learns(base, method):
    """Each step's sums are rounded to 8 bits in another order: the curves stay together, not equal."""
    runs = [start(base, device, method, precision="bf16", **TWENTY_STEPS) for device in ("cpu", "cuda")]
    here, there = map(losses_of, runs)
    assert there == pytest.approx(here, rel=0.05)
    assert there[-1] < there[0]
    assert all(master.dtype == torch.float32 for master in masters(runs[1]).values())


@METHODS
def test_rows_without_padding_give_what_a_padded_forward_gives(base, method, tmp_path):
    """fp32, to 1e-5 of logits whose own spread is beyond 0.03."""
    run = start(base, "cuda", method, rows=32, epochs=2)
    losses_of(run)
    rows = run.session.texts.prompts(make_data("classify", rows=32).splits["validation"])
    with torch.no_grad():
        ours = run.model(lay_out(rows, torch.device("cuda")))[0]
        theirs = padded(run, base, tmp_path).cuda().eval()
        ids, mask = grid(rows)
        expected = theirs(input_ids=ids.cuda(), attention_mask=mask.cuda()).logits
    assert len({len(row) for row in rows}) > 3
    assert torch.allclose(ours, expected, atol=1e-5, rtol=0)
    assert ours.std() > 0.03


def padded(run, base, folder) -> torch.nn.Module:
    """The trained run as transformers, or PEFT, opens it."""
    run.save(folder)
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    if run.adapter is None:
        return LlamaForSequenceClassification.from_pretrained(folder, **settings)
    from peft import PeftModel

    plain = LlamaForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(plain, folder)


def grid(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded at the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long()


def long_rows():
    data = make_data("classify", rows=32)
    splits = {name: tuple(replace(e, prompt="bread " * 20) for e in rows) for name, rows in data.splits.items()}
    return replace(data, splits=splits)


@METHODS
def test_out_of_memory_halves_the_micro_batch_and_not_the_batch(wide_base, method, scarce):
    session = TorchEngine(device="cuda").open(wide_base, "fp32")
    trial, data = make_trial(method, epochs=2, rate=1e-4), long_rows()
    peaks = {}
    for micro_batch in (2, 16):
        run = session.start(trial, data, micro_batch=micro_batch)
        run.loop.step([run.loop.courses[0].order[0]], [0.0])
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        run.loop.step([run.loop.courses[0].order[0]], [0.0])
        peaks[micro_batch] = torch.cuda.max_memory_reserved() - before
    found = []
    for room in (None, (peaks[2] + peaks[16]) // 2):
        run = session.start(trial, data)
        run.loop.step([run.loop.courses[0].order[0]], [0.0])  # the moments take their memory at the first step
        if room:
            scarce(room)
        found.append((losses_of(run), run.token_digest, run.facts()["micro_batch"]))
    (plenty, digest, whole), (losses, same_digest, part) = found
    assert whole == 16 and part in (1, 2, 4, 8)
    assert same_digest == digest
    assert losses == pytest.approx(plenty, rel=CURVE)


def test_what_does_not_fit_at_one_example_is_said(wide_base, scarce):
    run = TorchEngine(device="cuda").open(wide_base, "fp32").start(make_trial("lora", epochs=2), long_rows())
    scarce(0)
    hoard = [taken for size in (2**20, 2**16, 2**12) for taken in all_there_is(size)]
    with pytest.raises(DoesNotFitError, match="out of memory"):
        losses_of(run)
    assert hoard


def all_there_is(size):
    """Blocks of so many bytes until there are no more: also of what the process holds and does not use."""
    while True:
        try:
            yield torch.empty(size, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            return


@PRECISIONS
@METHODS
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(base, method, precision, tmp_path):
    how = {"precision": precision, **TWENTY_STEPS}
    whole = start(base, "cuda", method, **how)
    expected = losses_of(whole)
    steps = start(base, "cuda", method, engine={"checkpoint_every_s": 0.0}, **how).steps(tmp_path)
    for _ in range(8):
        next(steps)
    steps.close()
    state = json.loads((max(tmp_path.glob("step-*")) / "state.json").read_text())
    resumed = start(base, "cuda", method, **how)
    rest = losses_of(resumed, tmp_path)
    assert state["micro_batch"] == 16 and resumed.first_step == 7
    assert resumed.token_digest == whole.token_digest
    assert rest == pytest.approx(expected[7:], rel=CURVE, abs=CURVE)


@PRECISIONS
def test_a_probe_reports_phases_and_the_devices_peak(wide_base, precision, tmp_path):
    session = TorchEngine(device="cuda").open(wide_base, precision)
    found = session.probe(make_trial("full", precision=precision), long_rows(), tmp_path / "artifact")
    weights = sum(p.numel() * p.element_size() for p in session.model.parameters())
    states = found["optimizer_state_bytes"].value
    assert states == 8 * found["trainable_parameters"].value
    assert weights + states < found["peak_bytes"].value <= torch.cuda.max_memory_allocated()
    assert {"load_s", "step_s", "evaluate_examples_per_s", "latency_s", "save_s"} <= found.keys()
    assert all(measured.value > 0 for measured in found.values())
    assert found["step_s"].n >= 20 and found["tokens_per_s"].unit == "tokens/s"
