"""Trials that train together: each as if it were alone."""

import math
from dataclasses import replace
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import t

import bases
from tiny import make_data, make_model, make_trial
from tunetrial import models, tasks
from tunetrial.core.checkpoint import common_checkpoint
from tunetrial.core.errors import DoesNotFitError, IntegrityError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Trial
from tunetrial.engine import blocks, language, readout
from tunetrial.engine.readout import batches_of
from tunetrial.engine.torch_engine import TorchEngine

MIXED = (
    {"seed": 1, "rate": 1e-3},
    {"seed": 2, "rate": 3e-4, "settings": {"rank": 3, "alpha": 12.0}},
    {"seed": 3, "rate": 1e-3, "settings": {"rank": 8, "rslora": True, "targets": ("q_proj", "down_proj")}},
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"))


def trials(*asked: dict, method: str = "lora", **controls) -> list[Trial]:
    return [make_trial(method, **one, **controls) for one in asked]


def text_data() -> TaskData:
    """Each prompt is answered by its words in reverse."""
    plain = make_data("classify", rows=32, validation=12)
    splits = {
        split: tuple(replace(e, target=" ".join(reversed(e.prompt.split()))) for e in rows)
        for split, rows in plain.splits.items()
    }
    return replace(plain, kind="generate", labels=(), splits=splits)


def open_session(base, precision="fp32", **how):
    return TorchEngine(device="cpu", **how).open(base, precision)


def losses_alone(session, each: list[Trial], data) -> list[list[float]]:
    return [[step.loss for step in session.start(trial, data).steps(None)] for trial in each]


def losses_packed(pack) -> list[list[float]]:
    return [[step.loss for step in steps] for steps in zip(*pack.steps(None), strict=True)]


@pytest.mark.parametrize(
    ("method", "kind", "controls"),
    [
        ("lora", "classify", {}),
        ("lora", "regress", {}),
        ("lora", "classify", {"readout": "labels"}),
        ("qlora", "regress", {}),
        pytest.param("qlora", "classify", {}, marks=pytest.mark.slow),
        pytest.param("qlora", "classify", {"readout": "labels"}, marks=pytest.mark.slow),
    ],
)
def test_loss_curves_of_a_pack_are_those_of_each_alone_in_fp64(base, method, kind, controls):
    session, data = open_session(base, "fp64"), make_data(kind, rows=48)
    each = trials(*MIXED, method=method, precision="fp64", epochs=4, **controls)
    pack = session.start_pack(each, data)
    assert pack.facts(0)["pack"] == 3 and pack.facts(0)["blocks"] == "transformers"
    for ours, theirs in zip(losses_packed(pack), losses_alone(session, each, data), strict=True):
        assert len(ours) == 12 and ours == pytest.approx(theirs, rel=1e-9)


def test_50_steps_of_a_pack_are_those_of_each_alone_in_fp32(base):
    session, data = open_session(base), make_data("classify")
    each = trials(*MIXED, epochs=10)
    pack = session.start_pack(each, data)
    assert (pack.facts(1)["pack"], pack.facts(1)["blocks"]) == (3, "tunetrial")
    packed = losses_packed(pack)
    predicted = pack.predict(data.splits["validation"])
    for member, trial in enumerate(each):
        run = session.start(trial, data)
        alone = [step.loss for step in run.steps(None)]
        assert len(alone) == 50 and packed[member] == pytest.approx(alone, rel=1e-5)
        assert predicted[member] == run.predict(data.splits["validation"])


def test_dora_packs(base):
    session, data = open_session(base, "fp64"), make_data("classify", rows=32)
    each = trials(
        *({**one, "settings": {"rank": rank, "dora": True}} for one, rank in zip(MIXED, (16, 3, 8), strict=True)),
        precision="fp64",
        epochs=3,
    )
    packed = losses_packed(session.start_pack(each, data))
    for ours, theirs in zip(packed, losses_alone(session, each, data), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("wild", [0, 1, 2])
def test_a_member_whose_numbers_are_not_finite_leaves_every_bit_of_the_others(base, wild):
    """The last one too, after whose rows the idle tokens lie that fill attention's grid."""
    data, made = make_data("regress", rows=48), []
    for lost in (False, True):
        pack = open_session(base).start_pack(trials({"seed": 1}, {"seed": 2}, {"seed": 3}, epochs=3), data)
        assert pack.facts(0)["blocks"] == "tunetrial"
        if lost:
            pack.trainables.masters[wild].fill_(math.inf)
            pack.trainables.publish()
        curves = losses_packed(pack)
        assert set(pack.diverged) == ({wild} if lost else set())
        made.append((curves, pack.trainables.masters.clone(), pack.predict(data.splits["validation"])))
    (sound, weights, predicted), (beside, others, same) = made
    for member in {0, 1, 2} - {wild}:
        assert beside[member] == sound[member] and same[member] == predicted[member]
        assert torch.equal(others[member], weights[member])


@pytest.mark.parametrize("family", sorted(bases.FAMILIES))
def test_every_family_packs(family, tmp_path):
    """Heads of every kind, biases, tied and transposed weights; padded attention where a family asks for it."""
    bases.make(family, tmp_path)
    make_model(tmp_path / "words")
    for path in (tmp_path / "words").glob("token*"):
        path.rename(tmp_path / path.name)
    session, data = open_session(tmp_path, "fp64"), make_data("classify", rows=32)
    session.texts.tokenizer = Remainders(97)
    each = trials({"seed": 1}, {"seed": 2, "settings": {"rank": 4}}, precision="fp64", epochs=2)
    packed = losses_packed(session.start_pack(each, data))
    for ours, theirs in zip(packed, losses_alone(session, each, data), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


class Remainders:
    """A tokenizer for vocabularies of any size: a token a byte."""

    chat_template = None

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def __call__(self, texts: list[str]):
        return SimpleNamespace(input_ids=[[byte % self.vocabulary for byte in text.encode()] for text in texts])


def test_a_member_that_diverges_is_left_as_it_was_and_the_others_go_on(base):
    session, data = open_session(base), make_data("regress", rows=48)
    pack = session.start_pack(trials({"seed": 1}, {"seed": 2, "rate": 1e18}, epochs=3), data)
    curves = losses_packed(pack)
    assert list(pack.diverged) == [1] and "lower the rate" in pack.diverged[1]
    assert all(math.isfinite(loss) for loss in curves[0])
    first_lost = next(number for number, loss in enumerate(curves[1]) if math.isnan(loss))
    assert 0 < first_lost < 9 and all(math.isnan(loss) for loss in curves[1][first_lost:])
    assert all(torch.isfinite(master).all() for master in pack.trainables.member(1).values())


def test_a_pack_in_which_all_diverge_ends(base):
    session, data = open_session(base), make_data("regress", rows=48)
    pack = session.start_pack(trials({"seed": 1, "rate": 1e18}, {"seed": 2, "rate": 1e18}, epochs=3), data)
    assert len(list(pack.steps(None))) < 9 and set(pack.diverged) == {0, 1}


def test_gradients_of_one_members_loss_reach_no_other(base):
    session, data = open_session(base), make_data("classify", rows=48)
    pack = session.start_pack(trials(*MIXED), data)
    loop, rows = pack.loop, [[1, 5, 9], [2, 3, 4], [7, 8, 0]]
    loop.trainables.masters.add_(0.01)
    loop.trainables.publish()
    own = torch.autograd.grad(
        loop.objective.losses(loop.objective.batch(rows, range(3)))[1], list(loop.trainables.parameters.values())
    )
    for gradient in own:
        assert not gradient[0].any() and not gradient[2].any()
    assert any(gradient[1].any() for gradient in own)


@pytest.mark.parametrize(("at_once", "micro_batch"), [(1, None), (2, None), (3, 5), (1, 1)])
def test_what_is_computed_at_once_changes_nothing(base, at_once, micro_batch):
    """To fp64's last digits but for transformers' norms, which round to fp32."""
    session, data = open_session(base, "fp64"), make_data("classify", rows=40)
    each = trials(*MIXED, precision="fp64", epochs=2)
    whole = losses_packed(session.start_pack(each, data))
    pack = session.start_pack(each, data, at_once=at_once, micro_batch=micro_batch)
    assert pack.facts(0)["pack_at_once"] == at_once
    for ours, theirs in zip(losses_packed(pack), whole, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)


def test_ranks_are_filled_up_with_zeros_that_stay_zeros(base):
    session, data = open_session(base), make_data("classify", rows=48)
    pack = session.start_pack(trials(*MIXED, epochs=3), data)
    list(pack.steps(None))
    layer = pack.model.model.layers[0].self_attn
    assert layer.q_proj.ranks == (16, 3, 8) and layer.k_proj.ranks == (16, 3, 0)
    assert layer.q_proj.lora_A[1, :3].any() and not layer.q_proj.lora_A[1, 3:].any()
    assert not layer.q_proj.lora_B[1, :, 3:].any() and not layer.k_proj.lora_A[2].any()
    assert pack.trainables.member(1)["model.layers.0.self_attn.q_proj.lora_A"].shape == (3, 64)
    assert "model.layers.0.self_attn.k_proj.lora_A" not in pack.trainables.member(2)
    counts = [pack.measurements(member)["trainable_parameters"].value for member in range(3)]
    alone = [session.start(t, data).measurements()["trainable_parameters"].value for t in trials(*MIXED)]
    assert counts == alone


@pytest.mark.parametrize("readout", ["head", "labels"])
def test_what_a_member_saves_is_what_it_saves_alone(base, readout, tmp_path):
    from safetensors.torch import load_file

    session, data = open_session(base), make_data("classify", rows=48)
    each = trials(*MIXED, epochs=2, readout=readout)
    pack = session.start_pack(each, data)
    list(pack.steps(None))
    for member in range(len(each)):
        pack.save(member, tmp_path / f"p{member}")
        pack.verify(member, tmp_path / f"p{member}")
    for member, trial in enumerate(each):
        run = session.start(trial, data)
        list(run.steps(None))
        run.save(tmp_path / f"a{member}")
        packed, alone = (load_file(tmp_path / f"{kind}{member}" / "adapter_model.safetensors") for kind in "pa")
        assert packed.keys() == alone.keys()
        for name in alone:
            torch.testing.assert_close(packed[name], alone[name], rtol=1e-4, atol=1e-6)
        configs = [(tmp_path / f"{kind}{member}" / "adapter_config.json").read_bytes() for kind in "pa"]
        assert configs[0] == configs[1]
    with pytest.raises(IntegrityError, match="is not what was trained"):
        session.start_pack(each, data).verify(0, tmp_path / "p1")


def test_likelihoods_and_completions_of_a_pack_are_those_of_each_alone(base):
    session, data = open_session(base), text_data()
    controls = {"readout": "text", "max_new_tokens": 12, "epochs": 4}
    each = trials(*({**one, "rate": 1e-2} for one in MIXED), **controls)
    pack = session.start_pack(each, data)
    list(pack.steps(None))
    examples = data.splits["validation"]
    completions, nats = pack.predict(examples), pack.likelihoods(examples)
    for member, trial in enumerate(each):
        run = session.start(trial, data)
        list(run.steps(None))
        assert completions[member] == run.predict(examples)
        for (ours, tokens), (theirs, same) in zip(nats[member], run.likelihoods(examples), strict=True):
            assert tokens == same and ours == pytest.approx(theirs, rel=1e-4)


def test_a_killed_pack_goes_on_with_its_members_to_the_same_end(base, tmp_path):
    data, each = make_data("classify", rows=48), trials(*MIXED, epochs=4)
    folders = [tmp_path / str(member) for member in range(3)]
    whole = open_session(base).start_pack(each, data)
    expected = losses_packed(whole)
    broken = open_session(base, checkpoint_every_s=0.0).start_pack(each, data).steps(folders)
    for _ in range(6):
        next(broken)
    broken.close()
    step, _ = common_checkpoint(folders)
    newest = max(folders[1].iterdir())
    newest.rename(folders[1] / "step-000099.tmp")  # killed amid the saving of the second member
    resumed = open_session(base).start_pack(each, data)
    rest = [[one.loss for one in steps] for steps in zip(*resumed.steps(folders), strict=True)]
    assert resumed.first_step == step - 1
    assert rest == [curve[step - 1 :] for curve in expected]
    for member in range(3):
        ours, theirs = resumed.trainables.member(member), whole.trainables.member(member)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_of_another_pack_is_refused(base, tmp_path):
    data, each = make_data("classify", rows=48), trials(*MIXED, epochs=2)
    folders = [tmp_path / str(member) for member in range(3)]
    list(open_session(base, checkpoint_every_s=0.0).start_pack(each, data).steps(folders))
    pack = open_session(base).start_pack(each[:2], data)
    with pytest.raises(IntegrityError, match="of another pack, got .*; remove it"):
        list(pack.steps(folders[:2]))


def test_when_memory_runs_out_fewer_members_are_computed_at_once(base):
    session, data = open_session(base, "fp64"), make_data("classify", rows=48)
    each = trials(*MIXED, precision="fp64", epochs=2)
    expected = losses_packed(session.start_pack(each, data))
    pack = session.start_pack(each, data)
    whole, asked = pack.loop.objective.batch, []

    def batch(rows, members):
        asked.append((len(members), len(rows[0])))
        if len(members) > 1 or len(rows[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rows, members)

    pack.loop.objective.batch = batch
    for ours, theirs in zip(losses_packed(pack), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert asked[:3] == [(3, 16), (1, 16), (1, 8)]
    assert (pack.facts(0)["pack_at_once"], pack.facts(0)["micro_batch"]) == (1, 8)


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_an_evaluation_that_runs_out_of_memory_goes_on_in_halves(base, kind, monkeypatch):
    controls = {"readout": "text", "max_new_tokens": 4} if kind == "generate" else {}
    data = text_data() if kind == "generate" else make_data("classify", rows=48)
    pack = open_session(base).start_pack(trials(*MIXED, **controls), data)
    rows = data.splits["validation"]
    ask = pack.likelihoods if kind == "generate" else pack.predict
    expected, sizes = ask(rows), []
    module = language if kind == "generate" else readout
    whole = module.lay_out

    def scarce(tokens, *where, **how):
        sizes.append(len(tokens))
        if len(tokens) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tokens, *where, **how)

    monkeypatch.setattr(module, "lay_out", scarce)
    for ours, theirs in zip(ask(rows), expected, strict=True):
        if kind == "generate":
            assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], rel=1e-4)
        else:
            assert ours == theirs
    assert max(sizes) > 6
    monkeypatch.setattr(module, "lay_out", lambda *where, **how: scarce([0] * 99))
    with pytest.raises(DoesNotFitError, match="evaluation: out of memory"):
        ask(rows[:1])


def test_a_step_lays_out_the_rows_of_the_next_and_no_rows_twice(base):
    pack = open_session(base).start_pack(trials(*MIXED, epochs=2), make_data("classify", rows=48))
    whole, laid = pack.loop.objective.batch, []
    pack.loop.objective.batch = lambda rows, members: laid.append((rows, len(steps))) or whole(rows, members)
    steps: list = []
    for taken in pack.steps(None):
        steps.append(taken)
    wanted = [
        [sorted(c.order[n], key=lambda row: len(pack.loop.tokens[row])) for c in pack.loop.courses] for n in range(6)
    ]
    assert [rows for rows, _ in laid] == wanted
    assert [during for _, during in laid] == [0, 0, 1, 2, 3, 4]


def test_same_seed_same_bytes_and_other_seed_other(base):
    data = make_data("classify", rows=48)
    packs = [open_session(base).start_pack(trials(*MIXED, epochs=2), data) for _ in range(2)]
    assert losses_packed(packs[0]) == losses_packed(packs[1])
    assert torch.equal(packs[0].trainables.masters, packs[1].trainables.masters)
    other = open_session(base).start_pack(trials({**MIXED[0], "seed": 9}, *MIXED[1:], epochs=2), data)
    assert losses_packed(other)[0] != losses_packed(packs[0])[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_layers_computed_anew_in_the_backward_pass_give_the_same_bits_in_less_memory(base, method):
    data = make_data("classify", rows=48)
    runs = [open_session(base).start_pack(trials({"seed": 1}, method=method, epochs=2), data) for _ in range(2)]
    runs[1].loop.recomputes = True
    kept = []
    for run in runs:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            loss = run.loop._pass()(run.loop.objective.batch([list(range(16))], range(1)), torch.ones(1), True)
        run.trainables.clear()
        kept.append(sum(sizes))
        assert torch.isfinite(loss).all()
    assert kept[1] < kept[0] / 2
    assert losses_packed(runs[0]) == losses_packed(runs[1])
    assert torch.equal(runs[0].trainables.masters, runs[1].trainables.masters)
    assert [run.facts(0)["recomputes"] for run in runs] == [False, True]


def test_when_one_example_is_too_much_layers_are_computed_anew(base):
    session, data = open_session(base), make_data("classify", rows=48)
    expected = losses_packed(session.start_pack(trials({"seed": 1}, epochs=1), data, micro_batch=1))
    pack = session.start_pack(trials({"seed": 1}, epochs=1), data)
    whole = pack.loop.objective.losses

    def losses(batch):
        if not blocks.RECOMPUTES.get():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch)

    pack.loop.objective.losses = losses
    assert losses_packed(pack) == expected
    assert (pack.facts(0)["micro_batch"], pack.facts(0)["recomputes"]) == (1, True)


def test_evaluation_batches_are_filled_by_tokens():
    tokens = [[0] * length for length in (9000, 10, 20, 5000, 20_000, 40_000)]
    found = batches_of(tokens, 2, torch.device("cuda"))
    assert found == [[1, 2, 3], [0], [4], [5]]
    assert [len(rows) for rows in batches_of([[0] * 64] * 1000, 16, torch.device("cuda"))] == [32] * 31 + [8]
    assert [len(rows) for rows in batches_of([[0] * 64] * 70, 4, torch.device("cpu"))] == [8] * 8 + [6]
    assert [len(rows) for rows in batches_of([[0] * 4096, *[[0] * 16] * 130], 1, torch.device("cpu"))] == [128, 2, 1]


def test_what_does_not_fit_even_so_is_a_result(base):
    session, data = open_session(base), make_data("classify", rows=48)
    pack = session.start_pack(trials(*MIXED, epochs=1), data)

    def losses(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    pack.loop.objective.losses = losses
    with pytest.raises(DoesNotFitError, match="out of memory at one example, got a micro-batch of 1; use a smaller"):
        list(pack.steps(None))
    assert (pack.facts(0)["pack_at_once"], pack.facts(0)["micro_batch"], pack.facts(0)["recomputes"]) == (1, 1, True)


@pytest.mark.slow
def test_in_bf16_a_pack_comes_out_as_its_members_alone_over_16_seeds():
    """The embedded base on newsletter, as the demo trains it: mean test error within a quarter of the margin."""
    base = models.resolve("embedded").folder
    data = tasks.load(tasks.built_in("newsletter"), base)
    session = open_session(base, "bf16")
    arm = {"rate": 6e-4, "precision": "bf16", "epochs": 3}
    each = [make_trial("lora", seed=seed, **arm) for seed in range(1, 17)]
    wanted = [float(example.target) for example in data.splits["test"]]

    def errors(answers) -> list[float]:
        return [fmean(abs(a - w) for a, w in zip(own, wanted, strict=True)) for own in answers]

    alone, packed = [], []
    for trial in each:
        run = session.start(trial, data)
        list(run.steps(None))
        alone += errors([run.predict(data.splits["test"])])
    for first in range(0, 16, 8):
        pack = session.start_pack(each[first : first + 8], data)
        list(pack.steps(None))
        packed += errors(pack.predict(data.splits["test"]))
    differences = [a - b for a, b in zip(packed, alone, strict=True)]
    half = t.ppf(0.975, 15) * stdev(differences) / 4
    print(f"mean {fmean(differences):+.4f} ± {half:.4f} of {fmean(alone):.3f}; single {max(map(abs, differences)):.3f}")
    assert abs(fmean(differences)) + half <= 0.25 / 4
