"""What is looked at in a model that was just tuned, besides its answers, as tables beside the trial's scores.

"forgetting", a row a held-out text: its likelihood under base and tuned model and how far their distributions of the
next token lie apart (`heldout.Contrast`).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunetrial.core.evidence import Example, Table, TaskData
from tunetrial.core.pins import TEXT
from tunetrial.core.study import Observed
from tunetrial.engine import attention
from tunetrial.engine.heldout import contrast
from tunetrial.engine.loop import does_not_fit
from tunetrial.engine.states import View, plain, tuned

if TYPE_CHECKING:
    from tunetrial.engine.torch_engine import TorchPack, TorchSession


def observe(pack: "TorchPack", member: int, data: TaskData, what: Observed) -> Table:
    """Look at one thing in a member of a pack, after its last step.

    Raises:
        DoesNotFitError: Memory runs out.
    """
    with does_not_fit(f"{pack.trials[member].arm.name}: {what}"):
        return {"forgetting": _forgetting}[what](pack, member, data)


def _forgetting(pack: "TorchPack", member: int, data: TaskData) -> Table:
    splits = [split for split in data.splits if split.startswith(TEXT)]
    texts = [(split.removeprefix(TEXT), text) for split in splits for text in data.splits[split]]
    found = contrast(*language_models(pack, member), pack.session.tokenizer, [text.prompt for _, text in texts])
    return {
        **_named(texts),
        "tokens": found.base.tokens_E,
        "bytes": found.base.bytes_E,
        "base_nats": found.base.nats_E,
        "tuned_nats": found.tuned.nats_E,
        "kl": found.kl_E,
        "reverse_kl": found.reverse_kl_E,
        "agreed": found.agreed_E,
    }


def _named(texts: list[tuple[str, Example]]) -> dict[str, np.ndarray]:
    columns = {
        "text": [name for name, _ in texts],
        "id": [text.id for _, text in texts],
        "cluster": [text.cluster for _, text in texts],
    }
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def language_models(pack: "TorchPack", member: int) -> tuple[View, View]:
    """What a pack was trained from and what a member became, as language models.

    Where a head was trained on the backbone, the backbone is asked through the base's output layer, or through its own
    embeddings where the two share weights.
    """
    views = plain(pack), tuned(pack, member)
    if pack.session.causal:
        return views
    whole = {id(view.model): view.model for view in views}
    whole = {key: _with_output(pack.session, backbone) for key, backbone in whole.items()}
    base, own = (replace(view, model=whole[id(view.model)]) for view in views)
    return base, own


def _with_output(session: "TorchSession", backbone: PreTrainedModel) -> PreTrainedModel:
    whole = attention.load(
        session.base, AutoModelForCausalLM, backbone.dtype, session.device, attention=session.attention
    )
    setattr(whole, whole.base_model_prefix, backbone)
    whole.tie_weights()
    return whole
