"""Completions of many prompts at once against transformers' `generate` of each prompt alone."""

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import bases
from tunetrial.core.errors import DoesNotFitError
from tunetrial.engine import attention, generation

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
    with generation._caching(model):
        grids, rows = generation.Grids(model), [prompts[place] for place in (0, 1, 2, 4, 6)]
        found.append((rows, grids.read(rows)))
        for step in range(4):
            if step == 2:
                grids.keep(torch.tensor([3, 0]))
                rows = [rows[3], rows[0], prompts[5]]
                found.append((rows[2:], grids.read(rows[2:])))
            tokens = torch.randint(3, 97, (len(rows),), generator=fed)
            rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
            found.append((rows, grids.step(tokens, torch.ones(len(rows), dtype=torch.bool))))
    for rows, states in found:
        anew = [attention.states(model, attention.lay_out([row], CPU))[len(row) - 1] for row in rows]
        torch.testing.assert_close(states, torch.stack(anew), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "gpt2"])
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
    monkeypatch.setitem(generation.CACHE_TOKENS, "cpu", tokens)
    monkeypatch.setitem(generation.STEPS_BETWEEN_LOOKS, "cpu", steps)
    monkeypatch.setitem(generation.PROMPT_TOKENS, "cpu", 50)
    if padded:
        model.set_attn_implementation("sdpa")
    try:
        assert_same(made("mistral"), complete(model, prompts, stops))
    finally:
        model.set_attn_implementation(attention.UNPADDED)


def test_rows_that_have_ended_are_not_computed(made, monkeypatch):
    model, _, prompts, stops, expected = made("llama")
    fed, call = [], attention._call
    monkeypatch.setattr(
        attention, "_call", lambda backbone, ids, *a, **k: fed.append(ids.numel()) or call(backbone, ids, *a, **k)
    )
    complete(model, prompts, stops)
    assert fed[1:] == sorted(fed[1:], reverse=True) and fed[1] < len(prompts)
    needed = sum(max(min(len(tokens) + 1, LONGEST) - 1, 0) for tokens in expected)
    assert sum(fed[1:]) <= needed / generation.LEFT
    fed.clear()
    monkeypatch.setitem(generation.CACHE_TOKENS, "cpu", 200)
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
