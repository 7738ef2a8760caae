"""What is read of a row's hidden states, and the head on top: as Hugging Face's classifier of the same family has it.

A decoder is read by its last token through one layer without a bias. An encoder is read by its first token: BERT
through its own pretrained pooler, RoBERTa and DistilBERT through a layer that is new, and then one with a bias.
Dropout is left out.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from tunetrial.engine.attention import Layout
from tunetrial.engine.blocks import states
from tunetrial.engine.segments import current, over
from tunetrial.models import ModelShape

INITIAL_SD = 0.02
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}


def summaries(backbone: PreTrainedModel, layout: Layout, shape: ModelShape) -> torch.Tensor:
    """One state a row (rows, hidden): what a head is given."""
    at = layout.last if shape.pooling == "last" else layout.first
    picked = states(backbone, layout)[at]
    if shape.encoding is None or not shape.encoding.pooled:
        return picked
    with over(layout.segments.by_rows()):
        return ACTIVATIONS[shape.encoding.activation](backbone.base_model.pooler.dense(picked))


class MemberLinear(nn.Module):
    """A linear layer for each member of a pack: weights (members, outputs, inputs), biases (members, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int, *, bias: bool = True, **place: object):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, outputs, inputs, **place))
        self.bias = nn.Parameter(torch.empty(members, outputs, **place)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (members in the batch, rows, inputs) -> (members in the batch, rows, outputs)."""
        members = current().members
        chosen = slice(members.start, members.stop)
        product = torch.bmm(x, self.weight[chosen].mT)
        return product if self.bias is None else product + self.bias[chosen, None]


class EncoderHead(nn.Module):
    """The new layers after an encoder; `dense` is missing where the backbone has its own."""

    def __init__(self, shape: ModelShape, members: int, outputs: int, **place: object):
        super().__init__()
        encoding = shape.encoding
        self.activation = ACTIVATIONS[encoding.activation]
        self.output = MemberLinear(members, shape.hidden, outputs, **place)
        self.dense = None if encoding.pooled else MemberLinear(members, shape.hidden, shape.hidden, **place)

    def forward(self, summaries: torch.Tensor) -> torch.Tensor:
        return self.output(summaries if self.dense is None else self.activation(self.dense(summaries)))


def make_head(
    shape: ModelShape,
    outputs: int,
    *,
    generators: Sequence[torch.Generator],
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """A head (members, rows, hidden) -> (members, rows, outputs), a member for each generator: weights normal with
    sd 0.02 from it, biases 0."""
    place = {"dtype": dtype, "device": device}
    if shape.encoding is None:
        head = MemberLinear(len(generators), shape.hidden, outputs, bias=False, **place)
    else:
        head = EncoderHead(shape, len(generators), outputs, **place)
    for number, generator in enumerate(generators):
        for weight in head.parameters():
            drawn = torch.zeros(weight.shape[1:])
            weight.data[number] = drawn.normal_(0, INITIAL_SD, generator=generator) if drawn.ndim > 1 else drawn
    return head


def classifier_name(name: str, shape: ModelShape) -> str:
    """The name in Hugging Face's classifier of a weight of ours: `model.…` is the backbone, `score.…` the head."""
    if name.startswith("model."):
        return f"{shape.prefix}.{name.removeprefix('model.')}"
    if shape.encoding is None or not name.startswith("score."):
        return name
    ours = {"score.output": shape.encoding.output, "score.dense": shape.encoding.dense}
    layer, _, kind = name.rpartition(".")
    return f"{ours[layer]}.{kind}"
