"""The forms in which a tuned model exists, asked the same probes: in memory, loaded by PEFT, a folder, a server.

All in torch compute in fp32 on the CPU, whatever they were trained in.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tunetrial import models
from tunetrial.core.errors import ConfigError
from tunetrial.core.evidence import Example, Scores
from tunetrial.engine import adapters, attention, generation, merge
from tunetrial.engine.texts import Texts
from tunetrial.methods import AdapterSpec
from tunetrial.models.adapters import CONFIG, AdapterFolder
from tunetrial.ship.hops import Answers
from tunetrial.ship.llamacpp import Server

CPU = torch.device("cpu")
PLACES_A_PROBE = 4


@dataclass(frozen=True)
class Probes:
    """Examples as one base reads them: the tokens of each prompt, what ends an answer, and how long it may be.

    `rows` are prompts with the right answers, along which the next token is asked for at `places`, the end of the
    prompt first. They are the same for every form, whatever it would write itself.
    """

    examples: tuple[Example, ...]
    texts: Texts
    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]
    stops: frozenset[int]
    longest: int
    context: int
    vocabulary: int

    @classmethod
    def of(cls, examples: Sequence[Example], base: Path, *, longest: int) -> "Probes":
        """Read examples with a base's tokenizer and template.

        Raises:
            ConfigError: There are none, or one with its answer is as long as the base's context.
        """
        texts, shape = Texts(AutoTokenizer.from_pretrained(base, trust_remote_code=False)), models.shape(base)
        rows = texts.rows(examples)
        lengths = [len(row.tokens) for row in rows]
        if not rows or max(lengths) >= shape.context or not all(row.prompt for row in rows):
            got = f"got {len(rows)}, the longest of {max(lengths, default=0)} tokens"
            raise ConfigError(f"probes: rows with a prompt, of less than {shape.context} tokens; {got}; choose others")
        return cls(
            examples=tuple(examples),
            texts=texts,
            prompts=tuple(tuple(row.tokens[: row.prompt]) for row in rows),
            rows=tuple(tuple(row.tokens) for row in rows),
            places=tuple(_places(row.prompt, len(row.tokens)) for row in rows),
            stops=frozenset(texts.stops(rows)),
            longest=longest,
            context=shape.context,
            vocabulary=shape.vocabulary,
        )

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens the answer to a prompt may have."""
        return min(self.longest, self.context - len(prompt))


