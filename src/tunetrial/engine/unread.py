"""Trials without files: a base by its configuration alone, and rows by their lengths.

What `TorchPack` trains on is then there in size and kind: on the meta device, where nothing is computed (`trace`), or
with random weights on a real one, to measure what it takes.

    asked = Asked.of(config, arm, controls, lengths=[512] * 16, answered=[64] * 16)
    pack = asked.pack(Session(asked, torch.device("cuda")))
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from tunetrial import methods
from tunetrial.core.errors import ModelError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import Arm, Controls, Kind, Trial
from tunetrial.engine import adapters, attention, place
from tunetrial.engine.meter import Meter
from tunetrial.engine.texts import Row
from tunetrial.engine.torch_engine import DTYPES, TorchPack, TorchSession
from tunetrial.models.sizes import shape_of


def configured(config: Mapping[str, object]) -> PreTrainedConfig:
    """What transformers makes of a `config.json`, dtypes apart.

    Raises:
        ModelError: It refuses the settings.
    """
    kept = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    try:
        return AutoConfig.for_model(kept.pop("model_type"), **kept)
    except (StrictDataclassError, AttributeError, KeyError, TypeError, ValueError) as error:
        got = " ".join(str(error).split()).partition(". Errors: ")[0][:200]
        raise ModelError(f"config.json: transformers refuses its settings, got {got}; mend it") from error


class Rows:
    """Rows of given lengths, asked for as `Texts` are; the last `answered` tokens of each are its answer."""

    def __init__(self, lengths: Sequence[int], answered: Sequence[int] | None):
        self.lengths = list(lengths)
        self.answered = [n - 1 for n in lengths] if answered is None else list(answered)

    def prompts(self, examples: Sequence[Example]) -> list[list[int]]:
        return [[0] * self.lengths[int(example.id)] for example in examples]

    def rows(self, examples: Sequence[Example]) -> list[Row]:
        return [self.row(self.lengths[n], self.answered[n]) for n in (int(example.id) for example in examples)]

    @staticmethod
    def row(length: int, answered: int) -> Row:
        prompt = length - answered
        return Row([0] * length, [False] * prompt + [True] * answered, prompt)


@dataclass(frozen=True)
class Asked:
    """A trial, or a pack of `members` of them, that takes the same step of rows again and again.

    `passes` are the rows and members that are computed at once, as the engine begins where None.
    """

    config: Mapping[str, object]
    trial: Trial
    rows: Rows
    data: TaskData
    members: int
    passes: Mapping[str, int | None]
    recomputes: bool

    @classmethod
    def of(
        cls,
        config: Mapping[str, object],
        arm: Arm,
        controls: Controls,
        *,
        lengths: Sequence[int],
        kind: Kind = "generate",
        outputs: int = 1,
        members: int = 1,
        micro_batch: int | None = None,
        at_once: int | None = None,
        recomputes: bool = False,
        answered: Sequence[int] | None = None,
    ) -> "Asked":
        """See `trace.trace`."""
        passes = {"micro_batch": micro_batch, "at_once": at_once}
        trial, rows = _trial(arm, controls, len(lengths)), Rows(lengths, answered)
        return cls(config, trial, rows, _data(len(lengths), kind, outputs), members, passes, recomputes)

    def pack(self, session: "Session") -> TorchPack:
        """The trials in hand, which differ in their seeds."""
        trials = [self.trial.model_copy(update={"seed": seed}) for seed in range(self.members)]
        return TorchPack(session, trials, self.data, **self.passes)

    @property
    def step(self) -> list[list[int]]:
        """The rows of a step of each member, the shortest first."""
        return [sorted(range(len(self.rows.lengths)), key=lambda row: self.rows.lengths[row])] * self.members


class Session:
    """What `TorchPack` asks of a session. Weights on a real device are random; what is read a second time, for masters
    of more digits, is zeros.

    On the meta device a meter counts what is there: a base that is quantised on CUDA is not there as a whole.

    Args:
        layers: How many the base is given, where that is not its configuration's number.
    """

    reader = TorchSession.reader
    checkpoint_every_s = 60.0

    def __init__(self, asked: Asked, device: torch.device, *, layers: int | None = None, meter: Meter | None = None):
        self.shape, self.texts = shape_of(asked.config), asked.rows
        self.layers = layers or self.shape.layers
        self.asked, self.meter, self.device = asked, meter, device
        self.precision, self.storage = asked.trial.controls.precision, methods.find(asked.trial.arm).storage
        self.model = self._base(DTYPES[self.precision], device)
        if meter is not None and (self.storage == "plain" or not place.is_cuda(device)):
            self._count(self.model)
        adapters.quantise(self.model, self.storage, tuple(self.shape.projections), device=device)
        if meter is not None:
            self._count(self.model)

    def load(self, dtype: torch.dtype) -> torch.nn.Module:
        """The base once more, in the host's memory."""
        model = self._base(dtype, torch.device("meta"))
        if self.meter is None:
            return model._apply(lambda tensor: torch.zeros_like(tensor, device="cpu"))
        if not place.is_cuda(self.device):
            self._count(model)
        return model

    def _count(self, model: torch.nn.Module) -> None:
        self.meter.give((*model.parameters(), *model.buffers()), "base")

    def _base(self, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        config = configured(self.asked.config)
        config.num_hidden_layers = self.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.layers]
        if self.shape.decoder:  # else transformers looks for it among the tokens
            config.pad_token_id = None
        headless = self.asked.trial.controls.readout == "head"
        roberta = {"add_pooling_layer": False} if config.model_type == "roberta" and headless else {}
        loader = AutoModel if headless else AutoModelForCausalLM
        with device, nullcontext() if self.meter is None else self.meter.silent():
            model = loader.from_config(config, dtype=dtype, attn_implementation=attention.UNPADDED, **roberta)
        return model.eval().requires_grad_(False)


def _data(rows: int, kind: Kind, outputs: int) -> TaskData:
    labels = tuple(map(str, range(outputs))) if kind == "classify" else ()
    target = {"classify": "0", "regress": 0.0, "generate": ""}[kind]
    examples = [Example(id=str(n), cluster=str(n), prompt="", target=target) for n in range(rows)]
    return TaskData(name="traced", kind=kind, labels=labels, splits={"train": tuple(examples), "validation": ()})


def _trial(arm: Arm, controls: Controls, rows: int) -> Trial:
    """Of two steps, so that a warm start has its own."""
    controls = controls.model_copy(update={"batch_examples": rows, "epochs": 2})
    given = {"task": "traced", "data_digest": "", "learning_rate": 1e-5, "purpose": "probe"}
    return Trial(arm=arm, controls=controls, seed=0, **given)
