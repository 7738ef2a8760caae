"""Contenders of one base: they answer alike or are not timed; turns are fair; weights are shared, adapters change."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bases import make
from tiny import make_data, make_model, make_trial
from tunetrial import models
from tunetrial.core.deployment import Asked, Contender, Offer, Work
from tunetrial.core.errors import ConfigError, IntegrityError, ModelError
from tunetrial.core.evidence import TaskData
from tunetrial.engine import bench, blocks, offers
from tunetrial.engine.adapters import adapted, read_spec, take_in
from tunetrial.engine.attention import lay_out
from tunetrial.engine.contenders import (
    beside_by_engine,
    in_turns,
    load,
    mixed,
    mixed_of,
    twin,
    weights_bytes,
)
from tunetrial.engine.line_up import LineUp
from tunetrial.engine.merge import adapter_weights
from tunetrial.engine.probe import Clock
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.models.adapters import WEIGHTS, read_adapter

CPU = torch.device("cpu")
WORKS = (Work(batch=1, prompt_tokens=9, new_tokens=1), Work(batch=4, prompt_tokens=9, new_tokens=3))
SETTINGS = {"rank": 4, "alpha": 64.0, "targets": ["q_proj", "down_proj"]}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return models.resolve(str(make_model(tmp_path_factory.mktemp("base") / "tiny", tied=False)))


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory) -> Offer:
    scratch = tmp_path_factory.mktemp("offers")
    drawn = offers.drawn(base, SETTINGS, 4, scratch, seed=3)
    return offers.offer(base, "lora", drawn, scratch / "merged")


@pytest.fixture(scope="module")
def full(base, tmp_path_factory) -> Offer:
    """All weights tuned, of a classifier as trials save it."""
    folder, session = tmp_path_factory.mktemp("full"), TorchEngine(device="cpu").open(base.folder, "fp32")
    run = session.start(make_trial("full", rate=1e-2, epochs=1), make_data("classify"))
    list(run.steps(None))
    run.save(folder / "artifact")
    return offers.offer(base, "full", [folder / "artifact"], folder / "model")


@pytest.fixture(scope="module")
def line_up(base, lora, full) -> LineUp:
    return LineUp(base, [lora, full], torch.float32, Clock(CPU), CPU)


def asked(base, *, seed: int = 0, works=WORKS) -> Asked:
    fingerprint = base.fingerprint
    return Asked(
        base="tiny", base_fingerprint=fingerprint, precision="fp32", works=works, sessions=1, seconds=0, seed=seed
    )


@pytest.fixture(scope="module")
def found(base, lora, full):
    return bench.session(asked(base), base, [lora, full], number=0, device="cpu")


def one(line_up, setup: str, path: str):
    return next(a for c, a in line_up.contenders.items() if (c.setup, c.path) == (setup, path))


def test_all_setups_are_there_on_both_paths(line_up):
    setups = {"base", "full", "merged", "separate", "swapped", "mixed"}
    assert {(c.setup, c.path) for c in line_up.contenders} == {(s, p) for s in setups for p in ("eager", "engine")}


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_same_weights_make_the_same_tokens_whoever_computes(line_up, tokens):
    rows = np.random.default_rng(1).integers(200, size=(4, 9)).tolist()
    answers = {}
    for setup in ("base", "full", "merged", "separate"):
        both = [one(line_up, setup, path).answer(rows, tokens) for path in ("eager", "engine")]
        assert both[0] == both[1] and [len(row) for row in both[0]] == [tokens] * 4
        answers[setup] = both[0]
    assert answers["merged"] == answers["separate"]
    assert answers["base"] != answers["separate"] and answers["base"] != answers["full"]


def test_swapped_and_mixed_answer_by_each_adapter_in_its_turn(line_up):
    """What each adapter says of a row alone, by PEFT; the engine's next four requests, and one of all four at once."""
    rows = np.random.default_rng(2).integers(200, size=(4, 9)).tolist()
    alone = [line_up.reference["lora"].logits(rows, [adapter] * 4).argmax(-1).tolist() for adapter in range(4)]
    assert len({tuple(said) for said in alone}) > 1
    for path in ("eager", "engine"):
        said = [[row for [row] in one(line_up, "swapped", path).answer(rows, 1)] for _ in range(4)]
        turns = [next(a for a in range(4) if alone[a] == made) for made in said]
        assert sorted(turns) == [0, 1, 2, 3], path
        assert [row for [row] in one(line_up, "mixed", path).answer(rows, 1)] == [alone[a][a] for a in range(4)]


def test_every_contender_was_proven_before_it_was_timed(found):
    assert len(found.gates) == 12 and all(gate.difference <= 1e-5 < gate.tolerance for gate in found.gates)
    assert {gate.contender for gate in found.gates} == {one.contender for one in found.opened}


