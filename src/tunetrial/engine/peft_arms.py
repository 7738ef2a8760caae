"""Any adapter of PEFT's in a model of ours: PEFT builds it, says what is trained, and reads what is saved.

The model computes in evaluation mode in every arm, so no dropout of an adapter's acts. PEFT draws initial values from
torch's own generator, which is seeded with the trial's stream "adapter" for that moment.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn

from tunetrial.core.errors import SpecError
from tunetrial.engine import tensors
from tunetrial.engine.streams import stream
from tunetrial.methods import PeftSpec
from tunetrial.models.adapters import FINGERPRINT, WEIGHTS


class PeftArm:
    """An adapter in a backbone or causal model, changed in place; `trained` are its parameters by PEFT's names.

    To be rid of it, load the model anew.
    """

    def __init__(self, model: nn.Module, spec: PeftSpec, *, seed: int):
        """
        Raises:
            SpecError: PEFT cannot make such an adapter for this model.
        """
        self.spec, self.prefix = spec, model.base_model_prefix
        devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in spec.settings.items()}
        with torch.random.fork_rng(devices), _one_line(spec.peft_type):
            torch.manual_seed(stream(seed, "adapter"))
            self.config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(spec.peft_type)](**settings)
            self.peft = PeftModel(model, self.config, autocast_adapter_dtype=False)
        self.peft.eval()
        self.trained = {name: p for name, p in self.peft.named_parameters() if p.requires_grad}

    def save(
        self,
        masters: Mapping[str, torch.Tensor],
        head: Mapping[str, torch.Tensor],
        folder: Path,
        *,
        base: str,
        base_fingerprint: str,
    ) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`.

        `masters` are of `trained`; `head` the readout's weights by their names in Hugging Face's classifier, or empty
        for a language model. What is not trained and yet saved (random projections) stays as it was drawn.
        """
        state = {**self.peft.state_dict(), **masters}
        weights = get_peft_model_state_dict(self.peft, state_dict=state, save_embedding_layers=False)
        inner = "base_model.model."
        outer = f"{inner}{self.prefix}." if head else inner
        named = {outer + k.removeprefix(inner) if k.startswith(inner) else k: weight for k, weight in weights.items()}
        named |= {f"{inner}{name}": weight for name, weight in head.items()}
        wide = {name: weight.detach().cpu().float().clone() for name, weight in named.items()}
        tensors.write(folder / WEIGHTS, wide, metadata={"format": "pt", FINGERPRINT: base_fingerprint})
        self.config.task_type = "SEQ_CLS" if head else "CAUSAL_LM"
        self.config.base_model_name_or_path = base
        self.config.inference_mode = True
        if head:
            self.config.modules_to_save = sorted({name.split(".")[0] for name in head})
        self.config.save_pretrained(folder)


@contextmanager
def _one_line(peft_type: str) -> Iterator[None]:
    """Say PEFT's objections in one line; that it sets a flag for transposed weights, or adapts a norm, is none."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    except (ValueError, TypeError, NotImplementedError, AttributeError, AssertionError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise SpecError(f"peft_type {peft_type}: PEFT refuses, got {text}; change its settings") from None
