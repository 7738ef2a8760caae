"""Deployments of one base that answer the same requests: transformers and PEFT as they come, and the engine's passes.

    model, load_s = load(folder, torch.float32, device)
    Eager(twin(model, "sdpa")).answer([[5, 6, 7], [8, 9, 4]], 1)        # the next token of each row
    Engine(twin(model, None)).answer([[5, 6, 7], [8, 9, 4]], 16)        # 16 tokens of each

A request is rows of token ids on the host, all of one length, and what it gives back lies on the host: putting rows
together and taking answers out belong to it. Nothing ends early, so that all make as many tokens.
"""

import copy
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModelForCausalLM, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunetrial.engine import adapters, attention, blocks, decoding, generation
from tunetrial.engine.answers import Answers
from tunetrial.engine.attention import Layout, lay_out
from tunetrial.engine.graphs import CudaGraphs, Replay, recordable
from tunetrial.engine.merge import peft_config
from tunetrial.models.adapters import AdapterFolder

TOKEN_BUCKET = {"cpu": 16}  # finer than in training: shapes of requests come again, and each is prepared once

FEW_TOKENS = 128  # of prompts that are read by stacked layers: of more, taking outputs apart costs what they save

Rows = Sequence[Sequence[int]]
Weights = dict[str, torch.Tensor]
Choice = Callable[[int], Sequence[int]]  # rows of a request -> the adapter of each, rows of one after the other


class Answering(Protocol):
    """A model in memory that answers requests. `adapters_of` says how many adapters a request of so many rows uses."""

    model: torch.nn.Module
    adapters_of: Callable[[int], int]

    def answer(self, rows: Rows, tokens: int) -> list[list[int]]: ...

    def logits(self, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        """Those after each row (rows, vocabulary), by the adapters named, which lie one after the other."""


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A language model from files, as transformers has it."""
    model = attention.load(folder, AutoModelForCausalLM, dtype, device, attention="sdpa")
    model.generation_config = GenerationConfig()
    return model


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in modules of their own, so that several deployments of them take their memory once."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def by_engine(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model attend without padding, where that is proven to be right."""
    attention.prove(model)
    return model


def alone(rows: int) -> list[int]:
    """Every row by the first adapter, or by none."""
    return [0] * rows


def in_turns(adapters: int) -> Choice:
    """All rows of a request by one adapter, those of the next request by the next one."""
    turns = itertools.cycle(range(adapters))
    return lambda rows: [next(turns)] * rows


def mixed_of(adapters: int, rows: int) -> int:
    """How many of the adapters a batch is mixed of: as many as have equally many rows of it."""
    return max(count for count in range(1, adapters + 1) if rows % count == 0)


def mixed(adapters: int) -> Choice:
    """Rows of as many adapters as there can be equally many rows of."""
    return lambda rows: [row * mixed_of(adapters, rows) // rows for row in range(rows)]


class Eager:
    """transformers' forward and generate in attention of its own choosing, PEFT's modules where there are adapters."""

    def __init__(self, model: PreTrainedModel, *, adapters_of: Callable[[int], int] = lambda rows: 0):
        self.model, self.adapters_of = model, adapters_of

    @torch.no_grad()
    def answer(self, rows: Rows, tokens: int) -> list[list[int]]:
        ids, chosen = torch.tensor(rows, device=self.model.device), self._choose(len(rows))
        if tokens == 1:
            return self._logits(ids, chosen).argmax(-1, keepdim=True).tolist()
        how = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0, use_cache=True)
        made = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how, **chosen)
        return made[:, ids.shape[1] :].tolist()

    @torch.no_grad()
    def logits(self, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        return self._logits(torch.tensor(rows, device=self.model.device), {})

    def _choose(self, rows: int) -> dict[str, object]:
        return {}

    def _logits(self, ids: torch.Tensor, chosen: dict[str, object]) -> torch.Tensor:
        mask = torch.ones_like(ids)
        made = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **chosen)
        return made.logits[:, -1]