@pytest.mark.parametrize("fault", ["another adapter merged", "a scale that differs"])
def test_weights_that_answer_otherwise_are_named_and_nothing_is_timed(base, lora, tmp_path, fault):
    if fault == "another adapter merged":
        wrong = lora.model_copy(update={"adapters": lora.adapters[1:3]})
    else:
        changed = shutil.copytree(lora.adapters[0], tmp_path / "adapter")
        config = json.loads((changed / "adapter_config.json").read_text())
        (changed / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 3 * config["lora_alpha"]}))
        wrong = lora.model_copy(update={"adapters": (str(changed),)})
    with pytest.raises(IntegrityError, match="bench: eager lora merged does not answer as .*, got logits that differ"):
        bench.session(asked(base), base, [wrong], number=0, device="cpu")


def test_a_session_times_every_contender_equally_often_and_says_how_it_ran(found):
    for work in WORKS:
        timed = [laps for laps in found.laps if laps.work == work]
        assert len(timed) == (10 if work.batch == 1 else 12)  # nothing to mix in one row
        assert {len(laps.laps_s) for laps in timed} == {bench.FEWEST_ROUNDS * bench.LAPS_A_TURN}
        assert all(seconds > 0 for laps in timed for seconds in laps.laps_s)
    assert {laps.adapters for laps in found.laps if laps.contender.setup == "mixed"} == {4}
    assert found.facts["threads"] == torch.get_num_threads() and found.facts["blocks"] == "tunetrial"
    assert found.facts["cuda_graphs"] is False
    assert {(s.path, s.where) for s in found.swaps} == {
        (path, where) for path in ("eager", "engine") for where in ("resident", "host", "disk")
    }


def test_weights_are_counted_once_and_with_their_adapters(base, found):
    weights = {o.contender: o.weights_bytes for o in found.opened}
    plain = sum(tensor.numel() * 4 for tensor in load_file(base.folder / "model.safetensors").values())
    low = 4 * 2 * 4 * ((64 + 64) + (128 + 64))  # fp32, 2 layers, rank 4: q (64 to 64) and down (128 to 64)
    angles = 2000  # and the like: buffers that are in no file
    for setup, many in (("base", 0), ("separate", 1), ("mixed", 4)):
        arm = None if setup == "base" else "lora"
        for path in ("eager", "engine"):
            held = weights[Contender(setup=setup, path=path, arm=arm)]
            assert plain + many * low <= held < plain + many * low + angles, setup


class Fake:
    """Answers at once, and notes when it was asked."""

    def __init__(self, name: str, asked: list):
        self.name, self.asked, self.adapters_of = name, asked, lambda rows: 0

    def answer(self, rows, tokens):
        self.asked.append((self.name, str(rows)))


def raced(seed: int) -> tuple[list, list]:
    asked: list = []
    turns = [(Contender(setup="base", path="eager", arm=name), Fake(name, asked)) for name in "abcd"]
    laps, order = bench.race(turns, WORKS[0], 0.2, Clock(CPU), np.random.default_rng(seed), 100)
    assert {len(one.laps_s) for one in laps} == {len(laps[0].laps_s)}
    return asked, order


def test_contenders_take_turns_in_drawn_order_on_the_same_prompts():
    asked, order = raced(1)
    a_turn = 1 + bench.LAPS_A_TURN
    rounds = [asked[first : first + 4 * a_turn] for first in range(0, len(asked), 4 * a_turn)]
    assert len(rounds) == len(order) >= bench.FEWEST_ROUNDS
    for made, drawn in zip(rounds, order, strict=True):
        assert [name for name, _ in made] == [name for place in drawn for name in "abcd"[place] * a_turn]
        assert len({rows for _, rows in made}) == 1  # all of a round are asked the same
    assert len({rows for _, rows in asked}) == len(rounds)
    assert len({tuple(drawn) for drawn in order}) > 5  # not one order again and again


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    (_, one), (_, again), (_, other) = raced(1), raced(1), raced(2)
    least = min(map(len, (one, again, other)))
    assert one[:least] == again[:least] != other[:least]


def test_order_follows_from_seed_and_session(base, lora, found):
    small = [lora.model_copy(update={"adapters": lora.adapters[:1]})]
    digests = [
        bench.session(asked(base, seed=seed, works=WORKS[:1]), base, small, number=number, device="cpu").order_digest
        for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_answers_of_another_length_are_refused(line_up):
    class Short:
        model, adapters_of = line_up.contenders[Contender(setup="base", path="eager")].model, lambda rows: 0

        def answer(self, rows, tokens):
            return [[1] * (tokens - 1) for _ in rows]

    with pytest.raises(IntegrityError, match=r"other than the tokens asked for, got \[2\] in 4 rows"):
        bench.first_request(Short(), WORKS[1], [[1] * 9] * 4)


def test_prompt_and_answer_must_fit_the_context(base, lora):
    long = (Work(batch=1, prompt_tokens=120, new_tokens=9),)
    with pytest.raises(ConfigError, match="longer than the base's context of 128, got 129 tokens"):
        bench.session(asked(base, works=long), base, [lora], number=0, device="cpu")


def test_a_twin_has_modules_of_its_own_and_the_same_weights(base):
    model = load(base.folder, torch.float32, CPU)
    other = twin(model)
    assert {t.data_ptr() for t in model.parameters()} == {t.data_ptr() for t in other.parameters()}
    assert other.model.layers[0] is not model.model.layers[0] and weights_bytes(other) == weights_bytes(model)
    other.set_attn_implementation("eager")
    assert model.config._attn_implementation == "sdpa"


def test_adapters_of_other_shapes_or_scales_are_refused(base, lora, tmp_path):
    unlike = offers.drawn(base, {"rank": 2, "targets": ["v_proj"]}, 1, tmp_path, seed=0)[0]
    read = read_adapter(Path(lora.adapters[0]))
    layers = adapted(beside_by_engine(load(base.folder, torch.float32, CPU), [(read, adapter_weights(read, base)[0])]))
    with pytest.raises(ModelError, match="does not fit the attached layers, got base_model.*; name adapters of one"):
        take_in(layers, load_file(unlike / WEIGHTS))
    config = json.loads((unlike / "adapter_config.json").read_text())
    (unlike / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"q_proj": 8}}))
    with pytest.raises(ModelError, match="of one rank and scale, got rank_pattern; merge it first"):
        read_spec(unlike)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 64 / 4), (True, 64 / 2)])