def _places(prompt: int, length: int) -> tuple[int, ...]:
    """How many tokens go before each place: of the answer none, and then about every fourth part of it."""
    return tuple(sorted({prompt + (length - prompt) * part // PLACES_A_PROBE for part in range(PLACES_A_PROBE)}))


def trained(base: models.PinnedModel, read: AdapterFolder) -> PreTrainedModel:
    """The model as the engine trains and scores it: its own low-rank layers, with the artifact's numbers in them.

    Their scale is counted from the artifact's settings, not asked of PEFT.
    """
    weights, _ = merge.adapter_weights(read, base)
    config = json.loads((read.folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            raise ConfigError(
                f"{read.folder / CONFIG}: {name}: no adapter of tunetrial's has one, got one; take its own"
            )
    scaling = config["lora_alpha"] / (read.rank**0.5 if config.get("use_rslora") else read.rank)
    paths = {name.removeprefix(merge.PREFIX).partition(".lora_")[0] for name in weights}
    targets = tuple(sorted(paths))
    model = attention.load(base.folder, AutoModelForCausalLM, torch.float32, CPU)
    spec = AdapterSpec(rank=read.rank, scaling=scaling, targets=targets, dora=read.method == "dora")
    adapters.attach(model, [spec], seeds=[0])
    for path in targets:
        layer, name = model.get_submodule(path), f"{merge.PREFIX}{path}"
        layer.lora_A.data[0] = weights[f"{name}.lora_A.weight"]
        layer.lora_B.data[0] = weights[f"{name}.lora_B.weight"]
        if layer.lora_magnitude_vector is not None:
            layer.lora_magnitude_vector.data[0] = weights[f"{name}.lora_magnitude_vector"]
    return model


def by_peft(base: models.PinnedModel, read: AdapterFolder) -> PreTrainedModel:
    """The adapter as PEFT loads it over its base."""
    weights, _ = merge.adapter_weights(read, base)
    model = attention.load(base.folder, AutoModelForCausalLM, torch.float32, CPU)
    merge.attach_by_peft(model, read, weights)
    return model


def of_folder(folder: Path) -> PreTrainedModel:
    """A model folder as transformers loads it."""
    return attention.load(folder, AutoModelForCausalLM, torch.float32, CPU)


@torch.no_grad()
def answers_of(model: PreTrainedModel, probes: Probes) -> Answers:
    """Ask a model in memory."""
    how = {"longest": probes.longest, "stops": set(probes.stops), "context": probes.context}
    made = generation.complete(model, probes.prompts, **how)
    told, leads = [], []
    for row, places in zip(probes.rows, probes.places, strict=True):
        told.append(_log_probs(model, row)[[place - 1 for place in places]].numpy())
    for prompt, completion in zip(probes.prompts, made, strict=True):
        chosen = len(completion) + (len(completion) < probes.room(prompt))  # the place of the end was one of choice
        best = _log_probs(model, [*prompt, *completion])[len(prompt) - 1 :][:chosen].topk(2).values
        leads.append((best[:, 0] - best[:, 1]).numpy())
    return Answers(np.concatenate(told), tuple(map(tuple, made)), tuple(leads))


def answers_from(server: Server, probes: Probes) -> Answers:
    """Ask a model that llama.cpp serves."""
    told, completions, leads = [], [], []
    for row, places in zip(probes.rows, probes.places, strict=True):
        for place in places:
            ids, log_probs = server.next_token(row[:place], top=probes.vocabulary)
            told.append(np.full(probes.vocabulary, -np.inf))
            told[-1][ids] = log_probs
    for prompt in probes.prompts:
        made = server.complete(prompt, max_tokens=probes.room(prompt), top=2)
        completions.append(made.tokens)
        leads.append(made.log_probs_TN[:, 0] - made.log_probs_TN[:, 1])
    return Answers(np.stack(told), tuple(completions), tuple(leads))


def _log_probs(model: PreTrainedModel, row: Sequence[int]) -> torch.Tensor:
    """Natural logarithms of the probability of each next token after each token of a row."""
    states = attention.states(model, attention.lay_out([list(row)], CPU))[: len(row)]
    return torch.log_softmax(attention.logits(model, states).double(), dim=-1)


def misread(server: Server, probes: Probes) -> str | None:
    """What llama.cpp makes otherwise of the probes than training did, the first of it in words: the text of a
    conversation, or the tokens of a prompt, its beginning among them. None where all is the same."""
    for example, prompt in zip(probes.examples, probes.prompts, strict=True):
        text = example.prompt
        if example.messages is not None:
            text = "".join(piece for piece, _ in probes.texts.pieces(example)[:-1])
            tools = json.loads(example.tools) if example.tools else None
            written = server.template(json.loads(example.messages)[:-1], tools=tools)
            if written != text:
                place = _parted(written, text)
                got = f"got {written[place : place + 20]!r} for {text[place : place + 20]!r}"
                return f"template: row {example.id} is written otherwise from character {place}, {got}"
        made = server.tokenize(text, begin=example.messages is None)
        if tuple(made) != prompt:
            place = _parted(made, prompt)
            got = f"got {made[place : place + 3]} for {list(prompt[place : place + 3])}"
            return f"tokens: row {example.id} is read otherwise from token {place}, {got}"
    return None


def scores(answers: Answers, probes: Probes) -> Scores:
    """The completions as a trial's scores are kept."""
    return Scores(
        example_id_E=tuple(example.id for example in probes.examples),
        cluster_E=tuple(example.cluster for example in probes.examples),
        target_E=np.array([str(example.target) for example in probes.examples], dtype=object),
        prediction_E=np.array([probes.texts.decode(tokens) for tokens in answers.completions], dtype=object),
    )


def _parted(one: Sequence, other: Sequence) -> int:
    """The place from which two sequences differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
