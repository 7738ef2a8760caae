"""Completions of many prompts at once against transformers' `generate` of each prompt alone."""

import copy
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

import bases
from tunetrial.core.errors import DoesNotFitError
from tunetrial.engine import adapters, attention, generation
from tunetrial.engine.segments import Segments, over
from tunetrial.methods import AdapterSpec

CPU = torch.device("cpu")
LENGTHS = (9, 1, 40, 63, 14, 30, 2, 64)  # the last ones leave one token or none within the context of 64
LONGEST, CONTEXT, TIE = 12, 64, 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A family's model as the engine loads it, prompts, stops, and the completions of each prompt alone."""

    @cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        vary(bases.make(name, folder)).save_pretrained(folder)
        model = attention.load(folder, AutoModelForCausalLM, torch.float32, CPU)
        assert model.config._attn_implementation == attention.UNPADDED
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        plain.generation_config = GenerationConfig()
        generator = torch.Generator().manual_seed(0)
        prompts = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]
        endless = [alone(plain, prompt) for prompt in prompts]
        stops = {endless[0][2], endless[4][9]}
        return model, plain, prompts, stops, [until(tokens, stops) for tokens in endless]

    return make


@torch.no_grad()
def vary(model):
    """Draw weights anew so that completions have many tokens: large matrices, biases around 0."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        mean, sd = (0.0, 0.5) if weight.ndim > 1 else (0.0 if name.endswith("bias") else 1.0, 0.3)
        weight.normal_(mean, sd, generator=generator)
    return model


def alone(model, prompt):
    settings = GenerationConfig(max_new_tokens=max(1, min(LONGEST, CONTEXT - len(prompt))), do_sample=False)
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[
        0, len(prompt) :
    ].tolist()


def until(tokens, stops):
    return tokens[: next((place for place, token in enumerate(tokens) if token in stops), len(tokens))]


def complete(model, prompts, stops):
    return generation.complete(model, prompts, longest=LONGEST, stops=stops, context=CONTEXT)


@torch.no_grad()
def is_tie(model, prompt, ours, theirs):
    """Whether the two best logits were as close as rounding where the completions part."""
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    best = model(torch.tensor([prompt + theirs[:same]])).logits[0, -1].topk(2).values
    return best[0] - best[1] < TIE


def assert_same(made, found):
    _, plain, prompts, _, expected = made
    differ = [row for row in range(len(prompts)) if found[row] != expected[row]]
    assert all(is_tie(plain, prompts[row], found[row], expected[row]) for row in differ)
    assert len(differ) <= 0.01 * len(prompts)


@pytest.mark.parametrize("name", bases.DECODERS)
def test_completions_are_those_of_each_prompt_alone(name, made):
    model, _, prompts, stops, expected = made(name)
    found = complete(model, prompts, stops)
    assert model.config._attn_implementation == attention.UNPADDED
    assert_same(made(name), found)
    assert len({len(tokens) for tokens in expected}) >= (2 if name == "gemma2" else 3)


@pytest.mark.parametrize("name", bases.DECODERS)
@torch.no_grad()
def test_states_are_those_of_each_row_read_anew(name, made):
    """While rows leave and others come."""
    model, _, prompts, *_ = made(name)
    fed, found = torch.Generator().manual_seed(1), []
    with generation.caching(model):
        grids, rows = generation.Grids(model), [prompts[place] for place in (0, 1, 2, 4, 6)]
        found.append((rows, grids.read(rows)))
        for step in range(4):
            if step == 2:
                grids.keep(torch.tensor([3, 0]))
                rows = [rows[3], rows[0], prompts[5]]
                found.append((rows[2:], grids.read(rows[2:])))
                grids.join()
            tokens = torch.randint(3, 97, (len(rows),), generator=fed)
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
            grids.widen()
            found.append((rows, grids.step(tokens, torch.ones(len(rows), dtype=torch.bool))))
    kept = sum(grid.nbytes for [grids] in grids.kept.values() for grid in grids)
    assert kept == generation.token_bytes(model) * len(rows) * grids.columns
    for rows, states in found:
        anew = [attention.states(model, attention.lay_out([row], CPU))[len(row) - 1] for row in rows]
        torch.testing.assert_close(states, torch.stack(anew), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_a_base_that_pads_completes_the_same(name, made):
    model, _, prompts, stops, _ = made(name)
    model.set_attn_implementation("eager")
    try:
        found = complete(model, prompts, stops)
    finally:
        model.set_attn_implementation(attention.UNPADDED)
    assert_same(made(name), found)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tokens, steps", [(1, 1), (80, 5), (200, 1)])
def test_little_room_and_rare_looks_change_nothing(tokens, steps, padded, made, monkeypatch):
    """Prompts wait for others to end; on CUDA the stops are looked for every few tokens."""
    model, _, prompts, stops, _ = made("mistral")
    monkeypatch.setitem(generation.CACHE_BYTES, "cpu", tokens * generation.token_bytes(model))
    monkeypatch.setitem(generation.STEPS_BETWEEN_LOOKS, "cpu", steps)
    monkeypatch.setitem(generation.PROMPT_TOKENS, "cpu", 50)
    if padded:
        model.set_attn_implementation("sdpa")
    try:
        assert_same(made("mistral"), complete(model, prompts, stops))
    finally:
        model.set_attn_implementation(attention.UNPADDED)


class Recorder:
    """Stands in for CUDA's graphs: what is replayed runs again, on tensors that must lie where they lay."""

    def __init__(self):
        self.ran, self.recorded, self.replayed = 0, 0, 0

    def run(self, pass_):
        self.ran += 1
        return pass_()

    def record(self, pass_):
        self.recorded += 1
        places = self.places(pass_.__self__)

        def again():
            self.replayed += 1
            assert self.places(pass_.__self__) == places
            return pass_()

        return again

    def places(self, completions):
        state = [value for value in vars(completions).values() if isinstance(value, torch.Tensor)]
        grids = [grid for [pair] in completions.cache.kept.values() for grid in pair]
        return [tensor.data_ptr() for tensor in (*state, completions.cache.lengths, *grids)]