def test_an_adapter_is_read_back_at_the_scale_that_it_was_saved_with(base, tmp_path, rslora, scale):
    saved = offers.drawn(base, SETTINGS | {"rslora": rslora}, 1, tmp_path, seed=0)[0]
    spec = read_spec(saved)
    assert (spec.rank, spec.scaling, set(spec.targets)) == (4, scale, {"q_proj", "down_proj"})


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}], ids=str)
def test_dora_and_rslora_answer_alike_on_all_paths(base, tmp_path, settings):
    """Adapters as trials of a classifier save them, with a head that a language model does without."""
    session, folders = TorchEngine(device="cpu").open(base.folder, "fp32"), [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        trial = make_trial("lora", rate=1e-2, epochs=4, settings=settings, seed=seed, base_fingerprint=base.fingerprint)
        run = session.start(trial, make_data("classify", rows=16))
        list(run.steps(None))
        run.save(folder)
    made = LineUp(base, [offers.offer(base, "a", folders, tmp_path / "m")], torch.float32, Clock(CPU), CPU)
    assert max(gate.difference for gate in bench.prove(made, [[5, 6, 7, 8]] * 4)) < 1e-5
    mixed_by = {contender.path for contender in made.contenders if contender.setup == "mixed"}
    assert mixed_by == ({"engine"} if "dora" in settings else {"eager", "engine"})  # PEFT mixes no DoRA


def test_a_tuned_language_model_is_deployed_as_it_was_saved(base, tmp_path):
    rows = make_data("classify", rows=16, validation=4).splits
    turned = {name: tuple(replace(e, target=e.prompt[::-1]) for e in split) for name, split in rows.items()}
    trial = make_trial("full", rate=1e-2, epochs=2, readout="text", max_new_tokens=4)
    run = TorchEngine(device="cpu").open(base.folder, "fp32").start(trial, TaskData("tiny", "generate", (), turned))
    list(run.steps(None))
    run.save(tmp_path / "artifact")
    made = offers.offer(base, "full", [tmp_path / "artifact"], tmp_path / "unused")
    assert made.full == str(tmp_path / "artifact") and not (tmp_path / "unused").exists()
    line_up = LineUp(base, [made], torch.float32, Clock(CPU), CPU)
    given = [[5, 6, 7, 8]] * 2
    assert max(gate.difference for gate in bench.prove(line_up, given)) < 1e-5
    tuned, plain = (one(line_up, setup, "engine").logits(given, [0, 0]) for setup in ("full", "base"))
    assert (tuned - plain).norm() > 0.1 * plain.norm()


def test_choices_share_rows_evenly():
    assert [mixed_of(4, rows) for rows in (1, 2, 6, 8, 32)] == [1, 2, 3, 4, 4]
    assert mixed(4)(8) == [0, 0, 1, 1, 2, 2, 3, 3] and mixed(3)(2) == [0, 1]
    choose = in_turns(3)
    assert [choose(2) for _ in range(4)] == [[0, 0], [1, 1], [2, 2], [0, 0]]


def test_an_encoder_is_refused_by_name(tmp_path):
    make("bert", tmp_path / "bert")
    base = models.resolve(str(tmp_path / "bert"))
    with pytest.raises(ModelError, match="language models alone are timed, got a bert base"):
        offers.drawn(base, {"rank": 2}, 1, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("lengths", "bucket", "tokens"), [((9,), 16, 16), ((16,), 16, 32), ((7, 8), 16, 16), ((3,), 1, 4)]
)
def test_a_finer_bucket_has_an_idle_token_at_least_and_changes_no_answer(line_up, lengths, bucket, tokens):
    rows = [list(range(5, 5 + length)) for length in lengths]
    layout, usual = lay_out(rows, CPU, bucket=bucket), lay_out(rows, CPU)
    assert layout.ids.shape == (1, tokens) and usual.ids.shape == (1, 64)
    model = one(line_up, "base", "engine").model
    found, expected = (blocks.states(model, made)[made.last] for made in (layout, usual))
    assert torch.allclose(found, expected, atol=1e-6)