class EagerSwapped(Eager):
    """Several of PEFT's adapters in memory, of which another one is set active before every request."""

    def __init__(self, model: PeftModelForCausalLM, choose: Choice):
        super().__init__(model, adapters_of=lambda rows: 1)
        self.choose = choose

    def _choose(self, rows: int) -> dict[str, object]:
        self.model.set_adapter(name_of(self.choose(rows)[0]), inference_mode=True)
        return {}

    @torch.no_grad()
    def logits(self, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        parts = []
        for owner in dict.fromkeys(owners):
            self.model.set_adapter(name_of(owner), inference_mode=True)
            own = [row for row, of in zip(rows, owners, strict=True) if of == owner]
            parts.append(super().logits(own, []))
        return torch.cat(parts)


class EagerMixed(Eager):
    """Several of PEFT's adapters in one batch, by the names that it is given row by row."""

    def __init__(self, model: PeftModelForCausalLM, choose: Choice, adapters_of: Callable[[int], int]):
        super().__init__(model, adapters_of=adapters_of)
        self.choose = choose

    def _choose(self, rows: int) -> dict[str, object]:
        return {"adapter_names": [name_of(owner) for owner in self.choose(rows)]}

    @torch.no_grad()
    def logits(self, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        chosen = {"adapter_names": [name_of(owner) for owner in owners]}
        return self._logits(torch.tensor(rows, device=self.model.device), chosen)


@dataclass(frozen=True)
class Prompts:
    """Rows of one request laid out, as a pass that may be recorded reads them."""

    layout: Layout
    key: Hashable | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.layout.tensors


class Engine:
    """Rows without padding, in the engine's own passes; on CUDA recorded and replayed where they can be. The adapter of
    each row is told to the low-rank layers: going over to another one that is resident is that alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        choose: Choice = alone,
        *,
        adapters_of: Callable[[int], int] = lambda rows: 0,
    ):
        self.model, self.choose, self.adapters_of = model, choose, adapters_of
        self.recordable = model.device.type == "cuda" and recordable(model)
        self.first = Replay(self._best, CudaGraphs(), abandon=lambda: None) if self.recordable else self._best
        self.nothing = torch.zeros((), device=model.device)
        known = decoding.takes(model)
        self.answers = Answers(model, decoding.Decoder(model.base_model)) if known else None
        self.stacks = self.answers.decoder.stacks if known else {}

    @property
    def recorded(self) -> bool:
        return isinstance(self.first, Replay) and self.first.replayed > 0

    @torch.no_grad()
    def answer(self, rows: Rows, tokens: int) -> list[list[int]]:
        owners = self.choose(len(rows))
        if tokens == 1:
            layout = self._lay_out(rows, owners)
            return self.first(Prompts(layout, layout.shape if self.recordable else None), self.nothing).tolist()
        if self.answers is not None:
            return self.answers.made(rows, owners, tokens)
        context = len(rows[0]) + tokens
        return generation.complete(self.model, rows, longest=tokens, stops=set(), context=context, owners=owners)

    @torch.no_grad()
    def logits(self, rows: Rows, owners: Sequence[int]) -> torch.Tensor:
        return self._logits(self._lay_out(rows, owners))

    def _lay_out(self, rows: Rows, owners: Sequence[int]) -> Layout:
        members, bucket = range(owners[0], owners[-1] + 1), TOKEN_BUCKET.get(self.model.device.type)
        return lay_out(rows, self.model.device, members=members, bucket=bucket)

    def _best(self, prompts: Prompts, nothing: torch.Tensor) -> torch.Tensor:
        return self._logits(prompts.layout).argmax(-1, keepdim=True)

    def _logits(self, layout: Layout) -> torch.Tensor:
        with blocks.stacked(self.stacks if len(layout.cells) <= FEW_TOKENS else {}):
            return attention.logits(self.model, blocks.states(self.model, layout)[layout.last])


def name_of(adapter: int) -> str:
    """What the adapter of a number is called within PEFT."""
    return "default" if adapter == 0 else f"adapter{adapter}"


def beside_by_engine(model: PreTrainedModel, read: Sequence[tuple[AdapterFolder, Weights]]) -> PreTrainedModel:
    """Put adapters beside a model's weights as members of one pack; the model is changed in place.

    Raises:
        ModelError: Their layers differ in rank or scale, or they are not of this model.
    """
    specs = [adapters.read_spec(folder.folder) for folder, _ in read]
    adapters.attach(model, specs, seeds=[0] * len(specs))
    model.requires_grad_(False)
    layers = adapters.adapted(model)
    for member, (_, weights) in enumerate(read):
        adapters.take_in(layers, weights, member=member)
    return model


def beside_by_peft(model: PreTrainedModel, read: Sequence[tuple[AdapterFolder, Weights]]) -> PeftModelForCausalLM:
    """Put adapters into a model by PEFT, in the model's dtype, none of them trainable; the first is active."""
    made = None
    for number, (folder, weights) in enumerate(read):
        config = peft_config(folder)
        if made is None:
            made = PeftModelForCausalLM(model, config, adapter_name=name_of(0), autocast_adapter_dtype=False)
        else:
            made.add_adapter(name_of(number), config, autocast_adapter_dtype=False)
        set_peft_model_state_dict(made, weights, adapter_name=name_of(number))
    return made.to(model.dtype).eval().requires_grad_(False)


def weights_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's weights and buffers, each once, however many modules have it."""
    held = {(t.data_ptr(), t.nbytes) for t in (*model.parameters(), *model.buffers())}
    return sum(nbytes for _, nbytes in held)