@pytest.mark.parametrize("tokens", [200, 2**14])
def test_steps_are_recorded_anew_only_when_rows_or_columns_have_changed(tokens, made, monkeypatch):
    model, _, prompts, stops, _ = made("llama")
    recorder = Recorder()
    monkeypatch.setattr(generation, "_recorder", lambda device: recorder)
    monkeypatch.setitem(generation.CACHE_BYTES, "cpu", tokens * generation.token_bytes(model))
    assert_same(made("llama"), complete(model, prompts, stops))
    assert recorder.ran == recorder.recorded and recorder.replayed > 5


def test_what_cannot_be_recorded_is_computed_step_by_step(made, monkeypatch):
    class Refuses(Recorder):
        def record(self, pass_):
            raise RuntimeError("operation not permitted when stream is capturing")

    recorder = Refuses()
    monkeypatch.setattr(generation, "_recorder", lambda device: recorder)
    assert_same(made("llama"), complete(made("llama")[0], *made("llama")[2:4]))
    assert recorder.ran == 1


def test_rows_that_have_ended_are_not_computed(made, monkeypatch):
    model, _, prompts, stops, expected = made("llama")
    fed, call = [], attention._call
    monkeypatch.setattr(
        attention, "_call", lambda backbone, ids, *a, **k: fed.append(ids.numel()) or call(backbone, ids, *a, **k)
    )
    complete(model, prompts, stops)
    assert fed[1:] == sorted(fed[1:], reverse=True) and fed[1] < len(prompts)
    needed = sum(max(min(len(tokens) + 1, LONGEST) - 1, 0) for tokens in expected)
    assert sum(fed[1:]) <= needed / generation.LEFT["cpu"]
    fed.clear()
    monkeypatch.setitem(generation.CACHE_BYTES, "cpu", 200 * generation.token_bytes(model))
    complete(model, prompts, stops)
    assert max(n for n in fed if n <= len(prompts)) < len(prompts)


def test_out_of_memory_fewer_rows_are_completed_at_a_time(made, monkeypatch):
    model, _, prompts, stops, _ = made("llama")
    lay_out, most = generation.lay_out, 3

    def scarce(rows, device):
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lay_out(rows, device)

    monkeypatch.setattr(generation, "lay_out", scarce)
    assert_same(made("llama"), complete(model, prompts, stops))
    most = 0
    with pytest.raises(DoesNotFitError, match="completions: out of memory, got 65 tokens of one row; use a smaller"):
        complete(model, prompts, stops)


def test_no_prompts_have_no_completions(made):
    model, *_ = made("llama")
    assert complete(model, [], {0}) == []


PACKS = {"llama": ("q_proj", "down_proj"), "gemma2": ("v_proj", "up_proj"), "gpt2": ("attn.c_attn", "mlp.c_proj")}
OWNERS = (0, 2, 1, 2, 2, 0, 1, 0)


@pytest.fixture(params=PACKS)
def pack(request, made):
    """A model with the adapters of three members, one of a lower rank; prompts."""
    model, plain, prompts, stops, _ = made(request.param)
    attach(model, PACKS[request.param])
    yield model, plain, prompts, stops
    adapters.detach(model)


def attach(model, targets):
    """Three adapters that change what the model computes."""
    sizes = ((4, 1.0), (2, 2.0), (4, 0.5))
    specs = [AdapterSpec(rank=rank, scaling=scaling, targets=targets) for rank, scaling in sizes]
    adapters.attach(model, specs, seeds=[1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, adapters.LoraLinear):
            drawn = torch.randn(module.lora_B.shape, generator=generator) / 2
            drawn[1, :, 2:] = 0
            drawn[:, :, 4:] = 0
            module.lora_B.data.copy_(drawn)


def merged(model, plain, member):
    """The plain model with one member's adapter in its weights."""
    plain = copy.deepcopy(plain)
    for path, module in model.named_modules():
        if isinstance(module, adapters.LoraLinear):
            delta = module.scaling[member] * module.lora_B[member] @ module.lora_A[member]
            weight = plain.get_submodule(path).weight.data
            weight += delta.T if isinstance(module.base, Conv1D) else delta
    return plain


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_members_of_a_pack_complete_together_as_each_alone(padded, pack, monkeypatch):
    model, plain, prompts, stops = pack
    monkeypatch.setitem(generation.CACHE_BYTES, "cpu", 200 * generation.token_bytes(model))
    if padded:
        model.set_attn_implementation("eager")
    try:
        found = generation.complete(model, prompts, longest=LONGEST, stops=stops, context=CONTEXT, owners=OWNERS)
    finally:
        model.set_attn_implementation(attention.UNPADDED)
    differ = 0
    for member in range(3):
        own = merged(model, plain, member)
        for row in (row for row, owner in enumerate(OWNERS) if owner == member):
            expected = until(alone(own, prompts[row]), stops)
            assert found[row] == expected or is_tie(own, prompts[row], found[row], expected)
            differ += found[row] != expected
    assert differ <= 0.01 * len(prompts)


@torch.no_grad()
@pytest.mark.parametrize("pack", ["llama", "gpt2"], indirect=True)
def test_logits_of_a_pack_are_those_of_each_member_alone(pack):
    model, _, prompts, _ = pack
    rows = [prompts[place] for place in (0, 2, 4, 6)]
    members, one = Segments(range(3), (1, 1, 2), (9, 40, 16)), torch.ones(4, dtype=torch.bool)
    with generation.caching(model):
        together = generation.Grids(model)
        with over(members):
            found = [together.read(rows)]
        together.join()
        together.widen()
        with over(members.by_rows()):
            found.append(together.step(torch.tensor([5, 6, 7, 8]), one))
        for number, (row, member) in enumerate(zip(rows, (0, 1, 2, 2), strict=True)):
            by_itself = generation.Grids(model)
            with over(Segments(range(member, member + 1), (1,))):
                expected = [by_itself.read([row])]
                by_itself.join()
                by_itself.widen()
                expected.append(by_itself.step(torch.tensor([5 + number]), one[:1]))
            for ours, theirs in zip(found, expected, strict=True):
                ours, theirs = (attention.logits(model, states) for states in (ours[number], theirs[0]))
                # Of the largest, as merges are held: processors add one row's products in other orders than four's.
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("members", [1, 3])
def test_recorded_steps_complete_to_the_same_tokens_on_cuda(members, dtype, tmp_path, monkeypatch):
    """And in fp32 those of a pack to the same as each member alone."""
    vary(bases.make("llama", tmp_path, max_position_embeddings=512)).save_pretrained(tmp_path)
    model = attention.load(tmp_path, AutoModelForCausalLM, dtype, torch.device("cuda"))
    attach(model, ("q_proj", "down_proj"))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (1 + 7 * n,), generator=generator).tolist() for n in range(40)]
    within, owners = {"longest": 200, "stops": {5, 7}, "context": 512}, [row % members for row in range(40)]
    replayed, record, found = [], generation.CudaGraphs.record, []

    def counted(self, pass_):
        again = record(self, pass_)
        return lambda: replayed.append(1) or again()

    monkeypatch.setattr(generation.CudaGraphs, "record", counted)
    for recorder in (generation._recorder, lambda device: None):
        monkeypatch.setattr(generation, "_recorder", recorder)
        found.append(generation.complete(model, prompts, owners=owners, **within))
    assert found[0] == found[1] and len(replayed) > 50
    assert len({len(tokens) for tokens in found[0]}) > 5
    differ = 0
    for member in range(members) if dtype == torch.float32 else ():
        own = prompts[member::members]
        solo = generation.complete(model, own, owners=[member] * len(own), **within)
        differ += sum(ours != theirs for ours, theirs in zip(found[0][member::members], solo, strict=True))
    assert differ <= 1  # a tie, rounded otherwise
